"""TRL's GRPOTrainer and RLOOTrainer with what `rollout` adds: sampling by row, the recipe's reference, whole resumes.

TRL's and transformers' private names used here, which `tests/recipes/ppo/test_hooks.py` holds to their signatures:
`_generate_single_turn`, `_get_eval_sampler`, `_get_train_sampler`, `_load_optimizer_and_scheduler`, `_save_checkpoint`,
`_tokenize_prompts`.
"""

from typing import TYPE_CHECKING, Any

from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from . import rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RowSamplingGRPOTrainer(GRPOTrainer):
    """A GRPOTrainer whose samples do not depend on the number of processes.

    Args:
        model: The policy.
        reference: The frozen model that the KL is measured to, or None without one.
        args: The settings.
        **rest: As for GRPOTrainer.
    """

    model: Any

    def __init__(self, model: Any, *, reference: "PreTrainedModel | None", args: Any, **rest: Any):
        with rollout.without_reference(args, reference):
            super().__init__(model, args=args, **rest)
        rollout.finish(self, reference)

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        return rollout.tokenize_prompts(self, prompts)

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        with rollout.sampling_by_row(self, len(prompt_ids)):
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return rollout.prompt_sampler(self, dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return rollout.held_out_sampler(self, eval_dataset)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates; each evaluation draws with the same numbers."""
        self.evaluation_calls = 0
        return super().evaluation_loop(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        rollout.save(self, trial, self._rollout_state())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._restore_rollout_state(rollout.restore(self, checkpoint))

    def _rollout_state(self) -> dict[str, Any]:
        """Returns what a subclass keeps in checkpoints besides."""
        return {}

    def _restore_rollout_state(self, state: dict[str, Any]) -> None:
        """Takes back what ``_rollout_state`` gave."""


class RowSamplingRLOOTrainer(RLOOTrainer):
    """An RLOOTrainer whose samples do not depend on the number of processes.

    Args:
        model: The policy.
        reference: The frozen model that the KL is measured to, or None without one.
        args: The settings.
        **rest: As for RLOOTrainer.
    """

    def __init__(self, model: Any, *, reference: "PreTrainedModel | None", args: Any, **rest: Any):
        with rollout.without_reference(args, reference):
            super().__init__(model, args=args, **rest)
        rollout.finish(self, reference)

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        return rollout.tokenize_prompts(self, prompts)

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        with rollout.sampling_by_row(self, len(prompt_ids)):
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return rollout.prompt_sampler(self, dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return rollout.held_out_sampler(self, eval_dataset)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates; each evaluation draws with the same numbers."""
        self.evaluation_calls = 0
        return super().evaluation_loop(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        rollout.save(self, trial, {})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        rollout.restore(self, checkpoint)
