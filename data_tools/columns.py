"""Looking up the columns of a row."""

from typing import TYPE_CHECKING, Any

from .conversations import MEDIA, is_messages, refuse_marks_of_rows, unread_keys
from .errors import RowError
from .mapping import missing_column

if TYPE_CHECKING:
    from .spec import FormatName

Values = dict[str, Any]

_TALK = frozenset({"messages", "conversations", "conversation"})
_BESIDE = frozenset({"system", "tools"})
_PAIR = frozenset({"prompt", "completion", "response"})
READ: "dict[FormatName, frozenset[str]]" = {
    "text": frozenset({"text"}),
    "messages": _TALK | _BESIDE,
    "sharegpt": _TALK | _BESIDE,
    "alpaca": frozenset({"instruction", "input", "output", "response", "history"}) | _BESIDE,
    "prompt": frozenset({"prompt"}) | _BESIDE,
    "prompt_completion": _PAIR | _BESIDE,
    "preference": frozenset({"prompt", "chosen", "rejected", "margin"}) | _BESIDE,
    "unpaired": _PAIR | _BESIDE | {"label"},
    "classification": frozenset({"text", "text_pair", "label"}),
}
"""The columns that each format reads; what else a row has is named in reports."""
# Columns of one meaning: the first of them that a row has is read.
_ONE_OF = (("messages", "conversations", "conversation"), ("completion", "response"), ("output", "response"))
_TALKS = _TALK | _PAIR | {"chosen", "rejected"}
_TEMPLATE_ARGUMENTS = ("chat_template", "chat_template_kwargs", "enable_thinking")


def refuse_columns(row: Values, *, learnt: bool) -> None:
    """Refuses a row with columns that change what it means to other tools, and that are not taken into account here.

    Args:
        row: The row.
        learnt: Whether its words are learnt from, so that marks of loss have a meaning.

    Raises:
        RowError: Naming the column.
    """
    if learnt:
        refuse_marks_of_rows(row)
    for name in MEDIA:
        if row.get(name):
            raise RowError(f"column '{name}': only text can be trained on")
    for name in _TEMPLATE_ARGUMENTS:
        if row.get(name) not in (None, "", {}):
            raise RowError(
                f"column '{name}': a template takes no arguments from rows",
                "write them into a copy of the template, or rename the column with `columns:`",
            )


def unread(row: Values, format_name: "FormatName") -> set[str]:
    """Names what a row holds that is not read: its columns, and the keys of its messages."""
    read = READ[format_name]
    if format_name in ("preference", "unpaired") and row.get("prompt") is None:
        read = read | _TALK
    for names in _ONE_OF:
        read -= set([name for name in names if name in read and row.get(name) is not None][1:])
    found = {f"column {name}" for name in row.keys() - read if row[name] is not None}
    for name in _TALKS & read & row.keys():
        found |= {f"message key {key}" for key in unread_keys(row[name])}
    return found


def column(row: Values, *names: str) -> Any:
    """Returns the first of several columns that the row has with a value in it.

    Raises:
        RowError: It has none.
    """
    for name in names:
        value = row.get(name)
        if value is not None:
            return value
    if any(name in row for name in names):
        raise RowError(f"column '{names[0]}' is null")
    raise missing_column(names[0], row)


def text_of(row: Values, *names: str) -> str:
    """Returns a column that must hold text with something in it."""
    value = column(row, *names)
    if not isinstance(value, str):
        raise RowError(f"column '{names[0]}' is not text", type(value).__name__)
    if not value.strip():
        raise RowError(f"empty {names[0]}")
    return value


def conversation_column(row: Values) -> str | None:
    """Returns the name of the column that holds a conversation, as a list or as its JSON, if one does."""
    for name in ("messages", "conversations", "conversation"):  # in this order
        value = row.get(name)
        if is_messages(value) or (isinstance(value, str) and value.lstrip().startswith("[")):
            return name
    return None
