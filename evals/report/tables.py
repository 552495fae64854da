"""The leaderboard as tidy CSV, and as JSON with everything but the answers."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from .board import Cell, Column, Difference, Figure, Leaderboard, Row
from .text import detail_of, mapping

# fmt: off
_FIELDS: list[str] = [
    "run", "folder", "checkpoint", "step", "position", "stage", "parent", "task", "variant", "metric",
    "primary", "value", "stderr", "n", "interval_low", "interval_high", "interval_method", "higher_is_better",
    "standing", "tier", "baseline", "difference", "difference_low", "difference_high", "p_adjusted", "verdict",
    "smallest_difference", "compared", "judge", "judge_version", "stamp", "limit", "num_fewshot", "task_hash", "suite",
    "suite_version", "template_fingerprint",
    "weights_hash", "model_hash", "recipe_hash", "data_fingerprint", "git_revision", "seed", "scored", "seconds",
    "marks", "flags", "parity",
]
# fmt: on


def to_csv(board: Leaderboard) -> str:
    """Returns one line for each checkpoint, task and metric; a checkpoint without scores has one line.

    A text that a spreadsheet would run as a formula gets a leading apostrophe.
    """
    out = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(out, _FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    for record in _records(board):
        writer.writerow({key: _csv(value) for key, value in record.items()})
    return out.getvalue()


def _csv(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value).replace("\0", "\N{SYMBOL FOR NULL}")
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _records(board: Leaderboard) -> Iterator[dict[str, Any]]:
    against = {(found.row, found.column): found for found in board.differences}
    for row in board.rows:
        common = _common(board, row)
        if not row.cells:
            yield common
        for column in board.columns:
            cell = row.cells.get(column.id)
            for i, figure in enumerate(cell.figures if cell else ()):
                assert cell is not None
                primary = figure.metric == column.primary.name
                verdict = _verdict(board, against.get((row.id, column.id)), cell) if primary else {}
                yield {**common, **_measured(column, cell, figure), **verdict, "primary": i == 0}


def _verdict(board: Leaderboard, found: Difference | None, cell: Cell) -> dict[str, Any]:
    """Returns how a row's primary figure stands to the baseline."""
    if found is None:
        return {"tier": cell.tier}
    baseline = board.row(found.against)
    return {
        "tier": cell.tier,
        "baseline": f"{board.run_of(baseline).name} {baseline.label}",
        "difference": found.value,
        "difference_low": found.low,
        "difference_high": found.high,
        "p_adjusted": found.p,
        "verdict": found.verdict,
        "smallest_difference": found.smallest,
        "compared": found.method,
    }


def _common(board: Leaderboard, row: Row) -> dict[str, Any]:
    run = board.run_of(row)
    return {
        "run": run.name,
        "folder": run.folder,
        "checkpoint": " = ".join(row.names) or row.label,
        "step": row.step,
        "position": row.position,
        "stage": run.stage,
        "parent": row.parent,
        "weights_hash": row.weights_hash,
        "model_hash": row.model_hash,
        "recipe_hash": run.record.get("recipe_hash"),
        "data_fingerprint": mapping(mapping(run.record.get("data")).get("train")).get("fingerprint"),
        "git_revision": mapping(run.record.get("git")).get("revision"),
        "seed": run.seed,
        "flags": "; ".join(row.flags),
        "parity": "; ".join(f"{one.against}: {one.verdict}" for one in row.parity) or "not checked",
    }


def _measured(column: Column, cell: Cell, figure: Figure) -> dict[str, Any]:
    score = cell.score
    return {
        "task": column.task,
        "variant": column.variant,
        "metric": figure.metric,
        "value": figure.value,
        "stderr": figure.stderr,
        "n": figure.n,
        "interval_low": figure.interval.low if figure.interval else None,
        "interval_high": figure.interval.high if figure.interval else None,
        "interval_method": figure.interval.method if figure.interval else "none",
        "higher_is_better": figure.higher_is_better,
        "standing": figure.standing,
        "judge": detail_of(score).get("judge") if score.get("judge_version") else None,
        "judge_version": score.get("judge_version"),
        "stamp": column.stamp,
        "limit": column.limit,
        "num_fewshot": column.num_fewshot,
        "scored": score.get("created"),
        "marks": " ".join(cell.marks),
        **{key: score.get(key) for key in ("task_hash", "suite", "suite_version", "template_fingerprint", "seconds")},
    }


def to_json(board: Leaderboard) -> str:
    """Returns everything but the answers as JSON; numbers that JSON cannot spell, such as NaN, are texts."""
    value = {"kind": "posttrain leaderboard", **_spell(asdict(replace(board, samples=(), items=())))}
    del value["samples"], value["items"]  # they have files of their own
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _spell(value: Any) -> Any:
    """Makes a value of NaN or infinity in a record a text, so that the file is JSON for every reader."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, dict):
        return {str(key): _spell(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spell(item) for item in value]
    return value
