"""Rules for web text: Gopher's, C4's and FineWeb's, as datatrove has them and as their papers mean them.

A word is a run of letters, digits and ``_``, with the apostrophes inside it, or a run of other signs between spaces.
What counts words does so for many texts at once in numpy; what looks for repetition first works out in numpy the most
that a text can repeat, and looks again, sign by sign, only at texts of which that is too much.

Sources: Gopher, Rae et al. 2021 (arXiv 2112.11446), appendix A.1 and table A1; C4, Raffel et al. 2020 (JMLR 21),
section 2.2; FineWeb, Penedo et al. 2024 (arXiv 2406.17557), section 3.6. "datatrove" is its version 0.10.1.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, field_validator

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
    top_ngrams: dict[int, float] = Field(default_factory=lambda: {2: 0.2, 3: 0.18, 4: 0.16})
    """Gopher: the largest share of characters in the most frequent n-gram, by n."""
    duplicate_ngrams: dict[int, float] = Field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}
    )
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
        """Splits texts into words, as ``words_of`` does one."""
        joined = "\n".join(["", *texts, ""])
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        flags = _flags().take(codes)
        kinds = flags & (_WORD | _OTHER)
        for sign in "'\u2019":
            if sign in joined:
                at = np.flatnonzero(codes == ord(sign))
                kinds[at[(kinds[at - 1] == _WORD) & (kinds[at + 1] == _WORD)]] = _WORD
        edges = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
        is_word = kinds[edges[:-1]] != 0
        starts, lengths = edges[:-1][is_word], np.diff(edges)[is_word]
        inside = kinds != 0
        characters = codes[inside]
        ends = bounds_of(lengths)
        power = integer_powers(len(characters) + 1)
        sums = np.zeros(len(characters) + 1, np.uint64)
        np.cumsum(characters * power[0, : len(characters)], out=sums[1:])
        first = bounds_of(np.fromiter(map(len, texts), np.int64, len(texts)) + 1) + 1
        any_flags = np.bitwise_or.reduceat(flags[inside], ends[:-1]) if len(lengths) else np.zeros(0, np.uint8)
        return cls(np.searchsorted(starts, first), ends, any_flags, sums[ends], power[1, ends[:-1]])

    def per_text(self, values: "NDArray[np.int64] | NDArray[np.bool_]") -> list[int]:
        """Returns the sum over each text's words."""
        return np.diff(bounds_of(values.astype(np.int64, copy=False))[self.bounds]).tolist()

    def hashes(self, starts: "NDArray[np.int64]", n: int) -> "NDArray[np.uint64]":
        """Hashes n words from each place on, by their characters without what stands between."""
        found = (self.sums[starts + n] - self.sums[starts]) * self.inverse[starts]
        found ^= found >> np.uint64(32)
        found *= np.uint64(0xBF58476D1CE4E5B9)
        return found

    def repeats(self, n: int, wanted: "NDArray[np.bool_]") -> "Repeats":
        """Finds the n-grams that stand in one of the wanted texts more than once."""
        counts = np.where(wanted, np.maximum(np.diff(self.bounds) - n + 1, 0), 0)
        bounds = bounds_of(counts)
        texts = np.repeat(np.arange(len(counts)), counts)
        starts = np.arange(len(texts)) + np.repeat(self.bounds[:-1] - bounds[:-1], counts)
        hashes = self.hashes(starts, n) + texts.astype(np.uint64) * np.uint64(0x94D049BB133111EB)
        # Upper bits of the hash and lower ones of the place, so that one sort of plain numbers orders both.
        low = np.uint64((1 << max(len(self.lengths).bit_length(), 1)) - 1)
        keys = np.sort((hashes & ~low) | starts.astype(np.uint64))
        again = np.flatnonzero((keys[1:] ^ keys[:-1]) <= low)
        runs = np.flatnonzero(np.diff(again, prepend=-2) != 1)
        counted = np.diff(runs, append=len(again)) + 1
        return Repeats((keys[again + 1] & low).astype(np.int64), (keys[again[runs]] & low).astype(np.int64), counted)


@dataclass(frozen=True)
class Repeats:
    """N-grams that stand more than once in a text.

    Attributes:
        again: The first word of each occurrence but the first, shape (occurrences,).
        first: The first word of each first occurrence, shape (n-grams,).
        counts: How often each stands there, shape (n-grams,).
    """

    again: "NDArray[np.int64]"
    first: "NDArray[np.int64]"
    counts: "NDArray[np.int64]"


def _in_chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yields texts so many at a time that what numpy needs for them stays in a core's cache."""
    start = size = 0
    for place, text in enumerate(texts):
        size += len(text)
        if size > CHUNK:
            yield texts[start : place + 1]
            start, size = place + 1, 0
    if start < len(texts):
        yield texts[start:]


