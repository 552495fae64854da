"""Reward modelling: a score for each answer, the chosen one's above the rejected one's (Bradley and Terry 1952)."""

from typing import TYPE_CHECKING, Any

from ...data_tools.prepare import Prepared
from ..examples import prepare_rows
from ..job import Job
from ..model import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerCallback
    from trl.trainer.reward_config import RewardConfig

__all__ = ["build", "config", "head", "prepare_rows"]


def head(job: Job, data: dict[str, Prepared | None]) -> Head:
    """Returns the head of a reward model: one number."""
    return Head(labels=("reward",), problem="regression")


def build(
    job: Job,
    args: "RewardConfig",
    model: "PreTrainedModel",
    data: dict[str, Prepared | None],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """Builds TRL's RewardTrainer over rows that are already tokenised.

    The loss is -log sigmoid(r(x, y_w) - r(x, y_l) - margin), the margin that of the row if it has one (Touvron et al.
    2023, arXiv:2307.09288, equation 2), plus ``center_rewards_coefficient`` times the squared sum of both rewards
    (Eisenstein et al. 2023, arXiv:2312.09244).
    """
    from ..adapters import lora_config
    from ..preference_trainers import PairCollator, PreparedRewardTrainer

    train, held_out = data["train"], data["eval"]
    assert train is not None, "a recipe always has data.train"
    assert isinstance(job.tokenizer.pad_token_id, int), "opening a job makes sure of a pad token"
    multiple = args.pad_to_multiple_of  # RewardConfig has turned the word "auto" into a number or None
    assert not isinstance(multiple, str), "RewardConfig leaves no word here"
    return PreparedRewardTrainer(
        model=model,
        args=args,
        train_dataset=train.dataset,
        eval_dataset=held_out.dataset if held_out else None,
        processing_class=job.tokenizer,
        data_collator=PairCollator(job.tokenizer.pad_token_id, pad_to_multiple_of=multiple),
        peft_config=lora_config(job, model),
        callbacks=callbacks,
    )


def config(values: dict[str, Any]) -> "RewardConfig":
    """Builds ``RewardConfig``; the columns are kept, since TRL only knows answers that hold their prompts."""
    from trl.trainer.reward_config import RewardConfig

    return RewardConfig(**values, remove_unused_columns=False)
