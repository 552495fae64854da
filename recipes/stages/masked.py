"""Masked language modelling: encoders that learn the hidden tokens of texts."""

from typing import TYPE_CHECKING, Any

from ...data_tools.collate import SourceCollator
from ...data_tools.masking import Masking, fixed_tokens, word_pieces
from ...data_tools.prepare import Prepared
from ..job import Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

    from ..trainers.masked import MaskedConfig


def config(stage: str, values: dict[str, Any]) -> "MaskedConfig":
    """Builds ``MaskedConfig``; all columns are kept for the collator."""
    from ..trainers.masked import MaskedConfig

    return MaskedConfig(**values, remove_unused_columns=False)


def masking_of(job: Job, seed: int) -> Masking:
    """Returns how the recipe's objective hides tokens."""
    objective, tokenizer = job.loaded.recipe.objective, job.tokenizer
    assert objective is not None, "the stage is one for an objective"
    mask: Any = tokenizer.mask_token_id
    return Masking(
        objective.mlm_probability,
        objective.mask_replace_prob,
        objective.random_replace_prob,
        mask,
        fixed_tokens(tokenizer),
        word_pieces(tokenizer) if objective.whole_word else None,
        seed,
    )


def build(
    job: Job, args: "MaskedConfig", model: "PreTrainedModel", data: dict[str, Prepared | None], common: dict[str, Any]
) -> "Trainer":
    """Builds the trainer over rows that are already tokenised, and masked as they are read."""
    from ..trainers.masked import MaskedCollator, MaskedRows, MaskedTrainer

    masking = masking_of(job, args.seed if args.data_seed is None else args.data_seed)
    rows = {split: MaskedRows(prepared.dataset, masking) for split, prepared in data.items() if prepared is not None}
    assert isinstance(job.tokenizer.pad_token_id, int), "opening a job makes sure of a pad token"
    return MaskedTrainer(
        train_dataset=rows["train"],
        eval_dataset=rows.get("eval"),
        data_collator=SourceCollator(MaskedCollator(job.tokenizer.pad_token_id)),
        sources=job.source_names,
        **{key: common[key] for key in ("model", "args", "processing_class", "callbacks")},
    )
