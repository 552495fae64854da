"""Rules for web text: Gopher's, C4's and FineWeb's, as datatrove has them and as their papers mean them.

A word is a run of letters with their marks, digits and ``_``, with the apostrophes inside it, or a run of other signs
between spaces.
Gopher's rules are read in Python, and where there is enough to do and numba is installed in numba (``compiled``), where
lines, paragraphs and n-grams are equal if their 64-bit hashes are.

Sources: Gopher, Rae et al. 2021 (arXiv 2112.11446), appendix A.1 and table A1; C4, Raffel et al. 2020 (arXiv
1910.10683), section 2.2, and the code that made it, ``text/c4_utils.py`` of TensorFlow Datasets; FineWeb, Penedo et al.
2024 (arXiv 2406.17557), section 3.6. "datatrove" is its version 0.10.1.
"""

import functools
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, NonNegativeFloat, field_validator

from .ngrams import BASE, CHUNK, fastest_core, marks
from .spec import Section

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


ByLength = Annotated[dict[Annotated[int, Field(ge=1, le=64)], NonNegativeFloat], BeforeValidator(_numbered)]


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
    min_sentences: int | None = 3
    """C4: the least sentences in the lines that stay; datatrove has 5, and 3 for the words of a line."""
    min_line_words: int | None = 5
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


# What datatrove allows otherwise than the paper, and than what made C4.
DATATROVE: Mapping[str, Any] = {"min_sentences": 5, "min_line_words": 3, "max_duplicate_characters": 0.01}


@dataclass(frozen=True)
class RuleVerdict:
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


PASSES = RuleVerdict()
Check = Callable[[Sequence[str]], Sequence[RuleVerdict]]


def above(name: str, value: float, limit: float | None) -> RuleVerdict | None:
    """Returns the verdict on a number that must not be above a limit."""
    return RuleVerdict(name, f"{value:.4g}, at most {limit:g}") if limit is not None and value > limit else None


def below(name: str, value: float, limit: float | None) -> RuleVerdict | None:
    """Returns the verdict on a number that must not be below a limit."""
    return RuleVerdict(name, f"{value:.4g}, at least {limit:g}") if limit is not None and value < limit else None


@functools.cache
def _word() -> re.Pattern[str]:
    # Few signs below U+0300 are worth being looked for among two thousand marks.
    mark = rf"(?![\x00-\u02ff])[{''.join(sorted(marks()))}]"
    return re.compile(rf"\w+(?:['\u2019]\w+|{mark}+\w*)*|[^\w\s]+")


def words_of(text: str) -> list[str]:
    """Returns the words of a text, case and punctuation kept."""
    return _word().findall(text)


def sentences_in(line: str) -> int:
    """Returns how many sentences a line has, one at least: what stands between ends of sentences and spaces."""
    return 1 + len(SENTENCE_END.findall(line))


_WARM = 1 << 13  # texts after which numba is worth its start


