"""The conversations that put a template and a tokenizer to the test, rendered and encoded once for all checks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import TemplateError
from .rendering import Conversation, Encoded, Rendered, Span, encode, in_loss, plain_message, render
from .templates import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Looks up the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city."}},
            "required": ["city"],
        },
    },
}


@dataclass(frozen=True)
class Probe:
    """A conversation and why it is asked."""

    name: str
    conversation: Conversation
    required: bool = True
    """Whether every format must take it as it is; if not, a failure is only worth a warning."""


@dataclass(frozen=True)
class Case:
    """A probe as rendered and encoded."""

    probe: Probe
    messages: Sequence[dict[str, Any]]
    """The messages as the template gets them: content is a string, and no value is None."""
    rendered: Rendered
    encoded: Encoded
    turns: tuple[Span, ...]
    """The loss ranges of the text, those that touch joined: one for each assistant turn."""

    @property
    def tools(self) -> Sequence[Any]:
        """The tools of the conversation."""
        return self.probe.conversation.get("tools") or []


def end_of_turn(template: ChatTemplate, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Returns what ends an assistant turn: the template's own token, or else the tokenizer's eos token."""
    own = template.end_of_turn or tokenizer.eos_token
    return None if own is None else str(own)


def default_probes(template: ChatTemplate, tokenizer: "PreTrainedTokenizerBase") -> list[Probe]:
    """Returns the conversations that every template is tried on, and those that suit what this one supports."""
    special = [end_of_turn(template, tokenizer), *template.special_tokens, *tokenizer.special_tokens_map.values()]
    control = " ".join(dict.fromkeys(str(token) for token in special if token))
    unicode = "Grüße, 漢字, 🙂👩‍🚀 and ∀x∈ℝ."
    code = "Here:\n\n```python\ndef f(n):\n    return 12345 * n\n```\n\nThat is all."
    probes = [
        Probe("single", _chat("What is 2 + 2?", "4.")),
        Probe("multi-turn", _chat("Hello!", "Hello, how can I help?", "Name 3 colours.", "Red, green and blue.")),
        Probe("system", _chat("Hello!", "Ahoy!", system="Talk like a pirate."), required=False),
        Probe("unicode", _chat(unicode, unicode)),
        Probe("code", _chat("Write a function.", code, "Again.", code)),
        Probe("white space", _chat("  Indent this.\n", "\n  indented\n\n"), required=False),
        Probe("special tokens as text", _chat(f"What is {control}?", f"It is {control} of course.")),
    ]
    if "reasoning_content" in template.code:
        chat = _chat("What is 2 + 2?", "4.", "And 3 + 3?", "6.")
        for message, thought in zip(chat["messages"][1::2], ("Two and two.", "Three and three."), strict=True):
            message["reasoning_content"] = thought
        probes.append(Probe("reasoning", chat))
    if template.supports_tools:
        probes.append(Probe("tools", _tool_chat()))
    return probes


def _chat(*texts: str, system: str | None = None) -> dict[str, Any]:
    turns = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *turns], "tools": None}


def _tool_chat() -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}
    messages = [
        {"role": "user", "content": "Is it warm in Zürich?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "get_weather", "content": "21.5 degrees"},
        {"role": "assistant", "content": "Yes."},
    ]
    return {"messages": messages, "tools": [WEATHER_TOOL]}


def build_case(template: ChatTemplate, tokenizer: "PreTrainedTokenizerBase", probe: Probe) -> Case | TemplateError:
    """Renders and encodes a probe; returns the error rather than raising it, since it is itself a finding."""
    messages, tools = probe.conversation["messages"], probe.conversation.get("tools")
    try:
        rendered = in_loss(template, messages, render(template, messages, tokenizer=tokenizer, tools=tools))
        encoded = encode(template, tokenizer, [probe.conversation])[0]
    except TemplateError as error:
        return error
    return Case(probe, [plain_message(message) for message in messages], rendered, encoded, _joined(rendered.spans))


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    joined: list[Span] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return tuple(joined)
