"""The inner loops of ``ngrams``, ``near_duplicates`` and ``web_rules`` in numba: what numpy gives, in less time.

numba is an extra (``posttrain[fast]``). Its import and its compiler take seconds, once for each installation, so only
work that takes longer asks for it.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from .ragged import bounds_of

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


# Flags of a code point: part of a word; other, not space; alphabetic; no punctuation; `str.splitlines` breaks there;
# part of the word before it.
_WORD, _OTHER, _ALPHA, _PLAIN, _BREAK, _MARK = 1, 2, 4, 8, 16, 32


@functools.cache
def _flags(punctuation: frozenset[str], marks: frozenset[str]) -> "NDArray[np.uint8]":
    """Returns the flags of every code point."""
    every = "".join(map(chr, range(0x110000)))
    flags = np.full(0x110000, _OTHER | _PLAIN, np.uint8)
    for found in re.finditer(r"\s", every):
        flags[found.start()] = _PLAIN | (_BREAK if found[0].splitlines() == [""] else 0)
    for found in re.finditer(r"\w", every):
        flags[found.start()] = _WORD | _PLAIN | (_ALPHA if found[0].isalpha() else 0)
    flags[[ord(sign) for sign in marks]] |= _MARK
    flags[[ord(sign) for sign in punctuation]] &= np.uint8(255 - _PLAIN)
    return flags


@_compiled
def _slot(keys, stamps, stamp, key):
    """Returns where a key stands in a table with open addresses, or would stand; other stamps mean free places."""
    last = np.uint64(len(keys) - 1)
    slot = key & last
    while stamps[slot] == stamp and keys[slot] != key:
        slot = (slot + _ONE) & last
    return slot


@_compiled
def _split(codes, flags, begin, end, base, starts, lengths, marks, totals, powers, ends):
    """Finds the words of a text, hashes them, and gathers the flags of their characters; returns how many."""
    count = 0
    before = 0
    for place in range(begin, end):
        kind = flags[place] & (_WORD | _OTHER)
        is_apostrophe = codes[place] == 0x27 or codes[place] == 0x2019
        if before == _WORD and (flags[place] & _MARK or (is_apostrophe and flags[place + 1] & _WORD)):
            kind = _WORD
        if kind != 0:
            if kind != before:
                starts[count], lengths[count], marks[count] = place, 0, 0
                totals[count], powers[count] = _ZERO, _ONE
                count += 1
            word = count - 1
            lengths[word] += 1
            marks[word] |= flags[place]
            totals[word] = totals[word] * base + np.uint64(codes[place])
            powers[word] *= base
            ends[count] = ends[word] + lengths[word]
        before = kind
    return count


@_compiled
def _word_hash(codes, base):
    """Hashes a word as the words of texts are."""
    total = _ZERO
    for code in codes:
        total = total * base + np.uint64(code)
    return _mix(total + np.uint64(len(codes)))


@_compiled
def _quality(codes, flags, begin, end, datatrove, words, count, stops, found, values):
    """Fills in the values of Gopher's rules of quality."""
    starts, lengths, marks, totals = words
    hashes, numbers, longest = stops
    plain = characters = letters = stopped = 0
    found[:] = False
    for word in range(count):
        letters += (marks[word] & _ALPHA) != 0
        if marks[word] & _PLAIN:
            plain += 1
            characters += lengths[word]
        if lengths[word] <= longest:
            key = _mix(totals[word] + np.uint64(lengths[word]))
            for form in range(len(hashes)):
                if hashes[form] == key and not found[numbers[form]]:
                    found[numbers[form]] = True
                    stopped += 1
    marked = ellipses = dots = 0
    for place in range(begin, end):
        marked += codes[place] == 0x23
        ellipses += codes[place] == 0x2026
        dots = dots + 1 if codes[place] == 0x2E else 0
        if dots == 3:
            ellipses += 1
            dots = 0
    lines = begun = ended = word = 0
    start = begin
    for place in range(begin, end + 1):
        is_break = place == end or codes[place] == 0x0A
        if datatrove and not is_break and flags[place] & _BREAK:
            is_break = codes[place] != 0x0D or codes[place + 1] != 0x0A
        if not is_break:
            continue
        first = word
        while word < count and starts[word] < place:
            word += 1
        lines += (place < end or start < end) if datatrove else word > first
        if word > first:
            code, last = codes[starts[first]], starts[word - 1] + lengths[word - 1]
            begun += code == 0x2D or code == 0x2022
            if codes[last - 1] == 0x2026:
                ended += 1
            elif last - begin > 2 and codes[last - 1] == 0x2E:
                ended += codes[last - 2] == 0x2E and codes[last - 3] == 0x2E
        start = place + 1
    spoken = max(count if datatrove else plain, 1)
    values[0] = values[1] = plain
    values[2] = values[3] = characters / max(plain, 1)
    values[4], values[5] = marked / spoken, ellipses / spoken
    values[6], values[7] = begun / max(lines, 1), ended / max(lines, 1)
    values[8], values[9] = letters / spoken, stopped


