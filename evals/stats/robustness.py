"""A task asked in several ways: what is right in all of them, and how far they lie apart."""

import numpy as np
from numpy.typing import NDArray

from ..records import Metric
from .bootstrap import estimate, metric_of
from .intervals import mean_estimate

ROBUST = "acc_in_all"
"""The figure that stands for a task asked in several ways."""


def robustness(values: "NDArray[np.float64]", *, seed: int) -> tuple[list[Metric], "NDArray[np.float64]"]:
    """Returns the figures of a task asked in several ways, the same items each time.

    ``acc_in_all`` is the mean over items of their least value, ``acc_mean`` that of all ways, ``acc_worst`` the least
    figure of any way and ``acc_spread`` the distance to the greatest (Sclar et al. 2024, arXiv:2310.11324, section 3).
    The spread of ways that are equally good is above 0 by chance too: of w ways with errors e, about e times the range
    of w normal draws (1.7 for 3, 2.5 for 6).

    Args:
        values: Of each way and item, ``[ways, items]``.
        seed: Of the bootstrap over items that gives the last two their errors.

    Returns:
        The figures, and the items behind the first. ``[items]``.
    """
    least = values.min(axis=0)
    n = values.shape[1]

    def figures(weights: "NDArray[np.float64]") -> "dict[str, NDArray[np.float64]]":
        means = weights @ values.T / weights.sum(axis=1, keepdims=True)
        return {"acc_worst": means.min(axis=1), "acc_spread": means.max(axis=1) - means.min(axis=1)}

    drawn = estimate(figures, n, seed=seed, cost=len(values))
    all_right, mean = mean_estimate(least), mean_estimate(values.mean(axis=0))
    return [
        Metric(ROBUST, all_right.value, all_right.stderr, n, True),
        Metric("acc_mean", mean.value, mean.stderr, n, True),
        metric_of(drawn["acc_worst"], "acc_worst", higher_is_better=True),
        metric_of(drawn["acc_spread"], "acc_spread", higher_is_better=False),
    ], least
