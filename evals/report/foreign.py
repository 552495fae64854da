"""Results of other harnesses as rows: which of their figures stand beside ours, and which may be compared at all."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...chat_templates.errors import InputError
from ..foreign_results import items_digest, write_runs
from ..records import samples_name
from ..runs import find_runs
from .board import Badge, BoardRow
from .items import read_items, samples_path
from .read import RunFolder, read_run
from .text import Record, detail_of, mapping, text

_PATTERNS = ("results_*.json", "*.eval")


def read_folders(paths: Sequence[Path], scratch: Path) -> list[RunFolder]:
    """Reads run folders and files of results, those of other harnesses last.

    A folder that holds no run but results of lm-eval or inspect, at any height, stands for those.

    Args:
        paths: Run folders, folders of them, and files of results.
        scratch: Where results of others lie as run folders while the board is built.

    Raises:
        InputError: A path does not exist or holds no run and no results, or a file of results is damaged.
    """
    folders, files = [], []
    for path in map(Path, paths):
        if not path.exists():
            hint = "name run folders, folders of them, or files of results"
            raise InputError("no such file or folder", where=str(path), hint=hint)
        found = [path] if path.is_file() else list(_results_below(path))
        files += found
        folders += [] if found else [path]
    runs = [read_run(path) for path in find_runs(folders)] if folders or not files else []
    foreign = [replace(read_run(store), source=source) for store, source in write_runs(files, scratch)]
    for folder in foreign:
        if folder.problems:
            raise InputError("; ".join(folder.problems), where=str(folder.source))
    return [*runs, *_with_shared_columns(foreign, runs)]


def _results_below(folder: Path) -> Iterator[Path]:
    """Yields the files of results in a folder that holds no run."""
    try:
        find_runs([folder])
    except InputError:
        if folder.is_dir():
            yield from sorted(file for pattern in _PATTERNS for file in folder.rglob(pattern) if file.is_file())


def _with_shared_columns(foreign: Sequence[RunFolder], runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Puts figures of others into the column of ours where items and settings are the same; says which are known."""
    asked = {text(score.get("task")) for folder in foreign for score in folder.scores}
    ours: dict[tuple[str, str], Record] = {}
    for folder in runs:
        for score in folder.scores:
            path = samples_path(folder.path, score) if score.get("task") in asked else None
            digest = items_digest(path) if path else None
            if digest and not _is_answered_otherwise(score):
                ours.setdefault((str(score["task"]), digest), score)
    return [
        replace(folder, scores=tuple(_placed(folder, score, ours) for score in folder.scores)) for folder in foreign
    ]


def _is_answered_otherwise(score: Record) -> bool:
    """Says whether a task was answered under other settings than its own, which its items do not show."""
    detail = detail_of(score)
    changes = detail.get("changes")
    return bool(detail.get("sampling")) or (isinstance(changes, list) and "generation settings" in changes)


def _placed(folder: RunFolder, score: Record, ours: Mapping[tuple[str, str], Record]) -> Record:
    found = mapping(score.get("foreign"))
    path, first = samples_path(folder.path, score), score["metrics"][0]
    known = path is not None and read_items(path, first["name"], first["value"]) is not None
    placed = {**score, "foreign": {**found, "items_known": known}}
    same = ours.get((str(score["task"]), str(found.get("items")))) if known else None
    if same is None or path is None:
        return placed
    coverage = detail_of(same).get("coverage")
    detail = {key: value for key, value in score["detail"].items() if key != "coverage"}
    shared = {key: same.get(key) for key in ("task_hash", "num_fewshot", "limit", "template_fingerprint")}
    placed = {**placed, **shared, "detail": detail | ({"coverage": coverage} if coverage else {})}
    path.rename(folder.path / samples_name(*(placed[key] for key in ("model_hash", "task", "task_hash"))))
    return placed


def with_badges(rows: Sequence[BoardRow], held: Mapping[str, RunFolder]) -> list[BoardRow]:
    """Gives each row of another harness a badge with its name and version."""
    return [replace(row, badges=(*row.badges, *_badges(held[row.run], row))) for row in rows]


def _badges(folder: RunFolder, row: BoardRow) -> list[Badge]:
    if folder.source is None:
        return []
    known = [cell for cell in row.cells.values() if not cell.is_unseen]
    several = f"{len(known)} of {len(row.cells)} figures" if row.cells else "no figures"
    detail = f"figures of others, from {', '.join(folder.record.get('files', ()))}; training data unknown; "
    detail += f"the items of {several} are known"
    detail += ", and only those are compared"
    return [Badge(str(folder.record.get("harness")), "neutral", detail)]
