"""What can go wrong between a checkpoint and its score."""

from ..chat_templates.errors import InputError, PosttrainError


class EvalError(PosttrainError):
    """A task could not be scored on a checkpoint."""


class RowsError(EvalError, InputError):
    """Rows do not fit the checkpoint that is to be scored on them."""


class SuiteError(InputError):
    """A suite names a task, a metric or a data file that does not exist or cannot be used."""
