"""Puts runs in the order in which they came from each other, and their checkpoints into rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoints import FINAL
from ..records import model_of
from .model import Row, Run
from .read import RunFolder
from .text import mapping, plain, text, whole

_SHOWN = 60  # characters of a run's name that the page shows


@dataclass(frozen=True)
class Scored:
    """A row to be, with the score records that belong to it."""

    row: Row
    run_name: str
    scores: tuple[dict[str, Any], ...]


def arrange(folders: Sequence[RunFolder]) -> tuple[list[Run], list[Scored], list[str]]:
    """Orders runs along their lineage and groups their scores by weights.

    Returns:
        Runs with parents before children, rows in the same order and by step within a run, and the names that more
        than one run bears.
    """
    names = [_name(folder) for folder in folders]
    common = common_parent([folder.path for folder in folders])
    shown, doubled = _shown_names(names, [relative(folder.path, common) for folder in folders])
    order, parents = _order(folders, names)
    runs: list[Run] = []
    scored: list[Scored] = []
    ids: dict[int, str] = {}
    for index in order:
        folder, place = folders[index], relative(folders[index].path, common)
        parent = next((run for run in runs if run.id == ids.get(parents.get(index, -1))), None)
        run = _run(folder, f"run{len(runs) + 1}", shown[index], place, parent)
        fork = _fork(folder, parent, scored)
        run = replace(run, offset=_offset(fork, parent, scored))
        ids[index] = run.id
        label = _parent_label(folder, fork, parent)
        runs.append(run)
        scored.extend(_rows(folder, run, label, first=len(scored) + 1))
    return runs, scored, doubled


def _name(folder: RunFolder) -> str:
    scored = next((text(score.get("run")) for score in folder.scores if text(score.get("run"))), None)
    return text(folder.record.get("name")) or scored or folder.path.resolve().name


def _shown_names(names: Sequence[str], places: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns names that differ where they are shown, and those that several runs bear.

    A name that another run has too is followed by as much of its folder's path as tells the two apart; a text of any
    length that is cut where it is shown counts as what is left of it.
    """
    cut = [plain(name, _SHOWN) for name in names]
    taken = {short for short in cut if cut.count(short) == 1}
    shown: list[str] = []
    for name, short, place in zip(names, cut, places, strict=True):
        if cut.count(short) > 1:
            others = [f"/{other}" for other, same in zip(places, cut, strict=True) if same == short and other != place]
            parts = place.split("/")
            ends = ["/".join(parts[-count:]) for count in range(1, len(parts))]
            tail = next((end for end in ends if not any(other.endswith(f"/{end}") for other in others)), place)
            tail = tail if len(tail) <= _SHOWN // 2 else f"…{tail[1 - _SHOWN // 2 :]}"
            name = f"{plain(name, _SHOWN - 3 - len(tail))} ({tail})"
            if plain(name, _SHOWN) in taken:
                name = f"{plain(name, _SHOWN - 9)} {hashlib.sha256(place.encode()).hexdigest()[:8]}"
            taken.add(plain(name, _SHOWN))
        shown.append(name)
    return shown, sorted({name for name, short in zip(names, cut, strict=True) if cut.count(short) > 1})


def common_parent(paths: Sequence[Path]) -> Path:
    """Returns the nearest folder above all of some paths."""
    parents = [path.resolve().parent for path in paths]
    common = parents[0]
    while not all(parent.is_relative_to(common) for parent in parents):
        common = common.parent
    return common


def relative(path: Path, common: Path) -> str:
    """Returns a run folder as the report names it."""
    return path.resolve().relative_to(common).as_posix()


def _order(folders: Sequence[RunFolder], names: Sequence[str]) -> tuple[list[int], dict[int, int]]:
    """Returns the runs' indices, depth first from the roots, and each run's parent where it is among them."""
    parents = {i: p for i in range(len(folders)) if (p := _parent_index(i, folders, names)) is not None}

    def key(i: int) -> tuple[str, str, str]:
        return (text(folders[i].record.get("created")) or "~", names[i], str(folders[i].path))

    done: list[int] = []

    def visit(i: int) -> None:
        if i in done:
            return
        done.append(i)
        for child in sorted((c for c, p in parents.items() if p == i), key=key):
            visit(child)

    for root in sorted((i for i in range(len(folders)) if i not in parents), key=key):
        visit(root)
    for rest in sorted(set(range(len(folders))) - set(done), key=key):  # runs that name each other as parents
        parents.pop(rest, None)
        visit(rest)
    return done, {child: parent for child, parent in parents.items() if done.index(parent) < done.index(child)}


def _parent_index(i: int, folders: Sequence[RunFolder], names: Sequence[str]) -> int | None:
    """Finds a run's parent: by its weights, then by recipe and name, then by a name or recipe that only one run has."""
    parent = mapping(folders[i].record.get("parent"))
    weights, recipe, name = (text(parent.get(key)) for key in ("weights_hash", "recipe_hash", "name"))
    others = [j for j in range(len(folders)) if j != i]
    holds = [j for j in others if weights and any(saved[2] == weights for saved in folders[j].saved)]
    same_name = [j for j in others if name and names[j] == name]
    same_recipe = [j for j in others if recipe and folders[j].record.get("recipe_hash") == recipe]
    both = [j for j in same_recipe if j in same_name]
    for candidates in ([j for j in holds if j in same_name], both, holds, same_name, same_recipe):
        if len(candidates) == 1:
            return candidates[0]
    return None


