"""Means over groups of tasks: of the tasks (macro), of all their items (micro), and centred on what guessing scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class StratifiedMean:
    """A weighted sum of the means of strata.

    Attributes:
        value: The sum.
        stderr: Its standard error; None where a stratum has fewer than two items.
        items: For each item of each stratum in turn, what it adds, so that their mean is the value and the standard
            error of that mean, or of a difference of two such on the same items, is the stratified one. ``[N]``.
    """

    value: float
    stderr: float | None
    items: "NDArray[np.float64]"


def stratified_mean(strata: Sequence["ArrayLike"], weights: Sequence[float], shift: float = 0.0) -> StratifiedMean:
    """Returns ``shift + sum of W_h times the mean of stratum h``, the tasks being fixed and their items a sample.

    The variance is ``sum of W_h^2 s_h^2 / n_h`` (Cochran, Sampling Techniques, 3rd ed., 1977, equations 5.1 and 5.13
    without the finite correction). The items are linearised: ``value + W_h (N / n_h) (y - mean_h)``.

    Args:
        strata: The values of each stratum's items.
        weights: ``W_h``; 1 over the number of strata gives their plain mean.
        shift: A constant that is added.

    Raises:
        ValueError: There is no stratum, one is empty, or weights do not match.
    """
    values = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    if not values or any(not len(stratum) for stratum in values) or len(weights) != len(values):
        raise ValueError("needs strata of one item or more, and a weight for each")
    total = sum(map(len, values))
    means = [float(stratum.mean()) for stratum in values]
    value = shift + sum(weight * mean for weight, mean in zip(weights, means, strict=True))
    parts = zip(values, weights, means, strict=True)
    items = np.concatenate([value + weight * total / len(y) * (y - mean) for y, weight, mean in parts])
    if any(len(stratum) < 2 for stratum in values):
        return StratifiedMean(value, None, items)
    variances = [weight**2 * float(y.var(ddof=1)) / len(y) for y, weight in zip(values, weights, strict=True)]
    return StratifiedMean(value, math.sqrt(sum(variances)), items)


def group_mean(mean: str, strata: Sequence["ArrayLike"], baselines: Sequence[float] = ()) -> StratifiedMean:
    """Returns the mean of a group by the name that suites give it.

    - ``macro``: the mean of the strata's means, whatever their sizes.
    - ``micro``: the mean of all items, with its standard error as a sample of items, whichever stratum they are of.
    - ``centred``: the mean of ``(a_h - b_h) / (1 - b_h)`` over tasks, ``a_h`` being accuracies: 0 is guessing, 1 all
      right (Li et al., "DataComp-LM" (2024), arXiv:2406.11794, section 3.5, "Core").

    Args:
        mean: The name.
        strata: The values of each task's items.
        baselines: What guessing scores on each, ``b_h``; of a centred mean.

    Raises:
        ValueError: There is no such mean, or a task has no item.
    """
    count = len(strata)
    if mean == "macro":
        return stratified_mean(strata, [1 / count] * count)
    if mean == "centred":
        weights = [1 / (count * (1 - baseline)) for baseline in baselines]
        return stratified_mean(strata, weights, -sum(w * b for w, b in zip(weights, baselines, strict=True)))
    if mean != "micro":
        raise ValueError(f"there is no mean called {mean}")
    items = np.concatenate([np.asarray(stratum, dtype=np.float64) for stratum in strata])
    stderr = float(items.std(ddof=1)) / math.sqrt(len(items)) if len(items) > 1 else None
    return StratifiedMean(float(items.mean()), stderr, items)
