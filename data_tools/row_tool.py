"""Tools that look at rows block by block: read, decided, written and counted in one way, and resumed after a kill.

A block is some thousand rows of one source. What became of it is written whole before the next is begun, so a killed
call goes on behind its last block, and ends with the bytes of one that was not killed.
"""

import datetime
import itertools
import json
import math
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args

from pydantic import BeforeValidator, Field
from pydantic_core import from_json, to_json

from ..chat_templates.errors import PosttrainError
from .conversations import texts_of_turns
from .dataset import DataReport
from .errors import DataError, RowError, missing_column
from .files import explain_full_disk, hash_json, locked, read_json, write_atomic, write_json
from .formats import Canonicalize, canonicalizer, choose
from .plain_values import with_leaves
from .progress import progress_shown
from .sources import Row, content_hash, is_hub, local_files, read_rows, refuse_own
from .spec import Count, Kind, Share, SourceSpec
from .tool import Sources, Tool, comma_separated, sources_of
from .tool_report import PAGE, REPORT, Bar, Plot, Spread, Table, Tally, ToolReport, percent, texts_of

BLOCK_ROWS = 4096
BLOCK_CHARACTERS = 1 << 24
UNREADABLE = "unreadable"
_FILES = ("file", "held_out_file")  # of a source, in a report
NOT_FINITE = "NaN or infinity written as null"
CHANGED = "Changed"
LEFT_OUT = "left_out.log"
WORK_VERSION = 6  # raise it whenever what an older version left half done is not what this one would have written
_SUFFIXES = _KEPT, _HELDOUT, _GONE = ".jsonl", ".heldout", ".gone"  # what is written of a block
_TOOLS = re.compile(r"\n\[tools (\d{1,15})\]\Z")
_SHOWN = 500  # characters of a detail in the log
_LOOK_AHEAD = 32  # rows whose columns decide the layout
_KEYS, _EXACT = {str}, {str, int, bool, type(None)}


_NONE: Mapping[str, Any] = MappingProxyType({})


class Outcome(NamedTuple):  # one is made for each row: a frozen dataclass takes three times as long
    """What becomes of a row.

    Attributes:
        values: The row as it is written; None if it is left out.
        reason: Why it is left out, in the same words for each such row.
        detail: What is particular to this row, for the reason's or the edits' examples.
        edits: What was changed in it, by name, with how often.
        measures: Numbers whose distribution the report shows, by name: lengths, scores.
        shown: What examples quote in place of the row, which may hold what no report should.
        held_out: Whether it is written apart, to the file of held-out rows.
        groups: What it belongs to, by what rows are told apart by: ``{"language": "en"}``.
    """

    values: dict[str, Any] | None
    reason: str = ""
    detail: str = ""
    edits: Mapping[str, int] = _NONE
    measures: Mapping[str, float] = _NONE
    shown: str | None = None
    held_out: bool = False
    groups: Mapping[str, str] = _NONE


Decide = Callable[[Sequence[Row]], Sequence[Outcome]]
Said = TypeVar("Said")


@dataclass(frozen=True)
class Plan:
    """How a tool decides on rows.

    Attributes:
        decider: Gives what decides on the rows of a source.
        add: Adds to the report what the tool has to say beside counts; it is given those of each source.
        files: What it has written into its folder of work and leaves beside the rows.
    """

    decider: Callable[[SourceSpec], Decide]
    add: "Callable[[ToolReport, Mapping[str, Counts]], ToolReport]" = lambda report, _: report
    files: Sequence[str] = ()


