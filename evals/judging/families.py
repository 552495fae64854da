"""Which models are kin: a judge tends to prefer the answers of its own family.

Panickssery, Bowman and Feng, "LLM evaluators recognize and favor their own generations" (2024, arXiv:2404.13076).
"""

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...chat_templates.errors import PosttrainError
from ...data_tools.files import read_object
from ..records import ScoreStore
from ..runs import known_record, origins_of, place_of

_DEEPEST = 20  # runs from a model to its first ancestor; more is a circle
_SIZE = re.compile(r"^v?\d+([.x]\d+)*[bmk]?$|^\d+x\d+b$")


@dataclass(frozen=True)
class Family:
    """What a model descends from.

    Attributes:
        names: Family names of the model and of everything it was trained from, such as ``qwen``.
        teachers: Likewise of the models whose predictions it learned.
        rewards: Likewise of its reward models.
        writers: Likewise of the models that wrote rows it was trained on.
        choosers: Likewise of the judges by which such rows were kept.
    """

    names: frozenset[str] = frozenset()
    teachers: frozenset[str] = frozenset()
    rewards: frozenset[str] = frozenset()
    writers: frozenset[str] = frozenset()
    choosers: frozenset[str] = frozenset()

    def __or__(self, other: "Family") -> "Family":
        return Family(*(getattr(self, part.name) | getattr(other, part.name) for part in fields(self)))


# Names that do not begin with their family's, and families that stand inside a name (DeepSeek-R1-Distill-Qwen-7B).
_KIN = {
    "chatgpt": "gpt", "o1": "gpt", "o3": "gpt", "o4": "gpt", "codellama": "llama", "tinyllama": "llama",
    "mixtral": "mistral", "ministral": "mistral", "magistral": "mistral", "codestral": "mistral", "qwq": "qwen",
    "codegemma": "gemma", "medgemma": "gemma", "vicuna": "llama", "zephyr": "mistral",
}  # fmt: skip
_KNOWN = {
    "claude", "command", "deepseek", "falcon", "gemini", "gemma", "glm", "gpt", "granite", "grok", "llama", "mistral",
    "olmo", "phi", "pythia", "qwen", "smollm", "yi",
}  # fmt: skip


def family_named(name: str) -> Family:
    """Returns what a model's name says of its family: ``Qwen/Qwen3-32B-Instruct`` is of ``qwen``.

    The first word without its digits is a family, whatever it is; further words only if they name a known one.
    """
    words = [word for word in re.split(r"[^a-z0-9.]+", name.rstrip("/").rpartition("/")[2].lower()) if word]
    found = [_KIN.get(word) or _KIN.get(_letters(word)) or _letters(word) for word in words if not _SIZE.match(word)]
    return Family(frozenset(f for i, f in enumerate(found) if f and (i == 0 or f in _KNOWN)))


def _letters(word: str) -> str:
    """Returns a word up to its first digit: ``smollm2`` is ``smollm``."""
    return re.split(r"[\d.]", word, maxsplit=1)[0]


def family_of(run_folder: Path, _depth: int = 0) -> Family:
    """Reads what a run's model descends from: its ``run.json``, and those of the runs that it started from.

    A model that a recipe made from nothing founds a family of its own, named after that run. Where nothing else is
    known, ``model_type`` of ``config.json`` stands in; not otherwise, since many families share one architecture.
    """
    record = known_record(run_folder)
    recipe = record.get("recipe")
    if _depth > _DEEPEST or not isinstance(recipe, dict):
        return _of_config(run_folder)
    model = recipe.get("model")
    if isinstance(model, str):  # a plain model that was scored has no recipe but its place
        return _of_reference(model, record, run_folder, _depth)
    model = model if isinstance(model, dict) else {}
    if isinstance(model.get("config"), dict):
        made = f"{record.get('name') or run_folder.name} ({str(record.get('recipe_hash') or '')[:6] or 'new'})"
        family = Family(frozenset({made}))
    else:
        family = _of_reference(model.get("name_or_path"), record, run_folder, _depth)
    rewards = recipe.get("rewards") or []
    models = [reward.get("model") for reward in rewards if isinstance(reward, dict)]
    teacher = recipe.get("teacher")
    taught = [teacher.get("name_or_path")] if isinstance(teacher, dict) else []

    def names(references: list[Any]) -> frozenset[str]:
        given = [reference for reference in references if isinstance(reference, str)]
        return frozenset().union(*(_of_reference(item, record, run_folder, _depth).names for item in given))

    rows = (names(origins_of(record, what)) for what in ("written_by", "judged_by"))
    return family | Family(frozenset(), names(taught), names(models), *rows)


def families_of(folders: Iterable[Path], judge_models: Iterable[str] = ()) -> dict[str, Family]:
    """Returns the families of runs and judges.

    Returns:
        By the hashes of all models and weights that a run has scores of, since two runs may share a name; by the run's
        name; and of judges' models by what judgments call them.
    """
    found: dict[str, Family] = {}
    for folder in folders:
        family = family_of(folder)
        found[str(known_record(folder).get("name") or folder.absolute().name)] = family
        with contextlib.suppress(PosttrainError, OSError):  # a damaged file is for others to tell of
            found |= {name: family for s in ScoreStore(folder).load() for name in (s.model, s.weights_hash)}
    for model in judge_models:
        found.setdefault(model, family_of(Path(model)) if Path(model).is_dir() else family_named(model))
    return found


def kinship(judge: Family, candidate: Family) -> list[str]:
    """Words what a judge and a candidate share, and what the candidate shares with those that trained it."""
    pairs = [
        ("the judge is of the candidate's own family", judge.names & candidate.names),
        ("the judge is of the family of the candidate's teacher", judge.names & candidate.teachers),
        ("the judge is of the family of the candidate's reward model", judge.names & candidate.rewards),
        (
            "the judge is of the family of a model that wrote the candidate's training rows",
            judge.names & candidate.writers,
        ),
        (
            "the judge is of the family of a judge that chose the candidate's training rows",
            judge.names & candidate.choosers,
        ),
        ("the teacher is of the candidate's own family", candidate.names & candidate.teachers),
        ("the reward model is of the candidate's own family", candidate.names & candidate.rewards),
    ]
    return [f"{text} ({', '.join(sorted(shared))})" for text, shared in pairs if shared]


def _of_reference(reference: Any, record: dict[str, Any], folder: Path, depth: int) -> Family:
    """Returns the family of a model as a recipe names it: ``@step``, a folder, or a Hub id."""
    if not isinstance(reference, str) or not reference:
        return Family()
    if (path := place_of(reference, record, folder)) is not None:
        return family_of(path, depth + 1)
    return Family(frozenset({reference[1:]})) if reference.startswith("@") else family_named(reference)


def _of_config(folder: Path) -> Family:
    """Returns what a plain model's folder says of its family."""
    config = read_object(folder / "config.json")
    adapter = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
    for name in (adapter, config.get("_name_or_path"), config.get("model_type")):
        if isinstance(name, str) and name:
            return family_named(name)
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        return family_named(re.sub(r"(?<!^)(?=[A-Z])", "-", str(architectures[0])))
    return family_named(folder.absolute().name)