@_compiled
def _repeated(codes, starts, ends, count, empty, base, keys, stamps, stamp, values):
    """Fills in the share of pieces of a text that repeat an earlier one, and how many characters those have."""
    again = characters = 0
    for piece in range(count if count > 1 else 0):
        key = np.uint64(ends[piece] - starts[piece])
        for place in range(starts[piece], ends[piece]):
            key = key * base + np.uint64(codes[place])
        key = _mix(key)
        slot = _slot(keys, stamps, stamp, key)
        if stamps[slot] == stamp:
            again += 1
            characters += ends[piece] - starts[piece]
        stamps[slot], keys[slot] = stamp, key
    values[0], values[1] = (again + (empty == 2)) / max(count + empty, 1), characters


@_compiled
def _parts(codes, begin, end, datatrove, starts, lengths, count, pieces):
    """Finds the lines and paragraphs of a text, without blank ones but for datatrove; returns how many of each."""
    line_starts, line_ends, starts_of, ends_of = pieces
    lines = paragraphs = word = 0
    is_open = has_words = False
    start = begin
    for place in range(begin, end + 1):
        if place < end and codes[place] != 0x0A:
            continue
        first = word
        while word < count and starts[word] < place:
            word += 1
        if start < place:
            if datatrove or word > first:
                line_starts[lines], line_ends[lines] = start, place
                lines += 1
            if not is_open:
                starts_of[paragraphs] = max(start, starts[0])
                is_open, has_words = True, False
            ends_of[paragraphs] = min(place, starts[count - 1] + lengths[count - 1])
            has_words = has_words or word > first
        if is_open and (place == end or start == place):
            is_open = False
            paragraphs += (datatrove or has_words) and starts_of[paragraphs] < ends_of[paragraphs]
        start = place + 1
    return lines, paragraphs


@_compiled
def _top(grams, ends, count, n, once, keys, stamps, stamp, counts, slots):
    """Returns the characters of all occurrences of the most frequent n-gram, the first of equally frequent ones."""
    for gram in range(count - n + 1):
        slot = _slot(keys, stamps, stamp, grams[gram])
        if stamps[slot] != stamp:
            stamps[slot], keys[slot], counts[slot] = stamp, grams[gram], 0
        counts[slot] += 1
        slots[gram] = slot
    most, characters = 0 if once else 1, 0
    for gram in range(count - n + 1):
        if counts[slots[gram]] > most:
            most = counts[slots[gram]]
            characters = most * (ends[gram + n] - ends[gram] + n - 1)
    return characters


@_compiled
def _again(grams, ends, count, n, apart, keys, stamps, stamp):
    """Returns the characters in n-grams that repeat an earlier one; ``apart``: behind such a one the next begins."""
    characters = free = 0
    for gram in range(count - n + 1):
        if apart and gram < free:
            continue
        key = _mix(grams[gram])
        slot = _slot(keys, stamps, stamp, key)
        if stamps[slot] == stamp:
            characters += ends[gram + n] - ends[max(gram, free)]
            free = gram + n
        stamps[slot], keys[slot] = stamp, key
    return characters


@_compiled
def _first_bad(values, least, most, begin, end):
    """Returns the first of some rules whose value is not allowed, or -1."""
    for rule in range(begin, end):
        if values[rule] < least[rule] or values[rule] > most[rule]:
            return rule
    return -1


