"""Rules for web text: Gopher's, C4's and FineWeb's, as datatrove has them and as their papers mean them.

A word is a run of letters, digits and ``_``, with the apostrophes inside it, or a run of other signs between spaces.
What counts words and lines does so for many texts at once in numpy; n-grams are counted by numba where it is installed
and there is enough to do. Lines, paragraphs and n-grams are equal if their 64-bit hashes are.

Sources: Gopher, Rae et al. 2021 (arXiv 2112.11446), appendix A.1 and table A1; C4, Raffel et al. 2020 (JMLR 21),
section 2.2; FineWeb, Penedo et al. 2024 (arXiv 2406.17557), section 3.6. "datatrove" is its version 0.10.1.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, field_validator

from .ngrams import BASE, CHUNK, Core, Words, fastest_core, integer_powers, mix_bits
from .ragged import bounds_of, ranges
from .spec import Section

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .ngrams import Hashes, Integers

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
_WORD, _OTHER, _ALPHA, _PLAIN, _BREAK = 1, 2, 4, 8, 16
"""Part of a word; other, not space; alphabetic; no punctuation; `str.splitlines` breaks lines there."""


@functools.cache
def _flags() -> "NDArray[np.uint8]":
    """Returns the flags of every code point."""
    every = "".join(map(chr, range(0x110000)))
    flags = np.full(0x110000, _OTHER | _PLAIN, np.uint8)
    for found in re.finditer(r"\s+", every):
        flags[found.start() : found.end()] = _PLAIN
        for place in range(found.start(), found.end()):
            if every[place].splitlines() == [""]:
                flags[place] |= _BREAK
    for found in re.finditer(r"\w+", every):
        flags[found.start() : found.end()] = _WORD | _PLAIN
        for place in range(found.start(), found.end()):
            if every[place].isalpha():
                flags[place] |= _ALPHA
    for sign in PUNCTUATION:
        flags[ord(sign)] &= ~np.uint8(_PLAIN)
    return flags


@functools.cache
def _ascii_flags() -> bytes:
    return _flags()[:128].tobytes() + bytes(128)


@dataclass(frozen=True)
class Table:
    """Several texts between line breaks, and where their words are.

    Attributes:
        texts: The texts.
        places: Which of more texts they are, shape (texts,).
        core: What hashes them.
        codes: All characters, shape (characters,).
        flags: Their flags, likewise.
        edges: Where each text begins, and behind the last's line break, shape (texts + 1,).
        starts: Where each word begins, shape (words,).
        lengths: Characters of each word, shape (words,).
        bounds: At which word each text begins, and where the last ends, shape (texts + 1,).
    """

    texts: Sequence[str]
    places: "Integers"
    core: Core
    codes: "NDArray[Any]"
    flags: "NDArray[np.uint8]"
    edges: "Integers"
    starts: "Integers"
    lengths: "Integers"
    bounds: "Integers"

    @classmethod
    def of(cls, texts: Sequence[str], places: "Integers | None" = None, core: Core = "numpy") -> "Table":
        """Splits texts into words, as ``words_of`` does one; texts of ASCII alone are split faster."""
        joined = "\n".join(["", *texts, ""])
        codes: NDArray[Any]
        if joined.isascii():
            data = joined.encode()
            codes = np.frombuffer(data, np.uint8)
            flags = np.frombuffer(data.translate(_ascii_flags()), np.uint8)
        else:
            codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
            flags = _flags().take(codes)
        kinds = flags & (_WORD | _OTHER)
        for sign in "'\u2019":
            if sign in joined:
                at = np.flatnonzero(codes == ord(sign))
                kinds[at[(kinds[at - 1] == _WORD) & (kinds[at + 1] == _WORD)]] = _WORD
        changes = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
        begins = np.flatnonzero(kinds[changes])
        starts = changes[begins]
        edges = bounds_of(np.fromiter(map(len, texts), np.int64, len(texts)) + 1) + 1
        lengths = changes[begins + 1] - starts
        places = np.arange(len(texts)) if places is None else places
        return cls(texts, places, core, codes, flags, edges, starts, lengths, np.searchsorted(starts, edges))

    def only(self, wanted: "NDArray[np.bool_]") -> "Table":
        """Returns the table of some of the texts, shape (texts,)."""
        chosen = np.flatnonzero(wanted)
        return (
            self
            if len(chosen) == len(wanted)
            else self.of([self.texts[place] for place in chosen.tolist()], self.places[chosen], self.core)
        )

    @property
    def counts(self) -> "Integers":
        """Returns how many words each text has, shape (texts,)."""
        return np.diff(self.bounds)

    @functools.cached_property
    def word_flags(self) -> "NDArray[np.uint8]":
        """Returns the flags that any character of a word has, shape (words,)."""
        flags = self.flags[self.starts]
        # What the first character does not settle; most words are letters.
        open_ = np.flatnonzero((flags & (_ALPHA | _PLAIN) != _ALPHA | _PLAIN) & (self.lengths > 1))
        if len(open_):
            spans = np.stack([self.starts[open_], self.starts[open_] + self.lengths[open_]], axis=1).ravel()
            flags[open_] = np.bitwise_or.reduceat(self.flags, spans)[::2]
        return flags

    @functools.cached_property
    def sums(self) -> "Hashes":
        """Returns the sum of ``c[i] B^i`` over the characters before each, shape (characters + 1,)."""
        count = len(self.codes)
        sums = np.zeros(count + 1, np.uint64)
        np.cumsum(self.codes * integer_powers(count + 1)[0, :count], out=sums[1:])
        return sums

    def polynomials(self, starts: "Integers", lengths: "Integers") -> "Hashes":
        """Returns the sum of ``c[i] B^i`` over the characters of each piece of the texts, shape (pieces,)."""
        if self.core == "numba":
            from .compiled import polynomials

            return polynomials(self.codes, starts, lengths, BASE)
        return (self.sums[starts + lengths] - self.sums[starts]) * integer_powers(len(self.sums))[1, starts]

    def hashes(self, starts: "Integers", lengths: "Integers") -> "Hashes":
        """Hashes pieces of the texts, shape (pieces,)."""
        return mix_bits(self.polynomials(starts, lengths) + lengths.astype(np.uint64))

    @functools.cached_property
    def words(self) -> Words:
        """Returns the words as hashes."""
        return Words(self.hashes(self.starts, self.lengths), self.bounds)

    @functools.cached_property
    def ends(self) -> "Integers":
        """Returns the characters of words before each word, shape (words + 1,)."""
        return bounds_of(self.lengths)

    @functools.cached_property
    def letters(self) -> "Hashes":
        """Returns ``sums`` at each word, of the characters of words alone, shape (words + 1,)."""
        sums = np.zeros(len(self.starts) + 1, np.uint64)
        powers = integer_powers(len(self.sums))[0, self.ends[:-1]]
        np.cumsum(self.polynomials(self.starts, self.lengths) * powers, out=sums[1:])
        return sums

    def letters_of(self, starts: "Integers", n: int) -> "Hashes":
        """Hashes n words from each place on, by their characters without what stands between, shape (places,)."""
        return mix_bits(
            (self.letters[starts + n] - self.letters[starts]) * integer_powers(len(self.sums))[1, self.ends[starts]]
        )

    @functools.cached_property
    def characters(self) -> "Integers":
        """Returns the characters of each text, 1 at least, shape (texts,)."""
        return np.maximum(np.diff(self.edges) - 1, 1)

    def per_text(self, values: "Integers | NDArray[np.bool_]") -> "Integers":
        """Returns the sum over each text's words, shape (texts,)."""
        return np.diff(bounds_of(values.astype(np.int64, copy=False))[self.bounds])

    def ngrams(self, n: int) -> "tuple[Integers, Integers]":
        """Returns the first word of each text's n-grams, and where each text's begin and the last's end."""
        counts = np.maximum(self.counts - n + 1, 0)
        return ranges(self.bounds[:-1], counts), bounds_of(counts)

    @functools.cached_property
    def breaks(self) -> "Integers":
        """Returns where ``str.splitlines`` breaks the texts and what stands around them, shape (breaks,)."""
        return np.flatnonzero(self.flags & _BREAK)

    @functools.cached_property
    def lines(self) -> "Lines":
        """Returns the lines between line feeds."""
        return Lines.between(self, self.breaks[self.codes[self.breaks] == ord("\n")])

    @functools.cached_property
    def universal_lines(self) -> "Lines":
        """Returns the lines that ``str.splitlines`` finds, and one behind a break that ends a text."""
        codes = self.codes[self.breaks]
        feeds = codes == ord("\n")
        if feeds.all():
            return self.lines
        is_pair = (codes[:-1] == ord("\r")) & feeds[1:] & (np.diff(self.breaks) == 1)
        return Lines.between(self, np.delete(self.breaks, np.flatnonzero(is_pair)))