@dataclass
class Counts:
    """What became of the rows of a block, or of all blocks of a source.

    Attributes:
        rows: Rows read, unreadable ones included.
        kept: Rows written, held-out ones included.
        held_out: Rows written apart.
        reasons: Why the others were not.
        edits: What was changed in those that were.
        measures: Distributions, of all rows that were read.
        groups: Rows read and rows written of each group, by what rows are told apart by.
    """

    rows: int = 0
    kept: int = 0
    held_out: int = 0
    reasons: Tally = field(default_factory=Tally)
    edits: Tally = field(default_factory=Tally)
    measures: dict[str, Spread] = field(default_factory=dict)
    groups: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def add(self, row: Row, outcome: Outcome) -> None:
        """Counts a row."""
        self.rows += 1
        text = outcome.shown
        if text is None and (outcome.values is None or outcome.edits):
            text = quote(row.values)
        if outcome.values is None:
            self.reasons.add(outcome.reason, row.where, text or "", outcome.detail)
        else:
            self.kept += 1
            self.held_out += outcome.held_out
        for name, number in outcome.measures.items():
            self.measures.setdefault(name, Spread()).add(number)
        for name, count in outcome.edits.items():
            self.edits.add(name, row.where, text or "", outcome.detail)
            self.edits.counts[name] += count - 1
        for name, group in outcome.groups.items():
            self._add_to_group(name, group, 1, int(outcome.values is not None))

    def _add_to_group(self, name: str, group: str, rows: int, kept: int) -> None:
        counts = self.groups.setdefault(name, {}).setdefault(group, [0, 0])
        counts[0] += rows
        counts[1] += kept

    def merge(self, other: "Counts") -> None:
        """Adds a later block's."""
        self.rows += other.rows
        self.kept += other.kept
        self.held_out += other.held_out
        self.reasons.merge(other.reasons)
        self.edits.merge(other.edits)
        for name, spread in other.measures.items():
            self.measures.setdefault(name, Spread()).merge(spread)
        for name, groups in other.groups.items():
            for group, (rows, kept) in groups.items():
                self._add_to_group(name, group, rows, kept)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self) | {"measures": {name: spread.to_dict() for name, spread in self.measures.items()}}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Counts":
        """Reads what ``to_dict`` gave."""
        reasons, edits = (Tally.from_dict(value[name]) for name in ("reasons", "edits"))
        measures = {name: Spread.from_dict(spread) for name, spread in value["measures"].items()}
        return cls(value["rows"], value["kept"], value["held_out"], reasons, edits, measures, value["groups"])


