"""`data decontaminate`: takes the rows out of a training set that hold test items, and says which, why and where.

There are two verdicts, never mixed: *n-grams*, exact, by one of five papers' rules (``overlap``), and *possible
paraphrase*, by what words a row shares with one item and not with the next (``paraphrases``).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ..chat_templates.errors import PosttrainError
from .dataset import load
from .errors import DataError
from .files import hash_json, write_jsonl_log
from .kept_texts import KeptTexts
from .ngrams import Words, split_words, words_in
from .overlap import RULES, SHORTEST, Item, Overlap, text_of, text_of_turns, usual_n
from .paraphrases import FEWEST, Near, Nearest, count_words, margin_of_chance
from .row_tool import BLOCK_ROWS, Counts, Decide, Outcome, Plan, RowTool, with_columns
from .sources import Row
from .spec import SourceSpec
from .tool import Sources
from .tool_report import Table, Tally, ToolReport

Benchmarks = Mapping[str, Sequence[Item]]
EVIDENCE = "evidence.log"
COLUMN = "contamination"
NGRAMS, PARAPHRASE = "n-grams", "possible paraphrase"
_FEW = 256  # rows compared with every item at a time
_PLANTED = 200  # items of which copies are planted
_SHOWN = 500  # characters of a row or an item that the evidence quotes


@dataclass(frozen=True)
class Evidence:
    """A row that holds or possibly paraphrases a test item: a line of ``evidence.log``.

    Attributes:
        row: Where the row is.
        benchmark: The benchmark's name.
        item: The item's id.
        verdict: ``n-grams`` or ``possible paraphrase``.
        share: What the row has of the item as the rule counts it; of a paraphrase, how alike the two are.
        words: The longest run of the item's words that the row has; of a paraphrase, the words that both have.
        question: The item's beginning.
        text: The row's beginning.
    """

    row: str
    benchmark: str
    item: str
    verdict: str
    share: float
    words: str
    question: str
    text: str

    @property
    def reason(self) -> str:
        """Returns what a report counts the row under."""
        return f"{self.benchmark}: {self.verdict}"

    @property
    def evidence(self) -> str:
        """Returns what the row has of which item."""
        return f"item {self.item}, {self.share:g} of it: {self.question}\nin common: {self.words}"


class DecontaminateSpec(RowTool):
    """The arguments that need no other room than this one."""

    items: Sources | None = None
    """Files of test items: prompts and completions, prompts or texts. Columns of other names are renamed, by
    `{path: test.jsonl, columns: {question: prompt, answer: completion}}`, or mapped."""
    rule: Literal["gpt3", "palm", "llama2", "llama3", "tulu3"] = "tulu3"
    """When an item counts as seen: any of its 8- to 13-grams is found (gpt3), 70% of its 8-grams (palm), 80% of its
    words in spans of more than ten of which four may differ (llama2), half of its words in 8-grams (llama3), more than
    half in those of one row (tulu3)."""
    remove: bool = True
    """Whether rows that hold an item by that rule are removed. Else all rows are written, with what was found in a
    column `contamination`."""
    paraphrases: Literal["off", "flag", "remove"] = "flag"
    """What happens to rows that possibly paraphrase an item: nothing is looked for, they are named in the report, or
    they are removed, too."""
    paraphrase_rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.001
    """The share of rows that may be taken for paraphrases without being such."""

    def benchmarks(self) -> Benchmarks:
        """Returns the items of each benchmark, by its name."""
        return read_items(self.items or [])

    @cached_property
    def known(self) -> Benchmarks:
        """The same, read once, without benchmarks that have no items.

        Raises:
            DataError: There are no items at all.
        """
        found = {name: items for name, items in self.benchmarks().items() if items}
        if not found:
            raise DataError("there are no test items to look for", hint="name `items`, `tasks` or `suites`")
        return found

    def identity(self) -> Any:
        """Returns a hash of the items."""
        return hash_json({name: [asdict(item) for item in items] for name, items in self.known.items()})

    def plan(self, folder: Path) -> Plan:
        """Looks for the items in all rows; writes ``evidence.log``, a line for each row and item.

        Raises:
            PosttrainError: A planted copy was not found, so that nothing could be believed.
        """
        search = _Search(self.rule, self.known)
        planted = search.self_test()
        texts = KeptTexts(folder / "texts", self.sources, [_text] * len(self.sources), lambda _: {}, "reading rows")
        for _, batch in texts.batches(BLOCK_ROWS):
            search.look(batch)
        if self.paraphrases != "off" and len(texts):
            planted += search.look_for_paraphrases(texts, self.paraphrase_rate)
        write_jsonl_log(folder / EVIDENCE, search.findings)
        found: dict[str, list[Evidence]] = {}
        for finding in search.findings:
            found.setdefault(finding.row, []).append(finding)

        def decider(source: SourceSpec) -> Decide:
            return lambda rows: [self._outcome(row, found.get(row.where, [])) for row in rows]

        def add(report: ToolReport, _: Mapping[str, Counts]) -> ToolReport:
            return search.add(report, planted, [one for ones in found.values() for one in ones if not self._goes(one)])

        return Plan(decider, add, [EVIDENCE])

    def _goes(self, finding: Evidence) -> bool:
        return self.remove if finding.verdict == NGRAMS else self.paraphrases == "remove"

    def _outcome(self, row: Row, found: Sequence[Evidence]) -> Outcome:
        going = next((finding for finding in found if self._goes(finding)), None)
        if going is not None:
            return Outcome(None, going.reason, going.evidence)
        if self.remove:
            return Outcome(row.values)
        marks = [
            {name: getattr(finding, name) for name in ("benchmark", "item", "verdict", "words")} for finding in found
        ]
        return Outcome(with_columns(row, {COLUMN: marks}))


def read_items(sources: Sequence[SourceSpec]) -> dict[str, list[Item]]:
    """Reads files of test items.

    Returns:
        The items of each file; an item is known by where it is.

    Raises:
        DataError: A file cannot be read, or its columns are none that hold items.
    """
    found: dict[str, list[Item]] = {}
    for source in sources:
        items = found.setdefault(source.title, [])
        for where, row in load(source, Path(), ("prompt_completion", "prompt", "text")):
            question = row["text"] if "text" in row else text_of_turns(row["prompt"])
            items.append(Item(where, question, text_of_turns(row.get("completion") or "")))
    return found


class _Search:
    """The items of all benchmarks, and what was found of them."""

    def __init__(self, rule: str, benchmarks: Benchmarks):
        self.rule = RULES[rule]
        self.benchmarks = benchmarks
        self.names = [name for name, items in benchmarks.items() for _ in items]
        self.items = [item for items in benchmarks.values() for item in items]
        self.findings: list[Evidence] = []
        self.chance: dict[str, Any] = {}
        self.sizes = {name: self.rule.n or usual_n(items) for name, items in benchmarks.items()}
        self.overlaps = []  # one for each n, with the numbers of its items
        for n in sorted(set(self.sizes.values())):
            numbers = np.flatnonzero([self.sizes[name] == n for name in self.names])
            self.overlaps.append((numbers, Overlap(self.rule, [self.items[number] for number in numbers], n)))

    def look(self, batch: Sequence[tuple[str, str]]) -> None:
        """Looks for items in texts, each behind where it is, by n-grams."""
        words = _words(batch)
        for numbers, overlap in self.overlaps:
            for match in overlap.look(words):
                where, text = batch[match.row - overlap.rows + len(batch)]
                number = int(numbers[match.item])
                self._find(where, text, number, NGRAMS, match.share, match.span)

    def _find(self, where: str, text: str, number: int, verdict: str, share: float, words: str) -> None:
        item = self.items[number]
        beginnings = (item.question[:_SHOWN], text[:_SHOWN])
        self.findings.append(Evidence(where, self.names[number], item.id, verdict, round(share, 3), words, *beginnings))

    def self_test(self) -> list[dict[str, Any]]:
        """Plants copies of some items in memory, and returns how many of each kind are found by n-grams.

        Raises:
            PosttrainError: A copy word for word, or one that is only wrapped anew, is not found.
        """
        can_match = np.concatenate([numbers[~overlap.lost] for numbers, overlap in self.overlaps])
        chosen = {int(can_match[place]) for place in _spread(len(can_match))}
        found = []
        for kind, change in COPIES.items():
            planted = hits = 0
            for name, n in self.sizes.items():
                mine = [self.items[number] for number in chosen if self.names[number] == name]
                copies = {place: copy for place, item in enumerate(mine) if (copy := change(item.text)) is not None}
                rows = split_words([f"Here is one.\n{copy}\nThat was it." for copy in copies.values()])
                matches = {(match.row, match.item) for match in Overlap(self.rule, mine, n).look(rows)}
                planted += len(copies)
                hits += sum((row, place) in matches for row, place in enumerate(copies))
            if hits < planted and kind in ("verbatim", "re-wrapped"):
                raise PosttrainError(f"{planted - hits} of {planted} planted {kind} copies were not found")
            found.append({"copy": kind, "verdict": NGRAMS, "planted": planted, "found": hits})
        return found

    def look_for_paraphrases(self, texts: KeptTexts, rate: float) -> list[dict[str, Any]]:
        """Finds the rows that possibly paraphrase an item; returns how many planted copies are told so."""
        frequencies = np.zeros(1, np.int64)
        for _, batch in texts.batches(BLOCK_ROWS):
            frequencies = frequencies + count_words(_words(batch))
        nearest = Nearest(self.items, frequencies)
        if len(nearest) < FEWEST:
            self.chance = {"note": f"not looked for: fewer than {FEWEST} items are long enough"}
            return []
        parts = []
        for before, batch in texts.batches(_FEW):
            near = nearest.of(_words(batch))
            parts.append(Near(near.rows + before, near.items, near.alike))
        near = Near(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "items", "alike")))
        margin = margin_of_chance(near, rate)
        told: dict[int, dict[int, float]] = {}
        for place in np.flatnonzero(near.margins > margin):
            told.setdefault(int(near.rows[place]), {})[int(near.items[place])] = float(near.alike[place, 0])
        known = {(finding.row, finding.benchmark, finding.item) for finding in self.findings}
        for place, (where, text) in texts.pick(sorted(told)).items():
            for number, alike in told[place].items():
                if (where, self.names[number], self.items[number].id) not in known:
                    theirs = set(words_in(text))
                    shared = [w for w in dict.fromkeys(words_in(self.items[number].question)) if w in theirs]
                    self._find(where, text, number, PARAPHRASE, alike, " ".join(shared))
        passages = len(near.rows)
        self.chance = {"rate": rate, "margin": margin, "passages": passages, "by_chance": round(rate * passages, 1)}
        return self._planted_paraphrases(nearest, margin)

    def _planted_paraphrases(self, nearest: Nearest, margin: float) -> list[dict[str, Any]]:
        chosen = nearest.numbers[_spread(len(nearest))]
        near = nearest.of(split_words([_reworded(self.items[number].text) for number in chosen]))
        is_right = (near.items == chosen[near.rows]) & (near.margins > margin)
        hits = len(np.unique(near.rows[is_right]))
        return [{"copy": "reworded", "verdict": PARAPHRASE, "planted": len(chosen), "found": hits}]

    def add(self, report: ToolReport, planted: Sequence[Mapping[str, Any]], staying: Sequence[Evidence]) -> ToolReport:
        """Adds to a report what was found of each benchmark, and what each run proves of its search."""
        benchmarks, short = self._of_benchmarks()
        flagged = Tally()
        for (_, reason), finding in {(one.row, one.reason): one for one in reversed(staying)}.items():
            flagged.add(reason, finding.row, finding.text, finding.evidence)
        rule = asdict(self.rule) | {"n": self.rule.n or "by benchmark"}
        header = ["benchmark", "items", "n", "seen", "in several rows only", "possibly paraphrased"]
        header += ["shorter than n, found as a whole only", "too short to be found"]
        note = (
            f"Rule: {rule['name']}, n-grams of {rule['n']} words. Case, punctuation and line breaks do not matter, "
            "numbers do. An item shorter than n is found where a row has all of its question and, soon after, all of "
            f"its answer. One of fewer than {SHORTEST} words cannot be told from other text; it is not known to be "
            f"clean. {self._by_chance()}"
        )
        seen = Table("Test items", header, [list(found.values()) for found in benchmarks], note)
        copies = Table(
            "Planted copies",
            ["copy", "looked for as", "planted", "found"],
            [list(copy.values()) for copy in planted],
            "Copies of items of this run, made in memory and looked for like rows; none is in the files.",
        )
        tallies = {"Flagged, and still there": flagged} if flagged.counts else {}
        tallies |= {"Items too short to be found": short} if short.counts else {}
        more = {"rule": rule, "benchmarks": benchmarks, "paraphrases": self.chance, "planted": planted}
        return replace(
            report,
            summary=[*report.summary, *_in_words(benchmarks, self.chance, planted)],
            tables=[*report.tables, seen, copies],
            tallies={**report.tallies, **tallies},
            more={**report.more, **more},
        )

    def _by_chance(self) -> str:
        if "note" in self.chance:
            return f"Possible paraphrases {self.chance['note']}."
        if not self.chance:
            return ""
        return (
            "Possible paraphrases are rows that share rare words with one item and not with the next. Of "
            f"{self.chance['passages']:,} rows and parts of long rows about {self.chance['by_chance']:g} would be "
            "taken for one by chance: read them before you believe them."
        )

    def _of_benchmarks(self) -> tuple[list[dict[str, Any]], Tally]:
        """Returns what was found of each benchmark's items, and those that are too short to be found."""
        seen, short, lost = (np.zeros(len(self.items), bool) for _ in range(3))
        for numbers, overlap in self.overlaps:
            seen[numbers], short[numbers], lost[numbers] = overlap.seen(), overlap.short, overlap.lost
        names = np.array(self.names)
        benchmarks, too_short = [], Tally()
        for name, items in self.benchmarks.items():
            mine = names == name
            told = {(finding.verdict, finding.item) for finding in self.findings if finding.benchmark == name}
            by_one, reworded = (sum(verdict == kind for kind, _ in told) for verdict in (NGRAMS, PARAPHRASE))
            counts = {
                "items": len(items),
                "n": self.sizes[name],
                "seen": int(seen[mine].sum()),
                "in_several_rows_only": int(seen[mine].sum()) - by_one,
                "possibly_paraphrased": reworded,
                "found_as_a_whole_only": int((short & ~lost)[mine].sum()),
                "too_short": int(lost[mine].sum()),
            }
            benchmarks.append({"name": name, **counts})
            for number in np.flatnonzero(mine & lost):
                too_short.add(name, self.items[number].id, self.items[number].text)
        return benchmarks, too_short


