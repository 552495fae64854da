"""Every layout of columns becomes TRL's canonical columns, and a bad row says why it is dropped."""

import copy
import json
from typing import Any

import pytest
from posttrain.data_tools.errors import DataError, RowError
from posttrain.data_tools.formats import canonicalizer, choose, formats_of, infer, kind_for
from posttrain.data_tools.readers import Row
from posttrain.data_tools.spec import SourceSpec

U, A, A2 = ({"role": "user", "content": "Hi"}, *({"role": "assistant", "content": text} for text in ("Hello", "Bye")))
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
FUNCTION = {"type": "function", "function": TOOL}


def read(row: dict, kind: Any, format_name: str | None = None, **keys: Any) -> dict:
    before = copy.deepcopy(row)
    source = SourceSpec.model_validate({"path": "x.jsonl", "format": format_name, **keys})
    try:
        name, _ = choose(source, [Row("x.jsonl:1", row)], (kind,))
        return canonicalizer(source, name, kind)(row)
    finally:
        assert row == before, "a row must not be changed while it is read"


def reason(row: dict, kind: Any, format_name: str | None = None, **keys: Any) -> str:
    with pytest.raises(RowError) as caught:
        read(row, kind, format_name, **keys)
    return caught.value.reason


def talk(*turns: tuple[str, Any]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def gpt(*turns: tuple[str, Any]) -> dict:
    return {"conversations": [{"from": role, "value": value} for role, value in turns]}


# text


def test_text_is_kept_to_the_character():
    assert read({"text": "  a\r\n b \n"}, "text") == {"text": "  a\r\n b \n"}
    assert reason({"text": " \n"}, "text") == "empty text"
    assert reason({"text": None}, "text", "text") == "column 'text' is null"
    assert reason({"text": 3}, "text", "text") == "column 'text' is not text"
    assert reason({"body": "x"}, "text", "text") == "missing column 'text'"


# messages


def test_messages_keep_what_templates_read():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": null}'}}
    row = {
        "messages": [
            U,
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm", "extra": 1},
            {"role": "tool", "content": "", "tool_call_id": "c1", "name": "f"},
            A,
        ],
        "tools": json.dumps([TOOL]),
    }
    got = read(row, "messages")
    assert got["tools"] == [FUNCTION]
    assert got["messages"][1] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [{"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"b": 1, "a": None}}}],
    }
    assert list(got["messages"][1]["tool_calls"][0]["function"]["arguments"]) == ["b", "a"]
    assert got["messages"][2] == {"role": "tool", "content": "", "tool_call_id": "c1", "name": "f"}


def test_content_may_be_a_list_of_text_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read(talk(("user", parts), ("assistant", "x")), "messages")["messages"][0]["content"] == "ab"
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    assert (
        reason(talk(("user", image), ("assistant", "x")), "messages")
        == "a content part of type 'image_url' is not text"
    )


def test_parts_of_reasoning_and_calls_become_fields():
    parts = [
        {"type": "reasoning", "value": "hm"},
        {"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"type": "tool_call", "value": '{"name": "f", "arguments": {"y": 1}}'},
    ]
    message = read(talk(("user", "a"), ("assistant", parts)), "messages")["messages"][1]
    assert message["reasoning_content"] == "hm"
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == [{"x": 1}, {"y": 1}]


def test_role_names_of_the_api_are_those_of_templates():
    got = read(
        talk(("developer", "s"), ("user", "u"), ("assistant", "a"), ("function", "f"), ("assistant", "b")), "messages"
    )
    assert [message["role"] for message in got["messages"]] == ["system", "user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (talk(("user", "a"), ("assistant", " ")), "empty assistant message"),
        (talk(("user", ""), ("assistant", "x")), "empty user message"),
        (talk(("user", "a"), ("assistant", "x"), ("user", "b")), "last message is not from the assistant"),
        (talk(("user", "a"), ("narrator", "x")), "unknown role 'narrator'"),
        (talk(("human", "a"), ("gpt", "x")), "unknown role 'human'"),
        (talk(("user", "a"), ("assistant", {"x": 1})), "message content is neither text nor a list of parts"),
        (talk(("assistant", "x")), "no user message"),
        (talk(("user", "a"), ("system", "s"), ("assistant", "x")), "a system message is not the first"),
        ({"messages": []}, "the conversation is empty"),
        ({"messages": "[{"}, "the conversation is not JSON"),
        ({"messages": ["a"]}, "a message is not an object"),
        ({"messages": [{"content": "a"}]}, "a message has no role"),
        ({"messages": [U, {**A, "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]}]},
         "tool_calls arguments is not JSON"),
        ({"messages": [U, {**A, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": "\\ud83d"}'}}]}]},
         "lone surrogate"),
        ({"messages": [U, A], "tools": '[{"name": "\\ud83d"}]'}, "lone surrogate"),
        ({"messages": [U, {**A, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
         "tool_calls arguments not a JSON object"),
        ({"messages": [U, {**A, "tool_calls": [{"function": {"arguments": "{}"}}]}]},
         "a tool call has no function name"),
        ({"messages": [U, {**A, "weight": 0.5}]},
         "message key 'weight' is neither true, false, 0 nor 1: a message carries loss or none"),
        ({"messages": [U, A], "tools": "[{"}, "tools is not JSON"),
        ({"messages": [U, A], "tools": {"a": 1}}, "tools is not a list"),
        ({"text": "x"}, "missing column 'messages'"),
    ],
)  # fmt: skip
def test_a_bad_conversation_has_a_reason(row: dict, expected: str):
    assert reason(row, "messages", "messages") == expected


def test_a_system_message_is_put_before_rows_that_have_none():
    row = talk(("user", "a"), ("assistant", "b"))
    first = {"role": "system", "content": "Be kind."}
    assert read(row, "messages", "messages", system="Be kind.")["messages"][0] == first
    assert read({**row, "system": "Be kind."}, "messages")["messages"][0] == first
    own = talk(("system", "mine"), ("user", "a"), ("assistant", "b"))
    assert read({**own, "system": "other"}, "messages")["messages"] == own["messages"]
    assert read({**row, "system": ""}, "messages")["messages"] == row["messages"]


# sharegpt


@pytest.mark.parametrize("user", ["human", "user"])
@pytest.mark.parametrize("assistant", ["gpt", "assistant", "chatgpt", "bard", "bing"])
def test_sharegpt_knows_every_name_of_the_two_speakers(user: str, assistant: str):
    got = read({**gpt((user, "Hi"), (assistant, "Hello")), "system": "s", "tools": ""}, "messages")
    assert got == {"messages": [{"role": "system", "content": "s"}, U, A], "tools": None}


@pytest.mark.parametrize("result", ["observation", "tool", "function_response"])
@pytest.mark.parametrize("as_list", [True, False])
def test_sharegpt_calls_keep_exactly_their_arguments(result: str, as_list: bool):
    call = {"name": "f", "arguments": {"x": 1}}
    value = json.dumps([call] if as_list else call)
    row = {
        **gpt(("human", "Hi"), ("function_call", value), (result, '{"r": 1}'), ("gpt", "Hello")),
        "tools": json.dumps([TOOL]),
    }
    got = read(row, "messages")
    assert got["tools"] == [FUNCTION]
    assert got["messages"][1:3] == [
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": '{"r": 1}'},
    ]


def test_words_and_the_call_after_them_are_one_turn():
    row = gpt(("human", "Hi"), ("gpt", "Let me see."), ("function_call", '{"name": "f"}'), ("tool", "1"), ("gpt", "x"))
    got = read(row, "messages")["messages"]
    assert [message["role"] for message in got] == ["user", "assistant", "tool", "assistant"]
    assert (got[1]["content"], got[1]["tool_calls"][0]["function"]) == ("Let me see.", {"name": "f", "arguments": {}})


def test_bad_sharegpt_rows_have_reasons():
    assert reason(gpt(("human", "a"), ("function_call", "f(x)")), "messages") == "function_call is not JSON"
    assert (
        reason(gpt(("human", "a"), ("gpt", "b"), ("human", "c")), "messages")
        == "last message is not from the assistant"
    )
    assert reason(gpt(("human", "a"), ("alien", "b")), "messages") == "unknown role 'alien'"


# alpaca


def test_alpaca_joins_instruction_input_history_and_system():
    row = {"instruction": "Add.", "input": "1, 2", "output": "3", "history": [["Hi", "Hello"]], "system": "s"}
    assert read(row, "messages")["messages"] == [
        {"role": "system", "content": "s"},
        U,
        A,
        {"role": "user", "content": "Add.\n\n1, 2"},
        {"role": "assistant", "content": "3"},
    ]
    for empty in ("", " ", None):
        assert read({**row, "input": empty}, "messages")["messages"][-2]["content"] == "Add."
    assert read({"instruction": "Add.", "response": "3"}, "messages")["messages"][-1]["content"] == "3"


def test_bad_alpaca_rows_have_reasons():
    assert reason({"instruction": "a", "output": ""}, "messages") == "empty output"
    assert reason({"instruction": "a"}, "messages", "alpaca") == "missing column 'output'"
    row = {"instruction": "a", "output": "b", "history": ["x"]}
    assert reason(row, "messages") == "history is not a list of pairs of texts"


# prompt and completion


def test_prompt_and_completion_stay_text_or_become_messages_together():
    assert read({"prompt": "a ", "completion": " b"}, "prompt_completion") == {"prompt": "a ", "completion": " b"}
    for prompt in ("Hi", [U]):
        for completion in ("Hello", [A], A):
            if isinstance(prompt, str) and isinstance(completion, str):
                continue
            got = read({"prompt": prompt, "completion": completion}, "prompt_completion")
            assert got == {"prompt": [U], "completion": [A], "tools": None}
    assert read({"prompt": "Hi", "completion": "Hello", "system": "s"}, "prompt_completion")["prompt"] == [
        {"role": "system", "content": "s"},
        U,
    ]


def test_bad_pairs_have_reasons():
    assert reason({"prompt": "a", "completion": ""}, "prompt_completion") == "empty completion"
    assert reason({"prompt": " ", "completion": "b"}, "prompt_completion") == "empty prompt"
    row = {"prompt": [U], "completion": [U]}
    assert reason(row, "prompt_completion") == "completion does not begin with an assistant message"
    row = {"prompt": [U], "completion": [A, U]}
    assert reason(row, "prompt_completion") == "completion does not end with an assistant message"
    assert reason({"prompt": "a", "completion": 3}, "prompt_completion") == "completion is neither text nor messages"


def test_conversations_and_pairs_stand_in_for_each_other():
    assert read({"messages": [U, A, U, A2]}, "prompt_completion") == {
        "prompt": [U, A, U],
        "completion": [A2],
        "tools": None,
    }
    assert read({"prompt": "Hi", "completion": "Hello"}, "messages") == {"messages": [U, A], "tools": None}


# preference


def test_text_preferences_stay_text():
    row = {"prompt": "Hi", "chosen": "Hello", "rejected": "Bye"}
    assert read(row, "preference") == row


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [U], "chosen": [A], "rejected": [A2]},
        {"prompt": "Hi", "chosen": [A], "rejected": [A2]},
        {"prompt": [U], "chosen": "Hello", "rejected": "Bye"},
        {"prompt": "Hi", "chosen": [U, A], "rejected": [U, A2]},
        {"prompt": [U], "chosen": [U, A], "rejected": [U, A2]},
        {"chosen": [U, A], "rejected": [U, A2]},
        {"prompt": "Hi", "chosen": "Hello", "rejected": [A2]},
        {"prompt": None, "chosen": [U, A], "rejected": [U, A2]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Bye"},
        {
            **gpt(("human", "Hi")),
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "Bye"},
        },
        {**talk(("user", "Hi")), "chosen": A, "rejected": A2},
    ],
)
def test_every_layout_of_preference_is_one(row: dict):
    assert read(row, "preference") == {"prompt": [U], "chosen": [A], "rejected": [A2], "tools": None}


def test_the_shared_prompt_ends_before_an_assistant_turn():
    got = read({"chosen": [U, A, U, A], "rejected": [U, A, U, A2]}, "preference")
    assert got == {"prompt": [U, A, U], "chosen": [A], "rejected": [A2], "tools": None}
    got = read({"chosen": [U, A], "rejected": [U, A, U, A2]}, "preference")
    assert got == {"prompt": [U], "chosen": [A], "rejected": [A, U, A2], "tools": None}


def test_answers_that_begin_alike_lose_nothing():
    row = {"prompt": "Q", "chosen": "The answer is 12", "rejected": "The answer is 17"}
    assert read(row, "preference") == row
    got = read(
        {
            "chosen": "\n\nHuman: Q\n\nAssistant: It is 12.\n\nOr 13.",
            "rejected": "\n\nHuman: Q\n\nAssistant: It is 12.\n\nOr 14.",
        },
        "preference",
    )
    assert got["chosen"][0]["content"] == "It is 12.\n\nOr 13."
    assert got["rejected"][0]["content"] == "It is 12.\n\nOr 14."


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "chosen": "x", "rejected": "x"}, "chosen equals rejected"),
        ({"chosen": [U, A], "rejected": [U, dict(A)]}, "chosen equals rejected"),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": [A]}, "chosen equals rejected"),
        ({"chosen": "The answer is 1", "rejected": "The answer is 2"}, "missing column 'prompt'"),
        ({"chosen": [U, A], "rejected": [{**U, "content": "Yo"}, A]}, "chosen and rejected share no prompt"),
        ({"chosen": [U, A, U, A], "rejected": [U, A, {**U, "content": "Yo"}, A]},
         "chosen and rejected part before an assistant message"),
        ({"prompt": "a", "chosen": "", "rejected": "x"}, "empty chosen"),
        ({"prompt": "a", "chosen": "x", "rejected": " "}, "empty rejected"),
        ({"prompt": "a", "chosen": ["x", "y"], "rejected": ["z"]}, "chosen is neither text nor messages"),
        ({"prompt": "a", "chosen": "x"}, "missing column 'rejected'"),
    ],
)  # fmt: skip
def test_a_bad_preference_has_a_reason(row: dict, expected: str):
    assert reason(row, "preference", "preference") == expected


# unpaired and classification


def test_unpaired_rows_and_judged_conversations():
    assert read({"prompt": "a", "completion": "b", "label": True}, "unpaired") == {
        "prompt": "a",
        "completion": "b",
        "label": True,
    }
    got = read({"messages": [U, A], "label": False}, "unpaired")
    assert got == {"prompt": [U], "completion": [A], "label": False, "tools": None}
    for value, label in (("True", True), (0, False), ("1", True), (1.0, True)):
        assert read({"prompt": "a", "completion": "b", "label": value}, "unpaired")["label"] is label
    assert reason({"prompt": "a", "completion": "b", "label": 2}, "unpaired") == "label is neither true nor false"


@pytest.mark.parametrize("label", [0, "spam", 4.75, [0, 1], ["a", "b"], False])
def test_labels_keep_their_type(label: Any):
    row = {"text": "a", "text_pair": "b", "label": label, "idx": 3}
    assert read(row, "classification") == {"text": "a", "text_pair": "b", "label": label}


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (None, "column 'label' is null"),
        (float("nan"), "label is not a number or a name"),
        ({"a": 1}, "label is not a number or a name"),
        ("", "empty label"),
    ],
)
def test_a_bad_label_has_a_reason(label: Any, expected: str):
    assert reason({"text": "a", "label": label}, "classification") == expected


# mappings


def test_a_mapping_is_checked_like_any_row():
    keys: dict[str, Any] = {
        "messages": [{"role": "{{ who }}", "content": "{{ q }}"}, {"role": "assistant", "content": "{{ a }}"}]
    }
    row = {"who": "user", "q": "Hi", "a": "Hello"}
    assert read(row, "messages", **keys) == {"messages": [U, A], "tools": None}
    assert read(row, "prompt_completion", **keys) == {"prompt": [U], "completion": [A], "tools": None}
    assert reason({**row, "who": "alien"}, "messages", **keys) == "unknown role 'alien'"
    assert read(row, "messages", system="{{ '' }}", **keys)["messages"] == [U, A]
    assert read(row, "preference", prompt="{{ q }}", chosen="{{ a }}", rejected="no") == {
        "prompt": "Hi",
        "chosen": "Hello",
        "rejected": "no",
    }


def test_a_system_template_makes_every_prompt_messages():
    keys: dict[str, Any] = {"prompt": "{{ q }}", "completion": "{{ a }}", "system": "{{ s }}"}
    with_system = read({"q": "Hi", "a": "Hello", "s": "x"}, "prompt_completion", **keys)
    without = read({"q": "Hi", "a": "Hello", "s": ""}, "prompt_completion", **keys)
    assert with_system["prompt"][0]["role"] == "system"
    assert without["prompt"] == [U]


# inference


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a", "url": "x"}, "text"),
        (talk(("user", "a")), "messages"),
        ({"messages": json.dumps([U, A])}, "messages"),
        (gpt(("human", "a")), "sharegpt"),
        ({"conversations": json.dumps(gpt(("human", "a"))["conversations"])}, "sharegpt"),
        ({"conversations": [U, A]}, "messages"),
        ({"instruction": "a", "input": "", "output": "b"}, "alpaca"),
        ({"instruction": "a", "response": "b"}, "alpaca"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"prompt": "a", "response": "b"}, "prompt_completion"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"chosen": [U, A], "rejected": [U, A2], "prompt": "Hi", "messages": [U, A]}, "preference"),
        ({"prompt": "a", "completion": "b", "label": True}, "unpaired"),
        ({**talk(("user", "a")), "label": True}, "unpaired"),
        ({"text": "a", "label": 1}, "classification"),
        ({"prompt": "a", "text": "b"}, "text"),
        ({**talk(("user", "a")), "prompt": "a"}, "messages"),
    ],
)
def test_a_format_is_known_by_its_columns(row: dict, expected: Any):
    accepts = {"preference": ["preference"], "unpaired": ["unpaired"], "classification": ["classification"]}
    kinds: Any = accepts.get(expected, ["text", "messages", "prompt_completion"])
    assert infer(row, kinds, "x") == expected


