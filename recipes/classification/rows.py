"""Rows of a classifier: what a batch is made of, and in which order rows come."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset, Sampler

if TYPE_CHECKING:
    import datasets

_TOKENS = ("input_ids", "token_type_ids")
_MEGABATCH = 50  # steps whose rows are sorted together: enough for little padding, few enough to stay shuffled
STAND_IN = -1


class ClassifyRows(Dataset[dict[str, Any]]):
    """Token ids with an encoded label and a weight.

    Index -1 is a stand-in of weight 0, with which the sampler fills the last batches, so that several processes take as
    many batches each and no row counts twice.

    Args:
        tokens: Has the columns ``input_ids`` and, for models that tell two texts apart by it, ``token_type_ids``.
        labels: int64 ``[N]``, float ``[N, C]`` or float ``[N]``, as ``losses.hard_losses`` takes them.
        weights: Float ``[N]``.
        teacher_logits: A teacher's outputs, float ``[N, C]``, if there is one.
    """

    def __init__(
        self,
        tokens: "datasets.Dataset",
        labels: torch.Tensor,
        weights: torch.Tensor,
        teacher_logits: torch.Tensor | None = None,
    ):
        self._tokens = token_columns(tokens)
        self._tensors = {"labels": labels, "weights": weights}
        if teacher_logits is not None:
            self._tensors["teacher_logits"] = teacher_logits

    def __len__(self) -> int:
        """Counts the rows, the stand-in left out."""
        return len(self._tokens)

    def lengths(self) -> list[int]:
        """Returns the tokens of each row."""
        return token_lengths(self._tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns a row."""
        number = 0 if index == STAND_IN else index
        row = self._tokens[number] | {name: tensor[number] for name, tensor in self._tensors.items()}
        return row | {"weights": torch.zeros(())} if index == STAND_IN else row


def token_columns(tokens: "datasets.Dataset") -> "datasets.Dataset":
    """Leaves the columns that the model reads."""
    return tokens.select_columns([name for name in _TOKENS if name in tokens.column_names])


def token_lengths(tokens: "datasets.Dataset") -> list[int]:
    """Returns the tokens of each row."""
    import pyarrow.compute

    count: Any = pyarrow.compute.list_value_length  # type: ignore[attr-defined]  # made when the module is imported
    return count(tokens.with_format("arrow")["input_ids"][:]).to_pylist()


@dataclass(frozen=True)
class ClassifyCollator:
    """Pads rows on the right and stacks the rest.

    Attributes:
        pad_token_id: Fills ``input_ids``; where it stands there is no attention.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Makes a batch: ``input_ids`` and ``attention_mask``, int64 ``[B, L]``, and a tensor for each other column."""
        length = max(len(row["input_ids"]) for row in rows)
        batch = {"attention_mask": torch.zeros(len(rows), length, dtype=torch.int64)}
        for name in _TOKENS:
            if name in rows[0]:
                fill = self.pad_token_id if name == "input_ids" else 0
                batch[name] = torch.full((len(rows), length), fill, dtype=torch.int64)
        for number, row in enumerate(rows):
            size = len(row["input_ids"])
            batch["attention_mask"][number, :size] = 1
            for name in _TOKENS:
                if name in batch:
                    batch[name][number, :size] = torch.as_tensor(row[name])
        rest = [name for name in rows[0] if name not in _TOKENS]
        return batch | {name: torch.stack([row[name] for row in rows]) for name in rest}


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