class RowTool(Tool):
    """The arguments that tools have in common which look at each row for itself."""

    writes_rows: ClassVar[bool] = True  # else rows are only counted

    sources: Sources
    """The rows: paths, or what a recipe may say of a source, '{path: rows.csv, columns: {0: text, 1: label}}'. A file
    is written for each."""
    output_format: Literal["jsonl", "parquet"] = "jsonl"
    """What the files are. Dates and times become text, as ISO 8601 has them."""
    max_bad_share: Share = 0.02
    """The largest share of a source's rows that may be unreadable; those are left out."""
    executor: Literal["local", "slurm", "ray"] | None = Field(default=None, exclude=True)
    """Who decides on the rows: by default this process, else the tasks of datatrove's executor of that name (`pip
    install 'posttrain[datatrove]'`). The rows are the same. All machines must see the sources and the folder."""
    executor_tasks: Count = Field(default=1, exclude=True)
    """Tasks of the executor. Where a task has files to itself it reads those alone, else all of them."""
    executor_options: dict[str, Any] = Field(default_factory=dict, exclude=True)
    """Arguments of datatrove's executor, such as `{workers: 2}` or `{partition: cpu, time: "2:00:00"}`."""

    def decider(self, source: SourceSpec) -> Decide:
        """Returns what decides on the rows of a source, a block of readable ones at a time.

        Raises:
            PosttrainError: The arguments do not fit the source.
        """
        raise NotImplementedError

    def plan(self, folder: Path) -> "Plan":
        """Says how rows are decided on; a tool that must look at all of them first does it here.

        Args:
            folder: What is written into it outlives a kill, until the work is done.
        """
        return Plan(self.decider)

    def number_of(self, source: SourceSpec) -> int:
        """Returns which of the tool's sources one is, by its title: on its way to other processes it is copied."""
        return [one.title for one in self.sources].index(source.title)

    @property
    def folders(self) -> tuple[str, str] | None:
        """Below which folders rows and held-out rows are written, if any are held out."""
        return None

    def identity(self) -> Any:
        """Returns what the outcome depends on beside arguments and sources, such as the hash of a model's folder."""
        return None

    def run(self, output_dir: Path) -> str:
        """Decides on all rows and writes those that stay, ``left_out.log``, ``report.json`` and ``report.html``.

        Raises:
            DataError: A source cannot be read, or too many of its rows.
            PosttrainError: The folder cannot be written, or another process works there.
        """
        with locked(output_dir / ".lock"), explain_full_disk(output_dir):
            return self._run(output_dir)

    def _run(self, output_dir: Path) -> str:
        arguments = self.model_dump(mode="json")
        hashes = [content_hash(source, Path()) for source in sources_of(self)]
        identity = [WORK_VERSION, type(self).__name__, arguments, hashes, self.identity()]
        work = output_dir / f".work-{hash_json(identity)}"
        for other in output_dir.glob(".work-*"):
            if other != work:
                remove_folder(other)
        files = file_names(self.sources, self.output_format)
        apart: Mapping[str, str] = {}
        if self.folders is not None:
            files, apart = ({title: f"{folder}/{name}" for title, name in files.items()} for folder in self.folders)
        if not self.writes_rows:
            files, apart = {}, {}
        written = [*files.values(), *apart.values()]
        refuse_own(sources_of(self), [output_dir / name for name in written])
        _refuse_left_over(output_dir, written)
        counts: dict[str, Counts] = {}
        plan = self.plan(work)
        blocks = Blocks(self.sources, plan.decider, work, self.writes_rows)
        if self.executor is not None:
            self._run_tasks(self.executor, blocks, work)
        for number, source in enumerate(self.sources):
            if self.executor is None:
                blocks.settle(number)
            counts[source.title] = blocks.gather(number)
            _check(source, counts[source.title], self.max_bad_share)
        report = plan.add(row_report(_snake(type(self).__name__), arguments, counts, files, apart), counts)
        for names, pattern in ((files, f"*{_KEPT}"), (apart, f"*{_HELDOUT}")):
            for number, name in enumerate(names.values()):
                join(sorted((work / str(number)).glob(pattern)), output_dir / name)
        if self.writes_rows:
            folders = [work / str(number) for number in range(len(self.sources))]
            join([part for folder in folders for part in sorted(folder.glob(f"*{_GONE}"))], output_dir / LEFT_OUT)
        for name in plan.files:
            join([work / name], output_dir / name)
        report.write(output_dir)
        remove_folder(work)
        return f"{report.as_text()}\n{output_dir / PAGE}"

    def _run_tasks(self, executor: str, blocks: "Blocks", work: Path) -> None:
        try:
            from .executors import run_tasks
        except ImportError as error:
            hint = "pip install 'posttrain[datatrove]'"
            raise DataError(f"needs the package '{error.name}'", where="executor", hint=hint) from error
        if type(self).__module__ not in sys.modules:  # as of file.py:Name
            hint = "make its file a module of an installed package, or leave `executor` out"
            raise DataError("other processes cannot import this tool", where="executor", hint=hint)
        folder = work / f"{executor}-{self.executor_tasks}"
        run_tasks(blocks, executor, self.executor_tasks, self.executor_options, folder)


def _snake(name: str) -> str:
    """Returns what a tool is called on the command line, from its class."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _refuse_left_over(folder: Path, written: Sequence[str]) -> None:
    """Refuses a folder that holds rows of another call which would stand beside this one's, and be read with them."""
    earlier = [
        file[name] for file in (read_json(folder / REPORT) or {}).get("files", ()) for name in _FILES if name in file
    ]
    left = [name for name in earlier if name and name not in written and (folder / name).exists()]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        what = f"holds rows of an earlier call that this one would not write over: {left[0]}{more}"
        raise DataError(what, where=str(folder), hint="name another folder: -o, or remove that one")


def canonical_text(values: Mapping[str, Any]) -> str:
    """Returns what a row of canonical columns says, the parts of a conversation on lines of their own."""
    said = [values[name] for name in ("text", "text_pair") if name in values]
    for name in ("messages", "prompt", "completion", "chosen", "rejected"):
        said += texts_of_turns(values.get(name))
    return "\n".join(said)


def text_and_tools(values: Mapping[str, Any]) -> str:
    """Returns what a row says and, if it may call tools, a number that stands for them.

    Written out, the tools that many rows have in common would make near-duplicates of whatever is asked of them.
    """
    text, tools = canonical_text(values), values.get("tools")
    if not tools:
        return text
    digest = hash_json(json.dumps(tools, sort_keys=True, default=str))  # of ASCII: a text may be no UTF-8
    return f"{text}\n[tools {int(digest[:12], 16)}]"


