"""The audit of judges: what their verdicts depend on besides the answers, from the judgments alone.

Every figure has an interval, and a warning is given where the interval excludes what an even-handed judge would show.
Verdicts on one prompt are not independent, so all intervals of means are clustered by prompt.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import PurePath

from ..stats.intervals import Estimate
from .audit_figures import (
    Agreement,
    Share,
    Slope,
    agreement,
    bounds,
    first_wins,
    length_slope,
    mean_share,
    null_wins,
    share,
    verdicts,
)
from .families import Family, family_named, kinship
from .judgments import HUMAN, NULL, WITHOUT_VERDICT, Battle, Judgment, battles

_FLIPS = 0.2  # a warning where surely more than this flips; of a judge that tosses coins, half of the hard verdicts do
_MISSING = 0.02  # likewise, of judgments without a verdict
_FEWEST = 10  # prompts; below, the clustered intervals are too rough to warn by

Verdicts = dict[tuple[str, ...], tuple[int, str]]


@dataclass(frozen=True)
class AuditRow:
    """What one judge did with one pair of models, or with everything it was asked.

    Shares are in [0, 1]. A figure is None where the judgments do not support it.

    Attributes:
        judge: The judge's name.
        judge_version: Its version.
        backend: ``endpoint``, ``model``, ``reward``, ``rules`` or ``human``; joined by commas if there are several.
        judge_model: The model behind it, the rule's path, or the voter; joined likewise.
        task: The prompt set; None in the row that sums a judge up.
        candidate: Model hash; None in the sum.
        candidate_name: ``run/checkpoint``; empty in the sum.
        opponent: Model hash; None in the sum, and where answers were rated alone.
        opponent_name: Its name, or empty.
        judgments: How many were asked for.
        n: Pairs of answers compared, both orders and all repeats counted once; of ratings, the answers.
        prompts: How many prompts they come from.
        win_rate: The candidate's, over decided pairs; None in the sum.
        bounds: The win rate if every judgment without a verdict had gone against the candidate, and for it.
        flip_rate: Pairs whose winner changed with the order, of those decided in both orders.
        first_wins: How often what is shown first wins, orders weighed alike, ties half: .5 for an even-handed judge.
            It shows a bias towards one side even where it made ties of both orders.
        missing: Judgments without a verdict, of all.
        unparsed: Those whose answer held no verdict.
        refused: Those that the judge refused.
        truncated: Those whose answer broke off before the verdict.
        rejected: Those that the judge's server did not take.
        failed: Those that never got an answer.
        length_slope: Change in the probability of winning per standard deviation of the difference in characters,
            within pairs of models. An association: better answers may well be longer. For ratings, change of the mark
            per standard deviation of length.
        length_sd: That standard deviation, in characters.
        rated: Whether answers were rated alone, so that the slope is in marks.
        agreements: With every other judge that decided some of the same pairs, human votes first.
        null_wins: How often an answer that says nothing won; it must lose.
        warnings: What a reader must know before trusting the row, a sentence each.
    """

    judge: str
    judge_version: str
    backend: str
    judge_model: str
    task: str | None
    candidate: str | None
    candidate_name: str
    opponent: str | None
    opponent_name: str
    judgments: int
    n: int
    prompts: int
    win_rate: Estimate | None
    bounds: tuple[float, float] | None
    flip_rate: Share | None
    first_wins: Estimate | None
    missing: Share
    unparsed: int
    refused: int
    truncated: int
    rejected: int
    failed: int
    length_slope: Estimate | None
    length_sd: float | None
    rated: bool
    agreements: tuple[Agreement, ...]
    null_wins: Estimate | None
    warnings: tuple[str, ...]

    @property
    def is_sum(self) -> bool:
        """Says whether the row sums a judge up."""
        return self.candidate is None

    @property
    def kappa(self) -> Estimate | None:
        """Returns the agreement with the second judge, human votes before any other."""
        return self.agreements[0].kappa if self.agreements else None


def audit(
    judgments: Iterable[Judgment],
    *,
    second: Iterable[Judgment] | None = None,
    families: Mapping[str, Family] | None = None,
) -> list[AuditRow]:
    """Audits every judge: a row that sums it up, then one for each prompt set and pair of models.

    Args:
        judgments: Of any number of judges; human votes among them are compared with the others.
        second: Judgments to compare with and not to audit.
        families: What models descend from (:func:`~.families.families_of`), by a run's name, a model hash or a
            judge's model; a judge's model that is missing here is known by its name.

    Returns:
        Rows by judge, in the order in which judges, prompt sets and pairs first appear.
    """
    audited = list(judgments)
    judges = {key: _by_pair(group) for key, group in _by_judge(audited).items()}
    fought = {key: [battles(pair) for pair in pairs] for key, pairs in judges.items()}
    decided = {key: verdicts(list(chain(*found))) for key, found in fought.items()}
    for key, group in _by_judge(second or ()).items():
        decided.setdefault(key, verdicts(battles(group)))
    labels = {(j.judge, j.judge_version): _label(j) for j in (*(second or ()), *audited)}
    nulls = frozenset(_nulls(audited))
    rows: list[AuditRow] = []
    for key, pairs in judges.items():
        others = {labels[other]: won for other, won in decided.items() if other != key}
        rows.append(_row(list(chain(*pairs)), list(chain(*fought[key])), others, nulls, None))
        for pair, found in zip(pairs, fought[key], strict=True):
            rows.append(_row(pair, found, others, nulls, families or {}))
    return rows


def _by_judge(judgments: Iterable[Judgment]) -> dict[tuple[str, str], list[Judgment]]:
    groups: dict[tuple[str, str], list[Judgment]] = {}
    for judgment in judgments:
        groups.setdefault((judgment.judge, judgment.judge_version), []).append(judgment)
    return groups


def _by_pair(judgments: Iterable[Judgment]) -> list[list[Judgment]]:
    groups: dict[tuple[str, str, str | None], list[Judgment]] = {}
    for judgment in judgments:
        groups.setdefault((judgment.task, judgment.candidate, judgment.opponent), []).append(judgment)
    return list(groups.values())


def _label(judgment: Judgment) -> str:
    """Returns what a second judge is called: of votes, who cast them is a part of it."""
    return f"{HUMAN} {judgment.judge_model}".strip() if judgment.judge == HUMAN else judgment.judge


def _nulls(judgments: Iterable[Judgment]) -> set[str]:
    """Returns the models that are null answers: ``null`` by hash, or by the name of their run or file."""
    models: set[tuple[str | None, str | None]] = set()
    for judgment in judgments:
        models |= {(judgment.candidate, judgment.candidate_name), (judgment.opponent, judgment.opponent_name)}
    return {model for model, name in models if model and (model == NULL or _is_null(name or ""))}


def _is_null(name: str) -> bool:
    return any(PurePath(part).stem == NULL for part in PurePath(name).parts)


def _row(
    group: Sequence[Judgment],
    fought: Sequence[Battle],
    others: Mapping[str, Verdicts],
    nulls: frozenset[str],
    families: Mapping[str, Family] | None,
) -> AuditRow:
    """Audits one judge's judgments: of one pair of models, or, where no families are given, all of them."""
    first, whole = group[0], families is None
    decided = [battle for battle in fought if battle.preference is not None]
    both = [battle for battle in fought if battle.flipped is not None]
    states = Counter(judgment.status for judgment in group)
    missing = share(len(group) - states["judged"], len(group))
    assert missing is not None, "a group holds a judgment"
    slope = _slope(group, decided)
    row = AuditRow(
        judge=first.judge,
        judge_version=first.judge_version,
        backend=", ".join(sorted({judgment.backend for judgment in group})),
        judge_model=", ".join(sorted({judgment.judge_model for judgment in group})),
        task=None if whole else first.task,
        candidate=None if whole else first.candidate,
        candidate_name="" if whole else first.candidate_name,
        opponent=None if whole else first.opponent,
        opponent_name="" if whole else first.opponent_name or "",
        judgments=len(group),
        n=len(fought) + len({(j.candidate, j.candidate_answer) for j in group if j.order == "alone"}),
        prompts=len({judgment.prompt_key for judgment in group}),
        win_rate=None if whole else mean_share([_won(b) for b in decided], [b.prompt_key for b in decided]),
        bounds=None if whole or not fought else bounds(group, fought),
        flip_rate=share(sum(battle.flipped is True for battle in both), len(both)),
        first_wins=first_wins(group),
        missing=missing,
        unparsed=states["unparsed"],
        refused=states["refused"],
        truncated=states["truncated"],
        rejected=states["rejected"],
        failed=states["failed"],
        length_slope=slope.estimate if slope else None,
        length_sd=slope.sd if slope else None,
        rated=not fought,
        agreements=_agreements(verdicts(fought), others),
        null_wins=null_wins(fought, nulls),
        warnings=(),
    )
    kin = [] if families is None else _kin(first, families)
    return replace(row, warnings=tuple(_warnings(row) + kin))


