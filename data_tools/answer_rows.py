"""Rows with a prompt, and those with one or two answers to it: prompts to answer, pairs and preference data."""

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .columns import READ, Values, column, conversation_column, text_of
from .conversations import (
    MEDIA,
    Message,
    check_training,
    conversation,
    is_messages,
    tool_list,
    unmarked,
)
from .errors import RowError

if TYPE_CHECKING:
    from .spec import FormatName

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_LABELS = {**dict.fromkeys(("true", "1", "1.0", "yes"), True), **dict.fromkeys(("false", "0", "0.0", "no"), False)}


def read_prompt_completion(row: Values) -> Values:
    """Reads ``prompt`` and ``completion`` (or ``response``), each text or messages.

    Raises:
        RowError: The row has no such pair.
    """
    prompt, completion = _prompt_and(row, column(row, "completion", "response"), "completion")
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
    column(row, "prompt")  # what is missing is said before what is wrong
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
    prompt = column(row, "prompt")
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


def read_preference(row: Values) -> Values:
    """Reads ``chosen`` and ``rejected`` with their prompt.

    The prompt is a column of its own, or what two whole conversations share before they part. Text without a prompt
    column is read only if it is a transcript of hh-rlhf. A column ``margin``, if there is one, is kept as a number.

    Raises:
        RowError: The row has no such pair, its two answers are the same, or its margin is no number.
    """
    chosen, rejected = column(row, "chosen"), column(row, "rejected")
    talk = conversation_column(row)
    if (
        row.get("prompt") is None and talk and not is_messages(chosen)
    ):  # LLaMA-Factory: a conversation and two next turns
        row = {**row, "prompt": row[talk]}
    if isinstance(chosen, str) and isinstance(rejected, str) and row.get("prompt") is None:
        chosen, rejected = transcript(chosen), transcript(rejected)
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


def transcript(text: str) -> list[Message]:
    r"""Parses the transcripts of hh-rlhf, ``\n\nHuman: …\n\nAssistant: …``, to messages.

    Raises:
        RowError: The text is none.
    """
    parts = _SPEAKER.split(text)
    if len(parts) < 5 or parts[0].strip() or parts[1] != "Human":
        raise RowError("missing column 'prompt'", "text is never split by guess into a prompt and an answer")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": said.strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def read_unpaired(row: Values) -> Values:
    """Reads a prompt, a completion and whether it is wanted; the pair may be a conversation and its last turn.

    Raises:
        RowError: The row has no such pair, or its label is no truth value.
    """
    label = _LABELS.get(str(column(row, "label")).strip().lower())
    if label is None:
        raise RowError("label is neither true nor false", repr(row["label"])[:60])
    talk = conversation_column(row)
    if row.get("prompt") is None and talk:  # LLaMA-Factory: the last turn of the conversation is what is judged
        messages = conversation(row[talk], sharegpt=True, system=row.get("system"))
        check_training(messages)
        result = {"prompt": messages[:-1], "completion": messages[-1:]}
    else:
        prompt, completion = _prompt_and(row, column(row, "completion", "response"), "completion")
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
    prompt = _prompt(row, as_text=True)
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if prompt[-1]["role"] == "assistant":
        raise RowError("the prompt ends with an assistant message")
    return {"prompt": unmarked(prompt)}


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
    "preference": lambda row: {"prompt": read_preference(row)["prompt"]},
}
