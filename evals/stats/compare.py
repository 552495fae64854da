"""Is one checkpoint better than another? Paired differences, their tests, and the verdicts of one page.

Whatever a page calls better, worse, won, lost, gained or of a lower tier is one of its :class:`Hypothesis`, and
:func:`judge` answers all of them as one family: two places that show the same pair read the same answer.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .intervals import clustered_stderr, codes, t_quantile

Key = TypeVar("Key", bound=Hashable)
Verdict = Literal["better", "worse", "no verdict"]
ALPHA = 0.05
POWER = 0.8
_MIN_SEEDS = 3


@dataclass(frozen=True)
class Difference:
    """How much one checkpoint scores above another on the same items.

    Attributes:
        value: Mean of the one minus mean of the other.
        stderr: Its paired standard error, clustered where clusters were given; None with fewer than two clusters.
        low: Lower end of the interval, 95% unless another was asked for; None where nothing supports one.
        high: Upper end.
        p: Two-sided p-value of no difference; 1 where there is nothing to test with.
        n: Items that both have.
        clusters: Clusters of those items.
        test: ``t`` (paired, on clusters), ``mcnemar``, ``sign`` (every cluster differs by the same amount),
            ``seeds`` (of training and items), ``unpaired`` or ``bootstrap``; ``none`` where nothing could be tested.
        df: Degrees of freedom of the standard error.
    """

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    p: float
    n: int
    clusters: int
    test: str
    df: float = 0.0

    def turned(self) -> "Difference":
        """Returns the other minus the one."""
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return replace(self, value=-self.value, low=low, high=high)


@dataclass(frozen=True)
class Comparison:
    """One checkpoint against another, as one of a family of comparisons.

    Attributes:
        difference: The one minus the other, with its own 95% interval and p-value.
        p_adjusted: The p-value by Holm's method over the whole family of comparisons.
        verdict: ``better`` or ``worse`` where ``p_adjusted`` is at most .05, taking into account which way is up.
        smallest: The smallest true difference that this sample would have shown four times in five; None where
            no spread is known.
        higher_is_better: Which way is up.
    """

    difference: Difference
    p_adjusted: float
    verdict: Verdict
    smallest: float | None
    higher_is_better: bool

    def turned(self) -> "Comparison":
        """Returns the other less the one: the same answer, from its side."""
        other: dict[Verdict, Verdict] = {"better": "worse", "worse": "better", "no verdict": "no verdict"}
        return replace(self, difference=self.difference.turned(), verdict=other[self.verdict])


@dataclass(frozen=True)
class Hypothesis:
    """A comparison that a page may answer.

    Attributes:
        difference: What the items say.
        higher_is_better: Which way is up.
        planned: Whether the page asks it by its design, such as how a row stands to the baseline, rather than only
            if a reader picks the two.
    """

    difference: Difference
    higher_is_better: bool = True
    planned: bool = True


def paired_difference(
    a: "ArrayLike",
    b: "ArrayLike",
    clusters: "Sequence[Hashable] | NDArray[Any] | None" = None,
    *,
    level: float = 1 - ALPHA,
) -> Difference:
    """Estimates how much ``a`` scores above ``b``, item by item.

    The standard error is that of the mean of the differences, by cluster (Miller, "Adding error bars to evals" (2024),
    arXiv:2411.00640, section 4.2), the interval and the p-value Student's t as of
    :func:`~.intervals.clustered_stderr`. Items that are all 0 or 1, one to a cluster, are tested by :func:`mcnemar`;
    their interval is Bonett and Price's, "Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data", Journal of Educational and Behavioral Statistics 37 (2012), which has a width where the two
    never differ. Where it holds 0 and McNemar's p-value is below .05 all the same, the p-value is the interval's own.

    Args:
        a: Scores of the one, ``[n]``.
        b: Scores of the other on the same items in the same order, ``[n]``.
        clusters: The cluster of each item, ``[n]``; None takes each by itself.
        level: Of the interval.

    Raises:
        ValueError: Lengths differ, there are no items, or a score is not finite.
    """
    first, second = _scores(a, b, ndim=1)
    differences = first - second
    cluster, count = codes(clusters, len(first))
    value = float(differences.mean())
    stderr, df = clustered_stderr(differences, cluster, count)
    zeros_and_ones = np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all()
    if zeros_and_ones and (count == len(first) or not stderr):
        return _binary(differences, value, stderr, cluster, count, level)
    if stderr is None:
        return Difference(value, None, None, None, 1.0, len(first), count, "none")
    if stderr == 0:
        # Marks on a coarse scale can differ by the same amount on each of a few prompts: they are signs, no more.
        p = mcnemar(count, 0) if value else 1.0
        return Difference(value, 0.0, None, None, p, len(first), count, "sign")
    return replace(from_error(value, stderr, count, df, "t", level), n=len(first))


def _scores(a: "ArrayLike", b: "ArrayLike", ndim: int) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Returns the scores of both, which must be of the same items, and of the same seeds where there are two axes."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != ndim or not first.size:
        raise ValueError(f"needs two scores of each item{' from each seed' if ndim > 1 else ''}, and one or more")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a score is not finite")
    return first, second


def seeded_difference(
    a: "ArrayLike", b: "ArrayLike", clusters: "Sequence[Hashable] | NDArray[Any] | None" = None
) -> Difference:
    """Estimates how much one way to train scores above another, each trained from several seeds, on the same items.

    Both other seeds and other items would have given another difference, and the variance of its mean is the sum of
    what each of the two adds: that of the seeds' mean differences, and that of the items' mean differences, by cluster
    (two-way clustering, Cameron, Gelbach and Miller, "Robust inference with multiway clustering", Journal of Business
    and Economic Statistics 29 (2011), equation 2.3). What their interaction adds is counted in both and not taken off
    again, which errs on the careful side (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1 (2007)).

    Student's quantile is the mean of the two parts' own, weighted by their variances (Cochran and Cox, Experimental
    Designs, 2nd ed., 1957, section 4.14): of differences that are none, at most 5% pass, where Satterthwaite's degrees
    of freedom let 7% through from three seeds. From two even this is too bold, so that they are not tested.

    Args:
        a: Scores of the one, ``[seeds, n]``.
        b: Scores of the other from the same seeds on the same items, ``[seeds, n]``.
        clusters: The cluster of each item, ``[n]``; None takes each by itself.

    Raises:
        ValueError: Shapes differ, there are no items, or a score is not finite.
    """
    differences = np.subtract(*_scores(a, b, ndim=2))
    seeds, n = differences.shape
    value = float(differences.mean())
    cluster, count = codes(clusters, n)
    by_seed, df_seed = clustered_stderr(differences.mean(axis=1), np.arange(seeds), seeds)
    by_item, df_item = clustered_stderr(differences.mean(axis=0), cluster, count)
    parts = [(error**2, df) for error, df in ((by_seed, df_seed), (by_item, df_item)) if error]
    variance = sum(part for part, _ in parts)
    if seeds < _MIN_SEEDS or not variance:
        return Difference(value, None, None, None, 1.0, n, seeds, "none")
    stderr = math.sqrt(variance)
    quantile = sum(part * t_quantile(1 - ALPHA / 2, df) for part, df in parts) / variance
    df = _df_of(quantile, [df for _, df in parts])
    half = quantile * stderr
    return Difference(value, stderr, value - half, value + half, _t_p(value, stderr, df), n, seeds, "seeds", df)


def _df_of(quantile: float, around: Sequence[float]) -> float:
    """Returns the degrees of freedom with a quantile of 97.5% between those of others."""
    from scipy.optimize import brentq

    low, high = min(around), max(around)
    if high - low < 1e-9:
        return low
    found: Any = brentq(lambda df: t_quantile(1 - ALPHA / 2, df) - quantile, low, high)
    return float(found)


def _binary(
    differences: "NDArray[np.float64]",
    value: float,
    stderr: float | None,
    cluster: "NDArray[np.int64]",
    count: int,
    level: float,
) -> Difference:
    """Compares 0/1 items that are independent, or that clusters repeat without any spread between clusters."""
    n = len(differences)
    if count < 2:
        return Difference(value, None, None, None, 1.0, n, count, "none")
    # Without spread between clusters, each counts once: as what it is on the whole.
    signs = differences if count == n else np.sign(np.bincount(cluster, weights=differences, minlength=count))
    wins, losses = int((signs > 0).sum()), int((signs < 0).sum())
    p = mcnemar(wins, losses)
    up, down = (wins + 1) / (count + 2), (losses + 1) / (count + 2)
    spread = math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    half = t_quantile((1 + level) / 2, count - 1) * spread
    low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
    if low <= 0 <= high:  # at the edge the two may disagree, and no verdict should contradict the interval beside it
        p = max(p, _t_p(up - down, spread, count - 1))
    return Difference(value, stderr, min(low, value), max(high, value), p, n, count, "mcnemar", count - 1)


def from_error(
    value: float, stderr: float, clusters: int, df: float, test: str, level: float = 1 - ALPHA
) -> Difference:
    """Returns a difference of which a standard error above zero is known, by Student's t."""
    half = t_quantile((1 + level) / 2, df) * stderr
    return Difference(value, stderr, value - half, value + half, _t_p(value, stderr, df), clusters, clusters, test, df)


