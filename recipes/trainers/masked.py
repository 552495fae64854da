"""Masked language modelling: the loss of hidden tokens, one mean over an optimizer step, however the step is cut up.

What is evaluated is that loss on held-out rows, whose masks are the same each time. It is no pseudo-perplexity (Salazar
et al. 2020, arXiv:1910.14659), which hides one token of a text at a time: figures of the two are not to be compared.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, Sampler
from transformers.training_args import TrainingArguments

from ...data_tools.collate import TOKEN_SOURCES
from ...data_tools.masking import IGNORED, Masking
from ...data_tools.store import SOURCE_COLUMNS
from .sources import BySource
from .step_mean import STAND_IN, HeldOutMeans, StepMeanTrainer, token_lengths

if TYPE_CHECKING:
    import datasets


@dataclass
class MaskedConfig(TrainingArguments):
    """Settings of masked language modelling, beside those of transformers' Trainer."""

    max_length: int | None = field(default=512, metadata={"help": "Tokens of a row at most."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={"help": "`group_by_length` puts texts of like lengths into a batch; `random`; or `sequential`."},
    )
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise."})


class MaskedRows(Dataset[dict[str, Any]]):
    """Rows with some of their tokens hidden, by epoch.

    Args:
        tokens: Has the column ``input_ids``, and those that say the sources of a mixture.
        masking: Hides tokens.
    """

    def __init__(self, tokens: "datasets.Dataset", masking: Masking):
        columns = [name for name in ("input_ids", *SOURCE_COLUMNS) if name in tokens.column_names]
        self._tokens, self._masking = tokens.select_columns(columns), masking

    def __len__(self) -> int:
        """Counts the rows, the stand-in left out."""
        return len(self._tokens)

    def lengths(self) -> list[int]:
        """Returns the tokens of each row."""
        return token_lengths(self._tokens)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Returns a row: of training rows by epoch and number, of held-out ones by number; a stand-in has no labels."""
        epoch, index = key if isinstance(key, tuple) else (None, key)
        row = self._tokens[0 if index == STAND_IN else index]
        ids = np.asarray(row["input_ids"], dtype=np.int64)
        if index == STAND_IN:
            return row | {"input_ids": ids, "labels": np.full_like(ids, IGNORED), "maskable": 0}
        read, labels = self._masking(ids, index, epoch)
        return row | {"input_ids": read, "labels": labels, "maskable": int((~self._masking.fixed[ids]).sum())}


@dataclass(frozen=True)
class MaskedCollator:
    """Pads rows on the right.

    Attributes:
        pad_token_id: Fills ``input_ids``; where it stands there is no attention and no label.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Makes a batch: ``input_ids``, ``attention_mask`` and ``labels``, int64 ``[B, L]``, ``maskable`` ``[B]``."""
        shape = len(rows), max(len(row["input_ids"]) for row in rows)
        batch = {
            "input_ids": torch.full(shape, self.pad_token_id, dtype=torch.int64),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, IGNORED, dtype=torch.int64),
        }
        for number, row in enumerate(rows):
            size = len(row["input_ids"])
            batch["attention_mask"][number, :size] = 1
            for name in ("input_ids", "labels"):
                batch[name][number, :size] = torch.from_numpy(row[name])
        return batch | {"maskable": torch.tensor([row["maskable"] for row in rows])}


class ByEpoch(Sampler[tuple[int, int]]):
    """The numbers of another sampler, each beside the epoch.

    Args:
        numbers: The other sampler.
        epoch: Says which epoch is about to begin.
    """

    def __init__(self, numbers: Sampler[int], epoch: Callable[[], int]):
        self._numbers, self._epoch = numbers, epoch

    def __len__(self) -> int:
        """Counts them."""
        numbers: Any = self._numbers
        return len(numbers)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yields epoch and number."""
        epoch = self._epoch()
        for number in self._numbers:
            yield epoch, number


class MaskedTrainer(BySource, HeldOutMeans, StepMeanTrainer):
    """Minimises the mean loss of the hidden tokens of an optimizer step, those of all its batches and processes.

    The log has ``masked_share``, the share that they are of the tokens that may be hidden, in the step that is logged.
    """

    args: MaskedConfig  # type: ignore[assignment]
    sources_are_of = "hidden tokens"

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._step = torch.ones(2)

    def totals(self, batch: dict[str, Any]) -> torch.Tensor:
        """Returns how many tokens are hidden, and how many might be, float ``[2]``."""
        return torch.stack([(batch["labels"] != IGNORED).sum(), batch["maskable"].sum()]).float()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """Returns a step's batches and totals, which the log is told of too."""
        batches, self._step = super().get_batch_samples(*args, **kwargs)
        return batches, self._step

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Computes the batch's part of the step's loss.

        Args:
            model: The model, perhaps wrapped.
            inputs: A batch of ``MaskedCollator``.
            return_outputs: Whether to return the logits too.
            num_items_in_batch: What ``get_batch_samples`` counted; None takes the mean over the batch alone.
        """
        logits, losses, _ = self._forward(model, inputs)
        hidden = inputs["labels"] != IGNORED
        if model.training:
            sources = inputs.get(TOKEN_SOURCES)
            self.sources.add(losses, None if sources is None else sources[hidden])
        total = hidden.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch).reshape(-1)[0]
        loss = losses.sum() / total.clamp(min=1)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes, and this is a sum
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def _forward(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the logits, and of the hidden tokens the losses and whether the likeliest token is right."""
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        hidden = inputs["labels"] != IGNORED
        wanted, found = inputs["labels"][hidden], logits[hidden].float()
        return logits, cross_entropy(found, wanted, reduction="none"), found.argmax(-1) == wanted

    def held_out_sums(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Returns the summed losses of a batch's hidden tokens, their number, and that of right guesses."""
        _, losses, right = self._forward(model, inputs)
        return torch.stack([losses.double().sum(), torch.tensor(len(losses), device=losses.device), right.sum()])

    def held_out_figures(self, sums: list[float]) -> dict[str, float]:
        """Returns the mean loss of all hidden tokens, and the share of them of which the likeliest token is right."""
        losses, hidden, right = sums
        return {"loss": losses / max(hidden, 1.0), "accuracy": right / max(hidden, 1.0), "masked_tokens": hidden}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs beside the loss which share of the step's tokens was hidden."""
        if "loss" in logs:
            hidden, maskable = self._step.tolist()
            logs = logs | {"masked_share": round(hidden / max(maskable, 1.0), 4)}
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        """Returns the rows' order, each number beside the epoch, by which it is masked."""
        numbers = super()._get_train_sampler(train_dataset)
        assert numbers is not None, "the base class has one"
        return ByEpoch(numbers, self.epoch)
