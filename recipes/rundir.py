"""The run folder: who it belongs to, where a run may resume, what is recorded of it."""

import contextlib
import importlib.metadata
import json
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..chat_templates.errors import first_line
from ..data_tools.errors import DataError
from ..data_tools.files import hash_file, write_atomic, write_json
from ..data_tools.progress import Say
from ..data_tools.sources import content_hash, is_hub
from ..data_tools.spec import SourceSpec
from ..evals import checkpoints
from ..evals.records import now
from ..evals.runs import RUN_FILE, is_closed, read_record, run_of
from . import faults
from .errors import RunFolderError
from .load import Loaded, recipe_hash

LOG = "log.jsonl"
CARD = "README.md"
_PACKAGES = ("posttrain", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "lm_eval")


def claim(loaded: Loaded, *, processes: int, force: bool = False) -> dict[str, Any]:
    """Opens the run folder for a recipe: writes ``run.json`` in a new one, or proves that an old one is the recipe's.

    Args:
        loaded: The recipe.
        processes: How many processes train.
        force: Take over a folder of a different recipe: its checkpoints are resumed from.

    Returns:
        The record, already written.

    A folder in which nothing was trained may be taken over, by a mended recipe or with mended data.

    Raises:
        RunFolderError: The folder was made by a different recipe, holds files of other origin, or a checkpoint that
            another number of processes trained.
    """
    run_dir = Path(loaded.recipe.output_dir)
    old = read_record(run_dir)
    if old:  # an older version may have hashed a recipe in another way
        old = {**old, "recipe_hash": recipe_hash(old.get("recipe") or {})}
    if old and not _holds_work(run_dir):  # what a run left that saved no step is cleared away
        old = {}
        shutil.rmtree(run_dir / "checkpoint-0", ignore_errors=True)
        for name in (LOG, CARD, faults.FILE):
            (run_dir / name).unlink(missing_ok=True)
    hint = "choose another output_dir, or go on here with --force"
    if run_dir.is_dir() and not (run_dir / RUN_FILE).exists() and not force:
        strangers = sorted(path.name for path in run_dir.iterdir() if not path.name.startswith("."))
        if strangers:
            raise RunFolderError(f"the folder holds {', '.join(strangers[:3])}", where=str(run_dir), hint=hint)
    origin = origin_of(loaded)
    steps = [f"--step={name}={folder}" for name, folder in loaded.references.items()]
    if old and not force and (change := change_since(old, origin) or _other_processes(old, loaded, processes)):
        raise RunFolderError(change, where=str(run_dir), hint=hint)
    record = {
        "schema": 1,
        "name": loaded.name,
        "stage": loaded.recipe.stage,
        **origin,
        "recipe_path": str(loaded.path.absolute()),
        "seed": loaded.recipe.trainer.get("seed", 42),
        "data": old.get("data"),
        "template": old.get("template"),
        "versions": versions(),
        "git": git_revision(loaded.path.parent),
        "processes": processes,
        "references": {name: str(folder) for name, folder in loaded.references.items()},
        "command": shlex.join(["posttrain", "train", str(loaded.path), *loaded.overrides, *steps]),
        "created": old.get("created") or now(),
        "finished": old.get("finished") if old.get("recipe_hash") == loaded.hash else None,
    }
    write_json(run_dir / RUN_FILE, record)
    return record


def _holds_work(run_dir: Path) -> bool:
    """Says whether a folder holds anything that came of training or scoring; weights before the first step do not."""
    trained = any(checkpoints.step_of(folder) for folder in checkpoints.list_checkpoints(run_dir))
    names = (checkpoints.MANIFEST, "adapter", "scores.jsonl", "judgments.jsonl", "samples")
    return trained or any((run_dir / name).exists() for name in names) or any(run_dir.glob("*.safetensors"))


