"""Odds ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691): likelihood and preference, no reference."""

from typing import TYPE_CHECKING, Any

from ...data_tools.prepare import Prepared
from ..examples import prepare_rows
from ..job import Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerCallback

    from ..orpo_trainer import ORPOConfig

__all__ = ["build", "config", "prepare_rows"]


def build(
    job: Job,
    args: "ORPOConfig",
    model: "PreTrainedModel",
    data: dict[str, Prepared | None],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """Builds TRL's ORPOTrainer over rows that are already tokenised.

    The loss is the mean of -log P over all tokens of prompt and chosen answer, as the authors' code has it, plus
    ``beta`` times -log sigmoid of the log odds ratio of chosen to rejected (equations 5 to 7; ``beta`` is the paper's
    lambda).
    """
    from ..adapters import lora_config
    from ..orpo_trainer import ORPOCollator, PreparedORPOTrainer

    train, held_out = data["train"], data["eval"]
    assert train is not None, "a recipe always has data.train"
    assert isinstance(job.tokenizer.pad_token_id, int), "opening a job makes sure of a pad token"
    return PreparedORPOTrainer(
        model=model,
        args=args,
        train_dataset=train.dataset,
        eval_dataset=held_out.dataset if held_out else None,
        processing_class=job.tokenizer,
        data_collator=ORPOCollator(pad_token_id=job.tokenizer.pad_token_id),
        peft_config=lora_config(job, model),
        callbacks=callbacks,
    )


def config(values: dict[str, Any]) -> "ORPOConfig":
    """Builds ``ORPOConfig``."""
    from ..orpo_trainer import ORPOConfig

    return ORPOConfig(**values, remove_unused_columns=False)
