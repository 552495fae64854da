"""The bootstrap over rows: standard errors and intervals of figures that have no closed form.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993): the standard error is that of chapter 6, the interval
the percentile interval of section 13.3. A figure is written once, as a function of the weight of each row: with all
weights 1 it is the figure, with the counts of a resample it is a replicate.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..records import Metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Figures = Callable[["NDArray[np.float64]"], "dict[str, NDArray[np.float64]]"]

DRAWS = 1000
MIN_DRAWS = 100
_MIN_PERCENTILE = 500  # with fewer draws, percentiles of 2.5% are too rough
_CELLS = 1 << 20  # weights in memory at a time: 8 MiB, which a cache holds
_WORK = 500_000_000  # weights drawn in all, times what a figure does with each


@dataclass(frozen=True)
class Estimate:
    """A figure with what the bootstrap says of it.

    Attributes:
        value: The figure; NaN where it is undefined.
        stderr: Its standard error, or None where replicates do not differ or are undefined.
        low: Lower end of the percentile interval, or None where there are too few draws.
        high: Upper end.
    """

    value: float
    stderr: float | None
    low: float | None
    high: float | None

    def metric(self, name: str, n: int, *, higher_is_better: bool) -> Metric:
        """Returns the figure as a metric over ``n`` rows.

        Resampling adds to the upward bias of a calibration error, so its percentiles would lie too high: its interval
        is the one that its standard error gives.
        """
        low, high = (None, None) if name == "ece" else (self.low, self.high)
        return Metric(name, self.value, self.stderr, n, higher_is_better, low, high)


def estimate(
    figures: "Figures",
    n: int,
    *,
    seed: int,
    draws: int = DRAWS,
    cost: int = 1,
    groups: "NDArray[np.int64] | None" = None,
) -> dict[str, Estimate]:
    """Evaluates figures and their spread over resamples of the rows.

    Args:
        figures: From weights, float64 ``[resamples, n]``, to each figure ``[resamples]``.
        n: How many rows there are.
        seed: Of the resamples; the same seed gives the same figures.
        draws: How many resamples; 0 for the figures alone.
        cost: Roughly how often ``figures`` reads each weight: with many rows and classes fewer resamples are drawn, at
            least 100, which is enough for a standard error.
        groups: The cluster of each row, from 0, int ``[n]``; whole clusters are then resampled (Davison and Hinkley,
            "Bootstrap Methods and their Application" (1997), section 3.8). None takes each row by itself.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = {name: float(value[0]) for name, value in figures(np.ones((1, n))).items()}
        count = min(draws, max(MIN_DRAWS, _WORK // max(1, n * cost)))
        parts = [figures(weights) for weights in _resamples(n, groups, count, seed)]
    found = {}
    for name, value in exact.items():
        replicates = np.concatenate([part[name] for part in parts]) if parts else np.empty(0)
        found[name] = _estimate(value, replicates)
    return found


def _resamples(n: int, groups: "NDArray[np.int64] | None", draws: int, seed: int) -> "Iterator[NDArray[np.float64]]":
    """Yields how often each row is drawn, ``[some resamples, n]``."""
    rng = np.random.default_rng(seed)
    units = n if groups is None else int(groups.max()) + 1
    chunk = max(1, _CELLS // n)
    for at in range(0, draws, chunk):
        rows = min(chunk, draws - at)
        drawn = rng.integers(0, units, (rows, units)) + units * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)
        yield weights if groups is None else weights[:, groups]


def _estimate(value: float, replicates: "NDArray[np.float64]") -> Estimate:
    """Sums replicates up; those in which the figure is undefined, since a class was not drawn, may be few."""
    defined = replicates[np.isfinite(replicates)]
    if not np.isfinite(value) or len(defined) < 2 or len(defined) < 0.9 * len(replicates):
        return Estimate(value, None, None, None)
    stderr = float(defined.std(ddof=1))
    if stderr <= 1e-12 * max(1.0, abs(value)):  # identical replicates know no spread, and so no interval
        return Estimate(value, None, None, None)
    if len(defined) < _MIN_PERCENTILE:
        return Estimate(value, stderr, None, None)
    low, high = np.quantile(defined, (0.025, 0.975))
    return Estimate(value, stderr, float(low), float(high))


def midranks(values: "NDArray[np.float64]") -> "Callable[[NDArray[np.float64]], NDArray[np.float64]]":
    """Compiles the ranks of values within resamples, ties sharing the mean of their ranks.

    Args:
        values: ``[n]``.

    Returns:
        A function from weights ``[resamples, n]`` to ranks from 1 of each row in each resample, in the order of
        ``values``. A row drawn twice ties with itself.
    """
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    new = np.r_[True, ranked[1:] != ranked[:-1]]
    starts, group = np.flatnonzero(new), np.cumsum(new) - 1
    places = np.empty(len(values), dtype=np.int64)
    places[order] = group

    def ranks(weights: "NDArray[np.float64]") -> "NDArray[np.float64]":
        sizes = np.add.reduceat(weights[:, order], starts, axis=1)
        middle = np.cumsum(sizes, axis=1) - sizes / 2 + 0.5
        return middle[:, places]

    return ranks
