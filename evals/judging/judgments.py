"""Judgments, the append-only file that keeps them, and the battles that several of one question make."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from ...chat_templates.errors import PosttrainError
from ...data_tools.files import append_line, locked, read_jsonl_log
from ...data_tools.spec import Share
from ..answers import Answer, AnswerSet
from ..records import LOCKS
from ..sequences import grouped
from ..stats.win_rates import Battle

JUDGMENTS = "judgments.jsonl"
HUMAN = "human"
"""The judge's name of votes cast in the arena."""
NULL = "null"
"""The name of answers that say nothing, which must lose."""

Order = Literal["candidate-first", "candidate-second", "alone"]
Status = Literal["judged", "unparsed", "refused", "truncated", "rejected", "failed", "retracted"]
WITHOUT_VERDICT: tuple[Status, ...] = ("unparsed", "refused", "truncated", "rejected", "failed")

TIE = 1e-9
"""How far from .5 a preference still is a tie."""


@dataclass(frozen=True)
class Judgment:
    """What one judge said once, of one answer or of two: a line of ``judgments.jsonl``.

    A line lies in the run folder of its candidate. Anything but ``judged`` has neither preference nor rating: it is
    counted, and never a score.

    Attributes:
        judge: The judge's name; of a jury, the member's.
        judge_version: The hash of everything that decides the verdict: prompt, model, sampling, parser.
        backend: ``endpoint``, ``model``, ``reward``, ``rules`` or ``human``.
        judge_model: The model's name at the endpoint or its folder, the rule's path, or the voter.
        task: The prompt set's name.
        task_hash: Of the candidate's answers.
        prompt_id: The prompt's id.
        prompt_key: The prompt's hash.
        category: The prompt's category.
        sample: Which of the candidate's answers to the prompt.
        candidate: Model hash of the candidate.
        candidate_name: ``run/checkpoint`` of the candidate when it was judged.
        candidate_answer: :attr:`Answer.key` of its answer; :attr:`Answer.ended_key` for a reward model.
        candidate_length: Characters of its answer.
        opponent: Model hash of the other, ``file:<hash>`` for a file of answers; None if it was rated alone.
        opponent_name: Its name.
        opponent_answer: Likewise of its answer.
        opponent_length: Characters of its answer.
        order: Which of them the judge saw first.
        repeat: Which of several judgments of the same question, from 0.
        status: What became of it; ``rejected`` by a server that does not take the question, which says nothing of the
            judge; ``failed`` for the network's sake; ``retracted`` takes a vote back and never leaves the store.
        preference: How much the candidate is preferred: 1 it wins, 0 it loses, .5 a tie; between where the judge gave
            probabilities. None if rated alone.
        rating: The mark, on the judge's own scale; None of pairs.
        reason: What the judge wrote, cut to 4,000 characters; or why there is no verdict.
        prompt_tokens: Tokens that the judge read, or None where nobody counted.
        completion_tokens: Tokens that it wrote.
        cost: Money, in the currency of the judge's prices; None without prices.
        seconds: Time it took.
        created: When, in ISO 8601, UTC.
    """

    judge: str
    judge_version: str
    backend: str
    judge_model: str
    task: str
    task_hash: str
    prompt_id: str
    prompt_key: str
    category: str | None
    sample: int
    candidate: str
    candidate_name: str
    candidate_answer: str
    candidate_length: int
    opponent: str | None
    opponent_name: str | None
    opponent_answer: str | None
    opponent_length: int | None
    order: Order
    repeat: int
    status: Status
    preference: Share | None
    rating: FiniteFloat | None
    reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: float | None
    seconds: float | None
    created: str

    @property
    def key(self) -> str:
        """Returns what no two judgments of a store share."""
        who = (self.candidate, self.opponent, self.sample)
        return judgment_key(
            self.judge_version, self.candidate_answer, self.opponent_answer, self.order, self.repeat, who
        )


def about(
    candidate: AnswerSet,
    answer: Answer,
    opponent: AnswerSet | None,
    other: Answer | None,
    key: Callable[[Answer], str],
) -> dict[str, Any]:
    """Returns what a judgment says of the answers that it is about: the fields that do not depend on who judges.

    Args:
        candidate: Whose run folder keeps the judgment.
        answer: The candidate's answer.
        opponent: The other; None if the answer is rated alone.
        other: Its answer.
        key: Returns what an answer is known by.
    """
    return {
        "task": candidate.task,
        "task_hash": candidate.task_hash,
        "prompt_id": answer.prompt_id,
        "prompt_key": answer.prompt_key,
        "category": answer.category,
        "sample": answer.sample,
        "candidate": candidate.model_hash,
        "candidate_name": candidate.name,
        "candidate_answer": key(answer),
        "candidate_length": answer.characters,
        "opponent": opponent and opponent.model_hash,
        "opponent_name": opponent and opponent.name,
        "opponent_answer": other and key(other),
        "opponent_length": other and other.characters,
    }


def judgment_key(
    judge_version: str, answer: str, other: str | None, order: Order, repeat: int, who: tuple[str, str | None, int]
) -> str:
    """Returns the key of a judgment that may not have been made yet: the same for every run of the same work.

    Args:
        judge_version: The judge's.
        answer: Key of the candidate's answer.
        other: Key of the opponent's.
        order: Which comes first.
        repeat: Which of several times.
        who: Model hashes of candidate and opponent, and the sample. Two models may give the same answer: each gets
            its judgment, though a server is asked, and paid, for one.
    """
    parts = [judge_version, answer, other, order, repeat, *who]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def settled(lines: Iterable[Judgment]) -> list[Judgment]:
    """Returns the judgment of each key that holds, in the order of first lines.

    A later line replaces one that gave no verdict, so that what failed can be tried again. A person may change a vote:
    of votes the last line holds, and one that says ``retracted`` takes the vote back.
    """
    found: dict[str, Judgment] = {}
    for line in lines:
        old = found.get(line.key)
        if old is None or old.status != "judged" or line.backend == HUMAN:
            found[line.key] = line
    return [judgment for judgment in found.values() if judgment.status != "retracted"]


