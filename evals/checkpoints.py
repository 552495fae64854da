"""Model folders: what identifies a model, and a manifest written last, so that a damaged folder is known for it."""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..chat_templates.errors import PosttrainError
from ..data_tools.files import garbage_kept, hash_file, hash_json, read_json, read_object, write_json

MANIFEST = "manifest.json"
FINAL = "final"
# What only resuming needs; the names are those that transformers, accelerate and DeepSpeed write.
_RESUME_STATE = re.compile(
    r"^(optimizer|scheduler|scaler|progress|rollout_state)[^/]*\.(pt|bin)$|^(rng_state|random_states)[^/]*\.(pth|pkl)$|^(trainer_state|watchdog)\.json$"
    r"|^training_args\.bin$|^(global_step\d+|optimizer_\d+|pytorch_model_fsdp_\d+)/|^latest$|^zero_to_fp32\.py$"
)
_WEIGHTS = re.compile(r"^(model|adapter_model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)$")
# What decides an answer beside the weights, of the files that transformers, tokenizers, sentencepiece and peft read:
# an unknown JSON file counts, so that at worst a model is scored once more.
_DECISIVE = re.compile(
    r"^(?!(manifest|run|trainer_state|watchdog|leaderboard|best_of_n|parity|.*results)\.json$)[^/]+\.json$"
    r"|^[^/]+\.(py|jinja|model|spm|tiktoken|vocab|codes|bpe)(\.v\d+)?$|^[^/]*(vocab|merges|dict|tokens|bpe)[^/]*\.txt$"
    r"|^(additional_)?chat_templates/[^/]+\.jinja$"
)
_OF_BASE = re.compile(r"^((generation_)?config|adapter_config|head|.*quant.*|.*\.index)\.json$|\.py$")
_ADAPTER = "adapter_config.json"
_HUB_ID = re.compile(r"\w[\w.\-]*(/[\w.\-]+)?")
# Keys of JSON files that no answer depends on: where a model came from, and which version wrote it.
_IDLE_KEYS = {"_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "peft_version", "inference_mode"}
_IDLE_KEYS |= {"is_local", "local_files_only", "tokenizer_file", "special_tokens_map_file"}
_DEPTH = 8  # adapters on adapters
CHANGED_BASE = "the adapter's base is not what the adapter was trained on: it has changed since"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint folder held when its save was complete.

    Attributes:
        step: The optimiser step of the save.
        resumable: Whether training can go on from here (false for weights alone).
        files: Size and SHA-256 of every file, by its path relative to the folder.
        weights: The hash that identifies the weights, whatever the folder is called.
        model: The hash that identified the whole model (:func:`model_hash`); empty in manifests of older versions.
    """

    step: int
    resumable: bool
    files: dict[str, dict[str, Any]]
    weights: str
    schema: int = 1
    model: str = ""


def write_manifest(folder: Path, *, step: int, resumable: bool) -> Manifest:
    """Hashes the model's files in a folder and writes its manifest; run folders' logs and checkpoints are left out."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not _belongs_to_run(name):
            files[name] = {"size": path.stat().st_size, "sha256": hash_file(path)}
    model = _identify(folder, {name: entry["sha256"] for name, entry in files.items()})
    manifest = Manifest(step, resumable, files, _combine(files), model=model)
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def _belongs_to_run(name: str) -> bool:
    """Says whether a file of a run folder is not part of the final model that lies beside it."""
    top = name.split("/")[0]
    run_files = (
        MANIFEST,
        "run.json",
        "parity.json",
        "log.jsonl",
        "watchdog.jsonl",
        "profile",
        "scores.jsonl",
        "judgments.jsonl",
        "samples",
        "README.md",
    )
    return top in run_files or top.startswith((".", "checkpoint-"))


def _combine(files: dict[str, dict[str, Any]]) -> str:
    """Returns one hash over the weight files (and the adapter's configuration, which says how to apply them)."""
    digest = hashlib.sha256()
    for name in sorted(files):
        if _WEIGHTS.match(name) or name == "adapter_config.json":
            digest.update(f"{name} {files[name]['sha256']}\n".encode())
    return digest.hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """Returns a folder's manifest, or None if there is none or it cannot be read."""
    try:
        manifest = Manifest(**json.loads((folder / MANIFEST).read_text()))
        sizes = [(int(entry["size"]), entry["sha256"] + "") for entry in manifest.files.values()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return manifest if sizes and isinstance(manifest.step, int) and isinstance(manifest.weights, str) else None


def remove(folder: Path) -> None:
    """Removes a checkpoint: its manifest first, without which a half-removed folder is never taken for a whole one."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def verify(folder: Path, *, resume_state: bool = True) -> list[str]:
    """Compares a folder with its manifest, byte for byte.

    Args:
        folder: The checkpoint.
        resume_state: Whether optimizer, scheduler and random states must be whole too; scoring needs none of them.

    Returns:
        What is wrong, a clause for each damaged file; empty if the folder is whole.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return ["the folder is empty"]
    manifest = read_manifest(folder)
    if manifest is None:
        return [f"{MANIFEST} is missing or unreadable, so the save did not finish"]
    problems = []
    for name, entry in manifest.files.items():
        path = folder / name
        if not resume_state and _RESUME_STATE.match(name):
            continue
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != entry["size"]:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {entry['size']}")
        elif hash_file(path) != entry["sha256"]:
            problems.append(f"{name} has changed since it was saved")
    return problems


def weights_hash(folder: Path) -> str:
    """Returns the hash that identifies a model folder's weights.

    Raises:
        PosttrainError: The folder holds no weights, so nothing could tell it from another such folder.
    """
    names = [path.name for path in folder.iterdir() if _WEIGHTS.match(path.name) or path.name == _ADAPTER]
    if not any(_WEIGHTS.match(name) for name in names):
        raise PosttrainError("the folder holds no weights", where=str(folder), hint="expected model*.safetensors")
    known = _unchanged(folder)
    return _combine({name: {"sha256": known.get(name) or _hash(folder / name)} for name in names})


def model_hash(folder: Path) -> str:
    """Returns the hash that identifies a model: the contents of every file that decides what it answers.

    Those are its weights, configuration, generation configuration, tokenizer, chat templates and code, and of an
    adapter also its base's; not what the folder is called, how its JSON is laid out, or records of how it was made.
    An adapter whose base is gone is known by what its manifest says of the time when both were there.

    Raises:
        PosttrainError: The folder holds no weights.
    """
    weights_hash(folder)
    manifest = read_manifest(folder)
    base = base_of(folder)
    if base and base.folder is None and manifest is not None and manifest.model and is_unchanged(folder):
        return manifest.model
    return _identify(folder, _unchanged(folder))


@dataclass(frozen=True)
class Base:
    """What an adapter was trained on.

    Attributes:
        name: A folder or a Hub id; empty if the adapter names none.
        revision: Of the Hub repository; the very commit where that is on this machine.
        folder: Where its files lie, or None if they are not on this machine.
    """

    name: str
    revision: str | None
    folder: Path | None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def base_of(folder: Path) -> Base | None:
    """Returns the base of an adapter, which loading and identity share; what is no adapter has none.

    A base is named relative to the adapter's folder, to the working directory, or by its Hub id. One that was moved
    with the adapter is found where it now lies, if the adapter's manifest proves that it is the same.
    """
    if not (folder / _ADAPTER).is_file():
        return None
    adapter = read_object(folder / _ADAPTER)
    name, revision = str(adapter.get("base_model_name_or_path") or ""), adapter.get("revision")
    if name and (folder / name).is_dir():
        return Base(str(folder / name), None, folder / name)
    found = find_model(name, revision)
    if found.folder is None and (moved := _moved(folder, Path(name))) is not None:
        return Base(str(moved), None, moved)
    return found


def find_model(name: str, revision: str | None) -> Base:
    """Finds the files of a model on this machine by its folder or Hub id, and the commit that a revision is there."""
    if name and Path(name).is_dir():
        return Base(name, None, Path(name))
    if _HUB_ID.fullmatch(name):
        from huggingface_hub import try_to_load_from_cache

        for file in ("config.json", _ADAPTER):
            with contextlib.suppress(ValueError):  # no name that the Hub would take
                if isinstance(cached := try_to_load_from_cache(name, file, revision=revision), str):
                    return Base(name, Path(cached).parent.name, Path(cached).parent)
    return Base(name, revision, None)


def _moved(folder: Path, base: Path) -> Path | None:
    """Returns where a base now lies to which the end of its old path leads from a folder that holds the adapter."""
    manifest = read_manifest(folder)
    if not base.is_absolute() or manifest is None or not manifest.model:
        return None
    known, ups = _unchanged(folder), folder.absolute().parents
    for tail in (base.parts[start:] for start in range(1, len(base.parts))):
        for place in (up.joinpath(*tail) for up in ups):
            whole = (place / "config.json").is_file() and not (place / _ADAPTER).is_file()
            if whole and _identify(folder, known, base=Base(str(place), None, place)) == manifest.model:
                return place
    return None


def is_unchanged(folder: Path) -> bool:
    """Says whether the files of a folder that decide answers are, byte for byte, what its manifest says.

    An adapter's base is none of them.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    held = {name for name in _names(folder) if _WEIGHTS.match(name) or _DECISIVE.match(name)}
    listed = {name for name in manifest.files if _WEIGHTS.match(name) or _DECISIVE.match(name)}
    return held == listed and all(_hash(folder / name) == manifest.files[name]["sha256"] for name in held)


def base_has_changed(folder: Path) -> bool:
    """Says whether an adapter's base lies here and is not what the adapter was saved on, as its manifest tells.

    A base on the Hub is told by its revision; of an adapter that was itself changed since, nothing is known.
    """
    manifest, base = read_manifest(folder), base_of(folder)
    if manifest is None or not manifest.model or base is None or base.folder != Path(base.name):
        return False
    return is_unchanged(folder) and _identify(folder, _unchanged(folder)) != manifest.model


def other_than_base(folder: Path, name: str, revision: str | None = None) -> str | None:
    """Says how a model is not what an adapter was trained on, wherever the two lie; None if it is, or may be.

    The weights tell, however they are sharded; where the base's are not here, the adapter's manifest; without one, two
    Hub ids. A Hub id without a revision, which is all that peft writes of a base, may be any of the repository's.

    Args:
        folder: The adapter's.
        name: The model's folder or Hub id.
        revision: The model's, of a Hub repository.
    """
    base, model, manifest = base_of(folder), find_model(name, revision), read_manifest(folder)
    if base is None or not base.name:
        return None
    if base.name == name and read_object(folder / _ADAPTER).get("revision") is None:
        return None
    if base.folder and model.folder:
        same = base.folder.samefile(model.folder) or _same_weights(base.folder, model.folder)
        if same is not None:
            return None if same else f"it names {base} as its base, and the weights of {model} are others"
    elif model.folder and any(map(_WEIGHTS.match, _names(model.folder))) and manifest and manifest.model:
        of_model = Base(str(model.folder), None, model.folder)
        if is_unchanged(folder):
            same = _identify(folder, _unchanged(folder), base=of_model) == manifest.model
            return None if same else f"it names {base} as its base, and {model} is not what its manifest knows as that"
    on_hub = all(_HUB_ID.fullmatch(one.name) and not Path(one.name).is_dir() for one in (base, model))
    return f"it names {base} as its base, and not {model}" if on_hub and base.name != name else None


def _same_weights(one: Path, other: Path) -> bool | None:
    """Says whether the tensors that two models have in common are the same; None if none can be compared."""
    import torch
    from safetensors import SafetensorError, safe_open

    compared = None
    with contextlib.suppress(SafetensorError), contextlib.ExitStack() as files:
        held: list[dict[str, Any]] = [{}, {}]
        for folder, found in zip((one, other), held, strict=True):
            for path in sorted(folder.glob("model*.safetensors")):
                file = files.enter_context(safe_open(path, "pt"))
                found.update(dict.fromkeys(file.keys(), file))
        for name in held[0].keys() & held[1].keys():
            first, second = (found[name].get_tensor(name) for found in held)
            if first.dtype != second.dtype:
                first, second = first.float(), second.float()
            if not torch.equal(first, second):
                return False
            compared = True
    return compared


def base_hash(folder: Path) -> str:
    """Returns the hash of what an adapter needs of a base: its weights and configuration, and no tokenizer."""
    return _identify(folder, _unchanged(folder), _OF_BASE)


def tokenizer_hash(folder: Path) -> str:
    """Returns the hash of the files that a folder's tokenizer is made from, its chat templates included.

    The configuration is one of them: it may name the kind of tokenizer.
    """
    names = [name for name in _names(folder) if _DECISIVE.match(name) and not _OF_BASE.search(name)]
    names += ["config.json"] if (folder / "config.json").is_file() else []
    return hash_json({name: content_hash(folder / name) for name in names})


def _identify(
    folder: Path,
    known: Mapping[str, str],
    decisive: re.Pattern[str] = _DECISIVE,
    depth: int = 0,
    base: Base | None = None,
) -> str:
    """Returns the hash of a model, some of whose files' hashes are known, on its own base or another one."""
    parts: dict[str, str] = {}
    for name in _names(folder):
        if _WEIGHTS.match(name):
            parts[name] = known.get(name) or _hash(folder / name)
        elif decisive.search(name):
            parts[name] = content_hash(folder / name)
    base = base or (base_of(folder) if depth < _DEPTH else None)
    if base is not None:
        place = base.folder
        known_as = f"{base.name}@{base.revision or 'main'}"
        parts["base"] = _identify(place, _unchanged(place), _OF_BASE, depth + 1) if place else known_as
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _names(folder: Path) -> list[str]:
    """Returns the files of a model folder, by their paths within it; those in a run's other folders are none of it."""
    within = [*folder.iterdir(), *folder.glob("*chat_templates/*")]
    return sorted(path.relative_to(folder).as_posix() for path in within if path.is_file() and path.name[0] != ".")


def _unchanged(folder: Path) -> dict[str, str]:
    """Returns the hashes in a folder's manifest that hold still: of files not touched since it was written."""
    manifest = read_manifest(folder)
    if manifest is None:
        return {}
    written = (folder / MANIFEST).stat().st_ctime_ns
    found = {}
    for name, entry in manifest.files.items():
        status = (folder / name).stat() if (folder / name).is_file() else None
        if status and status.st_size == entry["size"] and status.st_ctime_ns < written:
            found[name] = entry["sha256"]
    return found


def _hash(path: Path) -> str:
    """Returns the SHA-256 of a file, read once while nobody touches it."""
    status = path.stat()
    return _hash_once(os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(4096)
def _hash_once(path: str, *_: int) -> str:
    return hash_file(Path(path))


@dataclass(frozen=True)
class _Json:
    """A JSON file, the same as any other of its name and bytes: the checkpoints of a run share most of theirs."""

    name: str
    digest: str
    path: Path = field(compare=False)


def content_hash(path: Path) -> str:
    """Returns the hash of what a file says: of JSON its values, but for keys that decide nothing."""
    digest = _hash(path)
    return _values(_Json(path.name, digest, path)) if path.suffix == ".json" else digest


@functools.lru_cache(1024)
@garbage_kept()
def _values(file: _Json) -> str:
    value = read_json(file.path)
    if value is None:
        return file.digest
    if file.name == _ADAPTER and isinstance(value, dict):
        value = {key: _unordered(item) for key, item in value.items()}
        value = {key: item for key, item in value.items() if key not in ("base_model_name_or_path", "revision")}
    decides = file.name.endswith("config.json")
    return hash_json(_decisive(value, deep=file.name == "config.json") if decides else value)


def _unordered(value: Any) -> Any:
    """Sorts a list of names, which peft writes from a set."""
    return sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value


def _decisive(value: Any, *, deep: bool) -> Any:
    """Leaves the idle keys out of a configuration, and of those that it holds."""
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if key not in _IDLE_KEYS}
    return {key: _decisive(item, deep=True) for key, item in kept.items()} if deep else kept


def step_of(folder: Path) -> int | None:
    """Returns the step in the name of a ``checkpoint-<step>`` folder, or None for any other name."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match[1]) if match else None


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Returns the ``checkpoint-<step>`` folders of a run, by step."""
    found = [path for path in run_dir.glob("checkpoint-*") if path.is_dir() and step_of(path) is not None]
    return sorted(found, key=lambda path: step_of(path) or 0)
