"""Whether a reward model has trained a candidate: then its preference says how well it was followed, no more."""

from pathlib import Path
from typing import Any

from ..answers import AnswerSet
from ..checkpoints import weights_hash
from ..errors import SuiteError
from ..judges import Judge
from ..runs import known_record, lineage, rewards_of, run_of


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


def _identity(model: str) -> dict[str, Any]:
    folder = Path(model)
    if not folder.is_dir():
        return {"name": model, "path": None, "weights_hash": None, "recipe_hash": None}
    record = known_record(run_of(folder))
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