def _t_p(value: float, stderr: float, df: float) -> float:
    from scipy.special import stdtr

    return float(2 * stdtr(df, -abs(value) / stderr))


def mcnemar(wins: int, losses: int) -> float:
    """Tests whether two checkpoints solve 0/1 items equally often, by McNemar's test with the mid-p-value.

    McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947). The exact conditional test is a sign test on the items that only one of them solved; its
    mid-p-value is recommended over it and over the chi-squared form by Fagerland, Lydersen and Laake, "The McNemar test
    for binary matched-pairs data: mid-p and asymptotic are better than exact conditional", BMC Medical Research
    Methodology 13:91 (2013), eq. 6 and section "Conclusions".

    Args:
        wins: Items that only the one solved.
        losses: Items that only the other solved.

    Returns:
        The two-sided p-value; 1 where they never differ.
    """
    from scipy.special import bdtr

    total, few = wins + losses, min(wins, losses)
    if wins == losses:
        # Twice the tail holds the middle term twice; mid-p counts half of it once.
        return 1.0 if not total else 1 - math.exp(_log_half_binomial(few, total))
    return float(min(1.0, 2 * bdtr(few, total, 0.5) - math.exp(_log_half_binomial(few, total))))


def _log_half_binomial(k: int, n: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)


