"""``posttrain check``: everything that can be known before training, in one pass."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import PosttrainError
from ..data_tools.specfile import load_document
from . import estimate
from .load import Loaded, load
from .stage_table import STAGES
from .trainer_fields import Field, fields_of

if TYPE_CHECKING:
    from ..data_tools.prepare import Prepared
    from .decisions import Ready
    from .job import Job


def check_all(
    paths: Sequence[Path], overrides: Sequence[str], references: Mapping[str, Path], *, read_data: bool
) -> int:
    """Checks recipes, prints what was found, and returns the exit code: 2 if any recipe is wrong."""
    wrong = 0
    for path in paths:
        try:
            if "steps" in load_document(path).value:
                print(f"{path}: ok (pipeline of {', '.join(_check_pipeline(path, overrides))})")
                continue
            loaded = load(path, overrides, references)
            lines = _with_data(loaded) if read_data else _without_data(loaded)
        except PosttrainError as error:
            wrong = max(wrong, error.exit_code)
            for line in str(error).splitlines():
                print(line if str(path) in line else f"{path}: {line}", file=sys.stderr)
            continue
        print(f"{path}: ok ({loaded.recipe.stage}, recipe {loaded.hash})")
        for line in lines:
            print(f"  {line}")
    return wrong


def _check_pipeline(path: Path, overrides: Sequence[str]) -> list[str]:
    """Checks a pipeline and each of its recipes, as far as that goes before any step has run; returns the steps."""
    from .pipeline import Plan, load_pipeline, plan

    pipeline, document = load_pipeline(path, overrides)
    plans: dict[str, Plan] = {}
    for index, step in enumerate(pipeline.steps):
        plans[step.name] = plan(document, pipeline, index, plans)
    return list(plans)


def _without_data(loaded: Loaded) -> list[str]:
    """Describes a recipe from its file, and from the headers of a local model's weights."""
    model = loaded.recipe.model
    total = estimate.stored_parameters(Path(model.name_or_path)) if model.name_or_path and not model.layers else None
    if total is None:
        return []
    recipe = loaded.recipe
    lines = [f"model: {_count(total)} parameters"]
    if recipe.lora is None:
        states = estimate.state_bytes(recipe, estimate.Size(total, total))
        lines.append(f"memory: {states / estimate.GIB:.2f} GiB for weights, gradients and AdamW, before activations")
    return lines


def _with_data(loaded: Loaded) -> list[str]:
    """Reads data and template as a run would, and adds up what the run would do."""
    from .decisions import decide, trainer_config
    from .rehearsal import rehearse

    ready = decide(loaded, trainer_config(loaded))
    lines = _template_lines(ready)
    for split, prepared in ready.data.items():
        if prepared is not None:
            lines += _data_lines(split, prepared)
    assert ready.data["train"] is not None, "a recipe always has data.train"
    lines += _cost_lines(ready.job, ready.size, ready.data["train"])
    rehearse(ready)
    return lines


def _template_lines(ready: "Ready") -> list[str]:
    """Says which template is used, and of what its checks warn where its loss mask is used."""
    from .. import chat_templates

    job = ready.job
    if job.template is None:
        return []
    name = f"template: {job.template.name} ({chat_templates.fingerprint(job.template, job.tokenizer)})"
    if ready.proof is None:
        return [name]
    failed = [f"{f.severity}: template: {f.check}: {f.message}" for f in ready.proof.failed]
    return [f"{name}, {ready.proof.summary}", *failed]


# What a report says after the number of tokens, by the kind of row, where loss is not all there is to say.
_TOKEN_WORDS = {
    "preference": "tokens (prompts counted with each answer), {:,} in answers",
    "unpaired": "tokens, {:,} in answers",
    "prompt": "tokens in prompts",
    "classification": "tokens",
}


def _data_lines(split: str, prepared: "Prepared") -> list[str]:
    """Reports rows, tokens, shares, and every dropped row by its reason."""
    report = prepared.report
    fill = f", rows {report.fill:.1%} full" if report.fill is not None else ""
    words = _TOKEN_WORDS.get(report.sources[0].kind, "tokens, {:,} carry loss").format(report.loss_tokens)
    lines = [f"data.{split}: {report.rows:,} rows, {report.tokens:,} {words}{fill}"]
    for source in report.sources:
        share = f", {source.share:.1%} of tokens (asked {source.target:.1%})" if len(report.sources) > 1 else ""
        lines.append(f"  {source.name}: {source.kept:,} of {source.rows:,} rows, {source.epochs:.2f} epochs{share}")
        for reason, count in source.dropped.items():
            lines.append(f"    dropped {count:,}: {reason} (as in {source.examples[reason][0]})")
        lines += [f"    {note}" for note in source.notes]
    return lines


