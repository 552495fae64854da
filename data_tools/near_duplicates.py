"""Near-duplicates of many texts: MinHash signatures, bands, and an exact check of every pair before it counts.

The similarity is Jaccard's, of the sets of word n-grams (shingles; Broder 1997, "On the resemblance and containment of
documents"). A pair is looked at if all rows of any of b bands of its MinHash signatures agree, which a pair of
similarity s does with probability 1 - (1 - s^r)^b (Leskovec et al., "Mining of Massive Datasets", section 3.4); no pair
counts by its signature alone. A text shorter than n words is one shingle, so that short texts are alike only where they
are equal.

A text goes only if it is a near-duplicate of one that stays, never because a chain of others joins them.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .ngrams import Core, Words, integer_powers, mix_bits, ngrams
from .ragged import Ragged, bounds_of, ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]
    Integers = NDArray[np.int64]
    Floats = NDArray[np.float64]

_BLOCK = 1 << 16  # shingles of which signatures are made at a time: what fits the cache of a core
_PAIRED = 16  # members of a bucket of which every pair is looked at
_JOINED = 1000  # members of a bucket of which an exact join looks at every pair
_TABLE, _COUNTED, _CUT = np.uint64(24), np.uint64(12), np.uint64(38)  # bits of a join's table, counts and shingles
_ROUNDS = 8  # texts that stay with which each of a larger bucket's is compared, at most
_BITS = np.uint64(44)  # of a shingle's hash; the others number texts or pairs, so that one sort serves both
_MANY = 1 << 20  # what those bits can number


@dataclass(frozen=True)
class Shingles(Ragged):
    """The distinct shingles of several texts: hashes of 44 bits, sorted within each."""

    @classmethod
    def of(cls, words: Words, n: int) -> "Shingles":
        """Returns the distinct word n-grams of each text; all words of one that is shorter are one shingle."""
        hashes, counts = _all_shingles(words, n)
        values, sizes = [], []
        ends = bounds_of(counts)
        for begin in range(0, len(counts), _MANY):
            some = counts[begin : begin + _MANY]
            keys = _numbered(hashes[ends[begin] : ends[begin + len(some)]], some)
            keys.sort()
            first = np.ones(len(keys), bool)
            first[1:] = keys[1:] != keys[:-1]
            keys = keys[first]
            sizes.append(np.bincount((keys >> _BITS).astype(np.int64), minlength=len(some)))
            values.append(keys & ((np.uint64(1) << _BITS) - np.uint64(1)))
        if not values:
            return cls(np.zeros(0, np.uint64), np.zeros(1, np.int64))
        return cls(np.concatenate(values), bounds_of(np.concatenate(sizes)))

    def take(self, texts: "Integers") -> "Shingles":
        """Returns the shingles of some texts."""
        counts = self.counts[texts]
        return Shingles(self.hashes[ranges(self.bounds[texts], counts)], bounds_of(counts))


def _all_shingles(words: Words, n: int) -> tuple["Hashes", "Integers"]:
    """Hashes every word n-gram, as often as it stands there; returns how many each text has too."""
    hashes, bounds = ngrams(words, n)
    counts = np.diff(bounds)
    short = np.flatnonzero((counts == 0) & (words.counts > 0))
    if len(short):
        hashes = np.insert(hashes, bounds[short], words.wholes[short])
        counts[short] = 1
    return mix_bits(hashes) >> np.uint64(64 - _BITS), counts


@dataclass(frozen=True)
class Bands:
    """How signatures are cut: ``bands`` of ``rows`` hashes each.

    Attributes:
        bands: How many; a pair is looked at if any agrees.
        rows: Hashes of each; all must agree.
        seed: Of the hash functions.
    """

    bands: int = 20
    rows: int = 7
    seed: int = 1

    def recall(self, similarity: float) -> float:
        """Returns with what probability a pair of so large a similarity is looked at."""
        return 1 - (1 - similarity**self.rows) ** self.bands

    def keys(self, words: Words, n: int, core: Core = "numpy") -> "Hashes":
        """Hashes each band of each text's signature, shape (texts, bands); a text without words has zeros.

        The hash functions are ``a x + b`` modulo 2^64 with odd a, of which the upper half is compared.

        Args:
            words: The texts.
            n: Words of a shingle.
            core: What does it.
        """
        draw = np.random.default_rng(self.seed)
        count = self.bands * self.rows
        factors = (draw.integers(0, 1 << 63, count, dtype=np.uint64) << np.uint64(1)) | np.uint64(1)
        offsets = draw.integers(0, 1 << 63, count, dtype=np.uint64)
        if core == "numba":
            from .compiled import band_keys

            powers = integer_powers(n)[0, :n].copy()
            return band_keys(words.hashes, words.bounds, powers, (factors, offsets), self.rows, int(_BITS))
        # A shingle that stands twice has the least hash of none else, so that all are hashed, not the distinct ones.
        hashes, counts = _all_shingles(words, n)
        keys = np.zeros((len(words), self.bands), np.uint64)
        filled = np.flatnonzero(counts)
        starts = bounds_of(counts)[filled]
        begin = 0
        while begin < len(filled):
            end = max(begin + 1, int(np.searchsorted(starts, starts[begin] + _BLOCK)))
            first = starts[begin]
            part = hashes[first : starts[end] if end < len(filled) else None]
            places = starts[begin:end] - first
            hashed = np.empty_like(part)
            block = np.zeros((self.bands, end - begin), np.uint64)
            for number in range(count):
                np.multiply(part, factors[number], out=hashed)
                hashed += offsets[number]
                least = np.minimum.reduceat(hashed.view(np.uint32)[_UPPER::2], places)
                band = number // self.rows
                block[band] = mix_bits(block[band] + least + np.uint64(number))
            keys[filled[begin:end]] = block.T
            begin = end
        return keys


_UPPER = 1 if np.little_endian else 0


@dataclass(frozen=True)
class Candidates:
    """Which texts are worth comparing.

    Attributes:
        pairs: Texts of a small bucket, the earlier one first, each pair once, shape (pairs, 2).
        buckets: The texts of each larger one, in order.
    """

    pairs: "Integers"
    buckets: "list[Integers]"

    @classmethod
    def of(cls, keys: "Hashes") -> "Candidates":
        """Finds the texts that share a band.

        Args:
            keys: As ``Bands.keys`` gives them.
        """
        count = len(keys)
        found: list[Integers] = [np.zeros(0, np.int64)]
        buckets: dict[bytes, Integers] = {}
        for band in range(keys.shape[1]):
            column = keys[:, band]
            order = np.argsort(column, kind="stable")
            order = order[column[order] != 0]
            keyed = column[order]
            sizes = np.diff(np.append(np.flatnonzero(np.append(True, keyed[1:] != keyed[:-1])), len(keyed)))
            if not len(order):
                continue
            starts = np.cumsum(sizes) - sizes
            for large in np.flatnonzero(sizes > _PAIRED):
                members = order[starts[large] : starts[large] + sizes[large]]
                buckets[members.tobytes()] = members  # bands of one template often have the same
            place = np.arange(len(order)) - np.repeat(starts, sizes)
            small = np.repeat(sizes <= _PAIRED, sizes)
            for back in range(1, _PAIRED):
                later = np.flatnonzero(small & (place >= back))
                if not len(later):
                    break
                found.append(order[later - back] * count + order[later])
            if sum(map(len, found)) > 1 << 24:
                found = [np.unique(np.concatenate(found))]
        pairs = np.unique(np.concatenate(found))
        return cls(np.stack(np.divmod(pairs, max(count, 1)), axis=1), list(buckets.values()))

    @classmethod
    def joined(cls, shingles: Shingles, threshold: float) -> "Candidates":
        """Finds every pair that can be ``threshold`` alike, so that none is missed: an exact join.

        Of two texts that share enough shingles, at least one is among the rarest |x| - ceil(t |x|) + 1 of both (prefix
        filter: Bayardo et al. 2007, "Scaling up all pairs similarity search", section 4), and the smaller has t times
        the larger's (Xiao et al. 2008, "Efficient similarity joins for near duplicate detection", section 3.2).

        Args:
            shingles: Of all texts.
            threshold: The least similarity that is looked for.
        """
        tokens, owners = _prefixes(shingles, threshold)
        count, sizes = len(shingles), shingles.counts
        order = np.lexsort((owners, sizes[owners], tokens))
        tokens, owners = tokens[order], owners[order]
        starts = np.flatnonzero(np.append(True, tokens[1:] != tokens[:-1])[: len(tokens)])
        groups = np.diff(np.append(starts, len(tokens)))
        buckets = {}
        for large in np.flatnonzero(groups > _JOINED):
            members = np.unique(owners[starts[large] : starts[large] + groups[large]])
            buckets[members.tobytes()] = members
        found: list[Integers] = [np.zeros(0, np.int64)]
        open_ = np.flatnonzero(np.repeat(groups <= _JOINED, groups))
        back = 0
        while len(open_):
            back += 1
            open_ = open_[open_ + back < len(tokens)]
            first, second = owners[open_], owners[open_ + back]
            # Sizes rise within a group, so what is too large for one text makes all behind it too large.
            fits = (tokens[open_] == tokens[open_ + back]) & (sizes[first] >= threshold * sizes[second] - 1e-9)
            open_, first, second = open_[fits], first[fits], second[fits]
            found.append(np.minimum(first, second) * count + np.maximum(first, second))
            if sum(map(len, found)) > 1 << 24:
                found = [np.unique(np.concatenate(found))]
        pairs = np.unique(np.concatenate(found))
        pairs = pairs[pairs // max(count, 1) != pairs % max(count, 1)]
        return cls(np.stack(np.divmod(pairs, max(count, 1)), axis=1), list(buckets.values()))


def _prefixes(shingles: Shingles, threshold: float) -> "tuple[Hashes, Integers]":
    """Returns the rarest shingles of each text that others may have, cut to 38 bits, and whose each is.

    Shingles are rare by a table of 2^24 counts, which never counts too few; two that fall together only add candidates.
    """
    table = np.bincount((shingles.hashes >> (_BITS - _TABLE)).astype(np.int64), minlength=1 << int(_TABLE))
    often = np.minimum(table, (1 << int(_COUNTED)) - 1).astype(np.uint64)
    sizes = shingles.counts
    prefix = sizes - np.ceil(threshold * sizes - 1e-9).astype(np.int64) + 1
    tokens, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    most = 1 << int(np.uint64(64) - _COUNTED - _CUT)
    for begin in range(0, len(shingles), most):
        end = min(begin + most, len(shingles))
        part = shingles.hashes[shingles.bounds[begin] : shingles.bounds[end]]
        some = sizes[begin:end]
        numbers = np.repeat(np.arange(end - begin, dtype=np.uint64), some) << (_COUNTED + _CUT)
        keys = (often[(part >> (_BITS - _TABLE)).astype(np.int64)] << _CUT) | (
            part & ((np.uint64(1) << _CUT) - np.uint64(1))
        )
        keys |= numbers
        keys.sort()
        owner = np.repeat(np.arange(end - begin), some)
        place = np.arange(len(keys)) - np.repeat(bounds_of(some)[:-1], some)
        token = keys & ((np.uint64(1) << (_COUNTED + _CUT)) - np.uint64(1))
        kept = (place < prefix[begin:end][owner]) & (token >> _CUT > 1)
        tokens.append(token[kept])
        owners.append(owner[kept] + begin)
    return np.concatenate(tokens), np.concatenate(owners)


def _numbered(hashes: "Hashes", counts: "Integers") -> "Hashes":
    """Puts the number of its owner above each hash."""
    owners = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
    return (owners << _BITS) | hashes


def jaccard(shingles: Shingles, pairs: "Integers", core: Core = "numpy", chunk: int = 1 << 22) -> "Floats":
    """Returns the similarity of pairs of texts, shape (pairs,); 0 where both have no shingles.

    Args:
        shingles: Of all texts.
        pairs: Numbers of two texts, shape (pairs, 2).
        core: What counts the shingles that both have.
        chunk: Shingles compared at a time by numpy.
    """
    sizes = shingles.counts[pairs].sum(axis=1)
    if core == "numba":
        from .compiled import count_shared

        shared = count_shared(shingles.hashes, shingles.bounds, pairs)
    else:
        shared = _count_shared(shingles, pairs, np.cumsum(sizes), chunk)
    return shared / np.maximum(sizes - shared, 1)


def _count_shared(shingles: Shingles, pairs: "Integers", work: "Integers", chunk: int) -> "Integers":
    """Counts the shingles that both texts of each pair have, so many pairs at a time as ``work`` fits a chunk."""
    shared = np.zeros(len(pairs), np.int64)
    begin = 0
    while begin < len(pairs):
        before = int(work[begin - 1]) if begin else 0
        end = max(begin + 1, min(begin + _MANY, int(np.searchsorted(work, before + chunk, "right"))))
        some = pairs[begin:end]
        both = [shingles.take(some[:, side]) for side in (0, 1)]
        keys = np.concatenate([_numbered(part.hashes, part.counts) for part in both])
        keys.sort()
        # A text's shingles are distinct, so what stands twice in a pair is in both.
        twice = keys[1:][keys[1:] == keys[:-1]]
        shared[begin:end] = np.bincount((twice >> _BITS).astype(np.int64), minlength=len(some))
        begin = end
    return shared


@dataclass(frozen=True)
class Removals:
    """Which texts go, and why.

    Attributes:
        kept: For each text the one that it duplicates, which stays; -1 if it stays itself, shape (texts,).
        similarity: To that one, shape (texts,).
        nearest: For each text the most alike of the earlier texts that it was compared with, or -1, shape (texts,).
        nearness: The similarity to that one, shape (texts,).
        compared: Pairs that were compared.
        passed_over: Texts that stay, though they were not compared with every text of their buckets that stays.
    """

    kept: "Integers"
    similarity: "Floats"
    nearest: "Integers"
    nearness: "Floats"
    compared: int
    passed_over: int


def choose_removals(
    candidates: Candidates, count: int, compare: Callable[["Integers"], "Floats"], threshold: float
) -> Removals:
    """Decides, from first to last, which texts go: those at least ``threshold`` alike to an earlier text that stays.

    A text that is like texts that go is compared with those for which they went; one of a large bucket, such as
    thousands of rows of one template make, with eight of it that stay.

    Args:
        candidates: The texts worth comparing; their order says which of two stays.
        count: How many texts there are.
        compare: Gives the exact similarity of pairs, shape (pairs, 2) to (pairs,).
        threshold: The least similarity of duplicates.
    """
    chosen = _Chosen(count)
    seen = np.zeros(0, np.int64)
    nearest, nearness = np.full(count, -1), np.zeros(count)

    def settle(pairs: "Integers") -> None:
        """Compares the pairs that are new, and those that then must be compared too."""
        nonlocal seen
        while len(pairs):
            coded = np.unique(pairs[:, 0] * count + pairs[:, 1])
            places = np.searchsorted(seen, coded)
            is_new = np.append(seen, -1)[places] != coded
            seen = np.insert(seen, places[is_new], coded[is_new])
            pairs = np.stack(np.divmod(coded[is_new], max(count, 1)), axis=1)
            similarity = compare(pairs)
            order = np.argsort(similarity, kind="stable")
            order = order[similarity[order] > nearness[pairs[order, 1]]]
            first, second = pairs[order].T
            nearest[second], nearness[second] = first, similarity[order]  # the largest comes last
            alike = similarity >= threshold
            pairs = np.array(chosen.add(pairs[alike], similarity[alike]), np.int64)

    settle(candidates.pairs)
    kept = chosen.kept
    for number in range(_ROUNDS):
        staying = [bucket[kept[bucket] < 0] for bucket in candidates.buckets]
        pairs = [
            np.stack([np.full(len(some) - number - 1, some[number]), some[number + 1 :]], axis=1)
            for some in staying
            if len(some) > number + 1
        ]
        if not pairs:
            break
        settle(np.concatenate(pairs))
    left = [some[_ROUNDS + 1 :] for some in (bucket[kept[bucket] < 0] for bucket in candidates.buckets)]
    passed_over = len(np.unique(np.concatenate(left))) if left else 0
    return Removals(kept, chosen.similarity, nearest, nearness, len(seen), passed_over)


class _Chosen:
    """Which texts go, by the pairs known to be alike so far; more pairs change only what depends on them.

    Attributes:
        kept: As in ``Removals``.
        similarity: Likewise.
    """

    def __init__(self, count: int):
        self.kept, self.similarity = np.full(count, -1), np.zeros(count)
        self._earlier: dict[int, dict[int, float]] = {}  # of a text, those alike before it, with the similarity
        self._later: dict[int, list[int]] = {}  # of a text, those alike behind it

    def add(self, pairs: "Integers", similarity: "Floats") -> list[tuple[int, int]]:
        """Adds pairs that are alike; returns which must be compared: a text with those for which its likes went."""
        for (first, second), alike in zip(pairs.tolist(), similarity.tolist(), strict=True):
            self._earlier.setdefault(second, {})[first] = alike
            self._later.setdefault(first, []).append(second)
        kept = self.kept
        chained: list[tuple[int, int]] = []
        waiting = np.unique(pairs[:, 1]).tolist()  # sorted, hence a heap: a text comes when all before it are settled
        last = -1
        while waiting:
            text = heapq.heappop(waiting)
            if text == last:
                continue
            last = text
            earlier = self._earlier[text]
            stays = [first for first in earlier if kept[first] < 0]
            keeper = min(stays, key=lambda first: (-earlier[first], first)) if stays else -1
            if not stays:
                chained += [(int(kept[first]), text) for first in earlier]
            if keeper != kept[text]:
                kept[text] = keeper
                for later in self._later.get(text, ()):
                    heapq.heappush(waiting, later)
            self.similarity[text] = earlier.get(keeper, 0.0)
        return chained


def join_alike(
    candidates: Candidates, count: int, compare: Callable[["Integers"], "Floats"], threshold: float
) -> "Integers":
    """Returns pairs of texts at least ``threshold`` alike, enough of them to join all that a chain of such joins.

    Of a large bucket each text is compared with the eight before it and with the first eight.

    Args:
        candidates: The texts worth comparing.
        count: How many texts there are.
        compare: Gives the exact similarity of pairs, shape (pairs, 2) to (pairs,).
        threshold: The least similarity of duplicates.
    """
    coded = [candidates.pairs[:, 0] * count + candidates.pairs[:, 1]]
    for bucket in candidates.buckets:
        for number in range(_ROUNDS):
            coded.append(bucket[: -number - 1] * count + bucket[number + 1 :])
            coded.append(bucket[number] * count + bucket[number + 1 :])
    pairs = np.stack(np.divmod(np.unique(np.concatenate(coded)), max(count, 1)), axis=1)
    return pairs[compare(pairs) >= threshold]
