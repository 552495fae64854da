"""Rows held out by `data convert`: as many as are asked for, and none that the training rows say in other words."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from posttrain.data_tools import row_tool
from posttrain.data_tools.convert import Convert
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.ngrams import words_in
from posttrain.data_tools.sources import read_rows
from posttrain.data_tools.spec import SourceSpec


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_tool, "BLOCK_ROWS", 32)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def texts(groups: int, seed: int = 0) -> list[str]:
    """Texts of 60 words in groups of one to four, the others of which differ from the first by one word each."""
    draw = random.Random(seed)
    words = [f"w{number}" for number in range(500)]
    made = []
    for group in range(groups):
        first = draw.choices(words, k=60)
        for number in range(1 + group % 4):
            other = [*first]
            other[7 * number] = f"other{number}"
            made.append(" ".join(other))
    draw.shuffle(made)
    return made


def jaccard(one: str, other: str) -> float:
    first, second = (
        {tuple(words[place : place + 5]) for place in range(len(words) - 4)} for words in map(words_in, (one, other))
    )
    return len(first & second) / len(first | second)


def convert(path: str, out: Path, share: float = 0.2, **more: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    Convert(sources=[SourceSpec(path=path)], held_out=share, **more).run(out)
    name = Path(path).name
    return read(out / "train" / name), read(out / "validation" / name)


def test_no_held_out_row_is_like_a_training_row(tmp_path: Path) -> None:
    rows = texts(40)
    train, heldout = convert(write(tmp_path / "a.jsonl", [{"text": text} for text in rows]), tmp_path / "out")
    assert len(heldout) == round(0.2 * len(rows))
    assert sorted(row["text"] for row in train + heldout) == sorted(rows)
    likeness = [jaccard(one["text"], other["text"]) for one in train for other in heldout]
    assert max(likeness) < 0.8
    within = [jaccard(one["text"], other["text"]) for one in heldout for other in heldout if one is not other]
    assert max(within) > 0.8  # groups were held out too


def test_rows_of_one_prompt_are_not_parted(tmp_path: Path) -> None:
    prompts = texts(40)
    rows = [{"prompt": text, "completion": " ".join(reversed(text.split()))} for text in prompts]
    rows += [{"prompt": text.upper(), "completion": f"no, {number}"} for number, text in enumerate(prompts)]
    train, heldout = convert(write(tmp_path / "a.jsonl", rows), tmp_path / "out")
    assert heldout
    assert not {row["prompt"].lower() for row in train} & {row["prompt"].lower() for row in heldout}
    talks = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": str(number)}]}
        for number, text in enumerate(prompts * 2)
    ]
    train, heldout = convert(write(tmp_path / "b.jsonl", talks), tmp_path / "out-talks")
    asked = [{row["messages"][0]["content"] for row in some} for some in (train, heldout)]
    assert asked[1]
    assert not asked[0] & asked[1]


def test_the_seed_decides_and_an_added_row_changes_little(tmp_path: Path) -> None:
    rows = [{"text": text} for text in texts(80)]
    path = write(tmp_path / "a.jsonl", rows)
    first, again, other = (
        {row["text"] for row in convert(path, tmp_path / f"out{number}", seed=seed)[1]}
        for number, seed in enumerate((1, 1, 2))
    )
    assert first == again
    assert len(first & other) < 0.7 * len(first)
    more = write(tmp_path / "b.jsonl", [{"text": "a row that is new and comes first"}, *rows])
    assert len({row["text"] for row in convert(more, tmp_path / "more", seed=1)[1]} & first) > 0.8 * len(first)


def test_each_source_gives_its_share_and_a_folder_has_two_splits(tmp_path: Path) -> None:
    rows = texts(50)
    sources = [write(tmp_path / "a.jsonl", [{"text": text} for text in rows[:80]])]
    sources.append(write(tmp_path / "b.jsonl", [{"text": text} for text in rows[80:]]))
    said = Convert(sources=[SourceSpec(path=path) for path in sources], held_out=0.1).run(tmp_path / "out")
    assert len(read(tmp_path / "out" / "validation" / "a.jsonl")) == 8
    assert len(read(tmp_path / "out" / "validation" / "b.jsonl")) == round(0.1 * (len(rows) - 80))
    assert f"{sources[0]} → train/a.jsonl: 72 of 80 rows, 8 held out" in said
    counts = [
        len(list(read_rows(SourceSpec(path=str(tmp_path / "out"), split=split), tmp_path)))
        for split in ("train", "validation")
    ]
    assert counts == [len(rows) - sum((8, round(0.1 * (len(rows) - 80)))), sum((8, round(0.1 * (len(rows) - 80))))]
    tables = {table["title"]: table for table in json.loads((tmp_path / "out" / "report.json").read_text())["tables"]}
    assert [row[1:3] for row in tables["Held out"]["rows"]] == [[80, 8], [len(rows) - 80, counts[1] - 8]]


def test_bad_rows_are_counted_and_neither_side_has_them(tmp_path: Path) -> None:
    rows: list[Any] = [{"text": text} for text in texts(40)]
    path = write(tmp_path / "a.jsonl", [*rows, "{", {"text": ""}, {"text": 5}])
    train, heldout = convert(path, tmp_path / "out", max_bad_share=0.5)
    assert len(train) + len(heldout) == len(rows)
    [file] = json.loads((tmp_path / "out" / "report.json").read_text())["files"]
    assert (file["rows"], file["removed"], file["kept"]) == (len(rows) + 3, 3, len(train))
    assert (file["held_out_file"], file["held_out"]) == ("validation/a.jsonl", len(heldout))


def test_a_share_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": text} for text in texts(20)])
    with pytest.raises(DataError, match=r"a share of 0\.99 leaves no row to train on"):
        convert(path, tmp_path / "out", 0.99)


def test_rows_that_are_all_alike_cannot_be_parted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": texts(1)[0]}] * 50)
    with pytest.raises(DataError, match=r"held_out: no rows can be held out at a share of 0.2; a larger share"):
        convert(path, tmp_path / "out")