@dataclass(frozen=True)
class Lines:
    """The lines of a table's texts.

    Attributes:
        starts: Where each begins, shape (lines,).
        ends: Where each ends, likewise.
        words: The first word that does not stand before each, and behind the last, shape (lines + 1,).
        bounds: At which line each text begins, and where the last ends, shape (texts + 1,).
    """

    starts: "Integers"
    ends: "Integers"
    words: "Integers"
    bounds: "Integers"

    @classmethod
    def between(cls, table: Table, breaks: "Integers") -> "Lines":
        """Returns the lines between breaks, of which one stands before each text and one behind the last."""
        words = np.searchsorted(table.starts, breaks)
        return cls(breaks[:-1] + 1, breaks[1:], words, np.searchsorted(breaks, table.edges - 1))

    @functools.cached_property
    def texts(self) -> "Integers":
        """Returns to which text each line belongs, shape (lines,)."""
        return np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))

    @property
    def has_words(self) -> "NDArray[np.bool_]":
        """Tells which lines are not blank, shape (lines,)."""
        return self.words[1:] > self.words[:-1]


_WARM = 1 << 15  # texts
_BOXES = 16  # for each value: of those that a text has once few share a box


def _boxes(hashes: "Hashes", bounds: "Integers", each: int) -> "tuple[Integers, Integers]":
    """Puts each text's values into boxes of its own, so many for each value and one more: equal ones into the same.

    Returns:
        The box of each value, shape (values,), and where each text's boxes begin and the last's end.
    """
    counts = np.diff(bounds)
    edges = bounds_of(counts * each + 1)
    sizes = np.repeat(np.diff(edges).astype(np.uint64), counts)
    return ((hashes >> np.uint64(32)) * sizes >> np.uint64(32)).astype(np.int64) + np.repeat(edges[:-1], counts), edges


