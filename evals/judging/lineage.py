"""Whether a reward model has trained a candidate: then its preference says how well it was followed, no more."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..answers import AnswerSet
from ..checkpoints import weights_hash
from ..errors import SuiteError
from ..judges import Judge
from ..targets import RUN_FILE

_DEPTH = 100  # stages that a candidate may have behind it


def refuse_own_reward(judge: Judge, candidate: AnswerSet) -> None:
    """Refuses a reward model that trained a candidate, or a run that the candidate descends from.

    It is recognised by its weights, its folder, its name on the Hub, or as another checkpoint of the same run.

    Raises:
        SuiteError: It did; the error names both.
    """
    if candidate.folder is None:
        return
    mine = _identity(judge.settings.model)
    for run, record in lineage(candidate.folder):
        for used in rewards_of(record):
            if _same(mine, used):
                via = "" if run == candidate.folder else ", which it descends from"
                raise SuiteError(
                    f"the reward model {judge.settings.model} trained {record.get('name') or run.name}{via}, so it "
                    f"cannot judge {candidate.name}",
                    where=f"judge {judge.name}",
                    hint="take a reward model of other data, or another judge",
                )


def lineage(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields a run folder's record, its parent's, and so on, as far as the folders are there."""
    seen: set[Path] = set()
    while len(seen) < _DEPTH:
        record = _record(folder)
        if record is None or folder.resolve() in seen:
            return
        seen.add(folder.resolve())
        yield folder, record
        path = (record.get("parent") or {}).get("path")
        if not path:
            return
        folder = _run_of(Path(path))


def rewards_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the models that rewarded a run, as its record describes them; a gold reward only watched."""
    recipe = record.get("recipe") or {}
    named = {str(reward.get("model")) for reward in recipe.get("rewards") or () if reward.get("model")}
    watched = {str(part["model"]) for part in (recipe.get("gold"),) if part and part.get("model")} - named
    models = [model for model in record.get("models") or () if not _called(model) & watched]
    known = {name for model in models for name in _called(model)}
    return [*models, *({"name": name, "path": name} for name in sorted(named - known))]


def _called(model: dict[str, Any]) -> set[str]:
    return {str(model[key]) for key in ("name", "path") if model.get(key)}


def _identity(model: str) -> dict[str, Any]:
    folder = Path(model)
    if not folder.is_dir():
        return {"name": model, "path": None, "weights_hash": None, "recipe_hash": None}
    record = _record(_run_of(folder)) or {}
    return {
        "name": None,
        "path": str(folder.resolve()),
        "weights_hash": weights_hash(folder),
        "recipe_hash": record.get("recipe_hash"),
    }


def _same(mine: dict[str, Any], used: dict[str, Any]) -> bool:
    path = str(Path(used["path"]).resolve()) if used.get("path") else None
    pairs = [
        (mine["weights_hash"], used.get("weights_hash")),
        (mine["recipe_hash"], used.get("recipe_hash")),
        (mine["path"], path),
        (mine["name"], used.get("name")),
    ]
    return any(a and a == b for a, b in pairs)


def _run_of(folder: Path) -> Path:
    return folder if (folder / RUN_FILE).is_file() else folder.parent


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        value = json.loads((folder / RUN_FILE).read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
