"""`data decontaminate`: takes the rows out of a training set that hold test items, and says which, why and where.

There are two verdicts, never mixed: *n-grams*, exact, by one of five papers' rules (``overlap``), and *possible
paraphrase*, by what words a row shares with one item and not with the next (``paraphrases``).
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BeforeValidator, Field

from ..chat_templates.errors import PosttrainError
from .dataset import load
from .errors import DataError
from .files import explain_full_disk, write_atomic, write_json
from .ngrams import split_words, words_in
from .overlap import RULES, SHORTEST, Item, Overlap, text_of, text_of_turns, usual_n
from .paraphrases import FEWEST, Near, Nearest, count_words, margin_of_chance
from .row_tool import json_line
from .sources import Row, read_rows
from .spec import SourceSpec
from .tool import Source, Sources, Tool
from .tool_report import PAGE, REPORT, render_page

Benchmarks = Mapping[str, Sequence[Item]]
EVIDENCE = "evidence.log"
COLUMN = "contamination"
NGRAMS, PARAPHRASE = "n-grams", "possible paraphrase"
_BATCH = 2048  # rows looked up at a time
_FEW = 256  # rows compared with every item at a time
_EXAMPLES = 10
_PLANTED = 200  # items of which copies are planted
_SHOWN = 500  # characters of a row or an item that the evidence quotes
_T = TypeVar("_T")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


class DecontaminateSpec(Tool):
    """The arguments that need no other room than this one."""

    sources: Sources
    """The rows. All texts of a row count, whichever column they are in. A clean file is written for each source."""
    items: Annotated[list[Source] | None, BeforeValidator(_as_list)] = None
    """Files of test items: prompts and completions, prompts or texts, with `columns` or a mapping for those of other
    names."""
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
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.02
    """The largest share of a source's rows that may be unreadable; those are left out."""


@dataclass(frozen=True)
class Finding:
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


def decontaminate(spec: DecontaminateSpec, benchmarks: Benchmarks, output_dir: Path) -> str:
    """Looks for test items in the rows of sources and writes the rows without them.

    Writes a ``.jsonl`` for each source, ``evidence.log`` with a line for each row and item, ``report.json`` and
    ``report.html``.

    Args:
        spec: What to read, and by which rule.
        benchmarks: The items of each benchmark, by its name.
        output_dir: The folder.

    Returns:
        What was found, in lines.

    Raises:
        DataError: There are no items or no rows, or too many rows cannot be read.
        PosttrainError: A planted copy was not found, so that nothing could be believed; or the disk is full.
    """
    benchmarks = {name: items for name, items in benchmarks.items() if items}
    if not benchmarks:
        raise DataError("there are no test items to look for", hint="name `items`, `tasks` or `suites`")
    rows = _Rows(spec)
    search = _Search(spec.rule, benchmarks)
    planted = search.self_test()
    for batch in _batched(rows.count(), _BATCH):
        search.look(batch)
    rows.check()
    if spec.paraphrases != "off":
        planted += search.look_for_paraphrases(rows, spec.paraphrase_rate)
    with explain_full_disk(output_dir):
        files = rows.write(search.findings, output_dir)
        report = search.report() | {"files": files, "unreadable": rows.examples(), "planted": planted}
        lines = (json.dumps(asdict(finding), ensure_ascii=False) for finding in search.findings)
        write_atomic(output_dir / EVIDENCE, "".join(f"{line}\n" for line in lines))
        write_json(output_dir / REPORT, report)
        page = render_page("decontaminate.html.jinja", {**report, "shortest": SHORTEST})
        write_atomic(output_dir / PAGE, page)
    return _in_words(report, output_dir)