@dataclass(frozen=True)
class Repeats:
    """Values that a text has more than once.

    Attributes:
        places: Where they stand, those of one value together and in order, shape (occurrences,).
        bounds: Where each value's places begin, and the last's end, shape (values + 1,).
    """

    places: "Integers"
    bounds: "Integers"

    @property
    def counts(self) -> "Integers":
        """Returns how often each stands there, shape (values,)."""
        return np.diff(self.bounds)

    @property
    def first(self) -> "Integers":
        """Returns where each stands first, shape (values,)."""
        return self.places[self.bounds[:-1]]

    @property
    def again(self) -> "Integers":
        """Returns the places of values that stand in the text before."""
        return np.delete(self.places, self.bounds[:-1])

    @classmethod
    def among(cls, hashes: "Hashes", bounds: "Integers") -> "Repeats":
        """Finds the values of each text that it has more than once.

        Args:
            hashes: The values, text by text.
            bounds: Where each text's begin, and the last's end.
        """
        # Most stand in a box alone, and need not be sorted.
        box, edges = _boxes(hashes, bounds, _BOXES)
        first = np.empty(int(edges[-1]), np.int32)
        numbers = np.arange(len(hashes), dtype=np.int32)
        first[box[::-1]] = numbers[::-1]
        is_shared = np.zeros(len(first), bool)
        is_shared[box[first[box] != numbers]] = True
        places = np.flatnonzero(is_shared[box])
        keys = mix_bits(hashes[places] + box[places].astype(np.uint64))
        order = np.argsort(keys, kind="stable")
        places, keys = places[order], keys[order]
        changes = np.flatnonzero(keys[1:] != keys[:-1]) + 1
        counts = np.diff(np.concatenate([[0], changes, [len(keys)]]))
        return cls(places[np.repeat(counts > 1, counts)], bounds_of(counts[counts > 1]))


