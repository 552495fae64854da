"""TRL's trainers that learn from their own samples, with what they get wrong put right.

They draw with the process's global generator, so a run on two processes samples other
completions than on one; they load the reference from the path in the model's configuration, which has not the tokens
that a chat template added; and after a resume they begin a generation anew in the middle of one, and a later epoch in
the order of the first. Here:

- A token is drawn with a number that depends on the seed, the generation, the row of the global batch and the place
  alone. The distribution is the policy's, as ever; the draw does not depend on the number of processes.
- The reference is the model that the recipe names, built a second time.
- A checkpoint keeps the generation that is being learnt from, and the trainer's count of steps.
- The order of the prompts depends on the seed and the epoch alone; evaluations take theirs as they come.

TRL's and transformers' private names used here, which `tests/recipes/ppo/test_hooks.py` holds to what they are:
``_step``, ``_buffered_inputs``, ``_calculate_rewards``, ``_generate_single_turn``, ``_get_eval_sampler``,
``_get_train_sampler``, ``_load_optimizer_and_scheduler``, ``_save_checkpoint``, ``_tokenize_prompts``.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.distillation_trainer import DistillationTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.utils import RepeatSampler

from ...data_tools.encode import TextEncoder
from ...data_tools.store import SOURCE_COLUMN
from ...evals.models import under_adapter
from .sources import BySource

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

_OTHER_WARPERS = ("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "num_beams")


class EpochSampler(RepeatSampler):
    """TRL's sampler, which repeats prompts for their completions, with an order of its own in each epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Is called by accelerate before each epoch, and before a resumed one."""
        self.epoch = epoch

    def __iter__(self) -> Generator[int]:
        """Yields row numbers as RepeatSampler does."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + self.epoch)
        yield from super().__iter__()


class RowSampler(LogitsProcessor):
    """Draws the next token of each row by inverting the cumulative distribution at a given number.

    It leaves probability 1 on the drawn token, so whatever samples after it takes that one. It stands before the
    warpers of ``generate``, so it applies those of the configuration itself.

    Args:
        numbers: Uniform in [0, 1), [rows, places].
        prompt_length: Tokens before the first place.
        config: Temperature, top-k, top-p and min-p.
    """

    def __init__(self, numbers: torch.Tensor, prompt_length: int, config: "GenerationConfig"):
        self.numbers = numbers
        self.prompt_length = prompt_length
        self.warpers: list[Any] = []
        if config.temperature not in (None, 1.0):
            self.warpers.append(TemperatureLogitsWarper(config.temperature))
        if config.top_k:
            self.warpers.append(TopKLogitsWarper(config.top_k))
        if config.top_p is not None and config.top_p < 1:
            self.warpers.append(TopPLogitsWarper(config.top_p))
        if config.min_p is not None:
            self.warpers.append(MinPLogitsWarper(config.min_p))

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Returns 0 for the drawn token of each row and minus infinity for the others, [rows, vocabulary]."""
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)
        number = self.numbers[:, input_ids.shape[1] - self.prompt_length].unsqueeze(1)
        drawn = torch.searchsorted(cumulative, number * cumulative[:, -1:], right=True)
        drawn = drawn.clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


def uniform_numbers(key: tuple[int, ...], first_row: int, rows: int, places: int) -> torch.Tensor:
    """Returns the numbers of some rows of a global batch, [rows, places], the same however the batch is divided."""
    generators = (np.random.default_rng([*key, row]) for row in range(first_row, first_row + rows))
    return torch.from_numpy(np.stack([generator.random(places) for generator in generators]))


@contextlib.contextmanager
def sampling_by_row(trainer: Any, rows: int) -> Iterator[None]:
    """Makes the policy's ``generate`` draw by row; not with vLLM and the like, which have generators of their own.

    Nor with tools, after whose calls some of the rows go on: TRL draws for them.

    Args:
        trainer: A GRPOTrainer or RLOOTrainer.
        rows: The rows of this process.
    """
    key, first = _generation_key(trainer), trainer.accelerator.process_index * rows
    config = getattr(trainer, "generation_config", None)
    others = trainer.use_transformers_continuous_batching or getattr(trainer, "tools", None)
    if config is None or others or any(_says(config, name) for name in _OTHER_WARPERS):
        yield
        return
    model = base_model(trainer)
    plain = model.generate

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        ids = kwargs["input_ids"]
        numbers = uniform_numbers(key, first, rows, config.max_new_tokens).to(ids.device)
        sampler = LogitsProcessorList([RowSampler(numbers, ids.shape[1], config)])
        return plain(*args, **kwargs, logits_processor=sampler)

    model.generate = MethodType(generate, model)
    try:
        yield
    finally:
        del model.generate


