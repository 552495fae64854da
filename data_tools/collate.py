"""Rows to batches: packed rows stay rows, so that attention costs B x L^2 and not (B x L)^2."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .store import SOURCE_COLUMN, SOURCE_COLUMNS

if TYPE_CHECKING:
    import torch

Row = dict[str, Any]
ROW_LENGTHS = "row_lengths"
TOKEN_SOURCES = "token_sources"
ROW_SOURCES = "row_sources"


@dataclass(frozen=True)
class PackedRowCollator:
    """Collates packed rows.

    By default a batch is ``[B, L]``: ``position_ids`` restart at 0 at every document, and there is no attention mask.
    From restarting positions transformers builds the block-diagonal causal mask itself, as long as the model runs with
    ``use_cache=False`` and its code hands the positions on; an attention mask, even one of ones, or a cache would let
    documents see each other. Without a varlen kernel (flash attention) this is the cheap form: a batch flattened to one
    row of ``B x L`` tokens costs B times as much attention. With such a kernel, ``flatten=True`` gives TRL's
    padding-free batch.

    Labels at the first token of every document are -100, since what precedes it is another document. Padding is a
    document of its own, without labels.

    Attributes:
        pad_token_id: Fills rows that are shorter than the longest.
        flatten: Gives one row with ``cu_seq_lens_*``, ``max_length_*`` and ``seq_idx`` instead, and with
            ``row_lengths``, the tokens of each row of the data, which no model reads.
        pad_to_multiple_of: Rounds L up.
    """

    pad_token_id: int
    flatten: bool = False
    pad_to_multiple_of: int | None = None

    def __call__(self, features: Sequence[Row]) -> "dict[str, torch.Tensor | int]":
        """Makes a batch.

        Args:
            features: Rows with ``input_ids``, ``labels`` and ``seq_lengths``, the tokens of each document in the row.

        Returns:
            ``input_ids``, ``labels`` and ``position_ids``, int64 ``[B, L]``.

        Raises:
            ValueError: A row's ``seq_lengths`` do not add up to its tokens.
        """
        for feature in features:
            if sum(feature["seq_lengths"]) != len(feature["input_ids"]):
                raise ValueError("seq_lengths of a packed row do not add up to its tokens")
        if self.flatten:
            import torch

            batch = _trl_collator(self.pad_token_id, True, self.pad_to_multiple_of)(list(features))
            return {**batch, ROW_LENGTHS: torch.tensor([len(feature["input_ids"]) for feature in features])}
        return self._rows(features)

    def _rows(self, features: Sequence[Row]) -> "dict[str, torch.Tensor | int]":
        import torch

        length = max(len(feature["input_ids"]) for feature in features)
        multiple = self.pad_to_multiple_of or 1
        length = -(-length // multiple) * multiple
        shape = (len(features), length)
        ids = torch.full(shape, self.pad_token_id, dtype=torch.int64)
        labels = torch.full(shape, -100, dtype=torch.int64)
        positions = torch.empty(shape, dtype=torch.int64)
        for number, feature in enumerate(features):
            row = torch.as_tensor(feature["input_ids"])
            ids[number, : len(row)] = row
            labels[number, : len(row)] = torch.as_tensor(feature["labels"])
            documents = [*feature["seq_lengths"], length - len(row)]
            positions[number] = torch.cat([torch.arange(size) for size in documents])
        labels[positions == 0] = -100
        return {"input_ids": ids, "labels": labels, "position_ids": positions}


@dataclass(frozen=True)
class SourceCollator:
    """Adds the source of each token to batches of rows that say it.

    Attributes:
        collate: Makes batches of rows, those padded on the right or laid end to end.
    """

    collate: Callable[[list[Row]], Any]

    def __call__(self, features: Sequence[Row]) -> "dict[str, Any]":
        """Makes a batch; ``token_sources`` is int64, of the shape of ``input_ids``, 0 where there is padding."""
        import torch

        batch = self.collate([{key: row[key] for key in row if key not in SOURCE_COLUMNS} for row in features])
        if SOURCE_COLUMNS[0] not in features[0]:
            return batch
        numbers, lengths = ([torch.as_tensor(row[name]) for row in features] for name in SOURCE_COLUMNS)
        rows = [torch.repeat_interleave(*each) for each in zip(numbers, lengths, strict=True)]
        sources = torch.zeros(batch["input_ids"].shape, dtype=torch.int64)
        for number, row in enumerate(rows if len(sources) == len(rows) else [torch.cat(rows)]):
            sources[number, : len(row)] = row
        return {**batch, TOKEN_SOURCES: sources}


@dataclass(frozen=True)
class RowSourceCollator:
    """Adds the source of each row to batches: ``row_sources``, int64 ``[B]``, 0 where rows do not say it.

    Attributes:
        collate: Makes batches of rows.
    """

    collate: Callable[[list[Row]], Any]

    def __call__(self, features: Sequence[Row]) -> "dict[str, Any]":
        """Makes a batch."""
        import torch

        numbers = torch.tensor([row.get(SOURCE_COLUMN, 0) for row in features])
        rows = [{key: value for key, value in row.items() if key != SOURCE_COLUMN} for row in features]
        return {**self.collate(rows), ROW_SOURCES: numbers}


def padded_collator(pad_token_id: int, pad_to_multiple_of: int | None = None) -> Any:
    """Returns TRL's collator for unpacked rows: ``input_ids``, ``labels`` and ``attention_mask``, all ``[B, L]``."""
    return _trl_collator(pad_token_id, False, pad_to_multiple_of)


def _trl_collator(pad_token_id: int, padding_free: bool, pad_to_multiple_of: int | None) -> Any:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(
        pad_token_id=pad_token_id, padding_free=padding_free, pad_to_multiple_of=pad_to_multiple_of
    )
