"""Learning the tokens of text and conversations: pretraining, supervised fine-tuning, distillation from a teacher."""

from typing import TYPE_CHECKING, Any

from ...data_tools.prepare import Prepared
from .. import job as jobs
from ..apart import reads_flat_rows
from ..job import Job
from ..model import pretrained
from ..stage_table import STAGES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainingArguments

    from ..distillation.trainer import DistillConfig

# What the data section has already done when the trainer is built.
_PREPARED = ("packing", "packing_strategy", "assistant_only_loss", "completion_only_loss", "dataset_num_proc")


def config(stage: str, values: dict[str, Any]) -> "TrainingArguments":
    """Builds the stage's configuration without what the data section has already done.

    Raises:
        ValueError: Two fields do not go together.
    """
    rest = {key: value for key, value in values.items() if key not in _PREPARED}
    args = STAGES[stage].config_class()(**rest, dataset_kwargs={"skip_prepare_dataset": True})
    if args.label_smoothing_factor and args.loss_type != "nll":
        raise ValueError(f"label_smoothing_factor is not read by loss_type {args.loss_type}; drop one of the two")
    return args


def build(
    job: Job, args: Any, model: "PreTrainedModel", data: dict[str, Prepared | None], common: dict[str, Any]
) -> "Trainer":
    """Builds TRL's SFTTrainer over rows that are already tokenised, masked and packed; with a teacher ours on top."""
    from ...data_tools.collate import PackedRowCollator, SourceCollator, padded_collator
    from ..trainers.text import PackedRowSFTTrainer

    pad: Any = job.tokenizer.pad_token_id
    multiple = args.pad_to_multiple_of  # SFTConfig has turned the word "auto" into a number or None
    common["data_collator"] = padded_collator(pad, pad_to_multiple_of=multiple)
    if job.option("packing"):  # packed rows stay rows unless a varlen kernel asks for one flat row
        common["data_collator"] = PackedRowCollator(pad, flatten=reads_flat_rows(model), pad_to_multiple_of=multiple)
    common["data_collator"] = SourceCollator(common["data_collator"])
    common["sources"] = job.source_names
    return _with_teacher(job, args, model, data, common) if job.loaded.recipe.teacher else PackedRowSFTTrainer(**common)


def _with_teacher(
    job: Job, args: "DistillConfig", model: Any, data: dict[str, Prepared | None], common: dict[str, Any]
) -> "Trainer":
    """Builds the trainer with the teacher beside the student, or with its answers, made first, on the disk."""
    from accelerate import PartialState

    from ..distillation.cached import AnswerCollator, CachedAnswers, ask, numbered
    from ..distillation.teacher import load_teacher
    from ..distillation.trainer import DistillTrainer

    spec = job.loaded.recipe.teacher
    assert spec is not None, "the caller has looked"
    tokens = min(found.get_text_config().vocab_size for found in (model.config, pretrained(spec).config()))
    if args.alpha == 1 and not args.hidden_cosine:
        return DistillTrainer(tokens=tokens, **common)  # nothing is asked of the teacher
    if spec.top_k is None:
        return DistillTrainer(teacher=load_teacher(spec, job.tokenizer), tokens=tokens, **common)
    answers: list[CachedAnswers] = []
    for name, rows in (("train_dataset", data["train"]), ("eval_dataset", data["eval"])):
        if rows is not None:
            common[name] = numbered(rows.dataset, len(answers))
            answers.append(ask(spec, job.tokenizer, rows, common["data_collator"], args, tokens, jobs.cache_dir()))
            if PartialState().is_main_process:
                mass = f"{answers[-1].mass:.1%} of its probability"
                print(f"teacher: its {spec.top_k} likeliest of {tokens} tokens hold {mass}")
    common["data_collator"] = AnswerCollator(common["data_collator"], tuple(answers))
    return DistillTrainer(tokens=tokens, **common)
