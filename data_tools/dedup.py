"""`data dedup`: rows that say what another row says go, each with the row that stays for it.

Duplicates are *exact* (the same characters), *normalised* (the same words; case, punctuation and white space differ) or
*near* (``near_duplicates``: a large share of their word n-grams in common, checked for every pair). A row goes only if
it is a duplicate of a row that stays.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

import numpy as np
import xxhash
from pydantic import Field, NonNegativeInt, model_validator

from .conversations import texts_of_turns
from .errors import DataError, missing_column
from .files import write_jsonl_log
from .kept_texts import KeptTexts
from .near_duplicates import Bands, Candidates, Removals, Shingles, choose_removals, jaccard, join_alike
from .ngrams import Core, fastest_core, split_words, words_in
from .ragged import bounds_of
from .row_tool import (
    BLOCK_ROWS,
    Decide,
    Outcome,
    Plan,
    TextTool,
    blocks_of,
    decide_readable,
    first_rows,
    readable,
    split_tools,
    text_and_tools,
    turn_places,
    with_columns,
)
from .sources import Row
from .spec import SourceSpec
from .tool import Sources
from .tool_report import EXAMPLES, Bar, ExampleRow, Plot, Table, Tally, ToolReport

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEDGER = "removed.log"
COLUMN = "duplicate_of"
NEAR = "near"
Match = Literal["exact", "normalised", "near"]
HOW = get_args(Match)
_WARM = 2  # blocks after which the compiled core is worth its start
_SHOWN = 500  # characters of a row that the ledger quotes
_CURVE = tuple(round(0.5 + 0.05 * step, 2) for step in range(11))


@dataclass(frozen=True)
class Removal:
    """A row that goes: a line of ``removed.log``.

    Attributes:
        row: Where it is.
        kept: Where the row is that stays for it.
        how: ``exact``, ``normalised`` or ``near``.
        similarity: The share of distinct word n-grams of both that are in both.
        shared: The longest run of words that both have.
        text: The beginning of the row.
        kept_text: The beginning of the other.
        went: Whether it was left out; else it is a duplicate that stays.
    """

    row: str
    kept: str
    how: str
    similarity: float
    shared: str
    text: str
    kept_text: str
    went: bool = True

    def describe(self) -> str:
        """Returns the two rows, what they share, and how alike they are."""
        did, what = ("went", "went: ") if self.went else ("stays", "text: ")
        return (
            f"{self.row} {did}: {self.how} duplicate, similarity {self.similarity:.3f}, of {self.kept}\n"
            f"  {what}  {self.text}\n  stays:  {self.kept_text}\n  shared: {self.shared}"
        )


class Dedup(TextTool):
    """Removes rows that say what an earlier row says. Who comes first stays: name the better source first.

    Writes ``removed.log`` beside the rows: for each that goes, the row that stays, how alike they are and what they
    share. ``posttrain data explain`` reads it.
    """

    against: Sources | None = None
    """Rows that are not written: what is in them goes from the others."""
    within: bool = True
    """Whether the rows are compared with each other too; else only with those of `against`."""
    by: Literal["row", "turn"] = "row"
    """What is compared: `row`, all that a row says; or `turn`, each turn of a user in `messages` with all that follows
    until the next. At the end of a conversation such a duplicate is cut, and a conversation of nothing else goes; with
    more behind it, it stays, since what follows may speak of it, and is counted."""
    match: Match = "near"
    """What duplicates are: rows of the same characters (`exact`), of the same words too (`normalised`), or of nearly
    the same words too (`near`)."""
    threshold: Annotated[float, Field(ge=0.5, le=1)] = 0.8
    """The least similarity of near-duplicates (Jaccard, of the sets of word n-grams)."""
    n: Annotated[int, Field(ge=1, le=32)] = 5
    """Words of an n-gram. A row of fewer words is a duplicate only of one of the same words. Numbers are words."""
    bands: Annotated[int, Field(ge=1, le=512)] = 20
    """Bands of a signature; see `rows`."""
    rows: Annotated[int, Field(ge=1, le=64)] = 7
    """Hashes of a band: a pair of similarity s is compared with probability 1 - (1 - s^rows)^bands, 99% at .8."""
    seed: NonNegativeInt = 1
    """Decides the hash functions."""
    exact_join: bool = False
    """Whether every pair at the threshold is found, in the place of 99% by `bands`: all n-grams of all rows are in
    memory then, 1 kB for a row of 120 words."""
    remove: bool = True
    """Whether duplicates are left out; else all rows are written, with a column `duplicate_of`."""

    @model_validator(mode="after")
    def _compares_something(self) -> Self:
        if not self.within and not self.against:
            raise ValueError("within: false compares rows only with those of `against`, which is not given")
        if self.by == "turn" and self.columns is not None:
            raise ValueError("by: turn reads `messages`, and no other `columns`")
        return self

    def unit_reader(self, source: SourceSpec) -> "Callable[[Row], str | list[str]]":
        """Returns what gives the text of a row, or those of its turns, if they are compared.

        Raises:
            DataError: The rows do not fit.
        """
        return self.reader(source, text_and_tools) if self.by == "row" else turns_reader(source)

    def plan(self, folder: Path) -> Plan:
        """Reads all rows once for their hashes, and those worth comparing again."""
        texts = _Texts(self, folder / "texts")
        found = _choose(self, texts)
        entries = texts.ledger(found)
        went = iter((texts.leaving(found.kept >= 0) & self.remove)[texts.own(found.kept >= 0)].tolist())
        entries = [[dataclasses.replace(entry, went=next(went)) for entry in some] for some in entries]
        write_jsonl_log(folder / LEDGER, itertools.chain.from_iterable(entries))
        gone = [{entry.row: entry for entry in entries_of} for entries_of in entries]

        def decider(source: SourceSpec) -> Decide:
            mine = gone[self.number_of(source)]

            def decide(rows: Sequence[Row], said: "Sequence[str | list[str]]") -> list[Outcome]:
                return [
                    self._outcome(row, mine.get(row.where))
                    if isinstance(texts, str)
                    else self._outcome_of_turns(row, len(texts), mine)
                    for row, texts in zip(rows, said, strict=True)
                ]

            return decide_readable(self.unit_reader(source), decide)

        below = texts.examples(found.just_below(), f"most alike {self.by}s that stay")
        near = [entry for entries_of in entries for entry in entries_of if entry.how == NEAR]
        above = [entry for entry in near if entry.went or not self.remove]
        above = sorted(above, key=lambda entry: entry.similarity)[:EXAMPLES]

        def add(report: ToolReport, _: Any) -> ToolReport:
            return _add(report, self, texts, found, _least_alike(above, self), below)

        return Plan(decider, add, [LEDGER])

    def _outcome(self, row: Row, entry: "Removal | None") -> Outcome:
        if not self.remove:
            return Outcome(with_columns(row, {COLUMN: entry and entry.kept}), edits={entry.how: 1} if entry else {})
        if entry is None:
            return Outcome(row.values)
        return Outcome(None, f"{entry.how} duplicate", f"{entry.similarity:.3f} like {entry.kept}: {entry.kept_text}")

    def _outcome_of_turns(self, row: Row, count: int, entries: "Mapping[str, Removal]") -> Outcome:
        found = [entries.get(where) for where in turn_places(row.where, count)]
        if not self.remove:
            edits = collections.Counter(entry.how for entry in found if entry)
            return Outcome(with_columns(row, {COLUMN: [entry and entry.kept for entry in found]}), edits=edits)
        stay = sum(entry is None or not entry.went for entry in found)
        details = [f"{entry.similarity:.3f} like {entry.kept}: {entry.kept_text}" for entry in found if entry]
        if count and not stay:
            return Outcome(None, "every turn is a duplicate", details[-1])
        edits = {
            "turn cut from the end": count - stay,
            "duplicate turn stays amid others": sum(map(bool, found[:stay])),
        }
        edits = {name: number for name, number in edits.items() if number}
        messages = row.values["messages"]
        if stay < count:
            messages = messages[: _turn_starts(messages)[stay]]
        return Outcome(row.values | {"messages": messages}, detail="; ".join(details), edits=edits)


def turns_reader(source: SourceSpec) -> "Callable[[Row], list[str]]":
    """Returns what gives the texts of a conversation's turns: each of a user with what follows until the next.

    Raises:
        DataError: The first rows have no conversations in `messages`.
    """
    first = [row.values for row in first_rows(source) if row.problem is None]
    if first and not any(isinstance(values.get("messages"), list) for values in first):
        raise DataError("by: turn reads `messages`, which the rows have not", where=source.title, hint="convert first")

    def read(row: Row) -> list[str]:
        messages = row.values.get("messages")
        if not isinstance(messages, list) or not all(isinstance(turn, Mapping) for turn in messages):
            raise missing_column("messages", row.values)
        starts = [*_turn_starts(messages), len(messages)]
        return ["\n".join(texts_of_turns(messages[begin:end])) for begin, end in itertools.pairwise(starts)]

    return read


def _turn_starts(messages: "Sequence[Mapping[str, Any]]") -> list[int]:
    """Returns where a user's turns begin, but for those right behind another of a user."""
    roles = [turn.get("role") for turn in messages]
    return [place for place, role in enumerate(roles) if role == "user" and (place == 0 or roles[place - 1] != "user")]


