"""The classification trainer: a loss that is one mean over an optimizer step, however the step is cut up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.training_args import TrainingArguments

from ...data_tools.collate import ROW_SOURCES
from ...evals.classification import answers
from ...evals.evaluate_metrics import compute_metrics, load_metric
from ...evals.models import ADAPTER, save_head
from ...evals.stats.classification import Problem, measure, probabilities
from ..schema import ClassifySpec
from ..trainers.sources import BySource
from ..trainers.step_mean import StepMeanTrainer
from .losses import hard_losses, soft_losses

_NOT_FOR_MODEL = ("labels", "weights", "teacher_logits", ROW_SOURCES)


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


class ClassifyTrainer(BySource, StepMeanTrainer):
    """Minimises the weighted mean of the losses of an optimizer step's rows.

    Each batch contributes the sum of its rows' losses, over the sum of the step's weights on all processes.

    With a teacher (rows with ``teacher_logits``) the loss is ``alpha hard + (1 - alpha) soft`` (Hinton et al. 2015,
    arXiv:1503.02531, section 2), where ``soft`` holds the factor T^2; the evaluation loss is the hard part alone, and
    not smoothed.

    Args:
        problem: What the head predicts.
        class_weights: Float ``[C]``, for multi-label losses; with one label a row, weights are the rows' own.
        **options: As for ``BySource`` and transformers' Trainer. The data sets are ``ClassifyRows``.
    """

    args: ClassifyConfig  # type: ignore[assignment]
    sources_are_of = "rows"

    def __init__(self, *, problem: Problem, class_weights: torch.Tensor | None = None, **options: Any):
        super().__init__(**options)
        self._problem: Problem = problem
        self._class_weights = class_weights

    def totals(self, batch: dict[str, Any]) -> torch.Tensor:
        """Returns the sum of the rows' weights and the number of rows that are no stand-ins, float ``[2]``."""
        weights = batch["weights"]
        return torch.stack([weights.sum(), (weights > 0).sum().to(weights.dtype)])

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Computes the batch's part of the step's loss; without a step, in evaluation, the rows' mean.

        Args:
            model: The model, perhaps wrapped.
            inputs: A batch of ``ClassifyCollator``.
            return_outputs: Whether to return the logits too.
            num_items_in_batch: What ``get_batch_samples`` counted, ``[2]``: weights and rows.
        """
        given = {name: value for name, value in inputs.items() if name not in _NOT_FOR_MODEL}
        logits = model(**given).logits.float()
        weights, labels = inputs["weights"], inputs["labels"]
        totals = num_items_in_batch
        smoothing = 0.0 if totals is None else self.args.label_smoothing_factor
        class_weights = None if self._class_weights is None else self._class_weights.to(logits.device)
        hard = hard_losses(self._problem, logits, labels, smoothing=smoothing, class_weights=class_weights)
        if totals is None:
            loss = (hard * weights).mean()  # weights are 1 on average, so this depends on no one batch
        else:
            assert isinstance(totals, torch.Tensor), "get_batch_samples made it"
            there = weights > 0
            losses = hard * weights * (totals[1] / totals[0])  # of which the mean over the step's rows is taken
            if "teacher_logits" in inputs:
                teacher, temperature = inputs["teacher_logits"], self.args.temperature
                soft = soft_losses(self._problem, logits, teacher, temperature=temperature)
                losses = self.args.alpha * losses + (1 - self.args.alpha) * soft * there
            if model.training:
                self.sources.add(losses[there], inputs[ROW_SOURCES][there])
            # gradients are averaged over processes, and this is a sum
            loss = losses.sum() / totals[1] * self.accelerator.num_processes
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model; beside an adapter, which does not say it, what its head's outputs mean."""
        super().save_model(output_dir, _internal_call)
        folder = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save and (folder / ADAPTER).is_file():
            model: Any = self.model
            save_head(folder, model.config)


def metrics(spec: ClassifySpec, labels: Sequence[str]) -> Callable[[Any], dict[str, float]]:
    """Returns what the trainer asks for the figures of an evaluation: the scorer's own, and metrics of `evaluate`.

    Those of single classes are left to the scorer.

    Args:
        spec: The recipe's section.
        labels: The classes, in the order of the head's outputs.

    Raises:
        InputError: Metrics are named, and `evaluate` is not installed.
        SuiteError: There is no such metric.
    """
    for name in spec.metrics:
        load_metric(name, offline=False)  # now, rather than after hours of training

    def compute(found: Any) -> dict[str, float]:
        predicted = probabilities(spec.problem, found.predictions)
        ours = measure(spec.problem, labels, predicted, found.label_ids, draws=0).metrics
        theirs = compute_metrics(spec.metrics, answers(spec.problem, predicted), found.label_ids, offline=False)
        return {metric.name: metric.value for metric in (*ours, *theirs) if "/" not in metric.name}

    return compute