def test_what_the_caller_accepts_settles_what_columns_leave_open():
    row = {"text": "a", "label": 1}
    assert infer(row, ["text"], "x") == "text"
    assert infer(row, ["classification"], "x") == "classification"
    assert infer(row, ["text", "classification"], "x") == "classification"
    assert infer({**talk(("user", "a")), "label": True}, ["messages", "unpaired"], "x") == "unpaired"
    assert (
        infer({**talk(("user", "a")), "chosen": "b", "rejected": "c"}, ["messages", "preference"], "x") == "preference"
    )
    with pytest.raises(
        DataError, match=r"x: its columns \(instruction, output, text\) fit more than one format: alpaca"
    ):
        infer({"instruction": "a", "output": "b", "text": "a b"}, ["text", "messages"], "x")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "answer": "b", "label": 1}, "prompt"),
        ({"prompt": "a", "response": "b"}, "prompt_completion"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({**talk(("user", "a")), "answer": "b"}, "messages"),
    ],
)
def test_a_lone_prompt_is_a_format_only_where_no_answer_stands_beside_it(row: dict, expected: Any):
    assert infer(row, ["prompt"], "x") == expected
    with pytest.raises(DataError, match="fit no format"):
        infer({"prompt": "a", "answer": "b"}, ["messages", "prompt_completion", "preference", "unpaired"], "x")


