"""Words and n-grams of many texts at once: what decontamination and clean scores match on.

A word is a run of letters with their marks (accents, vowel signs), digits and ``_``, lower-cased; what stands between
words, line breaks too, does not count, so a text that is wrapped, indented or punctuated anew keeps its words. Numbers
are words like any other. A sign of a script without spaces (Han, kana, Thai, …) is a word of its own.

Words are 64-bit polynomial hashes over a chunk's bytes by prefix sums, n-grams the same over words: the work does not
depend on n, and no text is looped over in Python. Two different n-grams of 10⁹ share a hash with probability
10¹⁸ / 2⁶⁴ < 0.06 (birthday bound), so what removes a row or a score is compared word by word before it counts.
"""

import functools
import importlib.util
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .ragged import Ragged, bounds_of, ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]
    Integers = NDArray[np.int64]

Core = Literal["numpy", "numba"]
"""What hashes many texts; the hashes are the same."""
_SPARSE = 5  # bits by which the table of an index is larger than it has n-grams
WORDS_VERSION = 2  # raise it whenever the same text has other words; what is kept by them must say so
CHUNK = 1 << 19  # bytes hashed at a time: what prefix sums of it need stays in the cache of a core

BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
_ONE = np.uint64(1)
_INVERSE = np.uint64(pow(int(BASE), -1, 1 << 64))
_SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")  # ASCII is told apart by its bytes, later
_WORD = re.compile(r"[^\x00-/:-@\[-^`{-\x7f]+")  # of a normalised text, where all that is not ASCII belongs to words
# NFKC makes a space and a mark of a sign like "´", which many write for an apostrophe.
_LONE_MARKS = re.compile("[\u0300-\u036f\u064b-\u0652\u0670](?<= .)[\u0300-\u036f\u064b-\u0652\u0670]*")


@functools.cache
def marks() -> frozenset[str]:
    """Returns the signs that belong to the letter before them: accents and vowel signs, Unicode's Mn and Mc.

    Variation selectors are left out, which choose how an emoji or a Han sign looks.
    """
    signs = map(chr, range(0x300, 0x1F000))  # beyond are none but such selectors
    return frozenset(
        sign for sign in signs if unicodedata.category(sign) in ("Mn", "Mc") and not "\ufe00" <= sign <= "\ufe0f"
    )


class _Signs(dict[str, str]):
    """What stands for a sign beyond ASCII: itself in a word, itself between spaces, or a space."""

    def __missing__(self, sign: str) -> str:
        is_inside = re.match(r"\w", sign) or sign in marks()
        self[sign] = f" {sign} " if _SPACELESS.match(sign) else sign if is_inside else " "
        return self[sign]


_SIGNS = _Signs()


def _lookup() -> bytes:
    """Returns what each byte is inside a word: itself, its lower case, or 0 between words."""
    ascii_ = (ord(chr(byte).lower()) if chr(byte) == "_" or chr(byte).isalnum() else 0 for byte in range(128))
    return bytes([*ascii_, *range(128, 256)])


_LOOKUP = _lookup()


@dataclass(frozen=True)
class Words(Ragged):
    """The words of several texts; odd are the hashes of words that begin with a digit."""

    @functools.cached_property
    def sums(self) -> "Hashes":
        """Returns for each word the sum of ``w[i] B^i`` over those before it, shape (words + 1,)."""
        sums = np.zeros(len(self.hashes) + 1, np.uint64)
        np.cumsum(self.hashes * integer_powers(len(sums))[0, : len(self.hashes)], out=sums[1:])
        return sums

    @property
    def wholes(self) -> "Hashes":
        """Returns a hash of all words of each text, 0 where there are none, shape (texts,)."""
        counts = self.counts
        return mix_bits(self.sums_of(self.bounds[:-1], counts) + counts.astype(np.uint64))

    def sums_of(self, starts: "Integers", counts: "Integers | int") -> "Hashes":
        """Returns a hash of so many words from each place on, the same for the same words, shape (places,)."""
        return (self.sums[starts + counts] - self.sums[starts]) * integer_powers(len(self.sums))[1, starts]


def normalise(text: str) -> str:
    """Returns a text whose words can be told by their bytes; one of ASCII is left as it is."""
    if text.isascii():
        return text
    folded = _LONE_MARKS.sub("", unicodedata.normalize("NFKC", text).casefold())
    return _NOT_ASCII.sub(lambda sign: _SIGNS[sign[0]], folded)


def words_in(text: str) -> list[str]:
    """Returns the words of one text: what ``split_words`` hashes, to be read or compared."""
    return _WORD.findall(normalise(text).lower())


def fastest_core() -> Core:
    """Returns the faster one of those that are installed."""
    return "numba" if importlib.util.find_spec("numba") else "numpy"


def split_words(texts: Sequence[str], core: Core = "numpy") -> Words:
    """Splits texts into words and hashes each.

    Args:
        texts: Any strings; a lone surrogate is a word's character like another.
        core: What does it.

    Returns:
        Their words, in order.
    """
    hash_words = _hash_words
    if core == "numba":
        from . import compiled

        hash_words = functools.partial(compiled.hash_words, lookup=_LOOKUP, base=BASE)
    hashes, counts = [], []
    for chunk in _chunks(texts):
        starts = bounds_of(np.array([len(part) + 1 for part in chunk]))
        found, begins = hash_words(b"\n".join([b"", *chunk, b""]))
        hashes.append(found)
        counts.append(np.diff(np.searchsorted(begins, starts)))
    if not counts:
        return Words(np.zeros(0, np.uint64), np.zeros(1, np.int64))
    return Words(np.concatenate(hashes), bounds_of(np.concatenate(counts)))