def split_tools(text: str) -> tuple[str, int]:
    """Returns what a row says and the number that stands for its tools, 0 for none: what ``text_and_tools`` joined."""
    found = _TOOLS.search(text)
    return (text[: found.start()], int(found[1])) if found else (text, 0)


class TextTool(RowTool):
    """A row tool that reads what rows say."""

    columns: Annotated[list[str] | None, BeforeValidator(comma_separated)] = None
    """The columns whose texts count; by default those that the rows' layout reads: a text, a conversation with its
    reasoning and calls of tools, a prompt with its answers."""

    def reader(
        self, source: SourceSpec, text_of: Callable[[Mapping[str, Any]], str] = canonical_text
    ) -> Callable[[Row], str]:
        """Returns what gives a row's text, the parts of a conversation on lines of their own; it raises RowError.

        Args:
            source: The source.
            text_of: Gives the text of canonical columns, where no columns are named.

        Raises:
            DataError: No known layout fits the rows, and no columns are named.
        """
        if self.columns is not None:
            columns = self.columns

            def read_columns(row: Row) -> str:
                missing = next((name for name in columns if name not in row.values), None)
                if missing is not None:
                    raise missing_column(missing, row.values)
                return "\n".join(texts_of([row.values[name] for name in columns]))

            return read_columns
        canonical = canonical_reader(source, get_args(Kind))

        return lambda row: text_of(canonical(row.values))


def text_blocks(source: SourceSpec, read: Callable[[Row], str | list[str]]) -> Iterator[list[tuple[str, str]]]:
    """Yields the texts of a source's usable rows, each behind where it is, by the blocks of its rows.

    Args:
        source: The source.
        read: What gives a row's text, or those of its turns, or raises RowError; such rows are counted when rows are
            decided on.
    """
    for block in blocks_of(source):
        texts = []
        for row, said in readable(block, read):
            if isinstance(said, str):
                texts.append((row.where, said))
            else:
                texts += zip(turn_places(row.where, len(said)), said, strict=True)
        yield texts


def turn_places(where: str, count: int) -> list[str]:
    """Returns where each turn of a row is."""
    return [f"{where}, turn {number} of {count}" for number in range(1, count + 1)]


def readable(rows: Iterable[Row], read: Callable[[Row], Said]) -> Iterator[tuple[Row, Said]]:
    """Yields the rows that can be read, each with what it says; others are counted when rows are decided on."""
    for row in rows:
        if row.problem is not None:
            continue
        try:
            said = read(row)
        except RowError:
            continue
        yield row, said


