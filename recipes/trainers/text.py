"""SFTTrainer over packed rows that stay rows.

TRL flattens a packed batch of B rows of L tokens into one row of B x L. Without a varlen attention kernel, attention
over that row costs (B L)^2 instead of B L^2. Rows kept as [B, L] with position ids that restart at each document give
the same losses (`benchmarks/train_overhead.py` measures both).
"""

from typing import Any

import torch
from trl.trainer.sft_trainer import SFTTrainer


class PackedRowSFTTrainer(SFTTrainer):
    """An SFTTrainer whose ``num_tokens`` counts every row of a batch.

    TRL takes a batch without attention mask for one flattened row and counts only that row's tokens.
    """

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes TRL's loss; then adds the tokens of the rows after the first to the count."""
        rows, length = inputs["input_ids"].shape
        if rows > 1 and model.training and "attention_mask" not in inputs:
            uncounted = torch.tensor([(rows - 1) * length], device=inputs["input_ids"].device)
            counts: Any = self.accelerator.gather(uncounted)
            self._total_train_tokens += int(counts.sum().item())
        return super().compute_loss(model, inputs, *args, **kwargs)
