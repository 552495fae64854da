"""Intervals for scores, each with its source. Nothing here invents an interval that the record does not support."""

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..records import Metric

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

Z95 = 1.959963984540054
"""The 97.5% quantile of the standard normal: two-sided 95%."""


@dataclass(frozen=True)
class Interval:
    """A 95% confidence interval in the metric's own unit.

    Attributes:
        low: Lower end.
        high: Upper end.
        method: ``"wilson"``, ``"bounded"``, ``"log"``, ``"normal"`` or ``"constant"``, as of :func:`interval`; or the
            name of what gave the ends that a record has.
    """

    low: float
    high: float
    method: str


def wilson(successes: float, n: int) -> Interval:
    """Returns the Wilson score interval of a proportion.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), p. 209;
    recommended over the Wald interval by Brown, Cai and DasGupta, "Interval estimation for a binomial proportion",
    Statistical Science 16 (2001), section 3. It stays inside [0, 1] and has a width at 0 and n successes, where
    the Wald interval has none.

    Raises:
        ValueError: ``n`` is not positive, or ``successes`` lies outside 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    low, high = wilson_ends(successes / n, n, Z95)
    return Interval(low, high, "wilson")


def wilson_ends(share: float, size: float, z: float) -> tuple[float, float]:
    """Returns the ends of :func:`wilson` for a share of a sample whose effective size need not be whole."""
    denominator = 1 + z * z / size
    centre = (share + z * z / (2 * size)) / denominator
    half = z / denominator * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    # At the ends the formula gives exactly 0 and 1; float rounding must not push past them.
    return 0.0 if share == 0 else max(0.0, centre - half), 1.0 if share == 1 else min(1.0, centre + half)


def normal(value: float, stderr: float, z: float = Z95) -> Interval:
    """Returns ``value ± z stderr``, the interval of a mean by the central limit theorem (Miller 2024, section 2.1)."""
    return Interval(value - z * stderr, value + z * stderr, "normal")


def binary_successes(value: float, stderr: float, n: int) -> int | None:
    """Returns how many of ``n`` items scored 1 if the record can only come from 0/1 items, else None.

    The mean of ``n`` values in [0, 1] has the binomial standard error if and only if every value is 0 or 1 (then
    and only then is the mean of the squares the mean). Both ``n`` and ``n - 1`` are accepted as the divisor:
    lm-eval uses the latter.
    """
    if n < 1 or not 0 <= value <= 1:
        return None
    successes = round(value * n)
    # 1e-6 absorbs float sums; a value rounded for print (4 digits) passes only while it still names one count.
    if abs(value * n - successes) > 1e-6 * n:
        return None
    spread = value * (1 - value)
    divisors = (n, n - 1) if n > 1 else (n,)
    matches = any(math.isclose(stderr, math.sqrt(spread / d), rel_tol=1e-3, abs_tol=1e-9) for d in divisors)
    return successes if matches else None


@dataclass(frozen=True)
class ValueRange:
    """Where a metric's values can lie.

    Attributes:
        low: The least value, if there is one.
        high: The greatest.
        of_items: Whether the figure is a mean of items that lie there too, and no statistic of all of them at once.
    """

    low: float | None = None
    high: float | None = None
    of_items: bool = True


_SCALES = (
    (r".*perplexity", ValueRange(1.0)),
    (r"bits_per_(byte|token)|entropy_.*|tokens_per_byte|nll|.*loss|r?mse|mae|ter", ValueRange(0.0)),
    (r"mcc|matthews_corrcoef|.*pearson.*|.*spearman.*", ValueRange(-1.0, 1.0, of_items=False)),
    (r"kappa|gap", ValueRange(-1.0, 1.0)),
    (r"centred_accuracy", ValueRange(None, 1.0, of_items=False)),
    (r"brier(_score)?", ValueRange(0.0, 2.0)),
    (r"bleu|chrf", ValueRange(0.0, 100.0, of_items=False)),
    (r"acc_(worst|spread)", ValueRange(0.0, 1.0, of_items=False)),
    (r"ece|(roc_)?auc|.*_(macro|micro|weighted)|f1_score", ValueRange(0.0, 1.0, of_items=False)),
    (
        r"(.*_)?(acc|em|f1)(_.*)?|accuracy|exact_match|precision|recall|win_rate.*|.*_rate|(pass|maj)@\d+",
        ValueRange(0.0, 1.0),
    ),
    (r"pct_\w+|true_mass|.*_refused|unparsed|gender_parity", ValueRange(0.0, 1.0)),
    (r"rating|reward|margin|gold|characters", ValueRange()),
)


LOWER_IS_BETTER = frozenset({
    "ppl", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "loss", "brier_score", "ter", "wer",
    "likelihood_difference", "likelihood_diff", "pct_stereotype", "brier", "ece", "mse", "nll",
})  # fmt: skip
"""Metrics by their names: ours, and those of records that do not say which way is up."""
_SHARES = re.compile(
    r"(?!centred_)(.*_)?acc(uracy)?(_.*)?|exact_match(_.*)?|(pass|maj)@\d+(_.*)?|win_rate.*|pct_.*|unparsed|.*_refused"
)
_MOST_REACH = 300.0  # of an interval on the log scale: beyond it nothing is said


def scale_of(metric: str, detail: Mapping[str, Any] | None = None) -> ValueRange | None:
    """Returns the scale of a metric by its name, or None of one that nobody here knows.

    Args:
        metric: Its name, with lm-eval's filter or a class behind it or without.
        detail: Of the score, which holds the scale of a judge's marks.
    """
    name = re.split("[,/]", metric)[0]
    # A rule's values and rewards are said to have a scale too, but nothing keeps them there: they have no bounds.
    if name == "rating" and detail and detail.get("bounds"):
        match detail.get("scale"):
            case [int() | float() as low, int() | float() as high] if low < high:
                return ValueRange(float(low), float(high))
    return next((scale for pattern, scale in _SCALES if re.fullmatch(pattern, name)), None)


def is_share(metric: str) -> bool:
    """Says whether a metric is by its name a share of items, or a mean or spread of such: they are read in per cent."""
    return _SHARES.fullmatch(re.split("[,/]", metric)[0]) is not None


def interval(
    value: float | None,
    stderr: float | None,
    n: int | None,
    scale: ValueRange | None = None,
    given: tuple[float | None, float | None, str] = (None, None, ""),
) -> Interval | None:
    """Returns the 95% interval that a record supports: the one owner of how far a figure is to be trusted.

    - Ends that the record gives (a bootstrap's) stand, if they have a width and keep to the scale.
    - 0/1 items: Wilson's (:func:`wilson`).
    - A scale with two ends: Wilson's at the effective sample size ``m (1 - m) / SE^2`` of the mean ``m`` as a share of
      the scale, with Student's t (Dean and Pagano 2015, as of :func:`mean_estimate`); it never leaves the scale.
    - A scale with a least value alone, such as perplexity: normal on the log scale, ``value exp(± t SE / value)``, by
      the delta method (Casella and Berger, Statistical Inference, 2nd ed., 2002, section 5.5.4).
    - Other means: ``value ± t SE``; 1.96 for t where no number of items is known.
    - Items that are all the same on a scale with two ends: :func:`constant_ends`.

    None where the value or its standard error is missing or not finite, where there is no second item to have estimated
    a spread from, and where nothing bounds what equal items may hide.

    Args:
        value: The figure.
        stderr: Its standard error.
        n: Items.
        scale: As of :func:`scale_of`; None where nothing is known of it.
        given: The ends that the record itself has, and the name of their method.
    """
    if value is None or not math.isfinite(value) or (n is not None and n < 2):
        return None
    known = scale or ValueRange()
    least, most = (-math.inf if known.low is None else known.low), (math.inf if known.high is None else known.high)
    low, high, method = given
    if low is not None and high is not None and least <= low < high <= most:
        return Interval(low, high, method)
    if stderr is None or not math.isfinite(stderr) or stderr < 0:
        return None
    t = Z95 if n is None else t_quantile(0.975, n - 1)
    if n is not None and known.of_items and (scale is None or (least, most) == (0.0, 1.0)):
        successes = binary_successes(value, stderr, n)
        if successes is not None:
            return wilson(successes, n)
    inside = least <= value <= most
    if stderr == 0:
        constant = inside and known.of_items and n is not None and math.isfinite(most - least)
        return Interval(*constant_ends(value, n or 0, least, most), "constant") if constant else None
    if not inside:
        return normal(value, stderr, t)
    if math.isfinite(most - least):
        return Interval(*bounded_ends(value, stderr, least, most, t), "bounded")
    if math.isinf(least):
        return normal(value, stderr, t)
    reach = t * stderr / value if value else math.inf
    ends = (max(least, value * math.exp(-reach)), value * math.exp(reach)) if reach < _MOST_REACH else None
    return Interval(*ends, "log") if ends else None


def bounded_ends(value: float, stderr: float, low: float, high: float, t: float) -> tuple[float, float]:
    """Returns the ends of a mean's interval within a scale: :func:`wilson_ends` of its share of the scale."""
    if not low < value < high:  # of no mean of such items: an influence, a bootstrapped end
        return max(low, value - t * stderr), min(high, value + t * stderr)
    width = high - low
    share = (value - low) / width
    ends = wilson_ends(share, share * (1 - share) / (stderr / width) ** 2, t)
    return low + width * ends[0], low + width * ends[1]


def constant_ends(value: float, n: int, low: float, high: float) -> tuple[float, float]:
    """Returns how far the mean may lie from ``n`` items that are all the same, on a scale with two ends.

    If other values had a share q of the population, none would be seen with a probability of ``(1 - q)^n``; so with 95%
    confidence q is at most ``1 - .05^(1/n)`` (Clopper and Pearson 1934; about 3/n, the rule of three: Hanley and
    Lippman-Hand, "If nothing goes wrong, is everything all right?", JAMA 249 (1983)), and they may all lie at one end.
    """
    share = 1 - 0.05 ** (1 / n)
    return value - share * (value - low), value + share * (high - value)


def spelt(metric: Metric, detail: Mapping[str, Any] | None = None) -> str:
    """Returns ``acc 0.5 [0.4, 0.6]``, as terminals show a figure."""
    given = (metric.low, metric.high, "")
    found = interval(metric.value, metric.stderr, metric.n, scale_of(metric.name, detail), given)
    ends = f"[{found.low:.4g}, {found.high:.4g}]" if found else "(no interval)"
    return f"{metric.name} {metric.value:.4g} {ends}"


def overlap(a: Interval, b: Interval) -> bool:
    """Says whether two intervals share a point.

    Non-overlap at 95% is a stricter bar than p < .05 for independent samples, and overlap does not show equality
    (Schenker and Gentleman, "On judging the significance of differences by examining the overlap between confidence
    intervals", The American Statistician 55 (2001)).
    """
    return a.low <= b.high and b.low <= a.high


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval.

    Attributes:
        value: The mean over items, in the items' unit.
        stderr: Its standard error, clustered where clusters were given; None with fewer than two clusters.
        low: Lower end; None where nothing supports an interval.
        high: Upper end.
        n: Items.
        clusters: Clusters; as many as items where none were given.
    """

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int


def codes(clusters: "Sequence[Hashable] | NDArray[Any] | None", n: int) -> "tuple[NDArray[np.int64], int]":
    """Numbers clusters from 0 in the order in which they first appear.

    Args:
        clusters: A label for each of ``n`` items; None makes each item its own cluster.
        n: Items.

    Returns:
        The number of each item's cluster, int64 ``[n]``, and how many there are.

    Raises:
        ValueError: There is not one label per item.
    """
    if clusters is None:
        return np.arange(n), n
    if len(clusters) != n:
        raise ValueError(f"{len(clusters)} cluster labels for {n} items")
    numbers: dict[Hashable, int] = {}
    labels = clusters.tolist() if isinstance(clusters, np.ndarray) else clusters
    found = np.fromiter((numbers.setdefault(label, len(numbers)) for label in labels), dtype=np.int64, count=n)
    return found, len(numbers)


def clustered_stderr(
    values: "NDArray[np.float64]", cluster: "NDArray[np.int64]", clusters: int
) -> tuple[float | None, float]:
    """Returns the cluster-robust standard error of the mean over items, and its degrees of freedom.

    Miller, "Adding error bars to evals" (2024), arXiv:2411.00640, section 2.2 (clustered questions), written with the
    sum of residuals of each cluster. That form covers too little with few clusters or unequal ones, so the sums are
    scaled by ``(1 - n_g / n)^-1/2`` and the degrees of freedom are Satterthwaite's (Bell and McCaffrey, "Bias reduction
    in standard errors for linear regression with multi-stage samples", Survey Methodology 28 (2002), sections 2 and 3;
    "CR2" in Imbens and Kolesár, "Robust standard errors in small samples", Review of Economics and Statistics 98
    (2016)). With clusters of one size it is ``G / (G - 1)`` times Miller's variance and G - 1 degrees; with one item to
    a cluster the ordinary standard error of a mean.

    Args:
        values: ``[n]``.
        cluster: The cluster of each item, from 0, ``[n]``.
        clusters: How many clusters there are.

    Returns:
        None for the error with fewer than two clusters.
    """
    if clusters < 2:
        return None, 0.0
    n = len(values)
    size = np.bincount(cluster, minlength=clusters).astype(np.float64)
    sums = np.bincount(cluster, weights=values - values.mean(), minlength=clusters)
    scale = 1 / (1 - size / n)
    stderr = math.sqrt(float(sums**2 @ scale)) / n
    spread = scale * size**2
    # tr(M)^2 / tr(M^2) of the matrix M that makes the variance a quadratic form of independent errors.
    df = n**2 / float(size @ size + (spread.sum() ** 2 - spread @ spread) / n**2)
    # What float sums leave of equal values is no spread.
    return (stderr if stderr > 1e-13 * max(1.0, float(np.abs(values).max())) else 0.0), df


def t_quantile(share: float, df: float) -> float:
    """Returns a quantile of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(df, share))


