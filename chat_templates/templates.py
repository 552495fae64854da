"""Chat templates as files: loading, fingerprinting and installing them.

A template is one ``.jinja`` file that starts with a comment of ``key: value`` lines (see ``parse_header``), so that
what a tokenizer must know travels with the text, into ``chat_template.jinja`` of every checkpoint and back.
"""

import functools
import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import TemplateError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parent
PAD = "<|pad|>"
# Pad tokens that published tokenizers already hold.
_KNOWN_PADS = (PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>")
_CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
# Conversations whose renders show what a template writes; one that it refuses shows nothing.
_TRIALS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "question"}, {"role": "assistant", "content": "the answer"}],
    [{"role": role, "content": "text"} for role in ("system", "user", "assistant")],
    [
        {"role": "user", "content": "text"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "content": "text"},
    ],
)


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template and what a tokenizer must know to use it."""

    name: str
    source: str
    """The Jinja text, its header included."""
    end_of_turn: str | None = None
    """The token that ends an assistant turn; None: the tokenizer's own eos token."""
    special_tokens: tuple[str, ...] = ()
    """Tokens that must each be a single id."""
    reproduces: str | None = None
    """Which published format this is."""
    stands_for: "ChatTemplate | None" = None
    """The model's own template, which this one renders alike, with marks of the assistant's turns beside."""

    @property
    def saved(self) -> "ChatTemplate":
        """What a tokenizer carries: the model's own, which may have tools and roles that the one for it has not."""
        return self.stands_for or self

    @functools.cached_property
    def code(self) -> str:
        """The Jinja text without comments."""
        return re.sub(r"\{#.*?#\}", "", self.source, flags=re.DOTALL)

    @functools.cached_property
    def marks_generation(self) -> bool:
        """Whether the text of the assistant is marked, so that loss can be put on it alone."""
        return re.search(r"\{%[-+]?\s*generation\b", self.code) is not None

    @functools.cached_property
    def supports_tools(self) -> bool:
        """Whether tool definitions and tool calls are rendered rather than silently dropped."""
        return re.search(r"\btools\b", self.code) is not None and "tool_calls" in self.code

    @functools.cached_property
    def reasoning_key(self) -> str | None:
        """Under which name the template reads an assistant's reasoning; None if it renders none."""
        names = ("reasoning_content", "reasoning", "thinking")
        return next((name for name in names if self._reads(name)), None)

    @functools.cached_property
    def renders_names(self) -> bool:
        """Whether the template reads the names of speakers."""
        return self._reads("name") and re.search(r"message\w*(\.name\b|\[['\"]name['\"])", self.code) is not None

    def _reads(self, key: str) -> bool:
        """Whether the template takes a key from an object."""
        return re.search(rf"\.{key}\b|['\"]{key}['\"]", self.code) is not None


def names() -> list[str]:
    """Returns the names of the built-in templates, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


def load(name_or_path: str | Path) -> ChatTemplate:
    """Loads a built-in template by name, or any other from a file.

    Raises:
        TemplateError: No built-in has this name and no file this path, or its header or syntax is wrong.
    """
    text = str(name_or_path)
    if text in names():
        path = FOLDER / f"{text}.jinja"
    else:
        path = Path(text)
        if not path.is_file():
            hint = did_you_mean(text, names()) or f"give a path to a .jinja file or one of: {', '.join(names())}"
            raise TemplateError(f"no chat template named '{text}', and no such file", hint=hint)
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"cannot read the chat template: {error}", where=text) from error
    return _from_source(path.stem, source, where=text)


def from_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> ChatTemplate:
    """Returns the template that a tokenizer carries, under the name ``tokenizer``.

    A template without our header says nothing of its end of turn: if the token that follows the assistant's text in a
    trial render is a special one, it is taken to be it.

    Raises:
        TemplateError: The tokenizer carries none, or several with none named ``default``.
    """
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    if not source:
        raise TemplateError(
            "the tokenizer has no chat template", hint=f"name one: {', '.join(names())}, or a path to a .jinja file"
        )
    template = _from_source("tokenizer", source, where="tokenizer.chat_template")
    if parse_header(source, "tokenizer.chat_template"):
        return template
    return replace(template, end_of_turn=_observed_end_of_turn(tokenizer, source))


def _observed_end_of_turn(tokenizer: "PreTrainedTokenizerBase", source: str) -> str | None:
    """Returns the special token that follows an answer, or None if that is eos, or none at all."""
    after = _trial_render(tokenizer, source, _TRIALS[0]).rpartition("the answer")[2].lstrip()
    token = max((token for token in _special_tokens(tokenizer) if after.startswith(token)), key=len, default=None)
    return None if token == tokenizer.eos_token else token


def _trial_render(tokenizer: "PreTrainedTokenizerBase", source: str, messages: list[dict[str, Any]]) -> str:
    from jinja2 import TemplateError as JinjaError

    from .sandbox import bound_chat_templates

    try:
        bound_chat_templates()
        return str(tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False))
    except (JinjaError, TypeError, ValueError, KeyError, ArithmeticError, RecursionError, MemoryError):
        return ""  # whoever renders a real conversation is told what is wrong


def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Returns the special tokens of the vocabulary in the order of their ids."""
    return [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]


def _from_source(name: str, source: str, where: str) -> ChatTemplate:
    header = parse_header(source, where)
    return ChatTemplate(
        name=name,
        source=source,
        end_of_turn=header.get("end_of_turn"),
        special_tokens=tuple(header.get("special_tokens", "").split()),
        reproduces=header.get("reproduces"),
    )