def _text(row: Row) -> str:
    """Returns what is searched: not the marks of an earlier call, which quote the items."""
    marks = row.values.get(COLUMN)
    return text_of({name: value for name, value in row.values.items() if name != COLUMN or not isinstance(marks, list)})


def _words(batch: Sequence[tuple[str, str]]) -> Words:
    return split_words([text for _, text in batch])


def _spread(count: int) -> "np.ndarray":
    """Returns places of some of so many items, evenly spread."""
    return np.linspace(0, count - 1, min(_PLANTED, count)).astype(int)


# --- copies that are planted in memory ---


def _wrapped(text: str) -> str:
    """Breaks the line after every other word."""
    words = text.split()
    return "\n".join(" ".join(words[place : place + 2]) for place in range(0, len(words), 2))


def _with_other_numbers(text: str) -> str | None:
    """Adds one to each digit; None of a text without any."""
    changed = re.sub(r"[0-9]", lambda digit: str((int(digit[0]) + 1) % 10), text)
    return changed if changed != text else None


def _reworded(text: str) -> str:
    """Exchanges neighbouring words and puts another in the place of every fifth, so that no 8-gram stays."""
    words = words_in(text)
    pairs = [word for place in range(0, len(words), 2) for word in reversed(words[place : place + 2])]
    return " ".join("thing" if place % 5 == 2 else word for place, word in enumerate(pairs))


