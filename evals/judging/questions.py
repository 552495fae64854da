"""What a judge is to be asked: which answers of whom, against whom, in which order."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from ..answers import Answer, AnswerSet
from ..judges import Judge
from .judgments import Order, judgment_key


@dataclass(frozen=True)
class Pair:
    """Two answer sets to be compared, or one to be rated.

    Attributes:
        candidate: The one whose run folder keeps the judgments.
        opponent: The other; None for a rating.
        home: That folder.
    """

    candidate: AnswerSet
    opponent: AnswerSet | None
    home: Path

    @property
    def names(self) -> tuple[str, str | None]:
        """Returns both model hashes."""
        return self.candidate.model_hash, self.opponent.model_hash if self.opponent else None

    @property
    def seed(self) -> str:
        """Returns what is drawn by for this pair, whichever of the two is called the candidate."""
        return "/".join(sorted(filter(None, self.names)))

    def joined(self) -> Iterator[tuple[Answer, Answer | None]]:
        """Yields the answers to the same prompts; a sample that the opponent lacks meets its first."""
        others = self.opponent.by_prompt() if self.opponent else {}
        for answer in self.candidate.answers:
            other = others.get((answer.prompt_key, answer.sample)) or others.get((answer.prompt_key, 0))
            if other is not None or self.opponent is None:
                yield answer, other


@dataclass(frozen=True)
class Question:
    """One thing to ask a judge.

    Attributes:
        pair: Whose answers are judged.
        answer: The candidate's answer.
        other: The opponent's answer; None for a rating.
        order: Which of the two the judge sees first.
        repeat: Which of several times that it is asked.
        by_end: Whether the judge sees if an answer is finished or was cut, as a reward model does.
        version: The judge's; empty if it is not known yet.
    """

    pair: Pair
    answer: Answer
    other: Answer | None
    order: Order
    repeat: int
    by_end: bool
    version: str = ""

    @cached_property
    def key(self) -> str:
        """Returns the key of its judgment."""
        other = self.key_of(self.other) if self.other else None
        who = (*self.pair.names, self.answer.sample)
        return judgment_key(self.version, self.key_of(self.answer), other, self.order, self.repeat, who)

    def key_of(self, answer: Answer) -> str:
        """Returns the key of an answer to this judge."""
        return answer.ended_key if self.by_end else answer.key

    @property
    def sides(self) -> list[Answer]:
        """Returns the answers, in the order in which the judge sees them; one for a rating."""
        sides = [self.answer, *([self.other] if self.other else [])]
        return sides[::-1] if self.order == "candidate-second" else sides

    def of_candidate(self, preference: float) -> float:
        """Returns a preference for the answer that the judge saw first as one for the candidate's."""
        return 1 - preference if self.order == "candidate-second" else preference

    @property
    def equal(self) -> bool:
        """Says whether the judge sees the same answer twice, which needs no judge."""
        same = self.other is not None and self.other.texts == self.answer.texts
        return same and len({answer.finished for answer in self.sides if self.by_end}) < 2


def orders_of(judge: Judge, pair: Pair, prompt_key: str) -> tuple[Order, ...]:
    """Returns the orders in which a judge is asked; where that is one, a draw by prompt: neither side has it always."""
    if pair.opponent is None:
        return ("alone",)
    if not judge.ordered:
        return ("candidate-first",)
    if judge.settings.orders == "both":
        return ("candidate-first", "candidate-second")
    candidate, opponent = pair.names
    first = Random(f"{judge.settings.seed}/{prompt_key}/{pair.seed}").randrange(2)
    return ("candidate-first",) if sorted([candidate, str(opponent)])[first] == candidate else ("candidate-second",)


def questions_of(judge: Judge, pair: Pair, version: str | None = None) -> list[Question]:
    """Returns all that a judge is asked of a pair, under the keys of a version of it if that is known."""
    return [
        Question(pair, answer, other, order, repeat, judge.by_end, version or "")
        for answer, other in pair.joined()
        for order in orders_of(judge, pair, answer.prompt_key)
        for repeat in range(judge.settings.repeats if judge.ordered else 1)
    ]
