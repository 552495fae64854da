"""`data lines`: lines and paragraphs that stand in many rows, as menus, notices and footers of pages do, are cut.

Removing such lines across documents is CCNet's deduplication (Wenzek et al. 2020, "CCNet: Extracting High Quality
Monolingual Datasets from Web Crawl Data", section 3.1): every paragraph (there a line) of the same normalised text as
another goes, the first too. A limit on what may be cut before the whole page goes is RefinedWeb's (Penedo et al. 2023,
"The RefinedWeb Dataset for Falcon LLM", section 3.2 and appendix G.2).
"""

import dataclasses
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from .errors import DataError, missing_column
from .files import write_atomic, write_jsonl_log
from .ngrams import Words, split_words, words_in
from .row_tool import Decide, Outcome, Plan, RowTool, blocks_of, decide_readable, first_rows, readable, with_columns
from .sources import Row
from .spec import Count, PositiveShare, SourceSpec
from .tool import comma_separated
from .tool_report import Bar, Plot, Table, ToolReport, percent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]

Unit = Literal["line", "paragraph"]
LEDGER = "cut.log"
COLUMN = "repeated"
_SHOWN = 500  # characters of a line that ledger and report quote
_LISTED = 40  # lines that the page lists
_CURVE = (2, 3, 5, 10, 20, 50, 100, 1000)
_FENCE = re.compile(r" {0,3}(?:```|~~~)")
_DIGITS = frozenset("0123456789")
_LANGUAGES = frozenset((
    "assembly", "bash", "c", "c#", "c++", "clojure", "cpp", "csharp", "css", "cuda", "dart", "dockerfile",
    "elixir", "erlang", "fortran", "go", "haskell", "html", "java", "javascript", "json", "julia", "jupyter",
    "kotlin", "lua", "makefile", "matlab", "objective-c", "perl", "php", "powershell", "python", "r", "ruby",
    "rust", "scala", "shell", "sql", "swift", "tex", "toml", "typescript", "verilog", "vhdl", "xml", "yaml",
    "zig",
))  # fmt: skip
_SUFFIXES = frozenset((
    ".bash", ".c", ".cc", ".clj", ".cpp", ".cs", ".css", ".cu", ".dart", ".ex", ".f90", ".go", ".h", ".hpp",
    ".hs", ".html", ".ipynb", ".java", ".jl", ".js", ".json", ".jsx", ".kt", ".lua", ".m", ".php", ".pl", ".py",
    ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".toml", ".ts", ".tsx", ".v", ".vue", ".xml", ".yaml",
    ".yml", ".zig",
))  # fmt: skip


@dataclass(frozen=True)
class Repeated:
    """A line or paragraph that stands in many rows: a line of ``cut.log``.

    Attributes:
        text: What it says, where it stands first.
        rows: How many rows it stands in.
        first: Where the first of them is.
    """

    text: str
    rows: int
    first: str


