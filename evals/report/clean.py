"""Scores on the items that a run's training data does not touch, as columns beside those on all items."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..contamination import Touched
from ..stats.intervals import codes, grouped_mean
from .board import Contamination
from .items import Items, group_items, read_items, samples_path
from .lineage import ScoredRow
from .read import RunFolder
from .text import Record, detail_of, finite, mapping, text

_Task = tuple[str, str]  # its name and hash


def with_clean(
    scored: Sequence[ScoredRow], folders: Mapping[str, RunFolder]
) -> tuple[tuple[ScoredRow, ...], tuple[Contamination, ...]]:
    """Adds a score on the items that it does not touch to each score of a task of which some row's data touches any.

    Such a score is marked by the key ``clean``: the items left out, and the figure on all.

    Args:
        scored: Rows to be, with their scores.
        folders: Of the runs, by the run's id.

    Returns:
        The rows, and what is known of each run's training data.
    """
    known = {
        run: {_task(line): line for line in folder.contamination if isinstance(line.get("touched"), list)}
        for run, folder in folders.items()
    }
    found = []
    for run, lines in known.items():
        asked = {_task(score) for score in folders[run].scores}
        found += [_contamination(run, lines[task]) for task in lines if task in asked]
    of_interest = {(entry.task, entry.task_hash) for entry in found if entry.touched}
    # The mean of a group is of interest where one of its tasks is.
    groups = {_task(s): group_members(s, item.scores) for item in scored for s in item.scores if _is_group(s)}
    of_interest |= {group for group, members in groups.items() if of_interest & {_task(score) for score in members}}
    rows = []
    for item in scored:
        lines, path = known.get(item.row.run, {}), folders[item.row.run].path
        clean: list[Record] = []
        for score in item.scores:
            if _task(score) in of_interest:
                made = _clean_mean(score, item.scores, lines, path) if _is_group(score) else None
                made = made or (_clean_score(score, lines[_task(score)], path) if _task(score) in lines else None)
                clean += [made] if made else []
        rows.append(replace(item, scores=(*item.scores, *clean)))
    return tuple(rows), tuple(found)


def _task(score: Mapping[str, Any]) -> _Task:
    return text(score.get("task")) or "", text(score.get("task_hash")) or ""


def _contamination(run: str, line: Record) -> Contamination:
    touched = tuple(
        Touched(*(text(item.get(key)) or "" for key in ("id", "question", "run", "row", "words")))
        for item in map(mapping, line["touched"])
    )
    unseen, before = (tuple(text(one) or "" for one in line.get(key) or ()) for key in ("unseen", "seen_before"))
    items, rows = (value if isinstance(value, int) else 0 for value in (line.get("items"), line.get("rows")))
    task, task_hash = _task(line)
    return Contamination(run, task, task_hash, items, rows, len(line.get("lost") or ()), unseen, before, touched)


def _clean_score(score: Record, line: Record, folder: Path) -> Record | None:
    """Returns a score over the items that are left; None where single items are not known, or none is left."""
    touched = _touched(line)
    items = _items(score, line, folder)
    return _with(score, items, touched, line.get("unseen") or []) if items else None


def _items(score: Record, line: Record, folder: Path) -> Items | None:
    """Returns the items of a score that are left.

    Items of rows are known by their number, which says which they are only where no row was dropped.
    """
    whole, touched = _whole(score, folder), _touched(line)
    if whole is None:
        return None
    numbered = any(key.isdigit() for key in touched)
    if numbered and len({key.partition(":")[0] for key in whole.keys}) != line.get("items"):
        return None
    return whole.without(touched)


def _whole(score: Record, folder: Path) -> Items | None:
    """Returns all items of a score; None where single items are not known."""
    path, name, value = samples_path(folder, score), text(_first(score).get("name")), finite(_first(score).get("value"))
    return read_items(path, name, value) if path and name and value is not None else None


def _first(score: Mapping[str, Any]) -> Record:
    """Returns the figure that stands for a score."""
    return mapping(next(iter(score.get("metrics") or ()), None))


def _clean_mean(score: Record, scores: Sequence[Record], lines: Mapping[_Task, Record], folder: Path) -> Record | None:
    """Returns a group's score over the items of its tasks that are left; None where those of a task are not known."""
    members, detail = group_members(score, scores), detail_of(score)
    if len(members) != len(mapping(detail.get("tasks"))) or any(_task(member) not in lines for member in members):
        return None
    unseen = [clause for member in members for clause in lines[_task(member)].get("unseen") or ()]
    touched = {(text(m.get("task")), key) for m in members for key in _touched(lines[_task(m)])}
    if detail.get("mean") == "robust":  # one task asked in several ways: an item is the number it has in all of them
        whole = _whole(score, folder)
        numbers = {key.partition(":")[0] for _, key in touched}
        items = whole.without(numbers) if whole else None
        return _with(score, items, numbers, unseen) if items else None
    parts = {str(member["task"]): _items(member, lines[_task(member)], folder) for member in members}
    items = group_items(detail, {task: held for task, held in parts.items() if held})
    return _with(score, items, {f"{task}:{key}" for task, key in touched}, unseen) if items else None


def _with(score: Record, items: Items, touched: Collection[str], unseen: Sequence[Any]) -> Record:
    """Returns a score with the figure of some items, and the key ``clean``."""
    metric, n = _first(score), len(items.values)
    stderr = grouped_mean(items.values, codes(items.clusters, n)[0])[1]
    figure = {"name": metric["name"], "value": float(items.values.mean()), "stderr": stderr, "n": n}
    figure["higher_is_better"] = metric.get("higher_is_better")
    clean = {"without": sorted(touched), "value": metric["value"], "unseen": list(dict.fromkeys(unseen))}
    return {**score, "metrics": [figure], "clean": clean}


def _touched(line: Record) -> set[str]:
    return {key for item in line["touched"] if (key := text(mapping(item).get("id")))}


def _is_group(score: Mapping[str, Any]) -> bool:
    return detail_of(score).get("kind") == "group"


def group_members(group: Record, scores: Sequence[Record]) -> list[Record]:
    """Returns the scores of a row that a group's score is the mean of."""
    found = []
    for task, value in mapping(detail_of(group).get("tasks")).items():
        mine = (score for score in scores if score.get("task") == task and not _is_group(score))
        found += [score] if (score := next((s for s in mine if _first(s).get("value") == value), None)) else []
    return found
