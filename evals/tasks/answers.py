"""The right answers of rows as they are written: the functions that YAML files name.

What a template gives is read again by lm-eval, which takes a text in brackets for a list of several right answers.
"""

from typing import Any


def as_written(doc: dict[str, Any]) -> str | list[str]:
    """Returns the right answer of a row, or the list of those that are."""
    answer = doc["answer"]
    return answer if isinstance(answer, list) else str(answer)


def option(doc: dict[str, Any]) -> Any:
    """Returns the right option of a row: its place from 0, of digits too, or its text; a list if several are right."""
    answer = doc["answer"]
    return int(answer) if isinstance(answer, str) and answer.isdecimal() else answer
