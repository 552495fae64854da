"""``init``: a commented recipe for a stage and a model, its comments the docstrings of the schema."""

import inspect
import json
import textwrap
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml

from ..chat_templates.errors import InputError, did_you_mean
from ..data_tools.files import write_atomic
from ..data_tools.spec import Section
from ..data_tools.specfile import parse_scalar
from .schema import Recipe
from .stage_table import STAGE_SECTIONS, STAGES, Stage
from .trainer_fields import fields_of

_WIDTH = 118
# Example rows, so that a new recipe can be checked before there is data: as many as the smallest group of prompts.
_ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": "Water boils at 100 degrees Celsius at sea level."}, {"text": "Ice melts at 0 degrees."}],
    "messages": [
        {"messages": [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "It is 5."}]},
        {"messages": [{"role": "user", "content": "What is 4 + 4?"}, {"role": "assistant", "content": "It is 8."}]},
    ],
    "preference": [
        {"prompt": "What is 2 + 3?", "chosen": "It is 5.", "rejected": "Hard to say."},
        {"prompt": "What is 4 + 4?", "chosen": "It is 8.", "rejected": "It is 9."},
    ],
    "unpaired": [
        {"prompt": "What is 2 + 3?", "completion": "It is 5.", "label": True},
        {"prompt": "What is 4 + 4?", "completion": "It is 9.", "label": False},
    ],
    "classification": [{"text": "What a good film!", "label": "good"}, {"text": "I left early.", "label": "bad"}],
    "prompt": [{"prompt": "What is 2 + 3?"}, {"prompt": "What is 4 + 4?"}],
}
_REWARD = '''"""An example of a reward: what is trained towards. Replace it by your own."""


def is_brief(completion_ids, **columns):
    """One number for each completion: the fewer tokens, the higher."""
    return [-len(ids) / 100 for ids in completion_ids]
'''


def write_recipe(stage_name: str, model: str, output: Path, data: str | None = None) -> list[Path]:
    """Writes a recipe that ``check`` accepts, and example rows and rewards where it needs them.

    Args:
        stage_name: One of the stages.
        model: A Hub id or a folder.
        output: The recipe's file; examples go beside it.
        data: What to train on, a path or as YAML what a recipe may say of a source; without it, a file of example rows.

    Returns:
        The files that were written, the recipe first.

    Raises:
        InputError: There is no such stage, or one of the files is there already.
    """
    if stage_name not in STAGES:
        hint = did_you_mean(stage_name, STAGES) or f"known: {', '.join(STAGES)}"
        raise InputError(f"no stage '{stage_name}'", hint=hint)
    stage = STAGES[stage_name]
    files: dict[Path, str] = {}
    kind = stage.accepts[0]
    train = parse_scalar(data) if data is not None and data.startswith("{") else {"path": data}
    if data is None:
        rows = output.with_name(f"{output.stem}-rows.jsonl")
        files[rows] = "".join(json.dumps(row) + "\n" for row in _ROWS[kind] * 8)
        train = {"path": rows.name, "format": kind}
    given: dict[str, Any] = {"stage": stage_name, "model": _model(model, kind), "data": {"train": train}}
    if "teacher" in stage.required:
        given["teacher"] = {"name_or_path": model}
    if "rewards" in stage.required:
        rewards = output.with_name(f"{output.stem}_rewards.py")
        files[rewards] = _REWARD
        given["rewards"] = [{"function": f"{rewards.name}:is_brief"}]
    given["trainer"] = _trainer(stage)
    given["output_dir"] = f"runs/{output.stem}"
    head = (
        f"# {stage_name} of {model}. A key behind a # has the value that it has without being said.\n"
        f"#   posttrain check {output}\n#   posttrain train {output}\n"
    )
    files = {output: head + "\n".join(_section(Recipe, given, stage)) + "\n", **files}
    for path in files:
        if path.exists():
            raise InputError("is there already", where=str(path), hint="name another file with -o")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    return list(files)


def _model(model: str, kind: str) -> dict[str, Any]:
    """The model section; a model that is here and has no chat template gets one where conversations are trained."""
    if kind in ("text", "classification") or _has_template(model) is not False:
        return {"name_or_path": model}
    return {"name_or_path": model, "chat_template": "chatml"}


def _has_template(model: str) -> bool | None:
    """Whether a model has a chat template of its own, by its files; None if they are not here."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    def find(name: str) -> Path | None:
        if Path(model).is_dir():
            return Path(model, name)
        try:
            cached = try_to_load_from_cache(model, name)
        except HFValidationError:
            hint = "name the folder of a model, or one of the Hub as owner/name"
            raise InputError("is neither a folder nor a name of the Hub", where=model, hint=hint) from None
        return Path(cached) if isinstance(cached, str) else None

    template, config = find("chat_template.jinja"), find("tokenizer_config.json")
    if template is not None and template.is_file():
        return True
    return "chat_template" in json.loads(config.read_text()) if config is not None and config.is_file() else None


def _trainer(stage: Stage) -> dict[str, Any]:
    """The fields that most runs change, at the values of the stage's configuration class, and the stage's own."""
    fields = fields_of(stage.config)
    names = ("max_length", "max_completion_length", "per_device_train_batch_size", "learning_rate", "num_train_epochs")
    chosen = {name: fields[name].default for name in names if name in fields}
    return {name: value for name, value in chosen.items() if value is not None} | {"save_steps": 200}


def _section(spec: type[Section], given: Mapping[str, Any], stage: Stage) -> list[str]:
    """The lines of a section: every key with its docstring, those that are not given as comments at their defaults."""
    lines = []
    for key, field in spec.model_fields.items():
        if key in STAGE_SECTIONS - stage.sections:
            continue
        lines += [f"# {line}" for line in textwrap.wrap(" ".join((field.description or "").split()), _WIDTH - 8)]
        nested = _nested(field.annotation)
        value = given.get(key)
        if key not in given and nested and spec is Recipe:
            lines += [f"# {line}" for line in (f"{key}:", *_indented(_section(nested, {}, stage)))]
        elif key not in given:
            default = field.get_default(call_default_factory=True)
            default = default.model_dump(exclude_defaults=True) if isinstance(default, Section) else default
            lines.append(f"# {key}: {'…' if field.is_required() else _yaml(default)}")
        elif nested and isinstance(value, dict):
            lines += [f"{key}:", *_indented(_section(nested, value, stage))]
        elif isinstance(value, dict) and key == "trainer":
            lines += [f"{key}:", *_indented([f"{name}: {_yaml(one)}" for name, one in value.items()])]
        else:
            lines.append(f"{key}: {_yaml(value)}")
    return lines


def _nested(annotation: Any) -> type[Section] | None:
    """The section that a key holds, if it holds one and no list of them."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((one for one in options if inspect.isclass(one) and issubclass(one, Section)), None)


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _yaml(value: Any) -> str:
    """A value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return text.strip().removesuffix("\n...")
