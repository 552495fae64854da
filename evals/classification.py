"""Scores a classifier, or a regression, on labelled rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EvalError, SuiteError
from .evaluate_metrics import compute_metrics
from .forward import outputs
from .heldout import RowsTask, fingerprint, is_limited
from .labels import encode, problem_of
from .models import LoadedModel, head_config
from .records import Result, parquet
from .spec import ClassificationSpec, SuiteSpec
from .stats import classification as figures
from .task import Checkpoint

_METHOD = 1  # raise when a change here, or in the figures, changes them
_MATRIX = 200  # classes of the largest confusion matrix that is kept


@dataclass(frozen=True)
class Labelled(RowsTask):
    """Labelled rows of a suite, found and hashed."""

    spec: ClassificationSpec

    kind = "classification"

    def check(self, folder: Path) -> None:
        """Refuses a checkpoint that is no classifier, and labels that its head does not know, as :meth:`Task.check`."""
        where, config = self.spec.title, head_config(folder)
        if config is None:
            what = "this task needs a classifier, but the checkpoint is a language model"
            raise EvalError(what, where=where, hint="a `classify` run makes one")
        names, problem = _names(config), problem_of(config)
        if problem == "regression" and len(names) > 1:
            raise EvalError(f"a regression with {len(names)} outputs cannot be scored", where=where)
        labels = [(place, row["label"]) for place, row in self.written(folder)]
        encode([label for _, label in labels], names, problem, where, [place for place, _ in labels])

    def run(self, checkpoint: Checkpoint, template: str | None) -> Result:
        """Compares a classifier's predictions with labels that :meth:`check` has passed, as :meth:`Task.run`."""
        spec, suite, loaded = self.spec, checkpoint.suite, checkpoint.load()
        where, config = spec.title, loaded.model.config
        names, problem = _names(config), problem_of(config)
        rows, notes = self.read(loaded, suite)
        truth = encode([row["label"] for row in rows], names, problem, where)
        logits = outputs(loaded.model, rows, suite.size_of_batch(spec.batch_size), where=where)
        predicted = figures.probabilities(problem, logits)
        measured = figures.measure(problem, names, predicted, truth, seed=suite.seed)
        extra = compute_metrics(spec.metrics, answers(problem, predicted), truth, offline=suite.offline)
        metrics = [*measured.metrics, *extra]
        if spec.metric is not None:
            metrics.sort(key=lambda metric: metric.name != spec.metric)
            if metrics[0].name != spec.metric:
                known = ", ".join(metric.name for metric in metrics if "/" not in metric.name)
                what = f"there is no metric '{spec.metric}' here"
                raise SuiteError(what, where=where, hint=f"there are: {known}")
        samples = _samples(rows, loaded, problem, names, predicted, truth)
        detail = {"confusion": measured.confusion} if measured.confusion and len(names) <= _MATRIX else None
        limited = is_limited(spec.source(), self.kind)
        return Result(tuple(metrics), samples, None, (*notes, *measured.notes), detail, limited)


def define(spec: ClassificationSpec, suite: SuiteSpec) -> Labelled:
    """Hashes labelled rows, and the scripts of metrics, by content.

    Raises:
        SuiteError: The rows cannot be found.
    """
    from ..data_tools.files import hash_file

    scripts = [hash_file(Path(name)) if Path(name).is_file() else name for name in spec.metrics]
    return Labelled(spec, fingerprint(spec, suite, kind="classification", metrics=scripts, method=_METHOD))


def answers(problem: "figures.Problem", predicted: "np.ndarray") -> "np.ndarray":
    """Returns the class ``[n]``, zeros and ones ``[n, classes]``, or the number ``[n]`` that a prediction comes to."""
    if problem == "single_label":
        return predicted.argmax(axis=1)
    return (predicted >= figures.THRESHOLD).astype(np.int64) if problem == "multi_label" else predicted


def _names(config: Any) -> list[str]:
    return [str(config.id2label[number]) for number in range(config.num_labels)]


def _samples(
    rows: Sequence[dict[str, Any]],
    loaded: LoadedModel,
    problem: "figures.Problem",
    names: Sequence[str],
    predicted: "np.ndarray",
    truth: "np.ndarray",
) -> bytes:
    """Packs what was read and answered, a row for each text."""
    table: dict[str, Any] = {"text": loaded.tokenizer.batch_decode([row["input_ids"] for row in rows])}
    if problem == "regression":
        return parquet(table | {"label": truth, "prediction": predicted})
    shown = [_shown(item, names) for item in answers(problem, predicted)]
    return parquet(
        {
            **table,
            "label": [_shown(item, names) for item in truth],
            "prediction": shown,
            "probabilities": predicted.tolist(),
        }
    )


def _shown(item: Any, names: Sequence[str]) -> str:
    """Spells one class, or a JSON list of those that apply."""
    if getattr(item, "ndim", 0) == 0:
        return names[int(item)]
    return json.dumps([name for name, given in zip(names, item, strict=True) if given], ensure_ascii=False)
