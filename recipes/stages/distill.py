"""Offline distillation: the student learns the data's next tokens and the teacher's distribution over them."""

from typing import TYPE_CHECKING, Any, Literal

from ...data_tools.prepare import Prepared
from .. import job as jobs
from ..job import Job
from . import sft

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel, Trainer, TrainerCallback

    from ..distillation.cached import Answers
    from ..distillation.config import DistillConfig


def prepare_rows(job: Job, split: Literal["train", "eval"]) -> Prepared | None:
    """Turns a split of the data into token ids and labels, as fine-tuning does.

    Raises:
        RecipeError: The teacher cannot teach this student; packing without a length to pack to.
        DataError: The rows are not what the recipe says.
    """
    from ..distillation.teacher import check_teacher

    if split == "train":
        check_teacher(job)
    return sft.prepare_rows(job, split)


def build(
    job: Job,
    args: "DistillConfig",
    model: "PreTrainedModel",
    data: dict[str, Prepared | None],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """Builds the trainer, with the teacher beside the student or with its answers, made first, on the disk.

    Raises:
        RecipeError: The teacher cannot be loaded.
    """
    from ..distillation.cached import AnswerCollator, numbered
    from ..distillation.teacher import load_teacher, teacher_config
    from ..distillation.trainer import DistillTrainer

    spec = job.loaded.recipe.teacher
    assert spec is not None, "the stage requires a teacher"
    arguments = sft.trainer_arguments(job, args, model, data, callbacks)
    tokens = min(found.get_text_config().vocab_size for found in (model.config, teacher_config(spec)))
    if args.alpha == 1 and not args.hidden_cosine:
        return DistillTrainer(tokens=tokens, **arguments)  # nothing is asked of the teacher
    if spec.top_k is None:
        teacher = load_teacher(spec, job.tokenizer)
        return DistillTrainer(teacher=teacher, tokens=tokens, **arguments)
    splits = [rows for rows in (data["train"], data["eval"]) if rows is not None]
    answers = [_answers(job, args, rows, arguments["data_collator"], tokens) for rows in splits]
    for number, (name, rows) in enumerate(zip(("train_dataset", "eval_dataset"), splits, strict=False)):
        arguments[name] = numbered(rows.dataset, number)
    arguments["data_collator"] = AnswerCollator(arguments["data_collator"], tuple(answers))
    return DistillTrainer(tokens=tokens, **arguments)


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


def config(values: dict[str, Any]) -> "DistillConfig":
    """Builds ``DistillConfig`` without what the data section has already done."""
    from ..distillation.config import DistillConfig

    rest = {key: value for key, value in values.items() if key not in sft.PREPARED}
    return DistillConfig(**rest, dataset_kwargs={"skip_prepare_dataset": True})