def unpaired_difference(a: float, a_stderr: float | None, b: float, b_stderr: float | None, n: int) -> Difference:
    """Estimates a difference from two means and their standard errors alone, where no items can be paired.

    Miller 2024, section 4.1. On the same items it is too wide, seldom too narrow: scores of two checkpoints on an
    item are nearly always positively correlated (section 4.2).

    Args:
        a: Mean of the one.
        a_stderr: Its standard error, or None.
        b: Mean of the other.
        b_stderr: Its standard error, or None.
        n: Items behind the smaller of the two.
    """
    value = a - b
    if a_stderr is None or b_stderr is None or n < 2 or not math.isfinite(value):
        return Difference(value, None, None, None, 1.0, n, n, "none")
    stderr = math.hypot(a_stderr, b_stderr)
    if stderr == 0:  # two means without spread, such as 0 and 1 of a handful: nothing says how far to trust them
        return Difference(value, 0.0, None, None, 1.0, n, n, "none")
    return from_error(value, stderr, n, n - 1, "unpaired")


def holm(p_values: Sequence[float], shares: Sequence[float] | None = None) -> list[float]:
    """Adjusts p-values so that comparing them all with .05 errs anywhere in at most 5% of families.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979),
    section 3, and with shares his weighted form (Benjamini and Hochberg, "Multiple hypotheses testing with weights",
    Scandinavian Journal of Statistics 24 (1997), section 2): whatever the tests' dependence, and never less powerful
    than Bonferroni's correction.

    Args:
        p_values: Of the hypotheses.
        shares: How much of the 5% each starts with, 1 in all, fixed before looking; less than 1 in all where
            hypotheses are not tested at all. None shares alike.

    Returns:
        The adjusted p-values in the order given.
    """
    if shares is None:
        shares = [1 / len(p_values) for _ in p_values]
    adjusted = [1.0] * len(p_values)
    largest, left = 0.0, 1.0
    for index in sorted(range(len(p_values)), key=lambda i: p_values[i] / shares[i]):
        largest = max(largest, min(1.0, left / shares[index] * p_values[index]))
        adjusted[index] = largest
        left -= shares[index]
    return adjusted


