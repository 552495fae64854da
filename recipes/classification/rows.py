"""Rows of a classifier: what a batch is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from ...data_tools.collate import ROW_SOURCES
from ...data_tools.store import SOURCE_COLUMN
from ..trainers.step_mean import STAND_IN, token_lengths

if TYPE_CHECKING:
    import datasets

_TOKENS = ("input_ids", "token_type_ids")


class ClassifyRows(Dataset[dict[str, Any]]):
    """Token ids with an encoded label and a weight.

    Index -1 is a stand-in of weight 0, with which the sampler fills the last batches, so that several processes take as
    many batches each and no row counts twice.

    Args:
        tokens: Has the columns ``input_ids`` and, for models that tell two texts apart by it, ``token_type_ids``; of a
            mixture the source of each row.
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
        sources = tokens[SOURCE_COLUMN][:] if SOURCE_COLUMN in tokens.column_names else [0] * len(tokens)
        self._tensors = {"labels": labels, "weights": weights, ROW_SOURCES: torch.tensor(sources)}
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
