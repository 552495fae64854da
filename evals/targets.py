"""What a path given to ``score`` stands for: the checkpoints of a run, one of them, or a plain model."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..chat_templates.errors import InputError, PosttrainError
from ..data_tools.files import locked, write_json
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
from .records import LOCKS

RUN_FILE = "run.json"


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
            targets.append(_plain_model(str(item), output, offline))
    return list({(target.store, target.folder): target for target in targets}.values()), unfinished


def is_run(path: Path) -> bool:
    """Says whether a folder is a run's: it has a ``run.json`` or checkpoints."""
    return path.is_dir() and ((path / RUN_FILE).is_file() or bool(list_checkpoints(path)))


def is_closed(run_dir: Path) -> bool:
    """Says whether a run came to its end, so that no more checkpoints are to come."""
    return read_record(run_dir).get("finished") is not None


def read_record(run_dir: Path) -> dict[str, Any]:
    """Returns a run folder's record; empty if the folder has none.

    Raises:
        InputError: The record is damaged.
    """
    file = run_dir / RUN_FILE
    try:
        value = json.loads(file.read_bytes()) if file.exists() else {}
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        hint = "restore it, or choose another output folder"
        raise InputError(f"the run's record is damaged: {error}", where=str(file), hint=hint) from error
    return value


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
        if folder.exists() or item.startswith((".", "/")) or not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", item):
            raise InputError("neither a run folder nor a model", where=item)
        folder = _download(item, offline)
    elif not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError("neither a run folder nor a model", where=item, hint=f"expected {RUN_FILE} or config.json")
    return folder


def _plain_model(item: str, output: Path | None, offline: bool) -> Target:
    folder = locate(item, offline=offline)
    if output is None:
        hint = "say -o FOLDER: there each such model gets a run folder of its own"
        raise InputError("the scores of a model that is no run need a place", where=item, hint=hint)
    digest = model_hash(folder)
    with locked(output / LOCKS / "names", wait=True):
        store = _store_of(item, folder, digest, output)
    name = str(read_record(store).get("name") or store.name)
    return Target(store, name, "", FINAL, None, folder, weights_hash(folder), digest, (folder / MANIFEST).is_file())


def _store_of(item: str, folder: Path, digest: str, output: Path) -> Path:
    """Returns the run folder of a plain model, made if need be: one model, one folder, whatever else is called like it.

    It is named as the model's folder is; where that name is taken, by its parent too, and last by what identifies it.
    """
    is_local = Path(item).is_dir()
    place = Path(os.path.normpath(Path(item).absolute()))  # links keep their names, ``..`` has none of its own
    first, source = (place.name, str(place)) if is_local else (item.replace("/", "--"), item)
    names = [first, f"{first}-{digest[:8]}"]
    if is_local and read_record(output / first).get("source", source) != source:
        names.insert(1, f"{place.parent.name}--{first}")

    def fits(name: str) -> bool:
        run = read_record(output / name)
        older = run.get("stage") == "external" and "model_hash" not in run and run.get("recipe") == {"model": item}
        return older or run.get("model_hash") == digest or (not run and (output / name).resolve() != folder.resolve())

    store = output / next((name for name in names if fits(name)), names[-1])
    run = read_record(store)
    if run.get("model_hash") != digest:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        new: dict[str, Any] = {"schema": 1, "name": store.name, "stage": "external", "recipe": {"model": item}}
        new |= {"recipe_hash": "", "data": None, "template": None, "versions": {}, "git": None, "parent": None}
        new |= {"processes": 1, "created": now, "finished": now, "command": ""}
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
        hint = "the suite is offline: download the model first, or say `offline: false`" if offline else None
        raise InputError(
            "no such folder, and no such model on the Hub or in its cache", where=repository, hint=hint
        ) from error
