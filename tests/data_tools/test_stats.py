"""What a set holds is measured as anyone would count it by hand."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from posttrain.data_tools import row_tool
from posttrain.data_tools.spec import SourceSpec
from posttrain.recipes import model_tools
from posttrain.recipes.model_tools import Stats


def tables(folder: Path) -> dict[str, list[list[Any]]]:
    found = json.loads((folder / "report.json").read_text())
    return {table["title"]: table["rows"] for table in found["tables"]}


def test_rows_turns_lengths_and_duplicates_are_counted(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Bonjour à tous"}, {"role": "assistant", "content": "Salut"}]
    rows = [{"messages": talk}, {"messages": [*talk, *talk]}, {"messages": talk}, {"messages": "no"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Stats(sources=[SourceSpec(path=str(path), name="a")]).run(tmp_path / "out")
    found = tables(tmp_path / "out")
    lengths = {row[1]: row[2:] for row in found["Lengths"]}
    assert lengths["turns"][:2] == [8, 2.7]
    assert lengths["words"][0] == 4 + 8 + 4
    assert lengths["characters"][0] == 20 + 41 + 20
    assert lengths["bytes"][0] - lengths["characters"][0] == 4
    assert found["Rows that say what an earlier row says"] == [["exact", 1], ["normalised", 0], ["near", 0]]
    assert found["Rows"] == [["a", 4, 1]]
    assert sorted(file.name for file in (tmp_path / "out").iterdir() if file.suffix) == ["report.html", "report.json"]


class Vocabulary(dict[str, int]):
    def get_vocab(self) -> dict[str, int]:
        return self


def test_tokenizers_are_compared_on_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = {"by character": list, "by word": str.split}
    known = Vocabulary({piece: number for number, piece in enumerate(["one", "two", "three", *"eohnrtw z"])})
    opened = [
        SimpleNamespace(
            name=name,
            tokenizer=known,
            encode=lambda texts, cut=cut: [[known[piece] for piece in cut(text)] for text in texts],
        )
        for name, cut in cuts.items()
    ]
    monkeypatch.setattr(model_tools, "load_tokenizers", lambda names: opened)
    monkeypatch.setattr(Stats, "identity", lambda self: None)
    monkeypatch.setattr(row_tool, "BLOCK_ROWS", 1)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one two"}\n{"text": "three"}\n')
    Stats(sources=[SourceSpec(path=str(path), name="a")], tokenizers=list(cuts)).run(tmp_path / "out")
    found = tables(tmp_path / "out")
    assert found["Tokens"] == [["a", "by character", 12, 1.0, 4.0], ["a", "by word", 3, 4.0, 1.0]]
    # all blocks together: eight letters of the nine and the blank, and three words
    assert [row[2:] for row in found["Vocabulary"]] == [[12, 8, "66.7%", 12], [12, 3, "25.0%", 3]]


def test_items_of_tests_are_looked_for_and_no_row_is_written(tmp_path: Path) -> None:
    question = "Which of the seven rivers that cross the old province of Larn never reaches the sea in summer?"
    (tmp_path / "test.jsonl").write_text(json.dumps({"prompt": question, "completion": "The Mell"}) + "\n")
    rows = [
        {"text": f"I was asked this: {question} The Mell, of course."},
        {"text": "Nothing of the kind stands here."},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources, items = ([SourceSpec(path=str(tmp_path / name))] for name in ("a.jsonl", "test.jsonl"))
    Stats(sources=sources, items=items).run(tmp_path / "out")
    (seen,) = tables(tmp_path / "out")["Test items"]
    assert seen[1:4] == [1, 8, 1]
    assert {"Lengths", "Rows that say what an earlier row says"} < tables(tmp_path / "out").keys()
    assert not list((tmp_path / "out").glob("*.jsonl"))