class Lines(RowTool):
    """Cuts lines and paragraphs that stand in many rows, such as menus, notices and footers of pages.

    Writes ``cut.log`` beside the rows: each text that is cut, in how many rows it stands and where first. Case and
    punctuation do not count, what says no word is never cut.
    """

    unit: Unit = "line"
    """What is compared: a `line`, or a `paragraph`, the lines between blank ones."""
    min_rows: Annotated[int, Field(ge=2)] = 10
    """In how many rows a line must stand to be cut. CCNet's is 2."""
    keep: Literal["first", "none"] = "first"
    """Whether it stays in the `first` of its rows, or in `none` of them, as CCNet has it."""
    min_words: Count = 1
    """Words of the shortest line that is cut."""
    ignore_numbers: bool = False
    """Whether lines are the same that differ in numbers alone, as in CCNet: '3 comments' and '12 comments'."""
    max_cut: PositiveShare | None = None
    """The largest share of a row's words that may be cut; of more, the row is left out. RefinedWeb's is .05, for lines
    that rules find. A row of which nothing is left is left out in any case."""
    columns: Annotated[list[str] | None, BeforeValidator(comma_separated)] = None
    """The columns whose texts are cut; by default `text`, or `messages` with `chats`."""
    chats: bool = False
    """Whether lines of conversations are cut too; they are refused otherwise: answers of one form are no notices."""
    code: bool = False
    """Whether lines of code are cut too: of rows whose `path` or `language` says that they are code, and between fences
    (```); they stay otherwise."""
    remove: bool = True
    """Whether lines are cut; else all rows are written as they are, with a column `repeated` of the lines."""

    def plan(self, folder: Path) -> Plan:
        """Reads all rows once for the hashes of their lines, and again for the text of those that are repeated."""
        names = [self._columns(source) for source in self.sources]
        hashes, counts = self._counted(folder / "hashes", names)
        repeated = self._repeated(hashes[counts >= self.min_rows], counts[counts >= self.min_rows], names)
        found = sorted(repeated.values(), key=lambda one: -one.rows)
        write_jsonl_log(folder / LEDGER, found)

        def decider(source: SourceSpec) -> Decide:
            mine = names[self.number_of(source)]
            return decide_readable(
                partial(self._pieces, names=mine), lambda rows, said: self._decide(rows, said, mine, repeated)
            )

        def add(report: ToolReport, _: Any) -> ToolReport:
            return _add(report, self, found, counts)

        return Plan(decider, add, [LEDGER])

    def _columns(self, source: SourceSpec) -> Sequence[str]:
        """Returns the columns whose texts are cut.

        Raises:
            DataError: The first rows have none that is known, or hold conversations, which must be asked for.
        """
        known = [row.values for row in first_rows(source) if row.problem is None]
        names = self.columns or next(([name] for name in ("text", "messages") if any(name in row for row in known)), [])
        if known and not names:
            hint = "name one in `columns`, or convert the rows first"
            raise DataError("has no column `text`", where=source.title, hint=hint)
        if not self.chats and any(not isinstance(row.get(name), str | None) for row in known for name in names):
            what = f"`{names[0]}` holds conversations, whose lines stay"
            raise DataError(what, where=source.title, hint="ask for it by `chats: true`, or name another column")
        return names

    def _pieces(self, row: Row, names: Sequence[str]) -> list[list[str]]:
        """Returns the texts of a row, in pieces.

        Raises:
            RowError: A column is missing.
        """
        said: list[Any] = []
        for name in names:
            if name not in row.values:
                raise missing_column(name, row.values)
            value = row.values[name]
            said += [_content(turn) for turn in value] if isinstance(value, list) else [value]
        return [pieces_of(text, self.unit) if isinstance(text, str) else [] for text in said]

    def _texts(
        self, rows: Iterable[tuple[Row, list[list[str]]]], wanted: "Hashes | None" = None
    ) -> "Iterator[tuple[Row, list[_Text]]]":
        """Yields rows of a block with their texts; of pieces, only those wanted have hashes."""
        found = list(rows)
        words = split_words([piece for _, texts in found for text in texts for piece in text])
        sizes = words.counts
        if self.ignore_numbers:
            words = Words(np.where(words.hashes & np.uint64(1), np.uint64(1), words.hashes), words.bounds)
        hashes = words.wholes
        hashes[sizes < self.min_words] = 0
        if wanted is not None:
            hashes[~np.isin(hashes, wanted)] = 0
        begin = 0
        for row, texts in found:
            is_code = not self.code and is_source_file(row.values)
            hashed = []
            for pieces in texts:
                part = slice(begin, begin + len(pieces))
                begin += len(pieces)
                if hashes[part].any():
                    hashes[part][[is_code or not may_go for may_go in _may_go(pieces, self.code)]] = 0
                hashed.append(_Text(pieces, hashes[part], sizes[part]))
            yield row, hashed

    def _counted(self, folder: Path, names: Sequence[Sequence[str]]) -> "tuple[Hashes, NDArray[np.int64]]":
        """Returns the distinct hashes of pieces, and in how many rows each stands."""
        parts: list[Any] = [np.zeros(0, np.uint64)]
        for source, mine in zip(self.sources, names, strict=True):
            for block in blocks_of(source):
                path = folder / f"{len(parts) - 1:06}.npy"
                if not path.exists():
                    rows = [
                        np.unique(np.concatenate([text.hashes for text in texts]))
                        for _, texts in self._texts(readable(block, partial(self._pieces, names=mine)))
                        if texts
                    ]
                    buffer = io.BytesIO()
                    np.save(buffer, np.concatenate([np.zeros(0, np.uint64), *rows]))
                    write_atomic(path, buffer.getvalue())
                parts.append(np.load(path))
        hashes, counts = np.unique(np.concatenate(parts), return_counts=True)
        return hashes[hashes != 0], counts[hashes != 0]

    def _repeated(
        self, hashes: "Hashes", counts: "NDArray[np.int64]", names: Sequence[Sequence[str]]
    ) -> dict[int, Repeated]:
        """Returns what stands in enough rows, by its hash, as it stands in the first of them."""
        left = dict(zip(hashes.tolist(), counts.tolist(), strict=True))
        found: dict[int, Repeated] = {}
        for source, mine in zip(self.sources, names, strict=True):
            for block in blocks_of(source) if len(found) < len(left) else ():
                for row, texts in self._texts(readable(block, partial(self._pieces, names=mine)), hashes):
                    for text in texts:
                        for place in np.flatnonzero(text.hashes).tolist():
                            key = int(text.hashes[place])
                            if key not in found:
                                found[key] = Repeated(text.pieces[place].strip(), left[key], row.where)
        return found

    def _decide(
        self,
        rows: Sequence[Row],
        said: Sequence[list[list[str]]],
        names: Sequence[str],
        repeated: Mapping[int, Repeated],
    ) -> list[Outcome]:
        keys = np.array(sorted(repeated), np.uint64)
        outcomes = []
        for row, texts in self._texts(zip(rows, said, strict=True), keys):
            cut = [
                [
                    place
                    for place in np.flatnonzero(text.hashes).tolist()
                    if self._goes(text.pieces[place], row, repeated[int(text.hashes[place])])
                ]
                for text in texts
            ]
            outcomes.append(self._outcome(row, names, texts, cut))
        return outcomes

    def _goes(self, piece: str, row: Row, repeated: Repeated) -> bool:
        """Says whether a piece is what its hash says, and not the one that stays."""
        if self.keep == "first" and row.where == repeated.first:
            return False
        return self._words(piece) == self._words(repeated.text)

    def _words(self, piece: str) -> list[str]:
        return ["0" if self.ignore_numbers and word[0] in _DIGITS else word for word in words_in(piece)]

    def _outcome(self, row: Row, names: Sequence[str], texts: "Sequence[_Text]", cut: Sequence[list[int]]) -> Outcome:
        gone = [text.pieces[place].strip() for text, some in zip(texts, cut, strict=True) for place in some]
        if not self.remove:
            edits = {f"{self.unit} repeated": len(gone)} if gone else {}
            return Outcome(with_columns(row, {COLUMN: gone}), edits=edits)
        if not gone:
            return Outcome(row.values)
        words = int(sum(text.sizes.sum() for text in texts))
        less = int(sum(text.sizes[some].sum() for text, some in zip(texts, cut, strict=True)))
        detail = f"{percent(less, words)} of its words: {' ⏎ '.join(gone)}"
        if less == words:
            return Outcome(None, "nothing left", detail)
        if self.max_cut is not None and less > self.max_cut * words:
            return Outcome(None, f"more than {self.max_cut:.0%} cut", detail)
        left = iter([text.without(some) for text, some in zip(texts, cut, strict=True)])
        values = row.values | {name: _filled(row.values[name], left) for name in names}
        measures = {"percent of a row's words that is cut": 100 * less / words}
        return Outcome(values, detail=detail, edits={f"{self.unit} cut": len(gone)}, measures=measures)