def _is_last_turn(where: str) -> bool:
    number, count = where.rpartition(", turn ")[2].split(" of ")
    return number == count


_HASHES = ("exact", "words", "lengths", "keys", "ends", "tools")


class _Texts(KeptTexts):
    """What is known of the texts of all rows, those of the reference first: hashes in memory, texts on the disk.

    Attributes:
        exact: The two halves of a 128-bit hash of each text, shape (texts, 2).
        words: A hash of each text's words, shape (texts,).
        lengths: How many words each has, shape (texts,).
        keys: Of its bands, shape (texts, bands).
        ends: Whether each is the last of its row, shape (texts,).
        tools: The number that stands for the tools of each, 0 for none, shape (texts,).
        reference: How many texts belong to the reference.
        core: What hashes them, but for the first blocks.
    """

    def __init__(self, spec: Dedup, folder: Path, readers: "Sequence[Callable[[Row], str | list[str]]] | None" = None):
        self.spec = spec
        self.bands = Bands(spec.bands if spec.match == NEAR and not spec.exact_join else 0, spec.rows, spec.seed)
        references = len(spec.against or ())
        sources = [*(spec.against or ()), *spec.sources]
        readers = readers or [spec.unit_reader(source) for source in sources]
        super().__init__(folder, sources, readers, self._hashes, "hashing rows")
        self.exact, self.words, self.lengths, self.keys, self.ends, self.tools = map(self.found, _HASHES)
        self.reference = sum(count for number, count in self.blocks if number < references)

    @property
    def core(self) -> Core:
        """What hashes the next texts: the fastest once it is worth its start."""
        return fastest_core() if len(self.blocks) >= _WARM else "numpy"

    @property
    def slow(self) -> bool:
        """Whether another core would have been faster."""
        return self.core == "numpy" and len(self.blocks) > _WARM

    def _hashes(self, block: Sequence[tuple[str, str]]) -> "dict[str, NDArray[Any]]":
        texts = [text for _, text in block]
        digests = [xxhash.xxh3_128_digest(text.encode(errors="surrogatepass")) for text in texts]
        exact = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
        ends = np.array([self.spec.by == "row" or _is_last_turn(where) for where, _ in block], bool)
        tools = np.fromiter((split_tools(text)[1] for text in texts), np.int64, len(texts))
        none = np.zeros((len(texts), 0), np.uint64)
        if self.spec.match == "exact":
            found = exact, exact[:, 0], np.zeros(len(texts), np.int32), none, ends, tools
            return dict(zip(_HASHES, found, strict=True))
        words = split_words(texts, self.core)
        keys = self.bands.keys(words, self.spec.n, self.core) if self.bands.bands else none
        found = exact, words.wholes, words.counts.astype(np.int32), keys, ends, tools
        return dict(zip(_HASHES, found, strict=True))

    def own(self, some: "NDArray[np.bool_]") -> "NDArray[np.bool_]":
        """Returns which of some texts do not belong to the reference."""
        return some & (np.arange(len(self)) >= self.reference)

    def leaving(self, duplicates: "NDArray[np.bool_]") -> "NDArray[np.bool_]":
        """Returns which of some duplicates leave the rows: of turns those behind which only others of them follow."""
        duplicates = self.own(duplicates)
        places = np.arange(len(self))

        def next_of(some: "NDArray[np.bool_]") -> "NDArray[np.int64]":
            return np.minimum.accumulate(np.where(some, places, len(self))[::-1])[::-1]

        return duplicates & (next_of(~duplicates) > next_of(self.ends))

    def shingles(self, wanted: "NDArray[np.bool_]") -> Shingles:
        """Returns the shingles of some texts, in order."""
        hashes, counts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for _, batch in self.batches(BLOCK_ROWS, wanted):
            some = [text for _, text in batch]
            part = Shingles.of(split_words(some, self.core), self.spec.n)
            hashes.append(part.hashes)
            counts.append(part.counts)
        return Shingles(np.concatenate(hashes), bounds_of(np.concatenate(counts)))

    def examples(self, pairs: Sequence[tuple[int, int, float]], name: str) -> Tally:
        """Returns pairs of texts as examples of one count."""
        texts = self.pick([place for first, second, _ in pairs for place in (first, second)])
        tally = Tally()
        for first, second, similarity in pairs:
            where, other = texts[second]
            tally.add(name, *texts[first], f"{similarity:.3f} like {where}: {other}")
        return tally

    def ledger(self, found: "_Found") -> list[list[Removal]]:
        """Returns the rows that go, by source, with what they share with those that stay."""
        wanted = found.kept >= 0
        wanted[found.kept[wanted]] = True
        wanted[: self.reference] &= np.isin(np.arange(self.reference), found.kept)
        kept: dict[int, tuple[str, str]] = {}
        entries: list[list[Removal]] = [[] for _ in self.spec.sources]
        keepers = set(found.kept[found.kept >= 0].tolist())
        references = len(self.spec.against or ())
        for place, number, where, text in self.read(wanted):
            if place in keepers:
                kept[place] = (where, text)
            if found.kept[place] < 0 or number < references:
                continue
            other, other_text = kept[int(found.kept[place])]
            if not _is_duplicate(HOW[found.how[place]], text, other_text):
                found.kept[place] = -1  # two texts of one hash
                continue
            how, similarity = HOW[found.how[place]], round(float(found.similarity[place]), 4)
            shared = longest_shared(text, other_text) if how == NEAR else text
            removal = Removal(where, other, how, similarity, shared[:_SHOWN], text[:_SHOWN], other_text[:_SHOWN])
            entries[number - references].append(removal)
        return entries