def _other_processes(old: dict[str, Any], loaded: Loaded, processes: int) -> str | None:
    """Says that there is a checkpoint of other steps than now, by which a trainer counts rows and the run's end."""
    before, folders = old.get("processes"), checkpoints.list_checkpoints(Path(loaded.recipe.output_dir))
    resumable = any(found and found.resumable and found.step for found in map(checkpoints.read_manifest, folders))
    if before in (None, processes) or not resumable:
        return None
    rows = loaded.option("per_device_train_batch_size") * loaded.option("gradient_accumulation_steps")
    return (
        f"trained with --processes {before}, {rows * before} rows a step; --processes {processes} would make it "
        f"{rows * processes}"
    )


def origin_of(loaded: Loaded) -> dict[str, Any]:
    """Returns the part of a record that says what is trained: recipe, models, a tokenizer of its own, code."""
    start, tokenizer = loaded.recipe.model.name_or_path, Path(loaded.recipe.model.tokenizer or "")
    return {
        "recipe": loaded.values,
        "recipe_hash": loaded.hash,
        "parent": parent_of(start),
        "models": [parent_of(name) for name in loaded.recipe.models if name != start],
        "tokenizer": checkpoints.tokenizer_hash(tokenizer) if tokenizer.is_dir() and tokenizer.name else None,
        "code": [[Path(file).name, hash_file(Path(file))] for file in loaded.recipe.code],
    }


def change_since(record: dict[str, Any], origin: dict[str, Any]) -> str | None:
    """Says in what a recorded run differs from what ``origin_of`` gives now; None if in nothing."""
    if record.get("recipe_hash") != origin["recipe_hash"]:
        changed = _differences(record.get("recipe", {}), origin["recipe"])
        return f"the folder belongs to a different recipe ({'; '.join(changed[:5])})"
    parent = origin["parent"]
    if not _same_parent(record.get("parent"), parent):
        return f"the model it starts from has changed ({'; '.join(_differences(record.get('parent'), parent)[:3])})"
    models = record.get("models") or []
    if len(models) != len(origin["models"]) or not all(map(_same_parent, models, origin["models"])):
        return "a teacher, reward model or critic has changed"
    for (name, new), (_, old) in zip(origin["code"], record.get("code", ()), strict=False):  # older records have none
        if new != old:
            return f"changed since the run began: {name}"
    if record.get("tokenizer") not in (None, origin["tokenizer"]):
        return "changed since the run began: the tokenizer"
    return None


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Lists where two recipes differ, as ``trainer.learning_rate: 1e-05 -> 2e-05``."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted(old.keys() | new.keys()):
            found += _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return found
    return [] if old == new else [f"{key}: {old} -> {new}"]


def parent_of(name_or_path: str | None) -> dict[str, Any] | None:
    """Describes the model a run starts from: a run's folder, one of its checkpoints, or any other model."""
    if name_or_path is None:
        return None
    folder = Path(name_or_path)
    if not folder.is_dir():
        return {"name": name_or_path, "path": None, "weights_hash": None, "model_hash": None, "recipe_hash": None}
    run_dir = run_of(folder)
    record = read_record(run_dir)
    return {
        "name": record.get("name", folder.name),
        "path": str(folder),
        "weights_hash": checkpoints.weights_hash(folder),
        "model_hash": checkpoints.model_hash(folder),
        "recipe_hash": record.get("recipe_hash"),
    }


def _same_parent(old: dict[str, Any] | None, new: dict[str, Any] | None) -> bool:
    """Says whether two runs start from the same model, wherever it lies, or the same Hub id."""
    # Records of older versions know a model by its weights alone.
    if old is None or new is None:
        return old is new
    known = next((key for key in ("model_hash", "weights_hash") if new[key] and old.get(key)), None)
    key = known or ("weights_hash" if new["weights_hash"] else "name")
    return old.get(key) == new[key]


