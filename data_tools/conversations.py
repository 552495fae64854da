"""Conversations of every layout to one: OpenAI's messages, with tool calls as plain objects."""

import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import RowError
from .readers import encodes, has_surrogate_escape, lone_surrogate

Message = dict[str, Any]

MEDIA = ("image", "images", "video", "videos", "audio", "audios")

# The role names of OpenAI's layout, and those found in ShareGPT files (FastChat, OpenChat, Axolotl, LLaMA-Factory).
_OPENAI_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
}
ROLES = _OPENAI_ROLES | {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "function_call",
    "tool_call": "function_call",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
# The spellings of an assistant's reasoning, by Qwen and DeepSeek, by vLLM and OpenRouter, and by gpt-oss.
_REASONING = ("reasoning_content", "reasoning", "thinking")
# How others mark that a message carries loss: axolotl (train, training), ms-swift (loss, loss_scale), OpenAI and
# OpenChat (weight), LLaMA-Factory (loss_weight), verl (loss_mask); and that it carries none: torchtune (masked).
_MARKS = {
    **dict.fromkeys(
        ("train", "training", "trainable", "loss", "loss_scale", "weight", "loss_weight", "loss_mask"), True
    ),
    **dict.fromkeys(("mask", "masked"), False),
}
# What changes the meaning of a message and cannot be trained on.
_REFUSED = {
    **dict.fromkeys(("train_detail", "training_detail"), "loss is decided for whole messages, not for parts of one"),
    **dict.fromkeys(MEDIA, "only text can be trained on"),
    "reasoning_details": "give the reasoning as one text, `reasoning_content`",
    **dict.fromkeys(("tools", "functions"), "what may be called stands in the row's column `tools`"),
}
# A name that speaks of loss in words of its own, whose direction cannot be known: `label_mask`, `do_train`, `no_loss`.
_LIKE_A_MARK = re.compile(r"train|loss|mask|supervis|learn", re.IGNORECASE)
_MARK_MESSAGES = "mark messages with `train: true` or `train: false`, or take it out"
_TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_READ = frozenset(
    {"role", "from", "content", "value", "tool_call_id", "tool_calls", "function_call", *_REASONING, *_MARKS, *_REFUSED}
)
_SPOKEN = frozenset({"role", "content"})  # what most messages have alone
_READ_PARTS = frozenset({"type", "text", "value", *_REASONING, *_MARKS})


def is_messages(value: Any) -> bool:
    """Whether a value is a list of role-and-content or from-and-value objects."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(item, dict) and ("role" in item or "from" in item) for item in value)
    )


def conversation(value: Any, *, sharegpt: bool = False, system: Any = None) -> list[Message]:
    """Returns a conversation as messages with ``role``, ``content`` and, where there are some, ``tool_calls``.

    An assistant's reasoning becomes ``reasoning_content``; a mark whether a message carries loss becomes ``train``.

    Args:
        value: The list of messages, or its JSON, as found in a row.
        sharegpt: Whether ShareGPT's role names are allowed.
        system: A system message to put first where the conversation has none.

    Raises:
        RowError: It is not a conversation; the reason says why.
    """
    value = parse_json(value, "the conversation") if isinstance(value, str) else value
    if not isinstance(value, list):
        raise RowError("the conversation is not a list of messages", type(value).__name__)
    messages: list[Message] = []
    for index, item in enumerate(value):
        message = _message(item, index, ROLES if sharegpt else _OPENAI_ROLES)
        if message is None:
            continue
        previous = messages[-1] if messages else None
        joins = message.pop("joins", False)
        if joins and previous and previous["role"] == "assistant" and previous.keys() <= {"role", "content", "train"}:
            if previous.get("train") != message.get("train"):
                raise RowError("a call and the words before it are one turn, with one mark", f"message {index}")
            previous["tool_calls"] = message["tool_calls"]  # said something, then called: one turn
        else:
            messages.append(message)
    if not messages:
        raise RowError("the conversation is empty")
    if system and not isinstance(system, str):
        raise RowError("the system message is not text", type(system).__name__)
    if system and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def parts_of_message(message: Mapping[str, Any]) -> list[Any]:
    """Returns what a message says, be it canonical or as found: its content, its reasoning, and its calls.

    The ids of calls say nothing: they are drawn anew for each.
    """
    said = [message.get("content")]
    if not message.keys() <= _SPOKEN:
        said += [message.get(name) for name in _REASONING]
        calls = message.get("tool_calls") or message.get("function_call") or []
        for call in calls if isinstance(calls, list) else [calls]:
            said.append(call.get("function", call) if isinstance(call, dict) else call)
    return [one for one in said if one]


def texts_of_turns(value: str | Sequence[Mapping[str, Any]] | None) -> list[str]:
    """Returns the texts of a prompt, an answer or messages, each of which may be one text; calls are JSON."""
    if isinstance(value, str):
        return [value]
    to_json = functools.partial(json.dumps, ensure_ascii=False, sort_keys=True, default=str)
    parts = itertools.chain.from_iterable(map(parts_of_message, value or ()))
    return [part if isinstance(part, str) else to_json(part) for part in parts]


def unread_keys(value: Any) -> set[str]:
    """Returns the keys of messages that ``conversation`` does not read; of what is no conversation, none."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return set()
    value = [value] if isinstance(value, dict) else value
    if not is_messages(value):
        return set()
    parts = [
        part for m in value if isinstance(m.get("content"), list) for part in m["content"] if isinstance(part, dict)
    ]
    found = {str(key) for message in value for key in message.keys() - _READ if message[key] is not None}
    return found | {f"content.{key}" for part in parts for key in part.keys() - _READ_PARTS if part[key] is not None}


def refuse_marks_of_rows(row: dict[str, Any]) -> None:
    """Refuses columns that mark a whole row off, or its turns or tokens by a list: only messages have marks.

    Raises:
        RowError: Naming the column.
    """
    for key, value in row.items():
        off = key in _MARKS and _truth(value) is (not _MARKS[key])
        if off or (isinstance(value, list) and value and _is_like_a_mark(key, value)):
            raise RowError(f"column '{key}' looks like a mark of what carries loss", _MARK_MESSAGES)


def _is_like_a_mark(key: Any, values: list[Any]) -> bool:
    return bool(_LIKE_A_MARK.search(str(key))) and all(_truth(value) is not None for value in values)


def _truth(value: Any) -> bool | None:
    return _TRUTHS.get(str(value).strip().lower()) if isinstance(value, str | int | float) else None


def unmarked(messages: list[Message], *, answer: bool = False) -> list[Message]:
    """Takes away the marks of loss, where a stage decides by itself what carries loss.

    Raises:
        RowError: Part of an answer, all of which is learnt from, is marked to carry none.
    """
    if answer and any(message.get("train") is False for message in messages):
        raise RowError("an answer is marked to carry no loss, and this stage learns from whole answers")
    return [{key: value for key, value in message.items() if key != "train"} for message in messages]


def check_training(messages: list[Message]) -> None:
    """Refuses a conversation that gives nothing to learn: its last turn must be the assistant's.

    Raises:
        RowError: Naming what is missing.
    """
    if messages[-1]["role"] != "assistant":
        raise RowError("last message is not from the assistant", f"it is from the {messages[-1]['role']}")
    if not any(message["role"] == "user" for message in messages):
        raise RowError("no user message")


def _message(item: Any, index: int, roles: dict[str, str]) -> Message | None:
    """Normalises one message; an empty system message is None."""
    if not isinstance(item, dict):
        raise RowError("a message is not an object", f"message {index}")
    for key, why in _REFUSED.items():
        if item.get(key):
            raise RowError(f"message key '{key}' cannot be used: {why}", f"message {index}")
    for key in item.keys() - _READ:
        if _is_like_a_mark(key, [item[key]]):
            raise RowError(f"message key '{key}' looks like a mark of what carries loss", _MARK_MESSAGES)
    role = _role(item, index, roles)
    content = _content(item, index)
    if role == "function_call":
        message = {"role": "assistant", "content": "", "tool_calls": _calls_of_text(content), "joins": True}
    else:
        message = {"role": role, "content": content}
        if not isinstance(content, str):
            _read_parts(message, content)
        for key in ("name", "tool_call_id"):
            if item.get(key):
                message[key] = item[key]
        calls = item.get("tool_calls")
        if calls:
            message["tool_calls"] = tool_calls(calls)
        elif item.get("function_call"):  # OpenAI's layout of 2023
            message["tool_calls"] = tool_calls([item["function_call"]])
    _read_reasoning(message, item, index)
    _read_mark(message, item, index)
    if role == "system" and index > 0:
        raise RowError("a system message is not the first", f"message {index}")
    if role != "tool" and not message["content"].strip() and "tool_calls" not in message:
        if role == "system":
            return None
        keys = "" if "content" in item or "value" in item else f", whose keys are {', '.join(map(str, item))}"
        raise RowError(f"empty {role} message", f"message {index}{keys}")
    return message


def _role(item: dict[str, Any], index: int, roles: dict[str, str]) -> str:
    """Reads whose message it is; two names for it must mean the same."""
    names = [item[key] for key in ("role", "from") if item.get(key)]
    if not names:
        raise RowError("a message has no role", f"message {index}")
    name = names[0]
    role = roles.get(name) if isinstance(name, str) else None
    if role is None:
        if isinstance(name, str) and name in ROLES:
            raise RowError(f"unknown role '{name}'", "`format: sharegpt` knows it")
        raise RowError(f"unknown role {name!r}", f"message {index}")
    if len(names) > 1 and ROLES.get(str(names[1])) != role:
        raise RowError("a message has two roles", f"message {index}: {names[0]!r} and {names[1]!r}")
    return role


def _content(item: dict[str, Any], index: int) -> Any:
    """Reads what is said; a null beside a text says nothing."""
    given = [item[key] for key in ("content", "value") if item.get(key) is not None]
    if len(given) > 1 and given[0] != given[1]:
        raise RowError("a message has both content and value", f"message {index}")
    return given[0] if given else None


def _read_reasoning(message: Message, item: dict[str, Any], index: int) -> None:
    """Adds reasoning under one name, whatever its spelling."""
    found = [item[key] for key in _REASONING if item.get(key)]
    found += [message["reasoning_content"]] if "reasoning_content" in message else []
    if not found:
        return
    if any(not isinstance(text, str) for text in found):
        raise RowError("reasoning is not text", f"message {index}")
    if len(set(found)) > 1:
        raise RowError("a message has two different texts of reasoning", f"message {index}")
    if message["role"] != "assistant":
        raise RowError(f"a {message['role']} message has reasoning", f"message {index}")
    message["reasoning_content"] = found[0]


def _read_mark(message: Message, item: dict[str, Any], index: int) -> None:
    """Adds whether the message is marked to carry loss."""
    marks: dict[str, bool] = {}
    for key, wanted in _MARKS.items():
        value = item.get(key)
        if value is None:
            continue
        truth = _truth(value)
        if truth is None:
            raise RowError(
                f"message key '{key}' is neither true, false, 0 nor 1: a message carries loss or none",
                f"message {index} has {value!r}"[:80],
            )
        marks[key] = truth is wanted
    if len(set(marks.values())) > 1:
        raise RowError("marks of one message contradict each other", f"message {index} has {', '.join(marks)}")
    if marks:
        message["train"] = next(iter(marks.values()))


def _read_parts(message: Message, content: Any) -> None:
    """Reads content that is no string: nothing, or a list of typed parts, of which only text can be trained on."""
    if content is None:
        message["content"] = ""
        return
    if not isinstance(content, list):
        raise RowError("message content is neither text nor a list of parts", type(content).__name__)
    texts, reasoning, calls = [], [], []
    for part in content:
        kind = "text" if isinstance(part, str) else part.get("type") if isinstance(part, dict) else None
        keys = ("text", "value", *_REASONING)
        marks = [key for key in _MARKS if isinstance(part, dict) and part.get(key) is not None]
        if marks:
            raise RowError("a content part has a mark of loss: loss is decided for whole messages", ", ".join(marks))
        value = part if isinstance(part, str) else None
        if isinstance(part, dict):
            value = next((part[key] for key in keys if part.get(key) is not None), None)
        if kind in ("text", "input_text", "output_text") and isinstance(value, str):
            texts.append(value)
        elif kind in ("reasoning", "thinking") and isinstance(value, str):
            reasoning.append(value)
        elif kind in ("tool_call", "function_call"):
            calls.extend(_calls_of_text(value))
        else:
            raise RowError(f"a content part of type {kind!r} is not text")
    message["content"] = "".join(texts)
    if reasoning:
        message["reasoning_content"] = "".join(reasoning)
    if calls:
        message["tool_calls"] = calls


def parse_json(text: str, what: str) -> Any:
    """Parses JSON found inside a row.

    Raises:
        RowError: ``<what> is not JSON``, or it writes half a character.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{what} is not JSON", f"{error}: {text[:60]!r}") from error
    if has_surrogate_escape(text) and not encodes(value):
        raise lone_surrogate()
    return value


def _calls_of_text(value: Any) -> list[dict[str, Any]]:
    """Reads the value of a ShareGPT ``function_call`` turn: one call or a list of them, usually as JSON."""
    value = parse_json(value, "function_call") if isinstance(value, str) else value
    return tool_calls(value if isinstance(value, list) else [value])


def tool_calls(value: Any) -> list[dict[str, Any]]:
    """Returns tool calls in OpenAI's layout, the arguments as an object with exactly the keys it came with.

    Args:
        value: A list of calls or its JSON; a call is ``{"function": {"name", "arguments"}}`` or the inner part
            alone, the arguments an object or its JSON.

    Raises:
        RowError: A call has no name, or its arguments are no JSON object.
    """
    value = parse_json(value, "tool_calls") if isinstance(value, str) else value
    if not isinstance(value, list) or not value:
        raise RowError("tool_calls is not a list of calls")
    calls = []
    for item in value:
        function = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise RowError("a tool call has no function name", repr(item)[:60])
        arguments = function.get("arguments", function.get("parameters"))
        if isinstance(arguments, str):
            arguments = parse_json(arguments, "tool_calls arguments") if arguments.strip() else {}
        if not isinstance(arguments, dict | None):
            raise RowError("tool_calls arguments not a JSON object", repr(arguments)[:60])
        call: dict[str, Any] = {"type": "function"}
        if item.get("id"):
            call["id"] = item["id"]
        call["function"] = {"name": function["name"], "arguments": arguments or {}}
        calls.append(call)
    return calls


def tool_list(value: Any) -> list[dict[str, Any]] | None:
    """Returns the tools a conversation may call as JSON-schema functions in OpenAI's layout, or None for no tools.

    Raises:
        RowError: It is neither a list of functions nor its JSON.
    """
    if isinstance(value, str):
        value = parse_json(value, "tools") if value.strip() else None
    if not value:
        return None
    if not isinstance(value, list):
        raise RowError("tools is not a list", type(value).__name__)
    tools = []
    for item in value:
        item = parse_json(item, "tools") if isinstance(item, str) else item
        function = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError("a tool has no name", repr(item)[:60])
        tools.append(item if "function" in item else {"type": "function", "function": item})
    return tools
