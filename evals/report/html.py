"""The page: one file, no network, every text escaped, usable without JavaScript.

The style sheet and the script are named by their hashes in the page's Content-Security-Policy, so that even markup
that got past the escaping could neither run nor load anything.
"""

import base64
import functools
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..curves import PALETTE, interval_bar
from .charts import loss_chart, task_charts
from .columns import column_name
from .curves import color_of, reward_charts, thinned
from .details import commands, facts, run_view, score_views
from .format import (
    METHODS,
    Scale,
    arrow,
    checkpoint_label,
    curve_summary,
    figure_of,
    interval_text,
    metric_label,
    number,
    scales,
)
from .judged_view import judging_view, samples_view, usage_view
from .lineage import row_label
from .model import Cell, Column, ColumnMetric, Figure, Leaderboard, Notice, Row
from .sections import heat_view, ledger_view, pairs_data, picks_view, safe_json, verdict_views
from .tables import to_json
from .text import plain
from .verdicts import baseline_text, last_row

MOST_BYTES = 2_000_000
"""The page stays below this, so that it can be mailed; what is left out is named on it and stands in the JSON."""

_Scales = dict[tuple[str, str], Scale]
_SHEETS = ("palette.css.jinja", "report.css.jinja", "report.sections.css.jinja")
_SCRIPTS = ("report.js.jinja", "report.sections.js.jinja")


@dataclass(frozen=True)
class _Detail:
    """How much a page holds; each step down is tried when the one above is too large."""

    samples: int = 60
    data: bool = True
    pairs: bool = True
    every_metric: bool = True
    drawers: bool = True
    rows: int | None = None


_STEPS = (
    _Detail(),
    _Detail(24),
    _Detail(24, False),
    _Detail(8, False),
    _Detail(8, False, False),
    _Detail(4, False, False, False),
    _Detail(0, False, False, False, False),
)


def to_html(leaderboard: Leaderboard) -> str:
    """Returns the page, below :data:`MOST_BYTES`.

    A leaderboard too large for that loses, in this order: most of the answers, the embedded data, the differences of
    rows other than the baseline, metrics other than the primary, the details of each row, and rows from the end. A
    notice on the page says so, and the heading of the answers how many are shown.
    """
    page = ""
    for detail in _STEPS:
        page = _render(leaderboard, detail)
        if len(page.encode()) < MOST_BYTES:
            return page
    rows = len(leaderboard.rows)
    while rows > 1 and len(page.encode()) >= MOST_BYTES:
        rows //= 2
        page = _render(leaderboard, _Detail(0, False, False, False, False, rows))
    return page


def _render(leaderboard: Leaderboard, detail: _Detail) -> str:
    environment, style, script = _templates()
    shown = _cut(leaderboard, detail)
    template = environment.get_template("report.html.jinja")
    return template.render(
        _view(shown, detail),
        # Both come from files of this package and hold no value from a record.
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=safe_json(json.loads(to_json(leaderboard))) if detail.data else "",
    )


