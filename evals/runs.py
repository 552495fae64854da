"""Run folders: the record of a run, what it came from, which checkpoints it holds, and what a given path stands for.

A run folder holds ``run.json``, ``log.jsonl``, ``checkpoint-<step>`` folders, the final model at its root, and what
scoring and judging add: ``scores.jsonl``, ``samples/`` and ``judgments.jsonl``.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..chat_templates.errors import InputError, PosttrainError, first_line
from ..data_tools.errors import HubError, is_silence
from ..data_tools.files import hash_file, locked, without_surrogates, write_json
from ..data_tools.sources import data_suffix
from .checkpoints import (
    FINAL,
    MANIFEST,
    Manifest,
    list_checkpoints,
    model_hash,
    read_manifest,
    step_of,
    weights_hash,
)
from .records import LOCKS, SCORES, now

RUN_FILE = "run.json"
_MOST_ANCESTORS = 100  # stages that a model may have behind it; more is a circle


@dataclass(frozen=True)
class Target:
    """A model to score and where its scores go.

    Attributes:
        store: The run folder.
        run: The run's name.
        run_id: The hash of its recipe; empty for a plain model.
        checkpoint: ``checkpoint-<step>`` or ``final``.
        step: The optimiser step, if known.
        folder: Where the model lies.
        weights_hash: What identifies its weights.
        model_hash: What identifies it.
        has_manifest: Whether the folder can be verified.
    """

    store: Path
    run: str
    run_id: str
    checkpoint: str
    step: int | None
    folder: Path
    weights_hash: str
    model_hash: str
    has_manifest: bool

    @property
    def name(self) -> str:
        """Returns ``run/checkpoint``, for messages."""
        return f"{self.run}/{self.checkpoint}"

    @property
    def is_answers(self) -> bool:
        """Says whether it is no model but a file of answers that others gave."""
        return self.folder.is_file()


@dataclass(frozen=True)
class Unfinished:
    """A checkpoint folder without a readable manifest: its save has not ended, or never will."""

    folder: Path


def find_targets(
    paths: Sequence[Path | str], output: Path | None, *, offline: bool = True, final_only: bool = False
) -> tuple[list[Target], list[Unfinished]]:
    """Returns the complete checkpoints of paths, by step with the final model last, and the incomplete ones.

    Raises:
        InputError: A path is neither a run nor a model.
    """
    targets: list[Target] = []
    unfinished: list[Unfinished] = []
    for item in paths:
        path = Path(item)
        if is_run(path):
            _add_run(path, [*([] if final_only else list_checkpoints(path)), path], targets, unfinished)
        elif step_of(path) is not None and is_run(path.absolute().parent):
            _add_run(path.absolute().parent, [path], targets, unfinished)
        else:
            answers = path.is_file() and (bool(data_suffix(path.name)) or path.suffix == ".eval")
            targets.append(_outsider(str(item), output, offline, answers=answers))
    return list({(target.store, target.folder): target for target in targets}.values()), unfinished


def is_run(path: Path) -> bool:
    """Says whether a folder is a run's: it has a ``run.json``, or a checkpoint with a manifest."""
    return (path / RUN_FILE).is_file() or any((folder / MANIFEST).is_file() for folder in list_checkpoints(path))


def set_aside(folder: Path, number: int) -> Path:
    """Returns where a pipeline keeps what a step that was changed since had written."""
    return folder.with_name(f"{folder.name}.old-{number}")


def is_set_aside(folder: Path) -> bool:
    """Says whether a folder holds what a step that was changed since had written."""
    return bool(re.search(r"\.old-\d+$", folder.name))


def is_closed(run_dir: Path) -> bool:
    """Says whether a run came to its end, so that no more checkpoints are to come."""
    return read_record(run_dir).get("finished") is not None


def read_record(run_dir: Path, problems: list[str] | None = None) -> dict[str, Any]:
    """Returns a run folder's record; empty if the folder has none.

    Args:
        run_dir: The run folder.
        problems: Takes a clause if the record is missing or damaged; a damaged one then counts as none.

    Raises:
        InputError: The record is damaged, and no problems are collected.
    """
    file = run_dir / RUN_FILE
    try:
        value = json.loads(file.read_bytes()) if file.exists() else None
        if isinstance(value, dict):
            return value if problems is None else without_surrogates(value)
        if file.exists():
            raise ValueError("not a JSON object")
        what = "is missing"
    except (OSError, ValueError, RecursionError) as error:
        if problems is None:
            hint = "restore it, or choose another output folder"
            raise InputError(f"the run's record is damaged: {error}", where=str(file), hint=hint) from error
        what = f"cannot be read ({first_line(error)})"
    if problems is not None:
        problems.append(f"{RUN_FILE} {what}, so stage, parent and provenance are unknown")
    return {}


