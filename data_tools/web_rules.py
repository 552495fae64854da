"""Rules for web text: Gopher's, C4's and FineWeb's, as datatrove has them and as their papers mean them.

A word is a run of letters, digits and ``_``, with the apostrophes inside it, or a run of other signs between spaces.
What counts words does so for many texts at once in numpy; what looks for repeated n-grams first works out the
most that a text can repeat, and counts only where that is too much. N-grams are equal if their 64-bit hashes are.

Sources: Gopher, Rae et al. 2021 (arXiv 2112.11446), appendix A.1 and table A1; C4, Raffel et al. 2020 (JMLR 21),
section 2.2; FineWeb, Penedo et al. 2024 (arXiv 2406.17557), section 3.6. "datatrove" is its version 0.10.1.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, field_validator

from .ngrams import CHUNK, bounds_of, integer_powers
from .spec import Section

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The signs that end a sentence and the other punctuation, of all scripts, as datatrove 0.10.1 (Apache-2.0) lists them.
_TERMINAL = """21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736
17d4-17d6 17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049
2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52
fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd
111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11944 11946
11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16e98 1bc9f 1da88"""
_PUNCTUATION = """22-2d 2f 3a-3e 40 5b-60 7b-7e ab b4 bb 2013-2014 2019 201c-201e 2026 2236 2501 25ba 3001 3008-300d
3010-3011 ff05 ff08-ff09 ff0c ff11 ff1a-ff1b ff5e 0-8 b-c d-1f 7f-9f"""


def _signs(ranges: str) -> frozenset[str]:
    """Returns the signs of a list of hexadecimal code points and ranges of them."""
    signs: set[str] = set()
    for part in ranges.split():
        first, _, last = part.partition("-")
        signs.update(map(chr, range(int(first, 16), int(last or first, 16) + 1)))
    return frozenset(signs)


TERMINAL = _signs(_TERMINAL)
PUNCTUATION = TERMINAL | _signs(_PUNCTUATION)
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")

WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]+")
SENTENCE_END = re.compile(r"[.!?][\"'\u201d\u2019)\]]*\s+(?=\S)")
_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_C4_ENDS = (".", "?", "!", '"', "'")
_CLOSED_ENDS = (*_C4_ENDS, "\u201d", "\u2019")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")

Ratio = float | None


def _numbered(value: Any) -> Any:
    """Reads the keys of a mapping, which YAML and JSON have as texts, as numbers."""
    if not isinstance(value, Mapping):
        return {} if value is None else value
    return {int(key) if isinstance(key, str) and key.isdecimal() else key: item for key, item in value.items()}


ByLength = Annotated[
    dict[Annotated[int, Field(ge=1, le=64)], Annotated[float, Field(ge=0)]], BeforeValidator(_numbered)
]


class WebThresholds(Section):
    """What rules for web text allow. `null` switches a rule off; 0 is 0."""

    min_words: int | None = 50
    """Gopher: the least words, those of punctuation not counted."""
    max_words: int | None = 100_000
    """Gopher: the most words, likewise."""
    min_word_length: float | None = 3
    """Gopher: the least mean length of words in characters."""
    max_word_length: float | None = 10
    """Gopher: the largest mean length of words."""
    max_hashes: Ratio = 0.1
    """Gopher: the most `#` for each word."""
    max_ellipses: Ratio = 0.1
    """Gopher: the most ellipses for each word."""
    max_bullet_lines: Ratio = 0.9
    """Gopher: the largest share of lines that begin with a bullet."""
    max_ellipsis_lines: Ratio = 0.3
    """Gopher: the largest share of lines that end with an ellipsis."""
    min_alphabetic_words: Ratio = 0.8
    """Gopher: the least share of words with a letter."""
    min_stop_words: int | None = 2
    """Gopher: how many different ones of `stop_words` a text must have."""
    stop_words: list[str] = Field(default_factory=lambda: list(STOP_WORDS))
    """Gopher: frequent words of the language; the default is English."""

    @field_validator("stop_words")
    @classmethod
    def _are_words(cls, words: list[str]) -> list[str]:
        for word in words:
            if words_of(word) != [word]:
                raise ValueError(f"'{word}' is not one word: no text has it")
        return words

    max_duplicate_paragraphs: Ratio = 0.3
    """Gopher: the largest share of paragraphs that repeat an earlier one."""
    max_duplicate_paragraph_characters: Ratio = 0.2
    """Gopher: the largest share of characters in such paragraphs."""
    max_duplicate_lines: Ratio = 0.3
    """Gopher: the largest share of lines that repeat an earlier one."""
    max_duplicate_line_characters: Ratio = 0.2
    """Gopher: the largest share of characters in such lines."""
    top_ngrams: ByLength = Field(default_factory=lambda: {2: 0.2, 3: 0.18, 4: 0.16})
    """Gopher: the largest share of characters in the most frequent n-gram, by n."""
    duplicate_ngrams: ByLength = Field(default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1})
    """Gopher: the largest share of characters in n-grams that repeat an earlier one, by n."""
    min_sentences: int | None = 5
    """C4: the least sentences in the lines that stay."""
    min_line_words: int | None = 3
    """C4: lines of fewer words are cut."""
    max_line_word: int | None = 1000
    """C4: lines with a longer word are cut."""
    min_punctuated_lines: Ratio = 0.12
    """FineWeb: the least share of lines that end a sentence."""
    max_short_lines: Ratio = 0.67
    """FineWeb: the largest share of short lines."""
    short_line: int = 30
    """FineWeb: a line of so many characters is short."""
    max_duplicate_characters: Ratio = 0.1
    """FineWeb: the largest share of characters in lines that repeat an earlier one; datatrove has .01 for the paper's
    .1."""
    max_newlines: Ratio = 0.3
    """FineWeb: the most line breaks for each word."""


@dataclass(frozen=True)
class Verdict:
    """What rules say of a text.

    Attributes:
        reason: Why it goes; empty if it stays.
        detail: The number that decided, and what is allowed.
        text: What the text becomes, if rules edit it.
        edits: What was cut, by name, with how often.
    """

    reason: str = ""
    detail: str = ""
    text: str | None = None
    edits: Mapping[str, int] = field(default_factory=dict)


PASSES = Verdict()
Check = Callable[[Sequence[str]], Sequence[Verdict]]


def above(name: str, value: float, limit: float | None) -> Verdict | None:
    """Returns the verdict on a number that must not be above a limit."""
    return Verdict(name, f"{value:.4g}, at most {limit:g}") if limit is not None and value > limit else None


def below(name: str, value: float, limit: float | None) -> Verdict | None:
    """Returns the verdict on a number that must not be below a limit."""
    return Verdict(name, f"{value:.4g}, at least {limit:g}") if limit is not None and value < limit else None


def words_of(text: str) -> list[str]:
    """Returns the words of a text, case and punctuation kept."""
    return WORD.findall(text)


def sentences_in(line: str) -> int:
    """Returns how many sentences a line has, one at least: what stands between ends of sentences and spaces."""
    return 1 + len(SENTENCE_END.findall(line))


# Flags of a code point.
_WORD, _OTHER, _ALPHA, _PLAIN = 1, 2, 4, 8  # part of a word; other, not space; alphabetic; no punctuation


@functools.cache
def _flags() -> "NDArray[np.uint8]":
    """Returns the flags of every code point."""
    every = "".join(map(chr, range(0x110000)))
    flags = np.full(0x110000, _OTHER | _PLAIN, np.uint8)
    for found in re.finditer(r"\s+", every):
        flags[found.start() : found.end()] = _PLAIN
    for found in re.finditer(r"\w+", every):
        flags[found.start() : found.end()] = _WORD | _PLAIN
        for place in range(found.start(), found.end()):
            if every[place].isalpha():
                flags[place] |= _ALPHA
    for sign in PUNCTUATION:
        flags[ord(sign)] &= ~np.uint8(_PLAIN)
    return flags


_ASCII_SPACES = bytes(code for code in range(128) if chr(code).isspace())
_HASH_BITS = 64


@functools.cache
def _ascii_flags() -> bytes:
    return _flags()[:128].tobytes() + bytes(128)


@dataclass(frozen=True)
class Table:
    """The words of several texts.

    Attributes:
        bounds: Where each text's words begin, and the last's end, shape (texts + 1,).
        ends: Characters of words before each word, shape (words + 1,).
        flags: The flags that any character of a word has, shape (words,).
        sums: Sum of ``c[i] B^i`` over the characters of words that come before each, shape (words + 1,).
        inverse: ``B^-i`` of each word's first character, shape (words,).
    """

    bounds: "NDArray[np.int64]"
    ends: "NDArray[np.int64]"
    flags: "NDArray[np.uint8]"
    sums: "NDArray[np.uint64]"
    inverse: "NDArray[np.uint64]"

    @functools.cached_property
    def texts(self) -> "NDArray[np.int64]":
        """Returns to which text each word belongs, shape (words,)."""
        return np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))

    @functools.cached_property
    def lengths(self) -> "NDArray[np.int64]":
        """Returns the characters of each word, shape (words,)."""
        return np.diff(self.ends)

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Table":
        """Splits texts into words, as ``words_of`` does one; texts of ASCII alone are split faster."""
        joined = "\n".join(["", *texts, ""])
        characters: NDArray[Any]
        if joined.isascii():
            data = joined.encode()
            codes = np.frombuffer(data, np.uint8)
            kinds = np.frombuffer(data.translate(_ascii_flags()), np.uint8) & (_WORD | _OTHER)
            letters = data.translate(None, _ASCII_SPACES)
            characters = np.frombuffer(letters, np.uint8)
            flags = np.frombuffer(letters.translate(_ascii_flags()), np.uint8)
        else:
            codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
            flags = _flags().take(codes)
            kinds = flags & (_WORD | _OTHER)
            inside = kinds != 0
            characters, flags = codes[inside], flags[inside]
        for sign in "'\u2019":
            if sign in joined:
                at = np.flatnonzero(codes == ord(sign))
                kinds[at[(kinds[at - 1] == _WORD) & (kinds[at + 1] == _WORD)]] = _WORD
        edges = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
        is_word = kinds[edges[:-1]] != 0
        starts, lengths = edges[:-1][is_word], np.diff(edges)[is_word]
        ends = bounds_of(lengths)
        power = integer_powers(len(characters) + 1)
        sums = np.zeros(len(characters) + 1, np.uint64)
        np.cumsum(characters * power[0, : len(characters)], out=sums[1:])
        first = bounds_of(np.fromiter(map(len, texts), np.int64, len(texts)) + 1) + 1
        any_flags = np.bitwise_or.reduceat(flags, ends[:-1]) if len(lengths) else np.zeros(0, np.uint8)
        return cls(np.searchsorted(starts, first), ends, any_flags, sums[ends], power[1, ends[:-1]])

    def per_text(self, values: "NDArray[np.int64] | NDArray[np.bool_]") -> list[int]:
        """Returns the sum over each text's words."""
        return np.diff(bounds_of(values.astype(np.int64, copy=False))[self.bounds]).tolist()

    def hashes(self, starts: "NDArray[np.int64]", n: int) -> "NDArray[np.uint64]":
        """Hashes n words from each place on, by their characters without what stands between."""
        return _mixed((self.sums[starts + n] - self.sums[starts]) * self.inverse[starts])

    def windows(self, n: int) -> "tuple[NDArray[np.uint64], NDArray[np.int64]]":
        """Hashes every n words in a row, those that stand in two texts too; returns their characters as well."""
        hashes = _mixed((self.sums[n:] - self.sums[:-n]) * self.inverse[: 1 - n or None])
        return hashes, self.ends[n:] - self.ends[:-n]

    def spacing(self, starts: "NDArray[np.int64]", n: int) -> "NDArray[np.uint64]":
        """Hashes where n words are parted from each other."""
        found = np.zeros(len(starts), np.uint64)
        for word in range(n):
            found = (found + self.lengths[starts + word].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        return _mixed(found)

    def repeats(self, n: int, wanted: "NDArray[np.bool_]", spaced: bool) -> "Repeats":
        """Finds the n-grams that stand in one of the wanted texts more than once.

        Args:
            n: Words of an n-gram.
            wanted: Which texts.
            spaced: Whether those are two that have the same characters, parted in another way.
        """
        counts = np.where(wanted, np.maximum(np.diff(self.bounds) - n + 1, 0), 0)
        bounds = bounds_of(counts)
        starts = np.arange(int(bounds[-1])) + np.repeat(self.bounds[:-1] - bounds[:-1], counts)
        return self._repeats(starts, lambda places: self.hashes(places, n) + self.spacing(places, n) * spaced)

    def _repeats(
        self,
        starts: "NDArray[np.int64]",
        hashes_of: "Callable[[NDArray[np.int64]], NDArray[np.uint64]]",
    ) -> "Repeats":
        def in_texts(places: "NDArray[np.int64]") -> "NDArray[np.uint64]":
            return _mixed(hashes_of(places) + self.texts[places].astype(np.uint64) * np.uint64(0x94D049BB133111EB))

        # Upper bits of the hash and lower ones of the place, so that one sort of plain numbers orders both.
        low = np.uint64(max(len(self.lengths).bit_length(), 64 - _HASH_BITS, 1))
        keys = np.sort(in_texts(starts) >> low << low | starts.astype(np.uint64))
        part = np.uint64((1 << int(low)) - 1)
        is_same = (keys[1:] ^ keys[:-1]) <= part
        places = (keys[_members(is_same)[: len(keys)]] & part).astype(np.int64)
        # Those that only share the upper bits are parted by all of them.
        hashes = in_texts(places)
        order = np.lexsort((places, hashes))
        places, hashes = places[order], hashes[order]
        is_same = hashes[1:] == hashes[:-1]
        is_member = _members(is_same)[: len(places)]
        is_first = ~np.append(False, is_same)[: len(places)][is_member]
        places = places[is_member]
        return Repeats(places, np.append(np.flatnonzero(is_first), len(places)))


def _mixed(hashes: "NDArray[np.uint64]") -> "NDArray[np.uint64]":
    """Spreads hashes over the upper bits."""
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    return hashes


def _members(is_same: "NDArray[np.bool_]") -> "NDArray[np.bool_]":
    """Tells which of sorted values are equal to a neighbour, from which are equal to the one before."""
    return np.append(is_same, False) | np.append(False, is_same)


@dataclass(frozen=True)
class Repeats:
    """N-grams that stand more than once in a text.

    Attributes:
        places: The first word of each occurrence, those of one n-gram together and in order, shape (occurrences,).
        bounds: Where each n-gram's begin, and the last's end, shape (n-grams + 1,).
    """

    places: "NDArray[np.int64]"
    bounds: "NDArray[np.int64]"

    @property
    def counts(self) -> "NDArray[np.int64]":
        """Returns how often each stands there, shape (n-grams,)."""
        return np.diff(self.bounds)


def _in_chunks(texts: Sequence[str]) -> Iterator[list[int]]:
    """Yields places of texts, so many at a time that what numpy needs stays in a core's cache, ASCII apart."""
    for ascii_ in (True, False):
        chunk: list[int] = []
        size = 0
        for place, text in enumerate(texts):
            if text.isascii() == ascii_:
                chunk.append(place)
                size += len(text)
                if size > CHUNK:
                    yield chunk
                    chunk, size = [], 0
        if chunk:
            yield chunk


def gopher(limits: WebThresholds, datatrove: bool = False) -> Check:
    """Returns Gopher's rules, of quality and of repetition.

    Args:
        limits: What is allowed.
        datatrove: Whether the rules are datatrove's, to the letter. Else stop words count in lower, upper or title
            case, words of punctuation count for no share, blank lines for none either, and the most frequent n-gram
            only if it stands there twice.
    """

    def check(texts: Sequence[str]) -> list[Verdict]:
        verdicts = [PASSES] * len(texts)
        for places in _in_chunks(texts):
            some = [texts[place] for place in places]
            table = Table.of(some)
            found = _quality(some, table, limits, datatrove)
            for place, text in enumerate(some):
                found[place] = found[place] or _repeated_lines(text, limits, datatrove)
            _repeated_ngrams(some, table, limits, datatrove, found)
            for place, verdict in zip(places, found, strict=True):
                verdicts[place] = verdict or PASSES
        return verdicts

    return check


def _quality(texts: Sequence[str], table: Table, limits: WebThresholds, datatrove: bool) -> list[Verdict | None]:
    plain = (table.flags & _PLAIN) != 0
    counts = zip(
        texts,
        np.diff(table.bounds).tolist(),
        table.per_text(plain),
        table.per_text(np.where(plain, table.lengths, 0)),
        table.per_text((table.flags & _ALPHA) != 0),
        _stop_words(table, limits, datatrove),
        strict=True,
    )
    return [
        _counted(text, words if datatrove else plain, plain, length, alphabetic, stop, limits, datatrove)
        for text, words, plain, length, alphabetic, stop in counts
    ]


def _counted(
    text: str, words: int, plain: int, length: int, alphabetic: int, stop: int, limits: WebThresholds, datatrove: bool
) -> Verdict | None:
    """Returns what Gopher's rules of quality say of a text, by its counts."""
    if (limits.min_words is not None and plain < limits.min_words) or not plain:
        return Verdict("too few words", f"{plain}, at least {limits.min_words}")
    return (
        above("too many words", plain, limits.max_words)
        or below("short words", length / plain, limits.min_word_length)
        or above("long words", length / plain, limits.max_word_length)
        or above("many hashes", text.count("#") / words, limits.max_hashes)
        or above("many ellipses", (text.count("...") + text.count("…")) / words, limits.max_ellipses)
        or _line_marks(text, limits, datatrove)
        or below("few words with letters", alphabetic / words, limits.min_alphabetic_words)
        or below("few stop words", stop, limits.min_stop_words)
    )


def _line_marks(text: str, limits: WebThresholds, datatrove: bool) -> Verdict | None:
    bullets, ellipses = text.count("-") + text.count("•"), text.count("...") + text.count("…")
    if not bullets and not ellipses:
        return None
    lines = text.splitlines() if datatrove else [line for line in text.split("\n") if line.strip()]
    # No more lines can begin or end with such a sign than there are signs, which are counted faster.
    most_begun, most_ended = limits.max_bullet_lines, limits.max_ellipsis_lines
    if most_begun is not None and bullets > most_begun * len(lines):
        begun = sum([line.lstrip().startswith(("•", "-")) for line in lines])
        if begun / len(lines) > most_begun:
            return above("bullet lines", begun / len(lines), most_begun)
    if most_ended is not None and ellipses > most_ended * len(lines):
        ended = sum([line.rstrip().endswith(("...", "…")) for line in lines])
        return above("ellipsis lines", ended / len(lines), most_ended)
    return None


def _stop_words(table: Table, limits: WebThresholds, datatrove: bool) -> list[int]:
    """Returns how many different stop words each text has."""
    known = _stop_hashes(tuple(sorted({word if datatrove else word.lower() for word in limits.stop_words})), datatrove)
    short = np.flatnonzero(table.lengths <= max((length for length, _ in known), default=0))
    hashes = table.hashes(short, 1)
    seen = np.zeros((len(table.bounds) - 1, len(known)), bool)
    for place, (_, forms) in enumerate(known):
        for form in forms:
            seen[table.texts[short[hashes == form]], place] = True
    return seen.sum(axis=1).tolist()


@functools.lru_cache(8)
def _stop_hashes(words: tuple[str, ...], datatrove: bool) -> list[tuple[int, list[int]]]:
    """Returns the length of each word and the hashes of its forms."""
    found = []
    for word in words:
        forms = sorted({word} if datatrove else {word, word.upper(), word.title()})
        found.append((len(word), Table.of(forms).hashes(np.arange(len(forms)), 1).tolist()))
    return found


def _may_repeat_lines(text: str) -> bool:
    """Tells whether any line of a text, and so any paragraph, stands there twice."""
    if "\n" not in text:
        return False
    inner = text.strip("\n")
    lines = [line for line in inner.split("\n") if line]
    if len(set(lines)) < len(lines):
        return True
    # The rules split a text with the white space around it for lines, and without it for paragraphs.
    return (text[0] == text[-1] == "\n") or inner[:1].isspace() or inner[-1:].isspace()


def _repeated_lines(text: str, limits: WebThresholds, datatrove: bool) -> Verdict | None:
    """Returns what Gopher's rules say of repeated paragraphs and lines."""
    if not _may_repeat_lines(text):
        return None
    paragraphs = _PARAGRAPHS.split(text.strip())
    if datatrove:
        lines = _LINES.split(text)
    else:
        lines = [line for line in text.split("\n") if line.strip()]
        paragraphs = [part for part in paragraphs if part.strip()]
    for name, parts, share, characters in (
        ("paragraphs", paragraphs, limits.max_duplicate_paragraphs, limits.max_duplicate_paragraph_characters),
        ("lines", lines, limits.max_duplicate_lines, limits.max_duplicate_line_characters),
    ):
        count, length = find_duplicates(parts)
        verdict = above(f"duplicate {name}", count / len(parts), share) or above(
            f"characters in duplicate {name}", length / len(text), characters
        )
        if verdict:
            return verdict
    return None


def _repeated_ngrams(
    texts: Sequence[str], table: Table, limits: WebThresholds, datatrove: bool, found: "list[Verdict | None]"
) -> None:
    """Adds what Gopher's rules say of repeated n-grams to the verdicts."""
    characters = np.maximum(np.fromiter(map(len, texts), np.int64, len(texts)), 1)

    def judge(name: str, values: "NDArray[np.int64]", limit: float) -> None:
        for place in np.flatnonzero(values / characters > limit).tolist():
            found[place] = found[place] or above(name, int(values[place]) / len(texts[place]), limit)

    for n, limit in limits.top_ngrams.items():
        left = np.array([verdict is None for verdict in found])
        left &= _most_of_one(table, n) / characters > limit
        if left.any():
            judge(f"most frequent {n}-gram", _top(table, n, left, datatrove), limit)
    # Words in a repeated n-gram stand in repeated shorter ones, so those of the shortest bound all that follow.
    left = np.array([verdict is None for verdict in found])
    for number, (n, limit) in enumerate(sorted(limits.duplicate_ngrams.items())):
        left &= np.array([verdict is None for verdict in found])
        if left.any():
            values, covered = _duplicate_characters(table, n, left, characters, limit)
            judge(f"duplicate {n}-grams", values, limit)
            if number == 0:
                left &= covered / characters > min(limits.duplicate_ngrams.values())


def _most_of_one(table: Table, n: int) -> "NDArray[np.float64]":
    """Returns what the characters of all occurrences of any n-gram of a text do not exceed, shape (texts,).

    N-grams are counted in four times as many boxes as the text has words: several may share one, none stands in two.
    """
    if len(table.lengths) < n:
        return np.zeros(len(table.bounds) - 1)
    hashes, lengths = table.windows(n)
    counts = np.diff(table.bounds).astype(np.uint64) * np.uint64(4) + np.uint64(1)
    bounds = bounds_of(counts.astype(np.int64))
    texts = table.texts[: len(hashes)]
    box = (hashes >> np.uint64(32)) * counts[texts] >> np.uint64(32)
    filled = np.bincount(box.astype(np.int64) + bounds[texts], lengths + (n - 1), int(bounds[-1]))
    return np.maximum.reduceat(filled, bounds[:-1])


def _top(table: Table, n: int, wanted: "NDArray[np.bool_]", datatrove: bool) -> "NDArray[np.int64]":
    """Returns the characters of all occurrences of the most frequent n-gram of the wanted texts, shape (texts,).

    Of equally frequent ones the first counts. One that stands once counts for datatrove alone.
    """
    values = np.zeros(len(wanted), np.int64)
    if datatrove:
        has = np.flatnonzero(wanted & (np.diff(table.bounds) >= n))
        starts = table.bounds[has]
        values[has] = table.ends[starts + n] - table.ends[starts] + n - 1
    repeats = table.repeats(n, wanted, True)
    first = repeats.places[repeats.bounds[:-1]]
    texts = table.texts[first]
    order = np.lexsort((first, -repeats.counts, texts))
    chosen = order[np.flatnonzero(np.diff(texts[order], prepend=-1))]
    starts = first[chosen]
    values[texts[chosen]] = (table.ends[starts + n] - table.ends[starts] + n - 1) * repeats.counts[chosen]
    return values


def _duplicate_characters(
    table: Table, n: int, wanted: "NDArray[np.bool_]", characters: "NDArray[np.int64]", limit: float
) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """Returns the characters of n-grams that repeat an earlier one, none counted twice, and all words' in such.

    A text is walked through: behind a repeated n-gram the next begins, and those between them are not known later. The
    first is at most the second, and is worked out only where the second is above the limit; each of shape (texts,).
    """
    repeats = table.repeats(n, wanted, False)
    again = np.delete(repeats.places, repeats.bounds[:-1])
    edges = np.zeros(len(table.lengths) + 1, np.int64)
    edges[again] += 1
    edges[again + n] -= 1
    inside = np.cumsum(edges)[:-1] > 0
    covered = np.array(table.per_text(np.where(inside, table.lengths, 0)))
    grams = np.repeat(np.arange(len(repeats.counts)), repeats.counts)
    is_wanted = (covered / characters > limit)[table.texts[repeats.places]]
    order = np.flatnonzero(is_wanted)[np.argsort(repeats.places[is_wanted])]
    places = repeats.places[order]
    lengths = table.ends[places + n] - table.ends[places]
    values = [0] * len(wanted)
    known = [False] * len(repeats.counts)
    free = 0
    for place, gram, length, text in zip(
        places.tolist(), grams[order].tolist(), lengths.tolist(), table.texts[places].tolist(), strict=True
    ):
        if place < free:
            continue
        if known[gram]:
            values[text] += length
            free = place + n
        else:
            known[gram] = True
    return np.array(values), covered


def find_duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """Returns how many parts repeat an earlier one, and their characters."""
    once = set(parts)
    return len(parts) - len(once), sum(map(len, parts)) - sum(map(len, once))


def fineweb(limits: WebThresholds, datatrove: bool = False) -> Check:
    """Returns FineWeb's own rules, which the paper applies after Gopher's and C4's."""

    def check_one(text: str) -> Verdict:
        lines = [line for line in text.split("\n") if line.strip()]
        if not lines:
            return Verdict("empty")
        ended = sum([line[-1] in TERMINAL for line in lines] if datatrove else [_ends(line) for line in lines])
        short = sum([len(line) <= limits.short_line for line in lines])
        length = len(text) - (newlines := text.count("\n"))
        repeated = find_duplicates(lines)[1] if len(set(lines)) < len(lines) else 0
        return (
            below("few lines that end a sentence", ended / len(lines), limits.min_punctuated_lines)
            or above("short lines", short / len(lines), limits.max_short_lines)
            or above("characters in duplicate lines", repeated / length, limits.max_duplicate_characters)
            or (newlines and _newlines(text, newlines, limits.max_newlines))
            or PASSES
        )

    return lambda texts: list(map(check_one, texts))


def _ends(line: str) -> bool:
    """Tells whether a line ends a sentence, also inside quotation marks or brackets."""
    return line[-1] in TERMINAL or line.rstrip(" \t\r\"'”’»)]")[-1:] in TERMINAL


def _newlines(text: str, newlines: int, limit: float | None) -> Verdict | None:
    # There are at least as many words as runs without a space, which are counted faster.
    if limit is None or newlines <= limit * len(text.split()):
        return None
    return above("line breaks", newlines / len(words_of(text)), limit)


def c4(limits: WebThresholds, datatrove: bool = False) -> Check:
    """Returns C4's rules: lines are cut, and texts go that hold a brace or filler, or few sentences after that.

    Args:
        limits: What is allowed.
        datatrove: Whether the rules are datatrove's, to the letter: a brace or filler counts only in a line that
            would stay, citations count as words, and no line ends with a typographic quotation mark.
    """

    def check_one(text: str) -> Verdict:
        if not datatrove:
            if "{" in text:
                return Verdict("curly bracket")
            if "lorem ipsum" in text.lower():
                return Verdict("lorem ipsum")
        kept, cuts, sentences = [], Counter[str](), 0
        for line in text.splitlines() if datatrove else text.split("\n"):
            line, why = _c4_line(line.strip(), limits, datatrove)
            if why in ("curly bracket", "lorem ipsum"):
                return Verdict(why)
            if why:
                cuts[why] += 1
                continue
            sentences += sentences_in(line) if limits.min_sentences is not None else 0
            kept.append(line)
        few = below("few sentences", sentences, limits.min_sentences)
        if few:
            return few
        made = "\n".join(kept).strip()
        return Verdict(text=made, edits=cuts) if made != text else PASSES

    return lambda texts: list(map(check_one, texts))


def _c4_line(line: str, limits: WebThresholds, datatrove: bool) -> tuple[str, str]:
    """Returns a line without citations, and why it is cut or its text goes."""
    if not line and not datatrove:
        return line, "blank line"
    words = line.split()
    longest = len(line) if limits.max_line_word is None else limits.max_line_word
    if len(line) > longest and any(len(word) > longest for word in words):
        return line, "line with a long word"
    if "[" in line:
        line = _CITATION.sub("", line)
        if not datatrove:
            line = line.strip()
            words = line.split()
    if not line.endswith(_C4_ENDS if datatrove else _CLOSED_ENDS) or line.endswith("..."):
        return line, "line that ends no sentence"
    if limits.min_line_words is not None and len(words) < limits.min_line_words:
        return line, "line of few words"
    lower = line.lower()
    if datatrove and "lorem ipsum" in lower:
        return line, "lorem ipsum"
    if "javascript" in lower:
        return line, "line on JavaScript"
    if datatrove and "{" in line:
        return line, "curly bracket"
    if ("cookie" in lower or "policy" in lower or "terms" in lower) and any(one in lower for one in _POLICIES):
        return line, "line on cookies or terms"
    return line, ""
