"""Which test items a training set holds, by the five definitions in use, on one exact index; and where.

Each definition is a ``Rule`` under its paper's name. They differ in n, in what of an item must be found (any n-gram, a
share of its n-grams, a share of its words) and in whether one row must hold it. Matching is exact, by words, across
line breaks; numbers are kept. What is looked for is the question, and where that is shorter than n, question and
answer; these also count as seen where a row has all of the question and, soon after, all of the answer, which is the
only way to find items shorter than n, for which no paper has a rule. What is too short even for that is counted, never
called clean.

Sources: GPT-3, arXiv:2005.14165, appendix C; PaLM, arXiv:2204.02311, section 8; Llama 2, arXiv:2307.09288, appendix
A.6; Llama 3, arXiv:2407.21783, section 5.1.4; Tulu 3, arXiv:2411.15124, section 3.2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .conversations import parts_of_message
from .ngrams import NgramIndex, Words, split_words, words_in
from .plain_values import is_number
from .ragged import bounds_of, ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

SHORTEST = 5  # words of an item that can be found, question and answer together
_GAP = 4  # words, such as "Answer:", that may stand between a short item's question and its answer


@dataclass(frozen=True)
class Item:
    """A test item.

    Attributes:
        id: What tells it from the others of its benchmark.
        question: What is asked, without what all items of the benchmark have around it.
        answer: The right answer; empty where none is known.
    """

    id: str
    question: str
    answer: str = ""

    @property
    def text(self) -> str:
        """Returns question and answer."""
        return f"{self.question}\n{self.answer}"


@dataclass(frozen=True)
class Rule:
    """When an item counts as seen.

    Attributes:
        name: The paper's.
        n: Words of an n-gram; None is GPT-3's: the 5th percentile of the items' lengths, from 8 to 13.
        of: What is counted of the item: its ``ngrams``, or the ``words`` that lie in a found n-gram.
        share: The item counts as seen with at least this share of them (0: with any).
        strictly: Whether the share must be exceeded.
        one_row: Whether a single row must hold it; else all rows together.
        skips: Words that may differ within a match, neither among its first n nor at its end.
    """

    name: str
    n: int | None
    of: Literal["ngrams", "words"]
    share: float
    strictly: bool = False
    one_row: bool = False
    skips: int = 0


RULES = {
    rule.name: rule
    for rule in (
        Rule("gpt3", None, "ngrams", 0.0),
        Rule("palm", 8, "ngrams", 0.7),
        # Spans of more than ten words; "dirty" is 80%, "clean" under 20%.
        Rule("llama2", 11, "words", 0.8, skips=4),
        # The paper chooses a share for each benchmark by the gain that it explains; half is where it has none.
        Rule("llama3", 8, "words", 0.5),
        Rule("tulu3", 8, "words", 0.5, strictly=True, one_row=True),
    )
}


@dataclass(frozen=True)
class ItemMatch:
    """What a row holds of an item.

    Attributes:
        row: The row's number, over all batches.
        item: The item's number.
        share: Of the item, what the rule counts.
        span: The longest run of the item's words that the row has, to be read.
        counts: Whether this row alone makes the item count as seen.
    """

    row: int
    item: int
    share: float
    span: str
    counts: bool


class Overlap:
    """What of some items has been found in the rows shown so far.

    Args:
        rule: What counts.
        items: The items.
        n: Words of an n-gram; the rule's by default.

    Attributes:
        short: Which items have fewer than n words and are found as a whole only, shape (items,).
        lost: Which items are too short to be found at all, shape (items,).
        rows: How many rows have been shown.
    """

    def __init__(self, rule: Rule, items: Sequence[Item], n: int | None = None):
        self.rule, self.items = rule, items
        self.n = n or rule.n or usual_n(items)
        enough = split_words([item.question for item in items]).counts >= self.n
        self._texts = [item.question if alone else item.text for item, alone in zip(items, enough, strict=True)]
        self._words = words = split_words(self._texts)
        self._index = NgramIndex.build(words, self.n)
        self.short = words.counts < self.n
        self.lost = words.counts < min(SHORTEST, self.n)
        # An answer may stand apart from its question, behind "Answer:" or another's name, which no n-gram spans.
        self._whole = _WholeItems(items, np.flatnonzero(~enough & ~self.lost))
        # Of each item as many units, n-grams or words, as the rule counts.
        self._units = np.where(self.short, 1, words.counts - (self.n - 1 if rule.of == "ngrams" else 0))
        self._bounds = bounds_of(self._units)
        self._held = np.zeros(int(self._bounds[-1]), bool)  # by any row
        self._most = np.zeros(len(items), np.int64)  # units that one row holds
        self._evidence: dict[int, ItemMatch] = {}
        self.rows = 0

    def look(self, rows: Words) -> list[ItemMatch]:
        """Looks for the items in the next rows.

        Returns:
            A match for each row and each item that the row alone makes count as seen, by row.
        """
        row, item, begin, end = self._runs(rows)
        begin_of_item = self._bounds[item]
        last = end - (self.n - 1 if self.rule.of == "ngrams" else 0)  # where its units end
        self._held[ranges(begin_of_item + begin, last - begin)] = True

        firsts = np.flatnonzero(np.diff(row, prepend=-1) | np.diff(item, prepend=-1))  # of each row and item
        units = _union(begin, last, firsts)
        longest = np.lexsort((begin, begin - end, item, row))[firsts]
        row, item = row[firsts], item[firsts]
        counts = self._counts(units, self._units[item])
        # The row that holds most of an item is its evidence, the first of several.
        best = np.lexsort((row, -units, item))
        best = best[np.diff(item[best], prepend=-1) != 0]
        wanted = np.flatnonzero(counts)
        wanted = np.union1d(wanted, best[units[best] > self._most[item[best]]])
        found = []
        for pair in wanted.tolist():
            number, run = int(item[pair]), longest[pair]
            share = float(units[pair] / self._units[number])
            span = self._span(number, int(begin[run]), int(end[run]))
            match = ItemMatch(self.rows + int(row[pair]), number, share, span, bool(counts[pair]))
            if units[pair] > self._most[number]:
                self._most[number] = units[pair]
                self._evidence[number] = match
            found += [match] if match.counts else []
        known = {(match.row, match.item) for match in found}
        for there, number in dict.fromkeys(self._whole.find(rows)):
            match = ItemMatch(self.rows + there, number, 1.0, self._span(number, 0, None), True)
            self._held[self._bounds[number] : self._bounds[number + 1]] = True
            if self._most[number] < self._units[number]:
                self._most[number], self._evidence[number] = self._units[number], match
            if (match.row, number) not in known:
                found.append(match)
        self.rows += len(rows)
        return sorted(found, key=lambda match: (match.row, match.item))

    def seen(self) -> "NDArray[np.bool_]":
        """Returns which items count as seen after all rows, shape (items,)."""
        together = np.diff(bounds_of(self._held)[self._bounds])
        return self._counts(self._most if self.rule.one_row else together, self._units)

    def evidence(self) -> dict[int, ItemMatch]:
        """Returns by item of which anything was found what the row has that holds most of it."""
        return dict(sorted(self._evidence.items()))

    def _counts(self, units: "Integers", of: "Integers") -> "NDArray[np.bool_]":
        least = self.rule.share * of
        return (units > 0) & ((units > least) if self.rule.strictly else (units >= least))

    def _runs(self, rows: Words) -> tuple["Integers", "Integers", "Integers", "Integers"]:
        """Returns the runs of common words: row, item, and the item's first word and the one after its last.

        They are sorted by row, item and beginning; each is at least n words long.
        """
        row, at, item, position = self._index.find(rows)
        order = np.lexsort((position, at - position, item, row))
        row, at, item, position = row[order], at[order], item[order], position[order]
        is_new = np.diff(position, prepend=-2) != 1
        for same in (row, item, at - position):
            is_new[1:] |= same[1:] != same[:-1]
        first = np.flatnonzero(is_new)
        last = np.append(first, len(row))[1:] - 1
        row, at, item, begin, end = row[first], at[first], item[first], position[first], position[last] + self.n
        if self.rule.skips:
            for run in range(len(row)):
                end[run] = self._stretched(
                    rows, int(row[run]), int(at[run] - begin[run]), int(item[run]), int(end[run])
                )
        order = np.lexsort((begin, item, row))
        return row[order], item[order], begin[order], end[order]

    def _stretched(self, rows: Words, row: int, shift: int, item: int, end: int) -> int:
        """Returns where a run ends if some words may differ, the last of it excepted."""
        ours = self._words.hashes[self._words.bounds[item] : self._words.bounds[item + 1]]
        theirs = rows.hashes[rows.bounds[row] : rows.bounds[row + 1]]
        skipped = 0
        for here in range(end, min(len(ours), len(theirs) - shift)):
            if ours[here] == theirs[here + shift]:
                end = here + 1
            elif skipped == self.rule.skips:
                break
            else:
                skipped += 1
        return end

    def _span(self, item: int, begin: int, end: int | None) -> str:
        return " ".join(words_in(self._texts[item])[begin:end])


class _WholeItems:
    """Finds items of short questions: all of the question in a row, and all of the answer soon after.

    Questions are looked up by their last words, as many as the largest power of two that all of them have: a few passes
    over the rows and not one for each length.
    """

    def __init__(self, items: Sequence[Item], numbers: "Integers"):
        self._questions = split_words([items[number].question for number in numbers])
        self._answers = split_words([items[number].answer for number in numbers])
        self._numbers = numbers
        counts = self._questions.counts
        sizes = np.where(counts > 0, 1 << np.log2(np.maximum(counts, 1)).astype(np.int64), 0)
        self._tails = []  # those of one size, and the index of their last words
        for size in np.unique(sizes[sizes > 0]).tolist():
            those = np.flatnonzero(sizes == size)
            last = self._questions.bounds[those + 1]
            tails = self._questions.hashes[ranges(last - size, np.full(len(those), size))]
            self._tails.append((those, NgramIndex.build(Words(tails, np.arange(len(those) + 1) * size), size)))

    def find(self, rows: Words) -> Iterator[tuple[int, int]]:
        """Yields row and item of each match, some perhaps twice."""
        for those, index in self._tails:
            row, at, place, _ = index.find(rows)
            place = those[place]
            count = self._questions.counts[place]
            begin = at + index.n - count
            row, place, begin, count = (array[begin >= 0] for array in (row, place, begin, count))
            is_whole = rows.sums_of(rows.bounds[row] + begin, count) == self._questions.sums_of(
                self._questions.bounds[place], count
            )
            row, place, end = row[is_whole], place[is_whole], (begin + count)[is_whole]
            for there, after, number in zip(row.tolist(), end.tolist(), place.tolist(), strict=True):
                answer = self._answers.hashes[self._answers.bounds[number] : self._answers.bounds[number + 1]]
                rest = rows.hashes[rows.bounds[there] + after : rows.bounds[there + 1]][: len(answer) + _GAP]
                if any(np.array_equal(rest[skip : skip + len(answer)], answer) for skip in range(_GAP + 1)):
                    yield there, int(self._numbers[number])


def usual_n(items: Sequence[Item]) -> int:
    """Returns the n of a benchmark: its items' 5th percentile of words, from 8 to 13 (GPT-3, appendix C)."""
    if not items:
        return 13
    counts = split_words([item.text for item in items]).counts
    return int(np.clip(np.percentile(counts, 5, method="lower"), 8, 13))


