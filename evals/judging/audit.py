"""The audit of judges: what their verdicts depend on besides the answers, from the judgments alone.

Every figure has an interval, and a warning is given where the interval excludes what an even-handed judge would show.
Verdicts on one prompt are not independent, so all intervals of means are clustered by prompt.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from ..sequences import grouped
from ..stats.bootstrap import kappa
from ..stats.intervals import Estimate, mean_estimate, wilson
from .families import Family, family_named, kinship
from .judgments import HUMAN, NULL, WITHOUT_VERDICT, Battle, Judgment, battles, one_way

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FLIPS = 0.2  # a warning where surely more than this flips; of a judge that tosses coins, half of the hard verdicts do
_MISSING = 0.02  # likewise, of judgments without a verdict
_FEWEST = 10  # prompts; below, the clustered intervals are too rough to warn by
_TIE = 1e-9
_CONTRADICTED = 2  # where 1 and -1 are a winner and 0 is a tie
_TAILS = (0.05, 0.95)  # lengths beyond these percentiles count as these: one answer of 1 MB must not be the slope

# Who won, by prompt set, prompt, sample and the two models in order: 1, 0 or -1 for the first of them, or 2 where the
# judge contradicted itself.
Verdicts = dict[tuple[str, ...], int]


@dataclass(frozen=True)
class Share:
    """How many of how many, with the Wilson interval.

    Attributes:
        count: Those meant.
        n: Of these.
        low: Lower end of the 95% interval of the share.
        high: Upper end.
    """

    count: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Returns the share, in [0, 1]."""
        return self.count / self.n


@dataclass(frozen=True)
class JudgeAgreement:
    """How far two judges agree on win, tie or loss, over the battles that both have decided.

    What a judge says of both orders is joined by net votes, as JudgeBench does (Tan et al. 2024, arXiv:2410.12784): a
    win and a tie are a win. A judge that names another winner when the order is turned agrees with nobody, also not
    with a tie, as Auto-J counts it (Li et al. 2023, arXiv:2310.05470).

    Attributes:
        other: The second judge's name, with model and version where judges share it; of votes ``human`` and the voter.
        n: Battles that both decided.
        contradictions: Those in which the first judge contradicted itself; they count as not agreed.
        observed: The share on which they agree.
        chance: The share on which they would agree if each kept its own rates and looked at nothing.
        kappa: Cohen's kappa, with the bootstrap interval over prompts.
    """

    other: str
    n: int
    contradictions: int
    observed: float
    chance: float
    kappa: Estimate


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
        kin: What the judge and a model of the pair have in common, or that model and those that trained it: the model's
            name, and the words.
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
    agreements: tuple[JudgeAgreement, ...]
    null_wins: Estimate | None
    kin: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    @property
    def is_sum(self) -> bool:
        """Says whether the row sums a judge up."""
        return self.candidate is None

    @property
    def kappa(self) -> Estimate | None:
        """Returns the agreement with the second judge, human votes before any other."""
        return self.agreements[0].kappa if self.agreements else None


def audit(judgments: Iterable[Judgment], families: Mapping[str, Family] | None = None) -> list[AuditRow]:
    """Audits every judge: a row that sums it up, then one for each prompt set and pair of models.

    Args:
        judgments: Of any number of judges; human votes among them are compared with the others.
        families: What models descend from (:func:`~.families.families_of`), by a run's name, a model hash or a
            judge's model; a judge's model that is missing here is known by its name.

    Returns:
        Rows by judge, in the order in which judges, prompt sets and pairs first appear.
    """
    judgments = one_way(judgments)
    by_judge = grouped(judgments, lambda j: (j.judge, j.judge_version))
    pairs = {
        key: list(grouped(own, lambda j: (j.task, j.candidate, j.opponent)).values()) for key, own in by_judge.items()
    }
    fought = {key: [battles(pair) for pair in own] for key, own in pairs.items()}
    decided = {key: _verdicts(chain(*found)) for key, found in fought.items()}
    labels = _labels(judgments)
    nulls = _nulls(judgments)
    rows: list[AuditRow] = []
    for key, own in pairs.items():
        others = {labels[other]: won for other, won in decided.items() if other != key}
        rows.append(_row(list(chain(*own)), list(chain(*fought[key])), others, nulls, None))
        for pair, found in zip(own, fought[key], strict=True):
            rows.append(_row(pair, found, others, nulls, families or {}))
    return rows


def _labels(judgments: Iterable[Judgment]) -> dict[tuple[str, str], str]:
    """Names each judge as shortly as tells it from all others; of votes, who cast them is always a part of it."""
    names = {}
    for j in judgments:
        longer = f"{j.judge} {j.judge_model}".strip()
        short = longer if j.judge == HUMAN else j.judge
        names[j.judge, j.judge_version] = (short, longer, f"{longer} {j.judge_version[:8]}")
    counts = Counter(name for mine in names.values() for name in set(mine))
    return {key: next((name for name in mine if counts[name] == 1), mine[-1]) for key, mine in names.items()}