@dataclass(frozen=True)
class _Found:
    """Which texts go, and why.

    Attributes:
        kept: The number of the text that stays for each, or -1, shape (texts,).
        how: The place of the reason in ``HOW``, likewise.
        similarity: To the text that stays, likewise.
        near: What the comparison of near-duplicates says, if there was one.
        left: The numbers of the texts that it compared.
    """

    kept: "NDArray[np.int64]"
    how: "NDArray[np.int8]"
    similarity: "NDArray[np.float64]"
    near: Removals | None = None
    left: "NDArray[np.int64] | None" = None

    def duplicates_at(self, share: float, threshold: float) -> "NDArray[np.bool_]":
        """Returns which texts are duplicates at about another threshold, and just those at that of the run.

        What is equal to an earlier text is a duplicate at any threshold. Below the run's, what is so much like an
        earlier one is counted, whether that stays or not; above it, those among them that are duplicates at the run's.

        Args:
            share: The other threshold.
            threshold: That of the run.
        """
        duplicates = self.kept >= 0
        if self.near is not None and self.left is not None:
            alike = self.near.nearness >= share
            duplicates[self.left] = alike if share < threshold else alike & (self.near.kept >= 0)
        return duplicates

    def just_below(self) -> list[tuple[int, int, float]]:
        """Returns the texts that stay and are most like another that stays: their numbers, and how alike they are."""
        if self.near is None or self.left is None:
            return []
        places = np.flatnonzero((self.near.kept < 0) & (self.near.nearest >= 0))
        places = places[self.near.kept[self.near.nearest[places]] < 0]
        places = places[np.argsort(-self.near.nearness[places], kind="stable")][:EXAMPLES]
        return [
            (int(self.left[place]), int(self.left[self.near.nearest[place]]), float(self.near.nearness[place]))
            for place in places
        ]