def gopher(limits: WebThresholds, datatrove: bool = False, compiled: bool | None = None) -> Check:
    """Returns Gopher's rules, of quality and of repetition.

    Args:
        limits: What is allowed.
        datatrove: Whether the rules are datatrove's, to the letter. Else stop words count in lower, upper or title
            case, words of punctuation count for no share, blank lines for none either, and the most frequent n-gram
            only if it stands there twice.
        compiled: Whether numba reads the texts, else Python alone; by default where numba is installed, once there were
            so many of them that its start pays.
    """
    rules = _gopher_rules(limits)
    seen = 0

    def check_one(text: str) -> RuleVerdict:
        values = zip(rules, _gopher_values(text, limits, datatrove), strict=False)
        found = (below(name, value, least) or above(name, value, most) for (name, least, most), value in values)
        return next(filter(None, found), PASSES)

    def check_compiled(texts: Sequence[str]) -> Iterator[RuleVerdict]:
        from .compiled import gopher_values

        least = np.array([-np.inf if low is None else low for _, low, _ in rules])
        most = np.array([np.inf if high is None else high for *_, high in rules])
        allowed = least, most, float(min(limits.duplicate_ngrams.values(), default=0))
        sizes = sorted(limits.top_ngrams), sorted(limits.duplicate_ngrams)
        forms = _stop_forms(tuple(limits.stop_words), datatrove)
        values, failed = gopher_values(texts, PUNCTUATION, marks(), forms, sizes, allowed, BASE, datatrove)
        for own, rule in zip(values, failed.tolist(), strict=True):
            name, low, high = rules[rule]
            value = float(own[rule])
            yield (below(name, value, low) or above(name, value, high) or PASSES) if rule >= 0 else PASSES

    def check(texts: Sequence[str]) -> list[RuleVerdict]:
        nonlocal seen
        fast = seen >= _WARM and fastest_core() == "numba" if compiled is None else compiled
        seen += len(texts)
        if not fast:
            return list(map(check_one, texts))
        verdicts = [PASSES] * len(texts)
        for places in _chunks(texts):
            found = check_compiled([texts[place] for place in places])
            for place, verdict in zip(places, found, strict=True):
                verdicts[place] = verdict
        return verdicts

    return check


def _chunks(texts: Sequence[str]) -> Iterator[list[int]]:
    """Yields the places of texts, so many at a time that their characters stay in a core's cache, ASCII apart."""
    for is_ascii in (True, False):
        places: list[int] = []
        size = 0
        for place, text in enumerate(texts):
            if text.isascii() == is_ascii:
                places.append(place)
                size += len(text)
            if size > CHUNK:
                yield places
                places, size = [], 0
        if places:
            yield places


def _gopher_rules(limits: WebThresholds) -> list[tuple[str, float | None, float | None]]:
    """Returns the rules in their order, each with the least and the most that it allows."""
    return [
        ("too few words", max(limits.min_words or 0, 1), None),
        ("too many words", None, limits.max_words),
        ("short words", limits.min_word_length, None),
        ("long words", None, limits.max_word_length),
        ("many hashes", None, limits.max_hashes),
        ("many ellipses", None, limits.max_ellipses),
        ("bullet lines", None, limits.max_bullet_lines),
        ("ellipsis lines", None, limits.max_ellipsis_lines),
        ("few words with letters", limits.min_alphabetic_words, None),
        ("few stop words", limits.min_stop_words, None),
        ("duplicate paragraphs", None, limits.max_duplicate_paragraphs),
        ("characters in duplicate paragraphs", None, limits.max_duplicate_paragraph_characters),
        ("duplicate lines", None, limits.max_duplicate_lines),
        ("characters in duplicate lines", None, limits.max_duplicate_line_characters),
        *[(f"most frequent {n}-gram", None, limit) for n, limit in sorted(limits.top_ngrams.items())],
        *[(f"duplicate {n}-grams", None, limit) for n, limit in sorted(limits.duplicate_ngrams.items())],
    ]


