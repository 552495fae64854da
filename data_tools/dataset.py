"""Rows of a source to canonical rows: reads, converts, counts what had to be dropped and says why."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..chat_templates.rendering import holds
from .columns import answer_messages
from .errors import DataError, RowError, missing_column
from .formats import canonicalizer, choose
from .mix import SourceShare
from .sources import Row, read_rows

if TYPE_CHECKING:
    from ..chat_templates import ChatTemplate
    from .spec import FormatName, Kind, SourceSpec

_LOOK_AHEAD = 32  # rows whose columns decide the format
_ALL_BAD = 100  # first rows that, if none is usable, end the reading of a source
_EXAMPLES = 3
BATCH_ROWS = 512
BATCH_CHARACTERS = 4_000_000
NUMBERS = "\0numbers"  # no column is called so
_Read = TypeVar("_Read")


@dataclass
class DataReport:
    """What became of the rows of a source; filled in while they are read.

    Attributes:
        source: The source's name.
        kind: The kind of the rows, known once reading has begun.
        format: The format they were read as; None for a mapping.
        rows: Rows read.
        kept: Rows used.
        dropped: How many rows were dropped, by reason.
        examples: Up to three dropped rows for each reason, where they are and what is particular to them.
        unread: What rows hold that nothing reads, ``column id`` or ``message key name``, with the number of rows.
        turns: Rows whose prompts and answers of text became turns of the chat template.
        literal: Rows whose text spells tokens of the chat template, which stay characters.
    """

    source: str = ""
    kind: "Kind | None" = None
    format: "FormatName | None" = None
    rows: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    turns: int = 0
    literal: int = 0

    def drop(self, reason: str, where: str, detail: str = "") -> None:
        """Counts a row that has been read and cannot be used."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(f"{where}: {detail}" if detail else where)

    def reasons(self) -> str:
        """Returns the reasons, most frequent first, each with its count and an example."""
        ranked = sorted(self.dropped.items(), key=lambda item: -item[1])
        return "; ".join(f"{reason} ({count}, as in {self.examples[reason][0]})" for reason, count in ranked)

    def check(self, max_bad_share: float) -> None:
        """Stops a run that would lose more than a stated share of a source.

        Raises:
            DataError: More than ``max_bad_share`` of the rows were dropped, or no row is left.
        """
        bad = sum(self.dropped.values())
        if bad > max_bad_share * self.rows:
            long = any(reason.startswith("longer than max_length") for reason in self.dropped)
            mend = "raise max_length, set `data.too_long` to truncate" if long else "mend them"
            raise DataError(
                f"{bad} of {self.rows} rows cannot be used: {self.reasons()}",
                where=self.source,
                hint=f"{mend}, or allow more with `max_bad_share` (now {max_bad_share:g})",
            )
        if not self.kept:
            raise DataError(f"no usable row: {self.reasons()}" if bad else "holds no rows", where=self.source)

    def add(self, tokeniser: "DataReport") -> None:
        """Adds what was dropped when the rows, once read, were tokenised."""
        for reason, count in tokeniser.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.kept -= sum(tokeniser.dropped.values())
        self.examples = tokeniser.examples | self.examples


@dataclass(frozen=True)
class SourceSummary:
    """What became of one source.

    Attributes:
        name: Its name in reports.
        kind: The kind of its rows.
        rows: Rows read.
        kept: Rows that can be trained on.
        dropped: Rows that cannot, by reason.
        examples: Up to three dropped rows for each reason.
        truncated: Kept rows that were cut to ``max_length``.
        documents: Rows in the mixture, repetitions counted.
        tokens: Their tokens.
        loss_tokens: Those that carry loss.
        epochs: Tokens in the mixture over tokens kept.
        target: The share of the mixture that was asked for.
        share: The share that was reached.
        unread: What its rows hold that nothing reads, with the number of rows.
        turns: Rows whose text became turns of the chat template.
        literal: Rows whose text spells tokens of the chat template.
    """

    name: str
    kind: str
    rows: int
    kept: int
    dropped: dict[str, int]
    examples: dict[str, list[str]]
    truncated: int
    documents: int
    tokens: int
    loss_tokens: int
    epochs: float
    target: float
    share: float
    unread: dict[str, int] = field(default_factory=dict)
    turns: int = 0
    literal: int = 0

    @classmethod
    def of(cls, report: DataReport, kind: "Kind | None", truncated: int, loss_tokens: int, share: SourceShare) -> Self:
        """Puts together what a source's report says and what a mixture took from it."""
        names = ("rows", "kept", "dropped", "examples", "unread", "turns", "literal")
        read = {name: getattr(report, name) for name in names}
        rest = {"kind": str(kind or report.kind), "truncated": truncated, "loss_tokens": loss_tokens}
        return cls(name=report.source, **read, **rest, **asdict(share))

    @property
    def notes(self) -> list[str]:
        """What a user should know of how the rows were read, in sentences."""
        notes = []
        if self.turns:
            notes.append(f"{self.turns:,} rows of text became turns of the chat template; `raw: true` leaves them text")
        if self.literal:
            notes.append(
                f"{self.literal:,} rows spell tokens of the chat template in their text, where they are characters and "
                "begin or end no turn; give conversations as messages"
            )
        if self.unread:
            names = [f"{name} ({count:,} rows)" for name, count in sorted(self.unread.items())]
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            notes.append(f"not read: {', '.join(names[:20])}{more}")
        return notes


