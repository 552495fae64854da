"""Judges that give each answer a value by itself and prefer the higher one: reward models, and rules."""

import inspect
import math
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...chat_templates.errors import first_line
from ...data_tools.files import hash_file
from ...data_tools.functions import load_function
from ..answers import Answer
from ..errors import EvalError
from ..judges import Judge
from .parse import Verdict
from .questions import Question

if TYPE_CHECKING:
    from ..reward import RewardReader

READER = 1  # raise when a change of how a reward model reads answers changes its verdicts
_PART = 256  # questions between two looks at the disk
Values = Callable[[Sequence[Answer]], list[float]]


def ask(judge: Judge, values: Values, questions: Sequence[Question], take: Callable[[Question, Verdict], None]) -> None:
    """Compares values; each answer has its value computed once.

    The preference is all or nothing, as a judge's is; a tie where the values are equal.

    Args:
        judge: Who is asked.
        values: Gives each answer its value.
        questions: What to compare, or to rate: the rating is the value.
        take: Takes each verdict.
    """
    known: dict[str, float] = {}
    for at in range(0, len(questions), _PART):
        part = questions[at : at + _PART]
        sides = [(question.key_of(side), side) for question in part for side in question.sides]
        new = {key: side for key, side in sides if key not in known}
        started = time.perf_counter()
        if new:
            known |= dict(zip(new, values(list(new.values())), strict=True))
        seconds = (time.perf_counter() - started) / len(part)
        for question in part:
            first, *second = (known[question.key_of(side)] for side in question.sides)
            take(question, _verdict(judge, first, second[0] if second else None, seconds))


def _verdict(judge: Judge, value: float, other: float | None, seconds: float) -> Verdict:
    if math.isnan(value) or (other is not None and math.isnan(other)):
        return Verdict("truncated", reason="an answer is longer than the reward model can hold", seconds=seconds)
    if other is None:
        return Verdict("judged", rating=value, reason=f"{value:.6g}", seconds=seconds)
    preference = 0.5 if value == other else float(value > other)
    reason = f"{value:.6g} and {other:.6g}"
    if judge.settings.backend == "reward":
        gap = value - other
        share = 1 / (1 + math.exp(-gap)) if gap > -700 else 0.0
        reason += f"; Bradley-Terry probability {share:.4f}"
    return Verdict("judged", preference, reason=reason, seconds=seconds)


def rule_identity(rule: str) -> dict[str, str]:
    """Returns what identifies a rule: its path and the content of the file that it stands in."""
    function = load_function(rule, "rule")
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # a built-in
        file = None
    source, _, name = rule.rpartition(":")
    return {"name": f"{Path(source).name}:{name}", "source": hash_file(Path(file)) if file else ""}


def rule_values(judge: Judge) -> Values:
    """Returns a rule's values of answers.

    Raises:
        InputError: The rule cannot be imported.
        EvalError: From the function: the rule fails, or gives no finite number.
    """
    rule = judge.settings.rule or ""
    function = load_function(rule, "rule")

    def values(answers: Sequence[Answer]) -> list[float]:
        found = []
        for answer in answers:
            where, hint = f"rule {rule}", f"prompt {answer.prompt_id}: {answer.texts[-1][:120]!r}"
            try:
                value = function(asked(answer), answer.texts[-1])
            except Exception as error:  # whatever a user's function may raise
                what = f"raised {type(error).__name__}: {first_line(error)}"
                raise EvalError(what, where=where, hint=hint) from error
            if isinstance(value, str | bytes) or not _finite(value):
                raise EvalError(f"returned {value!r}, which is not a finite number", where=where, hint=hint)
            found.append(float(value))
        return found

    return values


def asked(answer: Answer) -> dict[str, Any]:
    """Returns a prompt as a rule sees it."""
    return {
        "id": answer.prompt_id,
        "system": answer.system,
        "turns": list(answer.turns),
        "category": answer.category,
        "references": list(answer.references) if answer.references else None,
        "answers": list(answer.texts),
    }


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


class RewardValues:
    """A reward model's values of answers.

    Args:
        judge: Whose model it is.
        device: Where it runs; the first GPU if there is one.
    """

    def __init__(self, judge: Judge, device: str | None = None):
        self.judge, self.device = judge, device

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """Returns the reward of each answer to the last turn, the turns before it given; NaN if it is too long.

        Raises:
            EvalError: It is no reward model, or its template does not take a conversation.
        """
        from ..models import model_length
        from ..reward import completion_of

        reader = self._reader
        templated, longest = reader.encoder.template is not None, model_length(reader.loaded.model)
        rows = reader.ids([completion_of(answer, templated=templated) for answer in answers])
        found = iter(reader.values([row for row in rows if len(row) <= longest]))
        return [next(found) if len(row) <= longest else math.nan for row in rows]

    @cached_property
    def _reader(self) -> "RewardReader":
        from ..reward import RewardReader, load

        settings = self.judge.settings
        return RewardReader(load(settings.model, device=self.device), settings.batch_size, f"judge {self.judge.name}")
