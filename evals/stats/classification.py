"""The figures of a classifier or a regression on labelled rows: pure functions of labels and predictions.

Each agrees with scikit-learn where that has it. Where a figure has no value (a class without rows, constant
predictions), it is left out and a note says so; nothing is quietly counted as 0.

- **precision, recall, F1** of a class are ``TP / (TP + FP)``, ``TP / (TP + FN)`` and ``2 TP / (2 TP + FP + FN)``. Macro
  means are over the classes that have rows; one of those that is never predicted counts as precision 0.
- **ROC-AUC** is the Mann-Whitney statistic, ties one half (Hanley and McNeil, Radiology 143 (1982)); of the second
  class where there are two, else the mean of one class against the rest (one-vs-rest), over classes that have rows.
- **MCC** of several classes is Gorodkin's R_K ("Comparing two K-category assignments by a K-category correlation
  coefficient", Computational Biology and Chemistry 28 (2004)).
- **Brier score** is the squared distance of the probabilities from the truth (Brier, Monthly Weather Review 78 (1950)):
  summed over classes where there are more than two, of the second class for two, the mean over labels for multi-label.
- **ECE** is described in :func:`ece`.
- Pearson's and Spearman's correlations and the mean squared error are those of the textbooks.

Accuracy, precision and recall are shares of counted rows, and the report gives them Wilson intervals. Means have the
standard error of a mean. All others are bootstrapped over rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...data_tools.errors import listing
from ..records import Metric
from .bootstrap import DRAWS, estimate, metric_of, midranks
from .intervals import LOWER_IS_BETTER, Estimate, Floats

Figure = Callable[[Floats], Floats]

Problem = Literal["single_label", "multi_label", "regression"]
THRESHOLD = 0.5
BINS = 15
_NAMED = 5  # classes named in a note


@dataclass(frozen=True)
class Measured:
    """What was found on the rows.

    Attributes:
        metrics: The figures, those of single classes (``f1/<class>``) last.
        notes: What a reader must know of them.
        confusion: ``{"labels": names, "counts": rows of the true class, columns of the predicted}``; None unless each
            row has one label.
    """

    metrics: list[Metric]
    notes: tuple[str, ...]
    confusion: dict[str, Any] | None = None


@dataclass
class _Sheet:
    """Collects figures while they are worked out."""

    metrics: list[Metric] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, stderr: float | None, n: int) -> None:
        """Adds a figure."""
        self.metrics.append(Metric(name, float(value), stderr, n, name not in LOWER_IS_BETTER))

    def mean(self, name: str, values: "Floats") -> None:
        """Adds the mean of a value of each row, with the standard error of a mean."""
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        self.add(name, values.mean(), error, len(values))

    def estimates(self, found: dict[str, Estimate]) -> None:
        """Adds bootstrapped figures; those that are undefined are named in a note."""
        for name, item in found.items():
            if np.isfinite(item.value):
                self.metrics.append(metric_of(item, name, higher_is_better=name not in LOWER_IS_BETTER))
        undefined = [name for name, item in found.items() if not np.isfinite(item.value) and "/" not in name]
        if undefined:
            self.notes.append(f"undefined on these rows, so left out: {', '.join(undefined)}")


def measure(
    problem: str,
    labels: Sequence[str],
    predictions: "Floats",
    references: "NDArray[Any]",
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> Measured:
    """Compares predictions with the truth.

    Args:
        problem: ``single_label``, ``multi_label`` or ``regression``, with or without transformers' ``_classification``.
        labels: The classes, in the order of the model's outputs; ignored for a regression.
        predictions: Probabilities ``[n, classes]`` (see ``probabilities``), or numbers ``[n]`` for a regression.
        references: The true class ``[n]``, 0/1 ``[n, classes]`` for several labels, or numbers ``[n]``.
        seed: Of the bootstrap.
        draws: Resamples of the bootstrap.

    Raises:
        ValueError: There are no rows, or the shapes do not fit.
    """
    predictions = np.asarray(predictions, dtype=np.float64)
    references = np.asarray(references)
    if not len(references) or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} rows")
    kind = problem.removesuffix("_classification")
    if kind == "regression":
        return _regression(predictions.reshape(len(predictions)), references.astype(np.float64), seed, draws)
    if predictions.shape != (len(references), len(labels)):
        raise ValueError(f"predictions of shape {predictions.shape} for {len(labels)} classes")
    if kind not in ("single_label", "multi_label"):
        raise ValueError(f"no problem '{problem}'")
    return _classes(labels, predictions, references, kind == "single_label", seed, draws)


def probabilities(problem: str, logits: "NDArray[Any]") -> "Floats":
    """Returns softmax (one label) or sigmoid (several) of logits ``[n, classes]``; a regression's numbers ``[n]``."""
    values = np.asarray(logits, dtype=np.float64)
    kind = problem.removesuffix("_classification")
    if kind == "regression":
        return values.reshape(len(values))
    if kind == "multi_label":
        return sigmoid(values)
    shifted = np.exp(values - values.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def sigmoid(values: "Floats") -> "Floats":
    """Returns the logistic function without overflow."""
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1.0, small) / (1 + small)


