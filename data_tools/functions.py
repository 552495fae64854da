"""Functions that a user's configuration names: a reward, or a judge's rule."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..chat_templates.errors import InputError, first_line


def function_file(reference: str | None) -> str:
    """Returns the file of ``file.py:name``; empty for anything else."""
    file = (reference or "").rpartition(":")[0]
    return file if file.endswith(".py") else ""


def load_function(reference: str, what: str = "function") -> Callable[..., Any]:
    """Imports ``package.module:name`` or ``file.py:name``.

    Args:
        reference: Where the function is.
        what: What it is for, for errors.

    Raises:
        InputError: There is no such module, file or function, or it fails when imported.
    """
    source, colon, name = reference.rpartition(":")
    where = f"{what} {reference}"
    if not (colon and source and name):
        raise InputError("not a function's place", where=where, hint="write `package.module:name` or `file.py:name`")
    try:
        if function_file(reference):
            spec = importlib.util.spec_from_file_location(f"posttrain_user_{Path(source).stem}", source)
            assert spec is not None, "the path ends in .py"
            assert spec.loader is not None, "a .py file has a loader"
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
    except Exception as error:  # whatever a user's module may raise
        kind = type(error).__name__
        raise InputError(f"cannot be imported: {kind}: {first_line(error)}", where=where) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{source} has no function {name}", where=where)
    return function
