"""TRL's DistillationTrainer with what `rollout` adds: samples that depend neither on processes nor on a resume.

TRL's and transformers' private names used here, which a test of this folder's holds to what they are:
``_generate_single_turn``, ``_get_train_sampler``, ``_load_optimizer_and_scheduler``, ``_save_checkpoint``,
``_tokenize_prompts``.
"""

from typing import Any

from trl.trainer.distillation_trainer import DistillationTrainer

from .. import rollout


class RowSamplingDistillationTrainer(DistillationTrainer):
    """A DistillationTrainer whose samples do not depend on the number of processes.

    The student writes answers, and learns the teacher's distribution at each of their tokens: a generalised
    Jensen-Shannon divergence with ``beta`` 0 for KL(teacher || student), 1 for KL(student || teacher) (Agarwal et al.
    2023, arXiv:2306.13649, section 3).

    Args:
        model: The student.
        teacher: The teacher, frozen.
        args: The settings.
        **rest: As for DistillationTrainer.
    """

    # What `rollout` asks of a trainer: here each prompt is answered once, and each answer learnt from once.
    num_generations = 1
    num_iterations = 1
    use_transformers_continuous_batching = False

    def __init__(self, model: Any, *, teacher: Any, args: Any, **rest: Any):
        args.steps_per_generation = args.gradient_accumulation_steps
        args.generation_batch_size = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
        super().__init__(model, teacher_model=teacher, args=args, **rest)
        rollout.finish(self, None)
        for language_model in (rollout.base_model(self), teacher):  # the loss calls what lies below the output layer
            rollout.count_positions_from_mask(language_model.base_model)

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        return rollout.tokenize_prompts(self, prompts)

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        with rollout.sampling_by_row(self, len(prompt_ids)):
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return rollout.prompt_sampler(self, dataset)

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
