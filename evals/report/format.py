"""How the report spells numbers, names and rows, the same in every output a person reads."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .columns import column_name
from .lineage import row_label
from .model import Cell, Column, ColumnMetric, Curve, Difference, Figure, Leaderboard, Row
from .text import plain


def figure_of(cell: Cell | None, metric: str) -> Figure | None:
    """Returns a cell's figure of a metric."""
    return next((figure for figure in cell.figures if figure.metric == metric), None) if cell else None


@dataclass(frozen=True)
class Scale:
    """How a column's figures of one metric are shown: with how many decimals, and over which range bars are drawn."""

    places: int
    start: float
    end: float


def scales(leaderboard: Leaderboard) -> dict[tuple[str, str], Scale]:
    """Returns the scale of every column's every metric, by column id and metric name."""
    found = {}
    for column in leaderboard.columns:
        cells = [cell for row in leaderboard.rows if (cell := row.cells.get(column.id))]
        for metric in column.metrics:
            figures = [f for cell in cells if (f := figure_of(cell, metric.name)) and f.value is not None]
            ends = [end for f in figures for end in _ends(f)] or [0.0]
            found[column.id, metric.name] = Scale(_decimals(figures, metric), min(ends), max(ends))
    return found


def _ends(figure: Figure) -> list[float]:
    value = figure.value or 0.0
    return [value, figure.interval.low, figure.interval.high] if figure.interval else [value]


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


def number(value: float, places: int, unit: str = "") -> str:
    """Returns a figure as text; shares are shown times 100, huge and tiny numbers with an exponent."""
    shown = value * 100 if unit == "%" else value
    if shown and (abs(shown) >= 1e7 or abs(shown) < 10 ** -(places + 2)):
        return f"{shown:.3g}"
    return f"{shown:.{places}f}"


def interval_text(figure: Figure, places: int, unit: str = "") -> str:
    """Returns ``38.1 to 44.4``, or what stands in its place."""
    if figure.interval is None:
        return "no interval"
    return f"{number(figure.interval.low, places, unit)} to {number(figure.interval.high, places, unit)}"


def signed(value: float, places: int, unit: str = "") -> str:
    """Returns a difference with its sign, a true minus included."""
    text = number(abs(value), places, unit)
    zero = not any(digit in text for digit in "123456789")
    return f"±{text}" if zero else f"{'−' if value < 0 else '+'}{text}"


def signed_interval(found: Difference, places: int, unit: str = "") -> str:
    """Returns ``+1.0 to +5.2``, or what stands in its place."""
    if found.low is None or found.high is None:
        return "no interval"
    return f"{signed(found.low, places, unit)} to {signed(found.high, places, unit)}"


def arrow(metric: ColumnMetric) -> str:
    """Returns the direction that is better."""
    return "↑" if metric.higher_is_better else "↓"


def metric_label(metric: ColumnMetric) -> str:
    """Returns ``acc, % ↑``."""
    return f"{plain(metric.name, 40)}{', %' if metric.unit else ''} {arrow(metric)}"


def column_label(column: Column) -> str:
    """Returns the task, with the variant that tells it from others of the same name."""
    return plain(column_name(column))


def checkpoint_label(leaderboard: Leaderboard, row: Row) -> str:
    """Returns ``sft step 800, final``."""
    return f"{plain(leaderboard.run_of(row).name)} {plain(row_label(row))}".strip()


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


def curve_summary(curve: Curve) -> dict[str, str]:
    """Returns what a table says of rewards against KL: both at either end, and gold at its best."""
    first, last = curve.points[0], curve.points[-1]
    known = [point for point in curve.points if point.gold is not None]
    top = max(known, key=lambda point: point.gold or 0.0, default=None)
    return {
        "name": curve.name,
        "kind": curve.kind,
        "kl": f"{last.kl:.2f}",
        "reward": f"{first.reward:.3g} → {last.reward:.3g}",
        "gold": f"{known[0].gold:.3g} → {known[-1].gold:.3g}" if known else "",
        "best": f"{top.gold:.3g} at KL {top.kl:.2f}" if top else "",
    }
