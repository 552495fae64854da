"""The inner loops of ``ngrams``, ``near_duplicates`` and ``web_rules`` in numba: what numpy gives, in less time.

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


@numba.njit(inline="always")
def _slot(keys, stamps, stamp, key):
    """Returns where a key stands in a table with open addresses, or would stand; other stamps mean free places."""
    last = np.uint64(len(keys) - 1)
    slot = key & last
    while stamps[slot] == stamp and keys[slot] != key:
        slot = (slot + _ONE) & last
    return slot


@_compiled
def _ngram_characters(
    codes, starts, lengths, bounds, wanted, characters, base, least, tops, duplicates, once, top, duplicate
):
    """Fills in what ``ngram_characters`` returns."""
    longest = 1
    for text in range(len(wanted)):
        longest = max(longest, bounds[text + 1] - bounds[text])
    size = 2
    while size < 2 * longest:
        size *= 2
    keys, stamps, counts = np.empty(size, np.uint64), np.zeros(size, np.int64), np.empty(size, np.int64)
    words, powers, grams = np.empty(longest, np.uint64), np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    slots, ends = np.empty(longest, np.uint64), np.zeros(longest + 1, np.int64)
    stamp = 0
    for text in range(len(wanted)):
        if not wanted[text]:
            continue
        begin, count = bounds[text], bounds[text + 1] - bounds[text]
        for word in range(count):
            start, length = starts[begin + word], lengths[begin + word]
            total, power = _ZERO, _ONE
            for place in range(start, start + length):
                total = total * base + np.uint64(codes[place])
                power *= base
            words[word], powers[word], grams[word] = total, power, _ZERO
            ends[word + 1] = ends[word] + length
        made = 0
        for column in range(len(tops)):
            n = tops[column]
            stamp += 1
            for gram in range(count - n + 1):
                key = grams[gram]
                for word in range(made, n):
                    key = _mix(key + words[gram + word] + np.uint64(lengths[begin + gram + word])) * base
                grams[gram] = key
                slot = _slot(keys, stamps, stamp, key)
                if stamps[slot] != stamp:
                    stamps[slot], keys[slot], counts[slot] = stamp, key, 0
                counts[slot] += 1
                slots[gram] = slot
            made = n
            most = 0 if once else 1
            for gram in range(count - n + 1):
                if counts[slots[gram]] > most:
                    most = counts[slots[gram]]
                    top[text, column] = most * (ends[gram + n] - ends[gram] + n - 1)
        made = 0
        grams[:count] = _ZERO
        for column in range(len(duplicates)):
            n = duplicates[column]
            for gram in range(count - n + 1):
                key = grams[gram]
                for word in range(made, n):
                    key = key * powers[gram + word] + words[gram + word]
                grams[gram] = key
            made = n
            if column == 0:
                stamp += 1
                covered = free = 0
                for gram in range(count - n + 1):
                    key = _mix(grams[gram])
                    slot = _slot(keys, stamps, stamp, key)
                    if stamps[slot] == stamp:
                        covered += ends[gram + n] - ends[max(gram, free)]
                        free = gram + n
                    stamps[slot], keys[slot] = stamp, key
                if covered / characters[text] <= least:
                    break
            stamp += 1
            free = 0
            for gram in range(count - n + 1):
                if gram < free:
                    continue
                key = _mix(grams[gram])
                slot = _slot(keys, stamps, stamp, key)
                if stamps[slot] == stamp:
                    duplicate[text, column] += ends[gram + n] - ends[gram]
                    free = gram + n
                stamps[slot], keys[slot] = stamp, key


def ngram_characters(
    texts: "tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]",
    wanted: "NDArray[np.bool_]",
    characters: "NDArray[np.int64]",
    base: np.uint64,
    least: float,
    sizes: tuple[list[int], list[int]],
    once: bool,
) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """Counts the characters of repeated n-grams as ``web_rules`` does: the most frequent, and those that repeat others.

    Args:
        texts: Code points of all, where each word begins, its characters, and at which word each text begins.
        wanted: Which texts, shape (texts,).
        characters: Of each text, likewise.
        base: Of the polynomial that hashes characters.
        least: Texts with no larger share of characters in repeated n-grams of the least size are not looked at further.
        sizes: Words of the most frequent n-grams, and of those that repeat others, each in order.
        once: Whether the most frequent n-gram may stand once.

    Returns:
        Characters of the most frequent one for each size, and of those that repeat others, shape (texts, sizes).
    """
    top, duplicate = (np.zeros((len(wanted), len(some)), np.int64) for some in sizes)
    tops, duplicates = (np.array(some, np.int64) for some in sizes)
    _ngram_characters(*texts, wanted, characters, base, least, tops, duplicates, once, top, duplicate)
    return top, duplicate


@_compiled
def _polynomials(codes, starts, lengths, base, values):
    for piece in range(len(starts)):
        total, power = _ZERO, _ONE
        for place in range(starts[piece], starts[piece] + lengths[piece]):
            total += np.uint64(codes[place]) * power
            power *= base
        values[piece] = total


def polynomials(
    codes: "NDArray[Any]", starts: "NDArray[np.int64]", lengths: "NDArray[np.int64]", base: np.uint64
) -> "NDArray[np.uint64]":
    """Returns the sum of ``c[i] B^i`` over the code points of each piece of a text, shape (pieces,)."""
    values = np.empty(len(starts), np.uint64)
    _polynomials(codes, starts, lengths, base, values)
    return values
