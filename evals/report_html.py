"""The page: one file, no network, every text escaped, usable without JavaScript.

The style sheet and the script are named by their hashes in the page's Content-Security-Policy, so that even markup
that got past the escaping could neither run nor load anything.
"""

import base64
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .curves import PALETTE, interval_bar
from .report_charts import loss_chart, task_charts
from .report_classes import classes_view, confusion_view
from .report_columns import column_name
from .report_curves import color_of, reward_charts, thinned
from .report_format import (
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
from .report_lineage import mapping, row_label, whole
from .report_model import Cell, Column, ColumnMetric, Figure, Leaderboard, Notice, Row, Run
from .report_tables import to_json
from .report_text import plain

MOST_BYTES = 2_000_000
"""The page stays below this, so that it can be mailed; what is left out is named on it and stands in the JSON."""

_Scales = dict[tuple[str, str], Scale]
_TEXT = 4000  # characters of a command or recipe that the page shows


@dataclass(frozen=True)
class _Detail:
    """How much a page holds; each step down is tried when the one above is too large."""

    data: bool = True
    every_metric: bool = True
    drawers: bool = True
    rows: int | None = None


_STEPS = (_Detail(), _Detail(False), _Detail(False, False), _Detail(False, False, False))


def to_html(leaderboard: Leaderboard) -> str:
    """Returns the page, below :data:`MOST_BYTES`.

    A leaderboard too large for that loses, in this order: the embedded data, metrics other than the primary, the
    details of each row, and rows from the end. A notice on the page says so.
    """
    page = ""
    for detail in _STEPS:
        page = _render(leaderboard, detail)
        if len(page.encode()) < MOST_BYTES:
            return page
    rows = len(leaderboard.rows)
    while rows > 1 and len(page.encode()) >= MOST_BYTES:
        rows //= 2
        page = _render(leaderboard, _Detail(False, False, False, rows))
    return page


def _render(leaderboard: Leaderboard, detail: _Detail) -> str:
    import jinja2

    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (environment.get_template(f"report.{kind}.jinja").render() for kind in ("css", "js"))
    shown = _cut(leaderboard, detail)
    template = environment.get_template("report.html.jinja")
    return template.render(
        _view(shown, detail),
        # Both come from files of this package and hold no value from a record.
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=_embed(leaderboard) if detail.data else "",
    )


def _cut(leaderboard: Leaderboard, detail: _Detail) -> Leaderboard:
    lost = []
    if not detail.every_metric:
        lost.append("metrics other than each task's first")
    if not detail.drawers:
        lost.append("the details of each row")
    if detail.rows is not None:
        lost.append(f"all but the first {detail.rows} of {len(leaderboard.rows)} rows")
        leaderboard = replace(leaderboard, rows=leaderboard.rows[: detail.rows])
    if not lost:
        return leaderboard
    text = f"left out to keep this page below 2 MB: {', '.join(lost)}; leaderboard.json has everything"
    return replace(leaderboard, notices=(*leaderboard.notices, Notice("warning", text)))


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embed(leaderboard: Leaderboard) -> str:
    """Returns the leaderboard as JSON that cannot end its script element or be read as markup."""
    text = json.dumps(json.loads(to_json(leaderboard)), ensure_ascii=False, separators=(",", ":"))
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def _view(leaderboard: Leaderboard, detail: _Detail) -> dict[str, Any]:
    loss = loss_chart(leaderboard)
    several = {column.id: _common_n(leaderboard, column) for column in leaderboard.columns}
    shown = scales(leaderboard)
    return {
        "title": plain(leaderboard.title),
        "summary": _summary(leaderboard),
        "errors": [plain(n.text, 400) for n in leaderboard.notices if n.level == "error"],
        "warnings": [plain(n.text, 400) for n in leaderboard.notices if n.level == "warning"],
        "stages": list(dict.fromkeys(plain(run.stage or "unknown", 30) for run in leaderboard.runs)),
        "runs": [_run_view(run, i, detail) for i, run in enumerate(leaderboard.runs)],
        "columns": [_column_view(leaderboard, column, several[column.id], detail) for column in leaderboard.columns],
        "rows": [_row_view(leaderboard, row, several, shown, detail) for row in leaderboard.rows],
        "footnotes": leaderboard.footnotes,
        "rewards": reward_charts(leaderboard),
        "curves": [
            curve_summary(thinned(curve))
            | {"color": color_of(leaderboard, curve, i) % PALETTE, "dashed": curve.run is None}
            for i, curve in enumerate(leaderboard.curves)
        ],
        "charts": [*task_charts(leaderboard, every_metric=detail.every_metric), *([loss] if loss else [])],
        "palette": PALETTE,
        "methods": METHODS,
    }


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
        "n": n,
        "metrics": [
            {"label": metric_label(m), "arrow": arrow(m), "sign": 1 if m.higher_is_better else -1} for m in metrics
        ],
    }