@dataclass(frozen=True)
class _Text:
    """A text in pieces that make it up, with a hash of each, 0 of one that stays, and how many words it has."""

    pieces: Sequence[str]
    hashes: "Hashes"
    sizes: "NDArray[np.int64]"

    def without(self, cut: Sequence[int]) -> str:
        """Returns what is left, without a line end that nothing follows any more."""
        left = "".join(piece for place, piece in enumerate(self.pieces) if place not in cut)
        return left.rstrip("\n") if len(self.pieces) - 1 in cut else left


def pieces_of(text: str, unit: Unit) -> list[str]:
    """Cuts a text behind line ends, or before each line that follows a blank one; the pieces joined are the text."""
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    if unit == "line":
        return lines
    pieces: list[str] = []
    blank = True
    for line in lines:
        if blank and line.strip():
            pieces.append(line)
        elif pieces:
            pieces[-1] += line
        else:
            pieces.append(line)
        blank = not line.strip()
    return pieces


def _may_go(pieces: Sequence[str], code: bool) -> list[bool]:
    """Says which pieces are outside of fences; with code, which do not open or close one."""
    inside, may_go = False, []
    for piece in pieces:
        fences = sum(bool(_FENCE.match(line)) for line in piece.split("\n")) if "```" in piece or "~~~" in piece else 0
        may_go.append(fences % 2 == 0 if code else not inside and not fences)
        inside ^= bool(fences % 2)
    return may_go


