"""How the report spells numbers, names and differences, the same in every output a person reads."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..stats.robustness import ROBUST
from .board import BoardRow, Column, ColumnMetric, Figure, Leaderboard, Player, RowDifference
from .svg import PALETTE
from .text import plain

METHODS = {
    "wilson": "Wilson score interval (0/1 items)",
    "bounded": "Wilson score interval of the mean's share of its scale, at the effective sample size",
    "log": "value ± t standard errors on the log scale, which has no least value",
    "normal": "value ± t standard errors (1.96 of many items)",
    "constant": "all items alike: what a share of others that 95% of samples would show could change",
    "bootstrap": "bootstrap over items, as recorded",
    "over prompts": "over prompts, as recorded: verdicts on one prompt are not independent",
    None: "no interval: no standard error was recorded, or nothing bounds what equal items may hide",
}
GLYPHS = {"better": "▲", "worse": "▼", "no verdict": "≈"}
LEDGER = {"better": "gained", "worse": "lost", "no verdict": "no verdict"}


def number(value: float, places: int, unit: str = "") -> str:
    """Returns a figure as text; shares are shown times 100, huge and tiny numbers with an exponent."""
    shown = value * 100 if unit == "%" else value
    if shown and (abs(shown) >= 1e7 or abs(shown) < 10 ** -(places + 2)):
        return f"{shown:.3g}"
    return f"{shown:.{places}f}"


def interval_text(figure: Figure, places: int, unit: str) -> str:
    """Returns ``38.1 to 44.4``, or what stands in its place."""
    if figure.interval is None:
        return "no interval"
    return f"{number(figure.interval.low, places, unit)} to {number(figure.interval.high, places, unit)}"


def signed(value: float, places: int, unit: str) -> str:
    """Returns a difference with its sign, a true minus included."""
    text = number(abs(value), places, unit)
    zero = not any(digit in text for digit in "123456789")
    return f"±{text}" if zero else f"{'−' if value < 0 else '+'}{text}"


def percent(value: float) -> str:
    """Returns a share times 100 with one decimal."""
    return f"{100 * value:.1f}"


def p_text(p: float | None) -> str:
    """Returns ``p = .031``, as statisticians spell it."""
    if p is None:
        return "not tested"
    return "p < .001" if p < 0.0005 else f"p = {p:.3f}".replace("0.", ".", 1)


def arrow(metric: ColumnMetric) -> str:
    """Returns the direction that is better."""
    return "↑" if metric.higher_is_better else "↓"


def metric_label(metric: ColumnMetric) -> str:
    """Returns ``acc, % ↑``."""
    return f"{plain(metric.name, 40)}{', %' if metric.unit else ''} {arrow(metric)}"


@dataclass(frozen=True)
class Scale:
    """How a column's figures of one metric are shown: with how many decimals, and over which range bars are drawn."""

    places: int
    start: float
    end: float


def scales(board: Leaderboard) -> dict[tuple[str, str], Scale]:
    """Returns the scale of every column's every metric, by column id and metric name."""
    found = {}
    for column in board.columns:
        cells = [cell for row in board.rows if (cell := row.cells.get(column.id))]
        for metric in column.metrics:
            figures = [f for cell in cells if (f := cell.figure(metric.name)) and f.value is not None]
            ends = [f.value or 0.0 for f in figures]
            ends += [end for f in figures if f.interval for end in (f.interval.low, f.interval.high)]
            start, end = min(ends, default=0.0), max(ends, default=0.0)
            found[column.id, metric.name] = Scale(_decimals(figures, metric), start, end)
    return found


def _decimals(figures: Sequence[Figure], metric: ColumnMetric) -> int:
    """Returns the decimals that show two digits of the typical interval's half width."""
    scale = 100 if metric.unit == "%" else 1
    halves = [scale * (f.interval.high - f.interval.low) / 2 for f in figures if f.interval]
    halves = [half for half in halves if half > 0]
    if halves:
        wanted = 1 - math.floor(math.log10(statistics.median(halves)))
    else:
        largest = max((abs(f.value or 0) for f in figures), default=0.0) * scale
        wanted = 3 - math.floor(math.log10(largest)) if largest > 0 else 1
    return max(1 if metric.unit == "%" else 0, min(wanted, 4))


@dataclass(frozen=True)
class Name:
    """How a row or player is named and coloured; one without a row has no id and no colour."""

    id: str
    label: str
    color: int | None


