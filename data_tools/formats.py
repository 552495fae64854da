"""The layouts of columns that public data sets use, each turned into TRL's canonical columns."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, get_args

from .columns import READERS, Values, answer_messages, conversation_column, prompt_reader, refuse_columns, unread
from .conversations import check_training, parse_json, unmarked
from .errors import DataError, RowError, listing
from .mapping import Evaluate, as_text, compile_template
from .spec import FormatName, Kind

if TYPE_CHECKING:
    from .readers import Row
    from .spec import SourceSpec

Canonicalize = Callable[[Values], Values]

_NATURAL: dict[FormatName, Kind] = {"sharegpt": "messages", "alpaca": "messages"}  # of the others it is the name
# A row of one kind that can stand in for another: without loss, or as the prompt that it begins with.
_CONVERTIBLE: dict[Kind, tuple[Kind, ...]] = {
    "messages": ("prompt_completion", "prompt"),
    "prompt_completion": ("messages", "prompt"),
    "preference": ("prompt",),
}
_TEXT_KEYS = ("text", "text_pair", "system")  # of a mapping
_COLUMNS_HELP = {
    "text": "text",
    "messages": "messages",
    "sharegpt": "conversations",
    "alpaca": "instruction + output",
    "prompt": "prompt",
    "prompt_completion": "prompt + completion",
    "preference": "chosen + rejected",
    "unpaired": "prompt + completion + label",
    "classification": "text + label",
}


def _natural(format_name: FormatName) -> Kind:
    """Returns the kind that rows of a format are by themselves."""
    return _NATURAL.get(format_name, format_name)  # type: ignore[return-value]


def kind_for(format_name: FormatName, accepts: Collection[Kind]) -> Kind | None:
    """Returns the accepted kind that rows of a format become, or None if they fit none."""
    natural = _natural(format_name)
    options = (natural, *_CONVERTIBLE.get(natural, ()))
    return next((kind for kind in options if kind in accepts), None)


def formats_of(columns: Values) -> list[FormatName]:
    """Returns every format that a row with these columns could be of, judged by names and shapes of values."""
    has = columns.keys()
    talk = conversation_column(columns)
    found: list[FormatName] = []
    if "chosen" in has and "rejected" in has:
        found.append("preference")
    if "label" in has and ({"prompt", "completion"} <= has or (talk and isinstance(columns["label"], bool))):
        found.append("unpaired")
    elif "prompt" in has and ("completion" in has or "response" in has):
        found.append("prompt_completion")
    if "instruction" in has and ("output" in has or "response" in has):
        found.append("alpaca")
    if talk:
        found.append("sharegpt" if _speaks_sharegpt(columns[talk]) else "messages")
    if isinstance(columns.get("text"), str):
        found.append("classification" if "label" in has else "text")
        if "label" in has:
            found.append("text")
    if "prompt" in has and not {"preference", "unpaired", "prompt_completion"} & set(found):
        found.append("prompt")
    return found


def _speaks_sharegpt(talk: Any) -> bool:
    """Whether the first message of a conversation is written as ShareGPT writes it."""
    try:
        talk = parse_json(talk, "the conversation") if isinstance(talk, str) else talk
    except RowError:
        return False
    first = talk[0] if talk and isinstance(talk[0], dict) else {}
    return "from" in first or first.get("role") in ("human", "gpt")


def infer(columns: Values, accepts: Collection[Kind], where: str) -> FormatName:
    """Decides the format of a source from its columns: of several, the one that leaves the least of them unread.

    Args:
        columns: A value for each column, gathered from the first rows.
        accepts: The kinds of row that the caller can use; formats that cannot become one are no candidates.
        where: The source, for the message.

    Raises:
        DataError: No format fits, or several do of which none reads all that the others read.
    """
    seen = formats_of(columns)
    found: list[FormatName] = [name for name in seen if kind_for(name, accepts)]
    left = {name: unread(columns, name) for name in found}
    for name in found:
        if all(left[name] < left[other] for other in found if other != name):
            return name
    names = listing(columns)
    if found:
        raise DataError(
            f"its columns ({names}) fit more than one format: {', '.join(found)}",
            where=where,
            hint="choose one with `format:`",
        )
    if seen and seen != ["prompt"]:  # a lone prompt column says no more than that an answer is missing
        raise _unusable(seen[0], accepts, where)
    known = "; ".join(f"{name}: {_COLUMNS_HELP[name]}" for name in get_args(FormatName) if kind_for(name, accepts))
    raise DataError(
        f"its columns ({names}) fit no format",
        where=where,
        hint="rename them with `columns:` (by number, `{0: text, 1: label}`, in a table without a header), or write a "
        f"mapping; what is looked for: {known}",
    )


def choose(
    source: "SourceSpec", rows: "Sequence[Row]", accepts: Collection[Kind]
) -> tuple[FormatName | None, Kind | None]:
    """Decides the format of a source, None for a mapping, and the kind that its rows become here.

    Both are None if neither the source nor any of its first rows, of which none could be read, says what they are.

    Raises:
        DataError: The caller can use no such rows, or no one format fits the columns of the first of them.
    """
    name = source.mapping_kind or source.format
    if name is None and any(row.problem is None for row in rows):
        columns: Values = {}
        for row in rows:
            columns |= {key: value for key, value in row.values.items() if columns.get(key) in (None, "", [])}
        name = infer(columns, accepts, source.title)
    if name is None:
        return None, None
    kind = kind_for(name, accepts)
    if kind is None:
        raise _unusable(name, accepts, source.title)
    return (None if source.mapping_kind else name), kind


def _unusable(format_name: FormatName, accepts: Collection[Kind], where: str) -> DataError:
    usable = ", ".join(name for name in get_args(FormatName) if kind_for(name, accepts))
    return DataError(
        f"rows of format '{format_name}' cannot be used here",
        where=where,
        hint=f"formats that can: {usable}; or write a mapping for one of those",
    )


def canonicalizer(
    source: "SourceSpec", format_name: FormatName | None, kind: Kind, ignored: Counter[str] | None = None
) -> Canonicalize:
    """Compiles what turns a row's columns into the canonical columns of a kind.

    Args:
        source: Its mapping and its default system message are used.
        format_name: The format of the rows; None if the source has a mapping.
        kind: What to make of them, as ``kind_for`` says.
        ignored: Counts what rows hold beside what is read, by name, as ``columns.unread`` gives it.

    Returns:
        A function from a row's columns to ``{"text"}``, ``{"messages", "tools"}``, ``{"prompt", "completion",
        "tools"}``, ``{"prompt", "chosen", "rejected", "tools"}`` (and ``margin`` if the row has one), ``{"prompt",
        "completion", "label", "tools"}``, ``{"text", "label"}`` (and ``text_pair`` for a pair) or ``{"prompt", …}``
        with the row's other plain columns. ``tools`` is a list or None and stands only beside messages. Prompts and
        answers are all text, or all lists of messages. It raises RowError.
    """
    mapped = source.mapping_kind is not None
    name = source.mapping_kind or format_name
    if name is None:
        raise ValueError("a source without a mapping needs a format")
    mapping = compile_mapping(source)
    natural = _natural(name)
    prompts = prompt_reader(name) if kind == "prompt" else None
    convert = _CONVERTERS[natural, kind] if natural != kind and prompts is None else None

    def run(row: Values) -> Values:
        if mapped:
            given = mapping(row)
        else:  # without a mapping there can be a system message, for rows that have none
            given = row if source.system is None or row.get("system") else {**row, **mapping(row)}
        if not mapped and natural not in ("text", "classification"):
            refuse_columns(row, learnt=prompts is None)
            if given.get("functions") and not given.get("tools"):  # OpenAI's layout of 2023
                given = {**given, "tools": given["functions"], "functions": None}
        result = prompts(row, given) if prompts else READERS[name](given)
        if ignored is not None:
            ignored.update(found for found in unread(given, name) if found.removeprefix("column ") not in result)
            if not mapped and _unused_system(row, result):
                ignored["column system"] += 1
        return result if convert is None else convert(result)

    return run


def compile_mapping(source: "SourceSpec") -> Evaluate:
    """Compiles a source's mapping to a function from a row's columns to the columns of the mapping's kind.

    The result still has to be checked as a row of its format would be: ``messages`` with their roles, and so on.

    Raises:
        RowError: From the function: a column is missing, or a message renders empty.
        DataError: From the function: a template breaks out of the sandbox.
    """
    fields = {
        key: compile_template(getattr(source, key), to_text=key in _TEXT_KEYS)
        for key in source.mapping_keys
        if key != "messages"
    }
    messages = [
        (
            compile_template(message.role),
            compile_template(message.content, to_text=True),
            compile_template(message.tool_calls) if message.tool_calls else None,
            message.train,
        )
        for message in source.messages or ()
    ]

    def run(row: Values) -> Values:
        result = {key: evaluate(row) for key, evaluate in fields.items()}
        for key in _TEXT_KEYS:
            if key in result:
                result[key] = as_text(result[key], key)
        if messages:
            result["messages"] = [_message(row, index, *parts) for index, parts in enumerate(messages)]
        return result

    return run


def _message(
    row: Values, index: int, role: Evaluate, content: Evaluate, tool_calls: Evaluate | None, train: bool | None
) -> Values:
    """Renders one message of a mapping."""
    message: Values = {"role": as_text(role(row), "the role").strip()}
    message["content"] = as_text(content(row), f"the content of message {index}")
    calls = tool_calls(row) if tool_calls else None
    if calls:
        message["tool_calls"] = calls
    elif not message["content"].strip():
        raise RowError(f"message {index} ({message['role']}) renders empty")
    return message if train is None else {**message, "train": train}


def _unused_system(row: Values, result: Values) -> bool:
    """Whether a row's system column gave way to a system message of the conversation itself."""
    system = row.get("system")
    talk = result.get("messages") or result.get("prompt")
    return isinstance(system, str) and bool(system.strip()) and isinstance(talk, list) and talk[0]["content"] != system


def _as_prompt_completion(row: Values) -> Values:
    messages = row["messages"]
    return {"prompt": unmarked(messages[:-1]), "completion": messages[-1:], "tools": row["tools"]}


def _as_messages(row: Values) -> Values:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        prompt, completion = [{"role": "user", "content": prompt}], answer_messages(completion)
    messages = [*prompt, *completion]
    check_training(messages)
    return {"messages": messages, "tools": row.get("tools")}


_CONVERTERS: dict[tuple[Kind, Kind], Canonicalize] = {
    ("messages", "prompt_completion"): _as_prompt_completion,
    ("prompt_completion", "messages"): _as_messages,
}
