"""Takes fields of records as what they should be, and makes their text fit to be shown."""

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

NAME_LENGTH = 80
"""Characters of a name that a person is shown; the whole stands in the JSON."""

Record = dict[str, Any]
"""A record of a run folder, as it was read: any field of it may be missing, or not what it should be."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff]+")

_UNSHOWN = re.compile(_CONTROL.pattern.replace("\\x00-\\x1f", "\\x00-\\x08\\x0b-\\x1f"))


def plain(text: object, length: int = NAME_LENGTH) -> str:
    """Returns text for display: control, bidi-override and invisible characters become ``·``, and it is cut to length.

    Without this a name could clear a terminal, reverse the rest of its line, or fill the page.
    """
    shown = str(text)[: length + 1]
    shown = _CONTROL.sub("·", re.sub(r"[ \t\r\n]+", " ", shown))
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def clean(text: object) -> str:
    """Returns text that may have several lines for display, with what :func:`plain` takes out marked as ``·``."""
    return _UNSHOWN.sub("·", str(text).replace("\r\n", "\n"))


def detail_of(score: Mapping[str, Any]) -> Record:
    """Returns the detail of a score's record."""
    return mapping(score.get("detail"))


def source_hash(text: str) -> str:
    """Returns what a Content-Security-Policy knows a script or a style sheet by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def finite(value: Any) -> float | None:
    """Returns a number of a record, or None for anything else, an infinite one or one too large for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def whole(value: Any) -> int | None:
    """Returns a count or step of a record, or None for anything that cannot be one (``true`` included)."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def text(value: Any) -> str | None:
    """Returns a string field of a record, or None for anything else or an empty one."""
    return value if isinstance(value, str) and value else None


def mapping(value: Any) -> Record:
    """Returns an object field of a record, or an empty dict for anything else."""
    return value if isinstance(value, dict) else {}