def _choose(spec: Dedup, texts: _Texts) -> _Found:
    """Finds the rows that go: first those equal to an earlier one, then near-duplicates among what is left."""
    count = len(texts)
    kept, how, similarity = np.full(count, -1), np.zeros(count, np.int8), np.zeros(count)
    for number, hashes in ((0, texts.exact), (1, texts.words[:, None]))[: 1 if spec.match == "exact" else 2]:
        first = first_equal(hashes)
        go = (kept < 0) & (first < np.arange(count))
        if not spec.within:
            go &= first < texts.reference
        if number == 1:
            go &= texts.lengths > 0  # texts without words are alike only if they are equal
        kept[go], how[go], similarity[go] = first[go], number, 1.0
    # An exact duplicate of a row that is a normalised one of another is one too.
    again = (kept >= 0) & (kept[kept] >= 0)
    how[again], kept[again] = how[kept[again]], kept[kept[again]]
    if spec.match != NEAR:
        return _Found(kept, how, similarity)
    left = np.flatnonzero(kept < 0)
    candidates, likeness = _comparer(texts, left)
    is_reference, tools = left < texts.reference, texts.tools[left]

    def compare(pairs: "NDArray[np.int64]") -> "NDArray[np.float64]":
        alike = likeness(pairs)
        alike[tools[pairs[:, 0]] != tools[pairs[:, 1]]] = 0
        alike[is_reference[pairs[:, 1]]] = 0  # rows of the reference all stay
        if not spec.within:
            alike[~is_reference[pairs[:, 0]]] = 0
        return alike

    near = choose_removals(candidates, len(left), compare, spec.threshold)
    gone = np.flatnonzero(near.kept >= 0)
    kept[left[gone]], how[left[gone]], similarity[left[gone]] = left[near.kept[gone]], 2, near.similarity[gone]
    moved = (kept >= 0) & (kept[kept] >= 0)  # equal to a row that went as a near-duplicate
    similarity[moved] = similarity[kept[moved]]
    how[moved] = 2
    kept[moved] = kept[kept[moved]]
    return _Found(kept, how, similarity, near, left)