class Speller:
    """Spells a board's rows, figures and differences, each in the decimals and unit of its column."""

    def __init__(self, board: Leaderboard):
        self.board = board
        self.scales = scales(board)
        self.columns = {column.id: column for column in board.columns}
        self.verdicts = {(found.row, found.column): self.difference(found) for found in board.differences}

    def name(self, row: BoardRow | str) -> Name:
        """Returns how a row is named, wherever it is named."""
        row = self.board.row(row) if isinstance(row, str) else row
        color = self.board.runs.index(self.board.run_of(row)) % PALETTE
        return Name(row.id, self.board.label(row), color)

    def player(self, player: Player) -> Name:
        """Returns how a player of a judge is named."""
        return Name("", plain(player.name, 80), None) if player.row is None else self.name(player.row)

    def places(self, column: Column, metric: ColumnMetric | None = None) -> int:
        """Returns with how many decimals a column's figures of a metric (the primary one) are shown."""
        return self.scales[column.id, (metric or column.primary).name].places

    def number(self, value: float, column: Column, metric: ColumnMetric | None = None) -> str:
        """Returns a figure of a column as text."""
        return number(value, self.places(column, metric), (metric or column.primary).unit)

    def interval(self, figure: Figure, column: Column, metric: ColumnMetric | None = None) -> str:
        """Returns a figure's interval as text."""
        return interval_text(figure, self.places(column, metric), (metric or column.primary).unit)

    def stderr(self, value: float, column: Column, metric: ColumnMetric) -> str:
        """Returns a standard error of a column's figure, with one decimal more than that has."""
        return number(value, self.places(column, metric) + 1, metric.unit)

    def stands(self, row: BoardRow) -> list[tuple[Column, dict[str, Any]]]:
        """Returns how a row stands to the baseline, in each column that compares the two."""
        found = ((column, self.verdicts.get((row.id, column.id))) for column in self.board.columns)
        return [(column, verdict) for column, verdict in found if verdict]

    def headline(self) -> dict[str, Any] | None:
        """Returns the sentence that the report opens with, in parts: the best row, its figure, and how it stands."""
        told = self.board.headline
        figure = self.board.row(told.row).figure(self.columns[told.column]) if told else None
        if told is None or figure is None or figure.value is None:
            return None
        column = self.columns[told.column]
        unit = "%" if column.primary.unit else f" {plain(column.primary.name, 40)}"
        ends = f" (95% interval {self.interval(figure, column)})" if figure.interval else ""
        level = f"{len(told.level)} other row{'s' if len(told.level) > 1 else ''} cannot be told from it there"
        group = f", {self.of_group(column)}" if column.group else ""
        kinds = (("better", told.better), ("worse", told.worse), ("no verdict", told.undecided))
        counts = [f"{word} on {self._tasks(ids)}" for word, ids in kinds if ids]
        return {
            "task": f"“{plain(column.name, 60)}”{group}",
            "best": self.name(told.row),
            "value": f"{self.number(figure.value, column)}{unit}",
            "interval": ends,
            "level": f"{level}. " if told.level else "",
            "against": self.name(told.against) if told.against and counts else None,
            "baseline": told.against == self.board.baseline,
            "stands": ", ".join(counts),
        }

    @staticmethod
    def of_group(column: Column) -> str:
        """Says what the figure of a group is of its tasks."""
        count = len(column.group)
        if column.primary.name == ROBUST:
            return f"right in all of {count} ways to ask"
        over = "over all items of" if column.primary.name.endswith("_micro") else "of"
        return f"the mean {over} {count} tasks"

    def _tasks(self, ids: Sequence[str]) -> str:
        """Returns the names of groups and tasks, or of many how many they are: a group is no further task."""
        found = [self.columns[identity] for identity in ids]
        names = []
        for noun, mine in (("groups", [c for c in found if c.group]), ("tasks", [c for c in found if not c.group])):
            count = len({column.task for column in mine})
            names += [f"{count} {noun}"] if count > 3 else [plain(column.name, 40) for column in mine]
        return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))

    def difference(self, found: RowDifference) -> dict[str, Any]:
        """Spells a difference in the unit of its column."""
        column = self.columns[found.column]
        places, unit = self.places(column), column.primary.unit
        known = found.low is not None and found.high is not None
        ends = [signed(end or 0.0, places, unit) for end in (found.low, found.high)]
        how = {
            "paired": f"paired over {found.n} items",
            "unpaired": "unpaired, since single items are not known for both",
            "win rate": "win rate less a half",
        }[found.method]
        against = "no verdict against" if found.verdict == "no verdict" else f"{found.verdict} than"
        return {
            "verdict": found.verdict,
            "kind": found.verdict.replace(" ", "-"),
            "glyph": GLYPHS[found.verdict],
            "words": against,
            "ledger": LEDGER[found.verdict],
            "value": signed(found.value, places, unit),
            "interval": " to ".join(ends) if known else "no interval",
            "p": p_text(found.p),
            "smallest": "unknown" if found.smallest is None else number(found.smallest, places, unit),
            "how": how,
        }