def ngrams(words: Words, n: int) -> tuple["Hashes", "Integers"]:
    """Hashes every n-gram of each text; a text of fewer than n words has none.

    Args:
        words: The texts.
        n: Words of an n-gram.

    Returns:
        The hashes, shape (n-grams,), and where each text's begin and the last's end, shape (texts + 1,). The i-th of a
        text starts at its i-th word.
    """
    counts = np.maximum(words.counts - n + 1, 0)
    return _windows(words, n)[ranges(words.bounds[:-1], counts)], bounds_of(counts)


def _windows(words: Words, n: int) -> "Hashes":
    """Hashes every n words in a row, those that stand in two texts too: ``w[i] + w[i+1] B + ...``."""
    sums = words.sums
    if len(sums) <= n:
        return np.zeros(0, np.uint64)
    # sum_{k<n} w[i+k] B^(i+k), divided by B^i, which is a product with its inverse modulo 2^64.
    hashes = sums[n:] - sums[:-n]
    hashes *= integer_powers(len(sums))[1, : len(hashes)]
    return hashes


@dataclass(frozen=True)
class NgramIndex:
    """Where each n-gram of some items stands.

    Attributes:
        n: Words of an n-gram.
        hashes: Of the distinct n-grams, sorted, shape (n-grams,).
        bounds: Where the places of each begin, and those of the last end, shape (n-grams + 1,).
        items: Whose the n-gram is at each place, shape (places,).
        positions: At which word of the item it begins there, likewise.
        maybe: Whether any hash has these upper bits: a quick no for most of what is looked up; a power of two.
    """

    n: int
    hashes: "Hashes"
    bounds: "Integers"
    items: "Integers"
    positions: "Integers"
    maybe: "NDArray[np.bool_]"

    @classmethod
    def build(cls, items: Words, n: int) -> "NgramIndex":
        """Indexes every n-gram of the items."""
        hashes, bounds = ngrams(items, n)
        counts = np.diff(bounds)
        owner = np.repeat(np.arange(len(items)), counts)
        positions = np.arange(len(hashes)) - np.repeat(bounds[:-1], counts)
        order = np.argsort(hashes, kind="stable")
        distinct, first = np.unique(hashes[order], return_index=True)
        bits = min(max(len(distinct).bit_length() + _SPARSE, 16), 26)
        maybe = np.zeros(1 << bits, bool)
        maybe[distinct >> np.uint64(64 - bits)] = True
        return cls(n, distinct, np.append(first, len(order)), owner[order], positions[order], maybe)

    def find(self, rows: Words) -> tuple["Integers", "Integers", "Integers", "Integers"]:
        """Looks every n-gram of the rows up.

        Returns:
            For each match the row, its first word there, the item, and its first word there; each of shape (matches,).
        """
        hashes = _windows(rows, self.n)
        near = np.flatnonzero(self.maybe.take(hashes >> np.uint64(65 - len(self.maybe).bit_length())))
        place = np.searchsorted(self.hashes, hashes[near])
        row = np.searchsorted(rows.bounds, near, "right") - 1
        is_found = near + self.n <= rows.bounds[row + 1]
        is_found &= np.append(self.hashes, 0)[place] == hashes[near]
        near, place, row = near[is_found], place[is_found], row[is_found]
        count = self.bounds[place + 1] - self.bounds[place]
        entries = ranges(self.bounds[place], count)
        at = np.repeat(near - rows.bounds[row], count)
        return np.repeat(row, count), at, self.items[entries], self.positions[entries]


def _chunks(texts: Sequence[str]) -> Iterator[list[bytes]]:
    """Yields the texts' bytes, about ``CHUNK`` of them at a time."""
    chunk: list[bytes] = []
    size = 0
    for text in texts:
        chunk.append(normalise(text).encode("utf-8", "surrogatepass"))
        size += len(chunk[-1])
        if size > CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _hash_words(text: bytes) -> tuple["Hashes", "Integers"]:
    """Hashes the words of a text that begins and ends between words; returns where each begins too."""
    letters = np.frombuffer(text.translate(_LOOKUP), np.uint8)
    inside = letters != 0
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1  # where words begin and end, in turns
    begins = edges[0::2]
    power = integer_powers(len(letters) + 1)
    sums = np.zeros(len(letters) + 1, np.uint64)
    np.cumsum(letters * power[0, : len(letters)], out=sums[1:])
    at_edges = sums[edges]
    hashes = mix_bits((at_edges[1::2] - at_edges[0::2]) * power[1, begins] + np.diff(edges)[0::2].astype(np.uint64))
    is_number = letters[begins] - np.uint8(ord("0")) < 10
    return hashes >> _ONE << _ONE | is_number, begins


_cache: list["Hashes"] = []


def integer_powers(count: int) -> "Hashes":
    """Returns the first powers of the base and of its inverse, shape (2, at least count)."""
    if not _cache or _cache[0].shape[1] < count:
        powers = np.empty((2, max(count, CHUNK + (CHUNK >> 2))), np.uint64)
        powers[:, 0] = 1
        powers[0, 1:], powers[1, 1:] = BASE, _INVERSE
        _cache[:] = [np.cumprod(powers, axis=1, out=powers)]
    return _cache[0]


def mix_bits(values: "Hashes") -> "Hashes":
    """Spreads each value's bits over all 64 (the finaliser of SplitMix64, Steele et al. 2014, section 5)."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
