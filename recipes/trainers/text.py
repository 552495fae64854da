"""SFTTrainer over packed rows that stay rows, and with the loss of each source in the log.

TRL flattens a packed batch of B rows of L tokens into one row of B x L. Without a varlen attention kernel, attention
over that row costs (B L)^2 instead of B L^2. Rows kept as [B, L] with position ids that restart at each document give
the same losses (`benchmarks/train_overhead.py` measures both).
"""

from typing import Any

import torch
from trl.trainer.sft_trainer import SFTTrainer

from ...data_tools.collate import ROW_LENGTHS, TOKEN_SOURCES
from ...data_tools.masking import IGNORED
from ...data_tools.store import SOURCE_COLUMNS
from .sources import BySource
from .step_mean import HeldOutMeans


class BySourceTrainer(BySource, HeldOutMeans, SFTTrainer):
    """An SFTTrainer whose rows say from which sources they are, and whose log has the loss of each.

    A held-out loss is the mean over all tokens that carry loss.
    """

    def held_out_sums(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Returns the summed loss of a batch's tokens, and their number."""
        tokens = (inputs["labels"][:, 1:] != IGNORED).sum()
        loss: Any = self.compute_loss(model, inputs)
        loss = torch.where(tokens > 0, loss.double() * tokens, 0)  # smoothed, a mean over no tokens is NaN
        return torch.stack([loss, tokens])

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*(self._signature_columns or []), *SOURCE_COLUMNS]))


class PackedRowSFTTrainer(BySourceTrainer):
    """An SFTTrainer whose ``num_tokens`` counts every row of a batch.

    TRL takes a batch without attention mask for one flattened row and counts only that row's tokens.
    """

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes TRL's loss and adds it up by source; first adds the rows after the first to the count of tokens."""
        rows, length = inputs["input_ids"].shape
        if rows > 1 and model.training and "attention_mask" not in inputs:
            uncounted = torch.tensor([(rows - 1) * length], device=inputs["input_ids"].device)
            counts: Any = self.accelerator.gather(uncounted)
            self._total_train_tokens += int(counts.sum().item())
        sources, _ = inputs.pop(TOKEN_SOURCES, None), inputs.pop(ROW_LENGTHS, None)
        if not model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        outputs: list[Any] = []

        def keeping(**options: Any) -> Any:
            outputs.append(model(**options))
            return outputs[-1]

        loss: Any = super().compute_loss(keeping, inputs, *args, **kwargs)  # type: ignore[arg-type]
        counted = outputs[-1].label_mask  # [B, L - 1], of the tokens that are predicted
        losses = -outputs[-1].log_probs[counted]
        self.sources.add(losses, None if sources is None else sources[:, 1:][counted])
        return loss
