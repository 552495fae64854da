"""What a set holds is measured as anyone would count it by hand."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
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


def test_tokenizers_are_compared_on_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counters = {"by character": len, "by word": lambda text: len(text.split())}
    opened = [
        SimpleNamespace(name=name, encode=lambda texts, count=count: [[0] * count(text) for text in texts])
        for name, count in counters.items()
    ]
    monkeypatch.setattr(model_tools, "load_tokenizers", lambda names: opened)
    monkeypatch.setattr(Stats, "identity", lambda self: None)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one two"}\n{"text": "three"}\n')
    Stats(sources=[SourceSpec(path=str(path), name="a")], tokenizers=list(counters)).run(tmp_path / "out")
    assert tables(tmp_path / "out")["Tokens"] == [["a", "by character", 12, 1.0, 4.0], ["a", "by word", 3, 4.0, 1.0]]