def _nulls(judgments: Iterable[Judgment]) -> frozenset[str]:
    """Returns the models that are null answers: ``null`` by hash, or by the name of their run or file."""
    models = {side for j in judgments for side in ((j.candidate, j.candidate_name), (j.opponent, j.opponent_name))}

    def is_null(name: str) -> bool:
        return any(PurePath(part).stem == NULL for part in PurePath(name).parts)

    return frozenset(model for model, name in models if model and (model == NULL or is_null(name or "")))


def _row(
    group: Sequence[Judgment],
    fought: Sequence[Battle],
    others: Mapping[str, Verdicts],
    nulls: frozenset[str],
    families: Mapping[str, Family] | None,
) -> AuditRow:
    """Audits one judge's judgments: of one pair of models, or, where no families are given, all of them."""
    first, whole = group[0], families is None
    decided = [(battle, battle.preference) for battle in fought if battle.preference is not None]
    both = [battle.flipped for battle in fought if battle.flipped is not None]
    states = Counter(judgment.status for judgment in group)
    missing = _share(len(group) - states["judged"], len(group))
    assert missing is not None, "a group holds a judgment"
    slope, sd = _slope(group, decided) or (None, None)
    silent = [  # against answers that may say something
        (preference if b.candidate in nulls else 1 - preference, b.prompt_key)
        for b, preference in decided
        if (b.candidate in nulls) != (b.opponent in nulls)
    ]
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
        win_rate=None if whole else _mean([(preference, battle.prompt_key) for battle, preference in decided]),
        bounds=None if whole or not fought else _bounds(group),
        flip_rate=_share(sum(both), len(both)),
        first_wins=_first_wins(group),
        missing=missing,
        **{status: states[status] for status in WITHOUT_VERDICT},
        length_slope=slope,
        length_sd=sd,
        rated=not fought,
        agreements=_agreements(_verdicts(fought), others),
        null_wins=_mean(silent),
        kin=() if families is None else tuple(_kin(first, families)),
        warnings=(),
    )
    return replace(row, warnings=(*_warnings(row), *(f"{name}: {text}" for name, text in row.kin)))


# --- figures ---


def _share(count: int, n: int) -> Share | None:
    """Returns a share with its interval, or None of nothing."""
    if not n:
        return None
    interval = wilson(count, n)
    return Share(count, n, interval.low, interval.high)


def _mean(values: Sequence[tuple[float, str]]) -> Estimate | None:
    """Returns the mean of values in [0, 1], each with its prompt, or None of nothing."""
    return (
        mean_estimate([value for value, _ in values], [prompt for _, prompt in values], unit=True) if values else None
    )


def _first_wins(judgments: Sequence[Judgment]) -> Estimate | None:
    """Returns how often what is shown first wins, the two orders weighed alike and ties half; None with one order.

    With both orders of every pair this is .5 for a judge that looks only at the answers, whichever model is better;
    with one order each, drawn by chance, it is so on average.
    """
    judged = [judgment for judgment in judgments if judgment.preference is not None and judgment.order != "alone"]
    straight = np.array([judgment.order == "candidate-first" for judgment in judged], dtype=bool)
    if not straight.any() or straight.all():
        return None
    preferences = np.array([judgment.preference for judgment in judged], dtype=np.float64)
    first = np.where(straight, preferences, 1 - preferences)
    means = {order: first[straight == order].mean() for order in (True, False)}
    centre = (means[True] + means[False]) / 2
    # Each judgment's influence on the mean of the two orders' means; their own mean is that figure.
    weight = np.where(straight, len(first) / (2 * straight.sum()), len(first) / (2 * (~straight).sum()))
    influence = centre + weight * (first - np.where(straight, means[True], means[False]))
    return mean_estimate(influence, [judgment.prompt_key for judgment in judged], unit=True)


def _slope(group: Sequence[Judgment], decided: Sequence[tuple[Battle, float]]) -> tuple[Estimate, float] | None:
    """Regresses verdicts on the difference in length, of ratings marks on length, within pairs of models.

    Least squares with an intercept for each pair, since that longer answers come from the better model is no bias (a
    linear probability model, so that the slope is a change of probability), and standard errors clustered by prompt
    (Liang and Zeger, "Longitudinal data analysis using generalized linear models", Biometrika 73 (1986)): the influence
    of each row on the slope is averaged.

    Returns:
        The change per standard deviation of the lengths, and that in characters; None where lengths do not differ.
    """
    rows = [
        (preference, b.candidate_length - b.opponent_length, b.prompt_key, f"{b.task} {b.candidate} {b.opponent}")
        for b, preference in decided
    ] or [
        (j.rating, j.candidate_length, j.prompt_key, f"{j.task} {j.candidate}") for j in group if j.rating is not None
    ]
    if len(rows) < 3:
        return None
    preferences, lengths, prompts, models = zip(*rows, strict=True)
    y, x = np.array(preferences, dtype=np.float64), np.array(lengths, dtype=np.float64)
    x = _centred(np.clip(x, *np.quantile(x, _TAILS)), models)
    y = _centred(y, models)
    sd = float(x.std(ddof=1))
    if sd <= _TIE:
        return None
    x /= sd
    slope = float(x @ y / (x @ x))
    influence = slope + len(x) * x * (y - slope * x) / (x @ x)
    return mean_estimate(influence, prompts), sd