class _Judge:
    """The first reason for which each of several texts goes.

    Attributes:
        verdicts: What is said of each.
        left: Which have none, shape (texts,).
    """

    def __init__(self, count: int) -> None:
        self.verdicts = [PASSES] * count
        self.left = np.ones(count, bool)

    def above(self, table: Table, name: str, values: "NDArray[Any]", limit: float | None) -> None:
        """Drops the texts of a table that are left and whose number is above a limit."""
        if limit is not None:
            self._drop(table, values > limit, values, lambda value: above(name, value, limit))

    def below(self, table: Table, name: str, values: "NDArray[Any]", limit: float | None) -> None:
        """Drops the texts of a table that are left and whose number is below a limit."""
        if limit is not None:
            self._drop(table, values < limit, values, lambda value: below(name, value, limit))

    def _drop(
        self,
        table: Table,
        is_bad: "NDArray[np.bool_]",
        values: "NDArray[Any]",
        verdict_on: "Callable[[float], Verdict | None]",
    ) -> None:
        bad = np.flatnonzero(is_bad & self.left[table.places])
        for place, value in zip(table.places[bad].tolist(), values[bad].tolist(), strict=True):
            self.verdicts[place] = verdict_on(value) or PASSES
        self.left[table.places[bad]] = False


def _tables(texts: Sequence[str], wanted: "NDArray[np.bool_]", core: Core) -> Iterator[Table]:
    """Yields tables of wanted texts, so many at a time that what numpy needs stays in a core's cache, ASCII apart."""
    is_ascii = np.fromiter(map(str.isascii, texts), bool, len(texts))
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    for some in (np.flatnonzero(wanted & is_ascii), np.flatnonzero(wanted & ~is_ascii)):
        chunks = np.cumsum(lengths[some]) // CHUNK
        for places in np.split(some, np.flatnonzero(np.diff(chunks)) + 1):
            if len(places):
                yield Table.of([texts[place] for place in map(int, places)], places, core)


def gopher(limits: WebThresholds, datatrove: bool = False, core: Core | None = None) -> Check:
    """Returns Gopher's rules, of quality and of repetition.

    Args:
        limits: What is allowed.
        datatrove: Whether the rules are datatrove's, to the letter. Else stop words count in lower, upper or title
            case, words of punctuation count for no share, blank lines for none either, and the most frequent n-gram
            only if it stands there twice.
        core: What hashes texts; by default numpy, and the fastest once there were so many texts that its start pays.
    """
    seen = 0

    def check(texts: Sequence[str]) -> list[Verdict]:
        nonlocal seen
        chosen = core or (fastest_core() if seen >= _WARM else "numpy")
        seen += len(texts)
        judge = _Judge(len(texts))
        for table in _tables(texts, judge.left.copy(), chosen):
            _quality(judge, table, limits, datatrove)
            _repeated_parts(judge, table, limits, datatrove)
            if chosen == "numba":
                _compiled_ngrams(judge, table, limits, datatrove)
        if chosen == "numpy":
            for table in _tables(texts, judge.left.copy(), chosen):
                _repeated_ngrams(judge, table, limits, datatrove)
        return judge.verdicts

    return check


def _quality(judge: _Judge, table: Table, limits: WebThresholds, datatrove: bool) -> None:
    """Applies Gopher's rules of quality."""
    is_plain = (table.word_flags & _PLAIN) != 0
    plain = table.per_text(is_plain)
    words = np.maximum(table.counts if datatrove else plain, 1)
    length = table.per_text(table.lengths * is_plain) / np.maximum(plain, 1)
    hashes = np.array([text.count("#") for text in table.texts])
    ellipses = np.array([text.count("...") + text.count("…") for text in table.texts])
    judge.below(table, "too few words", plain, max(limits.min_words or 0, 1))
    judge.above(table, "too many words", plain, limits.max_words)
    judge.below(table, "short words", length, limits.min_word_length)
    judge.above(table, "long words", length, limits.max_word_length)
    judge.above(table, "many hashes", hashes / words, limits.max_hashes)
    judge.above(table, "many ellipses", ellipses / words, limits.max_ellipses)
    begun, ended = _line_marks(table, datatrove)
    judge.above(table, "bullet lines", begun, limits.max_bullet_lines)
    judge.above(table, "ellipsis lines", ended, limits.max_ellipsis_lines)
    alphabetic = table.per_text((table.word_flags & _ALPHA) != 0)
    judge.below(table, "few words with letters", alphabetic / words, limits.min_alphabetic_words)
    stop = _stop_words(table, judge.left[table.places], limits.stop_words, datatrove)
    judge.below(table, "few stop words", stop, limits.min_stop_words)