def check_inputs(old: dict[str, Any], new: dict[str, Any], loaded: Loaded, *, force: bool = False) -> None:
    """Refuses a run whose data or template is no longer what it was trained on.

    Args:
        old: Its record.
        new: The record's ``data`` and ``template`` as they are now; what is not there was not looked at.
        loaded: Its recipe.
        force: Whether it goes on all the same.

    Raises:
        RunFolderError: Rows or template have changed since the run began.
    """
    hint = "restore it, choose another output_dir, or go on with --force"
    before = dict(_inputs(old, loaded))
    changed = [what for what, value in _inputs(new, loaded) if before.get(what) not in (None, value)]
    if changed and not force:
        what = f"changed since the run began: {', '.join(changed)}"
        raise RunFolderError(what, where=loaded.recipe.output_dir, hint=hint)


def _inputs(record: dict[str, Any], loaded: Loaded) -> Iterator[tuple[str, str | None]]:
    """Yields what a record says that data and template are known by."""
    for split, sources in _splits(loaded):
        part = (record.get("data") or {}).get(split) or {}
        if "fingerprint" in part:
            yield f"the rows of data.{split}", part["fingerprint"]
        found = zip(sources, part.get("contents") or (), strict=False)
        yield from ((f"{source.path} (data.{split})", content) for source, content in found if content)
    if "template" in record:
        yield "the chat template", (record["template"] or {}).get("fingerprint")


def contents_of(loaded: Loaded) -> dict[str, Any]:
    """Describes as a record's ``data`` what local sources hold; None for one that is gone, which is not another."""

    def content(source: SourceSpec) -> str | None:
        with contextlib.suppress(DataError):
            return None if is_hub(source, loaded.path.parent) else content_hash(source, loaded.path.parent)

    return {split: {"contents": [content(source) for source in sources]} for split, sources in _splits(loaded)}


def _splits(loaded: Loaded) -> tuple[tuple[str, Sequence[SourceSpec]], ...]:
    return ("train", loaded.recipe.data.train), ("eval", loaded.recipe.data.eval or ())


def find_resume(run_dir: Path, say: Say = print, *, best: bool = False) -> Path | None:
    """Finds the newest checkpoint whose every file is as it was saved; says which ones it leaves, and why.

    Args:
        run_dir: The run folder.
        say: Takes a line for the user.
        best: Whether the run ends with its best checkpoint, which must then be whole too.

    Returns:
        It, or None to begin at step 0.
    """
    damaged, weights_only = False, ""
    for folder in reversed(checkpoints.list_checkpoints(run_dir)):
        problems = checkpoints.verify(folder)
        manifest = checkpoints.read_manifest(folder)
        if manifest is not None and not problems:
            if not manifest.resumable:
                weights_only = weights_only or (folder.name if manifest.step else "")
                continue
            problems = _unreadable(folder, manifest, best=best)
        if not problems:
            say(f"resuming from {folder}")
            return folder
        damaged = True
        say(f"leaving damaged checkpoint {folder}: {'; '.join(problems)}")
    if weights_only:
        say(f"{weights_only} holds weights only (trainer.save_only_model): starting from the first step")
    elif damaged:
        say("no whole checkpoint is left: starting from the first step")
    return None


def _unreadable(folder: Path, manifest: checkpoints.Manifest, *, best: bool) -> list[str]:
    """Names the files of a checkpoint that are as its manifest says and yet no state to go on from."""
    # Nothing that a file says is run: pickles may hold tensors, plain values and DeepSpeed's own, and no other
    # object.
    from safetensors import SafetensorError, safe_open

    problems = []
    for name in manifest.files:
        path = folder / name
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix in (".pt", ".pth"):
                _read_pickle(path)
            elif name == "latest" and not any(other.startswith(f"{path.read_text()}/") for other in manifest.files):
                raise ValueError("it names no folder of this checkpoint")
        except (OSError, ValueError, SafetensorError) as error:
            problems.append(f"{name} cannot be read ({first_line(error)})")
    return problems or _wrong_state(folder, manifest, best=best)


# What DeepSpeed puts into its `global_step*/` beside tensors, and loads as plain pickles, whatever they may say.
_DEEPSPEED = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}