def _centred(values: "NDArray[np.float64]", groups: Sequence[str]) -> "NDArray[np.float64]":
    """Takes each group's mean from its values."""
    _, index = np.unique(np.array(groups), return_inverse=True)
    return values - (np.bincount(index, weights=values) / np.bincount(index))[index]


def _bounds(judgments: Sequence[Judgment]) -> tuple[float, float] | None:
    """Returns the win rate if every judgment without a verdict had gone against the candidate, and for it."""
    found = []
    whole = all(judgment.preference is not None for judgment in judgments)
    for verdict in (0.0,) if whole else (0.0, 1.0):
        filled = [j if j.preference is not None else replace(j, preference=verdict) for j in judgments]
        preferences = [battle.preference for battle in battles(filled) if battle.preference is not None]
        if not preferences:
            return None
        found.append(sum(preferences) / len(preferences))
    return found[0], found[-1]


def _verdicts(fought: Iterable[Battle]) -> Verdicts:
    """Returns who won each decided battle, whichever of the two was called the candidate."""
    won: Verdicts = {}
    for battle in fought:
        if battle.net is not None:
            turn = 1 if battle.candidate <= battle.opponent else -1
            models = sorted((battle.candidate, battle.opponent))
            verdict = _CONTRADICTED if battle.flipped else turn * battle.net
            won[battle.task, battle.prompt_key, str(battle.sample), *models] = verdict
    return won


def _agreements(own: Verdicts, others: Mapping[str, Verdicts]) -> tuple[JudgeAgreement, ...]:
    """Compares with every other judge over what both have decided, votes first, then by how much that is.

    A judge with which that is nothing is left out, as is one where both always said the same one thing, which chance
    would too.
    """
    known = []
    for name, other in others.items():
        common = [key for key in own if key in other]
        mine, theirs = [own[key] for key in common], [other[key] for key in common]
        # Nobody shares the other's contradictions.
        theirs = [-_CONTRADICTED if verdict == _CONTRADICTED else verdict for verdict in theirs]
        found = kappa(mine, theirs, [prompt for _, prompt, *_ in common]) if common else None
        if found is not None and found.kappa is not None:
            figure = Estimate(found.kappa, None, found.low, found.high, found.n, found.clusters)
            again = mine.count(_CONTRADICTED)
            known.append(JudgeAgreement(name, found.n, again, found.agreement.value, found.chance, figure))
    return tuple(sorted(known, key=lambda item: (not item.other.startswith(HUMAN), -item.n)))


# --- words ---


def _kin(judgment: Judgment, families: Mapping[str, Family]) -> list[tuple[str, str]]:
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
        found += [(named, text) for text in (kinship(judge, family) if family else [])]
    return found


def _warnings(row: AuditRow) -> list[str]:
    """Words what a row's intervals show. What is the judge's own is said once, in the row that sums it up."""
    found = []
    if row.is_sum:
        found += _judge_warnings(row)
    elif row.missing.low > _MISSING and row.bounds is not None:
        low, high = row.bounds
        rates = f"the win rate lies between {low:.1%} and {high:.1%}, whatever they would have been"
        found.append(f"{_missing(row)}: {rates}")
    if row.null_wins is not None and not (row.null_wins.high is not None and row.null_wins.high < 0.5):
        found.append(f"answers that say nothing are not shown to lose: they win {_marks(row.null_wins)}")
    return found


def _judge_warnings(row: AuditRow) -> list[str]:
    found = []
    if row.missing.low > _MISSING:
        found.append(_missing(row))
    if row.flip_rate is not None and row.flip_rate.low > _FLIPS:
        found.append(f"the winner changes with the order in {_marks(row.flip_rate)} of {row.flip_rate.n} pairs")
    if row.prompts >= _FEWEST:
        if row.first_wins is not None and _excludes(row.first_wins, 0.5):
            side = "first" if row.first_wins.value > 0.5 else "second"
            found.append(f"it leans to what is shown {side}: the first wins {_marks(row.first_wins)}")
        slope = row.length_slope
        if slope is not None and _excludes(slope, 0.0):
            change = f"{_marks(slope, '+.2f')} marks" if row.rated else f"{_marks(slope, '+.1%')} to win"
            likes = "prefers" if slope.value > 0 else "dislikes"
            found.append(f"it {likes} length: {change} per {row.length_sd:,.0f} characters more")
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


def _marks(figure: Estimate | Share, form: str = ".1%") -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:{form}} (too few prompts for an interval)"
    return f"{figure.value:{form}} ({figure.low:{form}} to {figure.high:{form}})"