def mean_estimate(
    values: "ArrayLike",
    clusters: "Sequence[Hashable] | NDArray[Any] | None" = None,
    *,
    unit: bool = False,
    scale: tuple[float, float] | None = None,
) -> Estimate:
    """Estimates the mean of a score over the population that the items, or their clusters, were drawn from.

    The interval is ``mean ± t SE`` as of :func:`clustered_stderr`. Scores that are all 0 or 1,
    or that ``unit`` says to treat alike, get Wilson's interval instead, which has a width at the ends; with
    clusters at the effective sample size ``mean (1 - mean) / SE^2`` and with t for z (Dean and Pagano, "Evaluating
    confidence interval methods for binomial proportions in clustered surveys", Journal of Survey Statistics and
    Methodology 3 (2015), section 2).

    Args:
        values: Scores, ``[n]``.
        clusters: The cluster of each, such as the prompt it belongs to, ``[n]``.
        unit: The scores lie in [0, 1], such as preferences; its interval must too.
        scale: The ends between which the scores lie, where they are others.

    Raises:
        ValueError: There are no values, one is not finite, or labels do not match.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
        raise ValueError("needs one finite value or more")
    cluster, count = codes(clusters, len(scores))
    mean = float(scores.mean())
    stderr, df = clustered_stderr(scores, cluster, count)
    if stderr is None:
        return Estimate(mean, None, None, None, len(scores), count)
    ends = (0.0, 1.0) if unit else scale
    binary = ends in (None, (0.0, 1.0)) and bool(np.isin(scores, (0.0, 1.0)).all())
    if binary and count == len(scores):
        found = wilson(float(scores.sum()), count)
        return Estimate(mean, stderr, found.low, found.high, count, count)
    t = t_quantile(0.975, df)
    if binary:
        # Without spread the sample size is what the clusters are, however many items they repeat.
        low, high = wilson_ends(mean, mean * (1 - mean) / stderr**2 if stderr else float(count), t)
    elif stderr:
        low, high = bounded_ends(mean, stderr, *ends, t) if ends else (mean - t * stderr, mean + t * stderr)
    else:
        low, high = constant_ends(mean, count, *ends) if ends else (None, None)
    return Estimate(mean, stderr, low, high, len(scores), count)


def widening(clusters: int) -> float:
    """Returns by how much :func:`widened` stretches an interval."""
    return math.sqrt(clusters / (clusters - 1)) * t_quantile(0.975, clusters - 1) / Z95


def widened(value: float, low: float | None, high: float | None, clusters: int) -> tuple[float | None, float | None]:
    """Widens a percentile interval of the bootstrap to what few clusters allow.

    Resampling G clusters understates their variance by (G - 1) / G and takes a normal quantile where Student's is due
    (Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69 (2015), section 4.1.3).
    With 100 clusters it adds 2%, with 10 it adds 22%.
    """
    if low is None or high is None or clusters < 2:
        return None, None
    factor = widening(clusters)
    return value - factor * (value - low), value + factor * (high - value)


def ratio(y: "NDArray[Any]", x: "NDArray[Any]") -> tuple[float, float | None]:
    """Returns ``sum(y) / sum(x)`` and its standard error over clusters; None where there is but one cluster.

    The standard error is the linearised one of a ratio estimator (Cochran, Sampling Techniques, 3rd ed., 1977, section
    6.4): with residuals ``e = y - R x`` of ``m`` clusters, ``sqrt(m / (m - 1) * sum(e^2)) / sum(x)``.

    Args:
        y: A sum for each cluster, ``[m]``.
        x: Another.
    """
    value = float(y.sum() / x.sum())
    if len(x) < 2:
        return value, None
    residuals = y - value * x
    return value, float(np.sqrt(len(x) / (len(x) - 1) * np.square(residuals).sum()) / x.sum())


def grouped_mean(values: "NDArray[np.float64]", groups: "NDArray[np.int64]") -> tuple[float, float | None]:
    """Returns the mean of values and its standard error over the groups, numbered from 0, that they belong to."""
    sums = np.bincount(groups, weights=values).astype(np.float64)
    return ratio(sums, np.bincount(groups).astype(np.float64))