def _read_pickle(path: Path) -> None:
    """Reads all but the numbers of a file of torch's; of DeepSpeed's, which hold its own classes, their names alone."""
    import pickle

    import torch
    from transformers.trainer_pt_utils import safe_globals

    try:
        with safe_globals():
            if path.parent.name.startswith("global_step"):
                if set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - _DEEPSPEED:
                    raise pickle.UnpicklingError
            else:
                torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError("it holds more than tensors and plain values") from error
    except (EOFError, RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(first_line(error)) from error


def _wrong_state(folder: Path, manifest: checkpoints.Manifest, *, best: bool) -> list[str]:
    """Says what in a checkpoint's ``trainer_state.json`` does not belong to it."""
    path = folder / "trainer_state.json"
    if not path.is_file():
        return [f"{path.name} is missing"]
    state = json.loads(path.read_text())
    if not isinstance(state, dict) or state.get("global_step") != manifest.step:
        return [f"{path.name} is not that of step {manifest.step}"]
    if not isinstance(state.get("log_history"), list) or not all(
        isinstance(line, dict) for line in state["log_history"]
    ):
        return [f"{path.name} holds no log"]
    number = state.get("best_global_step")
    if not best or not number or number == manifest.step:
        return []
    problems = checkpoints.verify(folder.parent / f"checkpoint-{number}", resume_state=False)
    return [f"the best checkpoint before it, checkpoint-{number}, is damaged: {problems[0]}"] if problems else []


def log_line(entry: dict[str, Any]) -> str:
    """Returns a line of the log for what the trainer logged; what is no finite number is written as its name."""
    line = {"step": entry["step"]}  # it comes first
    for key, value in entry.items():
        line[key] = str(value) if isinstance(value, float) and not math.isfinite(value) else value
    return json.dumps(line)


def rewind_log(run_dir: Path, checkpoint: Path | None) -> None:
    """Puts the log back to what it was when a checkpoint was saved, from the checkpoint's own copy of it."""
    if checkpoint is None:
        (run_dir / LOG).unlink(missing_ok=True)
        return
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    write_atomic(run_dir / LOG, "".join(log_line(entry) + "\n" for entry in history))


def drop_checkpoints(run_dir: Path, *, since: int) -> None:
    """Removes the checkpoints of a step and of later ones."""
    for folder in checkpoints.list_checkpoints(run_dir):
        if (checkpoints.step_of(folder) or 0) >= since:
            checkpoints.remove(folder)


def write_card(folder: Path) -> None:
    """Writes the model card of a run's folder or of one below it, in place of what TRL and PEFT write."""
    from ..evals.model_card import card_of_record

    run_dir = run_of(folder)
    record = read_record(run_dir)
    adapter = (folder / "adapter_config.json").is_file()
    write_atomic(folder / CARD, card_of_record(record, step=checkpoints.step_of(folder), adapter=adapter))


def saved_step(run_dir: Path, folder: Path, *, last: int) -> int:
    """Returns the step whose weights a folder holds: that of the checkpoint with the same weights, else the last."""
    saved = checkpoints.weights_hash(folder)
    manifests = [checkpoints.read_manifest(checkpoint) for checkpoint in checkpoints.list_checkpoints(run_dir)]
    return max((manifest.step for manifest in manifests if manifest and manifest.weights == saved), default=last)


def is_finished(run_dir: Path) -> bool:
    """Says whether a run ended and its final model is still whole."""
    return is_closed(run_dir) and not checkpoints.verify(run_dir)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result depends on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_revision(folder: Path) -> dict[str, Any] | None:
    """Returns the commit of the checkout that a recipe lies in and whether it has changes; None outside of one."""

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
        except FileNotFoundError:  # git is not installed
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    revision = git("rev-parse", "HEAD")
    return None if revision is None else {"revision": revision, "dirty": bool(git("status", "--porcelain"))}