@_compiled
def _gopher(codes, flags, edges, stops, sizes, limits, base, datatrove, values, failed):
    """Fills in what ``gopher_values`` returns, text by text, as far as to the first rule that is broken."""
    tops, duplicates = sizes
    least, most, fewest = limits
    longest = words = 1
    for text in range(len(edges) - 1):
        pieces = spoken = 1
        for place in range(edges[text], edges[text + 1]):
            pieces += codes[place] == 0x0A
            spoken += (flags[place] & 3) != 0 and (flags[place] & 3) != (flags[place - 1] & 3)
        longest, words = max(longest, pieces), max(words, spoken)
    size = 2
    while size < 2 * max(longest, words):
        size *= 2
    keys, stamps, counts = np.empty(size, np.uint64), np.zeros(size, np.int64), np.empty(size, np.int64)
    starts, lengths, marks = np.empty(words, np.int64), np.empty(words, np.int64), np.empty(words, np.uint8)
    totals, powers, grams = np.empty(words, np.uint64), np.empty(words, np.uint64), np.empty(words, np.uint64)
    slots, ends = np.empty(words, np.uint64), np.zeros(words + 1, np.int64)
    parts = (
        np.empty(longest, np.int64),
        np.empty(longest, np.int64),
        np.empty(longest, np.int64),
        np.empty(longest, np.int64),
    )
    found = np.zeros(max(len(stops[0]), 1), np.bool_)
    stamp = 0
    for text in range(len(edges) - 1):
        begin, end = edges[text], edges[text + 1] - 1
        own = values[text]
        count = _split(codes, flags, begin, end, base, starts, lengths, marks, totals, powers, ends)
        own_words = starts, lengths, marks, totals
        _quality(codes, flags, begin, end, datatrove, own_words, count, stops, found, own)
        failed[text] = _first_bad(own, least, most, 0, 10)
        if failed[text] >= 0:
            continue
        characters = end - begin
        lines, paragraphs = _parts(codes, begin, end, datatrove, starts, lengths, count, parts)
        empty = (codes[begin] == 0x0A) + (codes[end - 1] == 0x0A) if datatrove else 0
        stamp += 2
        _repeated(codes, parts[2], parts[3], paragraphs, 0, base, keys, stamps, stamp - 1, own[10:12])
        _repeated(codes, parts[0], parts[1], lines, empty, base, keys, stamps, stamp, own[12:14])
        own[11] /= characters
        own[13] /= characters
        failed[text] = _first_bad(own, least, most, 10, 14)
        made = 0
        grams[:count] = _ZERO
        for column in range(len(tops)):
            n = tops[column]
            if failed[text] >= 0:
                break
            for gram in range(count - n + 1):
                for word in range(gram + made, gram + n):
                    grams[gram] = _mix(grams[gram] + totals[word] + np.uint64(lengths[word])) * base
            made = n
            stamp += 1
            own[14 + column] = _top(grams, ends, count, n, datatrove, keys, stamps, stamp, counts, slots) / characters
            failed[text] = _first_bad(own, least, most, 14 + column, 15 + column)
        made = 0
        grams[:count] = _ZERO
        for column in range(len(duplicates)):
            n, rule = duplicates[column], 14 + len(tops) + column
            if failed[text] >= 0:
                break
            for gram in range(count - n + 1):
                for word in range(gram + made, gram + n):
                    grams[gram] = grams[gram] * powers[word] + totals[word]
            made = n
            stamp += 2
            # Words in a repeated n-gram stand in repeated shorter ones too.
            if column == 0 and _again(grams, ends, count, n, False, keys, stamps, stamp - 1) / characters <= fewest:
                break
            own[rule] = _again(grams, ends, count, n, True, keys, stamps, stamp) / characters
            failed[text] = _first_bad(own, least, most, rule, rule + 1)


def gopher_values(
    texts: Sequence[str],
    punctuation: frozenset[str],
    marks: frozenset[str],
    stop_forms: Mapping[str, int],
    sizes: tuple[list[int], list[int]],
    limits: "tuple[NDArray[np.float64], NDArray[np.float64], float]",
    base: np.uint64,
    datatrove: bool,
) -> "tuple[NDArray[np.float64], NDArray[np.int64]]":
    """Returns what Gopher's rules limit, as ``web_rules`` measures it, as far as to the first that is broken.

    Args:
        texts: The texts.
        punctuation: The signs that are no part of what is said.
        marks: Those that belong to the letter before them.
        stop_forms: The number of the stop word that each form is of.
        sizes: Words of the most frequent n-grams, and of those that repeat others, each in order.
        limits: The least and the most that each rule allows, shape (rules,), and the share of characters in repeated
            n-grams of the least size up to which a text is not looked at further.
        base: Of the polynomials that hash characters.
        datatrove: Whether to read the rules as datatrove does.

    Returns:
        The values, shape (texts, rules), and which rule each text breaks, -1 for none, shape (texts,).
    """
    joined = "\n".join(["", *texts, ""])
    table = _flags(punctuation, marks)
    codes: NDArray[Any]
    if joined.isascii():
        data = joined.encode()
        codes = np.frombuffer(data, np.uint8)
        flags = np.frombuffer(data.translate(table[:256].tobytes()), np.uint8)
    else:
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        flags = table.take(codes)
    edges = bounds_of(np.fromiter(map(len, texts), np.int64, len(texts)) + 1) + 1
    hashes = [_word_hash(np.array(list(map(ord, form))), base) for form in stop_forms]
    longest = max(map(len, stop_forms), default=0)
    stops = np.array(hashes, np.uint64), np.array(list(stop_forms.values()), np.int64), longest
    values, failed = np.zeros((len(texts), len(limits[0]))), np.empty(len(texts), np.int64)
    both = tuple(np.array(some, np.int64) for some in sizes)
    _gopher(codes, flags, edges, stops, both, limits, base, datatrove, values, failed)
    return values, failed
