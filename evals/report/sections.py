"""What the page shows besides the table: verdicts, the heat map, the ledger of stages, and any two rows compared."""

import json
from collections.abc import Mapping
from typing import Any

from ..curves import PALETTE, difference_bar
from .format import (
    Scale,
    arrow,
    checkpoint_label,
    column_label,
    figure_of,
    metric_label,
    number,
    scales,
    signed,
    signed_interval,
)
from .model import Column, Difference, Leaderboard, Row, Run
from .text import plain

SHADES = 8
"""Classes h0 to h8 of the style sheet."""

GLYPHS = {"better": "▲", "worse": "▼", "no verdict": "≈"}
WORDS = {"better": "better than", "worse": "worse than", "no verdict": "no verdict against"}
_LEDGER = {"better": "gained", "worse": "lost", "no verdict": "no verdict"}
_Scales = Mapping[tuple[str, str], Scale]


def verdict_views(leaderboard: Leaderboard) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns how each cell stands to the baseline, by row and column id."""
    shown = scales(leaderboard)
    columns = {column.id: column for column in leaderboard.columns}
    return {
        (found.row, found.column): difference_view(found, columns[found.column], shown)
        for found in leaderboard.differences
    }


def difference_view(found: Difference, column: Column, shown: _Scales) -> dict[str, Any]:
    """Spells a difference in the unit of its column."""
    metric = column.metrics[0]
    places = shown[column.id, metric.name].places
    smallest = None if found.smallest is None else number(found.smallest, places, metric.unit)
    how = {
        "paired": f"paired over {found.n} items",
        "unpaired": "unpaired, since single items are not known for both",
        "win rate": "win rate less a half",
    }[found.method]
    return {
        "verdict": found.verdict,
        "kind": found.verdict.replace(" ", "-"),
        "glyph": GLYPHS[found.verdict],
        "words": WORDS[found.verdict],
        "ledger": _LEDGER[found.verdict],
        "value": signed(found.value, places, metric.unit),
        "interval": signed_interval(found, places, metric.unit),
        "p": p_text(found.p),
        "smallest": smallest or "unknown",
        "how": how,
    }


def p_text(p: float | None) -> str:
    """Returns ``p = .031``, as statisticians spell it."""
    if p is None:
        return "not tested"
    return "p < .001" if p < 0.0005 else f"p = {p:.3f}".replace("0.", ".", 1)


def heat_view(leaderboard: Leaderboard) -> list[dict[str, Any]]:
    """Returns each row's place between the worst and the best of every column, in shades, with the figure as text."""
    shown, verdicts = scales(leaderboard), verdict_views(leaderboard)
    ends = {column.id: _ends(leaderboard, column) for column in leaderboard.columns}
    rows = []
    for row in leaderboard.rows:
        if row.cells:
            cells = [
                _heat_cell(row, column, ends[column.id], shown) | {"verdict": verdicts.get((row.id, column.id))}
                for column in leaderboard.columns
            ]
            rows.append({**row_view(leaderboard, row), "cells": cells})
    return rows


def _ends(leaderboard: Leaderboard, column: Column) -> tuple[float, float]:
    """Returns the worst and the best value of a column."""
    name, up = column.metrics[0].name, column.metrics[0].higher_is_better
    found = [figure_of(row.cells.get(column.id), name) for row in leaderboard.rows]
    values = [figure.value for figure in found if figure and figure.value is not None] or [0.0]
    return (min(values), max(values)) if up else (max(values), min(values))


def _heat_cell(row: Row, column: Column, ends: tuple[float, float], shown: _Scales) -> dict[str, Any]:
    metric, cell = column.metrics[0], row.cells.get(column.id)
    figure = figure_of(cell, metric.name)
    if cell is None or figure is None or figure.value is None:
        return {"text": "", "shade": None, "tier": None}
    worst, best = ends
    place = (figure.value - worst) / (best - worst) if best != worst else 0.5
    places = shown[column.id, metric.name].places
    return {"text": number(figure.value, places, metric.unit), "shade": round(SHADES * place), "tier": cell.tier}


