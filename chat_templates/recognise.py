"""Recognises a model's own template as a built-in one: the same text, with marks of what the assistant says.

Most published templates do not mark it, so that no loss could be put on the assistant alone. One that renders every
probe as a built-in template does, with or without a default system message of its own, gets that template's marks.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .errors import TemplateError
from .probes import default_probes
from .rendering import render
from .templates import ChatTemplate, is_single_token, load, names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DEFAULT_SYSTEM = """{{%- if not messages or messages[0].role != 'system' %}}
    {{%- set messages = [{{'role': 'system', 'content': {text}}}] + messages %}}
{{%- endif %}}
"""
_MARK = "\ue000"  # a character of no text


def recognise(template: ChatTemplate, tokenizer: "PreTrainedTokenizerBase") -> ChatTemplate | None:
    """Returns the built-in template that renders as this one does, or None.

    What it renders is compared on the probes of ``verify``, with and without a system message and up to where the
    assistant is to go on. A default system message becomes part of what is returned. ``stands_for`` holds the template
    itself, so that ``verify`` compares the two on rows of data too.
    """
    for name in names():
        known = load(name)
        if not all(is_single_token(tokenizer, token) for token in known.special_tokens):
            continue
        default = _default_system(template, known, tokenizer)
        if default is None:
            continue
        whose = "the model's own" if template.name == "tokenizer" else template.name
        found = replace(
            known,
            name=f"{name}, recognised in {whose}{' with its default system message' if default else ''}",
            source=_with_default(known.source, default) if default else known.source,
            stands_for=template,
        )
        talks = [probe.conversation for probe in default_probes(known, tokenizer)]
        if all(alike(template, found, talk, tokenizer) for talk in talks):
            return found
    return None


def alike(
    one: ChatTemplate, other: ChatTemplate, conversation: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase"
) -> bool:
    """Whether two templates render a conversation, and the prompt before its last turn, as the same text."""
    messages, tools = conversation["messages"], conversation.get("tools")
    parts = [(part, open_ended) for part, open_ended in ((messages, False), (messages[:-1], True)) if part]
    return all(_text(one, *part, tokenizer, tools) == _text(other, *part, tokenizer, tools) for part in parts)


def _text(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    open_ended: bool,
    tokenizer: "PreTrainedTokenizerBase",
    tools: Any = None,
) -> str | None:
    try:
        return render(template, messages, tokenizer=tokenizer, tools=tools, add_generation_prompt=open_ended).text
    except TemplateError:
        return None


def _default_system(own: ChatTemplate, known: ChatTemplate, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Returns the system message that a template puts before a conversation without one, empty for none.

    None is for a template that is not like the known one at all.
    """
    talk = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    ours, theirs = _text(own, talk, False, tokenizer), _text(known, talk, False, tokenizer)
    if ours is None or ours == theirs:
        return None if ours is None else ""
    marked = _text(known, [{"role": "system", "content": _MARK}, *talk], False, tokenizer)
    before, _, after = (marked or "").partition(_MARK)
    fits = bool(after) and len(ours) > len(before) + len(after) and ours.startswith(before) and ours.endswith(after)
    return ours[len(before) : -len(after)] if fits else None


def _with_default(source: str, text: str) -> str:
    """Puts a default system message into a template, behind its header."""
    head, end, body = source.partition("-#}\n")
    return head + end + _DEFAULT_SYSTEM.format(text=json.dumps(text, ensure_ascii=False)) + body
