"""Chat templates as files, with the code that loads, fingerprints and verifies them."""

from .errors import TemplateError
from .recognise import recognise
from .rendering import Conversation, ConversationError, Encoded, Rendered, encode, render
from .templates import ChatTemplate, ensure_pad, fingerprint, from_tokenizer, install, load, names
from .verify import Finding, verify

__all__ = [
    "ChatTemplate",
    "Conversation",
    "ConversationError",
    "Encoded",
    "Finding",
    "Rendered",
    "TemplateError",
    "encode",
    "ensure_pad",
    "fingerprint",
    "from_tokenizer",
    "install",
    "load",
    "names",
    "recognise",
    "render",
    "verify",
]