def is_source_file(values: Mapping[str, Any]) -> bool:
    """Says whether a row calls itself a source file."""
    said = {str(values.get(name) or "").casefold() for name in ("language", "lang", "programming_language")}
    return bool(said & _LANGUAGES) or PurePath(str(values.get("path") or "")).suffix.casefold() in _SUFFIXES


def _content(turn: Any) -> Any:
    return turn.get("content") if isinstance(turn, Mapping) else None


def _filled(value: Any, texts: Iterator[str]) -> Any:
    """Puts texts where those were from which they are cut."""
    if isinstance(value, list):
        contents = [next(texts) for _ in value]
        return [
            turn | {"content": text} if isinstance(_content(turn), str) else turn
            for turn, text in zip(value, contents, strict=True)
        ]
    text = next(texts)
    return text if isinstance(value, str) else value


def _add(report: ToolReport, spec: Lines, found: Sequence[Repeated], counts: "NDArray[np.int64]") -> ToolReport:
    """Adds what is repeated how often, and what other thresholds would find."""
    listed = [[one.rows, one.text[:_SHOWN], one.first] for one in found[:_LISTED]]
    curve = []
    for rows in sorted({*_CURVE, spec.min_rows}):
        some = counts[counts >= rows]
        curve.append([rows, len(some), int(some.sum()) - (len(some) if spec.keep == "first" else 0)])
    tables = [
        *report.tables,
        Table(f"{spec.unit.capitalize()}s in most rows", ["rows", "text", "first in"], listed),
        Table("At other thresholds", ["rows at least", f"different {spec.unit}s", f"{spec.unit}s cut"], curve),
    ]
    bars = [
        Bar(f"{low} to {low * 2 - 1}", int(((counts >= low) & (counts < low * 2)).sum())) for low in _doublings(counts)
    ]
    plot = Plot(f"Rows of a {spec.unit}", f"rows that a {spec.unit} stands in", bars)
    said = f"{len(found):,} different {spec.unit}s stand in {spec.min_rows} rows or more"
    return dataclasses.replace(report, summary=[*report.summary, said], tables=tables, plots=[*report.plots, plot])


def _doublings(counts: "NDArray[np.int64]") -> list[int]:
    return [1 << power for power in range(1, int(counts.max(initial=1)).bit_length())]
