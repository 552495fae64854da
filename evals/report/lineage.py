"""Puts runs in the order in which they came from each other, and their checkpoints into rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoints import FINAL
from ..records import model_of
from ..sequences import grouped
from .board import Badge, BoardRow, BoardRun
from .read import RunFolder
from .text import Record, finite, mapping, plain, text, whole

_SHOWN = 60  # characters of a run's name that the page shows


@dataclass(frozen=True)
class ScoredRow:
    """A row to be, with the score records that belong to it."""

    row: BoardRow
    run_name: str
    scores: tuple[Record, ...]


def arrange(folders: Sequence[RunFolder]) -> tuple[list[BoardRun], list[ScoredRow], dict[str, RunFolder], list[str]]:
    """Orders runs along their lineage and groups their scores by weights.

    Returns:
        Runs with parents before children, rows in the same order and by step within a run, the folder of each run by
        the run's id, and the names that more than one run bears.
    """
    names = [_name(folder) for folder in folders]
    places = _places([folder.source or folder.path for folder in folders])
    shown, doubled = _shown_names(names, places)
    order, parents = _order(folders, names)
    runs: list[BoardRun] = []
    scored: list[ScoredRow] = []
    ids: dict[int, str] = {}
    for index in order:
        folder = folders[index]
        ids[index] = f"run{len(runs) + 1}"
        parent = next((run for run in runs if run.id == ids.get(parents.get(index, -1))), None)
        above = [item.row for item in scored if parent and item.row.run == parent.id]
        fork = _fork(folder, above)
        if parent is not None:
            label = f"{parent.name} {fork.label}" if fork else parent.name
        else:
            named = mapping(folder.record.get("parent"))
            label = text(named.get("name")) or text(named.get("path"))
        origin = {"parent": parent and parent.id, "fork": fork and fork.id, "offset": _offset(fork, parent, above)}
        run = replace(_run(folder, ids[index], shown[index], places[index]), **origin)
        runs.append(run)
        scored.extend(_rows(folder, run, label, first=len(scored) + 1))
    return runs, scored, {ids[index]: folders[index] for index in order}, doubled


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


def _places(paths: Sequence[Path]) -> list[str]:
    """Returns run folders as the report names them: from the nearest folder above all of them."""
    whole_paths = [path.resolve() for path in paths]
    common = whole_paths[0].parent
    while not all(path.parent.is_relative_to(common) for path in whole_paths):
        common = common.parent
    return [path.relative_to(common).as_posix() for path in whole_paths]


def _order(folders: Sequence[RunFolder], names: Sequence[str]) -> tuple[list[int], dict[int, int]]:
    """Returns the runs' indices, depth first from the roots, and each run's parent where it is among them."""
    parents = {i: p for i in range(len(folders)) if (p := _parent_index(i, folders, names)) is not None}

    def key(i: int) -> tuple[str, str, str]:
        return (text(folders[i].record.get("created")) or "~", names[i], str(folders[i].source or folders[i].path))

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
    holds = [j for j in others if weights and any(saved.weights == weights for _, saved in folders[j].saved)]
    same_name = [j for j in others if name and names[j] == name]
    same_recipe = [j for j in others if recipe and folders[j].record.get("recipe_hash") == recipe]
    both = [j for j in same_recipe if j in same_name]
    for candidates in ([j for j in holds if j in same_name], both, holds, same_name, same_recipe):
        if len(candidates) == 1:
            return candidates[0]
    return None


def _run(folder: RunFolder, identity: str, name: str, place: str) -> BoardRun:
    record = folder.record
    trainer = mapping(mapping(record.get("recipe")).get("trainer"))
    return BoardRun(
        identity,
        name,
        place,
        stage=text(record.get("stage")),
        seed=whole(record.get("seed", trainer.get("seed"))),
        record=record,
        losses=_series(folder.log, "loss"),
        eval_losses=_series(folder.log, "eval_loss"),
        source_losses=_source_losses(folder.log),
        problems=folder.problems,
    )


def _source_losses(log: Sequence[Record]) -> dict[str, tuple[tuple[int, float], ...]]:
    """Returns the logged losses of the sources of the training data, by their names."""
    prefix = "loss/"
    names = dict.fromkeys(key.removeprefix(prefix) for line in log for key in line if key.startswith(prefix))
    return {name: _series(log, prefix + name) for name in names}


def _series(log: Sequence[Record], key: str) -> tuple[tuple[int, float], ...]:
    """Returns a logged quantity by step; after a resume a step is there twice, and the later one holds."""
    values: dict[int, float | None] = {}
    for line in log:
        if (step := whole(line.get("step"))) is not None and key in line:
            values[step] = finite(line[key])
    return tuple(sorted((step, value) for step, value in values.items() if value is not None))


def _fork(folder: RunFolder, above: Sequence[BoardRow]) -> BoardRow | None:
    """Returns the parent's row that a run started from, if that row is there."""
    weights = text(mapping(folder.record.get("parent")).get("weights_hash"))
    if weights:
        return next((row for row in above if row.weights_hash == weights), None)
    return next((row for row in above if FINAL in row.names), None)


