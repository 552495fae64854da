"""Win rates against one opponent: raw, and as they would be if both answered at the same length.

All are shares in [0, 1]. The units of resampling are prompts, since battles that share one are not independent.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..sequences import grouped
from .bootstrap import estimate
from .classification import sigmoid
from .intervals import Estimate, Floats, codes, mean_estimate, widened

Clusters = Sequence[Hashable] | NDArray[Any] | None

DRAWS = 1000
STRENGTH = 1e4
"""C of :func:`fit` where there are no anchors: a penalty too weak to be seen, which keeps coefficients finite."""
_CELLS = 1 << 16  # weights at a time: the arrays of one step then stay in the cache
_STEPS, _SWEEPS, _SHORTEST = 60, 200, 1e-12
_TOLERANCE = 1e-10
MIN_PROMPTS = 30
"""With fewer prompts :func:`rates` gives no length-controlled figure: ten for each of up to three coefficients."""
_OVERLAP = 0.05  # of the battles must lie on either side of equal length


@dataclass(frozen=True)
class Battle:
    """What one judge made of two answers to one prompt.

    Attributes:
        judge: The judge's name.
        judge_version: Its version.
        task: The prompt set.
        prompt_key: The prompt: battles that share it are not independent, so it is the cluster of every interval.
        prompt_id: Its id.
        category: Its category.
        sample: Which of the candidate's answers.
        candidate: Model hash of the candidate.
        opponent: Model hash of the other.
        candidate_length: Characters.
        opponent_length: Characters.
        preference: The candidate's, in [0, 1]: within each order the mean of the repeats, then the mean of the orders,
            so that a verdict that turns with the order is a tie. None if an order that was asked gave no verdict.
        flipped: Whether the orders named different winners; None with one order, or where one gave no verdict.
        judged: Judgments with a verdict.
        asked: Judgments in all.
        net: Who has the votes of the orders together, as JudgeBench counts (Tan et al. 2024, arXiv:2410.12784): 1 the
            candidate, -1 the other, 0 neither. A win and a tie are a win here, which ``preference`` makes a tie. None
            where an order gave no verdict.
    """

    judge: str
    judge_version: str
    task: str
    prompt_key: str
    prompt_id: str
    category: str | None
    sample: int
    candidate: str
    opponent: str
    candidate_length: int
    opponent_length: int
    preference: float | None
    flipped: bool | None
    judged: int
    asked: int
    net: int | None = None


@dataclass(frozen=True)
class WinCounts:
    """Battles by outcome.

    Attributes:
        wins: Preference above .5.
        losses: Below.
        draws: Exactly .5.
        total: All of them.
    """

    wins: int
    losses: int
    draws: int
    total: int


@dataclass(frozen=True)
class WinRates:
    """One candidate against one opponent by one judge on one prompt set.

    Attributes:
        raw: Mean preference of the battles with a verdict.
        counts: Those battles by outcome.
        controlled: The length-controlled win rate; None where the battles cannot tell it.
        note: Why they cannot.
        missing: Battles without a verdict.
        worst: The raw win rate if all of those were lost (:func:`bounds`).
        best: If they were won.
    """

    raw: Estimate
    counts: WinCounts
    controlled: Estimate | None
    note: str | None
    missing: int
    worst: float
    best: float


def counts(preferences: "ArrayLike") -> WinCounts:
    """Counts wins, losses and draws, as AlpacaEval's leaderboards do.

    Raises:
        ValueError: There are none, or one lies outside [0, 1].
    """
    values = _preferences(preferences)
    wins, losses = int((values > 0.5).sum()), int((values < 0.5).sum())
    draws = len(values) - wins - losses
    return WinCounts(wins, losses, draws, len(values))


def win_rate(preferences: "ArrayLike", clusters: "Clusters" = None) -> Estimate:
    """Returns the mean preference.

    Without clusters the standard error is AlpacaEval's (Li et al., ``alpaca_eval``, ``describe_head2head``): the
    deviation with divisor n - 1 over the root of n. With them it is :func:`~.intervals.clustered_stderr`.

    Args:
        preferences: Of the candidate, in [0, 1], ``[n]``.
        clusters: The prompt of each battle, ``[n]``.

    Raises:
        ValueError: There are none, or one lies outside [0, 1].
    """
    return mean_estimate(_preferences(preferences), clusters, unit=True)


def length_controlled(
    preferences: "ArrayLike",
    delta_lengths: "ArrayLike",
    difficulty: "ArrayLike | None" = None,
    clusters: "Clusters" = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Predicts the win rate that equally long answers would have.

    Dubois et al., "Length-controlled AlpacaEval: a simple way to debias automatic evaluators" (2024),
    arXiv:2404.04475, section 3: ``logit p = a tanh(length / sd) + b difficulty + c``, predicted with the first term
    left out. AlpacaEval's own recipe has rewritten baselines as anchors and an L1 penalty chosen by cross-validation;
    ``benchmarks/published`` adds them to :func:`fit` and comes to the published figures.

    Own suites have no anchors. Then there is no penalty: it would draw ``c`` to 0 and so the win rate to 50%, by .05
    points with AlpacaEval's 805 prompts but by several with 50. And only battles on both sides of equal length tell
    what happens there (:func:`rates` asks for them); without them the figure is an extrapolation. The difficulty
    matters: where the opponent answers briefly is also where it is easy to beat. :func:`pool_difficulty` estimates it.

    A battle without a verdict (NaN) is not fitted, but its length counts in the scale of lengths and its prompt in the
    mean of the predictions, as with AlpacaEval: what the judge could not read is no easier or harder for that.

    The interval and the standard error are those of the prompt-cluster bootstrap, refitted on each resample from where
    the first fit ended, with the scale of lengths as first found. (AlpacaEval's published ``lc_standard_error`` is the
    deviation of predicted preferences over the root of n, which knows nothing of the fit.)

    Args:
        preferences: Of the candidate, in [0, 1], NaN without a verdict, ``[n]``.
        delta_lengths: Characters of its answer less those of the opponent's, ``[n]``.
        difficulty: Of each prompt, joined by its hash, ``[n]``; None leaves the term out.
        clusters: The prompt of each battle, ``[n]``.
        draws: Resamples; 0 for no interval.
        seed: Of the resamples.

    Raises:
        ValueError: Lengths of arrays differ, or a value is out of range.
    """
    values, lengths = np.asarray(preferences, dtype=np.float64), np.asarray(delta_lengths, dtype=np.float64)
    judged = ~np.isnan(values)
    _preferences(values[judged])
    hard = None if difficulty is None else np.asarray(difficulty, dtype=np.float64)
    for part in (lengths, *(() if hard is None else (hard,))):
        if part.shape != values.shape or not np.isfinite(part).all():
            raise ValueError("needs a finite length and difficulty for each preference")
    cluster, count = codes(clusters, len(values))
    spread = float(lengths.std(ddof=1)) if len(values) > 1 else 0.0
    scaled = np.tanh(lengths / spread) if spread > 0 else np.zeros_like(lengths)
    terms = [scaled, *(() if hard is None else (hard,)), np.ones(len(values))]
    features = np.stack(terms, axis=1)
    fitted, labels = features[judged], values[judged]
    first = fit(fitted, labels, np.ones((1, len(labels))), STRENGTH, np.zeros((1, features.shape[1])))

    def figures(weights: "Floats") -> "dict[str, Floats]":
        start = np.broadcast_to(first, (len(weights), first.shape[1]))
        found = fit(fitted, labels, weights[:, judged], STRENGTH, start)
        return {"rate": at_equal_length(found[:, 1:], features[:, 1:], weights)}

    found = estimate(figures, len(values), seed=seed, draws=draws if count > 1 else 0, groups=cluster)["rate"]
    prompts = len(np.unique(cluster[judged]))
    low, high = widened(found.value, found.low, found.high, prompts)
    if low is not None and high is not None:
        low, high = max(0.0, low), min(1.0, high)
    return replace(found, low=low, high=high, n=len(labels), clusters=prompts)


