"""A Jinja chat template written as Ollama's Go template, and proved: both render the same prompts.

What stands before, between and behind the messages is learnt from renders of a few conversations. Ollama asks a model
only for what comes next, so that prompts are compared, each up to where the assistant is to go on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import TemplateError
from .go_template import quote, render_go
from .probes import default_probes
from .rendering import render
from .templates import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_S, _U, _A, _V = "Qsystemq", "Qfirstq", "Qanswerq", "Qsecondq"  # texts that no template writes
_OTHERS = ("Qanotherq", "Qthirdq")
_RANGE = "{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
_CONTENT = "{{ .Content }}"
_LATE = [{"role": r, "content": c} for r, c in (("user", _U), ("assistant", _A), ("system", _S), ("user", _V))]


@dataclass(frozen=True)
class PromptDifference:
    """A conversation of which two templates make two prompts."""

    probe: str
    expected: str
    found: str | None
    """What Ollama's template makes of it; None where it fails."""
    required: bool
    """Whether the two must agree on it; if not, a user is told."""

    @property
    def detail(self) -> str:
        """Says where the two part."""
        if self.found is None:
            return f"probe '{self.probe}' does not render"
        pairs = enumerate(zip(self.expected, self.found, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(self.expected), len(self.found)))
        ours, theirs = self.expected[at : at + 40], self.found[at : at + 40]
        return f"probe '{self.probe}': {ours!r} is {theirs!r} from character {at} on"


@dataclass(frozen=True)
class _Prompts:
    """The prompts of a Jinja template as Ollama must make them: without the BOS that is added behind its back."""

    template: ChatTemplate
    tokenizer: "PreTrainedTokenizerBase"
    bos: str | None

    def __call__(self, messages: Sequence[Mapping[str, Any]], *, go_on: bool = True, **variables: Any) -> str | None:
        """Returns the text, or None where the template refuses the conversation."""
        try:
            made = render(self.template, messages, tokenizer=self.tokenizer, add_generation_prompt=go_on, **variables)
        except TemplateError:
            return None
        if self.bos is None:
            return made.text
        if not made.text.startswith(self.bos):
            what = f"{self.bos} is put before every prompt by the GGUF file's tokenizer, and the chat template has none"
            raise TemplateError(what, hint="begin the template with {{ bos_token }}, as the tokenizer begins texts")
        return made.text.removeprefix(self.bos)


def write_go_template(
    template: ChatTemplate, tokenizer: "PreTrainedTokenizerBase", added_bos: str | None
) -> tuple[str, list[PromptDifference]]:
    """Writes a chat template for Ollama.

    Args:
        template: The model's own template.
        tokenizer: Its tokenizer.
        added_bos: The text of the token that is put before every prompt when it is tokenised; None if none is.

    Returns:
        The Go template, and the differences that remain on conversations where they are allowed.

    Raises:
        TemplateError: It cannot be written; the message names the conversation on which the best try differs.
    """
    prompts = _Prompts(template, tokenizer, added_bos)
    if any(prompts(talk) != prompts(talk, strftime_now=str) for talk in (_talk(_U), _talk(_U, system=_S))):
        what = (
            "the chat template cannot be written as Ollama's: it writes the date, which would stay that of the export"
        )
        raise TemplateError(
            what, hint="put a fixed date into the template, or export --to gguf, which keeps it as it is"
        )
    best: list[PromptDifference] | None = None
    for source in _candidates(prompts):
        differences = compare_prompts(source, template, tokenizer, added_bos)
        wrong = [difference for difference in differences if difference.required]
        if not wrong:
            return source, differences
        best = best or wrong
    why = best[0].detail if best else "its turns do not stand one after the other"
    raise TemplateError(
        f"the chat template cannot be written as Ollama's: {why}", hint="export --to gguf keeps it as it is"
    )


def compare_prompts(
    source: str,
    template: ChatTemplate,
    tokenizer: "PreTrainedTokenizerBase",
    added_bos: str | None,
    system: str | None = None,
) -> list[PromptDifference]:
    """Renders conversations by Ollama's template and by the model's own.

    Args:
        source: Ollama's template.
        template: The model's own.
        tokenizer: Its tokenizer.
        added_bos: As in :func:`write_go_template`.
        system: What Ollama puts before a conversation that has no system message.

    Returns:
        The differences.
    """
    prompts, found = _Prompts(template, tokenizer, added_bos), []
    for name, messages, required in conversations(template, tokenizer):
        expected = prompts(messages)
        if expected is None:
            continue
        given = [{"role": "system", "content": system}] if system and messages[0]["role"] != "system" else []
        try:
            made = render_go(source, [*given, *messages])
        except TemplateError:
            made = None
        if made != expected:
            found.append(PromptDifference(name, expected, made, required))
    return found