def _won(battle: Battle) -> float:
    assert battle.preference is not None, "only decided battles are asked"
    return battle.preference


def _slope(group: Sequence[Judgment], decided: Sequence[Battle]) -> Slope | None:
    """Regresses verdicts on the difference in length; of ratings, marks on length."""
    if decided:
        differences = [battle.candidate_length - battle.opponent_length for battle in decided]
        prompts = [battle.prompt_key for battle in decided]
        models = [f"{battle.task} {battle.candidate} {battle.opponent}" for battle in decided]
        return length_slope([_won(battle) for battle in decided], differences, prompts, models)
    rated = [(judgment, judgment.rating) for judgment in group if judgment.rating is not None]
    return length_slope(
        [rating for _, rating in rated],
        [judgment.candidate_length for judgment, _ in rated],
        [judgment.prompt_key for judgment, _ in rated],
        [f"{judgment.task} {judgment.candidate}" for judgment, _ in rated],
    )


def _agreements(own: Verdicts, others: Mapping[str, Verdicts]) -> tuple[Agreement, ...]:
    """Compares with every other judge, votes first, then by how much both have decided."""
    found = [agreement(name, own, won) for name, won in others.items()]
    known = [item for item in found if item is not None]
    return tuple(sorted(known, key=lambda item: (not item.other.startswith(HUMAN), -item.n)))


