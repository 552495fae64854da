"""Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300), and what all stages that sample share."""

from typing import TYPE_CHECKING, Any

from ...data_tools.prepare import Prepared
from ..errors import RecipeError
from ..examples import prepare_rows
from ..job import Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerCallback
    from trl.trainer.grpo_config import GRPOConfig

__all__ = ["build", "config", "prepare_rows"]


def build(
    job: Job,
    args: "GRPOConfig",
    model: "PreTrainedModel",
    data: dict[str, Prepared | None],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """Builds TRL's GRPOTrainer with the recipe's reward terms."""
    from ..grpo_trainer import RowSamplingGRPOTrainer

    return with_reference_kept(RowSamplingGRPOTrainer, job, args, model, data, callbacks)


def with_reference_kept(
    trainer_class: Any,
    job: Job,
    args: Any,
    model: "PreTrainedModel",
    data: dict[str, Prepared | None],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """Builds a trainer whose reference, if it moves with the policy, is kept in checkpoints.

    Raises:
        RecipeError: The reference is to move, but is the policy without its adapter.
    """
    from ..preference_trainers import ReferenceKeeper

    if args.sync_ref_model and job.loaded.recipe.lora:
        what = (
            "trainer.sync_ref_model needs a reference of its own, but under lora it is the policy without its adapter"
        )
        raise RecipeError(what, where=str(job.loaded.path), hint="drop one of the two")
    keepers = [ReferenceKeeper()] if args.sync_ref_model and args.beta != 0 else []
    known = [*keepers, *callbacks]
    trainer = trainer_class(**trainer_arguments(job, args, model, data, known, reference=args.beta != 0))
    for keeper in keepers:
        keeper.keep(trainer)
    return trainer


def trainer_arguments(
    job: Job,
    args: Any,
    model: "PreTrainedModel",
    data: dict[str, Prepared | None],
    callbacks: "list[TrainerCallback]",
    *,
    reference: bool,
) -> dict[str, Any]:
    """Returns what the trainers of all sampling stages take.

    Args:
        job: The job.
        args: The trainer's settings; the weights of the reward terms are put there.
        model: The policy.
        data: The prepared splits.
        callbacks: The run's own.
        reference: Whether the KL to the policy as it was is needed.

    Raises:
        RecipeError: A reward term cannot be loaded.
    """
    from ..adapters import lora_config
    from ..model import load_reference
    from ..rewards import load_terms

    recipe = job.loaded.recipe
    train, held_out = data["train"], data["eval"]
    assert train is not None, "a recipe always has data.train"
    terms, args.reward_weights = load_terms(recipe, job.tokenizer, args)
    return {
        "model": model,
        "reference": load_reference(recipe, job.tokenizer, args.seed) if reference and recipe.lora is None else None,
        "reward_funcs": terms,
        "args": args,
        "train_dataset": train.dataset,
        "eval_dataset": held_out.dataset if held_out else None,
        "processing_class": job.tokenizer,
        "peft_config": lora_config(job, model),
        "callbacks": callbacks,
    }


def config(values: dict[str, Any]) -> "GRPOConfig":
    """Builds ``GRPOConfig``; all columns are kept for the reward functions."""
    from trl.trainer.grpo_config import GRPOConfig

    return GRPOConfig(**values, remove_unused_columns=False)