@dataclass(frozen=True)
class PhaseSummary:
    """What a phase of a schedule holds.

    Attributes:
        rows: Rows that begin in it.
        documents: Rows of the sources in it.
        tokens: Their tokens.
        target: The shares of its tokens that were asked for, ``[sources]``.
        share: The shares that were reached, ``[sources]``.
    """

    rows: int
    documents: int
    tokens: int
    target: tuple[float, ...]
    share: tuple[float, ...]


@dataclass(frozen=True)
class PreparedReport:
    """What a prepared set holds.

    Attributes:
        sources: One summary for each source, in the order of the recipe.
        rows: Rows of the set: packed rows if packed, documents or pieces of them otherwise.
        tokens: Tokens in all rows.
        loss_tokens: Those that carry loss. The first of a sequence never does, since nothing predicts it.
        fill: Tokens over rows times ``max_length``; None without packing.
        rows_without_loss: Rows on which nothing is learnt; only pieces of split conversations can be such.
        order: The order of training rows in words; empty for evaluation rows and where there are phases.
        phases: The phases of a schedule, which follow each other; empty without one.
    """

    sources: tuple[SourceSummary, ...]
    rows: int
    tokens: int
    loss_tokens: int
    fill: float | None
    rows_without_loss: int
    order: str = ""
    phases: tuple[PhaseSummary, ...] = ()

    def check(self, max_bad_share: float) -> None:
        """Stops a run that lost more than a stated share of a source, as ``DataReport.check`` does."""
        for source in self.sources:
            read = DataReport(source.name, None, None, source.rows, source.kept, source.dropped, source.examples)
            read.check(max_bad_share)

    @property
    def dropped(self) -> dict[str, int]:
        """Dropped rows of all sources, by reason."""
        totals: dict[str, int] = {}
        for source in self.sources:
            for reason, count in source.dropped.items():
                totals[reason] = totals.get(reason, 0) + count
        return totals

    @property
    def notes(self) -> list[str]:
        """What a user should know of how the rows of each source were read."""
        return [f"{source.name}: {note}" for source in self.sources for note in source.notes] + self.order_notes

    @property
    def order_notes(self) -> list[str]:
        """The order of the rows, where they are not shuffled, in sentences."""
        notes = [f"order: {self.order}"] if self.order not in ("", "shuffled") else []
        before = 0
        for number, phase in enumerate(self.phases, 1):
            shares = ", ".join(
                f"{source.name} {share:.2%} of tokens (asked {target:.2%})"
                for source, share, target in zip(self.sources, phase.share, phase.target, strict=True)
                if share or target
            )
            notes.append(f"phase {number}, from row {before:,}: {phase.rows:,} rows, {phase.tokens:,} tokens: {shares}")
            before += phase.rows
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for ``run.json``, with the total of ``dropped``."""
        return asdict(self) | {"sources": [asdict(source) for source in self.sources], "dropped": self.dropped}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "PreparedReport":
        """Reads what ``to_dict`` gave."""
        fields: dict[str, Any] = {name: item for name, item in value.items() if name != "dropped"}
        fields["sources"] = tuple(SourceSummary(**source) for source in value["sources"])
        fields["phases"] = tuple(
            PhaseSummary(**{**phase, "target": tuple(phase["target"]), "share": tuple(phase["share"])})
            for phase in value.get("phases", ())
        )
        return cls(**fields)


def load(
    source: "SourceSpec",
    base_dir: Path,
    accepts: "Collection[Kind]",
    *,
    template: "ChatTemplate | None" = None,
    report: DataReport | None = None,
    max_bad_share: float = 0.02,
    numbers: Sequence[str] = (),
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads a source as training examples, in order and with bounded memory.

    Args:
        source: What to read, and how.
        base_dir: The folder that relative paths start from.
        accepts: The kinds of example that the caller can use. Rows become the first kind that fits their format.
        template: The chat template, where there is one. Prompts and answers of text are then turns of the user and the
            assistant, unless the source is ``raw``: what is trained is what a chat with the model will be.
        report: Is filled in while rows are read; complete when the iterator ends.
        max_bad_share: The largest share of the rows that may be dropped.
        numbers: Columns of numbers that are to be kept, as a list of floats under ``NUMBERS``.

    Yields:
        Where the row is, and its canonical columns as ``formats.canonicalizer`` describes them.

    Raises:
        DataError: The source cannot be read, its format cannot be told or used, or too many rows are bad. The last is
            known at the end, or after the first hundred rows if none of them is usable.
    """
    report = DataReport() if report is None else report
    report.source = source.title
    unread: Counter[str] = Counter()
    rows = iter(read_rows(source, base_dir))
    first = list(itertools.islice(rows, _LOOK_AHEAD))
    report.format, report.kind = choose(source, first, accepts)
    canonical = canonicalizer(source, report.format, report.kind, unread) if report.kind else None
    shape = Shape(source, report, template)
    control = re.compile("|".join(map(re.escape, template.special_tokens if template else ())) or "(?!)")

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        assert canonical is not None, "a row that can be read has a format"
        if not numbers:
            return shape(canonical(row))
        return {**shape(canonical(row)), NUMBERS: [number_in(row, column) for column in numbers]}

    for where, example in usable(itertools.chain(first, rows if canonical else ()), convert, report, max_bad_share):
        report.literal += template is not None and holds(example, control)
        yield where, example
        if report.kept == source.limit:
            break
    if template and template.renders_names:
        del unread["message key name"]
    for column in numbers:
        del unread[f"column {column}"]
    report.unread = dict(unread)
    report.check(max_bad_share)