def known_record(run_dir: Path) -> dict[str, Any]:
    """Returns a run folder's record as :func:`read_record`, but an empty one where it is damaged."""
    return read_record(run_dir, problems=[])


def run_of(folder: Path) -> Path:
    """Returns the run folder that a folder is or, as a checkpoint does, lies in."""
    return folder if (folder / RUN_FILE).is_file() else folder.parent


def lineage(run_dir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields a run folder with its record, the run's that it started from, and so on, as far as they are there."""
    seen: set[Path] = set()
    while (record := known_record(run_dir)) and run_dir.resolve() not in seen and len(seen) < _MOST_ANCESTORS:
        seen.add(run_dir.resolve())
        yield run_dir, record
        path = (record.get("parent") or {}).get("path")
        if not path:
            return
        run_dir = run_of(Path(path))


def rewards_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the models that rewarded a run, as its record describes them; a gold reward only watched."""
    recipe = record.get("recipe") or {}
    named = {str(reward.get("model")) for reward in recipe.get("rewards") or () if reward.get("model")}
    watched = {str(part["model"]) for part in (recipe.get("gold"),) if part and part.get("model")} - named
    models = [model for model in record.get("models") or () if not _called(model) & watched]
    known = {name for model in models for name in _called(model)}
    return [*models, *({"name": name, "path": name} for name in sorted(named - known))]


def origins_of(record: Mapping[str, Any], what: Literal["written_by", "judged_by", "chosen_like"]) -> list[str]:
    """Returns which models wrote or judged rows that a run was trained on, or what rows they were chosen to be like."""
    data = record.get("data")
    trained = data.get("train") if isinstance(data, dict) else None
    names = trained.get(what) if isinstance(trained, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def chosen_like(run_dir: Path) -> list[str]:
    """Returns the rows by the likeness to which training rows of a run, or of one that it came from, were chosen."""
    return list(dict.fromkeys(like for _, record in lineage(run_dir) for like in origins_of(record, "chosen_like")))


def _called(model: Mapping[str, Any]) -> set[str]:
    return {str(model[key]) for key in ("name", "path") if model.get(key)}


def place_of(reference: str, record: Mapping[str, Any], run_dir: Path) -> Path | None:
    """Returns the folder of a model that a run's recipe names, by ``@step`` or by its path; None if it is not there.

    A run that was moved with its siblings still lies beside this one.
    """
    place = reference
    if reference.startswith("@"):
        references = record.get("references")
        place = str((references if isinstance(references, dict) else {}).get(reference[1:].split("/")[0]) or "")
    for path in (Path(place), run_dir.absolute().parent / (Path(place).name or reference.lstrip("@"))):
        if place and path.is_dir() and path.absolute() != run_dir.absolute():
            return path
    return None


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Returns the run folders at and below some paths, each once, in the order found.

    A run folder holds ``run.json`` or ``scores.jsonl``. Checkpoints, samples and hidden folders are not searched.

    Raises:
        InputError: A path does not exist, is not a folder, or holds no run.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise InputError("no such folder", where=str(path), hint="name run folders, or a folder of run folders")
        runs = _runs_below(path)
        if not runs:
            raise InputError(f"no run here: no {RUN_FILE} or {SCORES}", where=str(path), hint="train or score first")
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _runs_below(folder: Path) -> list[Path]:
    """Returns the run folders at and below one folder, by name; links are not followed, so that loops end."""
    runs = [folder] if any((folder / name).is_file() for name in (RUN_FILE, SCORES)) else []
    for child in sorted(folder.iterdir()):
        skipped = child.name.startswith((".", "checkpoint-")) or child.name == "samples"
        if child.is_dir() and not child.is_symlink() and not skipped:
            runs.extend(_runs_below(child))
    return runs


def saved_models(run_dir: Path) -> list[tuple[str, Manifest]]:
    """Returns the name and the manifest of each checkpoint of a run that has a readable one, the final model last."""
    found = [(folder.name, read_manifest(folder)) for folder in list_checkpoints(run_dir)]
    return [(name, manifest) for name, manifest in [*found, (FINAL, read_manifest(run_dir))] if manifest is not None]


def _add_run(run_dir: Path, folders: list[Path], targets: list[Target], unfinished: list[Unfinished]) -> None:
    run = read_record(run_dir)
    for folder in folders:
        manifest = read_manifest(folder)
        if manifest is not None:
            checkpoint = FINAL if folder == run_dir else folder.name
            name, run_id = str(run.get("name") or run_dir.absolute().name), str(run.get("recipe_hash") or "")
            hashes = _hashes(folder, manifest)
            targets.append(Target(run_dir, name, run_id, checkpoint, manifest.step, folder, *hashes, True))
        elif folder != run_dir or (folder / MANIFEST).exists():
            unfinished.append(Unfinished(folder))


def _hashes(folder: Path, manifest: Manifest) -> tuple[str, str]:
    """Returns what identifies a checkpoint's weights and model; as its manifest says if the weights are gone."""
    try:
        return weights_hash(folder), model_hash(folder)
    except PosttrainError:
        return manifest.weights, manifest.model


def locate(item: str, *, offline: bool = False) -> Path:
    """Returns the folder of a model that is named by it, or the local copy of one on the Hub.

    Raises:
        InputError: There is no such model.
    """
    folder = Path(item)
    if not folder.is_dir():
        if data_suffix(item) and not folder.exists():
            raise InputError("no such file", where=item)
        if folder.exists() or item.startswith((".", "/")) or not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", item):
            raise InputError("neither a run folder nor a model", where=item)
        folder = _download(item, offline)
    elif not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        hint = "name one of its checkpoints" if list_checkpoints(folder) else f"expected {RUN_FILE} or config.json"
        raise InputError("neither a run folder nor a model", where=item, hint=hint)
    return folder


def _outsider(item: str, output: Path | None, offline: bool, *, answers: bool) -> Target:
    """Returns a model of no run, or a file of others' answers, as a target with a run folder of its own."""
    place = Path(item) if answers else locate(item, offline=offline)
    if output is None:
        what = "answers" if answers else "a model that is no run"
        hint = "say -o FOLDER" + ("" if answers else ": there each such model gets a run folder of its own")
        raise InputError(f"the scores of {what} need a place", where=item, hint=hint)
    weights, model = (hash_file(place),) * 2 if answers else (weights_hash(place), model_hash(place))
    with locked(output / LOCKS / "names", wait=True):
        store = _store_of(item, place, model, output, stage="foreign" if answers else "external")
    name = str(read_record(store).get("name") or store.name)
    return Target(store, name, "", FINAL, None, place, weights, model, (place / MANIFEST).is_file())


def _store_of(item: str, folder: Path, digest: str, output: Path, stage: str) -> Path:
    """Returns the run folder of a plain model, made if need be: one model, one folder, whatever else is called like it.

    It is named as the model's folder is; where that name is taken, by its parent too, and last by what identifies it.
    Another trainer's checkpoint has its parent's name at once: what looks for runs passes over ``checkpoint-`` folders.
    """
    is_local = Path(item).exists()
    place = Path(os.path.normpath(Path(item).absolute()))  # links keep their names, ``..`` has none of its own
    longer = f"{place.parent.name}--{place.name}"
    name = longer if place.name.startswith("checkpoint-") else place.name
    first, source = (name, str(place)) if is_local else (item.replace("/", "--"), item)
    names = [first, f"{first}-{digest[:8]}"]
    if is_local and read_record(output / first).get("source", source) != source:
        names.insert(1, longer)

    def fits(name: str) -> bool:
        run = read_record(output / name)
        older = run.get("stage") == "external" and "model_hash" not in run and run.get("recipe") == {"model": item}
        return older or run.get("model_hash") == digest or (not run and (output / name).resolve() != folder.resolve())

    store = output / next((name for name in names if fits(name)), names[-1])
    run = read_record(store)
    if run.get("model_hash") != digest:
        made = now()
        new: dict[str, Any] = {"schema": 1, "name": store.name, "stage": stage, "recipe": {"model": item}}
        new |= {"recipe_hash": "", "data": None, "template": None, "versions": {}, "git": None, "parent": None}
        new |= {"processes": 1, "created": made, "finished": made, "command": ""}
        write_json(store / RUN_FILE, new | run | {"source": source, "model_hash": digest})
    return store


def _download(repository: str, offline: bool) -> Path:
    """Returns the local snapshot of a Hub model."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=offline))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        if not offline and is_silence(error):
            raise HubError("cannot load the model", where=repository) from error
        hint = "the suite is offline: download the model first, or say `offline: false`" if offline else None
        raise InputError(
            "no such folder, and no such model on the Hub or in its cache", where=repository, hint=hint
        ) from error
