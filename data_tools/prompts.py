"""Rows of any layout to prompts that a model is to answer, with what a reward function may want to know beside them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .columns import READ, Values, column, text_of
from .conversations import MEDIA, Message, conversation, tool_list, unmarked
from .errors import RowError
from .pairs import read_preference, read_prompt_completion

if TYPE_CHECKING:
    from .spec import FormatName


def prompt_reader(format_name: "FormatName") -> Callable[[Values, Values], Values]:
    """Returns what turns a row of a format into ``prompt``, text or messages, and the row's other plain columns.

    A conversation loses its last turn if that is the assistant's. The answer of a prompt-completion row is kept as
    text in ``completion``.

    Returns:
        A function from a row's columns and from what its mapping makes of them, which is what is read; it raises
        RowError.
    """
    read, used = _PROMPTS[format_name], READ[format_name] | {*MEDIA}  # trainers take `image` for pixels

    def run(row: Values, values: Values) -> Values:
        if tool_list(values.get("tools")):
            raise RowError(
                "prompts with tools cannot be used",
                "an answer is one turn here and calls nothing; take the tools out, or learn from whole conversations",
            )
        rest = {name: value for name, value in row.items() if name not in used and _is_plain(value, name)}
        return {**read(values), **{name: rest[name] for name in rest if name != "prompt"}}

    return run


def _is_plain(value: Any, name: str) -> bool:
    """Whether a value is text, a number or a truth value, or a list of these."""
    if isinstance(value, list):
        return all(part is not None and not isinstance(part, list) and _is_plain(part, name) for part in value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise RowError(f"column '{name}' holds a whole number of more than 64 bits")
    return isinstance(value, str | int | float | bool)


def _read_prompt(row: Values) -> Values:
    prompt = column(row, "prompt")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise RowError("empty prompt")
        if "system" not in row:
            return {"prompt": prompt}
        prompt = [{"role": "user", "content": prompt}]
    messages = conversation(prompt, sharegpt=True, system=row.get("system"))
    if messages[-1]["role"] == "assistant":
        raise RowError("the prompt ends with an assistant message")
    return {"prompt": unmarked(messages)}


def _of_messages(row: Values, *, sharegpt: bool = False) -> Values:
    talk = column(row, *(("conversations",) if sharegpt else ()), "messages", "conversations", "conversation")
    messages = conversation(talk, sharegpt=sharegpt, system=row.get("system"))
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not any(message["role"] == "user" for message in messages):
        raise RowError("no user message")
    return {"prompt": unmarked(messages)}


def _of_pair(row: Values) -> Values:
    pair = read_prompt_completion(row)
    completion = pair["completion"]
    return {
        "prompt": pair["prompt"],
        "completion": completion if isinstance(completion, str) else completion[-1]["content"],
    }


def _of_preference(row: Values) -> Values:
    return {"prompt": read_preference(row)["prompt"]}


def alpaca_messages(row: Values, *, answered: bool = True) -> list[Message]:
    """Reads Alpaca's columns: instruction and input make the question, a blank line between them; history goes before.

    Raises:
        RowError: The row has no such columns.
    """
    instruction = text_of(row, "instruction")
    given = row.get("input")
    if given is not None and not isinstance(given, str):
        raise RowError("column 'input' is not text", type(given).__name__)
    turns: list[Message] = []
    for pair in row.get("history") or ():
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise RowError("history is not a list of pairs of texts", repr(pair)[:60])
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question = f"{instruction}\n\n{given}" if given and given.strip() else instruction
    turns.append({"role": "user", "content": question})
    if answered:
        turns.append({"role": "assistant", "content": text_of(row, "output", "response")})
    return conversation(turns, system=row.get("system"))


_PROMPTS: "dict[FormatName, Callable[[Values], Values]]" = {
    "prompt": _read_prompt,
    "messages": _of_messages,
    "sharegpt": lambda row: _of_messages(row, sharegpt=True),
    "alpaca": lambda row: {"prompt": alpaca_messages(row, answered=False)},
    "prompt_completion": _of_pair,
    "preference": _of_preference,
}