class JudgmentStore:
    """The judgments of one run folder, in ``judgments.jsonl``.

    Several processes may append: the file is locked for each append. Of several lines of one key, :func:`settled`
    says which one holds.

    Args:
        folder: The run folder of the candidate.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / JUDGMENTS

    def load(self) -> list[Judgment]:
        """Returns the judgments that hold, in the order of their first lines; a torn last line is dropped.

        Raises:
            PosttrainError: A whole line is not a judgment.
        """
        records = enumerate(read_jsonl_log(self.path), start=1)
        return settled(judgment_from(record, f"{self.path}:{number}") for number, record in records)

    def append(self, *judgments: Judgment) -> None:
        """Writes judgments and syncs them to the disk."""
        with locked(self.folder / LOCKS / "judgments", wait=True):
            for number, judgment in enumerate(judgments, start=1):
                line = json.dumps(asdict(judgment), ensure_ascii=False, allow_nan=False)
                append_line(self.path, line, sync=number == len(judgments))


_CHECKED = TypeAdapter(Judgment)


def judgment_from(record: dict[str, Any], where: str) -> Judgment:
    """Builds a judgment from its line; keys that a later version may add are left aside."""
    known = {name: record[name] for name in Judgment.__dataclass_fields__ if name in record}
    try:
        found = _CHECKED.validate_json(json.dumps(known), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"not a judgment: {'.'.join(map(str, first['loc'][:1]))}: {first['msg']}"
        raise PosttrainError(what, where=where, hint="remove that line") from error
    if found.status == "judged" and found.preference is None and found.rating is None:
        raise PosttrainError("not a judgment: judged, but neither preference nor rating", where=where)
    return found


# --- battles ---


def seen_from(candidate: str, judgment: Judgment) -> Judgment:
    """Turns a judgment of two answers so that the candidate stands on its own side."""
    if judgment.opponent is None or judgment.candidate == candidate:
        return judgment
    sides = ("", "_name", "_answer", "_length")
    turned = {f"candidate{side}": getattr(judgment, f"opponent{side}") for side in sides}
    turned |= {f"opponent{side}": getattr(judgment, f"candidate{side}") for side in sides}
    order = "candidate-second" if judgment.order == "candidate-first" else "candidate-first"
    preference = None if judgment.preference is None else 1 - judgment.preference
    return replace(judgment, **turned, order=order, preference=preference)


def one_way(judgments: Iterable[Judgment]) -> list[Judgment]:
    """Turns all judgments of two models on a prompt set to the way in which their judge's first one has them.

    Which of the two was called the candidate may hang on the order of folders on a command line.
    """
    candidates: dict[tuple[str, str, frozenset[str | None]], str] = {}
    found = []
    for one in judgments:
        about = (one.judge_version, one.task, frozenset((one.candidate, one.opponent)))
        found.append(seen_from(candidates.setdefault(about, one.candidate), one))
    return found


def battles(judgments: Iterable[Judgment]) -> list[Battle]:
    """Joins pairwise judgments of the same two answers by the same judge; ratings are left aside."""
    pairs = (j for j in judgments if j.opponent is not None and j.opponent_answer is not None)
    return [_battle(group) for group in grouped(pairs, _SAME_ANSWERS).values()]


_SAME_ANSWERS = attrgetter(
    "judge_version", "task", "candidate", "opponent", "prompt_key", "sample", "candidate_answer", "opponent_answer"
)


def _battle(group: list[Judgment]) -> Battle:
    orders: dict[str, list[float]] = {}
    for judgment in group:
        verdicts = orders.setdefault(judgment.order, [])
        if judgment.preference is not None:
            verdicts.append(judgment.preference)
    means = [sum(verdicts) / len(verdicts) for verdicts in orders.values() if verdicts]
    whole = len(means) == len(orders)
    flipped = (means[0] - 0.5) * (means[1] - 0.5) < -TIE if whole and len(means) == 2 else None
    hard = whole and all(len({*verdicts}) == 1 and verdicts[0] in (0.0, 0.5, 1.0) for verdicts in orders.values())
    preference = sum(means) / len(means) if whole else None
    net = None if preference is None else (preference > 0.5 + TIE) - (preference < 0.5 - TIE)
    # A hard verdict in one order and a tie in the other disagree as well: .75 would be half a win that nobody gave.
    if hard and preference is not None and len({*means}) > 1:
        preference = 0.5
    first = group[0]
    assert first.opponent is not None, "only pairs are joined"
    assert first.opponent_length is not None, "an opponent has an answer"
    return Battle(
        judge=first.judge,
        judge_version=first.judge_version,
        task=first.task,
        prompt_key=first.prompt_key,
        prompt_id=first.prompt_id,
        category=first.category,
        sample=first.sample,
        candidate=first.candidate,
        opponent=first.opponent,
        candidate_length=first.candidate_length,
        opponent_length=first.opponent_length,
        preference=preference,
        flipped=flipped,
        judged=sum(judgment.preference is not None for judgment in group),
        asked=len(group),
        net=net,
    )