def test_bad_prompts_have_reasons():
    assert reason({"prompt": " "}, "prompt") == "empty prompt"
    assert reason({"prompt": [U, A]}, "prompt") == "the prompt ends with an assistant message"
    assert reason({"prompt": "a", "tools": [TOOL]}, "prompt") == "prompts with tools cannot be used"
    assert reason({"prompt": "a", "n": 2**70}, "prompt") == "column 'n' holds a whole number of more than 64 bits"
    assert reason({"messages": [A]}, "prompt") == "no user message"


def test_columns_of_no_format_or_of_another_say_so():
    with pytest.raises(DataError, match=r"columns \(question, answer\) fit no format.*alpaca: instruction \+ output"):
        infer({"question": "a", "answer": "b"}, ["messages"], "x")
    with pytest.raises(DataError, match="rows of format 'text' cannot be used here; formats that can: preference"):
        infer({"text": "a"}, ["preference"], "x")


def test_every_format_that_can_be_inferred_can_be_read():
    rows: dict[str, Any] = {
        "text": {"text": "a"},
        "messages": {"messages": [U, A]},
        "sharegpt": gpt(("human", "a"), ("gpt", "b")),
        "alpaca": {"instruction": "a", "output": "b"},
        "prompt": {"prompt": "a"},
        "prompt_completion": {"prompt": "a", "completion": "b"},
        "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
        "unpaired": {"prompt": "a", "completion": "b", "label": True},
        "classification": {"text": "a", "label": 1},
    }
    for name, row in rows.items():
        assert name in formats_of(row)
        kind: Any = kind_for(
            name, ["text", "messages", "prompt_completion", "preference", "unpaired", "classification", "prompt"]
        )  # type: ignore[arg-type]
        assert canonicalizer(SourceSpec(path="x"), name, kind)(row)  # type: ignore[arg-type]
