"""`data semantic`: rows that mean nearly what an earlier row means are flagged; few of them may go.

Two texts are compared by the cosine of their embeddings. That says what they are about, not what they say of it: the
mean of static vectors is the same for "Alice paid Bob" and "Bob paid Alice", and nearly so with and without a "no". So
rows are flagged by default (SemDeDup, Abbas et al. 2023, removes them), and where removal is asked for, a row stays
whose numbers, negations, names or opposites differ from the other's, that has the same words in another order, whose
other words are not as alike as the whole (rows of one template are alike by the template), or that holds code or
mathematics.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import model_validator

from .embeddings import server_embeddings, static_embeddings
from .endpoint import EndpointSpec
from .errors import DataError
from .files import hash_tree, write_jsonl_log
from .kept_texts import KeptTexts
from .lines import is_source_file
from .ngrams import words_in
from .row_tool import Decide, Outcome, Plan, TextTool, decide_readable, split_tools, text_and_tools, with_columns
from .sources import Row
from .spec import Count, PositiveShare, SourceSpec
from .tool_report import EXAMPLES, Table, Tally, ToolReport

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .embeddings import Vectors

LEDGER = "flagged.log"
RECORD = "embeddings.log"
COLUMN = "similar_to"
_SHOWN = 500
_BLOCK = 1024
_CURVE = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Flag:
    """A row that means nearly what an earlier one means: a line of ``flagged.log``.

    Attributes:
        row: Where it is.
        like: Where the row is that is like it; that one is flagged for none.
        similarity: The cosine of their embeddings.
        differs: In what the two differ, or what they hold, so that the row may not go: numbers, negations, names,
            opposites, the order of words, other words, code, mathematics.
        removed: Whether it went.
        text: The beginning of the row.
        like_text: The beginning of the other.
    """

    row: str
    like: str
    similarity: float
    differs: list[str]
    removed: bool
    text: str
    like_text: str

    def describe(self) -> str:
        """Returns the two rows, how alike they are, and what differs."""
        differs = ", ".join(self.differs) or "nothing that is looked at differs"
        return (
            f"{self.row} {'went' if self.removed else 'is flagged'}: cosine {self.similarity:.3f} to {self.like}\n"
            f"  {'went: ' if self.removed else 'row:  '}   {self.text}\n  like:    {self.like_text}\n"
            f"  differs: {differs}"
        )


class Semantic(TextTool):
    """Flags rows that mean nearly what an earlier row means, by the cosine of their embeddings.

    Writes ``flagged.log`` beside the rows, each with the row that is like it, the similarity and what differs, and a
    column `similar_to` into the rows. Nothing goes unless `remove` is asked for.
    """

    model: str | None = None
    """Static embeddings: a folder or repository of model2vec's, or `wordllama` for those in that package. Needs
    `posttrain[semantic]`."""
    endpoint: EndpointSpec | None = None
    """A server with `/embeddings` in place of a model; what it answers is kept beside the rows."""
    threshold: PositiveShare = 0.9
    """The least cosine of rows that are flagged. Each model has its own scale: see the page's curve."""
    remove: bool = False
    """Whether flagged rows go of which nothing that is looked at differs; others stay in any case."""
    max_rows: Count = 200_000
    """Rows at most. Each is compared with every earlier one, so the time grows with the square; leave near-duplicates
    out first, or split the rows."""

    @model_validator(mode="after")
    def _one_embedder(self) -> Self:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("give a `model` or an `endpoint`, one of the two")
        return self

    def identity(self) -> Any:
        """Returns the hash of the model's folder, if it is one."""
        return hash_tree(Path(self.model)) if self.model and Path(self.model).is_dir() else None

    def plan(self, folder: Path) -> Plan:
        """Embeds all rows, compares them, and reads again those that are alike."""
        texts = _Texts(self, folder / "vectors")
        like, similarity = most_alike(texts.vectors, self.threshold)
        flags = self._flags(texts, like, similarity)
        write_jsonl_log(folder / LEDGER, flags)
        below = self._below(texts, like, similarity)
        by_row = {flag.row: flag for flag in flags}

        def decider(source: SourceSpec) -> Decide:
            return decide_readable(
                self.reader(source), lambda rows, _: [self._outcome(row, by_row.get(row.where)) for row in rows]
            )

        def add(report: ToolReport, _: Any) -> ToolReport:
            return _add(report, flags, similarity, below)

        return Plan(decider, add, [LEDGER])

    def _outcome(self, row: Row, flag: Flag | None) -> Outcome:
        if flag is None:
            return Outcome(with_columns(row, {COLUMN: None}))
        detail = f"{flag.similarity:.3f} like {flag.like}: {flag.like_text}"
        if flag.removed:
            return Outcome(None, "semantic duplicate", detail)
        return Outcome(with_columns(row, {COLUMN: flag.like}), detail=detail, edits={_said(flag): 1})

    def _flags(self, texts: "_Texts", like: "NDArray[np.int64]", similarity: "NDArray[np.float32]") -> list[Flag]:
        flagged = np.flatnonzero(similarity >= self.threshold)
        known = texts.pick(np.concatenate([flagged, like[flagged]]))
        flags: list[Flag] = []
        left: dict[int, tuple[str, str]] = {}  # where nothing else differs: words that only one of the two has
        for place in flagged.tolist():
            row, text = known[place]
            other, other_text = known[int(like[place])]
            differs = differences(text, other_text, texts.common) + (["code"] if {row, other} & texts.code else [])
            shown = text[:_SHOWN], other_text[:_SHOWN]
            cosine = round(float(similarity[place]), 4)
            flags.append(Flag(row, other, cosine, [*dict.fromkeys(differs)], False, *shown))
            if not differs:
                left[len(flags) - 1] = _not_shared(text, other_text)
        agree = self._agreeing(texts, left)
        for place, words in left.items():
            if any(words) and place not in agree:
                flags[place] = dataclasses.replace(flags[place], differs=["other words"])
            else:
                flags[place] = dataclasses.replace(flags[place], removed=self.remove)
        return flags

    def _agreeing(self, texts: "_Texts", left: dict[int, tuple[str, str]]) -> set[int]:
        """Returns where the words that only one text has are as alike as the texts must be.

        Texts of one template are alike by what they share, however much the rest differs.
        """
        both = [place for place, words in left.items() if all(words)]
        if not both:
            return set()
        vectors = texts.embed([left[place][side] for side in (0, 1) for place in both])
        cosines = (vectors[: len(both)] * vectors[len(both) :]).sum(axis=1)
        return {place for place, cosine in zip(both, cosines, strict=True) if cosine >= self.threshold}

    def _below(self, texts: "_Texts", like: "NDArray[np.int64]", similarity: "NDArray[np.float32]") -> Tally:
        places = np.flatnonzero((similarity < self.threshold) & (like >= 0))
        places = places[np.argsort(-similarity[places], kind="stable")][:EXAMPLES].tolist()
        known = texts.pick([*places, *like[places].tolist()])
        tally = Tally()
        for place in places:
            (row, text), (other, other_text) = known[place], known[int(like[place])]
            tally.add(
                "most alike rows that are not flagged", row, text, f"{similarity[place]:.3f} like {other}: {other_text}"
            )
        return tally