def _classes(
    labels: Sequence[str], p: "Floats", references: "NDArray[Any]", single: bool, seed: int, draws: int
) -> Measured:
    """Measures a classifier: of one label, classes are 0/1 columns too, of which each row has one."""
    n, classes = p.shape
    if single:
        truth, chosen = (np.eye(classes)[numbers] for numbers in (references.astype(np.int64), p.argmax(axis=1)))
        confidence, hits = p.max(axis=1), (truth == chosen).all(axis=1)
    else:
        truth, chosen = references.astype(np.float64), (p >= THRESHOLD).astype(np.float64)
        confidence, hits = np.maximum(p, 1 - p), truth == chosen
    binary = single and classes == 2  # the second class says all
    squares = np.square(p - truth)
    sheet = _Sheet()
    sheet.mean("accuracy", (truth == chosen).all(axis=1).astype(np.float64))
    sheet.mean("brier", squares[:, -1] if binary else squares.sum(axis=1) if single else squares.mean(axis=1))
    per_class = _class_figures(truth, chosen)
    auc = _aucs(p[:, 1:], truth[:, 1:]) if binary else _aucs(p, truth)
    calibration = ece(confidence, hits.astype(np.float64))

    def figures(w: "Floats") -> "dict[str, Floats]":
        found = per_class(w)
        figures = {f"{name}_macro": _macro(values) for name, values in found.items()}
        if not single:
            figures["f1_micro"] = 2 * (w @ (truth * chosen).sum(axis=1)) / (w @ (truth + chosen).sum(axis=1))
        mcc = _mcc(w, truth, chosen) if single else _macro(_label_mccs(w, truth, chosen))
        figures |= {"roc_auc": _macro(auc(w)), "mcc": mcc, "ece": calibration(w)}
        return figures | {f"f1/{label}": found["f1"][:, k] for k, label in enumerate(labels)}

    sheet.estimates(estimate(figures, n, seed=seed, draws=draws, cost=8 * classes))
    _shares(sheet, labels, truth, chosen)
    _note_classes(sheet, labels, truth, chosen)
    if not single:
        sheet.notes.append(f"a label counts as given from a probability of {THRESHOLD}; accuracy is that of whole rows")
        return Measured(_ordered(sheet.metrics, "f1_macro"), tuple(sheet.notes))
    share = truth.mean(axis=0)
    sheet.notes.append(f"always answering '{labels[int(share.argmax())]}' is right on {share.max():.1%} of the rows")
    confusion = {"labels": list(labels), "counts": (truth.T @ chosen).astype(np.int64).tolist()}
    return Measured(_ordered(sheet.metrics, "accuracy"), tuple(sheet.notes), confusion)


def _regression(p: "Floats", y: "Floats", seed: int, draws: int) -> Measured:
    sheet = _Sheet()
    sheet.mean("mse", np.square(p - y))
    centred_p, centred_y = p - p.mean(), y - y.mean()
    rank_p, rank_y = midranks(p), midranks(y)

    def figures(w: "Floats") -> "dict[str, Floats]":
        return {
            "pearson": correlation(w, centred_p[None], centred_y[None]),
            "spearman": correlation(w, rank_p(w), rank_y(w)),
        }

    sheet.estimates(estimate(figures, len(y), seed=seed, draws=draws, cost=16))
    sheet.notes.append(f"always answering the rows' mean has a mean squared error of {y.var():.4g}")
    return Measured(_ordered(sheet.metrics, "pearson"), tuple(sheet.notes))


def _ordered(metrics: list[Metric], first: str) -> list[Metric]:
    """Puts the primary figure first and figures of single classes last."""
    return sorted(metrics, key=lambda metric: (metric.name != first, "/" in metric.name))


def _macro(values: "Floats") -> "Floats":
    """Averages ``[resamples, classes]`` over the classes in which a figure is defined, in each resample."""
    defined = np.isfinite(values)
    return np.where(defined, values, 0.0).sum(axis=1) / defined.sum(axis=1)


def _class_figures(truth: "Floats", chosen: "Floats") -> "Callable[[Floats], dict[str, Floats]]":
    """Compiles precision, recall and F1 ``[resamples, classes]`` from 0/1 matrices ``[n, classes]``.

    All are NaN for a class without rows; a class that has rows but is never predicted has precision 0.
    """
    from scipy.sparse import csr_array

    hits, true, picked = csr_array(truth * chosen), csr_array(truth), csr_array(chosen)

    def figures(w: "Floats") -> "dict[str, Floats]":
        hit, has, said = w @ hits, w @ true, w @ picked
        counts = {"precision": (hit, np.maximum(said, 1)), "recall": (hit, has), "f1": (2 * hit, has + said)}
        return {name: np.where(has > 0, above / below, np.nan) for name, (above, below) in counts.items()}

    return figures