def text_of(row: Any) -> str:
    """Returns all texts and numbers that a row holds, in its order, whatever its columns are called."""
    parts: list[str] = []
    _collect(row, parts)
    return "\n".join(parts)


def text_of_turns(value: Any) -> str:
    """Returns what is said in a prompt or an answer, be it a text or messages, as ``text_of`` has it in a row."""
    return value if isinstance(value, str) else text_of([parts_of_message(message) for message in value])


def _collect(value: Any, parts: list[str]) -> None:
    if isinstance(value, str):
        parts.append(value)
    elif isinstance(value, dict):
        for part in value.values():
            _collect(part, parts)
    elif isinstance(value, list | tuple):
        for part in value:
            _collect(part, parts)
    elif is_number(value):
        parts.append(str(value))


def _union(begin: "Integers", end: "Integers", firsts: "Integers") -> "Integers":
    """Returns how much the intervals of each group cover; a group's are sorted by where they begin."""
    if not len(begin):
        return np.zeros(0, np.int64)
    group = np.zeros(len(begin), np.int64)
    group[firsts] = 1
    offset = (np.cumsum(group) - 1) * (int(end.max()) + 1)  # keeps what earlier groups covered below a group's own
    covered = np.concatenate([np.zeros(1, np.int64), np.maximum.accumulate(end + offset)[:-1]]) - offset
    return np.add.reduceat(np.maximum(end - np.maximum(begin, np.maximum(covered, 0)), 0), firsts)
