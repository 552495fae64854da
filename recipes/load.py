"""From a YAML file and ``a.b=c`` overrides to a frozen recipe, or to every problem at once."""

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from ..data_tools.files import hash_json, read_json
from ..data_tools.functions import function_file
from ..data_tools.specfile import (
    Document,
    KeyPath,
    dotted,
    load_document,
    parse_scalar,
    settled,
    try_model,
    with_references,
)
from ..data_tools.tool import Tool
from . import trainer_fields
from .adapter_types import STATE, TYPES, adapter_problems
from .inputs import find_inputs, find_value
from .schema import Recipe
from .stage_table import STAGE_SECTIONS, STAGES, Stage, stage_of

# What a run is called, where it lies and how it is scored and watched do not change what is trained, unless scores end
# it.
_NOT_IDENTITY = ("name", "output_dir", "score", "watchdog", "profile")
# Keys of what has a fingerprint of its own in a run's record.
_FINGERPRINTED = ("path", "name_or_path", "tokenizer", "chat_template", "model")


@dataclass(frozen=True)
class Loaded:
    """A recipe with what is known of its origin.

    Attributes:
        recipe: The validated recipe; the paths in it are resolved.
        values: The same as plain values before references and paths were resolved: what ``run.json`` records.
        path: The YAML file.
        overrides: The overrides as typed.
        references: Output folders of a pipeline's earlier steps.
        document: Where each key stands.
    """

    recipe: Recipe
    values: dict[str, Any]
    path: Path
    overrides: tuple[str, ...]
    references: Mapping[str, Path]
    document: Document

    @property
    def name(self) -> str:
        """The run's name in reports; where only the folder was chosen for this run, as in a sweep, by that too."""
        name = self.recipe.name or self.path.stem
        chosen = {override.partition("=")[0] for override in self.overrides}
        if "output_dir" not in chosen or "name" in chosen:
            return name
        parts = Path(os.path.normpath(Path(self.recipe.output_dir).absolute())).parts[1:]
        own = next((part for part in reversed(parts) if part != name), name)
        return own if own.startswith(name) else f"{name}-{own}"

    @property
    def stage(self) -> Stage:
        """What must be known of its stage."""
        stage = stage_of({"stage": self.recipe.stage, "objective": self.recipe.objective})
        assert stage is not None, "the recipe has validated"
        return stage

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that identify what is trained."""
        return recipe_hash(self.values)

    def option(self, name: str) -> Any:
        """Returns a trainer field: the recipe's value, or the configuration class's default; None if it has no such."""
        field = trainer_fields.fields_of(self.stage.config).get(name)
        return field and self.recipe.trainer.get(name, field.default)

    @property
    def checkpointing(self) -> bool:
        """Whether activations are recomputed: as the recipe says, never where an adapter's tokens are in a cache."""
        spec, name = self.recipe.adapts, trainer_fields.checkpointing_field(self.recipe.trainer)
        if name is None and spec is not None and spec.kind.cached:
            return False
        return bool(self.option(name or "gradient_checkpointing"))

    def where(self, text: str) -> str:
        """Returns the file and line, or the override, of the key that a message names; the file if it names none."""
        known = {dotted(key): key for key in (*self.document.lines, *self.document.overrides) if key}
        words = [word.strip(".") for word in re.findall(r"[\w.\[\]]+", text)]
        named = [*(word for word in words if "." in word), *(f"trainer.{word}" for word in words), words[0]]
        return self.document.where(next((known[name] for name in named if name in known), ()))


def recipe_hash(values: Mapping[str, Any]) -> str:
    """Returns 16 hexadecimal digits that identify what a recipe trains.

    Of what has a fingerprint of its own (data, models, tokenizers, templates, functions) an absolute path counts by its
    last part alone: the same files may lie elsewhere, and others at the same place.
    """
    trained = {key: value for key, value in values.items() if key not in _NOT_IDENTITY}
    score = values.get("score") or {}
    if score.get("early_stop"):  # where the run ends
        trained["score"] = {key: score.get(key) for key in ("suite", "every", "start", "device", "early_stop")}
    return hash_json(_placeless(trained))


