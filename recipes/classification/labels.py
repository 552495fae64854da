"""Labels as they stand in the data to the names and numbers that a head learns."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ...chat_templates.errors import did_you_mean
from ...data_tools.errors import DataError
from ...evals.errors import EvalError
from ...evals.labels import class_name
from ...evals.labels import encode as labels_to_numbers
from ..errors import RecipeError

if TYPE_CHECKING:
    import torch

    from ...evals.classification_figures import Problem


def find_classes(labels: Sequence[Any], given: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the classes in their order: those given, or those of the training rows, sorted.

    Numbers are sorted as numbers, anything else as text.

    Raises:
        DataError: The rows are of fewer than two.
    """
    seen = {class_name(part) for label in labels for part in (label if isinstance(label, list) else (label,))}
    if len(seen) < 2:
        what = f"only one class, '{next(iter(seen))}'" if seen else "no class"
        raise DataError(f"{what} among {len(labels)} rows: there is nothing to tell apart", where="data.train")
    return tuple(given or sorted(seen, key=float if all(map(_is_number, seen)) else str))


def encode(labels: Sequence[Any], classes: Sequence[str], problem: "Problem", where: str) -> "torch.Tensor":
    """Turns labels into what ``losses.hard_losses`` takes, as the scorer does.

    Args:
        labels: As they stand in the data.
        classes: In the head's order; of no use for regression.
        problem: What the head predicts.
        where: Where the rows are from, for errors.

    Returns:
        Class numbers, int64 ``[N]``; zeros and ones, float32 ``[N, C]``; or numbers, float32 ``[N]``.

    Raises:
        DataError: A class is unknown, or a label does not fit the problem.
    """
    import torch

    try:
        encoded = torch.from_numpy(labels_to_numbers(labels, classes, problem, where))
    except EvalError as error:
        raise DataError(error.what, where=where, hint=error.hint) from error
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
    mean = weights.mean() if multi else (weights * rows).sum() / rows.sum()
    return weights / mean


def _is_number(name: str) -> bool:
    try:
        return float(name) - float(name) == 0
    except ValueError:
        return False