def _comparer(texts: _Texts, left: "NDArray[np.int64]") -> tuple[Candidates, "Callable[..., NDArray[np.float64]]"]:
    """Returns which of some texts are worth comparing, and what gives the similarity of pairs of them."""
    wanted = np.zeros(len(texts), bool)
    if texts.spec.exact_join:
        wanted[left] = True
        every = texts.shingles(wanted)
        return Candidates.joined(every, texts.spec.threshold), lambda pairs: jaccard(every, pairs, texts.core)
    candidates = Candidates.of(texts.keys[left])
    for some in (candidates.pairs.ravel(), *candidates.buckets):
        wanted[left[some]] = True
    shingles = texts.shingles(wanted)
    place = np.cumsum(wanted) - 1  # of a text among those whose shingles are known
    return candidates, lambda pairs: jaccard(shingles, place[left[pairs]], texts.core)


def first_equal(hashes: "NDArray[np.uint64]") -> "NDArray[np.int64]":
    """Returns for each row of hashes the number of the first row that is equal."""
    order = np.lexsort((np.arange(len(hashes)), *hashes.T))
    ordered = hashes[order]
    starts = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))[: len(order)]
    first = np.empty(len(hashes), np.int64)
    first[order] = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]] if len(order) else order
    return first


def _is_duplicate(how: Match, text: str, other: str) -> bool:
    """Confirms by the texts what hashes say; near-duplicates have been compared already."""
    if how == "exact":
        return text == other
    return how == NEAR or words_in(text) == words_in(other)


