"""Losses that are one mean, over a step or over all held-out rows, however these are cut into batches and processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch.utils.data import Sampler
from transformers import Trainer

from ...data_tools.collate import ROW_LENGTHS
from ...data_tools.masking import IGNORED

if TYPE_CHECKING:
    import datasets

_MEGABATCH = 50  # steps whose rows are sorted together: enough for little padding, few enough to stay shuffled
STAND_IN = -1


class SizedRows(Protocol):
    """Rows that know their lengths; index -1 is a stand-in without weight."""

    def __len__(self) -> int:
        """Counts the rows, the stand-in left out."""
        ...

    def lengths(self) -> list[int]:
        """Returns the tokens of each row."""
        ...


class StepMeanTrainer(Trainer):
    """Divides the sum of a step's losses by what the step's batches hold on all processes.

    transformers' Trainer takes the mean over each small batch and, as the forwards of classifiers and of masked
    language models take any keyword, believes it to be normalised over the step already: gradients grow with the
    accumulation and the number of processes (seen with transformers 5.23: a norm of 14.5 for 3.6 at two times two).
    """

    loss_is_scaled_for_ga = True

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.model_accepts_loss_kwargs = False

    def totals(self, batch: dict[str, Any]) -> torch.Tensor:
        """Returns what a batch adds to the divisors of a step, float ``[any]``."""
        raise NotImplementedError

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """Returns a step's batches, and the sum of their totals on all processes."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        total = sum(
            (self.totals(batch).to(self.args.device) for batch in batches), torch.zeros((), device=self.args.device)
        )
        summed: Any = self.accelerator.reduce(total, reduction="sum")
        return batches, summed

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        """Returns the sampler of ``trainer.train_sampling_strategy``, the same for any number of processes."""
        rows = cast(SizedRows, self.train_dataset if train_dataset is None else train_dataset)
        args: Any = self.args
        strategy, processes = args.train_sampling_strategy, args.world_size
        per_batch = args.train_batch_size * processes
        return StepSampler(
            rows.lengths() if strategy == "group_by_length" else None,
            rows=len(rows),
            step_rows=per_batch * args.gradient_accumulation_steps,
            multiple=1 if processes == 1 or args.dataloader_drop_last else per_batch,
            seed=args.seed if args.data_seed is None else args.data_seed,
            epoch=self.epoch,
            shuffle=strategy != "sequential",
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[Any] | None:
        """Leaves held-out rows in their order, whatever the order of the training rows."""
        return torch.utils.data.SequentialSampler(eval_dataset)

    def epoch(self) -> int:
        """Returns the number of the epoch that is trained or about to begin."""
        return int(self.state.epoch or 0)


class HeldOutMeans:
    """Takes held-out figures over all tokens; stands before the trainer's class among the bases.

    transformers takes the mean of the batches' means, so that the loss, and with it the choice of the best checkpoint,
    depends on the size of the batches.
    """

    args: Any
    accelerator: Any

    def held_out_sums(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Returns what a batch adds to the sums, float ``[any]``."""
        raise NotImplementedError

    def held_out_figures(self, sums: list[float]) -> dict[str, float]:
        """Returns the figures, by name: of the summed loss and the number of tokens the mean."""
        loss, tokens = sums
        return {"loss": loss / max(tokens, 1.0)}

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **options: Any) -> Any:
        """Evaluates as the trainer does, but for the figures."""
        self._held_out = torch.zeros((), dtype=torch.float64, device=self.args.device)
        loop: Any = super()
        output = loop.evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **options)
        figures = self.held_out_figures(self.accelerator.reduce(self._held_out, reduction="sum").tolist())
        output.metrics.update({f"{metric_key_prefix}_{name}": figure for name, figure in figures.items()})
        return output

    def prediction_step(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> tuple[None, None, None]:
        """Adds up a batch; rows that accelerate fills the last one up with, the first ones again, are left out."""
        trainer: Any = self
        inputs, last = trainer._prepare_inputs(inputs), self.accelerator.gradient_state
        labels = inputs["labels"]
        lengths = inputs.pop(ROW_LENGTHS, labels.new_full(labels.shape[:1], labels.shape[1]))
        if last.end_of_dataloader and last.remainder > 0:  # the last rows of all processes that are no filling
            kept = max(0, last.remainder - self.accelerator.process_index * len(lengths))
            labels.view(-1)[lengths[:kept].sum() :] = IGNORED
        with torch.no_grad(), trainer.compute_loss_context_manager():
            self._held_out = self._held_out + self.held_out_sums(model, inputs).double()
        return None, None, None


class StepSampler(Sampler[int]):
    """The rows of an epoch, the same for any number of processes and of accumulated batches.

    transformers' own groups by the rows of one process, so that its order changes with the number of processes, and
    draws from the process's random state, which need not be the same in all of them.

    Args:
        lengths: Tokens of each row, to put rows of like lengths into a step; None to leave them mixed.
        rows: How many rows there are.
        step_rows: Rows of an optimizer step, all processes and accumulated batches together.
        multiple: The epoch is filled up to a multiple of this with stand-ins; rows of a batch on all processes.
        seed: Of the order.
        epoch: Says which epoch is about to begin.
        shuffle: Whether rows are shuffled at all.
    """

    def __init__(
        self,
        lengths: Sequence[int] | None,
        *,
        rows: int,
        step_rows: int,
        multiple: int,
        seed: int,
        epoch: Callable[[], int],
        shuffle: bool = True,
    ):
        self._lengths, self._rows, self._step_rows = lengths, rows, step_rows
        self._filling = -rows % multiple
        self._seed, self._epoch, self._shuffle = seed, epoch, shuffle

    def __len__(self) -> int:
        """Counts the rows of an epoch, stand-ins included."""
        return self._rows + self._filling

    def __iter__(self) -> Iterator[int]:
        """Yields the numbers of rows; the stand-ins come last."""
        if not self._shuffle:
            order = list(range(self._rows))
        else:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch())
            order = torch.randperm(self._rows, generator=generator).tolist()
            if self._lengths is not None:
                order = _grouped(order, self._lengths, self._step_rows, generator)
        yield from order
        yield from [STAND_IN] * self._filling


def token_lengths(tokens: "datasets.Dataset") -> list[int]:
    """Returns the tokens of each row."""
    import pyarrow.compute

    count: Any = pyarrow.compute.list_value_length  # type: ignore[attr-defined]  # made when the module is imported
    return count(tokens.with_format("arrow")["input_ids"][:]).to_pylist()


def _grouped(order: list[int], lengths: Sequence[int], step_rows: int, generator: torch.Generator) -> list[int]:
    """Sorts by length within stretches of many steps, cuts those into steps, and shuffles the steps."""
    stretch = max(1, min(_MEGABATCH, len(order) // (4 * step_rows))) * step_rows
    steps: list[list[int]] = []
    for start in range(0, len(order), stretch):
        part = sorted(order[start : start + stretch], key=lambda row: lengths[row], reverse=True)
        steps += [part[at : at + step_rows] for at in range(0, len(part), step_rows)]
    last = [steps.pop()] if len(steps[-1]) < step_rows else []  # a step that is not full must stay the last
    steps = [steps[number] for number in torch.randperm(len(steps), generator=generator).tolist()]
    if steps:  # the longest row comes first, so that a batch that does not fit into memory fails at once
        longest = max(range(len(steps)), key=lambda number: lengths[steps[number][0]])
        steps[0], steps[longest] = steps[longest], steps[0]
    return [row for step in [*steps, *last] for row in step]
