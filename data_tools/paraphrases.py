"""Rows that possibly paraphrase a test item: no n-gram in common, but most of the words that are rare.

How alike a row and an item are is Dice's coefficient of their sets of words, each word weighing the logarithm of how
rare it is among the rows, and numbers more: another wording keeps them, another problem of the same kind has others.
The heaviest word that both have does not count, since by chance they share one rare word, but hardly several. What is
told apart is the margin: by how much a row is nearer to one item than to the next. Benchmarks whose items resemble each
other, and rows of the same subject, are near to many items, but a paraphrase to one. Were the largest of a row's
similarities those of independent draws with an exponential tail, the gap between the first and the second would be
distributed as twice the gap between the second and the third (Rényi, On the theory of order statistics, 1953). So the
second gaps of the user's own rows are the null, and no row free of paraphrases is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .ngrams import Words, split_words
from .overlap import Item
from .ragged import bounds_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

FEWEST = 10
"""Items from which on a row's nearest can be told from the next ones."""
_WORDS = 8  # of an item, so that what it shares with a row means anything
_PASSAGE, _STEP = 200, 100  # words of a passage of a long row, and from one to the next
_NUMBERS, _MOST = 5, 1.5  # times its rarity that a number weighs, and times the rarest word's that it weighs at most
_BITS = 20  # of a word's number: two words of a row share one in a million
_CANDIDATES = 5  # of each passage whose heaviest common word is taken off
_ROUNDS = 3  # in which paraphrases are taken out of the null


@dataclass(frozen=True)
class Near:
    """The items that passages of rows are nearest to.

    Attributes:
        rows: Whose passage each is, shape (passages,).
        items: The number of the nearest item, likewise.
        alike: How alike the passage and its three nearest items are but for the heaviest word that they share, nearest
            first, shape (passages, 3).
    """

    rows: "Integers"
    items: "Integers"
    alike: "Floats"

    @property
    def margins(self) -> "Floats":
        """Returns by how much the nearest item is nearer than the next, shape (passages,)."""
        return self.alike[:, 0] - self.alike[:, 1]


class Nearest:
    """Finds the items that rows are nearest to.

    Args:
        items: The items; their questions count.
        frequencies: In how many passages of all rows each word stands, as :func:`count_words` says it.

    Attributes:
        numbers: Of the items that are long enough.
    """

    def __init__(self, items: Sequence[Item], frequencies: "Integers"):
        questions = split_words([item.question for item in items])
        self.numbers = np.flatnonzero(questions.counts >= _WORDS)
        owner, sets = _sets(split_words([items[number].question for number in self.numbers.tolist()]))
        # The first passage of each item, and the one after the last.
        self._starts = np.append(np.flatnonzero(np.diff(owner, prepend=-1)), len(owner))
        seen = np.maximum(frequencies, np.asarray(sets.sum(0), np.int64).ravel())
        rarest = np.log(max(int(seen.max()), 2) + 1)
        self._weights = rarest - np.log(np.maximum(seen, 1))
        self._weights[1::2] = np.minimum(self._weights[1::2] * _NUMBERS, rarest * _MOST)
        self._items = sets.multiply(self._weights).tocsr()
        self._whole = np.asarray(self._items.sum(1)).ravel()

    def __len__(self) -> int:
        """Returns how many items are long enough to be told."""
        return len(self.numbers)

    def alike(self, rows: Words) -> tuple["Integers", "Floats"]:
        """Returns whose each passage of some rows is, and how alike it is to each item, shape (passages, items)."""
        owner, sets = _sets(rows)
        by_passage = self._by_passage(sets)[0]
        # A long question is as alike as the likest of its passages.
        return owner, np.maximum.reduceat(by_passage, self._starts[:-1], axis=1)

    def _by_passage(self, sets: Any) -> tuple["Floats", "Floats"]:
        """Returns how alike passages of rows and of items are, and what both weigh together, of the same shape."""
        both = np.asarray(sets @ self._weights).ravel()[:, None] + self._whole
        both = np.maximum(both, 1e-9)
        return 2 * (sets @ self._items.T).toarray() / both, both

    def of(self, rows: Words) -> Near:
        """Returns the items that the passages of rows are nearest to."""
        owner, sets = _sets(rows)
        by_passage, both = self._by_passage(sets)
        alike = np.maximum.reduceat(by_passage, self._starts[:-1], axis=1)
        items = np.argpartition(-alike, _CANDIDATES - 1, axis=1)[:, :_CANDIDATES]
        first, last = self._starts[items], self._starts[items + 1]
        place = first.copy()  # of the likest passage of each item
        for row, column in np.argwhere(last - first > 1):
            place[row, column] += by_passage[row, first[row, column] : last[row, column]].argmax()
        alike = np.take_along_axis(alike, items, 1)
        for column in range(_CANDIDATES):
            heaviest = sets.multiply(self._items[place[:, column]]).max(axis=1).toarray().ravel()
            alike[:, column] -= 2 * heaviest / both[np.arange(len(both)), place[:, column]]
        order = np.argsort(-alike, axis=1, kind="stable")[:, :3]
        nearest = np.take_along_axis(items, order, 1)[:, 0]
        return Near(owner, self.numbers[nearest], np.take_along_axis(alike, order, 1))


def count_words(rows: Words) -> "Integers":
    """Returns in how many passages of some rows each word stands, shape (2^20,); of several batches they add up."""
    return np.asarray(_sets(rows)[1].sum(0), np.int64).ravel()


def margin_of_chance(near: Near, rate: float) -> float:
    """Returns the margin that this share of passages exceed which are no paraphrases.

    Passages as alike to an item as those that exceed it are no part of the null: where a benchmark holds two items that
    are alike, a paraphrase of one is near to both, and far from the third.
    """
    gaps = 2 * (near.alike[:, 1] - near.alike[:, 2])
    margin = float(np.quantile(gaps, 1 - rate))
    for _ in range(_ROUNDS):
        above = near.margins > margin
        if above.any():
            unlike = near.alike[:, 0] < np.quantile(near.alike[above, 0], 0.1)
            margin = float(np.quantile(gaps[unlike], 1 - rate)) if unlike.any() else margin
    return margin


def _sets(rows: Words) -> tuple["Integers", Any]:
    """Returns whose each passage is, and which words it has, as a sparse matrix of ones (passages, 2^20)."""
    from scipy.sparse import csr_matrix

    counts = rows.counts
    passages = np.maximum(-(-counts // _STEP) - 1, 1)
    bounds = bounds_of(passages)
    step = (np.arange(len(rows.hashes)) - np.repeat(rows.bounds[:-1], counts)) // _STEP
    words = (rows.hashes >> np.uint64(65 - _BITS) << np.uint64(1) | rows.hashes & np.uint64(1)).astype(np.int64)
    keys = []
    for passage in (step, step - 1):  # a word stands in the passage that begins at its step, and in the one before
        is_there = (passage >= 0) & (passage < np.repeat(passages, counts))
        keys.append((np.repeat(bounds[:-1], counts) + passage)[is_there] << _BITS | words[is_there])
    found = np.unique(np.concatenate(keys))
    place, word = found >> _BITS, found & ((1 << _BITS) - 1)
    ends = bounds_of(np.bincount(place, minlength=int(bounds[-1])))
    matrix = csr_matrix((np.ones(len(word)), word, ends), shape=(int(bounds[-1]), 1 << _BITS))
    return np.repeat(np.arange(len(rows)), passages), matrix
