"""Labels as they stand in the data to the names and numbers that a head learns."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ...chat_templates.errors import did_you_mean
from ...data_tools.errors import DataError
from ...evals.errors import EvalError
from ...evals.labels import class_name, refuse_flags
from ...evals.labels import encode as labels_to_numbers
from ..errors import RecipeError

if TYPE_CHECKING:
    import torch

    from ...evals.stats.classification import Problem


# How data sets spell that a row has no label; the first two are no names of classes even among words.
_MISSING = ("nan", "null", "na", "n/a", "none", "?", "-")


def find_classes(labels: Sequence[Any], given: Sequence[str] | None, rows: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the classes in their order: those given, or those of the training rows, sorted.

    Numbers are sorted as numbers, anything else as text.

    Args:
        labels: Of the training rows.
        given: The classes that the recipe names, if it does.
        rows: Where each label stands, for errors, if that is known.

    Raises:
        DataError: The rows are of fewer than two, or a label is hardly the name of one and the recipe names none.
    """
    named = [[class_name(part) for part in (label if isinstance(label, list) else (label,))] for label in labels]
    seen = {name for names in named for name in names}
    if given is None:
        with _of_data():
            refuse_flags(labels, [f"data.train: {row}" for row in rows] or ["data.train"])
    for name, why in _doubts(seen) if given is None else ():
        place = next((row for row, names in zip(rows, named, strict=False) if name in names), None)
        where = f"data.train: {place}" if place else "data.train"
        hint = "mend the rows, or name all classes in classify.labels if it is one"
        raise DataError(f"the label '{name}' {why}", where=where, hint=hint)
    if len(seen) < 2:
        what = f"only one class, '{next(iter(seen))}'" if seen else "no class"
        raise DataError(f"{what} among {len(labels)} rows: there is nothing to tell apart", where="data.train")
    return tuple(given or sorted(seen, key=float if all(map(_is_number, seen)) else str))


def _doubts(names: set[str]) -> Iterator[tuple[str, str]]:
    """Yields labels that are hardly names of classes, and why."""
    numbers = [name for name in names if _is_number(name)]
    alike: dict[Any, str] = {}
    for name in sorted(names):
        other = alike.setdefault(float(name) if name in numbers else " ".join(name.casefold().split()), name)
        if other != name:
            yield name, f"differs from '{other}' only in how it is written"
        elif name.casefold() in _MISSING[: None if len(numbers) >= len(names) - 1 else 2]:
            yield name, "looks like a missing one"
        elif name in numbers and float(name) != int(float(name)):
            yield name, "is a fraction; say classify.problem: regression to predict numbers"
        elif name in numbers and float(name) < 0 and len(numbers) == len(names) and "0" in names:
            yield name, "is below 0, which stands for no label in many data sets"


@contextlib.contextmanager
def _of_data() -> Iterator[None]:
    """Makes what scoring says of a label an error of the training data."""
    try:
        yield
    except EvalError as error:
        raise DataError(error.what, where=error.where, hint=error.hint) from error


def encode(
    labels: Sequence[Any], classes: Sequence[str], problem: "Problem", where: str, rows: Sequence[str] = ()
) -> "torch.Tensor":
    """Turns labels into what ``losses.hard_losses`` takes, as the scorer does.

    Args:
        labels: As they stand in the data.
        classes: In the head's order; of no use for regression.
        problem: What the head predicts.
        where: Where the rows are from, for errors.
        rows: Where each label stands, for errors, if that is known.

    Returns:
        Class numbers, int64 ``[N]``; zeros and ones, float32 ``[N, C]``; or numbers, float32 ``[N]``.

    Raises:
        DataError: A class is unknown, or a label does not fit the problem.
    """
    import torch

    with _of_data():
        encoded = torch.from_numpy(labels_to_numbers(labels, classes, problem, where, rows))
    return encoded if problem == "single_label" else encoded.float()


def class_weights(
    asked: Literal["balanced"] | Mapping[str, float] | None, classes: Sequence[str], encoded: "torch.Tensor"
) -> "torch.Tensor | None":
    """Returns the weights of the classes, scaled so that the mean over the training rows is 1.

    ``balanced`` is rows / (classes x rows of the class), as scikit-learn has it (after King and Zeng 2001,
    Logistic Regression in Rare Events Data). Classes that a mapping leaves out weigh 1. The loss is a weighted
    mean over the rows of a step, so the scale changes no gradient; it makes evaluation losses comparable. It also means
    that a step without any row of a rare class counts no less than one with some: balance takes steps of enough rows.

    Args:
        asked: What the recipe says.
        classes: In the head's order.
        encoded: The training labels as ``encode`` gives them.

    Returns:
        Float ``[C]``, or None for equal weights.

    Raises:
        RecipeError: The mapping names an unknown class.
        DataError: ``balanced``, and a class has no training row.
    """
    import torch

    if asked is None:
        return None
    multi = encoded.dim() == 2
    rows = encoded.sum(0) if multi else torch.bincount(encoded, minlength=len(classes)).float()
    if isinstance(asked, Mapping):
        for name in asked:
            if name not in classes:
                hint = did_you_mean(name, classes) or f"classes: {', '.join(classes[:20])}"
                raise RecipeError(f"classify.class_weights: there is no class '{name}'", hint=hint)
        weights = torch.tensor([float(asked.get(name, 1.0)) for name in classes])
    else:
        absent = [name for name, count in zip(classes, rows.tolist(), strict=True) if not count]
        if absent:
            hint = "leave it out of classify.labels, or give class_weights by name"
            raise DataError(f"class '{absent[0]}' has no training row to balance", where="data.train", hint=hint)
        weights = len(encoded) / (len(classes) * rows)
    # Weights of rows average over the rows of the training set, weights inside a row's mean over the classes.
    mean = weights.mean() if multi else (weights * rows).sum() / rows.sum()
    return weights / mean


def _is_number(name: str) -> bool:
    try:
        return float(name) - float(name) == 0
    except ValueError:
        return False