def _cost_lines(job: "Job", size: estimate.Size, train: "Prepared") -> list[str]:
    """Reports parameters, memory, steps and compute of the whole run on one process."""
    recipe, report = job.loaded.recipe, train.report
    batch = job.option("per_device_train_batch_size") * job.option("gradient_accumulation_steps")
    sampled = report.sources[0].kind == "prompt"
    per_epoch = max(1, -(-report.rows * (_answers_per_prompt(job) if sampled else 1) // batch))
    steps = job.option("max_steps")
    steps = steps if steps > 0 else int(per_epoch * job.option("num_train_epochs") + 0.999999)
    # an answer that has yet to be sampled is counted as long as it may become
    answer = (_field(job, "max_completion_length") or 0) if sampled else 0
    tokens = int(steps * batch * (report.tokens / max(1, report.rows) + answer))
    flops = estimate.training_flops(recipe, size, tokens)
    states = estimate.state_bytes(recipe, size) / estimate.GIB
    return [
        f"model: {_count(size.total)} parameters, {size.trainable / 1e6:.2f} M trained ({size.trainable:,})",
        *_new_token_lines(job, size),
        f"memory: {states:.2f} GiB for weights, gradients and AdamW on one process, before activations",
        *_warmup_lines(job, steps),
        f"one process: {steps:,} steps of {batch} rows, {steps / per_epoch:.2f} epochs, "
        f"{'at most ' if sampled else ''}{_count(tokens)} tokens",
        f"compute: {flops:.2e} FLOPs, attention scores {'and sampling ' if sampled else ''}left out",
    ]


def _warmup_lines(job: "Job", steps: int) -> list[str]:
    """Warns of a learning rate that is still rising when the run ends."""
    warmup = job.option("warmup_steps")
    if not warmup or warmup < steps or job.option("lr_scheduler_type") in ("constant", "reduce_lr_on_plateau"):
        return []
    return [f"warning: trainer.warmup_steps: {warmup:g} of {steps:,} steps, so the learning rate is never reached"]


def _new_token_lines(job: "Job", size: estimate.Size) -> list[str]:
    """Says which tokens the model has yet to learn, and how many parameters that is under adapters."""
    if not job.new_tokens:
        return []
    names = " ".join(job.tokenizer.convert_ids_to_tokens(list(job.new_tokens)))
    rows = f", {size.new_tokens:,} parameters in float32" if size.new_tokens else ""
    return [f"new tokens: {names}, which the template added and the model has to learn{rows}"]


def _field(job: "Job", name: str) -> Any:
    """Returns a trainer field, or None if the stage has none of that name."""
    return job.option(name) if name in fields_of(STAGES[job.loaded.recipe.stage].config) else None


def _answers_per_prompt(job: "Job") -> int:
    """Returns how often a prompt comes in an epoch: once for each answer and each pass over the answers."""
    return (_field(job, "num_generations") or 1) * (_field(job, "num_iterations") or 1)


def _count(number: float) -> str:
    """Formats 1234567 as 1.23 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def json_schema() -> str:
    """Returns the JSON Schema of recipes, the trainer's fields of each stage included, for editors."""
    from .schema import Recipe

    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    stages = {
        name: {
            field.name: _field_schema(field)
            for field in fields_of(stage.config).values()
            if field.name not in stage.owned
        }
        for name, stage in STAGES.items()
    }
    entries: dict[str, list[dict[str, Any]]] = {}
    for fields in stages.values():
        for name, entry in fields.items():
            entries.setdefault(name, []).append(entry)
    # a field that means the same everywhere is told once, the others by stage
    same = {name: found[0] if all(entry == found[0] for entry in found) else {} for name, found in entries.items()}
    schema["properties"]["trainer"] |= {"properties": same, "additionalProperties": False}
    schema["allOf"] = [
        {
            "if": {"properties": {"stage": {"const": stage}}},
            "then": {
                "properties": {
                    "trainer": {
                        "properties": {
                            **{name: entry for name, entry in fields.items() if not same[name]},
                            **dict.fromkeys(sorted(same.keys() - fields.keys()), False),
                        }
                    }
                }
            },
        }
        for stage, fields in stages.items()
    ]
    return json.dumps(schema, indent=2)


def _field_schema(field: Field) -> dict[str, Any]:
    """Describes a trainer's field in JSON Schema."""
    names = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}
    types = sorted({names.get(kind, "null") for kind in field.types})
    entry: dict[str, Any] = {"description": field.annotation} | ({"type": types} if types else {})
    entry |= field.range.schema() if field.range else {}
    if field.choices and set(types) <= {"string", "null"}:
        return entry | {"enum": [*field.choices, *([None] if "null" in types else [])]}
    return entry | ({"examples": list(field.choices)} if field.choices else {})