def parse_header(source: str, where: str) -> dict[str, str]:
    """Reads the ``key: value`` lines at the head of a template's first comment; what follows a blank line is prose.

    The keys are ``reproduces`` (which published format), ``end_of_turn`` (left out: the tokenizer's eos token) and
    ``special_tokens`` (separated by spaces). A template without such a comment has no metadata.

    Raises:
        TemplateError: The comment has an ``end_of_turn`` or such, but also a key that does not exist.
    """
    keys = ("reproduces", "end_of_turn", "special_tokens")
    comment = re.match(r"\s*\{#[-+]?\s*(.*?)\s*[-+]?#\}", source, flags=re.DOTALL)
    lines = comment.group(1).split("\n\n")[0].splitlines() if comment else []
    if not lines or lines[0].partition(":")[0].strip() not in keys:
        return {}  # an ordinary comment
    header = {}
    for line in lines:
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or key not in keys:
            hint = did_you_mean(key, keys) or f"the keys are {', '.join(keys)}; prose comes after a blank line"
            raise TemplateError(f"unknown key '{key}' in the template's header", where=where, hint=hint)
        header[key] = value
    return header


def fingerprint(template: ChatTemplate, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Returns 16 hexadecimal digits that change with the template's text or the special tokens' names, text or ids."""
    named = dict(tokenizer.special_tokens_map)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    find = backend.token_to_id if backend is not None else _vocab(tokenizer).get  # all of a vocabulary takes its time
    identity = {
        "source": template.source,
        "named": named,
        "ids": {token: find(token) for token in {*named.values(), *template.special_tokens}},
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def install(template: ChatTemplate, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Makes a tokenizer fit for a template, in place.

    Sets ``chat_template`` to what is ``saved`` of it; adds the special tokens that are missing; makes the end of turn
    the eos token, so that generation stops there; and sets a pad token that means nothing else (see ``ensure_pad``).

    Returns:
        The tokens added to the vocabulary, in order. The caller resizes the model's embeddings.

    Raises:
        TemplateError: The template ends turns with the eos token, and the tokenizer has none.
    """
    before = len(tokenizer)
    tokenizer.chat_template = template.saved.source
    needed = [*template.special_tokens, *([template.end_of_turn] if template.end_of_turn else [])]
    missing = [token for token in dict.fromkeys(needed) if not is_single_token(tokenizer, token)]
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    if template.end_of_turn:
        tokenizer.eos_token = template.end_of_turn
    if tokenizer.eos_token is None:
        raise TemplateError(
            f"template '{template.name}' ends a turn with the eos token, and the tokenizer has none",
            hint="set tokenizer.eos_token, or take a template with an end of turn of its own, such as chatml",
        )
    ensure_pad(tokenizer, template.saved)
    return [str(tokenizer.convert_ids_to_tokens(i)) for i in range(before, len(tokenizer))]


def ensure_pad(tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate | None = None) -> list[str]:
    """Sets a pad token that means nothing else, in place.

    Padding with eos would mask the end of every turn, and a classifier would read the token before it; padding with a
    token of the template would do the same to that one. A special token that nothing uses is taken where the
    vocabulary has one, since a new token is a new row in the embeddings, for something that is never read.

    Returns:
        The token added to the vocabulary, if one had to be.
    """
    before = len(tokenizer)
    used = _used_tokens(tokenizer, template)
    if tokenizer.pad_token is None or tokenizer.pad_token in used:
        tokenizer.add_special_tokens({"pad_token": _spare_token(tokenizer, used) or PAD})
    return [str(tokenizer.convert_ids_to_tokens(i)) for i in range(before, len(tokenizer))]


def _used_tokens(tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate | None) -> set[str]:
    """Returns the special tokens with a meaning of their own, or that the template writes."""
    used = {getattr(tokenizer, f"{name}_token") for name in ("eos", "bos", "sep", "cls", "mask")}
    if template is None:
        return used
    text = "".join([template.code, *(_trial_render(tokenizer, template.source, messages) for messages in _TRIALS)])
    written = {token for token in _special_tokens(tokenizer) if token in text}
    return used | written | {*template.special_tokens, template.end_of_turn}


def _spare_token(tokenizer: "PreTrainedTokenizerBase", used: set[str]) -> str | None:
    """Returns the special token that is best padded with: one made for it, one in reserve, or the last."""
    known = [token for token in _KNOWN_PADS if token in _vocab(tokenizer) and token not in used]
    if known:
        return known[0]
    named = {token for token in tokenizer.special_tokens_map.values() if isinstance(token, str)}
    spare = [token for token in _special_tokens(tokenizer) if token not in used | named]
    if spare:
        kinds = ("pad", "reserved|unused|placeholder|extra_id")
        return max(enumerate(spare), key=lambda item: ([bool(re.search(k, item[1].lower())) for k in kinds], item[0]))[
            1
        ]
    unknown = tokenizer.unk_token
    if unknown is None or unknown in used:
        return None
    written = tokenizer("\u0a8f \U0001f9ff \u2a3f", add_special_tokens=False)["input_ids"]
    return None if tokenizer.unk_token_id in written else str(unknown)  # with bytes to fall back to, none is unknown


def is_single_token(tokenizer: "PreTrainedTokenizerBase", token: str) -> bool:
    """Whether a text is matched as one added token wherever it stands, whatever lies beside it."""
    return any(token == added.content for added in tokenizer.added_tokens_decoder.values())


def _vocab(tokenizer: Any) -> dict[str, int]:
    return tokenizer.get_vocab()  # Any: the class hides this behind __getattr__