class _Rows:
    """The rows of all sources: read as often as need be, counted once, written without those that go."""

    def __init__(self, spec: DecontaminateSpec):
        self.spec = spec
        self.read = [0] * len(spec.sources)
        self.bad: list[list[str]] = [[] for _ in spec.sources]

    def of(self, number: int, bad: list[str] | None = None) -> Iterator[Row]:
        """Yields the readable rows of a source; says where the others are."""
        source = self.spec.sources[number]
        good = 0
        for row in read_rows(source, Path()):
            if row.problem is not None:
                bad.append(f"{row.where}: {row.problem}") if bad is not None else None
                continue
            yield row
            good += 1
            if good == source.limit:
                return

    def all(self) -> Iterator[Row]:
        """Yields the readable rows of all sources."""
        for number in range(len(self.read)):
            yield from self.of(number)

    def count(self) -> Iterator[Row]:
        """Yields the same, and counts them."""
        for number in range(len(self.read)):
            for row in self.of(number, self.bad[number]):
                self.read[number] += 1
                yield row

    def check(self) -> None:
        """Refuses sources of which too much cannot be read, and those without rows."""
        for source, good, bad in zip(self.spec.sources, self.read, self.bad, strict=True):
            if len(bad) > self.spec.max_bad_share * (good + len(bad)):
                hint = f"mend them, or allow more with `max_bad_share` (now {self.spec.max_bad_share:g})"
                what = f"{len(bad)} of {good + len(bad)} rows cannot be read: {bad[0]}"
                raise DataError(what, where=source.title, hint=hint)
            if not good:
                raise DataError("holds no rows", where=source.title)

    def examples(self) -> dict[str, list[str]]:
        """Returns by source where rows are that cannot be read."""
        return {s.title: bad[:_EXAMPLES] for s, bad in zip(self.spec.sources, self.bad, strict=True) if bad}

    def write(self, findings: Sequence[Finding], folder: Path) -> list[dict[str, Any]]:
        """Writes the rows of each source that stay; returns a summary of each file."""
        wanted = {NGRAMS: self.spec.remove, PARAPHRASE: self.spec.paraphrases == "remove"}
        removed = {finding.row for finding in findings if wanted[finding.verdict]}
        marks: dict[str, list[dict[str, Any]]] = {}
        for finding in findings:
            mark = {"benchmark": finding.benchmark, "item": finding.item, "verdict": finding.verdict}
            marks.setdefault(finding.row, []).append(mark | {"words": finding.words})
        folder.mkdir(parents=True, exist_ok=True)
        files: list[dict[str, Any]] = []
        for number, source in enumerate(self.spec.sources):
            name = _file_name(source, [file["file"] for file in files])
            kept, flagged = 0, 0
            temporary = folder / f".{name}.part"
            with temporary.open("w", encoding="utf-8", errors="surrogatepass") as out:
                for row in self.of(number):
                    if row.where in removed:
                        continue
                    kept += 1
                    flagged += row.where in marks
                    values = row.values if self.spec.remove else row.values | {COLUMN: marks.get(row.where, [])}
                    out.write(json_line(values, row.where))
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(folder / name)
            good, bad = self.read[number], len(self.bad[number])
            counts = {"rows": good + bad, "unreadable": bad, "removed": good - kept, "kept": kept, "flagged": flagged}
            files.append({"source": source.title, "file": name, **counts})
        return files


