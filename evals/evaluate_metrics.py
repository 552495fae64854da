"""Metrics of the ``evaluate`` library: by their Hub name, or from a local metric script, which needs no network."""

import contextlib
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import InputError, first_line
from .errors import EvalError, SuiteError
from .models import hub_access, quiet_bars
from .records import Metric

if TYPE_CHECKING:
    import numpy as np

# evaluate says of no metric which way is up; these names are all errors or losses.
_LOWER_IS_BETTER = ("error", "loss", "mse", "mae", "rmse", "mape", "smape", "mase", "brier", "perplexity", "wer", "cer")


def load_metric(name: str, *, offline: bool) -> Any:
    """Loads a metric.

    Args:
        name: A Hub name such as ``accuracy``, or the path of a metric script.
        offline: Whether the Hub is out of bounds; a metric in its cache can still be used.

    Raises:
        InputError: ``evaluate`` is not installed.
        SuiteError: There is no such metric here.
    """
    try:
        import evaluate
    except ImportError as error:
        raise InputError("metrics need the evaluate library", hint="pip install 'posttrain[metrics]'") from error
    closed = contextlib.nullcontext() if Path(name).exists() else hub_access(offline)
    try:
        with quiet_bars(), closed:
            return evaluate.load(name)
    except Exception as error:  # it runs the metric's own code, which may raise anything
        hint = "give the path of a metric script, or say `offline: false`" if offline else None
        raise SuiteError(f"cannot load the metric: {first_line(error)}", where=name, hint=hint) from error


def compute_metrics(
    names: Sequence[str], predictions: "np.ndarray", references: "np.ndarray", *, offline: bool = True
) -> list[Metric]:
    """Computes metrics of the library on answers and truth, as they come and without standard errors.

    Args:
        names: As ``load_metric`` takes them.
        predictions: Class numbers ``[n]``, zeros and ones ``[n, classes]``, or numbers ``[n]``.
        references: Of the same shape.
        offline: Whether the Hub is out of bounds.

    Returns:
        A metric for each number that a metric returns: ``<metric>:<key>``.

    Raises:
        InputError: ``evaluate`` is not installed.
        SuiteError: A metric does not exist.
        EvalError: A metric does not take these answers, or gives no number.
    """
    found: list[Metric] = []
    for name in names:
        metric = load_metric(name, offline=offline)
        try:
            with quiet_bars():
                values = metric.compute(predictions=predictions.tolist(), references=references.tolist())
        except Exception as error:  # as above
            raise EvalError(f"the metric failed: {first_line(error)}", where=name) from error
        figures = {k: float(v) for k, v in (values or {}).items() if isinstance(v, Real) and float(v) - float(v) == 0}
        if not figures:
            raise EvalError("the metric gives no finite number", where=name)
        label = Path(name).stem
        found += [Metric(f"{label}:{key}", value, None, len(references), _up(key)) for key, value in figures.items()]
    return found


def _up(key: str) -> bool:
    return not any(part in _LOWER_IS_BETTER for part in key.lower().split("_"))
