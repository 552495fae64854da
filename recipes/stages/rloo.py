"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740)."""

from typing import TYPE_CHECKING, Any

from ...data_tools.prepare import Prepared
from ..examples import prepare_rows
from ..job import Job
from .grpo import with_reference_kept

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerCallback
    from trl.trainer.rloo_config import RLOOConfig

__all__ = ["build", "config", "prepare_rows"]


def build(
    job: Job,
    args: "RLOOConfig",
    model: "PreTrainedModel",
    data: dict[str, Prepared | None],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """Builds TRL's RLOOTrainer with the recipe's reward terms."""
    from ..grpo_trainer import RowSamplingRLOOTrainer

    return with_reference_kept(RowSamplingRLOOTrainer, job, args, model, data, callbacks)


def config(values: dict[str, Any]) -> "RLOOConfig":
    """Builds ``RLOOConfig``; all columns are kept for the reward functions."""
    from trl.trainer.rloo_config import RLOOConfig

    return RLOOConfig(**values, remove_unused_columns=False)
