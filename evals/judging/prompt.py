"""A judge's prompt: rendered in the sandbox, with answers that can neither end their own block nor speak as anyone."""

import hashlib
import re
from typing import Any

from ...chat_templates.errors import first_line
from ..answers import Answer
from ..errors import SuiteError
from ..judges import Judge

EMPTY = "(empty)"
# Characters that a terminal or a reader would obey rather than show: controls but tab and line feed, and what turns
# the direction of writing (Unicode Annex 9, table of explicit directional characters).
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
# What chat templates use as control tokens: a server may take them for such wherever they stand.
_CONTROL = re.compile(
    r"<[|\uff5c][^<>\n]{1,60}[|\uff5c]>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
    r"|<\|?/?(?:im_start|im_end|endoftext)\|?>"
)


def shown(text: str, max_characters: int) -> str:
    """Makes a text fit to be read by a judge: what cannot be seen is named, what is too long is cut visibly."""
    text = text.replace("\r\n", "\n")
    cut = max(0, len(text) - max_characters)
    text = text[:max_characters]
    text = _UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)
    text = _CONTROL.sub(lambda match: "‹" + match[0][1:-1] + "›", text)
    if not text.strip():
        text = EMPTY
    return f"{text}\n[… {cut} more characters are not shown]" if cut else text


class JudgePrompt:
    """A judge's template.

    It may use: ``system`` (the message before the first turn, or none), ``turns`` (what the user said),
    ``answers_first`` and ``answers_second`` (pairs) or ``answers`` (ratings), ``reference`` (a right answer for each
    turn, or none), ``category``, ``labels``, ``scale``, ``by`` (``logprobs``: the reply is one label; ``text``: reasons
    and then the verdict), and ``block(name, text)``, which puts a text between marks that it cannot know.

    Args:
        judge: Whose prompt it is.
        by: How the judge answers.

    Raises:
        SuiteError: The template is not one, or does not render.
    """

    def __init__(self, judge: Judge, by: str):
        from jinja2 import StrictUndefined, TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.judge, self.by = judge, by
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        for name in set(environment.globals) - {"range", "namespace"}:
            del environment.globals[name]
        try:
            self.template = environment.from_string(judge.prompt)
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            where = f"{judge.where}:{line}" if line else judge.where
            raise SuiteError(f"the judge's prompt is no template: {first_line(error)}", where=where) from error
        # What prompts can look like is rendered, so that a fault shows before anything is sent.
        for turns in (1, 2):
            for references, system in ((None, "text"), (("right",) * turns, None)):
                texts = ("text",) * turns
                answer = Answer("try", "try", None, texts, references, 0, texts, texts, (), None, None, None, system)
                self.render(answer, answer if self.judge.settings.kind == "pairwise" else None)

    def render(self, first: Answer, second: Answer | None = None) -> tuple[dict[str, str], ...]:
        """Returns the conversation that the judge goes on: two answers in the order in which it sees them, or one.

        Raises:
            SuiteError: The template fails on these.
        """
        settings = self.judge.settings

        def seen(text: str) -> str:
            return shown(text, settings.max_characters)

        answers = {"answers_first": _padded(first), "answers_second": _padded(second)} if second else {}
        answers = answers or {"answers": _padded(first)}
        references = first.references if settings.reference == "use" else None
        right = any(text.strip() for text in references or ())
        system = first.system or (second.system if second else None)  # answers of older versions do not say it
        values: dict[str, Any] = {
            "system": seen(system) if system else None,
            "turns": [seen(turn) for turn in first.turns],
            # Empty for a turn without a right answer.
            "reference": [seen(text) if text.strip() else "" for text in references or ()] if right else None,
            "category": None if first.category is None else seen(first.category),
            "labels": dict(zip(("first", "second", "tie"), settings.labels.all, strict=True)),
            "scale": list(settings.scale),
            "by": self.by,
            **{name: [seen(text) for text in texts] for name, texts in answers.items()},
        }
        system = ({"role": "system", "content": settings.system},) if settings.system else ()
        return (*system, {"role": "user", "content": self._fill(values)})

    def _fill(self, values: dict[str, Any]) -> str:
        mark = _mark(values)

        def block(name: str, text: str) -> str:
            return f"[[begin {name} {mark}]]\n{text}\n[[end {name} {mark}]]"

        try:
            return self.template.render(**values, block=block, mark=mark).strip()
        except Exception as error:  # whatever an expression of a template can raise
            what = f"the judge's prompt does not render: {type(error).__name__}: {first_line(error)}"
            hint = "see the names that a template may use in posttrain.evals.judging.prompt.JudgePrompt"
            raise SuiteError(what, where=self.judge.where, hint=hint) from error


def _padded(answer: Answer) -> list[str]:
    """Returns a text for each turn; a turn that was never answered is empty."""
    return [*answer.texts, *[""] * (len(answer.turns) - len(answer.texts))]


def _mark(values: dict[str, Any]) -> str:
    """Returns a code that no text of the question holds: it hashes them all, so none could be written to hold it."""
    text = repr(sorted(values.items(), key=lambda item: item[0]))
    mark = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
    while mark in text:
        mark = hashlib.sha256(mark.encode()).hexdigest()[:12]
    return mark