def _placeless(value: Any, key: str = "") -> Any:
    """Leaves the folders out of absolute paths."""
    if isinstance(value, dict):
        return {name: _placeless(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_placeless(item, key) for item in value]
    absolute = isinstance(value, str) and value.startswith("/")
    return Path(value).name if absolute and (key in _FINGERPRINTED or function_file(value)) else value


def load(
    path: Path,
    overrides: Sequence[str] = (),
    references: Mapping[str, Path] | None = None,
    places: Mapping[str, str] | None = None,
) -> Loaded:
    """Reads, merges and checks a recipe.

    Args:
        path: The YAML file.
        overrides: ``dotted.key=value`` strings; values are read as YAML.
        references: Output folders of a pipeline's earlier steps, which ``@name`` stands for.
        places: The ``file:line`` of the overrides that a file holds.

    Raises:
        SpecError: With every problem found.
    """
    document = load_document(path)
    document.places = places or {}
    for override in overrides:
        apply_override(document, override)
    # a path in a recipe leads from the recipe's folder, but these from where the user stands
    known = {name: folder.absolute() for name, folder in (references or {}).items()}
    loaded = _checked(document, overrides, known)
    if document.problems and overrides:
        _blame_overrides(document, path, overrides, known)
    return settled(document, loaded)


def _checked(document: Document, overrides: Sequence[str], references: Mapping[str, Path]) -> "Loaded | None":
    """Adds every problem to the document; returns the recipe if it validates."""
    stage = stage_of(document.value)
    trainer = document.value.setdefault("trainer", {})
    if stage and isinstance(trainer, dict):
        document.value["trainer"] = {**stage.defaults, **trainer}
        for key in sorted(set(trainer) & set(stage.owned)):
            document.problem(("trainer", key), "is not for the trainer section", stage.owned[key])
        rest = {key: value for key, value in trainer.items() if key not in stage.owned}
        for key, what, hint in trainer_fields.problems(rest, trainer_fields.fields_of(stage.config)):
            document.problem(("trainer", key), what, hint)
        new, old = trainer_fields.CHECKPOINTING
        if trainer.get(old) is not None and trainer.get(new, trainer[old]) not in (None, trainer[old]):
            document.problem(("trainer", old), f"is the old name of trainer.{new}, which says otherwise", "drop it")
    if stage:
        name = document.value["stage"]
        for key in sorted(STAGE_SECTIONS & document.value.keys() - stage.sections):
            having = ", ".join(other for other, its in STAGES.items() if key in its.sections)
            document.problem((key,), f"is not a section of the stage {name}", f"stages that have it: {having}")
        for key in sorted(stage.required):
            replaced = key == "rewards" and document.value.get("environment")  # which may score what happens in it
            if not document.value.get(key) and not replaced:
                document.problem(("stage",), f"the stage {name} needs the section {key}")
        _check_adapter(document, stage)
    values = document.value
    document.value = with_references(document, values, references)
    find_inputs(document, references)
    if stage:
        _find_adapter(document, stage, references)
    recipe = try_model(Recipe, document)
    return recipe and Loaded(recipe, values, document.path, tuple(overrides), dict(references), document)


def _check_adapter(document: Document, stage: Stage) -> None:
    """Checks the fields of an adapter, and that it goes with the stage and the trainer's fields."""
    section, trainer = document.value.get("adapter"), document.value.get("trainer")
    if not isinstance(section, dict) or not isinstance(trainer, dict):
        return  # which is told where the recipe is validated
    if "name_or_path" in section:
        for key in sorted(section.keys() - {"name_or_path"}):
            document.problem(("adapter", key), "is said by the adapter that name_or_path names", "drop it")
        return
    for key, what, hint in adapter_problems(section, document.value, headed=stage.headed):
        document.problem(("adapter", key), what, hint)


def _find_adapter(document: Document, stage: Stage, references: Mapping[str, Path]) -> None:
    """Finds the adapter that a run goes on from, and takes its type from its own configuration."""
    from ..evals.models import ADAPTER

    section, trainer = document.value.get("adapter"), document.value.get("trainer")
    name = section.get("name_or_path") if isinstance(section, dict) else None
    if not isinstance(name, str) or not isinstance(trainer, dict) or name.startswith("@"):
        return
    key = ("adapter", "name_or_path")
    places = (Path(name), Path(name) / "adapter")
    folder = next((place for place in places if (place / ADAPTER).is_file()), None)
    if folder is None:
        if not name.startswith(tuple(map(str, references.values())) or "\0"):  # else a step has yet to write it
            document.problem(key, f"there is no adapter in {name}", f"expected {ADAPTER}")
        return
    config = read_json(folder / ADAPTER)
    if not isinstance(config, dict):
        document.problem(key, f"{folder / ADAPTER} cannot be read as JSON")
        return
    kind = str(config.get("peft_type")).lower()
    found = adapter_problems({"type": kind}, document.value, headed=stage.headed)
    problems = [what for _, what, _ in found]
    if (config.get("task_type") == "SEQ_CLS") != stage.headed:
        problems.append("is not the adapter of a model of this stage's kind")
    if kind in TYPES and TYPES[kind].forgets and (kind == "adalora" or not (folder / STATE).is_file()):
        problems.append(f"{kind} cannot go on from its final adapter, which is for use alone")
    for what in problems:
        document.problem(key, what)
    document.value["adapter"] = {"type": kind, "name_or_path": str(folder)}


def _blame_overrides(document: Document, path: Path, overrides: Sequence[str], references: Mapping[str, Path]) -> None:
    """Says of each problem that the file by itself does not have that the overrides made it, not a line of the file."""
    alone = load_document(path)
    _checked(alone, (), references)
    place = re.compile(re.escape(str(path)) + r"(:\d+)?: ")
    for number, problem in enumerate(document.problems):
        if problem not in alone.problems:
            named = [text for text in overrides if text.partition("=")[0].rpartition(".")[2] in problem]
            theirs = f"{document.where_said(*(named or overrides))}: "
            document.problems[number] = place.sub(lambda _, theirs=theirs: theirs, problem, count=1)


class RecipeTool(Tool):
    """A data tool that reads a recipe."""

    recipe: str
    """The recipe: a YAML file."""
    overrides: list[str] = Field([])
    """Keys of the recipe with other values, such as `data.tokens=1000000`."""
    references: dict[str, str] = Field({})
    """Folders that `@name` stands for in the recipe, as in `{tokenizer: runs/tokenizer}`."""

    def load(self) -> Loaded:
        """Reads the recipe.

        Raises:
            SpecError: With every problem found.
        """
        return load(Path(self.recipe), self.overrides, {name: Path(folder) for name, folder in self.references.items()})


def override_of_file(document: Document, override: str) -> str:
    """Returns an override that a file holds with the absolute paths of what it names beside that file, if it does.

    One of the command line is meant from where the user stands.
    """
    name, _, text = override.partition("=")
    with contextlib.suppress(ValueError):  # which is told where it is applied
        value = parse_scalar(text)
        found = find_value(document.path, _parts(name), value)
        if found != value:
            return f"{name}={json.dumps(found, ensure_ascii=False)}"
    return override


def apply_override(document: Document, override: str) -> None:
    """Sets one key of the document from ``a.b[0].c=value`` (or ``a.b.0.c=value``); ``a.b=null`` unsets it.

    What cannot be set becomes a problem of the document.
    """
    try:
        _apply(document, override)
    except ValueError as error:
        document.problems.append(f"{document.where_said(override)}: {error}")


def _apply(document: Document, override: str) -> None:
    """Sets or unsets one key."""
    name, separator, text = override.partition("=")
    parts = _parts(name)
    if not separator:
        found = re.match(r"-*([\w.\[\]]*)", name)
        word = (found and found[1]) or "trainer.seed"
        raise ValueError(f"is not of the form key=value; write {word}=VALUE, or {word}=null for the default")
    if not all(parts):
        raise ValueError("is not of the form key=value; a key is words with a point between, as trainer.seed=1")
    value = parse_scalar(text)
    key: KeyPath = ()
    target = document.value
    for part in parts[:-1]:
        place = _place(target, part, key)
        if isinstance(target, dict) and not isinstance(target.get(part), dict | list):
            target[part] = {}
        target, key = target[place], (*key, place)
    last = _place(target, parts[-1], key)
    key = (*key, last)
    if value is None and isinstance(target, list):
        raise ValueError("an item of a list cannot be unset; give the whole list")
    if value is None:
        target.pop(last, None)
    else:
        # a path typed on the command line is meant from where the user stands, not from the recipe
        target[last] = find_value(Path("the command line"), parts, value)
    document.overrides[key] = override


def _parts(name: str) -> list[str]:
    """Returns the words and numbers of ``a.b[0].c``."""
    return name.replace("[", ".").replace("]", "").split(".")


def _place(target: Any, part: str, key: KeyPath) -> str | int:
    """Returns a key of a dict as it is, and an index that a list has as a number."""
    if not isinstance(target, list):
        return part
    if not part.isdecimal() or int(part[:9]) >= len(target):
        raise ValueError(f"{dotted(key)} is a list of {len(target)}, so there is no {dotted(key)}[{part}]")
    return int(part)
