"""The figures of an evaluation while training: the scorer's own, and those of the `evaluate` library that are named."""

from collections.abc import Callable, Sequence
from typing import Any

from ...evals.classification import answers
from ...evals.evaluate_metrics import compute_metrics, load_metric
from ...evals.stats.classification import measure, probabilities
from ..schema import ClassifySpec


def metrics(spec: ClassifySpec, labels: Sequence[str]) -> Callable[[Any], dict[str, float]]:
    """Returns what the trainer asks for the figures of an evaluation; those of single classes are left to the scorer.

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
