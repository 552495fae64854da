"""What each layout of columns holds: a row's columns looked up, checked, and read as TRL's canonical columns."""

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .conversations import (
    MEDIA,
    Message,
    check_training,
    conversation,
    is_messages,
    refuse_marks_of_rows,
    tool_list,
    unmarked,
    unread_keys,
)
from .errors import RowError, missing_column

if TYPE_CHECKING:
    from .spec import FormatName

Values = dict[str, Any]

_TALK = frozenset({"messages", "conversations", "conversation"})
_BESIDE = frozenset({"system", "tools"})
_PAIR = frozenset({"prompt", "completion", "response"})
_READ: "dict[FormatName, frozenset[str]]" = {
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
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_LABELS = {**dict.fromkeys(("true", "1", "1.0", "yes"), True), **dict.fromkeys(("false", "0", "0.0", "no"), False)}
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
    read = _READ[format_name]
    if format_name in ("preference", "unpaired") and row.get("prompt") is None:
        read = read | _TALK
    for names in _ONE_OF:
        read -= set([name for name in names if name in read and row.get(name) is not None][1:])
    found = {f"column {name}" for name in row.keys() - read if row[name] is not None}
    for name in _TALKS & read & row.keys():
        found |= {f"message key {key}" for key in unread_keys(row[name])}
    return found


def _column(row: Values, *names: str) -> Any:
    """Returns the first of several columns that the row has with a value in it."""
    for name in names:
        value = row.get(name)
        if value is not None:
            return value
    if any(name in row for name in names):
        raise RowError(f"column '{names[0]}' is null")
    raise missing_column(names[0], row)


def _text_of(row: Values, *names: str) -> str:
    """Returns a column that must hold text with something in it."""
    value = _column(row, *names)
    if not isinstance(value, str):
        raise RowError(f"column '{names[0]}' is not text", type(value).__name__)
    if not value or value.isspace():
        raise RowError(f"empty {names[0]}")
    return value


def conversation_column(row: Values) -> str | None:
    """Returns the name of the column that holds a conversation, as a list or as its JSON, if one does."""
    for name in ("messages", "conversations", "conversation"):  # in this order
        value = row.get(name)
        if is_messages(value) or (isinstance(value, str) and value.lstrip().startswith("[")):
            return name
    return None


def _read_text(row: Values) -> Values:
    return {"text": _text_of(row, "text")}


def _read_messages(row: Values, *, sharegpt: bool = False) -> Values:
    talk = _column(row, "messages", "conversations", "conversation")
    messages = conversation(talk, sharegpt=sharegpt, system=row.get("system"))
    check_training(messages)
    return {"messages": messages, "tools": tool_list(row.get("tools"))}


def _read_sharegpt(row: Values) -> Values:
    row = row if row.get("conversations") is None else {**row, "messages": row["conversations"]}
    return _read_messages(row, sharegpt=True)


def _read_alpaca(row: Values) -> Values:
    return {"messages": _alpaca_messages(row), "tools": tool_list(row.get("tools"))}


def _read_classification(row: Values) -> Values:
    result: Values = {"text": _text_of(row, "text")}
    if row.get("text_pair") is not None:
        result["text_pair"] = _text_of(row, "text_pair")
    label = _column(row, "label")
    parts: Sequence[Any] = label if isinstance(label, list) else (label,)
    for part in parts:
        # not a number is the one value that differs from itself
        if not isinstance(part, str | int | float) or part != part:
            raise RowError("label is not a number or a name", repr(part)[:60])
    if any(isinstance(part, str) and not part.strip() for part in parts):
        raise RowError("empty label")
    result["label"] = label
    return result


def _alpaca_messages(row: Values, *, answered: bool = True) -> list[Message]:
    """Reads Alpaca's columns: instruction and input, a blank line between them, ask; history goes before."""
    instruction = _text_of(row, "instruction")
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
        turns.append({"role": "assistant", "content": _text_of(row, "output", "response")})
    return conversation(turns, system=row.get("system"))


def _read_prompt_completion(row: Values) -> Values:
    """Reads ``prompt`` and ``completion`` (or ``response``), each text or messages."""
    prompt, completion = _prompt_and(row, _column(row, "completion", "response"), "completion")
    return _with_tools(row, {"prompt": prompt, "completion": completion})


def _with_tools(row: Values, result: Values) -> Values:
    """Adds the tools beside messages; only a lone completion keeps its marks of what carries loss."""
    if isinstance(result["prompt"], list):
        result["prompt"] = unmarked(result["prompt"])
        for name in ("chosen", "rejected", *(("completion",) if "label" in result else ())):
            if name in result:
                result[name] = unmarked(result[name], answer=True)
        result["tools"] = tool_list(row.get("tools"))
    return result


def _prompt_and(row: Values, answer: Any, what: str) -> tuple[Any, Any]:
    """Returns prompt and answer, both text or both messages; an answer that repeats the prompt loses it.

    Text stays text unless the source has a system message or tools, which only messages can carry.
    """
    _column(row, "prompt")  # what is missing is said before what is wrong
    answer = _answer(answer, what)
    prompt = _prompt(row, as_text=isinstance(answer, str) and "tools" not in row)
    if isinstance(prompt, str):
        return prompt, answer
    answer = answer_messages(answer)
    if answer[: len(prompt)] == prompt:
        answer = answer[len(prompt) :]
    if not answer or answer[0]["role"] != "assistant":
        raise RowError(f"{what} does not begin with an assistant message")
    if answer[-1]["role"] != "assistant":
        raise RowError(f"{what} does not end with an assistant message", f"it ends with the {answer[-1]['role']}'s")
    return prompt, answer


def _prompt(row: Values, *, as_text: bool) -> str | list[Message]:
    """Reads a prompt; text becomes a user's turn unless it may stay text and no system message goes before it."""
    prompt = _column(row, "prompt")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise RowError("empty prompt")
        if as_text and "system" not in row:
            return prompt
        prompt = [{"role": "user", "content": prompt}]
    return conversation(prompt, sharegpt=True, system=row.get("system"))


def _answer(value: Any, what: str) -> str | list[Message]:
    """Reads an answer: text, one message, or messages."""
    if isinstance(value, str):
        if not value.strip():
            raise RowError(f"empty {what}")
        return value
    value = [value] if isinstance(value, dict) else value
    if not is_messages(value):
        raise RowError(f"{what} is neither text nor messages", type(value).__name__)
    return conversation(value, sharegpt=True)


def _read_preference(row: Values) -> Values:
    """Reads ``chosen`` and ``rejected`` with their prompt."""
    # The prompt is a column of its own, or what two whole conversations share before they part. Text without a prompt
    # column is read only if it is a transcript of hh-rlhf.
    chosen, rejected = _column(row, "chosen"), _column(row, "rejected")
    talk = conversation_column(row)
    # LLaMA-Factory has a conversation and two next turns
    if row.get("prompt") is None and talk and not is_messages(chosen):
        row = {**row, "prompt": row[talk]}
    if isinstance(chosen, str) and isinstance(rejected, str) and row.get("prompt") is None:
        chosen, rejected = _transcript(chosen), _transcript(rejected)
    if chosen == rejected:
        raise RowError("chosen equals rejected")
    if _starts_with_prompt(chosen) and _starts_with_prompt(rejected):
        prompt, chosen, rejected = _shared_prompt(
            conversation(chosen, sharegpt=True, system=row.get("system")),
            conversation(rejected, sharegpt=True, system=row.get("system")),
        )
    else:
        prompt, chosen = _prompt_and(row, chosen, "chosen")
        _, rejected = _prompt_and(row, rejected, "rejected")
        if isinstance(chosen, str) != isinstance(rejected, str):
            prompt, chosen = _prompt_and(row, answer_messages(chosen), "chosen")
            _, rejected = _prompt_and(row, answer_messages(rejected), "rejected")
    if chosen == rejected:
        raise RowError("chosen equals rejected")
    result = _with_tools(row, {"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return result if row.get("margin") is None else {**result, "margin": _number(row["margin"])}


def _number(value: Any) -> float:
    """Reads a margin."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowError("margin is not a number", repr(value)[:60])
    return number


def answer_messages(answer: str | list[Message]) -> list[Message]:
    """Returns an answer as messages."""
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer


def _starts_with_prompt(value: Any) -> bool:
    """Whether an answer is a whole conversation rather than its last turn."""
    return is_messages(value) and (value[0].get("role") or value[0].get("from")) in ("system", "user", "human")


def _shared_prompt(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Splits two conversations where they part, which must be at an assistant's turn.

    Whole messages are compared, never characters: two answers that begin alike must not lose their beginnings.
    """
    length = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        length += 1
    while length and (length == len(chosen) or length == len(rejected)):
        length -= 1  # one conversation ends inside the other
        while length and chosen[length]["role"] != "assistant":
            length -= 1
    if length == 0:
        raise RowError("chosen and rejected share no prompt")
    if chosen[length]["role"] != "assistant" or rejected[length]["role"] != "assistant":
        raise RowError("chosen and rejected part before an assistant message", f"message {length}")
    for what, messages in (("chosen", chosen), ("rejected", rejected)):
        if messages[-1]["role"] != "assistant":
            raise RowError(f"{what} does not end with an assistant message")
    return chosen[:length], chosen[length:], rejected[length:]


def _transcript(text: str) -> list[Message]:
    r"""Parses the transcripts of hh-rlhf, ``\n\nHuman: …\n\nAssistant: …``, to messages."""
    parts = _SPEAKER.split(text)
    if len(parts) < 5 or parts[0].strip() or parts[1] != "Human":
        raise RowError("missing column 'prompt'", "text is never split by guess into a prompt and an answer")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": said.strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _read_unpaired(row: Values) -> Values:
    """Reads a prompt, a completion and whether it is wanted; the pair may be a conversation and its last turn."""
    label = _LABELS.get(str(_column(row, "label")).strip().lower())
    if label is None:
        raise RowError("label is neither true nor false", repr(row["label"])[:60])
    talk = conversation_column(row)
    if row.get("prompt") is None and talk:  # LLaMA-Factory: the last turn of the conversation is what is judged
        messages = conversation(row[talk], sharegpt=True, system=row.get("system"))
        check_training(messages)
        result = {"prompt": messages[:-1], "completion": messages[-1:]}
    else:
        prompt, completion = _prompt_and(row, _column(row, "completion", "response"), "completion")
        result = {"prompt": prompt, "completion": completion}
    return _with_tools(row, {**result, "label": label})


def prompt_reader(format_name: "FormatName") -> Callable[[Values, Values], Values]:
    """Returns what turns a row of a format into ``prompt``, text or messages, and the row's other plain columns.

    A conversation loses its last turn if that is the assistant's. The answer of a prompt-completion row is kept as
    text in ``completion``.

    Returns:
        A function from a row's columns and from what its mapping makes of them, which is what is read; it raises
        RowError.
    """
    read, used = _PROMPTS[format_name], _READ[format_name] | {*MEDIA}  # trainers take `image` for pixels

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
    prompt = _prompt(row, as_text=True)
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if prompt[-1]["role"] == "assistant":
        raise RowError("the prompt ends with an assistant message")
    return {"prompt": unmarked(prompt)}


def _of_messages(row: Values, *, sharegpt: bool = False) -> Values:
    talk = _column(row, *(("conversations",) if sharegpt else ()), "messages", "conversations", "conversation")
    messages = conversation(talk, sharegpt=sharegpt, system=row.get("system"))
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not any(message["role"] == "user" for message in messages):
        raise RowError("no user message")
    return {"prompt": unmarked(messages)}


def _of_pair(row: Values) -> Values:
    pair = _read_prompt_completion(row)
    completion = pair["completion"]
    return {
        "prompt": pair["prompt"],
        "completion": completion if isinstance(completion, str) else completion[-1]["content"],
    }


READERS: "dict[FormatName, Callable[[Values], Values]]" = {
    "text": _read_text,
    "messages": _read_messages,
    "sharegpt": _read_sharegpt,
    "alpaca": _read_alpaca,
    "prompt_completion": _read_prompt_completion,
    "preference": _read_preference,
    "unpaired": _read_unpaired,
    "classification": _read_classification,
}
_PROMPTS: "dict[FormatName, Callable[[Values], Values]]" = {
    "prompt": _read_prompt,
    "messages": _of_messages,
    "sharegpt": lambda row: _of_messages(row, sharegpt=True),
    "alpaca": lambda row: {"prompt": _alpaca_messages(row, answered=False)},
    "prompt_completion": _of_pair,
    "preference": lambda row: {"prompt": _read_preference(row)["prompt"]},
}