def _line_marks(table: Table, datatrove: bool) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Returns the shares of lines that begin with a bullet and that end with an ellipsis, each of shape (texts,)."""
    lines = table.universal_lines if datatrove else table.lines
    some = np.flatnonzero(lines.has_words)
    texts = lines.texts[some]
    if datatrove:  # blank lines count, but there is none behind the last break
        last = lines.bounds[1:] - 1
        counts = np.diff(lines.bounds) - (lines.starts[last] == lines.ends[last])
    else:
        counts = np.bincount(texts, minlength=len(table.texts))
    last = lines.words[some + 1] - 1
    end = table.starts[last] + table.lengths[last]
    begin = table.codes[table.starts[lines.words[some]]]
    is_begun = (begin == ord("-")) | (begin == ord("•"))
    is_ended = table.codes[end - 1] == ord("…")
    is_ended |= np.all([table.codes[end - place] == ord(".") for place in (1, 2, 3)], axis=0)
    begun, ended = (np.bincount(texts[marked], minlength=len(counts)) for marked in (is_begun, is_ended))
    return begun / np.maximum(counts, 1), ended / np.maximum(counts, 1)


def _stop_words(table: Table, wanted: "NDArray[np.bool_]", listed: Sequence[str], datatrove: bool) -> "Integers":
    """Returns how many different stop words each of the wanted texts has, shape (texts,)."""
    seen = np.zeros((len(table.texts), len(listed)), bool)
    if listed:
        numbers, forms, longest = _stop_forms(tuple(listed), datatrove)
        short = np.flatnonzero((table.lengths <= longest) & np.repeat(wanted, table.counts))
        hashes = table.hashes(table.starts[short], table.lengths[short])
        place = np.searchsorted(forms[:-1], hashes)
        is_form = forms[place] == hashes
        seen[np.searchsorted(table.bounds, short[is_form], "right") - 1, numbers[place[is_form]]] = True
    return seen.sum(axis=1)


@functools.lru_cache(8)
def _stop_forms(words: tuple[str, ...], datatrove: bool) -> "tuple[Integers, Hashes, int]":
    """Returns the forms of words: which word each is of, their hashes, sorted, and the characters of the longest."""
    numbers: dict[str, int] = {}
    for number, word in enumerate(sorted({word if datatrove else word.lower() for word in words})):
        numbers.update(dict.fromkeys([word] if datatrove else [word, word.upper(), word.title()], number))
    table = Table.of(list(numbers))
    hashes = table.hashes(table.edges[:-1], np.diff(table.edges) - 1)
    order = np.argsort(hashes)
    return np.array(list(numbers.values()))[order], hashes[order], max(map(len, numbers))


def _repeated_parts(judge: _Judge, table: Table, limits: WebThresholds, datatrove: bool) -> None:
    """Applies Gopher's rules of paragraphs and lines that repeat an earlier one."""
    if not len(table.starts):
        return
    lines = table.lines
    is_kept = lines.starts < lines.ends if datatrove else lines.has_words
    # datatrove counts what stands before a break that begins a text, and behind one that ends it: nothing.
    is_break = table.codes[[table.edges[:-1], table.edges[1:] - 2]] == ord("\n")
    empty = is_break.sum(axis=0) * datatrove
    owners, starts, ends = _paragraphs(table, datatrove)
    names = "duplicate paragraphs", "characters in duplicate paragraphs"
    count, characters = _duplicates(table, owners, starts, ends, 0 * empty)
    judge.above(table, names[0], count, limits.max_duplicate_paragraphs)
    judge.above(table, names[1], characters, limits.max_duplicate_paragraph_characters)
    count, characters = _duplicates(table, lines.texts[is_kept], lines.starts[is_kept], lines.ends[is_kept], empty)
    judge.above(table, "duplicate lines", count, limits.max_duplicate_lines)
    judge.above(table, "characters in duplicate lines", characters, limits.max_duplicate_line_characters)


