"""The inner loops of ``ngrams`` and ``near_duplicates`` compiled by numba: the bits that numpy gives, in less time.

numba is an extra (``posttrain[fast]``). Its import and its compiler take seconds, once for each installation, so only
work that takes longer asks for it.
"""

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# numba takes module-level names for constants; an int64 beside a uint64 would become a float.
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


def _compiled(function: Any) -> Any:
    """Compiles a function when it is first called, and keeps the code where numba finds a folder to write to."""
    try:
        return numba.njit(function, cache=True, nogil=True)
    except RuntimeError:
        return numba.njit(function, nogil=True)


@numba.njit(inline="always")
def _mix(value):
    """Is ``ngrams.mix_bits`` for one value."""
    value ^= value >> np.uint64(30)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    value *= np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@_compiled
def _words(text, lookup, base, hashes, begins):
    """Hashes the words of bytes that end between words; returns how many."""
    count = 0
    inside = False
    total = power = _ZERO
    first = 0
    for place in range(len(text)):
        letter = lookup[text[place]]
        if letter != 0:
            if not inside:
                inside, first, total, power = True, place, _ZERO, _ONE
            total += np.uint64(letter) * power
            power *= base
        elif inside:
            inside = False
            number = _ONE if 48 <= text[first] <= 57 else _ZERO
            hashes[count] = (_mix(total + np.uint64(place - first)) >> _ONE << _ONE) | number
            begins[count] = first
            count += 1
    return count


@_compiled
def _band_keys(words, bounds, powers, factors, offsets, rows, shift, keys):
    """Is ``Bands.keys`` of texts' words, text by text."""
    n = len(powers)
    longest = 1
    for text in range(len(bounds) - 1):
        longest = max(longest, bounds[text + 1] - bounds[text])
    grams = np.empty(longest, np.uint64)
    for text in range(len(bounds) - 1):
        begin, size = bounds[text], bounds[text + 1] - bounds[text]
        if size == 0:
            continue
        count = max(size - n + 1, 1)
        for place in range(count):
            total = _ZERO
            for word in range(min(n, size)):
                total += words[begin + place + word] * powers[word]
            grams[place] = total
        if size < n:
            grams[0] = _mix(grams[0] + np.uint64(size))
        for place in range(count):
            grams[place] = _mix(grams[place]) >> shift
        for band in range(keys.shape[1]):
            key = _ZERO
            for row in range(rows):
                number = band * rows + row
                factor, offset = factors[number], offsets[number]
                least = ~_ZERO
                for place in range(count):
                    least = min(least, grams[place] * factor + offset)
                # The least of the upper halves is the upper half of the least.
                key = _mix(key + (least >> np.uint64(32)) + np.uint64(number))
            keys[text, band] = key


@_compiled
def _count_shared(hashes, bounds, firsts, seconds, shared):
    """Is ``near_duplicates._count_shared``: each text's hashes are sorted, and two that are equal stand in both."""
    for pair in range(len(firsts)):
        one, end = bounds[firsts[pair]], bounds[firsts[pair] + 1]
        other, other_end = bounds[seconds[pair]], bounds[seconds[pair] + 1]
        count = 0
        while one < end and other < other_end:
            left, right = hashes[one], hashes[other]
            count += left == right
            one += left <= right
            other += right <= left
        shared[pair] = count


def hash_words(text: bytes, lookup: bytes, base: np.uint64) -> "tuple[NDArray[np.uint64], NDArray[np.int64]]":
    """Is ``ngrams``' hashing of a text that ends between words: the hashes, and where each word begins.

    Args:
        text: The bytes.
        lookup: What each byte is inside a word, 0 between words.
        base: Of the polynomial.
    """
    most = len(text) // 2 + 1
    hashes, begins = np.empty(most, np.uint64), np.empty(most, np.int64)
    count = _words(np.frombuffer(text, np.uint8), np.frombuffer(lookup, np.uint8), base, hashes, begins)
    return hashes[:count], begins[:count]


def band_keys(
    words: "NDArray[np.uint64]",
    bounds: "NDArray[np.int64]",
    powers: "NDArray[np.uint64]",
    functions: "tuple[NDArray[np.uint64], NDArray[np.uint64]]",
    rows: int,
    bits: int,
) -> "NDArray[np.uint64]":
    """Returns the keys of ``Bands.keys``, shape (texts, bands).

    Args:
        words: Hashes of the words, shape (words,).
        bounds: Where each text's begin, and the last's end, shape (texts + 1,).
        powers: Of the base of n-grams, shape (words of an n-gram,).
        functions: Factors and offsets of the hash functions, each of shape (bands * rows,).
        rows: Functions of a band.
        bits: Of an n-gram's hash.
    """
    factors, offsets = functions
    keys = np.zeros((len(bounds) - 1, len(factors) // rows), np.uint64)
    _band_keys(words, bounds, powers, factors, offsets, rows, np.uint64(64 - bits), keys)
    return keys


def count_shared(
    hashes: "NDArray[np.uint64]", bounds: "NDArray[np.int64]", pairs: "NDArray[np.int64]"
) -> "NDArray[np.int64]":
    """Returns how many shingles both texts of each pair have, shape (pairs,).

    Args:
        hashes: Of the shingles, sorted and distinct within each text, shape (shingles,).
        bounds: Where each text's begin, and the last's end, shape (texts + 1,).
        pairs: Numbers of two texts, shape (pairs, 2).
    """
    shared = np.empty(len(pairs), np.int64)
    _count_shared(hashes, bounds, *np.ascontiguousarray(pairs.T), shared)
    return shared
