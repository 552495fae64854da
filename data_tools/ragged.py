"""Several runs of values in one array, end to end: where each begins, and the places of some of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Ragged:
    """Hashes of several texts, one text after the other.

    Attributes:
        hashes: All of them, shape (hashes,).
        bounds: Where each text's begin, and the last's end, shape (texts + 1,).
    """

    hashes: "NDArray[np.uint64]"
    bounds: "Integers"

    def __len__(self) -> int:
        """Returns how many texts there are."""
        return len(self.bounds) - 1

    @property
    def counts(self) -> "Integers":
        """Returns how many hashes each text has."""
        return np.diff(self.bounds)


def bounds_of(counts: Any) -> "Integers":
    """Returns where runs of these lengths begin, and where the last ends, shape (runs + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def ranges(starts: Any, lengths: Any) -> "Integers":
    """Concatenates ``arange(start, start + length)`` for all pairs."""
    lengths = np.asarray(lengths, np.int64)
    bounds = bounds_of(lengths)
    return np.arange(int(bounds[-1])) + np.repeat(np.asarray(starts, np.int64) - bounds[:-1], lengths)
