"""A linear classifier of texts on their words and pairs of neighbouring words, hashed to buckets.

Logistic regression on hashed words is what chose GPT-3's web text (Brown et al. 2020, appendix A); fastText, which
chose DCLM's (Li et al. 2024, arXiv:2406.11794, section 4.4), is a linear classifier on hashed words and pairs as well.
Here a feature is 1 where a text has the word or pair, however often, and the features of a text have length 1
together, so that long texts weigh no more than short ones. The loss is convex and is minimised to its end: the outcome
depends neither on the order of rows nor on a seed.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError
from .files import write_atomic
from .ngrams import WORDS_VERSION, mix_bits, ngrams, split_words
from .ragged import bounds_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

BITS = 20
L2_GRID = (1e-3, 1e-4, 1e-5, 1e-6)
_ITERATIONS = 1000
_DIGITS = 6  # of a score: what other machines' sums agree on, and a threshold can be given in
Z95 = 1.959963984540054


def features(texts: Sequence[str], bits: int = BITS) -> "csr_array":
    """Returns the features of texts, shape (texts, 2^bits): the buckets of their distinct words and pairs of words.

    All that a text has are equal, and their squares sum to 1; a text without words has none.
    """
    from scipy.sparse import csr_array

    words = split_words(texts)
    pairs, bounds = ngrams(words, 2)
    numbers = np.arange(len(texts), dtype=np.uint64)
    owners = np.concatenate([np.repeat(numbers, words.counts), np.repeat(numbers, np.diff(bounds))])
    hashes = np.concatenate([words.hashes, pairs])
    keys = np.unique(owners << np.uint64(bits) | buckets_of(hashes, bits))
    counts = np.bincount((keys >> np.uint64(bits)).astype(np.int64), minlength=len(texts))
    columns = (keys & np.uint64((1 << bits) - 1)).astype(np.int32)
    values = np.repeat(1 / np.sqrt(np.maximum(counts, 1)), counts).astype(np.float32)
    return csr_array((values, columns, bounds_of(counts)), (len(texts), 1 << bits))


def buckets_of(hashes: "NDArray[np.uint64]", bits: int) -> "NDArray[np.uint64]":
    """Returns the bucket of each word or pair of words, by its hash."""
    return mix_bits(hashes) >> np.uint64(64 - bits)


def fit(rows: "csr_array", is_good: "Flags", l2: float) -> tuple["Floats", float]:
    """Returns the weights of logistic regression, shape (columns,), and its bias.

    The loss is the mean over good rows and that over bad rows, halved each, so that a score is the probability of good
    where both are as many; added is ``l2 / 2`` times the squared length of the weights.

    Args:
        rows: Features, shape (rows, columns).
        is_good: Which rows are good, some of them and not all, shape (rows,).
        l2: How strongly weights are held to zero.
    """
    from scipy.optimize import minimize

    count, width = rows.shape or (0, 0)
    # Buckets that no row has keep the weight 0, and are left aside.
    used, columns = np.unique(rows.indices, return_inverse=True)
    matrix = type(rows)((rows.data.astype(np.float64), columns, rows.indptr), (count, len(used)))
    transposed = matrix.T.tocsr()
    sign = np.where(is_good, 1.0, -1.0)
    share = np.where(is_good, 0.5 / is_good.sum(), 0.5 / (~is_good).sum())

    def loss(parameters: "Floats") -> tuple[float, "Floats"]:
        weights, bias = parameters[:-1], parameters[-1]
        margin = sign * (matrix @ weights + bias)
        slope = -sign * share * _sigmoid(-margin)
        value = share @ np.logaddexp(0, -margin) + l2 / 2 * weights @ weights
        return float(value), np.append(transposed @ slope + l2 * weights, slope.sum())

    options = {"maxiter": _ITERATIONS, "maxfun": 2 * _ITERATIONS, "ftol": 1e-10, "gtol": 1e-8}
    found = minimize(loss, np.zeros(len(used) + 1), jac=True, method="L-BFGS-B", options=options).x
    weights = np.zeros(width)
    weights[used] = found[:-1]
    return weights, float(found[-1])


def log_loss(rows: "csr_array", is_good: "Flags", weights: "Floats", bias: float) -> float:
    """Returns the loss of :func:`fit`, without what holds weights to zero."""
    margin = np.where(is_good, 1.0, -1.0) * (rows @ weights + bias)
    losses = np.logaddexp(0, -margin)
    return float(losses[is_good].mean() + losses[~is_good].mean()) / 2


def _sigmoid(values: "Floats") -> "Floats":
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1.0, small) / (1 + small)


@dataclass(frozen=True)
class HashedClassifier:
    """What tells good texts from bad ones.

    Attributes:
        weights: Of each bucket, shape (2^bits,).
        bias: Of every text.
        known: Hashes of the texts that it was trained on, sorted, shape (texts,).
    """

    weights: "NDArray[np.float32]"
    bias: float
    known: "NDArray[np.uint64]"

    @property
    def bits(self) -> int:
        """The logarithm of how many buckets there are."""
        return len(self.weights).bit_length() - 1

    def scores(self, texts: Sequence[str]) -> "Floats":
        """Returns the probability of good of each text, where good and bad are as many, shape (texts,)."""
        return self.scores_of(features(texts, self.bits))

    def scores_of(self, rows: "csr_array") -> "Floats":
        """Returns the same of texts by their features."""
        return np.round(_sigmoid(rows @ self.weights.astype(np.float64) + self.bias), _DIGITS)

    def save(self, path: Path, **more: "NDArray[np.generic]") -> None:
        """Writes it as NumPy's ``.npz``, the same bytes from the same classifier, with what else is given."""
        used = np.flatnonzero(self.weights)
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {"buckets": used, "weights": self.weights[used], "known": self.known, **more}
        arrays |= {"words_version": np.array(WORDS_VERSION)}
        np.savez(buffer, bits=np.array(self.bits), bias=np.array(self.bias), **arrays)
        write_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> tuple["HashedClassifier", "dict[str, NDArray[np.generic]]"]:
        """Reads what ``save`` wrote.

        Raises:
            DataError: There is no such file, it is something else, or texts had other words when it was trained.
        """
        try:
            with np.load(path, allow_pickle=False) as loaded:
                found = dict(loaded)
            weights = np.zeros(1 << int(found.pop("bits")), np.float32)
            weights[found.pop("buckets")] = found.pop("weights")
            classifier = cls(weights, float(found.pop("bias")), found.pop("known"))
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
        except (ValueError, KeyError, IndexError, TypeError, MemoryError, EOFError, zipfile.BadZipFile) as error:
            raise DataError("is no classifier that `data quality` wrote", where=str(path)) from error
        if found.pop("words_version", None) != WORDS_VERSION:
            what = "was trained by a version that took other signs for words, whose weights mean nothing here"
            raise DataError(what, where=str(path), hint="train it again")
        return classifier, found


