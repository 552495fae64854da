"""Scores on the items that a run's training data does not touch, as columns beside those on all items."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..contamination import Touched
from .board import Contamination
from .items import read_items, samples_path
from .lineage import Scored
from .read import RunFolder
from .text import mapping, text

_Task = tuple[str, str]  # its name and hash


def with_clean(
    scored: Sequence[Scored], folders: Mapping[str, RunFolder]
) -> tuple[tuple[Scored, ...], tuple[Contamination, ...]]:
    """Adds a score on the items that it does not touch to each score of a task of which some row's data touches any.

    Such a score is marked by the key ``clean``: the items left out, and the figure on all.

    Args:
        scored: Rows to be, with their scores.
        folders: Of the runs, by the run's id.

    Returns:
        The rows, and what is known of each run's training data.
    """
    known = {run: _newest(folder) for run, folder in folders.items()}
    found = []
    for run, lines in known.items():
        asked = {_task(score) for score in folders[run].scores}
        found += [_contamination(run, lines[task]) for task in lines if task in asked]
    of_interest = {(entry.task, entry.task_hash) for entry in found if entry.touched}
    rows = []
    for item in scored:
        lines, path = known.get(item.row.run, {}), folders[item.row.run].path
        clean = [
            made
            for score in item.scores
            if _task(score) in of_interest and _task(score) in lines
            if (made := _clean_score(score, lines[_task(score)], path)) is not None
        ]
        rows.append(replace(item, scores=(*item.scores, *clean)))
    return tuple(rows), tuple(found)


def _task(score: Mapping[str, Any]) -> _Task:
    return text(score.get("task")) or "", text(score.get("task_hash")) or ""


def _newest(folder: RunFolder) -> dict[_Task, dict[str, Any]]:
    """Returns what was last found out of each task."""
    return {_task(line): line for line in folder.contamination if isinstance(line.get("touched"), list)}


def _contamination(run: str, line: dict[str, Any]) -> Contamination:
    touched = tuple(
        Touched(*(text(item.get(key)) or "" for key in ("id", "question", "run", "row", "words")))
        for item in map(mapping, line["touched"])
    )
    unseen, before = (tuple(text(one) or "" for one in line.get(key) or ()) for key in ("unseen", "seen_before"))
    items, rows = (value if isinstance(value, int) else 0 for value in (line.get("items"), line.get("rows")))
    task, task_hash = _task(line)
    return Contamination(run, task, task_hash, items, rows, len(line.get("lost") or ()), unseen, before, touched)


def _clean_score(score: dict[str, Any], line: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """Returns a score over the items that are left; None where single items are not known, or none is left."""
    metric = mapping(next(iter(score.get("metrics") or ()), None))
    path, name, value = samples_path(folder, score), text(metric.get("name")), metric.get("value")
    if path is None or name is None or not isinstance(value, int | float):
        return None
    touched = {text(mapping(item).get("id")) for item in line["touched"]}
    items = read_items(path, name, value, without=touched)
    if items is None:
        return None
    n = len(items.values)
    stderr = float(np.std(items.values, ddof=1) / np.sqrt(n)) if n > 1 else None
    figure = {"name": name, "value": float(items.values.mean()), "stderr": stderr, "n": n}
    figure["higher_is_better"] = metric.get("higher_is_better")
    clean = {"without": sorted(key for key in touched if key), "value": value, "unseen": line.get("unseen") or []}
    return {**score, "metrics": [figure], "clean": clean}
