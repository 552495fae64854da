"""Sequence classification: one class of several, any number of classes, or a number, from a text or a pair of texts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...data_tools.errors import DataError
from ..errors import RecipeError
from ..job import Job
from ..model import Head, new_config, pretrained
from ..schema import ClassifySpec
from ..stage_table import STAGES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

    from ...data_tools.prepare import Prepared
    from ..classification.trainer import ClassifyConfig


def config(stage: str, values: dict[str, Any]) -> "ClassifyConfig":
    """Builds ``ClassifyConfig``; all columns are kept for the collator."""
    return STAGES[stage].config_class()(**values, remove_unused_columns=False)


def head(job: Job, data: "dict[str, Prepared | None]") -> Head:
    """Describes the head: its classes are those of ``classify.labels``, or of the training rows, sorted.

    Raises:
        RecipeError: The section does not fit the model or the trainer's fields.
        DataError: The labels are not what the recipe says.
    """
    spec = _section(job)
    _refuse_misfits(job, spec)
    given = {split: (prepared.dataset["label"][:], ()) for split, prepared in data.items() if prepared is not None}
    try:
        classes = _classes(spec, given)
    except DataError:
        _classes(spec, {split: _written(job, split) for split in given})  # the same again, by file and row
        raise
    problem: Any = spec.problem if spec.problem == "regression" else f"{spec.problem}_classification"
    return Head(classes, problem, spec.pooling)


def _refuse_misfits(job: Job, spec: ClassifySpec) -> None:
    """Refuses what means nothing for this problem or model, before anything is loaded."""
    model, trainer, teacher = job.loaded.recipe.model, job.loaded.recipe.trainer, job.loaded.recipe.teacher
    alone = next((name for name in ("alpha", "temperature") if name in trainer and teacher is None), None)
    config: Any = None
    if spec.pooling is not None:
        config = new_config(model, job.tokenizer) if model.config is not None else pretrained(model).config()
    refusals = (
        (
            trainer.get("label_smoothing_factor") and spec.problem != "single_label",
            f"trainer.label_smoothing_factor: nothing is smoothed where the problem is {spec.problem}",
            "drop it",
        ),
        (alone, f"trainer.{alone} weighs a teacher, and the recipe has none", "add a teacher section, or drop it"),
        (
            teacher and teacher.top_k is not None,
            "teacher.top_k: a classifier's few outputs are all kept",
            "drop it",
        ),
        (
            "temperature" in trainer and spec.problem == "regression",
            "trainer.temperature: numbers have none",
            "drop it; alpha still applies",
        ),
        (
            config is not None and not hasattr(config, "classifier_pooling"),
            f"classify.pooling: a {getattr(config, 'model_type', '')} pools in its own way only",
            "drop it: decoders take the last token, BERT and its like the first",
        ),
    )
    for refused, what, hint in refusals:
        if refused:
            raise RecipeError(what, where=str(job.loaded.path), hint=hint)


def _classes(spec: ClassifySpec, given: Mapping[str, tuple[Sequence[Any], Sequence[str]]]) -> tuple[str, ...]:
    """Returns the classes of the splits' labels, each split's with where they stand; refuses those that fit none."""
    from ..classification.labels import encode, find_classes

    labels, rows = given["train"]
    if spec.problem == "multi_label" and spec.labels is None and not any(isinstance(label, list) for label in labels):
        what = "classify.problem is multi_label, and no label is a list, so that each combination were a class"
        hint = 'such as label: "{{ label.split(\',\') }}" or "{{ [label] }}"; or name the classes in classify.labels'
        raise DataError(what, where="data.train", hint=hint)
    classes = ("score",) if spec.problem == "regression" else find_classes(labels, spec.labels, rows)
    for split, (labels, rows) in given.items():
        encode(labels, classes, spec.problem, f"data.{split}", rows)
    return classes


def _written(job: Job, split: str) -> tuple[Sequence[Any], Sequence[str]]:
    """Reads the labels of a split as they are written, and where each stands."""
    from ...data_tools.dataset import load

    data = job.loaded.recipe.data
    labels, rows = [], []
    for source in getattr(data, split) or ():
        read = load(source, job.loaded.path.parent, STAGES["classify"].accepts, max_bad_share=data.max_bad_share)
        for where, row in read:
            labels.append(row["label"])
            rows.append(where)
    return labels, rows


def build(
    job: Job,
    args: "ClassifyConfig",
    model: "PreTrainedModel",
    data: "dict[str, Prepared | None]",
    common: dict[str, Any],
) -> "Trainer":
    """Builds the trainer over encoded rows, with the teacher's outputs beside them if there is one."""
    from ..adapters import add_adapter
    from ..classification.labels import class_weights, encode
    from ..classification.losses import row_weights
    from ..classification.rows import ClassifyCollator, ClassifyRows
    from ..classification.teacher import teacher_logits
    from ..classification.trainer import ClassifyTrainer, metrics

    recipe, spec = job.loaded.recipe, _section(job)
    config: Any = model.config
    labels = tuple(config.id2label[number] for number in range(config.num_labels))  # what `head` has said
    assert isinstance(job.tokenizer.pad_token_id, int), "opening a job makes sure of a pad token"
    given = {split: prepared.dataset for split, prepared in data.items() if prepared is not None}
    encoded = {split: encode(rows["label"][:], labels, spec.problem, f"data.{split}") for split, rows in given.items()}
    weights = class_weights(spec.class_weights, labels, encoded["train"])
    teacher = {}
    if recipe.teacher:
        size = args.per_device_eval_batch_size
        logits = teacher_logits(recipe.teacher, spec.problem, labels, job.tokenizer, given["train"], size)
        teacher = {"train": logits}
    rows = {
        split: ClassifyRows(
            tokens, encoded[split], row_weights(spec.problem, encoded[split], weights), teacher.get(split)
        )
        for split, tokens in given.items()
    }
    return ClassifyTrainer(
        sources=job.source_names,
        problem=spec.problem,
        class_weights=weights if spec.problem == "multi_label" else None,
        model=add_adapter(job, model),
        train_dataset=rows["train"],
        eval_dataset=rows.get("eval"),
        data_collator=ClassifyCollator(job.tokenizer.pad_token_id),
        compute_metrics=metrics(spec, labels),
        **{key: common[key] for key in ("args", "processing_class", "callbacks")},
    )


def _section(job: Job) -> ClassifySpec:
    return job.loaded.recipe.classify or ClassifySpec()