def gopher(limits: WebThresholds, datatrove: bool = False) -> Check:
    """Returns Gopher's rules, of quality and of repetition.

    Args:
        limits: What is allowed.
        datatrove: Whether the rules are datatrove's, to the letter. Else stop words count in lower, upper or title
            case, words of punctuation count for no share, blank lines for none either, and the most frequent n-gram
            only if it stands there twice.
    """

    def check(texts: Sequence[str]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for some in _in_chunks(texts):
            table = Table.of(some)
            quality = _quality(some, table, limits, datatrove)
            left = np.array([verdict is None for verdict in quality])
            suspects = _suspects(some, table, limits, left)
            verdicts += [
                verdict or (_repetition(text, limits, datatrove) if suspect else None) or PASSES
                for text, verdict, suspect in zip(some, quality, suspects, strict=True)
            ]
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
    begun = sum(line.lstrip().startswith(("•", "-")) for line in lines)
    ended = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    return above("bullet lines", begun / len(lines), limits.max_bullet_lines) or above(
        "ellipsis lines", ended / len(lines), limits.max_ellipsis_lines
    )


def _stop_words(table: Table, limits: WebThresholds, datatrove: bool) -> list[int]:
    """Returns how many different stop words each text has."""
    known = sorted({word if datatrove else word.lower() for word in limits.stop_words})
    short = np.flatnonzero(table.lengths <= max(map(len, known), default=0))
    hashes = table.hashes(short, 1)
    seen = np.zeros((len(table.bounds) - 1, len(known)), bool)
    for place, word in enumerate(known):
        forms = sorted({word} if datatrove else {word, word.upper(), word.title()})
        for found in Table.of(forms).hashes(np.arange(len(forms)), 1).tolist():
            seen[table.texts[short[hashes == found]], place] = True
    return seen.sum(axis=1).tolist()


def _suspects(texts: Sequence[str], table: Table, limits: WebThresholds, wanted: "NDArray[np.bool_]") -> "list[bool]":
    """Tells the texts that may repeat too much: of the others it is certain that they do not.

    Two runs of words that differ only in where the same characters are parted from each other do not count as a
    repetition here.
    """
    characters = np.maximum(np.fromiter(map(len, texts), np.int64, len(texts)), 1)
    suspect = np.fromiter((wanted[place] and _may_repeat_lines(text) for place, text in enumerate(texts)), bool)
    words = np.diff(table.bounds)
    for n, limit in limits.top_ngrams.items():
        has = wanted & ~suspect & (words >= n)
        found = table.repeats(n, has)
        lengths = table.ends[found.first + n] - table.ends[found.first] + n - 1
        most = np.zeros(len(texts), np.int64)
        most[has] = (table.ends[table.bounds[:-1][has] + n] - table.ends[table.bounds[:-1][has]]) + n - 1
        np.maximum.at(most, table.texts[found.first], lengths * found.counts)
        suspect |= most / characters > limit
    if limits.duplicate_ngrams:
        n, limit = min(limits.duplicate_ngrams), min(limits.duplicate_ngrams.values())
        found = table.repeats(n, wanted & ~suspect)
        covered = np.zeros(len(table.lengths) + 1, np.int64)
        covered[found.again] += 1
        covered[found.again + n] -= 1
        inside = np.cumsum(covered)[:-1] > 0
        suspect |= np.array(table.per_text(np.where(inside, table.lengths, 0))) / characters > limit
    return suspect.tolist()


def _may_repeat_lines(text: str) -> bool:
    """Tells whether any line of a text, and so any paragraph, stands there twice."""
    if "\n" not in text:
        return False
    inner = text.strip("\n")
    lines = _LINES.split(inner)
    if len(set(lines)) < len(lines):
        return True
    # The rules split a text with the white space around it for lines, and without it for paragraphs.
    return (text[0] == text[-1] == "\n") or inner[:1].isspace() or inner[-1:].isspace()


def _repetition(text: str, limits: WebThresholds, datatrove: bool) -> Verdict | None:
    """Returns what Gopher's rules of repetition say of a text."""
    paragraphs = _PARAGRAPHS.split(text.strip())
    lines = _LINES.split(text)
    if not datatrove:
        paragraphs, lines = ([part for part in parts if part.strip()] for parts in (paragraphs, lines))
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
    words = words_of(text)
    for n, limit in limits.top_ngrams.items():
        verdict = above(f"most frequent {n}-gram", _top(words, n, 1 if datatrove else 2) / len(text), limit)
        if verdict:
            return verdict
    for n, limit in limits.duplicate_ngrams.items():
        verdict = above(f"duplicate {n}-grams", _duplicate_characters(words, n) / len(text), limit)
        if verdict:
            return verdict
    return None


def find_duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """Returns how many parts repeat an earlier one, and their characters."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count, characters = count + 1, characters + len(part)
        seen.add(part)
    return count, characters


def _top(words: Sequence[str], n: int, least: int) -> int:
    """Returns the characters of all occurrences of the most frequent n-gram; of equally frequent ones, the first."""
    counts = Counter(" ".join(words[place : place + n]) for place in range(len(words) - n + 1))
    gram, count = counts.most_common(1)[0] if counts else ("", 0)
    return len(gram) * count if count >= least else 0


def _duplicate_characters(words: Sequence[str], n: int) -> int:
    """Returns the characters of n-grams that repeat an earlier one, none counted twice."""
    seen: set[str] = set()
    place = characters = 0
    while place < len(words) - n + 1:
        gram = "".join(words[place : place + n])
        if gram in seen:
            characters += len(gram)
            place += n
        else:
            seen.add(gram)
            place += 1
    return characters


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
