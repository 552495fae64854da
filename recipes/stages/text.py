"""Learning the tokens of text and conversations: pretraining, supervised fine-tuning, distillation from a teacher."""

from typing import TYPE_CHECKING, Any, Literal

from ...data_tools.prepare import Prepared, prepare
from .. import job as jobs
from ..errors import RecipeError
from ..job import Job
from ..stage_table import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel, Trainer, TrainingArguments

    from ..distillation.cached import Answers
    from ..distillation.trainer import DistillConfig

# What the data section has already done when the trainer is built.
_PREPARED = ("packing", "packing_strategy", "assistant_only_loss", "completion_only_loss", "dataset_num_proc")
_VARLEN = ("flash_attention", "kernels-community")


def prepare_rows(job: Job, split: Literal["train", "eval"]) -> Prepared | None:
    """Turns a split of the recipe's data into token ids and labels; None if the recipe has no such split.

    Raises:
        RecipeError: Packing without a length to pack to; a teacher that cannot teach this student.
        DataError: The rows are not what the recipe says.
    """
    recipe = job.loaded.recipe
    if recipe.teacher and split == "train":
        from ..distillation.teacher import check_teacher

        check_teacher(job)
    stage = STAGES[recipe.stage]
    if split == "eval" and recipe.data.eval is None:
        return None
    packing = job.option("packing_strategy") if job.option("packing") else None
    if packing and job.option("max_length") is None:
        raise RecipeError("trainer.packing needs trainer.max_length, the length of a packed row")
    assistant_only = "messages" in stage.accepts and job.option("assistant_only_loss")
    return prepare(
        recipe.data,
        split,
        base_dir=job.loaded.path.parent,
        tokenizer=job.tokenizer,
        template=job.template,
        accepts=stage.accepts,
        max_length=job.option("max_length"),
        packing=packing,
        loss_on="assistant" if assistant_only else "all",
        cache_dir=jobs.cache_dir(),
        num_proc=job.option("dataset_num_proc") or 1,
    )


def config(stage: str, values: dict[str, Any]) -> "TrainingArguments":
    """Builds the stage's configuration without what the data section has already done."""
    rest = {key: value for key, value in values.items() if key not in _PREPARED}
    return STAGES[stage].config_class()(**rest, dataset_kwargs={"skip_prepare_dataset": True})


def build(
    job: Job, args: Any, model: "PreTrainedModel", data: dict[str, Prepared | None], common: dict[str, Any]
) -> "Trainer":
    """Builds TRL's SFTTrainer over rows that are already tokenised, masked and packed; with a teacher ours on top."""
    from ..trainers.text import PackedRowSFTTrainer, row_collator

    attention: str = getattr(model.config, "_attn_implementation", None) or ""
    common["data_collator"] = row_collator(
        job.tokenizer,
        packed=bool(job.option("packing")),
        flatten=attention.startswith(_VARLEN),
        pad_to_multiple_of=args.pad_to_multiple_of,  # SFTConfig has turned the word "auto" into a number or None
    )
    return _with_teacher(job, args, model, data, common) if job.loaded.recipe.teacher else PackedRowSFTTrainer(**common)


def _with_teacher(
    job: Job, args: "DistillConfig", model: Any, data: dict[str, Prepared | None], common: dict[str, Any]
) -> "Trainer":
    """Builds the trainer with the teacher beside the student, or with its answers, made first, on the disk."""
    from ..distillation.cached import AnswerCollator, numbered
    from ..distillation.teacher import load_teacher, teacher_config
    from ..distillation.trainer import DistillTrainer

    spec = job.loaded.recipe.teacher
    assert spec is not None, "the caller has looked"
    tokens = min(found.get_text_config().vocab_size for found in (model.config, teacher_config(spec)))
    if args.alpha == 1 and not args.hidden_cosine:
        return DistillTrainer(tokens=tokens, **common)  # nothing is asked of the teacher
    if spec.top_k is None:
        return DistillTrainer(teacher=load_teacher(spec, job.tokenizer), tokens=tokens, **common)
    splits = [rows for rows in (data["train"], data["eval"]) if rows is not None]
    answers = [_answers(job, args, rows, common["data_collator"], tokens) for rows in splits]
    for number, (name, rows) in enumerate(zip(("train_dataset", "eval_dataset"), splits, strict=False)):
        common[name] = numbered(rows.dataset, number)
    common["data_collator"] = AnswerCollator(common["data_collator"], tuple(answers))
    return DistillTrainer(tokens=tokens, **common)


def _answers(job: Job, args: "DistillConfig", rows: Prepared, collate: "Callable[..., Any]", tokens: int) -> "Answers":
    """Asks the teacher about the rows of a split, or finds its answers."""
    from accelerate import PartialState

    from ..distillation.cached import Asking, ask

    spec = job.loaded.recipe.teacher
    assert spec is not None
    assert spec.top_k is not None
    asking = Asking(
        k=min(spec.top_k, tokens),
        temperature=args.temperature,
        tokens=tokens,
        batch_size=args.per_device_train_batch_size,
        chunk=args.chunk,
        bf16=bool(args.bf16),
        device=args.device,
    )
    answers = ask(spec, job.tokenizer, rows, collate, asking, jobs.cache_dir())
    if PartialState().is_main_process:
        print(f"teacher: its {spec.top_k} likeliest of {tokens} tokens hold {answers.mass:.1%} of its probability")
    return answers