def _said(flag: Flag) -> str:
    return (
        f"flagged: {', '.join(flag.differs)} differ" if flag.differs else "flagged: nothing that is looked at differs"
    )


class _Texts(KeptTexts):
    """The rows' vectors, in memory; the texts stay on the disk.

    Attributes:
        vectors: Of unit length, shape (rows, dimensions).
        common: Words that stand somewhere in lower case.
        code: Where rows are that call themselves code.
        embed: Gives the vectors of texts.
    """

    def __init__(self, spec: Semantic, folder: Path):
        self.spec = spec
        self.common: set[str] = set()
        self.code: set[str] = set()
        record = folder.parent.parent / RECORD
        self.embed = static_embeddings(spec.model) if spec.model else server_embeddings(_given(spec.endpoint), record)
        readers = [self._reader(spec.reader(source, text_and_tools)) for source in spec.sources]
        super().__init__(folder, spec.sources, readers, self._vectors, "embedding rows")
        self.vectors: Vectors = self.found("vectors")

    def _reader(self, read: Callable[[Row], str]) -> Callable[[Row], str]:
        def reader(row: Row) -> str:
            text = read(row)
            with_columns(row, {COLUMN: None})  # refuses a row before it is embedded
            self.common.update(_LOWER.findall(text))
            if is_source_file(row.values):
                self.code.add(row.where)
            return text

        return reader

    def _vectors(self, block: Sequence[tuple[str, str]]) -> "dict[str, Vectors]":
        if len(self) + len(block) > self.spec.max_rows:
            hint = "leave near-duplicates out first, split them, or raise `max_rows`"
            raise DataError(f"more than {self.spec.max_rows:,} rows, each compared with all before it", hint=hint)
        vectors = self.embed([split_tools(text)[0] for _, text in block]) if block else np.zeros((0, 1), np.float32)
        return {"vectors": vectors}