def _says(config: "GenerationConfig", name: str) -> bool:
    return getattr(config, name, None) not in (None, 1, 1.0, 0.0)


def _generation_key(trainer: Any) -> tuple[int, ...]:
    """Returns what a generation's numbers depend on besides the row: seed, training or evaluation, and which it is."""
    # In training the count of small batches says which; an evaluation counts its own.
    if trainer.model.training:
        return (trainer.args.seed, 0, trainer._step // _small_batches(trainer))
    trainer.evaluation_calls += 1
    return (trainer.args.seed, 1, trainer.evaluation_calls)


def base_model(trainer: Any) -> Any:
    """Returns the causal language model inside a trainer's model, adapters or not."""
    return under_adapter(trainer.accelerator.unwrap_model(trainer.model))


def count_positions_from_mask(model: Any) -> None:
    """Makes a model count positions from the first real token of a row, in place.

    Prompts are padded on the left. Where positions are absolute (GPT-2) a model that is given none counts the padding
    in, in training but not in ``generate``, so that old and new probabilities would come from different models.
    """
    import functools
    import inspect

    plain: Callable[..., Any] = model.forward
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        return

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if kwargs.get("position_ids") is None and ids is not None and mask is not None and mask.shape == ids.shape:
            kwargs["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return plain(*args, **kwargs)

    model.forward = MethodType(forward, model)


class RowSampling(BySource):
    """What every trainer here does; it stands before TRL's class among the bases.

    The reward of a source is the mean of its completions', in training.

    Args:
        model: The policy.
        reference: The frozen model that the KL is measured to, or None without one.
        args: The settings.
        **rest: As for ``BySource`` and TRL's trainer.
    """

    sources_are_of = "completions"
    model: Any
    args: Any
    accelerator: Any
    train_dataset: Any
    _step: int
    _buffered_inputs: Any

    def __init__(self, model: Any, *, reference: "PreTrainedModel | None" = None, args: Any, **rest: Any):
        with _without_reference(args, reference):
            super().__init__(model, args=args, **rest)  # type: ignore[call-arg]
        self.prompt_encoder = TextEncoder.of(self.processing_class)  # type: ignore[attr-defined]
        self.evaluation_calls = 0
        self.beta = args.beta
        count_positions_from_mask(base_model(self))
        if reference is not None:
            _attach_reference(self, reference)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Returns prompts as the data section counted them, and as supervised stages read them; no images."""
        if getattr(self, "tools", None):  # which the template tells the policy of
            return super()._tokenize_prompts(prompts)  # type: ignore[misc]
        # TRL's own way lets a special token written out in a message end the turn, and gives text prompts no BOS
        # where the tokenizer adds none by itself.
        return self.prompt_encoder.prompts(prompts, where="data"), None, {}

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        with sampling_by_row(self, len(prompt_ids)):
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)  # type: ignore[misc]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        """Keeps from which sources the rows are: reward functions and environments know no such column."""
        self._row_sources = torch.tensor([row.get(SOURCE_COLUMN, 0) for row in inputs])
        rows = [{key: value for key, value in row.items() if key != SOURCE_COLUMN} for row in inputs]
        return super()._generate_and_score_completions(rows)  # type: ignore[misc]

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns the terms of all processes' rows, [rows, terms]; NaN is None.

        A row to which no term applies that is learnt from has none at all: a gold reward beside them would make 0 of
        it, where TRL leaves the row out.
        """
        terms = super()._calculate_rewards(*args, **kwargs)  # type: ignore[misc]
        weights: Any = self.reward_weights.to(terms.device)  # type: ignore[attr-defined]
        terms[terms[:, weights != 0].isnan().all(dim=1)] = torch.nan
        if self.model.training:
            first = self.accelerator.process_index * len(self._row_sources)
            mine = terms[first : first + len(self._row_sources)]
            scored = ~mine.isnan().all(dim=1)
            sources = self._row_sources.to(terms.device)
            self.sources.add((mine * weights).nansum(dim=1)[scored], sources[scored])
        return terms

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        """Returns TRL's own sampler of training prompts (``GRPOTrainer._get_train_sampler``), by epoch."""
        trainer: Any = self
        return EpochSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=trainer.num_generations,
            batch_size=self.args.generation_batch_size // trainer.num_generations,
            repeat_count=_small_batches(self),
            shuffle=trainer.shuffle_dataset,
            seed=self.args.seed,
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> RepeatSampler:
        """Returns evaluation prompts in their own order; TRL draws a new one."""
        trainer: Any = self
        return RepeatSampler(data_source=eval_dataset, mini_repeat_count=trainer.num_generations_eval, shuffle=False)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates; each evaluation draws with the same numbers."""
        self.evaluation_calls = 0
        return super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes beside a checkpoint's other files what this process needs to go on as if nothing had happened."""
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        if self.args.save_only_model:
            return
        trainer: Any = self
        folder = Path(trainer._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
        buffer = self._buffered_inputs if self._step % _small_batches(self) else None
        torch.save({"step": self._step, "buffer": buffer, **self._more_state()}, folder / _state_name(self))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Takes back what ``_save_checkpoint`` wrote, but from a checkpoint of another number of processes."""
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        path = Path(checkpoint or "") / _state_name(self)
        if checkpoint is None or not path.is_file():
            return
        state = torch.load(path, map_location=self.args.device, weights_only=True)
        self._step, self._buffered_inputs = state.pop("step"), state.pop("buffer")
        self._take_back(state)

    def _more_state(self) -> dict[str, Any]:
        """Returns what a subclass keeps in checkpoints besides."""
        return {}

    def _take_back(self, state: dict[str, Any]) -> None:
        """Takes back what ``_more_state`` gave."""


class RowSamplingGRPOTrainer(RowSampling, GRPOTrainer):
    """A GRPOTrainer whose samples do not depend on the number of processes."""


class RowSamplingRLOOTrainer(RowSampling, RLOOTrainer):
    """An RLOOTrainer whose samples do not depend on the number of processes."""


class RowSamplingDistillationTrainer(RowSampling, DistillationTrainer):
    """A DistillationTrainer whose samples do not depend on the number of processes.

    The student writes answers, and learns the teacher's distribution at each of their tokens: a generalised
    Jensen-Shannon divergence with ``beta`` 0 for KL(teacher || student), 1 for KL(student || teacher) (Agarwal et al.
    2023, arXiv:2306.13649, section 3). Each prompt is answered once, and each answer learnt from once.

    Args:
        model: The student.
        teacher: The teacher, frozen.
        args: The settings.
        **rest: As for DistillationTrainer.
    """

    num_generations = num_generations_eval = num_iterations = 1
    use_transformers_continuous_batching = False

    def __init__(self, model: Any, *, teacher: Any, args: Any, **rest: Any):
        args.steps_per_generation = args.gradient_accumulation_steps
        args.generation_batch_size = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
        super().__init__(model, teacher_model=teacher, args=args, **rest)
        for language_model in (base_model(self), teacher):  # the loss calls what lies below the output layer
            count_positions_from_mask(language_model.base_model)


@contextlib.contextmanager
def _without_reference(args: Any, reference: "PreTrainedModel | None") -> Iterator[None]:
    """Keeps TRL from loading a reference by the policy's path, while a trainer that has one is built."""
    # TRL needs one where beta is not 0 and there are no adapters to switch off.
    if reference is None:
        yield
        return
    kept = {"beta": args.beta, "sync_ref_model": args.sync_ref_model}
    args.beta, args.sync_ref_model = 0.0, False
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(args, name, value)


def _attach_reference(trainer: Any, reference: "PreTrainedModel") -> None:
    """Gives a trainer its frozen reference, prepared as TRL prepares its own (``GRPOTrainer.__init__``)."""
    from trl.models.utils import prepare_deepspeed, prepare_fsdp
    from trl.trainer.callbacks import SyncRefModelCallback
    from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

    if trainer.args.disable_dropout:
        disable_dropout_in_model(reference)
    in_float32 = getattr(trainer.args, "cast_lm_head_to_fp32", False)
    add_fused_lm_head(reference, temperature=trainer.temperature, cast_lm_head_to_fp32=in_float32)
    count_positions_from_mask(reference)
    reference.requires_grad_(False)
    if trainer.is_deepspeed_enabled:
        trainer.ref_model = prepare_deepspeed(reference, trainer.accelerator)
    elif trainer.is_fsdp_enabled:
        trainer.ref_model = prepare_fsdp(reference, trainer.accelerator)
    else:
        trainer.ref_model = trainer.accelerator.prepare_model(reference, evaluation_mode=True)
    if trainer.args.sync_ref_model:
        prepared: Any = trainer.ref_model
        trainer.add_callback(SyncRefModelCallback(ref_model=prepared, accelerator=trainer.accelerator))


def _small_batches(trainer: Any) -> int:
    """Returns how many small batches each generation is good for."""
    return trainer.args.steps_per_generation * trainer.num_iterations


def _state_name(trainer: Any) -> str:
    return f"rollout_state_{trainer.args.process_index}_of_{trainer.args.world_size}.pt"
