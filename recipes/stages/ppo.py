"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) against reward models and functions."""

from typing import TYPE_CHECKING, Any

from ...data_tools.prepare import Prepared
from ..examples import prepare_rows
from ..job import Job
from .grpo import trainer_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerCallback

    from ..ppo.config import PPOConfig

__all__ = ["build", "config", "prepare_rows"]


def build(
    job: Job,
    args: "PPOConfig",
    model: "PreTrainedModel",
    data: dict[str, Prepared | None],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """Builds the PPOTrainer with the recipe's reward terms and critic.

    Raises:
        RecipeError: A reward term or the critic cannot be loaded.
    """
    from ..ppo.build import load_critic
    from ..ppo.trainer import PPOTrainer

    arguments = trainer_arguments(job, args, model, data, callbacks, reference=True)
    return PPOTrainer(**arguments, critic=load_critic(job.loaded.recipe, job.tokenizer, model))


def config(values: dict[str, Any]) -> "PPOConfig":
    """Builds ``PPOConfig``; all columns are kept for the reward functions."""
    from ..ppo.config import PPOConfig

    return PPOConfig(**values, remove_unused_columns=False)