COPIES: Mapping[str, Callable[[str], str | None]] = {
    "verbatim": lambda text: text,
    "re-wrapped": _wrapped,
    "re-cased": str.upper,
    "re-punctuated": lambda text: re.sub(r"\s+", " -- ", text),
    "other numbers": _with_other_numbers,
    "reworded": _reworded,
}
"""How planted copies of an item differ from it; None where an item cannot be changed so."""


# --- what is said of it ---


def _in_words(
    benchmarks: Sequence[Mapping[str, Any]], chance: Mapping[str, Any], planted: Sequence[Mapping[str, Any]]
) -> list[str]:
    lines = []
    for found in benchmarks:
        parts = [f"{found['seen']:,} of {found['items']:,} items seen (n = {found['n']})"]
        several, reworded = found["in_several_rows_only"], found["possibly_paraphrased"]
        parts += [f"{several:,} of them in several rows together, which stay"] if several else []
        parts += [f"{reworded:,} possibly paraphrased"] if reworded else []
        parts += [f"too short to be found: {found['too_short']:,}"] if found["too_short"] else []
        lines.append(f"{found['name']}: {', '.join(parts)}")
    if "rate" in chance:
        what = f"of {chance['passages']:,} rows and parts of long rows about {chance['by_chance']:g} by chance"
        lines.append(f"possible paraphrases at a rate of {100 * chance['rate']:g}%: {what}")
    elif chance:
        lines.append(f"possible paraphrases {chance['note']}")
    shares = [
        f"{copy['copy']} {100 * copy['found'] / copy['planted']:.0f}%"
        + (" as possible paraphrases" if copy["verdict"] == PARAPHRASE else "")
        for copy in planted
        if copy["planted"]
    ]
    lines.append(f"planted copies found: {', '.join(shares)}")
    return lines
