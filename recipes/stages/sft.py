"""Supervised fine-tuning: conversations or prompt-completion pairs, loss on the assistant's turns."""

from typing import TYPE_CHECKING, Any, Literal

from ...data_tools.prepare import Prepared, prepare
from ..errors import RecipeError
from ..job import Job, cache_dir
from . import STAGES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerCallback
    from trl.trainer.sft_config import SFTConfig

# What the data section has already done when the trainer is built.
PREPARED = ("packing", "packing_strategy", "assistant_only_loss", "completion_only_loss", "dataset_num_proc")
_VARLEN = ("flash_attention", "kernels-community")


def prepare_rows(job: Job, split: Literal["train", "eval"]) -> Prepared | None:
    """Turns a split of the recipe's data into token ids and labels; None if the recipe has no such split.

    Raises:
        RecipeError: Packing without a length to pack to.
        DataError: The rows are not what the recipe says.
    """
    stage = STAGES[job.loaded.recipe.stage]
    if split == "eval" and job.loaded.recipe.data.eval is None:
        return None
    packing = job.option("packing_strategy") if job.option("packing") else None
    if packing and job.option("max_length") is None:
        raise RecipeError("trainer.packing needs trainer.max_length, the length of a packed row")
    assistant_only = "messages" in stage.accepts and job.option("assistant_only_loss")
    return prepare(
        job.loaded.recipe.data,
        split,
        base_dir=job.loaded.path.parent,
        tokenizer=job.tokenizer,
        template=job.template,
        accepts=stage.accepts,
        max_length=job.option("max_length"),
        packing=packing,
        loss_on="assistant" if assistant_only else "all",
        cache_dir=cache_dir(),
        num_proc=job.option("dataset_num_proc") or 1,
    )


def build(
    job: Job,
    args: "SFTConfig",
    model: "PreTrainedModel",
    data: dict[str, Prepared | None],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """Builds TRL's SFTTrainer over rows that are already tokenised, masked and packed."""
    from ..packed_trainer import PackedRowSFTTrainer

    return PackedRowSFTTrainer(**trainer_arguments(job, args, model, data, callbacks))


def trainer_arguments(
    job: Job,
    args: "SFTConfig",
    model: "PreTrainedModel",
    data: dict[str, Prepared | None],
    callbacks: "list[TrainerCallback]",
) -> dict[str, Any]:
    """Returns the arguments of an SFTTrainer over rows that are already tokenised, masked and packed."""
    from ..adapters import lora_config
    from ..packed_trainer import row_collator

    train, held_out = data["train"], data["eval"]
    assert train is not None, "a recipe always has data.train"
    multiple = args.pad_to_multiple_of  # SFTConfig has turned the word "auto" into a number or None
    assert not isinstance(multiple, str), "SFTConfig leaves no word here"
    attention: str = getattr(model.config, "_attn_implementation", None) or ""
    return {
        "model": model,
        "args": args,
        "train_dataset": train.dataset,
        "eval_dataset": held_out.dataset if held_out else None,
        "processing_class": job.tokenizer,
        "data_collator": row_collator(
            job.tokenizer,
            packed=bool(job.option("packing")),
            flatten=attention.startswith(_VARLEN),
            pad_to_multiple_of=multiple,
        ),
        "peft_config": lora_config(job, model),
        "callbacks": callbacks,
    }


def config(values: dict[str, Any]) -> "SFTConfig":
    """Builds ``SFTConfig`` without what the data section has already done."""
    from trl.trainer.sft_config import SFTConfig

    rest = {key: value for key, value in values.items() if key not in PREPARED}
    return SFTConfig(**rest, dataset_kwargs={"skip_prepare_dataset": True})
