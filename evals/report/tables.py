"""The leaderboard as tidy CSV, and as JSON with everything but the answers."""

import csv
import io
import json
import math
from dataclasses import asdict, replace
from typing import Any

from ...data_tools.plain_values import with_leaves
from .board import BoardRow, Cell, Column, Figure, Leaderboard, RowDifference
from .text import detail_of, mapping


def to_csv(board: Leaderboard) -> str:
    """Returns one line for each checkpoint, task and metric; a checkpoint without scores has one line.

    A text that a spreadsheet would run as a formula gets a leading apostrophe.
    """
    against = {(found.row, found.column): found for found in board.differences}
    records = []
    for row in board.rows:
        records += [] if row.cells else [_record(board, row)]
        for column in board.columns:
            cell = row.cells.get(column.id)
            for figure in cell.figures if cell else ():
                found = against.get((row.id, column.id))
                records.append(_record(board, row, column, cell, figure, found))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(records[0])
    writer.writerows(map(_csv, record.values()) for record in records)
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


def _record(
    board: Leaderboard,
    row: BoardRow,
    column: Column | None = None,
    cell: Cell | None = None,
    figure: Figure | None = None,
    found: RowDifference | None = None,
) -> dict[str, Any]:
    """Returns a line, in the order of its columns; how a row stands to the baseline is said of its primary figures."""
    run, score, ends = board.run_of(row), cell.score if cell else {}, figure and figure.interval
    stands = column and cell and figure and figure.metric == column.primary.name
    found = found if stands else None
    baseline = found and board.row(found.against)
    return {
        "run": run.name,
        "folder": run.folder,
        "checkpoint": " = ".join(row.names) or row.label,
        "step": row.step,
        "position": row.position,
        "stage": run.stage,
        "parent": row.parent,
        "task": column and column.task,
        "variant": column and column.variant,
        "metric": figure and figure.metric,
        "primary": cell and figure is cell.figures[0],
        "value": figure and figure.value,
        "stderr": figure and figure.stderr,
        "n": figure and figure.n,
        "interval_low": ends and ends.low,
        "interval_high": ends and ends.high,
        "interval_method": figure and (ends.method if ends else "none"),
        "higher_is_better": figure and figure.higher_is_better,
        "standing": figure and figure.standing,
        "tier": cell.tier if cell and stands else None,
        "baseline": baseline and f"{board.run_of(baseline).name} {baseline.label}",
        "difference": found and found.value,
        "difference_low": found and found.low,
        "difference_high": found and found.high,
        "p_adjusted": found and found.p,
        "verdict": found and found.verdict,
        "smallest_difference": found and found.smallest,
        "compared": found and found.method,
        "judge": detail_of(score).get("judge") if score.get("judge_version") else None,
        "judge_version": score.get("judge_version"),
        "stamp": column and column.stamp,
        "limit": column and column.limit,
        "num_fewshot": column and column.num_fewshot,
        **{key: score.get(key) for key in ("task_hash", "suite", "suite_version", "template_fingerprint")},
        "weights_hash": row.weights_hash,
        "model_hash": row.model_hash,
        "recipe_hash": run.record.get("recipe_hash"),
        "data_fingerprint": mapping(mapping(run.record.get("data")).get("train")).get("fingerprint"),
        "git_revision": mapping(run.record.get("git")).get("revision"),
        "seed": run.seed,
        "scored": score.get("created"),
        "seconds": score.get("seconds"),
        "marks": " ".join(cell.marks) if cell else None,
        "flags": "; ".join(row.flags),
        "parity": "; ".join(f"{one.against}: {one.verdict}" for one in row.parity) or "not checked",
    }


def to_json(board: Leaderboard) -> str:
    """Returns :func:`to_value` as JSON."""
    return json.dumps(to_value(board), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_value(board: Leaderboard) -> dict[str, Any]:
    """Returns everything but the answers in JSON's types; numbers that JSON cannot spell, such as NaN, are texts."""
    value = {"kind": "posttrain leaderboard", **with_leaves(asdict(replace(board, samples=(), items=())), _spell)}
    del value["samples"], value["items"]  # they have files of their own
    return value


def _spell(value: Any) -> Any:
    """Makes a value of NaN or infinity in a record a text, so that the file is JSON for every reader."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
