"""The rows of the stages that learn from examples rather than from running text."""

from typing import Literal

from ..data_tools.prepare import Prepared
from . import job as jobs
from .job import Job
from .stage_table import STAGES
from .trainer_fields import fields_of


def prepare_rows(job: Job, split: Literal["train", "eval"]) -> Prepared | None:
    """Reads and tokenises a split of the recipe's pairs, answers, prompts or texts; None if it has no such split.

    Stages that sample have no ``max_length``: their prompts are bounded by ``data.max_prompt_length``.

    Raises:
        DataError: The rows are not what the recipe says.
    """
    from ..data_tools.examples import prepare_examples

    recipe = job.loaded.recipe
    if split == "eval" and recipe.data.eval is None:
        return None
    stage = STAGES[recipe.stage]
    fields = fields_of(stage.config)
    return prepare_examples(
        recipe.data,
        split,
        base_dir=job.loaded.path.parent,
        tokenizer=job.tokenizer,
        template=job.template,
        kind=stage.accepts[0],
        accepts=stage.accepts,
        max_length=job.option("max_length") if "max_length" in fields else None,
        cache_dir=jobs.cache_dir(),
        num_proc=(job.option("dataset_num_proc") if "dataset_num_proc" in fields else None) or 1,
    )
