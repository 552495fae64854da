"""TRL's ORPO trainer over rows that are already tokenised; the one module that imports ``trl.experimental``.

TRL's likelihood term is a mean over the tokens of each small batch; here it is one over all tokens of a step, so that
four batches of one row train as one batch of four does.
"""

import warnings
from typing import Any

import torch
from trl.trainer.utils import selective_log_softmax

from ...data_tools.collate import ROW_SOURCES
from .preference import SHARE, PreparedRows, add_token_shares

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")
    from trl.experimental.orpo.orpo_config import ORPOConfig
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer
    from trl.experimental.utils import DPODataCollatorWithPadding

__all__ = ["ORPOCollator", "ORPOConfig", "PreparedORPOTrainer"]


class ORPOCollator(DPODataCollatorWithPadding):
    """Joins prompt and answers into the columns that TRL's ORPO makes for itself."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns ids, masks and labels [B, L], for the chosen and for the rejected rows; -100 in the prompt."""
        return super().__call__([_joined(row) for row in features])


def _joined(row: dict[str, Any]) -> dict[str, list[int]]:
    prompt, result = list(row["prompt_ids"]), {}
    for side in ("chosen", "rejected"):
        answer = list(row[f"{side}_ids"])
        result[f"{side}_input_ids"] = prompt + answer
        result[f"{side}_attention_mask"] = [1] * (len(prompt) + len(answer))
        result[f"{side}_labels"] = [-100] * len(prompt) + answer
    return result


class PreparedORPOTrainer(PreparedRows, ORPOTrainer):
    """An ORPOTrainer that takes prepared rows; its likelihood term is a mean over all chosen tokens of the step."""

    def __init__(self, *, train_dataset: Any, eval_dataset: Any, **kwargs: Any):
        # TRL would tokenise anew whatever it is given here, so it is given no rows.
        none = {"train_dataset": train_dataset.select([]), "eval_dataset": eval_dataset and eval_dataset.select([])}
        super().__init__(**none, **kwargs)
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.use_dpo_data_collator = True  # ours gives the same columns

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Takes the batches of a step; adds each one's share of the step's tokens."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        add_token_shares(self, batches, [batch["chosen_attention_mask"][:, 1:].sum() for batch in batches])
        return batches, items

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes TRL's loss; keeps the rows' sources for its likelihood term."""
        self._row_sources = inputs[ROW_SOURCES]
        return super().compute_loss(model, inputs, *args, **kwargs)

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> Any:
        """Runs the model on both answers; gives the likelihood term the batch's share of tokens."""
        share = batch.pop(SHARE, 1.0)
        result: Any = super().concatenated_forward(model, batch)
        if self.model.training and self.sources.logged:
            length = batch["chosen_input_ids"].shape[1]
            ids, mask = batch["chosen_input_ids"][:, 1:], batch["chosen_attention_mask"][:, 1:]
            with torch.no_grad():
                likelihoods = (selective_log_softmax(result[2][:, : length - 1], ids) * mask).sum(1)
            self.sources.add(-likelihoods * share * len(ids) / mask.sum(), self._row_sources, counted=False)
        return (*result[:4], result[4] * share, *result[5:])
