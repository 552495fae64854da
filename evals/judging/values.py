"""Judges that give each answer a value by itself and prefer the higher one: reward models, and rules."""

import inspect
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...chat_templates.errors import first_line
from ...data_tools.files import hash_file
from ...data_tools.functions import load_function
from ..answers import Answer
from ..errors import EvalError
from .parse import Verdict
from .questions import Question
from .spec import Judge

if TYPE_CHECKING:
    from ..models import LoadedModel

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
        sides = [side for question in part for side in (question.answer, question.other) if side is not None]
        new = list({side.key: side for side in sides if side.key not in known}.values())
        started = time.perf_counter()
        if new:
            known |= dict(zip((side.key for side in new), values(new), strict=True))
        seconds = (time.perf_counter() - started) / len(part)
        for question in part:
            first, second = question.first, question.second
            value = known[first.key]
            other = None if second is None else known[second.key]
            take(question, _verdict(judge, value, other, seconds))


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
    """A reward model's values of answers, read as a model of the ``reward`` stage reads its training rows.

    Args:
        judge: Whose model it is.
        device: Where it runs; the first GPU if there is one.
    """

    def __init__(self, judge: Judge, device: str | None = None):
        self.judge, self.device = judge, device
        self._loaded: LoadedModel | None = None
        self._encoder: Any = None

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """Returns the reward of each answer to the last turn, the turns before it given; NaN if it is too long.

        Raises:
            EvalError: It is no reward model, or its template does not take a conversation.
        """
        from ..forward import outputs
        from ..models import model_length

        loaded = self._load()
        batch = self._encoder([self._row(answer) for answer in answers])
        for row, error in batch.dropped.items():
            where = f"judge {self.judge.name}"
            raise EvalError(f"cannot read an answer: {error}", where=where, hint=f"prompt {answers[row].prompt_id}")
        flat, at, rows = batch.ids.tolist(), 0, []
        for lengths in batch.lengths.tolist():
            rows.append({"input_ids": flat[at : at + sum(lengths)]})
            at += sum(lengths)
        size, longest = self.judge.settings.batch_size, model_length(loaded.model)
        fitting = [row for row in rows if len(row["input_ids"]) <= longest]
        where = f"judge {self.judge.name}"
        found = iter(outputs(loaded.model, fitting, size, where=where)[:, 0].tolist() if fitting else ())
        return [next(found) if len(row["input_ids"]) <= longest else math.nan for row in rows]

    def _row(self, answer: Answer) -> dict[str, Any]:
        *before, last = zip(answer.turns, answer.texts, strict=False)
        messages = []
        for turn, text in before:
            messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": text or " "}]
        if self._encoder.template is None:
            said = [message["content"] for message in messages]
            return {"prompt": "\n\n".join([*said, last[0]]), "completion": last[1] or " ", "label": True}
        reply = [{"role": "assistant", "content": last[1] or " "}]
        return {"prompt": [*messages, {"role": "user", "content": last[0]}], "completion": reply, "label": True}

    def _load(self) -> "LoadedModel":
        if self._loaded is None:
            from ...chat_templates.templates import from_tokenizer
            from ...data_tools.example_encoder import ExampleEncoder
            from ..models import load_model

            loaded = load_model(self.judge.settings.model, device=self.device)
            if loaded.outputs != 1:
                found = "a language model" if loaded.outputs is None else f"a classifier of {loaded.outputs} outputs"
                hint = "name a model that a recipe with stage: reward has trained"
                raise EvalError(f"not a reward model but {found}", where=self.judge.settings.model, hint=hint)
            text = loaded.model.config.get_text_config()
            if text.pad_token_id is None:
                text.pad_token_id = loaded.tokenizer.pad_token_id
            template = from_tokenizer(loaded.tokenizer) if loaded.template_fingerprint else None
            self._loaded, self._encoder = loaded, ExampleEncoder(loaded.tokenizer, template, "unpaired")
        return self._loaded