def decide_readable(
    read: Callable[[Row], Said], decide: Callable[[Sequence[Row], Sequence[Said]], Sequence[Outcome]]
) -> Decide:
    """Returns what decides on rows by what they say, and leaves out those that cannot be read.

    Args:
        read: Gives what a row says, or raises RowError.
        decide: Gives an outcome for each of some rows and what they say.
    """

    def decide_all(rows: Sequence[Row]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        said: dict[int, Said] = {}
        for place, row in enumerate(rows):
            try:
                said[place] = read(row)
            except RowError as error:
                outcomes[place] = Outcome(None, error.reason, error.detail)
        decided = decide([rows[place] for place in said], list(said.values()))
        outcomes |= zip(said, decided, strict=True)
        return [outcomes[place] for place in range(len(rows))]

    return decide_all


def canonical_reader(
    source: SourceSpec,
    kinds: Collection[Kind],
    unread: "Counter[str] | None" = None,
    shape: Callable[[SourceSpec, DataReport], Canonicalize] | None = None,
) -> Canonicalize:
    """Returns what makes a row's columns canonical, by the layout of the source's first rows.

    Args:
        source: The source.
        kinds: What the rows may become; the first that fits.
        unread: Counts what is not read.
        shape: Gives what changes canonical columns further, as ``dataset.Shape`` does for a model's training.

    Raises:
        DataError: No layout fits, or none of the first rows can be read.
    """
    first = first_rows(source)
    name, kind = choose(source, first, kinds)
    if kind is None:
        raise DataError("none of its first rows can be read", where=source.title)
    canonical = canonicalizer(source, name, kind, unread)
    if shape is None:
        return canonical
    reshape = shape(source, DataReport(kind=kind, format=name))
    return lambda values: reshape(canonical(values))


def first_rows(source: SourceSpec) -> list[Row]:
    """Returns the rows of a source that decide its layout, unreadable ones too.

    Raises:
        DataError: The source cannot be found or read.
    """
    return list(itertools.islice(read_rows(source, Path()), _LOOK_AHEAD))


def blocks_of(source: SourceSpec) -> Iterator[list[Row]]:
    """Yields the rows of a source, unreadable ones too, in blocks that are the same on every machine.

    Raises:
        DataError: The source cannot be found or read, or is damaged.
    """
    block: list[Row] = []
    characters = good = 0
    for row in read_rows(source, Path()):
        block.append(row)
        characters += _characters(row.values)
        good += row.problem is None
        if good == source.limit:
            break
        if len(block) == BLOCK_ROWS or characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _characters(value: Any) -> int:
    """Returns how many characters the texts inside a value have."""
    if type(value) is str:
        return len(value)
    if type(value) is dict:
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if type(value) is list else 0


def parts_of(source: SourceSpec) -> list[SourceSpec]:
    """Returns a source as its files, each read for itself; what must be read from its beginning is one part.

    Raises:
        DataError: The source cannot be found.
    """
    files = [] if source.limit is not None or is_hub(source, Path()) else local_files(source, Path())
    if len(files) < 2:
        return [source]
    return [source.model_copy(update={"path": str(file), "split": "train"}) for file in files]


class Blocks:
    """The blocks of all sources, each decided on by whoever's it is, and what was written of them.

    A block is a few files of the folder: its rows, why others are left out, and then its counts. When a part of a
    source has been read to its end, one more says how many blocks and rows it has. ``gather`` believes no other.

    Args:
        sources: The sources.
        decider: Gives what decides on the rows of a source.
        folder: Where the files are.
        writes_rows: Whether rows are written.
    """

    def __init__(
        self, sources: Sequence[SourceSpec], decider: Callable[[SourceSpec], Decide], folder: Path, writes_rows: bool
    ):
        self.sources, self.decider, self.folder, self.writes_rows = sources, decider, folder, writes_rows
        self.parts = [parts_of(source) for source in sources]

    def __call__(self, task: int, tasks: int) -> dict[str, int]:
        """Settles the blocks of one of several tasks, of all sources; returns how many rows those hold."""
        return {"rows": sum(self.settle(number, task, tasks) for number in range(len(self.sources)))}

    def settle(self, number: int, task: int = 0, tasks: int = 1) -> int:
        """Decides on the blocks of a source that are a task's and that no killed call has finished.

        Where there are enough files, a task has every so-manieth of them, else every so-manieth block.

        Returns:
            How many rows the task's blocks hold.
        """
        first = sum(map(len, self.parts[:number]))
        by_part = sum(map(len, self.parts)) >= tasks
        decide: Decide | None = None
        rows = 0
        for place, part in enumerate(self.parts[number]):
            if by_part and (first + place) % tasks != task:
                continue
            stem = self.folder / str(number) / f"{place:06}"
            known = self._settled(stem)
            if known is not None:
                rows += known if by_part else 0
                continue
            decide = decide or self.decider(self.sources[number])
            read = block_number = 0
            with progress_shown(part.title) as advance:
                for block_number, block in enumerate(blocks_of(part), start=1):
                    read += len(block)
                    if by_part or block_number % tasks == task:
                        rows += len(block)
                        self._settle(block, decide, stem.with_name(f"{stem.name}-{block_number:06}.jsonl"))
                    advance(len(block))
            write_json(stem.with_suffix(".json"), {"blocks": block_number, "rows": read})
        return rows

    def _settle(self, block: Sequence[Row], decide: Decide, path: Path) -> None:
        if self._known(path) is not None:
            return
        *lines, counts = settle(block, decide)
        sizes = []
        for suffix, some in zip(_SUFFIXES, lines, strict=True):
            data = b"".join(some)
            if self.writes_rows and (data or suffix == _KEPT):
                write_atomic(path.with_suffix(suffix), data)
            sizes.append(len(data))
        write_json(path.with_suffix(".json"), counts.to_dict() | {"bytes": sizes})

    def _known(self, path: Path) -> Counts | None:
        """Returns the counts of a block, if they and all of its rows are there."""
        found = read_json(path.with_suffix(".json"))
        if found is None:
            return None
        files = [path.with_suffix(suffix) for suffix in _SUFFIXES] if self.writes_rows else []
        there = [file.stat().st_size if file.exists() else 0 for file in files]
        return Counts.from_dict(found) if not files or there == found["bytes"] else None

    def _settled(self, stem: Path) -> int | None:
        """Returns how many rows a part holds, if it has been read and all of its blocks are there."""
        known = read_json(stem.with_suffix(".json"))
        if known is None or any(self._known(path) is None for path in _blocks_of(stem, known["blocks"])):
            return None
        return known["rows"]

    def gather(self, number: int) -> Counts:
        """Returns the counts of a source.

        Raises:
            PosttrainError: Blocks or rows are missing: a task has not ended, or the source has changed meanwhile.
        """
        total = Counts()
        for place in range(len(self.parts[number])):
            stem = self.folder / str(number) / f"{place:06}"
            known = read_json(stem.with_suffix(".json")) or {"blocks": 0, "rows": None}
            before = total.rows
            for path in _blocks_of(stem, known["blocks"]):
                found = self._known(path)
                if found is not None:
                    total.merge(found)
            if total.rows - before != known["rows"]:
                decided, path = total.rows - before, self.parts[number][place].path
                what = f"{decided:,} of {known['rows'] or 'an unknown number of'} rows of {path} were decided on"
                hint = "run the same command again: finished blocks are kept"
                raise PosttrainError(what, where=self.sources[number].title, hint=hint)
        return total


def _blocks_of(stem: Path, blocks: int) -> list[Path]:
    return [stem.with_name(f"{stem.name}-{number:06}.jsonl") for number in range(1, blocks + 1)]


def remove_folder(folder: Path) -> None:
    """Removes a folder of work so that a kill leaves none that lacks a part and is taken for whole."""
    gone = folder if folder.suffix == ".gone" else folder.rename(folder.with_name(f"{folder.name}.gone"))
    shutil.rmtree(gone)


def settle(block: Sequence[Row], decide: Decide) -> tuple[list[bytes], list[bytes], list[bytes], Counts]:
    """Decides on a block of rows.

    Returns:
        The lines of those that stay, of held-out ones, and of the log of those left out; and the counts.

    Raises:
        DataError: A value of a row that stays cannot be written as JSON.
    """
    counts = Counts()
    good = [row for row in block if row.problem is None]
    outcomes = iter(decide(good))
    lines: tuple[list[bytes], list[bytes], list[bytes]] = [], [], []

    def leave_out(row: Row, outcome: Outcome) -> None:
        counts.add(row, outcome)
        entry = {"row": row.where, "reason": outcome.reason, "detail": outcome.detail[:_SHOWN]}
        lines[2].append(_dumps(entry).encode(errors="replace") + b"\n")

    for row in block:
        if row.problem is not None:
            what = f"{UNREADABLE}: {row.problem.reason}"
            leave_out(row, Outcome(None, what, row.problem.detail))
            continue
        outcome = next(outcomes)
        if outcome.values is None:
            leave_out(row, outcome)
        else:
            mended: list[str] = []
            lines[outcome.held_out].append(json_line(outcome.values, row.where, mended))
            counts.add(row, outcome._replace(edits={**outcome.edits, NOT_FINITE: 1}) if mended else outcome)
    assert next(outcomes, None) is None, "an outcome for each row"
    return *lines, counts


def _check(source: SourceSpec, counts: Counts, max_bad_share: float) -> None:
    """Refuses sources of which too much cannot be read, and those without rows."""
    bad = {name: count for name, count in counts.reasons.counts.items() if name.startswith(UNREADABLE)}
    if not counts.rows - sum(bad.values()):
        raise DataError("holds no readable rows", where=source.title)
    if sum(bad.values()) > max_bad_share * counts.rows:
        example = counts.reasons.examples[next(iter(bad))][0]
        hint = f"mend them, or allow more with `max_bad_share` (now {max_bad_share:g})"
        what = f"{sum(bad.values())} of {counts.rows} rows cannot be read: {example.where}: {next(iter(bad))}"
        raise DataError(what, where=source.title, hint=hint)


def row_report(
    tool: str,
    arguments: Mapping[str, Any],
    counts: Mapping[str, Counts],
    files: Mapping[str, str],
    apart: Mapping[str, str],
) -> ToolReport:
    """Returns rows in and out of each source, every reason and change with examples, and distributions.

    Args:
        tool: The tool's name.
        arguments: What it was told.
        counts: By the source's title.
        files: The file of each source; none where rows are only counted.
        apart: The file of its held-out rows, if there are any.
    """
    summary, rows, entries, total = [], [], [], Counts()
    what = "left out" if files else "unreadable"
    for title, found in counts.items():
        total.merge(found)
        gone, kept = found.rows - found.kept, found.kept - found.held_out
        shown = f"{title} → {files[title]}" if files else title
        held = f", {found.held_out:,} held out" if title in apart else ""
        summary.append(f"{shown}: {kept:,} of {found.rows:,} rows{held}, {gone:,} {what}")
        rows.append([title, files.get(title, ""), found.rows, gone, kept, percent(kept, found.rows)])
        entry = {"source": title, "file": files.get(title, ""), "rows": found.rows, "removed": gone, "kept": kept}
        if title in apart:
            entry |= {"held_out_file": apart[title], "held_out": found.held_out}
        entries.append(entry | {"reasons": dict(found.reasons.counts)})
    table = Table("Rows", ["source", "file", "rows in", "left out", "rows out", "kept"], rows)
    if not files:
        table = Table("Rows", ["source", "rows", what], [[title, read, gone] for title, _, read, gone, *_ in rows])
    tallies = {"Left out": total.reasons} | ({CHANGED: total.edits} if total.edits.counts else {})
    plots: list[Plot] = [spread.plot(name, name) for name, spread in total.measures.items()]
    groups = group_tables(counts, bool(files))
    for name, found in total.groups.items():
        bars = [Bar(group, float(read)) for group, (read, _) in _ranked(found)]
        plots.append(Plot(f"Rows by {name}", name, bars))
    if len(counts) > 1 and total.kept < total.rows and files:
        shares = [Bar(title, round(100 * found.kept / found.rows, 1)) for title, found in counts.items()]
        plots.append(Plot("Rows kept, by source", "source, per cent of its rows", shares))
    more = {"files": entries}
    return ToolReport(f"posttrain data {tool}", arguments, summary, [table, *groups], plots, tallies, more)


def group_tables(counts: Mapping[str, Counts], are_written: bool) -> list[Table]:
    """Returns for each grouping a table of its groups' rows by source, the largest group first."""
    tables = []
    for name in dict.fromkeys(name for found in counts.values() for name in found.groups):
        rows = []
        for title, found in counts.items():
            for group, (read, kept) in _ranked(found.groups.get(name, {})):
                written = [read - kept, kept, percent(kept, read)] if are_written else []
                rows.append([title, group, read, percent(read, found.rows), *written])
        header = ["source", name, "rows in", "share", *(["left out", "rows out", "kept"] if are_written else [])]
        tables.append(Table(f"By {name}", header, rows))
    return tables


def _ranked(groups: Mapping[str, Sequence[int]]) -> list[tuple[str, Sequence[int]]]:
    return sorted(groups.items(), key=lambda item: (-item[1][0], item[0]))


def with_columns(row: Row, columns: Mapping[str, Any], hint: str = "") -> dict[str, Any]:
    """Returns a row with what a tool says of it, in columns of their own.

    Args:
        row: The row.
        columns: What is said, by column.
        hint: What to do where the row has such a column already; by default it is to be renamed.

    Raises:
        DataError: It has one, and what that says would be written over.
    """
    if taken := next((name for name in columns if row.values.get(name) not in (None, [])), None):
        hint = hint or f"rename it as it is read: the source's `columns: {{{taken}: {taken}_before}}`"
        raise DataError(f"has a column {taken} already", where=row.where, hint=hint)
    return {**row.values, **columns}


def quote(values: Mapping[str, Any]) -> str:
    """Returns what a row says, as an example shows it."""
    return "\n".join(texts_of(values))


def file_names(sources: Sequence[SourceSpec], suffix: str) -> dict[str, str]:
    """Returns what the rows of each source are called, as its file is.

    Raises:
        DataError: Two sources have one title.
    """
    names: dict[str, str] = {}
    for source in sources:
        if source.title in names:
            raise DataError("stands twice among the sources", where=source.title, hint="give one of them a `name`")
        stem = re.sub(r"[^\w-]+", "_", Path(source.title.removesuffix(".gz")).stem).strip("_") or "rows"
        options = (f"{stem}.{suffix}", *(f"{stem}-{number}.{suffix}" for number in range(2, len(sources) + 2)))
        taken = {*names.values(), REPORT}
        names[source.title] = next(option for option in options if option not in taken)
    return names


def json_line(values: Any, where: str, mended: list[str] | None = None) -> bytes:
    """Returns a row as a line of JSON, which has no dates and only finite numbers: those are text, others null.

    Args:
        values: The row.
        where: Where it is.
        mended: Takes that, if there was such a number.

    Raises:
        DataError: A value has no JSON, such as bytes.
    """
    try:
        if _is_plain(values):
            return to_json(values) + b"\n"
        try:
            text = _dumps(values)
        except ValueError:
            if mended is not None:
                mended.append(where)
            text = _dumps(_finite(values))
        return text.encode() + b"\n"
    except (TypeError, ValueError) as error:
        column = next((name for name, value in values.items() if not _has_json({name: value})), None)
        hint = "`posttrain data convert` writes the rows without columns that their layout does not read"
        raise DataError(f"column {column!r} cannot be written as JSON: {error}", where=where, hint=hint) from error


def _has_json(values: Any) -> bool:
    try:
        return bool(_dumps(_finite(values)).encode())
    except (TypeError, ValueError):
        return False


def _dumps(values: Any) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_iso_date)


