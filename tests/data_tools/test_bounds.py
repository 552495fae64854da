"""Files that would fill the memory or never end give one error; so do columns named the wrong way round."""

import gzip
import json
import time
from pathlib import Path

import pytest
from posttrain.data_tools import readers
from posttrain.data_tools.dataset import DataReport, load
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.spec import SourceSpec


def read(path: Path, **source) -> tuple[list, DataReport]:
    report = DataReport()
    spec = SourceSpec(path=str(path), **source)
    rows = list(load(spec, path.parent, ("text", "prompt_completion"), report=report, max_bad_share=0.9))
    return rows, report


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.txt", "rows.jsonl.gz"])
def test_a_giant_line_spoils_itself_alone(tmp_path, monkeypatch, name):
    monkeypatch.setattr(readers, "MAX_ROW", 1 << 16)
    lines = ["short", "x" * (1 << 18), "end"]
    text = "".join((line if "txt" in name else json.dumps({"text": line})) + "\n" for line in lines)
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wt") as file:
        file.write(text)
    rows, report = read(tmp_path / name)
    assert [row["text"] for _, row in rows] == ["short", "end"]
    assert report.dropped == {"longer than 32 MiB": 1}


def test_a_giant_element_document_or_cell_is_one_error(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(readers, "MAX_ROW", 1 << 16)
    monkeypatch.setattr(readers, "_CHUNK", 1 << 10)
    (tmp_path / "a.json").write_text(json.dumps([{"text": "x" * (1 << 18)}]))
    with pytest.raises(DataError, match="longer than 32 MiB"):
        read(tmp_path / "a.json")
    (tmp_path / "a.txt").write_text("x\n" * (1 << 17))
    with pytest.raises(DataError, match="longer than 32 MiB"):
        read(tmp_path / "a.txt", sample_by="document")
    pq.write_table(pa.table({"text": ["a", "x" * (1 << 18)]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[1].dropped == {"longer than 32 MiB": 1}


@pytest.mark.parametrize("line", [b"", b'{"text": "a"}\n'])
def test_a_gzip_bomb_is_one_error_and_soon(tmp_path, monkeypatch, line):
    monkeypatch.setattr(readers, "_FREE", 1 << 20)
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.GzipFile(path, "wb", compresslevel=9) as file:
        for _ in range(20):
            file.write(line * (len(b" " * (1 << 20)) // max(1, len(line))) or b" " * (1 << 20))
    began = time.monotonic()
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        for _ in load(SourceSpec(path=str(path)), tmp_path, ("text",)):
            pass
    assert time.monotonic() - began < 60


def test_columns_turned_round_say_so_and_odd_names_are_mapped(tmp_path):
    (tmp_path / "rows.csv").write_text("question,the reply!\nTwo?,four\n")
    columns = {"question": "prompt", "the reply!": "completion"}
    rows, _ = read(tmp_path / "rows.csv", columns=columns)
    assert rows[0][1] == {"prompt": "Two?", "completion": "four"}
    with pytest.raises(DataError, match=r"missing column 'prompt'.*file's name first: \{question: prompt\}"):
        read(tmp_path / "rows.csv", columns={new: old for old, new in columns.items()})
    rows, _ = read(tmp_path / "rows.csv", prompt="{{ question }}", completion="{{ row['the reply!'] }}")
    assert rows[0][1] == {"prompt": "Two?", "completion": "four"}
    with pytest.raises(DataError, match=r"missing column 'the repl'.*did you mean 'the reply!'"):
        read(tmp_path / "rows.csv", prompt="{{ question }}", completion="{{ row['the repl'] }}")
