"""Intervals for scores, each with its source. Nothing here invents an interval that the record does not support."""

import math
from dataclasses import dataclass

Z95 = 1.959963984540054
"""The 97.5% quantile of the standard normal: two-sided 95%."""


@dataclass(frozen=True)
class Interval:
    """A 95% confidence interval in the metric's own unit.

    Attributes:
        low: Lower end.
        high: Upper end.
        method: ``"wilson"``, ``"normal"``, or ``"bootstrap"`` for ends that the record itself gives.
    """

    low: float
    high: float
    method: str


def wilson(successes: float, n: int, z: float = Z95) -> Interval:
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
    share = successes / n
    denominator = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / denominator
    half = z / denominator * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the formula gives exactly 0 and 1; float rounding must not push past them.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(low, high, "wilson")


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


def interval(value: float | None, stderr: float | None, n: int | None) -> Interval | None:
    """Returns the 95% interval that a record supports: Wilson for 0/1 items, normal for other means, or None.

    None where the value or its standard error is missing or not finite, or where there is no second item to have
    estimated a spread from.
    """
    if value is None or stderr is None or not math.isfinite(value) or not math.isfinite(stderr) or stderr < 0:
        return None
    if n is not None:
        successes = binary_successes(value, stderr, n)
        if successes is not None:
            return wilson(successes, n)
        if n < 2:
            return None
    return normal(value, stderr)


def overlap(a: Interval, b: Interval) -> bool:
    """Says whether two intervals share a point.

    Non-overlap at 95% is a stricter bar than p < .05 for independent samples, and overlap does not show equality
    (Schenker and Gentleman, "On judging the significance of differences by examining the overlap between confidence
    intervals", The American Statistician 55 (2001)).
    """
    return a.low <= b.high and b.low <= a.high