def longest_shared(text: str, other: str) -> str:
    """Returns the longest run of words that two texts have in common, found by runs of eight words or fewer."""
    words, others = words_in(text), words_in(other)
    for n in (8, 3, 1):
        seen = {tuple(others[place : place + n]) for place in range(len(others) - n + 1)}
        best = run = (0, 0)
        for place in range(len(words) - n + 1):
            if tuple(words[place : place + n]) in seen:
                run = (run[0], run[1] + 1) if run[1] else (place, 1)
                best = max(best, run, key=lambda one: one[1])
            else:
                run = (0, 0)
        if best[1]:
            return " ".join(words[best[0] : best[0] + best[1] + n - 1])
    return ""


def _by_how(found: _Found, *which: "NDArray[np.bool_]") -> list[list[Any]]:
    """Returns a row for each way to be alike: how many of some duplicates are so, and of others."""
    return [[name, *(int((found.how[some] == number).sum()) for some in which)] for number, name in enumerate(HOW)]


def count_duplicates(spec: Dedup, folder: Path) -> list[list[Any]]:
    """Returns how many rows `dedup` would remove, by how they are alike; what is read is kept in a folder of work."""
    found = _choose(spec, _Texts(spec, folder))
    return _by_how(found, found.kept >= 0)


@dataclass(frozen=True)
class RowClusters:
    """Rows that belong together: near-duplicates, as chains of them join them, and rows of one prompt.

    Attributes:
        labels: The cluster of each usable row, from 0, shape (rows,).
        sources: The number of its source, likewise.
        hashes: A hash of its words, likewise.
        places: Gives where some of the rows are, by source.
    """

    labels: "NDArray[np.int64]"
    sources: "NDArray[np.int64]"
    hashes: "NDArray[np.uint64]"
    places: "Callable[[NDArray[np.bool_]], list[set[str]]]"


def cluster_rows(
    spec: Dedup, read: Sequence[Callable[[Row], str]], read_prompt: Sequence[Callable[[Row], str]], folder: Path
) -> RowClusters:
    """Puts rows together that must not stand on two sides of a split.

    Args:
        spec: The sources, and when two rows are near-duplicates.
        read: For each source, gives what a row says; it raises RowError.
        read_prompt: Gives what the row's prompt says, empty if it has none.
        folder: What is read is kept in it.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    texts = _Texts(spec, folder, read)
    count = len(texts)
    same = first_equal(np.where(texts.lengths > 0, texts.words, texts.exact[:, 0])[:, None])
    left = np.flatnonzero(same == np.arange(count))
    candidates, compare = _comparer(texts, left)
    near = left[join_alike(candidates, len(left), compare, spec.threshold)]
    prompts = np.fromiter(_prompt_hashes(spec.sources, read, read_prompt), np.uint64, count)
    with_prompt = np.flatnonzero(prompts)
    of_prompt = with_prompt[first_equal(prompts[with_prompt][:, None])]
    firsts = np.concatenate([same, near[:, 0], of_prompt])
    seconds = np.concatenate([np.arange(count), near[:, 1], with_prompt])
    edges = coo_array((np.ones(len(firsts), bool), (firsts, seconds)), shape=(count, count))
    labels = connected_components(edges, directed=False)[1].astype(np.int64)

    def places(wanted: "NDArray[np.bool_]") -> list[set[str]]:
        found: list[set[str]] = [set() for _ in spec.sources]
        for _, number, where, _ in texts.read(wanted):
            found[number].add(where)
        return found

    sources = np.concatenate([np.full(rows, number) for number, rows in texts.blocks])
    return RowClusters(labels, sources, texts.words, places)


def _prompt_hashes(
    sources: Sequence[SourceSpec], read: Sequence[Callable[[Row], str]], read_prompt: Sequence[Callable[[Row], str]]
) -> Iterator[int]:
    """Yields a hash of the words of each usable row's prompt; 0 of none."""
    for source, *reads in zip(sources, read, read_prompt, strict=True):
        rows = itertools.chain.from_iterable(blocks_of(source))
        for _, (_, prompt) in readable(rows, lambda row, reads=reads: [one(row) for one in reads]):
            words = " ".join(words_in(prompt))
            yield xxhash.xxh3_64_intdigest(words.encode()) if words else 0


