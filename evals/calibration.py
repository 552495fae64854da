"""Calibration error: how far confidence is from being right as often as it says."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 15


def ece(
    confidence: "NDArray[np.float64]", right: "NDArray[np.float64]"
) -> "Callable[[NDArray[np.float64]], NDArray[np.float64]]":
    """Compiles the expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3).

    ``sum_m |B_m| / n * |accuracy(B_m) - confidence(B_m)|`` over 15 bins of equal width on (0, 1], as in the paper.

    Being a sum of absolute values it is biased upwards: a calibrated model of ``n`` rows scores about
    ``sqrt(bins / n)`` times a constant, not 0. Compare it between models on the same rows only.

    Args:
        confidence: The probability given to the prediction, ``[n]``, or ``[n, k]`` for ``k`` predictions a row.
        right: 1 where the prediction is right, 0 where it is wrong, of the same shape; a tie may be 0.5.

    Returns:
        A function from the weights of rows ``[resamples, n]`` to the error of each resample.
    """
    confidence = confidence.reshape(len(confidence), -1)
    right = right.reshape(confidence.shape)
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.zeros((len(confidence), BINS))
    rows = np.arange(len(confidence))
    for column in range(confidence.shape[1]):
        gaps[rows, bins[:, column]] += right[:, column] - confidence[:, column]
    per_row = confidence.shape[1]

    def figure(weights: "NDArray[np.float64]") -> "NDArray[np.float64]":
        return np.abs(weights @ gaps).sum(axis=1) / (per_row * weights.sum(axis=1))

    return figure
