"""Metrics of one's own: what a Python function says of a checkpoint, as a score like any other.

The function is ``f(model, tokenizer, step)``; the model is in evaluation mode and on its device, the step None where
nobody knows it. It returns a number; or a number for each of some items, always in the same order, which gives an
interval and lets checkpoints be compared item by item; or several of either by name, the first of which stands for the
metric. What needs an answer's text and no model is a judge's rule (``backend: rules``) over saved answers.
"""

import importlib.util
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..chat_templates.errors import InputError, PosttrainError, first_line
from ..data_tools.files import hash_file, hash_json
from ..data_tools.functions import function_file, load_function
from .errors import EvalError, SuiteError
from .harness import seed_all
from .records import Metric, Result, parquet
from .spec import FunctionSpec, SuiteSpec
from .stats.intervals import mean_estimate
from .task import Checkpoint, Task

_METHOD = 1  # raise when a change here changes figures
_PLAIN = "value"


@dataclass(frozen=True)
class OwnMetric(Task):
    """A function of a suite, found and hashed."""

    spec: FunctionSpec
    seed: int

    def check(self, folder: Path) -> None:
        """Imports the function, as :meth:`Task.check`."""
        self._function()

    def run(self, checkpoint: Checkpoint, template: str | None) -> Result:
        """Asks the function, as :meth:`Task.run`; what is drawn at random is drawn by the suite's seed."""
        import torch

        function, loaded = self._function(), checkpoint.load()
        model: Any = loaded.model
        before = _marks(model)
        seed_all(self.seed)
        try:
            with torch.no_grad():
                said = function(model, loaded.tokenizer, checkpoint.target.step)
        except PosttrainError:
            raise
        except Exception as error:  # whatever a user's function may raise
            what = f"{self.spec.function} failed: {type(error).__name__}: {first_line(error)}"
            raise EvalError(what, where=self.spec.title) from error
        model.eval()
        if _marks(model) != before:
            hint = "let it work on a copy, such as `copy.deepcopy(model)`"
            raise EvalError(f"{self.spec.function} changed the model itself", where=self.spec.title, hint=hint)
        values = {name: self._values(name, value) for name, value in _named(said).items()}
        if not values:
            raise EvalError(f"{self.spec.function} returned no figure", where=self.spec.title)
        figures = tuple(self._figure(name, value) for name, value in values.items())
        rows = [(name, item, value) for name, found in values.items() for item, value in enumerate(found)]
        names, items, numbers_ = zip(*rows, strict=True)
        return Result(figures, parquet({"figure": names, "item": items, "value": numbers_}), None)

    def _function(self) -> Any:
        try:
            return load_function(self.spec.function)
        except InputError as error:
            raise SuiteError(error.what, where=self.spec.title, hint=error.hint) from error

    def _values(self, name: str, value: Any) -> list[float]:
        """Returns the value of each item, or the one number; arrays and tensors are lists too."""
        value = value.tolist() if hasattr(value, "tolist") else value
        found = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if not found or not all(isinstance(one, numbers.Real) and math.isfinite(one) for one in found):
            what = f"{self.spec.function} returned no finite number, or not one for each item, for `{name}`"
            raise EvalError(what, where=self.spec.title, hint=f"it is {str(value)[:80]}")
        return [float(one) for one in found]

    def _figure(self, name: str, values: list[float]) -> Metric:
        found = mean_estimate(values)
        return Metric(name, found.value, found.stderr, len(values), self.spec.higher_is_better)


def _marks(model: Any) -> list[Any]:
    """Returns what changes with a model's weights, which the suite's other tasks are to be scored on too."""
    return [(weight.data_ptr(), weight._version, weight.dtype) for weight in model.parameters()]


def define(spec: FunctionSpec, suite: SuiteSpec) -> OwnMetric:
    """Hashes a function by its file and by the files that it reads.

    Raises:
        SuiteError: There is no such module or file.
    """
    source = function_file(spec.function) or _module_file(spec)
    try:
        files = [hash_file(Path(file)) for file in (source, *spec.files)]
    except OSError as error:
        raise SuiteError(first_line(error), where=spec.title) from error
    name = spec.function.rpartition(":")[2]
    identity = {"name": name, "files": files, "seed": suite.seed, "dtype": suite.dtype, "method": _METHOD}
    return OwnMetric(spec, hash_json({**identity, "up": spec.higher_is_better}), suite.seed)


def _module_file(spec: FunctionSpec) -> str:
    module = spec.function.rpartition(":")[0]
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or found.origin is None:
        hint = "write `package.module:name` or `file.py:name`"
        raise SuiteError(f"there is no module {module or spec.function}", where=spec.title, hint=hint)
    return found.origin


def _named(said: Any) -> Mapping[str, Any]:
    return {str(name): value for name, value in said.items()} if isinstance(said, Mapping) else {_PLAIN: said}