def _iso_date(value: Any) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON")


def _is_plain(value: Any) -> bool:
    """Whether a value is of JSON's types and its numbers are finite; pydantic, four times as fast, writes more."""
    if type(value) is dict:
        return _KEYS.issuperset(map(type, value)) and _is_plain([*value.values()])
    if type(value) is list:
        return _EXACT.issuperset(map(type, value)) or all(map(_is_plain, value))
    return type(value) in _EXACT or (type(value) is float and math.isfinite(value))


def _finite(values: Any) -> Any:
    return with_leaves(values, lambda one: None if isinstance(one, float) and not math.isfinite(one) else one)


def join(parts: Sequence[Path], path: Path) -> None:
    """Writes files of JSON Lines as one, as Parquet if the name says so, under another name until it is whole.

    Raises:
        DataError: A column holds values of several types, which Parquet has no name for.
        PosttrainError: The folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.part"
    try:
        if path.suffix == ".parquet":
            _join_parquet(parts, temporary, path.name)
        else:
            with temporary.open("wb") as out:
                for part in parts:
                    with part.open("rb") as lines:
                        shutil.copyfileobj(lines, out)
                out.flush()
                os.fsync(out.fileno())
        temporary.replace(path)
    except OSError as error:
        raise PosttrainError(f"cannot write: {error.strerror or error}", where=str(path)) from error


def _join_parquet(parts: Sequence[Path], path: Path, name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def rows_of(part: Path) -> list[Any]:
        return [from_json(line) for line in part.read_bytes().splitlines()]

    def schema_of(rows: list[Any]) -> pa.Schema:  # `from_pylist` would take the names of the first row alone
        names = dict.fromkeys(itertools.chain.from_iterable(rows))
        return pa.table({name: [row.get(name) for row in rows] for name in names}).schema

    try:
        schemas = [schema_of(rows_of(part)) for part in parts]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        with pq.ParquetWriter(path, schema) as out:
            for part in parts:
                out.write_table(pa.Table.from_pylist(rows_of(part), schema=schema))
    except (pa.ArrowException, OverflowError) as error:  # the latter of an integer beyond 64 bits
        what = f"cannot be written as Parquet: {str(error).splitlines()[0]}"
        raise DataError(
            what, where=name, hint="a column holds values of several types, or too large ones; write `jsonl`"
        ) from error