@functools.cache
def _templates() -> tuple[Any, str, str]:
    """Returns the templates, compiled once, the style sheet and the script."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ("".join(environment.get_template(n).render() for n in names) for names in (_SHEETS, _SCRIPTS))
    return environment, style, script


def _cut(leaderboard: Leaderboard, detail: _Detail) -> Leaderboard:
    lost = []
    if not detail.every_metric:
        lost.append("metrics other than each task's first")
    if not detail.drawers:
        lost.append("the details of each row")
    if not detail.pairs and leaderboard.pairs:
        lost.append("the differences between rows other than the baseline")
        leaderboard = replace(leaderboard, pairs=())
    if not detail.samples and (leaderboard.samples or leaderboard.items):
        lost.append("all answers")
    if detail.rows is not None:
        lost.append(f"all but the first {detail.rows} of {len(leaderboard.rows)} rows")
        leaderboard = _first_rows(leaderboard, detail.rows)
    if not lost:
        return leaderboard
    text = f"left out to keep this page below 2 MB: {', '.join(lost)}; leaderboard.json has everything"
    return replace(leaderboard, notices=(*leaderboard.notices, Notice("warning", text)))


def _first_rows(leaderboard: Leaderboard, count: int) -> Leaderboard:
    """Returns a leaderboard without its later rows, and without what speaks of them."""
    rows = leaderboard.rows[:count]
    left = {row.id for row in rows}
    return replace(
        leaderboard,
        rows=rows,
        baseline=leaderboard.baseline if leaderboard.baseline in left else None,
        differences=tuple(d for d in leaderboard.differences if {d.row, d.against} <= left),
        picks=tuple(pick for pick in leaderboard.picks if pick.row in left),
        ledger=tuple(entry for entry in leaderboard.ledger if {entry.before, entry.after} <= left),
        judgings=(),
        usage=(),
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _view(leaderboard: Leaderboard, detail: _Detail) -> dict[str, Any]:
    loss = loss_chart(leaderboard)
    several = {column.id: _common_n(leaderboard, column) for column in leaderboard.columns}
    shown, verdicts = scales(leaderboard), verdict_views(leaderboard)
    sections = {
        "heat": heat_view(leaderboard),
        "picks": picks_view(leaderboard),
        "ledger": ledger_view(leaderboard),
        "judgings": [judging_view(leaderboard, judging) for judging in leaderboard.judgings],
        "samples": samples_view(leaderboard, detail.samples),
        "usage": usage_view(leaderboard),
        "pairs": pairs_data(leaderboard),
        "baseline": leaderboard.baseline,
        "compared": leaderboard.compared,
        "baseline_text": plain(baseline_text(leaderboard), 200) if leaderboard.differences else "",
    }
    charts = [*task_charts(leaderboard, every_metric=detail.every_metric), *([loss] if loss else [])]
    answered = (
        {answer.player for sample in leaderboard.samples for answer in sample.answers} if detail.samples else set()
    )
    rows = [
        _row_view(leaderboard, row, several, shown, detail, verdicts) | {"answered": row.model_hash in answered}
        for row in leaderboard.rows
    ]
    return {
        **sections,
        "places": _places(sections, charts, bool(leaderboard.curves)),
        "title": plain(leaderboard.title),
        "summary": _summary(leaderboard),
        "errors": [plain(n.text, 400) for n in leaderboard.notices if n.level == "error"],
        "warnings": [plain(n.text, 400) for n in leaderboard.notices if n.level == "warning"],
        "stages": list(dict.fromkeys(plain(run.stage or "unknown", 30) for run in leaderboard.runs)),
        "runs": [run_view(run, i, whole_recipe=detail.drawers) for i, run in enumerate(leaderboard.runs)],
        "columns": [_column_view(leaderboard, column, several[column.id], detail) for column in leaderboard.columns],
        "rows": rows,
        "footnotes": leaderboard.footnotes,
        "rewards": reward_charts(leaderboard),
        "curves": [
            curve_summary(thinned(curve))
            | {"color": color_of(leaderboard, curve, i) % PALETTE, "dashed": curve.run is None}
            for i, curve in enumerate(leaderboard.curves)
        ],
        "charts": charts,
        "palette": PALETTE,
        "methods": METHODS,
    }


def _places(sections: dict[str, Any], charts: list[Any], curves: bool) -> list[tuple[str, str]]:
    """Returns the sections that the page has, for the list of links at its head."""
    there = (
        ("ranking", "Ranking", True),
        ("heat", "At a glance", len(sections["heat"]) > 1),
        ("ledger", "Stages", sections["ledger"]["lines"]),
        ("judged", "Judges", sections["judgings"]),
        ("samples", "Answers", sections["samples"]["prompts"]),
        ("usage", "Length and latency", sections["usage"]),
        ("rewards", "Rewards", curves),
        ("training", "Over training", charts),
        ("reading", "How to read this", True),
    )
    return [(identity, name) for identity, name, present in there if present]


def _summary(leaderboard: Leaderboard) -> str:
    counts = (
        (len(leaderboard.rows), "checkpoint"),
        (len(leaderboard.runs), "run"),
        (len({column.task for column in leaderboard.columns}), "task"),
    )
    rows, runs, tasks = (f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
    named = (cell.score.get("suite") for row in leaderboard.rows for cell in row.cells.values())
    suites = sorted({plain(name, 40) for name in named if name})
    of = f"suite{'' if len(suites) == 1 else 's'} {', '.join(suites[:4])}" if suites else "not scored yet"
    return f"{rows} of {runs} on {tasks}, {of}"


def _common_n(leaderboard: Leaderboard, column: Column) -> int | None:
    """Returns the item count of a column if all it shows share one: then its head says it once for all."""
    cells = [cell for row in leaderboard.rows if (cell := row.cells.get(column.id))]
    counts = {figure.n for cell in cells for m in column.main if (figure := figure_of(cell, m.name))}
    return counts.pop() if len(counts) == 1 else None


def _column_view(leaderboard: Leaderboard, column: Column, n: int | None, detail: _Detail) -> dict[str, Any]:
    metrics = column.main if detail.every_metric else column.main[:1]
    few = f"{column.num_fewshot}-shot" if column.num_fewshot else None
    variant = column.variant if few and few in column.variant else ", ".join(filter(None, (few, column.variant)))
    return {
        "id": column.id,
        "task": plain(column.task, 40),
        "full": plain(column_name(column)),
        "variant": plain(variant, 60),
        "limited": column.limit is not None,
        "stamp": column.stamp,
        "judge": plain(column.judge, 40) if column.judge else "",
        "n": n,
        "metrics": [
            {"label": metric_label(m), "arrow": arrow(m), "sign": 1 if m.higher_is_better else -1} for m in metrics
        ],
    }


def _row_view(
    leaderboard: Leaderboard,
    row: Row,
    several: dict[str, int | None],
    shown: _Scales,
    detail: _Detail,
    verdicts: dict[tuple[str, str], dict[str, Any]],
) -> dict[str, Any]:
    run = leaderboard.run_of(row)
    mine = [other for other in leaderboard.rows if other.run == run.id]
    cells = [_cell_view(leaderboard, row, column, several[column.id], shown, detail) for column in leaderboard.columns]
    stands = {column.id: verdicts.get((row.id, column.id)) for column in leaderboard.columns}
    for column, cell in zip(leaderboard.columns, cells, strict=True):
        if cell is not None:
            cell["verdict"] = stands[column.id]
    named = [(plain(column_name(c), 60), view) for c in leaderboard.columns if (view := stands[c.id])]
    label = checkpoint_label(leaderboard, row)
    return {
        "id": row.id,
        "run": run.id,
        "color": leaderboard.runs.index(run) % PALETTE,
        "name": plain(run.name, 60),
        "step": plain(row_label(row) or "no checkpoint"),
        "label": label,
        "stage": plain(run.stage or "unknown", 30),
        "parent": plain(row.parent, 60) if row.parent else None,
        "first": row is mine[0],
        "last": row is last_row(mine),
        "flags": [plain(flag, 300) for flag in row.flags],
        "cells": cells,
        "baseline": row.id == leaderboard.baseline,
        "scored": bool(row.cells),
        "facts": facts(row, run) if detail.drawers else [],
        "command": commands(row, run) if detail.drawers else "",
        "scores": score_views(leaderboard, row, shown) if detail.drawers else [],
        "verdicts": named if detail.drawers else [],
    }


def _cell_view(
    leaderboard: Leaderboard, row: Row, column: Column, common_n: int | None, shown: _Scales, detail: _Detail
) -> dict[str, Any] | None:
    cell = row.cells.get(column.id)
    if cell is None:
        if column.opponent and row.model_hash == column.opponent:
            return {"marks": (), "figures": [], "opponent": True}
        return None if leaderboard.possible(row, column) else {"marks": (), "figures": [], "opponent": False}
    metrics = column.main if detail.every_metric else column.main[:1]
    figures = [_figure_view(cell, metric, common_n, shown[column.id, metric.name]) for metric in metrics]
    return {"marks": cell.marks, "figures": figures, "opponent": False}


def _figure_view(cell: Cell, metric: ColumnMetric, common_n: int | None, scale: Scale) -> dict[str, Any]:
    figure = figure_of(cell, metric.name)
    if figure is None:
        return {"value": None, "text": "–", "problem": ""}
    if figure.value is None:
        return {"value": None, "text": "not a number", "problem": plain(figure.problem or "", 200)}
    low, high = (figure.interval.low, figure.interval.high) if figure.interval else (None, None)
    return {
        "value": figure.value,
        "text": number(figure.value, scale.places, metric.unit),
        "interval": _dashed(figure, scale.places, metric),
        "n": figure.n if common_n is None else None,
        "standing": figure.standing,
        "bar": interval_bar(figure.value, low, high, scale.start, scale.end),
        "problem": "",
    }


def _dashed(figure: Figure, places: int, metric: ColumnMetric) -> str:
    """Spells an interval short, ``38.1–44.4``, but not where a minus sign would stand beside the dash."""
    spelt = interval_text(figure, places, metric.unit)
    return spelt if "-" in spelt else spelt.replace(" to ", "–")
