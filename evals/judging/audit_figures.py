"""The figures of the audit, each a function of the judgments or battles of one judge."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..stats.intervals import Estimate, kappa, mean_estimate, wilson
from .judgments import Battle, Judgment, battles

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TIE = 1e-9
_CONTRADICTED = 2  # where 1 and -1 are a winner and 0 is a tie
_TAILS = (0.05, 0.95)  # lengths beyond these percentiles count as these: one answer of 1 MB must not be the slope


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


def share(count: int, n: int) -> Share | None:
    """Returns a share with its interval, or None of nothing."""
    if not n:
        return None
    interval = wilson(count, n)
    return Share(count, n, interval.low, interval.high)


@dataclass(frozen=True)
class Agreement:
    """How far two judges agree on win, tie or loss, over the battles that both have decided.

    What a judge says of both orders is joined by net votes, as JudgeBench does (Tan et al. 2024, arXiv:2410.12784): a
    win and a tie are a win. A judge that names another winner when the order is turned agrees with nobody, also not
    with a tie, as Auto-J counts it (Li et al. 2023, arXiv:2310.05470).

    Attributes:
        other: The second judge's name; ``human`` for votes.
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
class Slope:
    """A regression slope and its unit.

    Attributes:
        estimate: The change per standard deviation.
        sd: That standard deviation, in characters.
    """

    estimate: Estimate
    sd: float


def mean_share(values: Sequence[float], clusters: Sequence[str]) -> Estimate | None:
    """Returns the mean of values in [0, 1] with an interval clustered by prompt, or None of nothing."""
    return mean_estimate(values, clusters, unit=True) if values else None


def first_wins(judgments: Sequence[Judgment]) -> Estimate | None:
    """Returns how often what is shown first wins, the two orders weighed alike and ties half.

    With both orders of every pair this is .5 for a judge that looks only at the answers, whichever model is better;
    with one order each, drawn by chance, it is so on average. None where only one order was judged.
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


def length_slope(
    preferences: Sequence[float], lengths: Sequence[float], clusters: Sequence[str], groups: Sequence[str]
) -> Slope | None:
    """Regresses preferences on lengths within groups, in units of the lengths' standard deviation.

    Least squares with an intercept for each group (a linear probability model, so that the slope is a change of
    probability) and standard errors clustered by prompt (Liang and Zeger, "Longitudinal data analysis using
    generalized linear models", Biometrika 73 (1986)): the influence of each row on the slope is averaged.

    Args:
        preferences: The judge's verdicts, ``[n]``.
        lengths: Characters of the candidate's answer, or their difference to the opponent's, ``[n]``.
        clusters: The prompt of each, ``[n]``.
        groups: The pair of models, ``[n]``: that longer answers come from the better model is no bias.

    Returns:
        None where lengths do not differ.
    """
    if len(preferences) < 3:
        return None
    y, x = np.array(preferences, dtype=np.float64), np.array(lengths, dtype=np.float64)
    x = _centred(np.clip(x, *np.quantile(x, _TAILS)), groups)
    y = _centred(y, groups)
    sd = float(x.std(ddof=1))
    if sd <= _TIE:
        return None
    x /= sd
    slope = float(x @ y / (x @ x))
    influence = slope + len(x) * x * (y - slope * x) / (x @ x)
    return Slope(mean_estimate(influence, clusters), sd)


def _centred(values: "NDArray[np.float64]", groups: Sequence[str]) -> "NDArray[np.float64]":
    """Takes each group's mean from its values."""
    _, index = np.unique(np.array(groups), return_inverse=True)
    return values - (np.bincount(index, weights=values) / np.bincount(index))[index]


def bounds(judgments: Sequence[Judgment], fought: Sequence[Battle]) -> tuple[float, float] | None:
    """Returns the win rate if every judgment without a verdict had gone against the candidate, and for it."""
    if all(judgment.preference is not None for judgment in judgments):
        preferences = [battle.preference for battle in fought if battle.preference is not None]
        rate = sum(preferences) / len(preferences) if preferences else None
        return None if rate is None else (rate, rate)
    found = []
    for verdict in (0.0, 1.0):
        filled = [j if j.preference is not None else replace(j, preference=verdict) for j in judgments]
        preferences = [battle.preference for battle in battles(filled) if battle.preference is not None]
        if not preferences:
            return None
        found.append(sum(preferences) / len(preferences))
    return found[0], found[1]


def verdicts(found: Sequence[Battle]) -> dict[tuple[str, ...], tuple[int, str]]:
    """Returns who won each decided battle, whichever of the two was called the candidate.

    Returns:
        From prompt set, prompt, sample and the two models in order to 1, 0 or -1 for the first of them, or 2 where the
        judge contradicted itself, and the prompt.
    """
    won: dict[tuple[str, ...], tuple[int, str]] = {}
    for battle in found:
        if battle.net is None:
            continue
        turn = 1 if battle.candidate <= battle.opponent else -1
        models = sorted((battle.candidate, battle.opponent))
        verdict = _CONTRADICTED if battle.flipped else turn * battle.net
        won[battle.task, battle.prompt_key, str(battle.sample), *models] = (verdict, battle.prompt_key)
    return won


def agreement(
    name: str, own: dict[tuple[str, ...], tuple[int, str]], other: dict[tuple[str, ...], tuple[int, str]]
) -> Agreement | None:
    """Compares two judges' verdicts over what both have decided.

    Returns:
        None where that is nothing, or where both always said the same one thing, which chance would too.
    """
    common = [key for key in own if key in other]
    if not common:
        return None
    mine, theirs = ([judge[key][0] for key in common] for judge in (own, other))
    theirs = [-_CONTRADICTED if verdict == _CONTRADICTED else verdict for verdict in theirs]  # nobody shares these
    found = kappa(mine, theirs, [own[key][1] for key in common])
    if found.kappa is None:
        return None
    figure = Estimate(found.kappa, None, found.low, found.high, found.n, found.clusters)
    return Agreement(name, found.n, mine.count(_CONTRADICTED), found.agreement.value, found.chance, figure)


def null_wins(found: Sequence[Battle], nulls: frozenset[str]) -> Estimate | None:
    """Returns how often answers that say nothing won against answers that may."""
    rates, prompts = [], []
    for battle in found:
        if battle.preference is None or (battle.candidate in nulls) == (battle.opponent in nulls):
            continue
        rates.append(battle.preference if battle.candidate in nulls else 1 - battle.preference)
        prompts.append(battle.prompt_key)
    return mean_share(rates, prompts)
