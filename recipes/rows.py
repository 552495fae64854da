"""The rows of a recipe: its data section, read and tokenised as the stage and its trainer's options ask."""

from typing import Literal

from ..data_tools.prepare import Prepared, prepare
from . import job as jobs
from .errors import RecipeError
from .job import Job
from .stage_table import STAGES


def prepare_rows(job: Job, split: Literal["train", "eval"]) -> Prepared | None:
    """Turns a split of the recipe's data into the rows of its stage; None if the recipe has no such split.

    Stages that sample have no ``max_length``: their prompts are bounded by ``data.max_prompt_length``.

    Raises:
        RecipeError: Packing without a length to pack to; a teacher that cannot teach this student.
        DataError: The rows are not what the recipe says.
    """
    recipe = job.loaded.recipe
    stage = STAGES[recipe.stage]
    if recipe.teacher and stage.family != "classify" and split == "train":
        from .distillation.teacher import check_teacher

        check_teacher(job)
    if split == "eval" and recipe.data.eval is None:
        return None
    packing = job.option("packing_strategy") if job.option("packing") else None
    if packing and job.option("max_length") is None:
        raise RecipeError("trainer.packing needs trainer.max_length, the length of a packed row")
    data = recipe.data
    if recipe.objective and "too_long" not in data.model_fields_set:
        data = data.model_copy(
            update={"too_long": "split"}
        )  # no token is lost, as in packed rows of the other objective
    return prepare(
        data,
        split,
        base_dir=job.loaded.path.parent,
        tokenizer=job.tokenizer,
        template=job.template,
        accepts=stage.accepts,
        max_length=job.option("max_length"),
        cache_dir=jobs.cache_dir(),
        packing=packing,
        loss_on="assistant" if "messages" in stage.accepts and job.option("assistant_only_loss") else "all",
        num_proc=job.option("dataset_num_proc") or 1,
    )
