"""On-policy distillation: the student answers prompts and learns what its teacher would have said at each token."""

from typing import TYPE_CHECKING, Any, Literal

from ...data_tools.prepare import Prepared
from .. import examples
from ..job import Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerCallback
    from trl.trainer.distillation_config import DistillationConfig


def prepare_rows(job: Job, split: Literal["train", "eval"]) -> Prepared | None:
    """Reads a split of the recipe's prompts; None if the recipe has no such split.

    Raises:
        RecipeError: The teacher cannot teach this student.
        DataError: The rows are not what the recipe says.
    """
    from ..distillation.teacher import check_teacher

    if split == "train":
        check_teacher(job)
    return examples.prepare_rows(job, split)


def build(
    job: Job,
    args: "DistillationConfig",
    model: "PreTrainedModel",
    data: dict[str, Prepared | None],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """Builds TRL's DistillationTrainer with the recipe's teacher.

    Raises:
        RecipeError: The teacher cannot be loaded.
    """
    from ..adapters import lora_config
    from ..distillation.on_policy import RowSamplingDistillationTrainer
    from ..distillation.teacher import load_teacher

    recipe = job.loaded.recipe
    train, held_out = data["train"], data["eval"]
    assert train is not None, "a recipe always has data.train"
    assert recipe.teacher is not None, "the stage requires a teacher"
    return RowSamplingDistillationTrainer(
        model,
        teacher=load_teacher(recipe.teacher, job.tokenizer),
        args=args,
        train_dataset=train.dataset,
        eval_dataset=held_out.dataset if held_out else None,
        processing_class=job.tokenizer,
        peft_config=lora_config(job, model),
        callbacks=callbacks,
    )


def config(values: dict[str, Any]) -> "DistillationConfig":
    """Builds ``DistillationConfig``."""
    from trl.trainer.distillation_config import DistillationConfig

    return DistillationConfig(**values)