def _row_view(
    leaderboard: Leaderboard, row: Row, several: dict[str, int | None], shown: _Scales, detail: _Detail
) -> dict[str, Any]:
    run = leaderboard.run_of(row)
    mine = [other for other in leaderboard.rows if other.run == run.id]
    cells = [_cell_view(leaderboard, row, column, several[column.id], shown, detail) for column in leaderboard.columns]
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
        "last": row is mine[-1],
        "flags": [plain(flag, 300) for flag in row.flags],
        "cells": cells,
        "facts": _facts(row, run) if detail.drawers else [],
        "command": plain(run.record.get("command") or "", _TEXT) if detail.drawers else "",
        "scores": _scores(leaderboard, row, shown) if detail.drawers else [],
    }


def _cell_view(
    leaderboard: Leaderboard, row: Row, column: Column, common_n: int | None, shown: _Scales, detail: _Detail
) -> dict[str, Any] | None:
    cell = row.cells.get(column.id)
    if cell is None:
        return None if leaderboard.possible(row, column) else {"marks": (), "figures": []}
    metrics = column.main if detail.every_metric else column.main[:1]
    figures = [_figure_view(cell, metric, common_n, shown[column.id, metric.name]) for metric in metrics]
    return {"marks": cell.marks, "figures": figures}


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


def _facts(row: Row, run: Run) -> list[tuple[str, str]]:
    """Returns what is known of a row's origin, as name and text; what is unknown says so."""
    record = run.record
    template, git = mapping(record.get("template")), mapping(record.get("git"))
    train = mapping(mapping(record.get("data")).get("train"))
    versions = mapping(record.get("versions"))
    dirty = " with uncommitted changes" if git.get("dirty") else ""
    facts = [
        ("weights", row.weights_hash),
        ("folders", ", ".join(row.names)),
        ("run folder", run.folder),
        ("started from", row.parent or _absent(record, "parent")),
        ("recipe", record.get("recipe_hash")),
        ("data", " ".join(filter(None, (str(train.get("fingerprint") or ""), _data_counts(train))))),
        ("chat template", _named(template) or _absent(record, "template")),
        ("seed", run.seed),
        ("git", f"{git['revision']}{dirty}" if git.get("revision") else None),
        ("processes", record.get("processes")),
        ("started", record.get("created")),
        ("finished", record.get("finished")),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))),
    ]
    return [(name, plain(value, 600) if value not in (None, "") else "not recorded") for name, value in facts]


def _named(template: dict[str, Any]) -> str:
    return " ".join(str(template[key]) for key in ("name", "fingerprint") if template.get(key))


def _absent(record: dict[str, Any], key: str) -> str | None:
    """Returns ``none`` where a record says that there is none, and None where it says nothing."""
    return "none" if key in record and record[key] is None else None


def _data_counts(train: dict[str, Any]) -> str:
    found = {key: whole(train.get(key)) for key in ("rows", "tokens", "loss_tokens")}
    counts = [f"{count:,} {key.replace('_', ' ')}" for key, count in found.items() if count is not None]
    dropped = [f"{why.replace('_', ' ')} {count}" for why, count in mapping(train.get("dropped")).items() if count]
    return "; ".join(filter(None, (", ".join(counts), f"dropped: {', '.join(dropped)}" if dropped else "")))


def _scores(leaderboard: Leaderboard, row: Row, shown: _Scales) -> list[dict[str, Any]]:
    """Returns a row's score records for its details: each metric, and how it was measured."""
    found = []
    for column in leaderboard.columns:
        cell = row.cells.get(column.id)
        if cell is None:
            continue
        metrics = {metric.name: metric for metric in column.metrics}
        how = [f"{key.replace('_', ' ')} {cell.score[key]}" for key in _HOW if cell.score.get(key) is not None]
        found.append(
            {
                "task": plain(column_name(column), 60),
                "how": plain(", ".join(how), 500),
                "figures": [
                    _measured(metrics[f.metric], f, shown[column.id, f.metric].places)
                    for f in cell.figures
                    if metrics[f.metric] in column.main
                ],
                "notes": [plain(note, 300) for note in cell.score.get("notes") or () if isinstance(note, str)],
                "classes": classes_view(cell.figures),
                "confusion": confusion_view(cell.score),
            }
        )
    return found


_HOW = ("suite", "suite_version", "task_hash", "num_fewshot", "template_fingerprint", "limit", "seconds", "created")


def _measured(metric: ColumnMetric, figure: Figure, places: int) -> dict[str, str]:
    return {
        "metric": metric_label(metric),
        "value": number(figure.value, places, metric.unit) if figure.value is not None else plain(figure.problem or ""),
        "interval": interval_text(figure, places, metric.unit),
        "method": figure.interval.method if figure.interval else "",
        "stderr": number(figure.stderr, places + 1, metric.unit) if figure.stderr is not None else "none",
        "n": str(figure.n) if figure.n is not None else "?",
    }


def _run_view(run: Run, index: int, detail: _Detail) -> dict[str, Any]:
    record = json.dumps(run.record.get("recipe"), indent=2, ensure_ascii=False, default=str)
    cut = len(record) > _TEXT
    lines = [" " * (len(line) - len(line.lstrip())) + plain(line.strip(), 300) for line in record[:_TEXT].split("\n")]
    if cut:
        lines.append("… (the rest is in leaderboard.json)")
    return {
        "id": run.id,
        "color": index % PALETTE,
        "name": plain(run.name, 60),
        "stage": plain(run.stage or "unknown", 30),
        "recipe": "\n".join(lines) if run.record.get("recipe") and detail.drawers else "",
    }
