"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) and TRL's other losses on pairs."""

from typing import TYPE_CHECKING, Any

from ...data_tools.prepare import Prepared
from ..errors import RecipeError
from ..examples import prepare_rows
from ..job import Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerCallback
    from trl.trainer.dpo_config import DPOConfig

    from ..preference_trainers import ReferenceKeeper

__all__ = ["build", "config", "prepare_rows"]


def build(
    job: Job,
    args: "DPOConfig",
    model: "PreTrainedModel",
    data: dict[str, Prepared | None],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """Builds TRL's DPOTrainer over rows that are already tokenised.

    Raises:
        RecipeError: A reference that moves with the policy where there is none to move.
    """
    from ..adapters import lora_config
    from ..preference_trainers import PreparedDPOTrainer

    train, held_out = data["train"], data["eval"]
    assert train is not None, "a recipe always has data.train"
    keeper = reference_keeper(job, args)
    trainer = PreparedDPOTrainer(
        model=model,
        ref_model=reference_model(job, args),
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


def reference_model(job: Job, args: Any) -> "PreTrainedModel | None":
    """Loads the reference, unless it is the policy without its adapter or its log-probabilities are computed before."""
    from ..model import load_reference

    if job.loaded.recipe.lora or args.precompute_ref_log_probs:
        return None
    return load_reference(job.loaded.recipe, job.tokenizer, args.seed)


def reference_keeper(job: Job, args: Any) -> "list[ReferenceKeeper]":
    """Returns what keeps a reference that moves with the policy over a resume, if there is one.

    Raises:
        RecipeError: There is no reference that could move.
    """
    from ..preference_trainers import ReferenceKeeper

    if not args.sync_ref_model:
        return []
    problem = None
    if job.loaded.recipe.lora:
        problem = (
            "needs a reference of its own, but under lora it is the policy without its adapter; drop one of the two"
        )
    elif args.precompute_ref_log_probs:
        problem = (
            "moves the reference, so precompute_ref_log_probs would use one that is out of date; drop one of the two"
        )
    if problem:
        raise RecipeError(f"trainer.sync_ref_model {problem}", where=str(job.loaded.path))
    return [ReferenceKeeper()]


def config(values: dict[str, Any]) -> "DPOConfig":
    """Builds ``DPOConfig``.

    Raises:
        ValueError: Two fields do not go together.
    """
    from trl.trainer.dpo_config import DPOConfig

    args = DPOConfig(**values, remove_unused_columns=False)
    if args.use_weighting and {"aot", "aot_unpaired"} & set(args.loss_type):
        raise ValueError("use_weighting weighs pairs, which the aot losses take apart; drop one of the two")
    return args