def pool_difficulty(others: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Estimates how far each prompt favours the opponent's challengers, from what others than the candidate got there.

    The mean of their standardised residuals, ``(preference - mean) / sqrt(mean (1 - mean))``. AlpacaEval's difficulties
    come from a joint fit of over a hundred models instead (Dubois et al. 2024, section 3). On five of its models, with
    no anchors, this brings the mean distance to the published figures from 5.7 points down to 1.5
    (``benchmarks/published``). Where all answer alike in length, prompt by prompt, it takes on a part of the effect of
    length.

    Args:
        others: For each of the others, its preference by prompt, against the same opponent by the same judge.

    Returns:
        A number by prompt, of all prompts that one of them answered; higher is easier to win. Empty if nobody's
        preferences vary.
    """
    residuals: dict[str, list[float]] = {}
    for preferences in others:
        mean = math.fsum(preferences.values()) / max(1, len(preferences))
        if 0 < mean < 1:
            scale = math.sqrt(mean * (1 - mean))
            for prompt, preference in preferences.items():
                residuals.setdefault(prompt, []).append((preference - mean) / scale)
    return {prompt: math.fsum(found) / len(found) for prompt, found in residuals.items()}


def all_rates(battles: Sequence[Battle], *, draws: int) -> dict[str, WinRates]:
    """Sums up every candidate of one opponent, the difficulty of a prompt being what the other candidates got there.

    Args:
        battles: By one judge, on one prompt set, with one opponent.
        draws: As of :func:`rates`.

    Returns:
        By the candidate's weights hash, in order of first appearance; without those that no battle decided.
    """
    groups = grouped(battles, lambda battle: battle.candidate)
    means = {candidate: _by_prompt(group) for candidate, group in groups.items()}
    found = {}
    for candidate, group in groups.items():
        difficulty = pool_difficulty([mean for other, mean in means.items() if other != candidate])
        known = {battle.prompt_key: difficulty.get(battle.prompt_key, 0.0) for battle in group} if difficulty else None
        summed = rates(group, known, draws=draws)
        if summed is not None:
            found[candidate] = summed
    return found


def _by_prompt(battles: list[Battle]) -> dict[str, float]:
    decided = ((battle.prompt_key, battle.preference) for battle in battles if battle.preference is not None)
    found = grouped(decided, lambda pair: pair[0])
    return {prompt: math.fsum(value for _, value in pairs) / len(pairs) for prompt, pairs in found.items()}


def rates(
    battles: Sequence[Battle],
    difficulty: Mapping[str, float] | None = None,
    *,
    draws: int = DRAWS,
) -> WinRates | None:
    """Sums up battles of one candidate with one opponent.

    Args:
        battles: By one judge, on one prompt set.
        difficulty: Of each prompt, by :attr:`Battle.prompt_key`, such as :func:`pool_difficulty` gives; used if every
            prompt is there.
        draws: Resamples for the length-controlled figure; 0 for no interval.

    Returns:
        None where no battle has a verdict.
    """
    # The bootstrap's draws depend on the order of rows, and the order of judgments in a file on who answered first.
    ordered = sorted(battles, key=lambda battle: (battle.prompt_key, battle.sample))
    decided = [(battle, battle.preference) for battle in ordered if battle.preference is not None]
    if not decided:
        return None
    preferences = [preference for _, preference in decided]
    prompts = [battle.prompt_key for battle, _ in decided]
    lengths = [battle.candidate_length - battle.opponent_length for battle, _ in decided]
    note, controlled = _cannot_control(len(set(prompts)), preferences, lengths), None
    if note is None:
        every = [battle.prompt_key for battle in ordered]
        known = None if difficulty is None else [difficulty.get(prompt, math.nan) for prompt in every]
        hard = known if known is not None and all(map(math.isfinite, known)) else None
        values = [math.nan if battle.preference is None else battle.preference for battle in ordered]
        deltas = [battle.candidate_length - battle.opponent_length for battle in ordered]
        controlled = length_controlled(values, deltas, hard, every, draws=draws)
    missing = len(battles) - len(decided)
    worst, best = bounds(preferences, missing)
    return WinRates(
        raw=win_rate(preferences, prompts),
        counts=counts(preferences),
        controlled=controlled,
        note=note,
        missing=missing,
        worst=worst,
        best=best,
    )


def bounds(values: Sequence[float], missing: int, low: float = 0.0, high: float = 1.0) -> tuple[float, float]:
    """Returns the mean if every value that is missing were the least, and if it were the greatest.

    Manski, "Nonparametric bounds on treatment effects", American Economic Review 80 (1990).
    """
    total, count = math.fsum(values), len(values) + missing
    return (total + missing * low) / count, (total + missing * high) / count


def _cannot_control(prompts: int, preferences: list[float], lengths: list[int]) -> str | None:
    """Says why these battles do not tell what happens at equal length, or nothing."""
    if prompts < MIN_PROMPTS:
        return f"{prompts} prompts are too few to control for length; it takes {MIN_PROMPTS}"
    longer, shorter = sum(length >= 0 for length in lengths), sum(length <= 0 for length in lengths)
    if min(longer, shorter) < _OVERLAP * len(lengths):
        side = "shorter" if longer < shorter else "longer"
        return f"{max(longer, shorter)} of {len(lengths)} answers are {side}: no telling what equal lengths would do"
    # Such verdicts have no maximum of the likelihood: the fit would be any figure between 0 and 1.
    pairs = zip(preferences, lengths, strict=True)
    apart = {(2 * preference - 1) * (1 if length > 0 else -1) for preference, length in pairs if length}
    if apart in ({1.0}, {-1.0}):
        side = "longer" if 1.0 in apart else "shorter"
        return f"the {side} answer won every time: no telling what equal lengths would do"
    return None


def _preferences(values: "ArrayLike") -> "Floats":
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not len(found) or not ((found >= 0) & (found <= 1)).all():
        raise ValueError("needs one preference or more, each in [0, 1]")
    return found


def fit(features: "Floats", labels: "Floats", weights: "Floats", strength: float, start: "Floats") -> "Floats":
    """Fits the regression once for each row of weights.

    Minimises ``sum_j |w_j| + C sum_i weight_i loss(label_i, w x_i)`` (liblinear's objective, Fan et al., "LIBLINEAR",
    JMLR 9 (2008), eq. 4 of appendix A) by proximal Newton steps with halving (Lee, Sun and Saunders, "Proximal
    Newton-type methods for minimizing composite functions", SIAM Journal on Optimization 24 (2014), algorithm 1), to
    the optimum rather than to liblinear's loose tolerance.

    Args:
        features: ``[n, k]``, with few features.
        labels: In [0, 1], ``[n]``.
        weights: ``[fits, n]``.
        strength: C; the larger, the weaker the penalty.
        start: Where to start, ``[fits, k]``.

    Returns:
        The coefficients, ``[fits, k]``.
    """
    chunk = max(1, _CELLS // len(labels))
    parts = [
        _fit(features, labels, weights[at : at + chunk], 1 / strength, start[at : at + chunk])
        for at in range(0, len(weights), chunk)
    ]
    return np.concatenate(parts)


def _fit(features: "Floats", labels: "Floats", weights: "Floats", penalty: float, start: "Floats") -> "Floats":
    """Fits a few at once; the penalty is 1 / C on the loss's own scale."""
    k = features.shape[1]
    products = (features[:, :, None] * features[:, None, :]).reshape(-1, k * k)
    found, active = start.copy(), np.arange(len(start))
    w, weight, eta = start, weights, start @ features.T
    objective = _loss(eta, labels, weight) + penalty * np.abs(w).sum(axis=1)
    for _ in range(_STEPS):
        share = sigmoid(eta)
        gradient = (weight * (share - labels)) @ features
        hessian = ((weight * share * (1 - share)) @ products).reshape(-1, k, k)
        target = _proximal_step(w, gradient, hessian, penalty)
        moved, eta, objective = _halve(features, labels, weight, penalty, w, target, objective)
        found[active] = moved
        going = np.abs(moved - w).max(axis=1) > _TOLERANCE * (1 + np.abs(w).max(axis=1))
        if not going.any():
            break
        active, w, weight, eta, objective = active[going], moved[going], weight[going], eta[going], objective[going]
    return found


def _proximal_step(w: "Floats", gradient: "Floats", hessian: "Floats", penalty: float) -> "Floats":
    """Minimises the quadratic model plus the penalty, for each fit.

    Where no coefficient is 0 or changes its sign the penalty is linear, and a linear system gives the minimum; near it
    that is nearly always so. The others are left to coordinate descent.
    """
    signs = np.sign(w)
    ridged = hessian + 1e-12 * np.eye(w.shape[1])
    target = w - np.linalg.solve(ridged, (gradient + penalty * signs)[:, :, None])[:, :, 0]
    kept = ((np.sign(target) == signs) & (signs != 0)).all(axis=1)
    rest = np.flatnonzero(~kept)
    if len(rest):
        target[rest] = _descend(w[rest], gradient[rest], hessian[rest], penalty)
    return target


def _descend(w: "Floats", gradient: "Floats", hessian: "Floats", penalty: float) -> "Floats":
    """Does the same by coordinate descent."""
    k = w.shape[1]
    # A feature that is 0 everywhere has no curvature; the floor leaves its coefficient at 0.
    curvature = np.maximum(np.einsum("bii->bi", hessian), 1e-12)
    target = w.copy()
    for _ in range(_SWEEPS):
        before = target.copy()
        for j in range(k):
            slope = gradient[:, j] + np.einsum("bi,bi->b", hessian[:, j], target - w)
            free = target[:, j] - slope / curvature[:, j]
            target[:, j] = np.sign(free) * np.maximum(np.abs(free) - penalty / curvature[:, j], 0.0)
        if np.abs(target - before).max() <= 1e-10 * (1 + np.abs(target).max()):
            break
    return target


def _halve(
    features: "Floats", labels: "Floats", weight: "Floats", penalty: float, w: "Floats", target: "Floats", was: "Floats"
) -> "tuple[Floats, Floats, Floats]":
    """Shortens the steps that would not go down; returns where they end, with the predictor and objective there."""
    step = np.ones(len(w))
    while True:
        trial = w + step[:, None] * (target - w)
        eta = trial @ features.T
        now = _loss(eta, labels, weight) + penalty * np.abs(trial).sum(axis=1)
        worse = (now > was + 1e-12 * np.maximum(1.0, np.abs(was))) & (step > _SHORTEST)
        if not worse.any():
            return trial, eta, now
        step[worse] /= 2


def _loss(eta: "Floats", labels: "Floats", weight: "Floats") -> "Floats":
    """Returns the weighted soft log-loss of each fit, ``[fits]``."""
    return np.einsum("bn,bn->b", weight, np.maximum(eta, 0) - labels * eta + np.log1p(np.exp(-np.abs(eta))))


def at_equal_length(coefficients: "Floats", others: "Floats", weights: "Floats") -> "Floats":
    """Returns the mean predicted preference where answers are equally long, ``[fits]``.

    Args:
        coefficients: Of all features but length, ``[fits, k - 1]``.
        others: Those features, ``[n, k - 1]``.
        weights: How often each row counts, ``[fits, n]``.
    """
    chunk = max(1, _CELLS // len(others))
    parts = []
    for at in range(0, len(coefficients), chunk):
        weight = weights[at : at + chunk]
        share = sigmoid(coefficients[at : at + chunk] @ others.T)
        parts.append(np.einsum("bn,bn->b", weight, share) / weight.sum(axis=1))
    return np.concatenate(parts)
