"""Labels as they stand in held-out rows to the outputs of a classifier's head."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import did_you_mean
from ..data_tools.errors import listing
from .errors import RowsError

if TYPE_CHECKING:
    import numpy as np

    from .stats.classification import Problem

_SHOWN = 5
_LARGEST = 3e38  # a float32 holds no more
_LISTS = "a list holds the names of the classes that apply, not a zero or one for each class"


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


def encode(
    labels: Sequence[Any], names: Sequence[str], problem: "Problem", where: str, rows: Sequence[str] = ()
) -> "np.ndarray":
    """Turns labels into what ``stats.classification.measure`` compares with.

    A label is the name of a class, or for several labels a list of names. Where no label is a name but all are whole
    numbers, they are the numbers of outputs, as with models that others have trained.

    Args:
        labels: As they stand in the data.
        names: The classes, in the order of the head's outputs.
        problem: What the head predicts.
        where: The task, for errors.
        rows: Where each label stands, for errors, if that is known.

    Returns:
        Class numbers, int64 ``[n]``; zeros and ones, float64 ``[n, classes]``; or numbers, float64 ``[n]``.

    Raises:
        RowsError: A label is none of the head's, or does not fit the problem.
    """
    import numpy as np

    places = [f"{where}: {row}" for row in rows] or [where] * len(labels)
    if problem == "regression":
        return np.array([_number(label, place) for label, place in zip(labels, places, strict=True)])
    many = problem == "multi_label"
    found = [_names(label, many, names, place) for label, place in zip(labels, places, strict=True)]
    if many and len(names) > 2 and not {"0", "1"} <= set(names):
        refuse_flags(labels, places)
    number = _numbers(found, names, where, rows)
    if not many:
        return np.array([number[one] for (one,) in found], dtype=np.int64)
    encoded = np.zeros((len(found), len(names)))
    for place, these in enumerate(found):
        encoded[place, [number[name] for name in these]] = 1.0
    return encoded


def _names(label: Any, many: bool, names: Sequence[str], where: str) -> tuple[str, ...]:
    listed = isinstance(label, list | tuple)
    if listed and not many:
        raise RowsError(f"a row has the list {label!r} for its label, but the head gives one class", where=where)
    found = tuple(class_name(part) for part in (label if listed else (label,)))
    # Of two classes, [0, 1] may be both of them or the second alone.
    flags = len(names) == 2 and sorted(found) == ["0", "1"] and not set(found) <= set(names)
    if len(set(found)) < len(found) or flags:
        what = f"the label {label!r} may be both classes or one" if flags else f"a row names a class twice: {label!r}"
        raise RowsError(what, where=where, hint=_LISTS)
    return found


def refuse_flags(labels: Sequence[Any], places: Sequence[str]) -> None:
    """Refuses lists that are all made like a zero or one for each class: they may be that, or numbers of classes.

    Raises:
        RowsError: They are.
    """
    if labels and all(isinstance(one, list | tuple) and len(one) > 1 and {*one} <= {0, 1} for one in labels):
        what = f"all labels are lists such as {labels[0]!r}, which may be numbers of classes or yes and no for each"
        raise RowsError(what, where=places[0], hint=_LISTS)


def _numbers(found: Sequence[tuple[str, ...]], names: Sequence[str], where: str, rows: Sequence[str]) -> dict[str, int]:
    """Returns the output of each label that was found."""
    number = {name: index for index, name in enumerate(names)}
    seen = Counter(name for these in found for name in these)
    if not number.keys() & seen.keys():
        number |= {name: int(name) for name in seen if name.isdecimal() and int(name[:9]) < len(names)}
    strange = [name for name in seen if name not in number]
    if not strange:
        return number
    first = {name: rows[place] for place in reversed(range(len(rows))) for name in found[place]}
    told = [f"'{name}' ({seen[name]} rows)" + (f" at {first[name]}" if rows else "") for name in strange]
    hint = did_you_mean(strange[0], names) or f"it knows: {listing(names)}"
    raise RowsError(f"the head has no class {listing(told, _SHOWN)}", where=where, hint=hint)


def _number(label: Any, where: str) -> float:
    try:
        plain = isinstance(label, str | int | float) and not isinstance(label, bool) and "_" not in str(label)
        value = float(label) if plain else float("nan")
    except (ValueError, OverflowError):
        value = float("nan")
    if not abs(value) <= _LARGEST:  # not a number, or infinite to the head
        raise RowsError(f"the label {label!r} is not a number, as a regression needs", where=where)
    return value
