"""What stands in many rows is cut from them, counted, and listed; nothing else changes."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from posttrain.data_tools import row_tool
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.lines import Lines, pieces_of
from posttrain.data_tools.spec import SourceSpec

from ..rows import read_rows, write_texts

FOOTER = "Copyright 2020, All rights reserved."
MENU = "Home | About | Contact"


def cut(tmp_path: Path, rows: list[Any], **more: Any) -> list[dict[str, Any]]:
    path = write_texts(tmp_path / "a.jsonl", rows)
    Lines(sources=[SourceSpec(path=path)], **({"min_rows": 3} | more)).run(tmp_path / "out")
    return read_rows(tmp_path / "out" / "a.jsonl")


def page(number: int) -> str:
    return f"{MENU}\n\nStory {number} is told here.\nIts end is {number}.\n\n{FOOTER}"


@pytest.mark.parametrize("unit", ["line", "paragraph"])
@pytest.mark.parametrize("keep", ["first", "none"])
def test_what_stands_in_many_rows_is_cut(tmp_path: Path, unit: str, keep: str) -> None:
    rows = [page(0), *(page(number).replace("About", "ABOUT").replace(",", " -") for number in range(1, 5)), "alone"]
    found = [row["text"] for row in cut(tmp_path, rows, unit=unit, keep=keep)]
    assert found[5] == "alone"
    for number in range(5):
        text = f"Story {number} is told here.\nIts end is {number}."
        assert found[number].strip() == (page(0) if keep == "first" and number == 0 else text)
    ledger = read_rows(tmp_path / "out" / "cut.log")
    assert [(entry["text"], entry["rows"], entry["first"].split(":")[-1]) for entry in ledger] == [
        (MENU, 5, "1"),
        (FOOTER, 5, "1"),
    ]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    [entry] = report["counts"]["Changed"]
    assert (entry["name"], entry["count"]) == (f"{unit} cut", 8 if keep == "first" else 10)
    assert FOOTER in entry["examples"][-1]["detail"].replace(" -", ",")


def test_thresholds_say_what_is_cut(tmp_path: Path) -> None:
    rows = ["a b\none", "a b\ntwo", "a b\nthree", "c\nfour", "c\nfive", "c\nsix", "7 seas\nx", "8 seas\ny", "9 seas\nz"]
    found = {}
    for name, more in {"all": {}, "rows": {"min_rows": 4}, "words": {"min_words": 2}}.items():
        (tmp_path / name).mkdir()
        found[name] = [row["text"] for row in cut(tmp_path / name, rows, **more)]
    assert found["all"] == ["a b\none", "two", "three", "c\nfour", "five", "six", *rows[6:]]
    assert found["rows"] == rows
    assert found["words"] == ["a b\none", "two", "three", *rows[3:]]
    (tmp_path / "numbers").mkdir()
    assert [row["text"] for row in cut(tmp_path / "numbers", rows, ignore_numbers=True)][6:] == ["7 seas\nx", "y", "z"]


def test_a_row_of_which_little_is_left_goes(tmp_path: Path) -> None:
    rows = [f"one two three four\n{number}" for number in range(3)] + ["one two three four"]
    assert len(cut(tmp_path, rows)) == 3
    assert len(cut(tmp_path, rows, max_cut=0.5)) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {entry["name"]: entry["count"] for entry in report["counts"]["Left out"]} == {
        "more than 50% cut": 2,
        "nothing left": 1,
    }


def test_lines_can_be_marked_instead(tmp_path: Path) -> None:
    found = cut(tmp_path, [page(number) for number in range(3)], remove=False)
    assert found == [
        {"text": page(0), "repeated": []},
        *({"text": page(number), "repeated": [MENU, FOOTER]} for number in (1, 2)),
    ]


def test_code_stays_unless_it_is_asked_for(tmp_path: Path) -> None:
    fenced = [f"Text {number}\n```python\nimport os\n```\nimport os" for number in range(4)]
    assert [row["text"] for row in cut(tmp_path, fenced)][1:] == [text[: -len("\nimport os")] for text in fenced[1:]]
    assert [row["text"] for row in cut(tmp_path, fenced, code=True)][1] == "Text 1\n```python\n```"
    files: list[Any] = [{"text": f"import os\nx = {number}", "path": "a/b.py"} for number in range(4)]
    assert cut(tmp_path, files) == files
    assert cut(tmp_path, files, code=True)[1]["text"] == "x = 1"
    english = [{"text": f"import os\nx {number}", "language": "en"} for number in range(4)]
    assert cut(tmp_path, english)[1]["text"] == "x 1"


def test_chats_are_refused_unless_they_are_asked_for(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"Q {number}"}, {"role": "assistant", "content": f"{number}\nDone!"}]}
        for number in range(4)
    ]
    with pytest.raises(DataError, match="conversations"):
        cut(tmp_path, rows)
    odd: list[Any] = [{"messages": []}, {"messages": None}, {"messages": ["Done!"]}]
    found = cut(tmp_path, rows + odd, chats=True)
    assert found[4:] == odd
    found = found[:4]
    assert [row["messages"][1]["content"] for row in found] == ["0\nDone!", "1", "2", "3"]
    assert [row["messages"][0] for row in found] == [row["messages"][0] for row in rows]
    with pytest.raises(DataError, match="no column `text`"):
        cut(tmp_path, [{"q": "a"}])


def test_what_stands_often_in_one_row_is_not_in_many(tmp_path: Path) -> None:
    rows = ["again\n" * 20 + "end", "again\nx", "y"]
    assert [row["text"] for row in cut(tmp_path, rows)] == rows


def test_lines_of_one_hash_that_differ_both_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "posttrain.data_tools.ngrams.Words.wholes", property(lambda words: (words.bounds[1:] > -1).astype("uint64"))
    )
    rows = ["same", "same", "other", "same"]
    assert [row["text"] for row in cut(tmp_path, rows)] == ["same", "other"]


def test_pieces_make_up_the_text() -> None:
    draw = random.Random(1)
    for _ in range(200):
        text = "".join(draw.choices(["a", " ", "\n", "\n\n", "b\n", "\r\n"], k=12))
        for unit in ("line", "paragraph"):
            assert "".join(pieces_of(text, unit)) == text


def test_a_second_call_after_a_kill_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_tool, "BLOCK_ROWS", 8)
    path = write_texts(tmp_path / "a.jsonl", [page(number) for number in range(40)])
    tool = Lines(sources=[SourceSpec(path=path)])
    tool.run(tmp_path / "whole")
    whole = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir() if file.suffix}
    fsync, calls = row_tool.os.fsync, [0]
    for at in (3, 7, 12):
        calls[0] = -at

        def dies(number: int) -> None:
            calls[0] += 1
            if calls[0] == 0:
                raise KeyboardInterrupt
            fsync(number)

        with monkeypatch.context() as patch:
            patch.setattr(row_tool.os, "fsync", dies)
            with pytest.raises(KeyboardInterrupt):
                tool.run(tmp_path / f"out{at}")
        tool.run(tmp_path / f"out{at}")
        assert {file.name: file.read_bytes() for file in (tmp_path / f"out{at}").iterdir() if file.suffix} == whole
