"""Values as JSON and YAML have them: which are numbers, and copies with every leaf changed."""

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[float]:
    """Says whether a value is a number; Python takes true and false for numbers too."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def with_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Returns a copy in which whatever is neither a mapping nor a list is changed."""
    if isinstance(value, Mapping):
        return {key: with_leaves(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_leaves(item, change) for item in value]
    return change(value)