def _kin(judgment: Judgment, families: Mapping[str, Family]) -> list[str]:
    """Words what the judge's model and both models of a pair share."""
    if judgment.backend in ("rules", HUMAN):
        judge = Family()
    else:
        judge = families.get(judgment.judge_model) or family_named(judgment.judge_model)
    found = []
    for model, name in ((judgment.candidate, judgment.candidate_name), (judgment.opponent, judgment.opponent_name)):
        named = name or ""
        family = families.get(model or "") or families.get(named) or families.get(named.rpartition("/")[0])
        if family is None and (model or "").startswith("file:"):  # answers from elsewhere: their name is all there is
            family = family_named(PurePath(named).stem)
        found += [f"{name}: {text}" for text in (kinship(judge, family) if family else [])]
    return found


def _warnings(row: AuditRow) -> list[str]:
    """Words what a row's intervals show. What is the judge's own is said once, in the row that sums it up."""
    found = []
    if row.is_sum:
        found += _judge_warnings(row)
    elif row.missing.low > _MISSING and row.bounds is not None:
        low, high = row.bounds
        found.append(
            f"{_missing(row)}: the win rate lies between {low:.1%} and {high:.1%}, whatever they would have been"
        )
    if row.null_wins is not None and not (row.null_wins.high is not None and row.null_wins.high < 0.5):
        found.append(f"answers that say nothing are not shown to lose: they win {_interval(row.null_wins)}")
    return found


def _judge_warnings(row: AuditRow) -> list[str]:
    found = []
    if row.missing.low > _MISSING:
        found.append(_missing(row))
    if row.flip_rate is not None and row.flip_rate.low > _FLIPS:
        found.append(f"the winner changes with the order in {_interval(row.flip_rate)} of {row.flip_rate.n} pairs")
    if row.prompts >= _FEWEST:
        if row.first_wins is not None and _excludes(row.first_wins, 0.5):
            side = "first" if row.first_wins.value > 0.5 else "second"
            found.append(f"it leans to what is shown {side}: the first wins {_interval(row.first_wins)}")
        slope = row.length_slope
        if slope is not None and _excludes(slope, 0.0):
            unit = f"per {row.length_sd:,.0f} characters more"
            found.append(f"it {'prefers' if slope.value > 0 else 'dislikes'} length: {_change(row, slope)} {unit}")
    for other in row.agreements:
        if other.kappa.value <= 0 or (other.kappa.low is not None and other.kappa.low <= 0):
            rates = f"{other.observed:.1%} of {other.n} pairs, {other.chance:.1%} by chance"
            kappa = f"kappa {_marks(other.kappa, '.2f')}"
            found.append(f"its agreement with {other.other} cannot be told from chance: {rates}; {kappa}")
    return found


def _excludes(estimate: Estimate, value: float) -> bool:
    """Says whether an interval leaves a value out; what has no interval excludes nothing."""
    return estimate.low is not None and estimate.high is not None and not estimate.low <= value <= estimate.high


def _missing(row: AuditRow) -> str:
    parts = [f"{getattr(row, name)} {name}" for name in WITHOUT_VERDICT if getattr(row, name)]
    return f"{row.missing.count} of {row.missing.n} judgments gave no verdict ({', '.join(parts)})"


def _change(row: AuditRow, slope: Estimate) -> str:
    return f"{_marks(slope, '+.2f')} marks" if row.rated else f"{_marks(slope, '+.1%')} to win"


def _interval(figure: Estimate | Share) -> str:
    return _marks(figure, ".1%")


def _marks(figure: Estimate | Share, form: str) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:{form}} (too few prompts for an interval)"
    return f"{figure.value:{form}} ({figure.low:{form}} to {figure.high:{form}})"
