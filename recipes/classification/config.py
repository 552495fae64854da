"""The settings of the classification trainer."""

from dataclasses import dataclass, field

from transformers.training_args import TrainingArguments


@dataclass
class ClassifyConfig(TrainingArguments):
    """Settings of sequence classification, beside those of transformers' Trainer."""

    max_length: int | None = field(default=512, metadata={"help": "Tokens of a text at most."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={"help": "`group_by_length` puts texts of like lengths into a batch; `random`; or `sequential`."},
    )
    alpha: float = field(
        default=0.5, metadata={"help": "With a teacher, the share of the labels' loss; the rest is the teacher's."}
    )
    temperature: float = field(
        default=2.0, metadata={"help": "With a teacher, what both models' logits are divided by in its loss."}
    )
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise."})
