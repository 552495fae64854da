"""What a data tool says of its work: ``report.json`` and a page of the same, every count with examples."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from .files import write_atomic, write_json

REPORT = "report.json"
PAGE = "report.html"
EXAMPLES = 10
_SHOWN = 500  # characters of a text that an example quotes
_STEPS = 4  # bins for each doubling
_BINS = 40 * _STEPS


@dataclass(frozen=True)
class ExampleRow:
    """A row that a count stands for.

    Attributes:
        where: Where the row is.
        text: The beginning of what it says.
        detail: What is particular to it.
    """

    where: str
    text: str
    detail: str = ""

    @classmethod
    def of(cls, where: str, text: str, detail: str = "") -> Self:
        """Cuts what is shown to a length that a page can hold."""
        return cls(where, text[:_SHOWN], detail[:_SHOWN])


@dataclass
class Tally:
    """Counts by name, each with its first examples.

    Attributes:
        counts: How many, by name.
        examples: Up to ten for each name.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[ExampleRow]] = field(default_factory=dict)

    def add(self, name: str, where: str = "", text: str = "", detail: str = "") -> None:
        """Counts one; its example is kept while there are fewer than ten."""
        self.counts[name] = self.counts.get(name, 0) + 1
        kept = self.examples.setdefault(name, [])
        if where and len(kept) < EXAMPLES:
            kept.append(ExampleRow.of(where, text, detail))

    def merge(self, other: "Tally") -> None:
        """Adds what another counted later."""
        for name, count in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
            kept = self.examples.setdefault(name, [])
            kept += other.examples.get(name, [])[: EXAMPLES - len(kept)]

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Reads what ``asdict`` gave."""
        examples = {name: [ExampleRow(**one) for one in some] for name, some in value["examples"].items()}
        return cls(dict(value["counts"]), examples)

    def ranked(self) -> list[dict[str, Any]]:
        """Returns the names as a report has them, the most frequent first."""
        order = sorted(self.counts, key=lambda name: (-self.counts[name], name))
        return [
            {"name": name, "count": self.counts[name], "examples": [asdict(one) for one in self.examples[name]]}
            for name in order
        ]


@dataclass
class Spread:
    """How positive numbers are distributed, in bins that grow by a fourth root of two: of any many, in one pass.

    Attributes:
        bins: How many numbers fell into each bin: bin 0 holds those below 1, bin b those from 2^((b-1)/4) to 2^(b/4).
        count: How many numbers.
        total: Their sum.
        least: The smallest, or infinity of none.
        most: The largest.
    """

    bins: dict[int, int] = field(default_factory=dict)
    count: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = 0.0

    def add(self, number: float) -> None:
        """Counts a number of zero or more."""
        place = 0 if number < 1 else min(_BINS, 1 + int(_STEPS * math.log2(number)))
        self.bins[place] = self.bins.get(place, 0) + 1
        self.count += 1
        self.total += number
        self.least, self.most = min(self.least, number), max(self.most, number)

    def merge(self, other: "Spread") -> None:
        """Adds what another counted."""
        for place, count in other.bins.items():
            self.bins[place] = self.bins.get(place, 0) + count
        self.count += other.count
        self.total += other.total
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    def quantile(self, share: float) -> float:
        """Returns what so large a share of the numbers lies below, to the edge of a bin (19%)."""
        seen = 0
        for place in sorted(self.bins):
            seen += self.bins[place]
            if seen >= share * self.count:
                return min(max(_edge(place), self.least), self.most)
        return 0.0

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self) | {"bins": {str(place): self.bins[place] for place in sorted(self.bins)}}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Reads what ``to_dict`` gave."""
        return cls(**{**value, "bins": {int(place): count for place, count in value["bins"].items()}})

    def plot(self, title: str, unit: str) -> "Plot":
        """Returns the bins, with those between them that are empty."""
        places = range(min(self.bins, default=0), max(self.bins, default=0) + 1)
        bars = [
            Bar(f"{_edge(place - 1):.4g} to {_edge(place):.4g}", float(self.bins.get(place, 0))) for place in places
        ]
        return Plot(title, f"{unit}, each bar a fourth of a doubling", bars)


