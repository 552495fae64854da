"""Labels as they stand in held-out rows to the outputs of a classifier's head."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import did_you_mean
from .errors import EvalError

if TYPE_CHECKING:
    import numpy as np

    from .classification_figures import Problem

_SHOWN = 5


def problem_of(config: Any) -> "Problem":
    """Returns what a checkpoint's head predicts; one that does not say predicts a number if it has but one output."""
    given = str(config.problem_type or "").removesuffix("_classification")
    problems: dict[str, Problem] = {
        "single_label": "single_label",
        "multi_label": "multi_label",
        "regression": "regression",
    }
    return problems.get(given) or ("regression" if config.num_labels == 1 else "single_label")


def class_name(label: Any) -> str:
    """Returns the name of a class: its text, or its number as one writes it."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def encode(labels: Sequence[Any], names: Sequence[str], problem: "Problem", where: str) -> "np.ndarray":
    """Turns labels into what ``classification_figures.measure`` compares with.

    A label is the name of a class, or for several labels a list of names. Where no label is a name but all are whole
    numbers, they are the numbers of outputs, as with models that others have trained.

    Args:
        labels: As they stand in the data.
        names: The classes, in the order of the head's outputs.
        problem: What the head predicts.
        where: The task, for errors.

    Returns:
        Class numbers, int64 ``[n]``; zeros and ones, float64 ``[n, classes]``; or numbers, float64 ``[n]``.

    Raises:
        EvalError: A label is none of the head's, or does not fit the problem.
    """
    import numpy as np

    if problem == "regression":
        return np.array([_number(label, where) for label in labels])
    many = problem == "multi_label"
    rows = [_names(label, many, where) for label in labels]
    number = _numbers(Counter(name for row in rows for name in row), names, where)
    if not many:
        return np.array([number[row[0]] for row in rows], dtype=np.int64)
    encoded = np.zeros((len(rows), len(names)))
    for place, row in enumerate(rows):
        encoded[place, [number[name] for name in row]] = 1.0
    return encoded


def _names(label: Any, many: bool, where: str) -> tuple[str, ...]:
    listed = isinstance(label, list | tuple)
    if listed and not many:
        raise EvalError(f"a row has the list {label!r} for its label, but the head gives one class", where=where)
    found = tuple(class_name(part) for part in (label if listed else (label,)))
    if len(set(found)) < len(found):
        hint = "a list holds the names of the classes that apply, not a zero or one for each class"
        raise EvalError(f"a row names a class twice: {label!r}", where=where, hint=hint)
    return found


def _numbers(seen: Counter[str], names: Sequence[str], where: str) -> dict[str, int]:
    """Returns the output of each label that was seen."""
    number = {name: index for index, name in enumerate(names)}
    strange = [name for name in seen if name not in number]
    if not strange:
        return number
    if len(strange) == len(seen) and all(name.isdecimal() and int(name) < len(names) for name in seen):
        return {name: int(name) for name in seen}
    listed = ", ".join(f"'{name}' ({seen[name]} rows)" for name in strange[:_SHOWN])
    more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
    hint = did_you_mean(strange[0], names) or f"it knows: {', '.join(names[:20])}"
    raise EvalError(f"the head has no class {listed}{more}", where=where, hint=hint)


def _number(label: Any, where: str) -> float:
    try:
        value = float(label) if isinstance(label, str | int | float) else float("nan")
    except ValueError:
        value = float("nan")
    if value - value != 0:  # not a number, or infinite
        raise EvalError(f"the label {label!r} is not a number, as a regression needs", where=where)
    return value
