"""Learning from the policy's own samples.

- ``grpo``: group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300).
- ``rloo``: REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740).
- ``ppo``: proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347).
- ``distill_on_policy``: the student answers prompts and learns what its teacher would have said at each token (Agarwal
  et al. 2023, arXiv:2306.13649).
"""

import warnings
from typing import TYPE_CHECKING, Any

from ...data_tools.functions import load_function
from ...data_tools.prepare import Prepared
from ..job import Job
from ..model import load_reference
from ..schema import Recipe
from ..stage_table import STAGES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainingArguments


def config(stage: str, values: dict[str, Any]) -> "TrainingArguments":
    """Builds the stage's configuration; all columns are kept for the reward functions.

    Raises:
        ValueError: CISPO, which clips the ratio itself, would be given a bound of PPO's kind.
    """
    kept = {} if stage == "distill_on_policy" else {"remove_unused_columns": False}
    args = STAGES[stage].config_class()(**values, **kept)
    if stage == "grpo" and args.loss_type == "cispo" and (args.epsilon_high or 0) < 1:
        raise ValueError("loss_type cispo clips the ratio itself, at epsilon_high; say epsilon_high: 5.0")
    return args


def build(
    job: Job, args: Any, model: "PreTrainedModel", data: dict[str, Prepared | None], common: dict[str, Any]
) -> "Trainer":
    """Builds the stage's trainer with the recipe's reward terms, critic or teacher.

    Raises:
        RecipeError: One of them cannot be loaded; the reference is to move, but the policy has an adapter.
    """
    from ..rewards import load_terms
    from ..trainers import sampling as trainers
    from ..trainers.preference import keeping_reference, refuse_moving

    recipe = job.loaded.recipe
    common["sources"] = job.source_names
    if recipe.teacher:
        from ..distillation.teacher import load_teacher

        return trainers.RowSamplingDistillationTrainer(**common, teacher=load_teacher(recipe.teacher, job.tokenizer))
    moves = getattr(args, "sync_ref_model", False)  # PPO's stays
    if moves:
        refuse_moving(job)
    common["reward_funcs"], args.reward_weights = load_terms(recipe, job.tokenizer, args)
    measured = recipe.stage == "ppo" or args.beta != 0  # whether the KL to the policy as it was is needed
    loads = measured and recipe.loads_reference
    common["reference"] = load_reference(recipe, job.tokenizer, args.seed) if loads else None
    if recipe.stage == "ppo":
        from ..ppo.critic import load_critic
        from ..ppo.trainer import PPOTrainer

        return PPOTrainer(**common, critic=load_critic(recipe, job.tokenizer, model))
    grouped = recipe.stage == "grpo"
    if grouped:
        common |= rollouts(recipe)
    trainer_class = trainers.RowSamplingGRPOTrainer if grouped else trainers.RowSamplingRLOOTrainer
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are using '(environment_factory|rollout_func)'")  # as asked
        return keeping_reference(trainer_class, common, moves=moves and measured)


def rollouts(recipe: Recipe) -> dict[str, Any]:
    """Loads what TRL's GRPOTrainer is given to generate with, beside the policy.

    Raises:
        InputError: A function or class cannot be found.
    """
    found: dict[str, Any] = {}
    if recipe.tools:
        found["tools"] = [load_function(place, "tool") for place in recipe.tools]
    if isinstance(recipe.environment, dict):
        named = {name: load_function(place, "environment") for name, place in recipe.environment.items()}
        found["environment_factory"] = named
    elif recipe.environment:
        found["environment_factory"] = load_function(recipe.environment, "environment")
    if recipe.rollout_func:
        found["rollout_func"] = load_function(recipe.rollout_func, "rollout_func")
    return found