def _edge(place: int) -> float:
    """Returns the upper edge of a bin."""
    return 0.0 if place < 0 else 2 ** (place / _STEPS)


@dataclass(frozen=True)
class Bar:
    """A bar of a plot: what it stands for, how high it is, and how it is told from others (``of``: a series)."""

    label: str
    value: float
    of: str = ""


@dataclass(frozen=True)
class Plot:
    """Bars in order, drawn on the page and listed in the report.

    Attributes:
        title: What they show.
        axis: What a bar stands for, with its unit.
        bars: From left to right.
    """

    title: str
    axis: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Drawing:
    """Curves that were drawn elsewhere; the figures behind them stand in a table.

    Attributes:
        title: What they show.
        svg: The drawing, whose texts are escaped, with a class ``s0``, ``s1``, … for each curve.
        names: Of the curves.
    """

    title: str
    svg: str
    names: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        title: What it shows.
        header: Names of the columns.
        rows: Texts and numbers.
        note: A sentence below it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def as_text(self) -> str:
        """Returns the table as lines of a terminal, the first column to the left and the others to the right."""
        cells = [[str(name) for name in self.header], *[[_number(cell) for cell in row] for row in self.rows]]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells]
        return "\n".join([self.title, *[f"  {line}" for line in lines]])


@dataclass(frozen=True)
class ToolReport:
    """All that a tool says of its work.

    Attributes:
        title: What the page is called.
        arguments: What the tool was told.
        summary: Sentences that a reader in haste needs.
        tables: In their order.
        plots: In their order.
        tallies: What was counted, by heading: reasons for which rows went, changes of those that stayed.
        more: What else ``report.json`` holds, by key.
        printed: Those of the tables that a terminal shows too.
        charts: In their order, before the plots; on the page alone.
    """

    title: str
    arguments: Mapping[str, Any]
    summary: Sequence[str]
    tables: Sequence[Table]
    plots: Sequence[Plot] = ()
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    printed: Sequence[Table] = ()
    charts: Sequence[Drawing] = ()

    def as_text(self) -> str:
        """Returns what a terminal shows: the summary, and the tables that are printed."""
        return "\n".join([*self.summary, *[table.as_text() for table in self.printed]])

    def write(self, folder: Path) -> None:
        """Writes ``report.json`` and ``report.html``: the same bytes from the same report.

        Raises:
            PosttrainError: The folder cannot be written.
        """
        values = {
            "title": self.title,
            "arguments": dict(self.arguments),
            "summary": list(self.summary),
            "tables": [asdict(table) for table in self.tables],
            "plots": [asdict(plot) for plot in self.plots],
            "counts": {heading: tally.ranked() for heading, tally in self.tallies.items()},
        }
        write_json(folder / REPORT, values | dict(self.more))
        templates = page_templates(Path(__file__).parent)
        templates.filters["number"] = _number
        templates.tests["figure"] = _is_figure
        page = templates.get_template("tool_report.html.jinja").render(**values, charts=self.charts)
        write_atomic(folder / PAGE, page)


def page_templates(*folders: Path) -> Any:
    """Returns the templates of some folders, as every page is made: each text escaped, an unknown name an error."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _number(value: Any) -> str:
    """Returns a number as people read it; a text stays."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _is_figure(value: Any) -> bool:
    """Whether a cell of a table holds a number, or a share."""
    return isinstance(value, int | float) or (isinstance(value, str) and value[-1:] == "%")


def percent(part: float, whole: float) -> str:
    """Returns a share in percent, of which 0 and 100 are none and all to the last; a dash of nothing."""
    if not whole:
        return "–"
    share = f"{100 * part / whole:.1f}%"
    if share in ("0.0%", "100.0%") and 0 < part < whole:
        return "<0.1%" if share == "0.0%" else ">99.9%"
    return share


def texts_of(value: Any) -> Iterable[str]:
    """Yields every text inside a row's values, of messages too, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_of(item)
