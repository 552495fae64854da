"""Duels: a judge compares two texts that lie in no run folder, and one of them wins only where every order agrees.

A judge that favours a place names another winner when the two change places. Over many pairs that averages out; a row
that is kept or dropped must not rest on it. So a win counts if it is won in both orders, the conservative way of Zheng
et al. 2023 (arXiv:2306.05685, section 3.4); but a verdict that turns is not called a tie here, since it is none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Literal

from ...chat_templates.errors import InputError
from ...data_tools.ask import Log, ask
from ..answers import Answer, AnswerSet
from ..judges import JudgeChoice, lacks
from ..prompt_sets import prompt_key
from .backends import OpenJudge, open_judges
from .judgments import TIE
from .parse import Verdict
from .questions import Pair, Question, orders_of

LOG = "judged.log"


@dataclass(frozen=True)
class Duel:
    """Two answers to one request.

    Attributes:
        request: What both answer.
        answer: The one that has to win.
        other: The other.
        reference: A right answer, which the judge is shown; None if there is none.
    """

    request: str
    answer: str
    other: str
    reference: str | None


@dataclass(frozen=True)
class DuelOutcome:
    """What came of a duel.

    Attributes:
        how: ``won`` in every order; ``not won`` in any; ``turned`` with the order; ``undecided`` where one has no
            verdict.
        why: What the judge said, or why there is no verdict.
    """

    how: Literal["won", "not won", "turned", "undecided"]
    why: str


_GRAVEST = ("undecided", "turned", "not won", "won")  # of a jury's outcomes the gravest stands


class Referee:
    """A judge, or a jury of which all must agree, at work on duels.

    What it said is in ``judged.log`` and not asked again, whatever is killed. A server's budget is that of its
    settings, over the life of its record.

    Args:
        choice: The judge.
        name: What its record is called; two referees of one folder have different names.
        folder: Where log and record lie.

    Attributes:
        judges: It, or its members.
        tokens: Of prompts and replies that duels rested on, whenever they were paid for, as far as they were counted.
        decided: Duels that were decided, or turned.
        turned: Those that turned with the order.

    Raises:
        InputError: The judge cannot work, rates, or is asked in one order alone.
    """

    def __init__(self, choice: JudgeChoice, name: str, folder: Path):
        for judge in choice.members:
            for key, what, hint in lacks(judge):
                raise InputError(what, where=f"{judge.name}: {'.'.join(map(str, key))}", hint=hint)
            if judge.settings.kind == "rating":
                raise InputError("a judge that rates compares nothing", where=judge.name, hint="take a pairwise one")
            if judge.ordered and judge.settings.orders == "one":
                raise InputError("a verdict of one order decides nothing here", where=judge.name, hint="drop `orders`")
        self.judges = open_judges(name, choice.members, [folder])
        for judge in self.judges:
            judge.check()
        self._folder = folder
        self._log = Log(folder / LOG, lambda line: Verdict(**line["verdict"]), _line, sync=False)
        self.tokens = self.decided = self.turned = 0
        self._counted: set[str] = set()

    def decide(self, duels: Sequence[Duel]) -> list[DuelOutcome]:
        """Asks what was not asked before, and returns what came of each duel.

        Raises:
            PosttrainError: A judge cannot be asked.
        """
        found = [self._by(judge, duels) for judge in self.judges]
        outcomes = [min(each, key=lambda one: _GRAVEST.index(one.how)) for each in zip(*found, strict=True)]
        self.decided += sum(outcome.how != "undecided" for outcome in outcomes)
        self.turned += sum(outcome.how == "turned" for outcome in outcomes)
        return outcomes

    def close(self) -> None:
        """Lets models in this process go."""
        for judge in self.judges:
            judge.close()

    def _by(self, judge: OpenJudge, duels: Sequence[Duel]) -> list[DuelOutcome]:
        asked = [list(_questions(judge, duel)) for duel in duels]
        questions = [question for group in asked for question in group]
        self._log.keep({one.key: Verdict("judged", 0.5, reason="equal answers") for one in questions if one.equal})
        ask([one for one in questions if not one.equal], judge.backend(self._folder), self._log)
        return [self._outcome(group) for group in asked]

    def _outcome(self, questions: Sequence[Question]) -> DuelOutcome:
        orders: dict[str, list[float]] = {}
        verdicts = [self._verdict(question) for question in questions]
        for question, verdict in zip(questions, verdicts, strict=True):
            if verdict.preference is None:
                told = verdict.status in ("failed", "rejected")  # by the server, in a few words
                return DuelOutcome("undecided", verdict.reason if told else verdict.status)
            orders.setdefault(question.order, []).append(question.of_candidate(verdict.preference))
        sides = {(value > 0.5 + TIE) - (value < 0.5 - TIE) for value in map(mean, orders.values())}
        how = "turned" if len(sides) > 1 else "won" if sides == {1} else "not won"
        return DuelOutcome(how, "\n\n".join(dict.fromkeys(verdict.reason for verdict in verdicts)))

    def _verdict(self, question: Question) -> Verdict:
        """Returns what came of a question, and counts what it took, once."""
        answered = self._log.answers.get(question.key) or self._log.failed.get(question.key)
        verdict: Verdict = answered or Verdict("failed", reason="no reply")
        if question.key not in self._counted:
            self._counted.add(question.key)
            self.tokens += (verdict.prompt_tokens or 0) + (verdict.completion_tokens or 0)
        return verdict


def _questions(judge: OpenJudge, duel: Duel) -> Iterator[Question]:
    """Yields what a judge is asked of a duel: in all its orders, as often as its settings say."""
    answer, other = (_answer(duel, text) for text in (duel.answer, duel.other))
    pair = Pair(_side("answer"), _side("other"), judge.homes[0])
    for order in orders_of(judge.spec, pair, answer.prompt_key):
        for repeat in range(judge.settings.repeats if judge.spec.ordered else 1):
            yield Question(pair, answer, other, order, repeat, judge.spec.by_end, judge.version)


def _answer(duel: Duel, text: str) -> Answer:
    turns, references = (duel.request,), None if duel.reference is None else (duel.reference,)
    # A judge that was shown another right answer was asked something else.
    key = prompt_key((*turns, *references) if references else turns)
    return Answer("", key, None, turns, references, 0, (text,), (text,), ("stop",), None, None, None)


def _side(name: str) -> AnswerSet:
    return AnswerSet("duel", name, None, name, "duel", "", None, ())


def _line(verdict: Verdict) -> dict[str, object] | None:
    """Keeps what asking again would not change."""
    return None if verdict.status == "failed" else {"verdict": asdict(verdict)}
