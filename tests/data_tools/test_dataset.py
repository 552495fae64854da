"""A source becomes clean examples, and every row that does not is counted by name."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from posttrain.data_tools.dataset import DataReport, load
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.spec import SourceSpec

from ..rows import write_rows

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
EMPTY = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}
OPEN = {"messages": [{"role": "user", "content": "a"}]}


def examples(base: Path, accepts: tuple[Any, ...] = ("messages",), share: float = 0.02, **keys: Any) -> Any:
    report = DataReport()
    source = SourceSpec.model_validate({"path": "a.jsonl", **keys})
    return list(load(source, base, accepts, report=report, max_bad_share=share)), report


def test_good_rows_come_in_order_and_bad_ones_are_counted_with_examples(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", [GOOD, EMPTY, "{", OPEN, EMPTY, EMPTY, EMPTY, GOOD])
    got, report = examples(tmp_path, share=0.9)
    assert got == [("a.jsonl:1", {**GOOD, "tools": None}), ("a.jsonl:8", {**GOOD, "tools": None})]
    assert (report.rows, report.kept, report.kind, report.format) == (8, 2, "messages", "messages")
    assert report.dropped == {"empty assistant message": 4, "not JSON": 1, "last message is not from the assistant": 1}
    assert [place.partition(": ")[0] for place in report.examples["empty assistant message"]] == [
        f"a.jsonl:{line}" for line in (2, 5, 6)
    ]


def test_too_many_bad_rows_stop_the_run_and_say_which(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", [GOOD] * 98 + [EMPTY] * 2)
    assert len(examples(tmp_path)[0]) == 98
    write_rows(tmp_path / "a.jsonl", [GOOD] * 97 + [EMPTY] * 2 + [OPEN])
    with pytest.raises(DataError) as caught:
        examples(tmp_path, name="chats")
    message = str(caught.value)
    assert message.startswith("chats: 3 of 100 rows cannot be used: empty assistant message (2, as in a.jsonl:98")
    assert "last message is not from the assistant (1, as in a.jsonl:100" in message
    assert "max_bad_share" in message


def test_a_source_of_nothing_but_bad_rows_is_not_read_to_its_end(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", [{"q": "x", "a": "y"}] * 5000)
    report = DataReport()
    source = SourceSpec.model_validate({"path": "a.jsonl", "text": "{{ questoin }}"})
    with pytest.raises(DataError, match=r"missing column 'questoin' \(100, as in a\.jsonl:1: the columns are q, a"):
        list(load(source, tmp_path, ["text"], report=report))
    assert report.rows == 100


@pytest.mark.parametrize("lines", [[], ["{"] * 3, [{}], [{"messages": None}]])
def test_a_source_without_a_usable_row_is_an_error(tmp_path: Path, lines: list[Any]):
    write_rows(tmp_path / "a.jsonl", lines)
    for share in (0.02, 1.0):
        with pytest.raises(DataError, match=r"a\.jsonl: "):
            examples(tmp_path, share=share)


def test_the_format_is_decided_by_more_than_the_first_row(tmp_path: Path):
    lines = ["{", {"id": 1}, {"id": 2, "text": None}] + [{"id": 3, "text": "x"}] * 300
    write_rows(tmp_path / "a.jsonl", lines)
    got, report = examples(tmp_path, ("text",))
    assert len(got) == 300
    assert report.dropped == {"not JSON": 1, "missing column 'text'": 1, "column 'text' is null": 1}


def test_a_limit_counts_usable_rows_and_reads_no_further(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", [GOOD, EMPTY] + [GOOD] * 200 + ["{"] * 200)
    got, report = examples(tmp_path, share=0.5, limit=3)
    assert [where for where, _ in got] == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:4"]
    assert (report.rows, report.kept) == (4, 3)


def test_a_reader_may_stop_early(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", [GOOD] + [EMPTY] * 1000)
    source = SourceSpec(path="a.jsonl")
    assert len(list(itertools.islice(load(source, tmp_path, ["messages"]), 1))) == 1


def test_a_format_that_the_caller_cannot_use_is_an_error_before_any_row(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", [GOOD])
    with pytest.raises(
        DataError, match=r"a\.jsonl: rows of format 'messages' cannot be used here; formats that can: text"
    ):
        examples(tmp_path, ("text",))
    with pytest.raises(DataError, match="rows of format 'alpaca' cannot be used here"):
        examples(tmp_path, ("text",), format="alpaca")
    with pytest.raises(DataError, match="rows of format 'messages' cannot be used here"):
        examples(tmp_path, ("preference",), messages=[{"role": "user", "content": "x"}])


def test_prompts_of_a_source_are_all_text_or_all_messages(tmp_path: Path):
    text = {"prompt": "a", "completion": "b"}
    chat = {"prompt": GOOD["messages"][:1], "completion": GOOD["messages"][1:]}
    write_rows(tmp_path / "a.jsonl", [chat, text])
    got, _ = examples(tmp_path, ("prompt_completion",))
    assert [example for _, example in got] == [{**chat, "tools": None}] * 2
    write_rows(tmp_path / "a.jsonl", [text, chat])
    _, report = examples(tmp_path, ("prompt_completion",), share=0.5)
    assert report.dropped == {"the prompt is messages where the first rows have text": 1}


def test_tool_arguments_of_different_rows_never_meet(tmp_path: Path):
    def row(arguments: Any) -> Any:
        calls = [{"type": "function", "function": {"name": "f", "arguments": arguments}}]
        return {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "", "tool_calls": calls}]}

    arguments = [{"city": "Paris"}, {"x": 1, "nested": {"y": None}}, {}, {"x": "text"}]
    write_rows(tmp_path / "a.jsonl", [row(json.dumps(a) if n % 2 else a) for n, a in enumerate(arguments)])
    got, _ = examples(tmp_path)
    assert [e["messages"][1]["tool_calls"][0]["function"]["arguments"] for _, e in got] == arguments


def test_nothing_of_jinja_in_the_data_is_run(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", [{"q": "{{ 7 * 7 }}", "a": "{% raw %}"}])
    got, _ = examples(tmp_path, ("prompt_completion",), prompt="{{ q }}", completion="> {{ a }}")
    assert got[0][1] == {"prompt": "{{ 7 * 7 }}", "completion": "> {% raw %}"}
