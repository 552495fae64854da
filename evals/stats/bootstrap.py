"""The bootstrap over rows: standard errors and intervals of figures that have no closed form.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993): the standard error is that of chapter 6, the interval
the percentile interval of section 13.3. A figure is written once, as a function of the weight of each row: with all
weights 1 it is the figure, with the counts of a resample it is a replicate.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import Metric
from .intervals import Estimate, Floats, codes, mean_estimate, widened

Figures = Callable[[Floats], dict[str, Floats]]

DRAWS = 1000
MIN_DRAWS = 100
_MIN_PERCENTILE = 500  # with fewer draws, percentiles of 2.5% are too rough
_CELLS = 1 << 20  # weights in memory at a time: 8 MiB, which a cache holds
_WORK = 500_000_000  # weights drawn in all, times what a figure does with each


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
    clusters = n if groups is None else int(groups.max()) + 1
    found = {}
    for name, value in exact.items():
        replicates = np.concatenate([part[name] for part in parts]) if parts else np.empty(0)
        found[name] = Estimate(value, *_spread(value, replicates), n, clusters)
    return found


def metric_of(found: Estimate, name: str, *, higher_is_better: bool) -> Metric:
    """Returns a bootstrapped figure as a metric.

    Resampling adds to the upward bias of a calibration error, so its percentiles would lie too high: its interval is
    the one that its standard error gives.
    """
    low, high = (None, None) if name == "ece" else (found.low, found.high)
    return Metric(name, found.value, found.stderr, found.n, higher_is_better, low, high)


def _resamples(n: int, groups: "NDArray[np.int64] | None", draws: int, seed: int) -> "Iterator[NDArray[np.float64]]":
    """Yields how often each row is drawn, ``[some resamples, n]``."""
    rng = np.random.default_rng(seed)
    units = n if groups is None else int(groups.max()) + 1
    chunk = max(1, _CELLS // n)
    for at in range(0, draws, chunk):
        weights = resample(rng, units, min(chunk, draws - at)).astype(np.float64)
        yield weights if groups is None else weights[:, groups]


def resample(rng: np.random.Generator, units: int, times: int) -> "NDArray[np.int64]":
    """Draws as many units as there are, with replacement, so many times; returns how often each, ``[times, units]``."""
    drawn = rng.integers(0, units, (times, units)) + units * np.arange(times)[:, None]
    return np.bincount(drawn.ravel(), minlength=times * units).reshape(times, units)


def _spread(value: float, replicates: "NDArray[np.float64]") -> tuple[float | None, float | None, float | None]:
    """Returns the standard error and the ends; replicates without a value, since a class was not drawn, may be few."""
    defined = replicates[np.isfinite(replicates)]
    if not np.isfinite(value) or len(defined) < 2 or len(defined) < 0.9 * len(replicates):
        return None, None, None
    stderr = float(defined.std(ddof=1))
    if stderr <= 1e-12 * max(1.0, abs(value)):  # identical replicates know no spread, and so no interval
        return None, None, None
    if len(defined) < _MIN_PERCENTILE:
        return stderr, None, None
    low, high = np.quantile(defined, (0.025, 0.975))
    return stderr, float(low), float(high)


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


@dataclass(frozen=True)
class Agreement:
    """How far two raters agree.

    Attributes:
        kappa: Cohen's kappa: 0 at chance, 1 in full; None where chance alone would agree always.
        low: Lower end of its 95% interval by cluster bootstrap, or None.
        high: Upper end.
        agreement: Share of items on which they agree, with its interval.
        chance: The share that two raters with these habits would agree on by chance.
        n: Items rated by both.
        clusters: Clusters of those.
    """

    kappa: float | None
    low: float | None
    high: float | None
    agreement: Estimate
    chance: float
    n: int
    clusters: int


def kappa(
    a: Sequence[Hashable],
    b: Sequence[Hashable],
    clusters: "Sequence[Hashable] | NDArray[Any] | None" = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Measures the agreement of two raters beyond chance.

    Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20 (1960), eq. 1,
    with an interval by resampling whole clusters.

    Args:
        a: The first rater's label of each item, ``[n]``.
        b: The second's.
        clusters: The cluster of each item, such as its prompt.
        draws: Resamples; 0 for no interval.
        seed: Of the resamples.

    Raises:
        ValueError: Lengths differ, or there are no items.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError("needs two labels of each item, and one item or more")
    labels, kinds = codes([*a, *b], 2 * len(a))
    first, second = np.eye(kinds)[labels[: len(a)]], np.eye(kinds)[labels[len(a) :]]
    same = (labels[: len(a)] == labels[len(a) :]).astype(np.float64)
    cluster, count = codes(clusters, len(a))

    def figures(weights: "NDArray[np.float64]") -> "dict[str, NDArray[np.float64]]":
        total = weights.sum(axis=1)
        chance = ((weights @ first) * (weights @ second)).sum(axis=1) / total**2
        agreed = weights @ same / total
        # Where chance agrees always, kappa is 0 / 0; rounding must not make it a number.
        return {"kappa": np.where(chance < 1 - 1e-12, (agreed - chance) / (1 - chance), np.nan), "chance": chance}

    found = estimate(figures, len(a), seed=seed, draws=draws if count > 1 else 0, groups=cluster)
    value = found["kappa"].value
    low, high = widened(value, found["kappa"].low, found["kappa"].high, count)
    return Agreement(
        kappa=value if math.isfinite(value) else None,
        low=None if low is None else max(-1.0, low),
        high=None if high is None else min(1.0, high),
        agreement=mean_estimate(same, clusters),
        chance=found["chance"].value,
        n=len(a),
        clusters=count,
    )
