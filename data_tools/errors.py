"""What can be wrong with data and with the files that describe it."""

from collections.abc import Iterable, Sequence
from typing import Any

from ..chat_templates.errors import InputError, PosttrainError, did_you_mean


class DataError(InputError):
    """A source cannot be read, or its rows are not what the recipe says."""


class HubError(PosttrainError):
    """The Hub did not answer, so that what was named may be there or not.

    Args:
        what: What was wanted of it.
        where: Its name.
    """

    def __init__(self, what: str, *, where: str | None = None):
        why = "the Hub cannot be reached, and it is not in the cache"
        super().__init__(f"{what}: {why}", where=where, hint="try again when the network is back, or name a local path")


def is_silence(error: BaseException) -> bool:
    """Says whether a library failed for want of an answer of the Hub, which the user has not closed."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConnectionError | LocalEntryNotFoundError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None and not constants.HF_HUB_OFFLINE


class BusyError(PosttrainError):
    """Another process holds a lock."""


class RowError(Exception):
    """One row cannot be used. It is dropped and counted; too many of them become a DataError.

    Args:
        reason: The same words for every row with this fault, so that they can be counted.
        detail: What is particular to this row.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def listing(names: Iterable[Any], most: int = 20, separator: str = ", ") -> str:
    """Joins names for a message, cutting a long list short; clauses are separated by semicolons."""
    names = [str(name) for name in names]
    rest = f"{separator if ';' in separator else ' '}and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + rest


def missing_column(name: str, row: dict[str, Any]) -> RowError:
    """A row lacks a column: says which ones it has."""
    hint = did_you_mean(name, (str(column) for column in row))
    have = f"the columns are {listing(row)}" if row else "the row has no columns"
    return RowError(f"missing column '{name}'", f"{have}; {hint}" if hint else have)


class SpecError(InputError):
    """A YAML file does not fit its schema; holds every problem found, not only the first.

    Args:
        problems: One line for each problem, ``file:line: dotted.key: what; hint``.
    """

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