def _least_alike(removals: Sequence[Removal], spec: Dedup) -> Tally:
    examples = [
        ExampleRow.of(one.row, one.text, f"{one.similarity:.3f} like {one.kept}: {one.kept_text}") for one in removals
    ]
    name = f"least alike {spec.by}s that {'go' if spec.remove else 'are marked'}"
    return Tally({name: len(examples)}, {name: examples}) if examples else Tally()


def _compared(spec: Dedup, bands: Bands, similarity: float) -> str:
    if not spec.exact_join:
        return f"{100 * bands.recall(similarity):.1f}%"
    return "all" if similarity >= spec.threshold else "some"


_NUMBA = " (numba takes half of the time: pip install 'posttrain[fast]')"


def _add(report: ToolReport, spec: Dedup, texts: _Texts, found: _Found, above: Tally, below: Tally) -> ToolReport:
    """Adds what the comparison found: of the rows that are written, not of the reference."""
    unit = f"{spec.by}s"
    duplicates = texts.own(found.kept >= 0)
    sizes = np.bincount(found.kept[duplicates], minlength=1)
    clusters = sizes[sizes > 0] + 1
    counted = np.bincount(clusters) if len(clusters) else np.zeros(0, np.int64)
    bars = [Bar(f"{size} {unit}", float(counted[size])) for size in np.flatnonzero(counted)[:40]]

    def count(some: "NDArray[np.bool_]") -> "NDArray[np.bool_]":
        return texts.leaving(some) if spec.remove else texts.own(some)

    gone = count(duplicates)
    by_how = Table("Duplicates", ["how", unit], _by_how(found, gone))
    if spec.by == "turn" and spec.remove:
        header = ["how", "turns that go", "turns that stay amid others"]
        by_how = Table("Duplicates", header, _by_how(found, gone, duplicates & ~gone))
    tables = [*report.tables, by_how]
    summary = [*report.summary]
    words, gone_words = int(texts.lengths[texts.reference :].sum()), int(texts.lengths[gone].sum())
    if spec.match != "exact":
        did = "go with" if spec.remove else "are those of marked duplicates:"
        stay = (
            f"; {int((duplicates & ~gone).sum()):,} more stay amid others" if spec.by == "turn" and spec.remove else ""
        )
        summary.append(f"{gone_words:,} of {words:,} words {did} {int(gone.sum()):,} {unit}{stay}")
        summary.append(
            f"words were hashed by {texts.core}{_NUMBA if texts.slow else ''}; the outcome does not depend on it"
        )
    if found.near is not None:
        curve = [
            [share, int(count(found.duplicates_at(share, spec.threshold)).sum()), _compared(spec, texts.bands, share)]
            for share in sorted({*_CURVE, spec.threshold})
        ]
        does = "go" if spec.remove else "are marked"
        note = (
            f"At {spec.threshold:g}, the threshold of this run, the {unit} that {does}; elsewhere about those that "
            f"would. Below it, {unit} so much like an earlier one, whether that stays or not; above it, those of them "
            f"that {does} now. Last, with what probability a pair is compared at all; what is compared counts exactly."
        )
        tables.append(
            Table("At other thresholds", ["similarity", f"{unit} that {does}", "pairs compared"], curve, note)
        )
        if found.near.passed_over:
            summary.append(
                f"{found.near.passed_over:,} {unit} in large groups of alike {unit}, as a template makes them, were "
                f"not compared with every {spec.by} that stays"
            )
    plot = Plot("Sizes of groups", f"{unit} of a group, the one that stays included", bars)
    tallies = {**report.tallies, "Around the threshold": above}
    tallies["Around the threshold"].merge(below)
    return dataclasses.replace(report, summary=summary, tables=tables, plots=[*report.plots, plot], tallies=tallies)