def _paragraphs(table: Table, blank: bool) -> "tuple[Integers, Integers, Integers]":
    """Returns of each paragraph the text, where it begins and where it ends, each of shape (paragraphs,).

    A paragraph is what stands between two line feeds in a row, without the white space around the text.

    Args:
        table: The texts.
        blank: Whether those of white space count.
    """
    lines = table.lines
    has_text = lines.starts < lines.ends
    is_edge = np.zeros(len(has_text) + 1, bool)
    is_edge[lines.bounds] = True
    is_edge[1:] |= ~has_text
    is_edge[:-1] |= ~has_text
    first, last = np.flatnonzero(has_text & is_edge[:-1]), np.flatnonzero(has_text & is_edge[1:])
    texts = lines.texts[first]
    final = table.bounds[texts + 1] - 1
    starts = np.maximum(lines.starts[first], table.starts.take(table.bounds[texts], mode="clip"))
    ends = np.minimum(lines.ends[last], table.starts[final] + table.lengths[final])
    is_kept = (starts < ends) & (blank | (lines.words[last + 1] > lines.words[first]))
    return texts[is_kept], starts[is_kept], ends[is_kept]


def _duplicates(
    table: Table, texts: "Integers", starts: "Integers", ends: "Integers", empty: "Integers"
) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Returns the share of each text's pieces that repeat an earlier one, and of its characters in such.

    Args:
        table: The texts.
        texts: Which text each piece is of, shape (pieces,).
        starts: Where each begins.
        ends: Where each ends.
        empty: How many pieces without a character each text has besides, 2 at most, shape (texts,).
    """
    counts = np.bincount(texts, minlength=len(empty))
    again = Repeats.among(table.hashes(starts, ends - starts), bounds_of(counts)).again
    repeated = np.bincount(texts[again], minlength=len(empty)) + (empty == 2)
    characters = np.bincount(texts[again], (ends - starts)[again], len(empty))
    return repeated / np.maximum(counts + empty, 1), characters / table.characters


def _repeated_ngrams(judge: _Judge, table: Table, limits: WebThresholds, datatrove: bool) -> None:
    """Applies Gopher's rules of the most frequent n-gram and of n-grams that repeat an earlier one."""
    for n, limit in sorted(limits.top_ngrams.items()):
        likely = table.only((_most_of_one(table, n) / table.characters > limit) & judge.left[table.places])
        if len(likely.texts):
            judge.above(likely, f"most frequent {n}-gram", _top(likely, n, datatrove) / likely.characters, limit)
    least = min(limits.duplicate_ngrams.values(), default=0)
    for n, limit in sorted(limits.duplicate_ngrams.items()):
        table = table.only(judge.left[table.places])
        if not len(table.texts):
            return
        duplicate, covered = _duplicate_characters(table, n, limit)
        judge.above(table, f"duplicate {n}-grams", duplicate, limit)
        # Words in a repeated n-gram stand in repeated shorter ones too.
        table = table.only(covered > least)


def _compiled_ngrams(judge: _Judge, table: Table, limits: WebThresholds, datatrove: bool) -> None:
    """Is ``_repeated_ngrams``, compiled."""
    from .compiled import ngram_characters

    allowed = sorted(limits.top_ngrams.items()), sorted(limits.duplicate_ngrams.items())
    sizes = [n for n, _ in allowed[0]], [n for n, _ in allowed[1]]
    least = min(limits.duplicate_ngrams.values(), default=0)
    texts = table.codes, table.starts, table.lengths, table.bounds
    found = ngram_characters(texts, judge.left[table.places], table.characters, BASE, float(least), sizes, datatrove)
    for name, some, values in zip(("most frequent {}-gram", "duplicate {}-grams"), allowed, found, strict=True):
        for (n, limit), characters in zip(some, values.T, strict=True):
            judge.above(table, name.format(n), characters / table.characters, limit)


def _most_of_one(table: Table, n: int) -> "NDArray[np.float64]":
    """Returns what the characters of all occurrences of any n-gram of a text do not exceed, shape (texts,).

    Each n-gram is in one box, which several may share.
    """
    places, bounds = table.ngrams(n)
    box, edges = _boxes(table.words.sums_of(places, n), bounds, 4)
    filled = np.bincount(box, table.ends[places + n] - table.ends[places] + (n - 1), int(edges[-1]))
    return np.maximum.reduceat(filled, edges[:-1])


