"""Texts that are kept on the disk while a tool looks at them again."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from posttrain.data_tools import row_tool
from posttrain.data_tools.dedup import Dedup
from posttrain.data_tools.errors import DataError, RowError
from posttrain.data_tools.kept_texts import KeptTexts
from posttrain.data_tools.spec import SourceSpec

TEXTS = ["plain", "", "two\nlines\0and a NUL", "日本語 😀", "\u2028 é"]


def lengths(block: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
    return {"length": np.array([len(text) for _, text in block], np.int64)}


def read(row: row_tool.Row) -> str:
    if "text" not in row.values:
        raise RowError("none")
    return row.values["text"]


def test_texts_come_back_as_they_were_and_a_second_call_describes_none_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_tool, "BLOCK_ROWS", 2)
    rows = [*({"text": text} for text in TEXTS[:3]), {"other": 1}, *({"text": text} for text in TEXTS[3:])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceSpec(path=str(tmp_path / "rows.jsonl"))
    KeptTexts(tmp_path / "kept", [source], [read], lengths, "reading")

    def never(_: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
        raise AssertionError

    kept = KeptTexts(tmp_path / "kept", [source], [read], never, "reading")
    assert kept.found("length").tolist() == list(map(len, TEXTS))
    found = list(kept.read(np.ones(len(kept), bool)))
    assert [text for *_, text in found] == TEXTS
    assert [where.rpartition(":")[2] for _, _, where, _ in found] == ["1", "2", "3", "5", "6"]
    assert kept.pick([3]) == {3: (found[3][2], TEXTS[3])}


def test_a_source_without_rows_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl: holds no readable rows"):
        Dedup(sources=[str(tmp_path / "empty.jsonl")], columns=["text"]).run(tmp_path / "out")  # type: ignore[list-item]