def number_in(row: dict[str, Any], column: str) -> float:
    """Returns the number in a column that rows are weighed, ordered or chosen by; tables of text spell theirs out.

    Raises:
        RowError: There is none, or none that is finite.
    """
    if column not in row:
        problem = missing_column(column, row)
        raise RowError(f"{problem.reason} of data.order or row_weight", problem.detail)
    value = row[column]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowError(f"no number in column '{column}'", f"it has {str(value)[:60]!r}")
    return number


def usable(
    rows: Iterable[Row], convert: Callable[[dict[str, Any]], _Read], report: DataReport, max_bad_share: float = 1.0
) -> Iterator[tuple[str, _Read]]:
    """Converts rows in order; one that cannot be used is left out and counted.

    Args:
        rows: What was read.
        convert: Makes of a row's columns what is wanted, or raises RowError.
        report: Is filled in while rows are read.
        max_bad_share: The largest share of the rows that may be left out, which is the caller's to check. Unless it is
            1, the reading ends after the first hundred rows if none of them is usable.

    Yields:
        Where the row is, and what it became.
    """
    for row in rows:
        report.rows += 1
        try:
            if row.problem is not None:
                raise row.problem
            read = convert(row.values)
        except RowError as error:
            report.drop(error.reason, row.where, error.detail)
            if report.rows == _ALL_BAD and not report.kept and max_bad_share < 1:
                return
            continue
        report.kept += 1
        yield row.where, read


def batched(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Groups rows by number, and by characters where a row can be a whole book."""
    batch: list[tuple[str, dict[str, Any]]] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row[1].get("text") or "")
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class Shape:
    """Keeps the rows of a source alike: prompts all text or all messages, margins all there or none.

    What reads the examples decides by one of them how to tokenise all. Prompts are text in a raw source, messages under
    a chat template, and otherwise as in the first row.
    """

    def __init__(self, source: "SourceSpec", report: DataReport, template: "ChatTemplate | None") -> None:
        self._source, self._report = source, report
        self._text: bool | None = True if source.raw else False if template else None
        self._margin: bool | None = None

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        """Returns canonical columns as those of the first rows are; raises RowError where they cannot be made so."""
        if self._source.raw:
            example = self._flat(example)
        prompt = example.get("prompt")
        if prompt is None:
            return example
        is_text = isinstance(prompt, str)
        has_margin = self._report.kind == "preference" and "margin" in example
        if self._text is None:
            self._text = is_text
        if self._margin is None:
            self._margin = has_margin
        if has_margin != self._margin:
            raise RowError("a margin where the first rows have none" if has_margin else "no margin")
        if is_text == self._text:
            return example
        if self._text:
            raise RowError("the prompt is messages where the first rows have text")
        self._report.turns += 1
        messages = {**example, "prompt": [{"role": "user", "content": prompt}]}
        if self._report.kind == "prompt":
            return messages
        answers = {key: answer_messages(example[key]) for key in ("completion", "chosen", "rejected") if key in example}
        return {**messages, **answers, "tools": None}

    def _flat(self, example: dict[str, Any]) -> dict[str, Any]:
        """Takes the roles off an instruction and its output; a conversation cannot do without them."""
        if "messages" in example:
            example = {"prompt": example["messages"][:-1], "completion": example["messages"][-1]["content"]}
        prompt = example.get("prompt")
        if isinstance(prompt, list):
            if self._report.format != "alpaca" or len(prompt) != 1:
                raise RowError("the source is raw, and this is a conversation", "drop `raw`")
            example = {**example, "prompt": prompt[0]["content"]}
        return example