def smallest_difference(stderr: float, *, alpha: float = ALPHA, df: float | None = None) -> float:
    """Returns the true difference that a sample with this standard error shows four times in five.

    Miller 2024, section 5: ``(z_{alpha/2} + z_power) SE``; with quantiles of t where degrees of freedom are
    given. A smaller difference may well exist; this sample would mostly have missed it.

    Args:
        stderr: Of the difference.
        alpha: Two-sided level of the test.
        df: Degrees of freedom.
    """
    if df is None:
        from scipy.special import ndtri

        return float(ndtri(1 - alpha / 2) + ndtri(POWER)) * stderr
    return (t_quantile(1 - alpha / 2, df) + t_quantile(POWER, df)) * stderr


def votes_for_verdict(share: float, comparisons: int = 1) -> int:
    """Returns how many wins and losses show, four times in five, that one side wins more than half.

    The sample size of a test of one proportion against a half (Fleiss, Levin and Paik, Statistical Methods for Rates
    and Proportions, 3rd ed., 2003, section 2.5), at the level that a lone difference of a family has to pass.

    Args:
        share: The true share of the better side, above .5 and below 1.
        comparisons: How many comparisons there are.
    """
    from scipy.special import ndtri

    tail, found = float(ndtri(1 - ALPHA / comparisons / 2)), float(ndtri(POWER))
    return math.ceil(((tail * 0.5 + found * math.sqrt(share * (1 - share))) / (share - 0.5)) ** 2)


def verdict(value: float, p_adjusted: float, *, higher_is_better: bool = True) -> Verdict:
    """Says better or worse where the adjusted p-value is at most .05, else nothing.

    Both directions share one family, so that "better" alone is wrong half as often.
    """
    if not p_adjusted <= ALPHA or value == 0:
        return "no verdict"
    return "better" if (value > 0) == higher_is_better else "worse"


def judge(questions: Mapping[Key, Hypothesis], untested: int = 0) -> dict[Key, Comparison]:
    """Answers all questions of a page as one family: any wrong "better" or "worse" stands on at most 5% of pages.

    The planned questions share one half of the 5%, all others the other half, so that the many pairs that nobody asked
    about cost those that the page is about little; where there are only planned ones they have all of it. What an
    answered question had passes on to those that are left (:func:`holm`). The smallest difference is at the level at
    which the question starts, since a lone difference has to pass it.

    Args:
        questions: By whatever tells them apart.
        untested: How many more the page could have asked: unplanned, not worked out, and with their share all the same.

    Returns:
        An answer for each question, in the order given.
    """
    planned = sum(question.planned for question in questions.values())
    sizes = {True: planned, False: len(questions) - planned + untested}
    kinds = sum(size > 0 for size in sizes.values())
    shares = [1 / (kinds * sizes[question.planned]) for question in questions.values()]
    adjusted = holm([question.difference.p for question in questions.values()], shares)
    return {
        key: Comparison(
            asked.difference,
            p,
            verdict(asked.difference.value, p, higher_is_better=asked.higher_is_better),
            _smallest(asked.difference, ALPHA * share),
            asked.higher_is_better,
        )
        for (key, asked), share, p in zip(questions.items(), shares, adjusted, strict=True)
    }


def _smallest(difference: Difference, alpha: float) -> float | None:
    stderr = difference.stderr
    if difference.low is None or difference.high is None or stderr is None:
        return None
    df = difference.df
    if df <= 0:
        return None
    if stderr == 0:  # two that never differ: the interval still has a width, and so a standard error
        stderr = (difference.high - difference.low) / (2 * t_quantile(0.975, df))
    return smallest_difference(stderr, alpha=alpha, df=df)