def _aucs(scores: "Floats", truth: "Floats") -> "Figure":
    """Compiles ROC-AUC ``[resamples, columns]``; NaN where all rows of a resample are of one kind."""
    ranks = [midranks(scores[:, k]) for k in range(scores.shape[1])]

    def figure(w: "Floats") -> "Floats":
        columns = []
        for k, rank in enumerate(ranks):
            positive = w * truth[:, k]
            count = positive.sum(axis=1)
            rest = w.sum(axis=1) - count
            columns.append(((positive * rank(w)).sum(axis=1) - count * (count + 1) / 2) / (count * rest))
        return np.stack(columns, axis=1)

    return figure


def _mcc(w: "Floats", truth: "Floats", chosen: "Floats") -> "Floats":
    """Gorodkin's R_K: the covariance of truth and prediction over their deviations."""
    total = w.sum(axis=1)
    right = w @ (truth * chosen).sum(axis=1)
    has, said = w @ truth, w @ chosen
    spread = (total**2 - (has**2).sum(axis=1)) * (total**2 - (said**2).sum(axis=1))
    return np.where(spread > 0, (right * total - (has * said).sum(axis=1)) / np.sqrt(spread), np.nan)


def _label_mccs(w: "Floats", truth: "Floats", chosen: "Floats") -> "Floats":
    """Matthews' correlation of each label by itself; 0, its limit, where a label is always or never predicted.

    That is the convention of Chicco and Jurman, BMC Genomics 21 (2020). NaN where all rows are of one kind.
    """
    total = w.sum(axis=1)[:, None]
    both, has, said = w @ (truth * chosen), w @ truth, w @ chosen
    spread = has * (total - has) * said * (total - said)
    known = np.where(spread > 0, (both * total - has * said) / np.sqrt(spread), 0.0)
    return np.where(has * (total - has) > 0, known, np.nan)


def correlation(w: "Floats", x: "Floats", y: "Floats") -> "Floats":
    """Pearson's correlation under weights; ``x`` and ``y`` are ``[resamples or 1, n]``."""
    total = w.sum(axis=1, keepdims=True)
    x = x - (w * x).sum(axis=1, keepdims=True) / total
    y = y - (w * y).sum(axis=1, keepdims=True) / total
    spread = np.sqrt((w * x * x).sum(axis=1) * (w * y * y).sum(axis=1))
    return np.where(spread > 0, (w * x * y).sum(axis=1) / spread, np.nan)


def _shares(sheet: _Sheet, labels: Sequence[str], truth: "Floats", chosen: "Floats") -> None:
    """Adds precision and recall of each class, shares of the rows that are predicted or are of it."""
    hits = (truth * chosen).sum(axis=0)
    for name, counts in (("precision", chosen.sum(axis=0)), ("recall", truth.sum(axis=0))):
        for label, hit, count in zip(labels, hits, counts, strict=True):
            if count:
                share = hit / count
                error = float(np.sqrt(share * (1 - share) / (count - 1))) if count > 1 else None
                sheet.add(f"{name}/{label}", share, error, int(count))


def _note_classes(sheet: _Sheet, labels: Sequence[str], truth: "Floats", chosen: "Floats") -> None:
    """Says which classes have no rows, and which are never predicted."""
    has, said = truth.sum(axis=0), chosen.sum(axis=0)
    absent = [label for k, label in enumerate(labels) if not has[k]]
    silent = [label for k, label in enumerate(labels) if has[k] and not said[k]]

    def quoted(names: Sequence[str]) -> str:
        return listing([f"'{name}'" for name in names], _NAMED)

    if absent:
        rest = len(labels) - len(absent)
        sheet.notes.append(f"no row of {quoted(absent)}: macro figures are over the other {rest} classes")
    if silent:
        sheet.notes.append(f"never predicted, so with a precision of 0 in the macro mean: {quoted(silent)}")


def ece(
    confidence: "NDArray[np.float64]", right: "NDArray[np.float64]"
) -> "Callable[[NDArray[np.float64]], NDArray[np.float64]]":
    """Compiles the expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3).

    ``sum_m |B_m| / n * |accuracy(B_m) - confidence(B_m)|`` over 15 bins of equal width on (0, 1], as in the paper.

    Being a sum of absolute values it is biased upwards: a calibrated model of ``n`` rows scores about
    ``sqrt(bins / n)`` times a constant, not 0. Compare it between models on the same rows only.

    Args:
        confidence: The probability given to the prediction, ``[n]``, or ``[n, k]`` for ``k`` predictions a row.
        right: 1 where the prediction is right, 0 where it is wrong, of the same shape; a tie may be 0.5.

    Returns:
        A function from the weights of rows ``[resamples, n]`` to the error of each resample.
    """
    confidence = confidence.reshape(len(confidence), -1)
    right = right.reshape(confidence.shape)
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.zeros((len(confidence), BINS))
    rows = np.arange(len(confidence))
    for column in range(confidence.shape[1]):
        gaps[rows, bins[:, column]] += right[:, column] - confidence[:, column]
    per_row = confidence.shape[1]

    def figure(weights: "NDArray[np.float64]") -> "NDArray[np.float64]":
        return np.abs(weights @ gaps).sum(axis=1) / (per_row * weights.sum(axis=1))

    return figure