def _top(table: Table, n: int, datatrove: bool) -> "Integers":
    """Returns the characters of all occurrences of the most frequent n-gram of each text, shape (texts,).

    Of equally frequent ones the first counts. One that stands once counts for datatrove alone.
    """
    places, bounds = table.ngrams(n)
    lengths = table.ends[places + n] - table.ends[places] + (n - 1)
    values = np.zeros(len(table.texts), np.int64)
    if datatrove:
        has = np.flatnonzero(np.diff(bounds))
        values[has] = lengths[bounds[has]]
    repeats = Repeats.among(table.words.sums_of(places, n), bounds)
    texts = np.searchsorted(bounds, repeats.first, "right") - 1
    order = np.lexsort((repeats.first, -repeats.counts, texts))
    chosen = order[np.flatnonzero(np.diff(texts[order], prepend=-1))]
    values[texts[chosen]] = lengths[repeats.first[chosen]] * repeats.counts[chosen]
    return values


def _duplicate_characters(table: Table, n: int, limit: float) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Returns the shares of characters of n-grams that repeat an earlier one, none counted twice, and of words in such.

    The first is at most the second, and is worked out only where the second is above the limit; each of shape (texts,).
    """
    starts, bounds = table.ngrams(n)
    repeats = Repeats.among(table.letters_of(starts, n), bounds)
    again = starts[repeats.again]
    edges = np.zeros(len(table.starts) + 1, np.int64)
    edges[again] += 1
    edges[again + n] -= 1
    covered = table.per_text(table.lengths * (np.cumsum(edges)[:-1] > 0)) / table.characters
    texts = np.searchsorted(table.bounds, again, "right") - 1
    looked_at = np.flatnonzero((covered > limit)[texts])
    looked_at = looked_at[np.argsort(again[looked_at])]
    again = again[looked_at]
    first = starts[np.repeat(repeats.first, repeats.counts - 1)][looked_at]
    counted = _walk(again, first, n)
    lengths = table.ends[again + n] - table.ends[again]
    values = np.bincount(texts[looked_at][counted], lengths[counted], len(table.texts))
    return values / table.characters, covered


def _walk(again: "Integers", first: "Integers", n: int) -> list[int]:
    """Walks through texts: behind an n-gram that is known the next begins, and those between them are not known later.

    Args:
        again: Where n-grams stand that stand in the text before, sorted, shape (places,).
        first: Where each stands first, likewise.
        n: Words of an n-gram.

    Returns:
        Which of the places count.
    """
    firsts, number = np.unique(first, return_inverse=True)
    following = np.searchsorted(again, again + n).tolist()
    passed_from = np.searchsorted(firsts, again + 1).tolist()
    passed_to = np.searchsorted(firsts, again + n).tolist()
    numbers = number.tolist()
    is_passed = [False] * len(firsts)
    counted = []
    place = 0
    while place < len(numbers):
        if is_passed[numbers[place]]:
            is_passed[numbers[place]] = False
            place += 1
            continue
        counted.append(place)
        for passed in range(passed_from[place], passed_to[place]):
            is_passed[passed] = True
        place = following[place]
    return counted


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
        kept: list[str] = []
        cuts: dict[str, int] = {}
        sentences = 0
        for line in text.splitlines() if datatrove else text.split("\n"):
            line, why = _c4_line(line.strip(), limits, datatrove)
            if why:
                if why in ("curly bracket", "lorem ipsum"):
                    return Verdict(why)
                cuts[why] = cuts.get(why, 0) + 1
                continue
            if limits.min_sentences is not None and sentences < limits.min_sentences:
                sentences += sentences_in(line)
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
    whole = line
    longest = len(line) if limits.max_line_word is None else limits.max_line_word
    if len(line) > longest and any(len(word) > longest for word in line.split()):
        return line, "line with a long word"
    if "[" in line:
        line = _CITATION.sub("", line)
        if not datatrove:
            whole = line = line.strip()
    if not line.endswith(_C4_ENDS if datatrove else _CLOSED_ENDS) or line.endswith("..."):
        return line, "line that ends no sentence"
    if limits.min_line_words is not None and len(whole.split(None, limits.min_line_words)) < limits.min_line_words:
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
