"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306): answers, wanted or not, without pairs."""

from typing import TYPE_CHECKING, Any

from ...data_tools.prepare import Prepared
from ..examples import prepare_rows
from ..job import Job
from . import dpo

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerCallback
    from trl.trainer.kto_config import KTOConfig

__all__ = ["build", "config", "prepare_rows"]


def build(
    job: Job,
    args: "KTOConfig",
    model: "PreTrainedModel",
    data: dict[str, Prepared | None],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """Builds TRL's KTOTrainer over rows that are already tokenised.

    Raises:
        RecipeError: A reference that moves with the policy where there is none to move.
    """
    from ..adapters import lora_config
    from ..preference_trainers import PreparedKTOTrainer

    train, held_out = data["train"], data["eval"]
    assert train is not None, "a recipe always has data.train"
    keeper = dpo.reference_keeper(job, args)
    trainer = PreparedKTOTrainer(
        model=model,
        ref_model=dpo.reference_model(job, args),
        args=args,
        train_dataset=train.dataset,
        eval_dataset=held_out.dataset if held_out else None,
        processing_class=job.tokenizer,
        peft_config=lora_config(job, model),
        callbacks=[*keeper, *callbacks],
    )
    for callback in keeper:
        callback.keep(trainer)
    return trainer


def config(values: dict[str, Any]) -> "KTOConfig":
    """Builds ``KTOConfig``."""
    from trl.trainer.kto_config import KTOConfig

    return KTOConfig(**values, remove_unused_columns=False)