def _gopher_values(text: str, limits: WebThresholds, datatrove: bool) -> Iterator[float]:
    """Yields what the rules limit, in their order; ``compiled.gopher_values`` gives the same."""
    words = words_of(text)
    plain = [word for word in words if not PUNCTUATION.issuperset(word)]
    spoken = max(len(words if datatrove else plain), 1)
    yield from [len(plain)] * 2
    yield from [sum(map(len, plain)) / max(len(plain), 1)] * 2
    yield text.count("#") / spoken
    yield (text.count("...") + text.count("…")) / spoken
    lines = text.splitlines() if datatrove else _with_words(text.split("\n"))
    yield sum([line.lstrip().startswith(("•", "-")) for line in lines]) / max(len(lines), 1)
    yield sum([line.rstrip().endswith(("...", "…")) for line in lines]) / max(len(lines), 1)
    yield sum([word.isalpha() or any(map(str.isalpha, word)) for word in words]) / spoken
    forms = _stop_forms(tuple(limits.stop_words), datatrove)
    yield len({forms[word] for word in forms.keys() & words})
    for parts in (_PARAGRAPHS.split(text.strip()), _LINES.split(text)):
        parts = parts if datatrove else _with_words(parts)
        count, length = find_duplicates(parts)
        yield count / max(len(parts), 1)
        yield length / len(text)
    for n in sorted(limits.top_ngrams):
        counts = Counter(_ngrams(words, n))
        gram, count = max(counts.items(), key=operator.itemgetter(1), default=((), 0))
        yield count * (sum(map(len, gram)) + n - 1) / len(text) if datatrove or count > 1 else 0.0
    sizes = sorted(limits.duplicate_ngrams)
    # Words in a repeated n-gram stand in repeated shorter ones too.
    if sizes and _repeated(words, sizes[0], apart=False) / len(text) > min(limits.duplicate_ngrams.values()):
        for n in sizes:
            yield _repeated(words, n, apart=True) / len(text)


def _with_words(parts: Sequence[str]) -> list[str]:
    return [part for part in parts if part.strip()]


@functools.lru_cache(8)
def _stop_forms(words: tuple[str, ...], datatrove: bool) -> dict[str, int]:
    """Returns the number of the stop word that each form is of."""
    known = enumerate(sorted({word if datatrove else word.lower() for word in words}))
    return {
        form: number for number, word in known for form in ([word] if datatrove else [word, word.upper(), word.title()])
    }


def _repeated(words: Sequence[str], n: int, *, apart: bool) -> int:
    """Returns the characters in n-grams that repeat an earlier one; ``apart``: behind such a one the next begins."""
    grams = list(map("".join, _ngrams(words, n)))
    if len(set(grams)) == len(grams):
        return 0
    counts = Counter(grams)
    seen: set[str] = set()
    free = characters = 0
    for place in [place for place, gram in enumerate(grams) if counts[gram] > 1]:
        if apart and place < free:
            continue
        if grams[place] in seen:
            characters += sum(map(len, words[max(place, free) : place + n]))
            free = place + n
        seen.add(grams[place])
    return characters


def _ngrams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[first:] for first in range(n)), strict=False)


def find_duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """Returns how many parts repeat an earlier one, and their characters."""
    once = set(parts)
    return len(parts) - len(once), sum(map(len, parts)) - sum(map(len, once))


def fineweb(limits: WebThresholds, datatrove: bool = False) -> Check:
    """Returns FineWeb's own rules, which the paper applies after Gopher's and C4's."""

    def check_one(text: str) -> RuleVerdict:
        lines = [line for line in text.split("\n") if line.strip()]
        if not lines:
            return RuleVerdict("empty")
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


def _newlines(text: str, newlines: int, limit: float | None) -> RuleVerdict | None:
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

    def check_one(text: str) -> RuleVerdict:
        if not datatrove:
            if "{" in text:
                return RuleVerdict("curly bracket")
            if "lorem ipsum" in text.lower():
                return RuleVerdict("lorem ipsum")
        kept: list[str] = []
        cuts: dict[str, int] = {}
        sentences = 0
        for line in text.splitlines() if datatrove else text.split("\n"):
            line, why = _c4_line(line.strip(), limits, datatrove)
            if why:
                if why in ("curly bracket", "lorem ipsum"):
                    return RuleVerdict(why)
                cuts[why] = cuts.get(why, 0) + 1
                continue
            if limits.min_sentences is not None and sentences < limits.min_sentences:
                sentences += sentences_in(line)
            kept.append(line)
        few = below("few sentences", sentences, limits.min_sentences)
        if few:
            return few
        made = "\n".join(kept).strip()
        return RuleVerdict(text=made, edits=cuts) if made != text else PASSES

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