def _offset(fork: BoardRow | None, parent: BoardRun | None, above: Sequence[BoardRow]) -> int:
    if fork is not None and fork.position is not None:
        return fork.position
    if parent is None:
        return 0
    positions = [row.position for row in above if row.position is not None]
    return max([parent.offset, *positions, *(parent.offset + step for step, _ in parent.losses)])


def _rows(folder: RunFolder, run: BoardRun, parent: str | None, first: int) -> list[ScoredRow]:
    groups = grouped(folder.scores, lambda score: model_of(score) or f"?{_checkpoint(score)}")
    if not groups:
        return [_unscored(run, folder, parent, first)]
    rows = [_row(run, folder, parent, key, scores) for key, scores in groups.items()]
    rows.sort(key=lambda item: (item.row.step is None, item.row.step or 0, FINAL in item.row.names, item.row.names))
    labels = [item.row.label for item in rows]
    tags = [str(item.row.model_hash)[:8] if labels.count(item.row.label) > 1 else "" for item in rows]
    return [replace(item, row=replace(item.row, id=f"r{first + i}", tag=tags[i])) for i, item in enumerate(rows)]


def _checkpoint(score: Record) -> str:
    return text(score.get("checkpoint")) or "?"


def _row(run: BoardRun, folder: RunFolder, parent: str | None, key: str, scores: list[Record]) -> ScoredRow:
    model = None if key.startswith("?") else key
    weights = text(scores[0].get("weights_hash"))
    # Manifests of older versions name no model.
    saved = [(n, m.step) for n, m in folder.saved if m.model == model or (m.weights, m.model) == (weights, "")]
    steps = [(_checkpoint(score), whole(score.get("step"))) for score in scores] + saved
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
    names = tuple(sorted({name for name, _ in steps}, key=lambda name: (name == FINAL, name)))
    badges = _decided(folder.record, names)
    row = BoardRow("", run.id, names, step, position, parent, weights, {}, tuple(flags), model, badges=badges)
    return ScoredRow(row, run.name, tuple(scores))


def _decided(record: Record, names: Sequence[str]) -> tuple[Badge, ...]:
    """Says what scores while the run trained have decided about a checkpoint."""
    best, end = mapping(record.get("best")), mapping(record.get("early_stop"))
    found = []
    if text(best.get("checkpoint")) in names:
        detail = f"kept while training as the best of {best.get('candidates')} checkpoints in {best.get('column')}"
        found.append(Badge("kept as the best", "good", detail))
    if f"checkpoint-{end.get('step')}" in names:
        detail = f"at {end.get('step')} of {end.get('of')} steps: shown to gain nothing worth having"
        found.append(Badge("training ended here", "neutral", detail))
    return tuple(found)


def _unscored(run: BoardRun, folder: RunFolder, parent: str | None, first: int) -> ScoredRow:
    """Returns the row of a run without scores: its final model if there is one, so that the run is not lost."""
    row = BoardRow(f"r{first}", run.id, (), None, None, parent, None, {}, ("not scored yet",))
    if folder.saved:
        last = folder.saved[-1][1]  # the final model comes last
        names = tuple(name for name, saved in folder.saved if saved.weights == last.weights)
        position, model = run.offset + last.step, last.model or last.weights
        row = replace(row, names=names, step=last.step, position=position, weights_hash=last.weights, model_hash=model)
    return ScoredRow(row, run.name, ())