def _given(endpoint: EndpointSpec | None) -> EndpointSpec:
    assert endpoint is not None, "the arguments were checked"
    return endpoint


def most_alike(vectors: "Vectors", threshold: float) -> "tuple[NDArray[np.int64], NDArray[np.float32]]":
    """Returns for each row the most alike of the earlier rows that are flagged for none, and the cosine.

    A row is flagged for one that is not flagged itself, never for a chain of others.

    Args:
        vectors: Of unit length, shape (rows, dimensions).
        threshold: The least cosine of a flagged row.

    Returns:
        Numbers of rows, -1 of the first, and cosines, each of shape (rows,).
    """
    count = len(vectors)
    like, similarity = np.full(count, -1), np.zeros(count, np.float32)
    stays = np.zeros(0, np.int64)
    for begin in range(0, count, _BLOCK):
        block = vectors[begin : begin + _BLOCK]
        for first in range(0, len(stays), 16 * _BLOCK):  # bounds the memory of the product
            some = stays[first : first + 16 * _BLOCK]
            cosines = block @ vectors[some].T
            best = cosines.argmax(axis=1)
            found = cosines[np.arange(len(block)), best]
            better = np.flatnonzero(found > similarity[begin : begin + len(block)])
            like[begin + better], similarity[begin + better] = some[best[better]], found[better]
        inside = block @ block.T
        fresh: list[int] = []
        for place in range(len(block)):
            if fresh:
                best = fresh[int(inside[place, fresh].argmax())]
                if inside[place, best] > similarity[begin + place]:
                    like[begin + place], similarity[begin + place] = begin + best, inside[place, best]
            if similarity[begin + place] < threshold:
                fresh.append(place)
        stays = np.append(stays, begin + np.array(fresh, np.int64))
    return like, np.minimum(similarity, 1)


_LOWER = re.compile(r"\b[a-z]+\b")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W\d_]+)?")
_NUMBER_WORDS: dict[str, str] = {
    name: str(number)
    for number, name in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    )
} | {name: name for name in ("dozen", "hundred", "thousand", "million", "billion", "half", "twice", "double", "third")}
_GRAMMAR = frozenset(
    ("a", "an", "the", "is", "are", "was", "were", "be", "been", "do", "does", "did", "of", "please", "me", "that",
     "this", "it", "its", "s", "can", "could", "would", "you")
)  # fmt: skip
_PREFIXES = ("un", "in", "im", "il", "ir", "dis", "non", "mis", "anti", "de")
_NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")
_NEGATIONS = frozenset(
    ("no", "not", "never", "none", "nor", "neither", "without", "cannot", "nothing", "nobody", "nowhere", "hardly",
     "lack", "lacks", "absence", "except", "unless", "deny", "denies", "denied", "free", "non")
)  # fmt: skip
# Of two opposites one is enough where the other is a word of every sentence: "from" tells what "to" would.
_OPPOSITES = frozenset((
    "maximum", "minimum", "max", "min", "maximize", "minimize", "most", "least", "more", "less", "fewer",
    "increase", "decrease", "increases", "decreases", "increased", "decreased", "higher", "lower", "high", "low",
    "highest", "lowest", "large", "small", "larger", "smaller", "largest", "smallest", "long", "short", "longer",
    "shorter", "longest", "shortest", "before", "after", "first", "last", "start", "begin", "above", "below",
    "under", "down", "left", "right", "north", "south", "east", "west", "out", "into", "from", "off", "open",
    "close", "opened", "closed", "true", "false", "yes", "always", "all", "every", "good", "bad", "better",
    "worse", "best", "worst", "old", "new", "young", "hot", "cold", "fast", "slow", "early", "late", "earlier",
    "later", "inside", "outside", "add", "remove", "subtract", "plus", "minus", "multiply", "divide", "positive",
    "negative", "ascending", "descending", "encode", "decode", "encrypt", "decrypt", "buy", "sell", "win", "lose",
    "won", "lost", "male", "female", "she", "his", "him", "or", "but", "advantages", "disadvantages", "pros",
    "cons", "cause", "effect", "odd", "same", "different",
))  # fmt: skip
_MATHS = re.compile(
    r"\$[^$\n]+\$|\\[(\[]|\\(?:frac|sqrt|sum|int|prod|cdot|times|begin)\b|\d\s*[-+*×÷^=<>≤≥]\s*\(?-?[\dA-Za-z]"
    r"|\b[A-Za-z]\s*(?:[=^<>≤≥]|\+|\*)\s*-?[\w(]"
)
_CODE = re.compile(
    r"```|[;{]\s*$|^\s*[})\]]+;?\s*$|^\s*(?:def|class|import|from|#include|return|const|let|var|func|fn|public|select)\b"
    r".*[:;(){=*]|</\w+>|\w\(\)",
    re.MULTILINE | re.IGNORECASE,
)