def _run(folder: RunFolder, identity: str, name: str, place: str, parent: Run | None) -> Run:
    record = folder.record
    recipe = mapping(record.get("recipe"))
    trainer = mapping(recipe.get("trainer"))
    return Run(
        id=identity,
        name=name,
        folder=place,
        stage=text(record.get("stage")),
        parent=parent.id if parent else None,
        seed=whole(record.get("seed", trainer.get("seed"))),
        record=record,
        losses=_series(folder.log, "loss"),
        eval_losses=_series(folder.log, "eval_loss"),
        problems=folder.problems,
    )


def _series(log: Sequence[dict[str, Any]], key: str) -> tuple[tuple[int, float], ...]:
    """Returns a logged quantity by step; after a resume a step is there twice, and the later one holds."""
    values: dict[int, float] = {}
    for line in log:
        step, value = whole(line.get("step")), line.get(key)
        if step is not None and isinstance(value, int | float) and not isinstance(value, bool):
            values[step] = float(value)
    return tuple(sorted((s, v) for s, v in values.items() if abs(v) < float("inf")))


def _fork(folder: RunFolder, parent: Run | None, scored: Sequence[Scored]) -> Row | None:
    """Returns the parent's row that a run started from, if that row is there."""
    weights = text(mapping(folder.record.get("parent")).get("weights_hash"))
    rows = [item.row for item in scored if parent and item.row.run == parent.id]
    exact = [row for row in rows if weights and row.weights_hash == weights]
    if exact:
        return exact[0]
    final = [row for row in rows if FINAL in row.names]
    return final[0] if final and not weights else None


def _offset(fork: Row | None, parent: Run | None, scored: Sequence[Scored]) -> int:
    if fork is not None and fork.position is not None:
        return fork.position
    if parent is None:
        return 0
    positions = [item.row.position for item in scored if item.row.run == parent.id and item.row.position is not None]
    logged = [parent.offset + step for step, _ in parent.losses]
    return max([parent.offset, *positions, *logged])


def _parent_label(folder: RunFolder, fork: Row | None, parent: Run | None) -> str | None:
    if parent is not None:
        return f"{parent.name} {row_label(fork)}" if fork else parent.name
    record = mapping(folder.record.get("parent"))
    return text(record.get("name")) or text(record.get("path"))


def row_label(row: Row) -> str:
    """Returns ``step 800, final`` and the like, with the model's hash where another row of the run reads the same."""
    parts = [f"step {row.step}"] if row.step is not None else []
    named = [name for name in row.names if name != f"checkpoint-{row.step}"]
    if named == ["checkpoint-0"]:
        named = []
    return ", ".join(parts + named) + (f" ({row.tag})" if row.tag else "")


def _rows(folder: RunFolder, run: Run, parent: str | None, first: int) -> list[Scored]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for score in folder.scores:
        name = text(score.get("checkpoint")) or "?"
        groups.setdefault(model_of(score) or f"?{name}", []).append(score)
    if not groups:
        return [_unscored(run, folder, parent, first)]
    rows = [_row(run, folder, parent, key, scores) for key, scores in groups.items()]
    rows.sort(key=lambda item: (item.row.step is None, item.row.step or 0, FINAL in item.row.names, item.row.names))
    labels = [row_label(item.row) for item in rows]
    tags = [
        str(item.row.model_hash)[:8] if labels.count(label) > 1 else ""
        for item, label in zip(rows, labels, strict=True)
    ]
    return [replace(item, row=replace(item.row, id=f"r{first + i}", tag=tags[i])) for i, item in enumerate(rows)]


def _row(run: Run, folder: RunFolder, parent: str | None, key: str, scores: list[dict[str, Any]]) -> Scored:
    model = None if key.startswith("?") else key
    weights = text(scores[0].get("weights_hash"))
    saved = [(name, step) for name, step, *held in folder.saved if held[1] == model or held == [weights, ""]]
    names = {text(score.get("checkpoint")) or "?" for score in scores} | {name for name, _ in saved}
    steps = [(text(score.get("checkpoint")), whole(score.get("step"))) for score in scores] + saved
    # What training kept as its best may call itself the last step; the checkpoint that holds the same weights knows.
    of_checkpoints = {step for name, step in steps if step is not None and name != FINAL}
    known = sorted(of_checkpoints or {step for _, step in steps if step is not None})
    step = known[-1] if known else None
    flags = []
    if len(known) > 1:
        flags.append(f"the weights are the same at steps {', '.join(map(str, known))}: training did not change them")
    if model is None:
        flags.append("scored without a weights hash")
    position = run.offset + step if step is not None else None
    ordered = tuple(sorted(names, key=lambda name: (name == FINAL, name)))
    row = Row("", run.id, ordered, step, position, parent, weights, {}, tuple(flags), model)
    return Scored(row, run.name, tuple(scores))


def _unscored(run: Run, folder: RunFolder, parent: str | None, first: int) -> Scored:
    """Returns the row of a run without scores: its final model if there is one, so that the run is not lost."""
    final = next((saved[1:] for saved in folder.saved if saved[0] == FINAL), None)
    last = final or (folder.saved[-1][1:] if folder.saved else (None, None, None))
    names = tuple(name for name, _, weights, _ in folder.saved if weights == last[1])
    position = run.offset + last[0] if last[0] is not None else None
    flags = ("not scored yet",)
    row = Row(f"r{first}", run.id, names, last[0], position, parent, last[1], {}, flags, last[2] or last[1])
    return Scored(row, run.name, ())
