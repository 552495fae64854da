"""What a classifier's recipe may not ask for, found before anything is loaded."""

from typing import Any

from ..errors import RecipeError
from ..job import Job
from ..model import new_config, pretrained
from ..schema import ClassifySpec


def check_fields(job: Job, spec: ClassifySpec) -> None:
    """Refuses trainer fields that mean nothing for this problem.

    Raises:
        RecipeError: With the field.
    """
    recipe = job.loaded.recipe
    if recipe.trainer.get("label_smoothing_factor") and spec.problem != "single_label":
        raise RecipeError(
            f"trainer.label_smoothing_factor: nothing is smoothed where the problem is {spec.problem}",
            where=str(job.loaded.path),
            hint="drop it",
        )
    alone = [name for name in ("alpha", "temperature") if name in recipe.trainer and recipe.teacher is None]
    if alone:
        raise RecipeError(
            f"trainer.{alone[0]} weighs a teacher, and the recipe has none",
            where=str(job.loaded.path),
            hint="add a teacher section, or drop it",
        )
    if recipe.teacher and recipe.teacher.top_k is not None:
        raise RecipeError(
            "teacher.top_k: a classifier's few outputs are all kept",
            where=str(job.loaded.path),
            hint="drop it",
        )
    if "temperature" in recipe.trainer and spec.problem == "regression":
        raise RecipeError(
            "trainer.temperature: numbers have none", where=str(job.loaded.path), hint="drop it; alpha still applies"
        )


def check_pooling(job: Job) -> None:
    """Refuses ``classify.pooling`` for models that have one way only.

    Raises:
        RecipeError: The model's configuration has no ``classifier_pooling``.
    """
    recipe = job.loaded.recipe
    if recipe.classify is None or recipe.classify.pooling is None:
        return
    config = _config(job)
    if not hasattr(config, "classifier_pooling"):
        raise RecipeError(
            f"classify.pooling: a {config.model_type} pools in its own way only",
            where=str(job.loaded.path),
            hint="drop it: decoders take the last token, BERT and its like the first",
        )


def _config(job: Job) -> Any:
    """Reads the configuration of the model that is to be trained."""
    spec = job.loaded.recipe.model
    return new_config(spec, job.tokenizer) if spec.config is not None else pretrained(spec).config()