def row_view(leaderboard: Leaderboard, row: Row) -> dict[str, Any]:
    """Returns how a row is named and coloured, wherever it is named."""
    run = leaderboard.run_of(row)
    return {"id": row.id, "label": checkpoint_label(leaderboard, row), "color": leaderboard.runs.index(run) % PALETTE}


def ledger_view(leaderboard: Leaderboard) -> dict[str, Any]:
    """Returns what every stage gained and lost: a line for each stage, a cell for each column."""
    shown = scales(leaderboard)
    used = {found.column for entry in leaderboard.ledger for found in entry.differences}
    columns = [column for column in leaderboard.columns if column.id in used]
    widest = {
        column.id: max(
            abs(end)
            for entry in leaderboard.ledger
            for found in entry.differences
            if found.column == column.id
            for end in (found.value, found.low, found.high)
            if end is not None
        )
        for column in columns
    }
    lines = []
    for entry in leaderboard.ledger:
        mine = {found.column: found for found in entry.differences}
        run = next(run for run in leaderboard.runs if run.id == entry.run)
        cells = []
        for column in columns:
            found = mine.get(column.id)
            if found is None:
                cells.append(None)
                continue
            bar = difference_bar(found.value, found.low, found.high, widest[column.id])
            cells.append(difference_view(found, column, shown) | {"bar": bar})
        lines.append(
            {
                "run": run.id,
                "stage": plain(run.stage or "unknown", 30),
                "before": row_view(leaderboard, leaderboard.row(entry.before)),
                "after": row_view(leaderboard, leaderboard.row(entry.after)),
                "cells": cells,
                "sums": _sums(run, [found.verdict for found in entry.differences]),
            }
        )
    return {"columns": [column_view(column) for column in columns], "lines": lines}


def _sums(run: Run, verdicts: list[str]) -> str:
    counts = {word: verdicts.count(verdict) for verdict, word in _LEDGER.items()}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count)


def picks_view(leaderboard: Leaderboard) -> list[dict[str, Any]]:
    """Returns each column's best row as it was chosen on one half of the items and measured on the other."""
    shown = scales(leaderboard)
    columns = {column.id: column for column in leaderboard.columns}
    found = []
    for pick in leaderboard.picks:
        column = columns[pick.column]
        metric = column.metrics[0]
        places = shown[column.id, metric.name].places
        chosen, value, whole = (number(v, places, metric.unit) for v in (pick.chosen, pick.value, pick.whole))
        known = pick.low is not None and pick.high is not None
        ends = [number(end, places, metric.unit) for end in (pick.low or 0.0, pick.high or 0.0)]
        counts = {"candidates": pick.candidates, "items": f"{pick.items:,}"}
        texts = {"chosen": chosen, "value": value, "whole": whole, "interval": " to ".join(ends) if known else "none"}
        row = row_view(leaderboard, leaderboard.row(pick.row))
        found.append({"column": column_view(column), "row": row, **texts, **counts})
    return found


def column_view(column: Column) -> dict[str, Any]:
    """Returns how a column is named wherever it is named."""
    metric = column.metrics[0]
    return {
        "id": column.id,
        "label": column_label(column),
        "metric": metric_label(metric),
        "arrow": arrow(metric),
        "stamp": column.stamp,
    }


def pairs_data(leaderboard: Leaderboard) -> str:
    """Returns the differences between any two rows as JSON for the page's script, spelt as they are to be shown."""
    shown = scales(leaderboard)
    columns = {column.id: column for column in leaderboard.columns}
    place = {identity: i for i, identity in enumerate(columns)}
    found: dict[str, list[list[Any]]] = {}
    hows: dict[str, int] = {}
    for item in leaderboard.pairs or leaderboard.differences:
        view = difference_view(item, columns[item.column], shown)
        entry = [place[item.column], view["value"], view["interval"], item.verdict, view["p"], view["smallest"]]
        found.setdefault(f"{item.row} {item.against}", []).append([*entry, hows.setdefault(view["how"], len(hows))])
    value = {
        "columns": [column_view(column) for column in leaderboard.columns],
        "all": bool(leaderboard.pairs) or len(leaderboard.rows) < 2,
        "hows": list(hows),
        "glyphs": GLYPHS,
        "pairs": found,
    }
    return safe_json(value)


def safe_json(value: Any) -> str:
    """Returns JSON that cannot end its script element or be read as markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})