def conversations(
    template: ChatTemplate, tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[str, list[dict[str, str]], bool]]:
    """Yields names and messages of what both templates must render, and whether they must agree."""
    lengths = (("one turn", [_U]), ("two turns", [_U, _A, _V]), ("three turns", [_U, _A, _V, *_OTHERS]))
    for name, texts in lengths:
        yield name, _talk(*texts), True
        yield f"{name} and a system message", _talk(*texts, system=_S), True
    braces = '{{ .Content }} {% x %} "quoted" `back` \\n {'
    yield "braces", _talk(braces, braces, braces, system=braces), True
    for probe in default_probes(template, tokenizer):
        messages = [{"role": m["role"], "content": m["content"]} for m in probe.conversation["messages"][:-1]]
        if probe.name not in ("tools", "reasoning"):
            yield probe.name, messages, probe.name != "white space"
    if "</think>" in template.code or template.reasoning_key:
        yield "thoughts in earlier answers", _talk(_U, f"<think>\nThat is so.\n</think>\n\n{_A}", _V), False
    yield "a system message later on", _LATE, False
    yield "two questions in a row", _talk(_U) + _talk(_V), False


def _talk(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]
    return [*([{"role": "system", "content": system}] if system is not None else []), *turns]


def _candidates(prompts: _Prompts) -> Iterator[str]:
    """Yields what may render as the model's own: each role in its place, then the system message at the head."""
    talk = _between(prompts(_talk(_U, _A, _V)), _U, _A, _V)
    system = _between(prompts(_talk(_U, system=_S)), _S, _U)
    if talk is None:
        return
    roles = _by_role(prompts, talk, system)
    if roles is not None:
        yield roles
    head, answers, questions, tail = talk
    begin = _literal(head)
    if system is not None:
        begin = _when(".System", f"{_literal(system[0])}{{{{ .System }}}}{_literal(system[1])}", begin)
    user = _CONTENT + _when("$last", _literal(tail), _literal(answers))
    assistant = _CONTENT + _when("not $last", _literal(questions))
    turns = _when('eq .Role "user"', user, _when('eq .Role "assistant"', assistant))
    yield f"{begin}{_RANGE}{turns}{{{{ end }}}}"


def _by_role(prompts: _Prompts, talk: tuple[str, ...], system: tuple[str, ...] | None) -> str | None:
    """Returns a template that writes each message between what its role puts before and behind it, if there is one."""
    head, answers, questions, tail = talk
    asked = _between(prompts(_talk(_U), go_on=False), _U)
    answered = _between(prompts(_talk(_U, _A), go_on=False), _A)
    if asked is None or answered is None or system is None:
        return None
    user_end, end = asked[1], answered[1]
    if not (answers.startswith(user_end) and tail.startswith(user_end) and questions.startswith(end)):
        return None
    user = questions.removeprefix(end)
    if not system[1].endswith(user):
        return None
    first, system_end = system[0], system[1].removesuffix(user)
    parts = _between(prompts(_LATE), _A, _S, _V)
    later = parts[1].removeprefix(end) if parts is not None and parts[1].startswith(end) else first
    assistant = _literal(answers.removeprefix(user_end)) + _CONTENT + _when("not $last", _literal(end))
    turns = _when(
        'eq .Role "system"',
        _at_first(first, later) + _CONTENT + _literal(system_end),
        _when(
            'eq .Role "user"',
            _at_first(head, user) + _CONTENT + _literal(user_end),
            _when('eq .Role "assistant"', assistant),
        ),
    )
    go_on = _when('and $last (ne .Role "assistant")', _literal(tail.removeprefix(user_end)))
    return f"{_RANGE}{turns}{go_on}{{{{ end }}}}"


def _at_first(first: str, later: str) -> str:
    """Writes a text that is another one before the first message."""
    return _when("eq $i 0", _literal(first), _literal(later))


def _when(condition: str, text: str, otherwise: str = "") -> str:
    """Writes a branch; one whose two sides are the same is none."""
    if text == otherwise:
        return text
    otherwise = f"{{{{ else }}}}{otherwise}" if otherwise else ""
    return f"{{{{ if {condition} }}}}{text}{otherwise}{{{{ end }}}}"


def _between(text: str | None, *marks: str) -> tuple[str, ...] | None:
    """Returns what stands before, between and behind some texts, each of which must stand there once, in this order."""
    parts: list[str] = []
    for mark in marks:
        if text is None or text.count(mark) != 1:
            return None
        before, _, text = text.partition(mark)
        parts.append(before)
    return None if text is None else (*parts, text)


def _literal(text: str) -> str:
    """Writes a text that a template is to give as it is; in quotes where braces, or a Modelfile, would change it."""
    plain = "{" not in text and '"""' not in text and not text.endswith('"')
    return text if plain else f"{{{{ {quote(text)} }}}}"