def differences(text: str, other: str, common: "set[str] | frozenset[str]" = frozenset()) -> list[str]:
    """Returns in what two texts differ, or what they hold, so that one is not to go for the other.

    What is not found need not be the same: it is only that nothing known to change a meaning was found.

    Args:
        text: A text.
        other: Another.
        common: Words that are no names where a sentence begins with them; any other with a capital counts as one.
    """
    found = []
    kinds: dict[str, Callable[[str], Any]] = {
        "numbers": _numbers,
        "negations": _negations,
        "names": lambda said: _names(said, common),
        "opposites": lambda said: Counter(word for word in words_in(said) if word in _OPPOSITES),
    }
    found += [name for name, of in kinds.items() if of(text) != of(other)]
    words, others = words_in(text), words_in(other)
    if "negations" not in found and (_negates(words, others) or _negates(others, words)):
        found.append("negations")
    if words != others and sorted(words) == sorted(others):
        found.append("order of words")
    if _MATHS.search(text) or _MATHS.search(other):
        found.append("mathematics")
    if _CODE.search(text) or _CODE.search(other):
        found.append("code")
    return found


def _not_shared(text: str, other: str) -> tuple[str, str]:
    """Returns the words that only one of two texts has, but for those that carry the grammar."""
    words, others = words_in(text), words_in(other)
    sides = ((words, {*others, *_GRAMMAR}), (others, {*words, *_GRAMMAR}))
    left = [" ".join(word for word in mine if word not in known) for mine, known in sides]
    return left[0], left[1]


def _numbers(text: str) -> list[str]:
    """Returns the numbers in order, in digits or small ones in words."""
    words: list[str] = re.findall(rf"{_NUMBER.pattern}|[^\W\d_]+", text.lower())
    return [_NUMBER_WORDS.get(word, word) for word in words if word in _NUMBER_WORDS or word[0].isdecimal()]


def _negations(text: str) -> Counter[str]:
    """Counts negations; ``n't`` is ``not``."""
    found: Counter[str] = Counter()
    for word in (match[0].lower().replace("’", "'") for match in _WORD.finditer(text)):
        if word.endswith("n't") or word in ("not", "cannot"):
            found["not"] += 1
        elif word in _NEGATIONS:
            found[word] += 1
    return found


def _negates(words: Sequence[str], others: Sequence[str]) -> bool:
    """Says whether a word negates one of the others by its first letters, as "impossible" does."""
    known = set(others)
    return any(
        word[len(first) :] in known for word in {*words} - known for first in _PREFIXES if word.startswith(first)
    )


def _names(text: str, common: "set[str] | frozenset[str]") -> list[str]:
    """Returns words with a capital, in order: where a sentence begins, those not known in lower case."""
    names = []
    end = 0
    begins = True
    for match in _WORD.finditer(text):
        word, between = match[0], text[end : match.start()]
        begins = begins if not end else bool(re.search(r"[.!?:\n]|[-*#>\"“]\s*$", between))
        end = match.end()
        if word[0].isupper() and word != "I" and not (begins and word.lower() in common):
            names.append(word.lower())
    return names


def _add(report: ToolReport, flags: Sequence[Flag], similarity: "NDArray[np.float32]", below: Tally) -> ToolReport:
    """Adds what was flagged, what differs, and what other thresholds would flag."""
    counted = Counter(", ".join(flag.differs) or "nothing that is looked at" for flag in flags)
    rows = [[name, count] for name, count in counted.most_common(40)]
    curve = [[threshold, int((similarity >= threshold).sum())] for threshold in _CURVE]
    tables = [
        *report.tables,
        Table("In what flagged rows differ", ["what", "rows"], rows),
        Table("At other thresholds", ["cosine", "rows as like an earlier one"], curve),
    ]
    around = Tally()
    for flag in sorted(flags, key=lambda one: one.similarity)[:EXAMPLES]:
        around.add(
            "least alike rows that are flagged",
            flag.row,
            flag.text,
            f"{flag.similarity:.3f} like {flag.like}: {flag.like_text}",
        )
    around.merge(below)
    removed = sum(flag.removed for flag in flags)
    alike = sum(not flag.differs for flag in flags)
    said = f"{len(flags):,} rows flagged; in {alike:,} nothing that is looked at differs; {removed:,} went"
    tallies = {**report.tallies, "Around the threshold": around}
    return dataclasses.replace(report, summary=[*report.summary, said], tables=tables, tallies=tallies)