def _file_name(source: SourceSpec, taken: Sequence[str]) -> str:
    """Returns what the clean rows of a source are called, as its file is."""
    stem = re.sub(r"[^\w-]+", "_", Path(source.title.removesuffix(".gz")).stem).strip("_") or "rows"
    names = (f"{stem}.jsonl", *(f"{stem}-{number}.jsonl" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name not in (*taken, EVIDENCE))


class _Search:
    """The items of all benchmarks, and what was found of them."""

    def __init__(self, rule: str, benchmarks: Benchmarks):
        self.rule = RULES[rule]
        self.benchmarks = benchmarks
        self.names = [name for name, items in benchmarks.items() for _ in items]
        self.items = [item for items in benchmarks.values() for item in items]
        self.findings: list[Finding] = []
        self.chance: dict[str, Any] = {}
        self.sizes = {name: self.rule.n or usual_n(items) for name, items in benchmarks.items()}
        self.overlaps = []  # one for each n, with the numbers of its items
        for n in sorted(set(self.sizes.values())):
            numbers = np.flatnonzero([self.sizes[name] == n for name in self.names])
            self.overlaps.append((numbers, Overlap(self.rule, [self.items[number] for number in numbers], n)))

    def look(self, batch: Sequence[Row]) -> None:
        """Looks for items in rows, by n-grams."""
        texts = [text_of(row.values) for row in batch]
        words = split_words(texts)
        for numbers, overlap in self.overlaps:
            for match in overlap.look(words):
                row, number = match.row - overlap.rows + len(batch), int(numbers[match.item])
                self._find(batch[row].where, texts[row], number, NGRAMS, match.share, match.span)

    def _find(self, where: str, text: str, number: int, verdict: str, share: float, words: str) -> None:
        item = self.items[number]
        beginnings = (item.question[:_SHOWN], text[:_SHOWN])
        self.findings.append(Finding(where, self.names[number], item.id, verdict, round(share, 3), words, *beginnings))

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

    def look_for_paraphrases(self, rows: _Rows, rate: float) -> list[dict[str, Any]]:
        """Finds the rows that possibly paraphrase an item; returns how many planted copies are told so."""
        frequencies = np.zeros(1, np.int64)
        for batch in _batched(map(_text, rows.all()), _BATCH):
            frequencies = frequencies + count_words(split_words(batch))
        nearest = Nearest(self.items, frequencies)
        if len(nearest) < FEWEST:
            self.chance = {"note": f"not looked for: fewer than {FEWEST} items are long enough"}
            return []
        parts, first = [], 0
        for batch in _batched(map(_text, rows.all()), _FEW):
            near = nearest.of(split_words(batch))
            parts.append(Near(near.rows + first, near.items, near.alike))
            first += len(batch)
        near = Near(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "items", "alike")))
        margin = margin_of_chance(near, rate)
        told: dict[int, dict[int, float]] = {}
        for place in np.flatnonzero(near.margins > margin):
            told.setdefault(int(near.rows[place]), {})[int(near.items[place])] = float(near.alike[place, 0])
        known = {(finding.row, finding.benchmark, finding.item) for finding in self.findings}
        for place, row in enumerate(rows.all()):
            for number, alike in told.get(place, {}).items():
                if (row.where, self.names[number], self.items[number].id) not in known:
                    text = _text(row)
                    theirs = set(words_in(text))
                    shared = [w for w in dict.fromkeys(words_in(self.items[number].question)) if w in theirs]
                    self._find(row.where, text, number, PARAPHRASE, alike, " ".join(shared))
        passages = len(near.rows)
        self.chance = {"rate": rate, "margin": margin, "passages": passages, "by_chance": round(rate * passages, 1)}
        return self._planted_paraphrases(nearest, margin)

    def _planted_paraphrases(self, nearest: Nearest, margin: float) -> list[dict[str, Any]]:
        chosen = nearest.numbers[_spread(len(nearest))]
        near = nearest.of(split_words([_reworded(self.items[number].text) for number in chosen]))
        is_right = (near.items == chosen[near.rows]) & (near.margins > margin)
        hits = len(np.unique(near.rows[is_right]))
        return [{"copy": "reworded", "verdict": PARAPHRASE, "planted": len(chosen), "found": hits}]

    def report(self) -> dict[str, Any]:
        """Returns what was found of each benchmark, and every reason with examples."""
        seen, short, lost = (np.zeros(len(self.items), bool) for _ in range(3))
        for numbers, overlap in self.overlaps:
            seen[numbers], short[numbers], lost[numbers] = overlap.seen(), overlap.short, overlap.lost
        names = np.array(self.names)
        benchmarks = []
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
            too_short = [self.items[number].text for number in np.flatnonzero(mine & lost)[:_EXAMPLES]]
            benchmarks.append({"name": name, **counts, "too_short_examples": too_short})
        by_reason: dict[str, list[Finding]] = {}
        for finding in self.findings:
            by_reason.setdefault(f"{finding.benchmark}: {finding.verdict}", []).append(finding)
        reasons = [
            {"reason": reason, "rows": len({finding.row for finding in found}), "examples": found[:_EXAMPLES]}
            for reason, found in by_reason.items()
        ]
        for reason in reasons:
            reason["examples"] = [asdict(finding) for finding in reason["examples"]]
        rule = asdict(self.rule) | {"n": self.rule.n or "by benchmark"}
        return {"rule": rule, "benchmarks": benchmarks, "paraphrases": self.chance, "reasons": reasons}


def _text(row: Row) -> str:
    return text_of(row.values)


def _batched(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    batch: list[_T] = []
    for value in values:
        batch.append(value)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


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


def _in_words(report: dict[str, Any], folder: Path) -> str:
    lines = []
    for file in report["files"]:
        bad = f", {file['unreadable']:,} unreadable" if file["unreadable"] else ""
        lines.append(
            f"{folder / file['file']}: {file['kept']:,} of {file['rows']:,} rows, {file['removed']:,} removed{bad}, "
            f"{file['flagged']:,} flagged"
        )
    for found in report["benchmarks"]:
        parts = [f"{found['seen']:,} of {found['items']:,} items seen (n = {found['n']})"]
        several, reworded = found["in_several_rows_only"], found["possibly_paraphrased"]
        parts += [f"{several:,} of them in several rows together, which stay"] if several else []
        parts += [f"{reworded:,} possibly paraphrased"] if reworded else []
        parts += [f"too short to be found: {found['too_short']:,}"] if found["too_short"] else []
        lines.append(f"{found['name']}: {', '.join(parts)}")
    chance = report["paraphrases"]
    if "rate" in chance:
        what = f"of {chance['passages']:,} rows and parts of long rows about {chance['by_chance']:g} by chance"
        lines.append(f"possible paraphrases at a rate of {100 * chance['rate']:g}%: {what}")
    elif chance:
        lines.append(f"possible paraphrases {chance['note']}")
    shares = [
        f"{copy['copy']} {100 * copy['found'] / copy['planted']:.0f}%"
        + (" as possible paraphrases" if copy["verdict"] == PARAPHRASE else "")
        for copy in report["planted"]
        if copy["planted"]
    ]
    lines.append(f"planted copies found: {', '.join(shares)}")
    lines.append(str(folder / PAGE))
    return "\n".join(lines)