@dataclass(frozen=True)
class RocArea:
    """The area under a ROC curve: the probability that a good row scores above a bad one, ties one half.

    Attributes:
        area: From 0 to 1; .5 is chance.
        low: The lower end of its 95% interval.
        high: The upper end.
    """

    area: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.area:.3f} (95% interval {self.low:.3f} to {self.high:.3f})"


def roc_area(good: "Floats", bad: "Floats") -> RocArea:
    """Returns the area with its interval by DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), p. 837.

    The interval is made on the logit, so that it stays within 0 and 1. Where no pair is out of order the variance is
    0, and the end is what is seen so in one of twenty samples of the smaller class: ``.05^(1/n)``.

    Args:
        good: Scores of good rows, two or more.
        bad: Scores of bad rows, two or more.
    """
    above = (_ranks(np.concatenate([good, bad]))[: len(good)] - _ranks(good)) / len(bad)
    below = 1 - (_ranks(np.concatenate([good, bad]))[len(good) :] - _ranks(bad)) / len(good)
    area = float(above.mean())
    if area in (0.0, 1.0):
        end = 0.05 ** (1 / min(len(good), len(bad)))
        return RocArea(area, end if area else 0.0, 1.0 if area else 1 - end)
    deviation = np.sqrt(above.var(ddof=1) / len(good) + below.var(ddof=1) / len(bad))
    half = Z95 * deviation / (area * (1 - area))
    logit = np.log(area / (1 - area))
    low, high = _sigmoid(np.array([logit - half, logit + half])).tolist()
    return RocArea(area, low, high)


def _ranks(values: "Floats") -> "Floats":
    """Returns ranks from 1, the mean of theirs for equal values."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]
