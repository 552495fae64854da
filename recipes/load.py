"""From a YAML file and ``a.b=c`` overrides to a frozen recipe, or to every problem at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..data_tools.files import hash_json
from ..data_tools.specfile import (
    Document,
    KeyPath,
    load_document,
    parse_scalar,
    raise_if_problems,
    replace_references,
    validate,
)
from . import trainer_fields
from .errors import RecipeError
from .inputs import find_inputs
from .schema import Recipe
from .stages import STAGE_SECTIONS, STAGES, Stage

# What a run is called, where it lies and how it is scored do not change what is trained.
_NOT_IDENTITY = ("name", "output_dir", "score")
_PATH_KEYS = ("path", "name_or_path", "tokenizer", "chat_template", "suite", "model")


@dataclass(frozen=True)
class Loaded:
    """A recipe with what is known of its origin.

    Attributes:
        recipe: The validated recipe; the paths in it are resolved.
        values: The same as plain values before references and paths were resolved: what ``run.json`` records.
        path: The YAML file.
        overrides: The overrides as typed.
        references: Output folders of a pipeline's earlier steps.
    """

    recipe: Recipe
    values: dict[str, Any]
    path: Path
    overrides: tuple[str, ...]
    references: Mapping[str, Path]

    @property
    def name(self) -> str:
        """The run's name in reports."""
        return self.recipe.name or self.path.stem

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that identify what is trained."""
        return hash_json({key: value for key, value in self.values.items() if key not in _NOT_IDENTITY})


def load(path: Path, overrides: Sequence[str] = (), references: Mapping[str, Path] | None = None) -> Loaded:
    """Reads, merges and checks a recipe.

    Args:
        path: The YAML file.
        overrides: ``dotted.key=value`` strings; values are read as YAML.
        references: Output folders of a pipeline's earlier steps, which ``@name`` stands for.

    Raises:
        SpecError: With every problem found.
        RecipeError: An override is not of the form ``key=value``.
    """
    document = load_document(path)
    for override in overrides:
        apply_override(document, override)
    stage = STAGES.get(str(document.value.get("stage")))
    trainer = document.value.setdefault("trainer", {})
    if stage and isinstance(trainer, dict):
        document.value["trainer"] = {**stage.defaults, **trainer}
        _check_trainer(document, stage.config, stage.owned, trainer)
    if stage:
        _check_sections(document, stage)
    values = document.value
    replace_references(document, references or {})
    find_inputs(document, references or {})
    recipe = validate(Recipe, document, raise_problems=False)
    raise_if_problems(document)
    assert recipe is not None, "no problem was reported, so it validated"
    return Loaded(recipe, values, path, tuple(overrides), dict(references or {}))


def apply_override(document: Document, override: str) -> None:
    """Sets one key of the document from ``a.b[0].c=value`` (or ``a.b.0.c=value``)."""
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise RecipeError(f"override '{override}' is not of the form key=value")
    try:
        value = parse_scalar(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override '{override}': the value is not valid YAML") from error
    parts = name.replace("[", ".").replace("]", "").split(".")
    key: KeyPath = tuple(int(part) if part.isdigit() else part for part in parts)
    target = document.value
    for part in key[:-1]:
        if isinstance(target, dict) and not isinstance(target.get(part), dict | list):
            target[part] = {}
        target = _item(document, target, part, override)
    _set(document, target, key[-1], _from_here(value) if key[-1] in _PATH_KEYS else value, override)
    document.overrides[key] = override


def _item(document: Document, target: Any, part: str | int, override: str) -> Any:
    """Returns what a dict or list holds at a key or index."""
    try:
        return target[part]
    except (KeyError, IndexError, TypeError) as error:
        raise RecipeError(f"override '{override}': {document.path} has no place [{part}] there") from error


def _set(document: Document, target: Any, part: str | int, value: Any, override: str) -> None:
    """Sets a key of a dict, new or old, or an item that a list already has."""
    if not isinstance(target, dict):
        _item(document, target, part, override)
    target[part] = value


def _from_here(value: Any) -> Any:
    """Makes a path typed on the command line absolute: it is meant from where the user stands, not from the recipe."""
    return str(Path(value).absolute()) if isinstance(value, str) and Path(value).exists() else value


def _check_sections(document: Document, stage: Stage) -> None:
    """Adds a problem for each section that the stage does not have, or needs and lacks."""
    name = document.value["stage"]
    for key in sorted(STAGE_SECTIONS & document.value.keys() - stage.sections):
        having = ", ".join(other for other, its in STAGES.items() if key in its.sections)
        document.problem((key,), f"is not a section of the stage {name}", f"stages that have it: {having}")
    for key in sorted(stage.required):
        if not document.value.get(key):
            document.problem(("stage",), f"the stage {name} needs the section {key}")


def _check_trainer(document: Document, config: str, owned: Mapping[str, str], trainer: dict[str, Any]) -> None:
    """Adds the problems of the ``trainer`` section."""
    for key in sorted(set(trainer) & set(owned)):
        document.problem(("trainer", key), "is not for the trainer section", owned[key])
    rest = {key: value for key, value in trainer.items() if key not in owned}
    for key, what, hint in trainer_fields.problems(rest, trainer_fields.fields_of(config)):
        document.problem(("trainer", key), what, hint)
