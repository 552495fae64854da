"""The settings of the classification trainer."""

from dataclasses import dataclass, field

from transformers.training_args import TrainingArguments


@dataclass
class ClassifyConfig(TrainingArguments):
    """Settings of sequence classification, beside those of transformers' Trainer."""

    max_length: int | None = field(default=512, metadata={"help": "Tokens of a text at most."})
