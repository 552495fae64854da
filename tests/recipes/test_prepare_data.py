"""The rows of a recipe in a file are those that training reads, and the page follows them back to their sources."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import load_dataset
from posttrain.chat_templates.errors import PosttrainError
from posttrain.recipes.job import open_job
from posttrain.recipes.load import load
from posttrain.recipes.prepare_data import Prepare
from posttrain.recipes.rows import prepare_rows
from posttrain.recipes.tools import run_command
from pyarrow import Table, parquet


def made(tmp_path: Path, make_recipe: Callable[..., Path]) -> Path:
    """A recipe on two sources, one of which has come through two tools."""
    texts = [
        "one two three four five six",
        "a b c d e f g h",
        "one two three four five six",
        "lots of other words here",
    ]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 3))
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": "seen seven times"}) + "\n")
    for command in (
        ["dedup", "raw.jsonl", "-o", "unique"],
        ["convert", "unique/raw.jsonl", "--held-out", "0.34", "-o", "converted"],
    ):
        with pytest.raises(SystemExit, match="0"):
            run_command(*command)
    train = [
        {"path": str(tmp_path / "converted/train/raw.jsonl"), "name": "words"},
        {"path": str(tmp_path / "other.jsonl")},
    ]
    return make_recipe(stage="pretrain", sections={"data": {"train": train}})


def test_rows_are_those_of_training_the_same_twice(
    tmp_path: Path, make_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = made(tmp_path, make_recipe)
    said = Prepare(recipe=str(recipe), overrides=["data.seed=3"]).run(tmp_path / "out")
    prepared = prepare_rows(open_job(load(recipe, ["data.seed=3"])), "train")
    assert prepared is not None
    found = load_dataset("parquet", data_files=str(tmp_path / "out/train.parquet"), cache_dir=str(tmp_path / "cache"))
    assert list(found["train"]) == list(prepared.dataset)  # type: ignore[index]
    assert f"{prepared.report.rows} rows, {prepared.report.tokens} tokens" in said
    Prepare(recipe=str(recipe), overrides=["data.seed=3"]).run(tmp_path / "again")
    for name in ("train.parquet", "report.json", "report.html"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_the_page_follows_a_source_back_through_the_tools(
    tmp_path: Path, make_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Prepare(recipe=str(made(tmp_path, make_recipe))).run(tmp_path / "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    sources, way = report["tables"]
    assert [row[0] for row in sources["rows"]] == ["words", "other.jsonl"]
    assert way["rows"] == [
        ["words", "dedup", 12, 3, "25.0%", "exact duplicate (9)"],
        ["words", "convert", 3, 2, "66.7%", "held out (1)"],
    ]
    monkeypatch.chdir(tmp_path / "unique")  # the tools' paths are not found from here, but beside their folders
    Prepare(recipe=str(tmp_path / "run.yaml")).run(tmp_path / "again")
    assert json.loads((tmp_path / "again/report.json").read_text())["tables"][1]["rows"] == way["rows"]


def test_prompts_have_a_page_too_and_rows_of_an_earlier_call_go_but_no_file_of_others(
    tmp_path: Path, make_recipe: Callable[..., Path]
) -> None:
    recipe = make_recipe(stage="grpo")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/eval.parquet").write_bytes(b"of another")
    Prepare(recipe=str(recipe)).run(tmp_path / "out")
    assert re.search(r"What is \d+\+\d+", (tmp_path / "out/report.html").read_text())
    assert (tmp_path / "out/eval.parquet").read_bytes() == b"of another"
    report = json.loads((tmp_path / "out/report.json").read_text())
    report["fingerprints"]["eval"] = "of an earlier call"
    (tmp_path / "out/report.json").write_text(json.dumps(report))
    Prepare(recipe=str(recipe)).run(tmp_path / "out")
    assert not (tmp_path / "out/eval.parquet").exists()


def test_what_a_recipe_reads_is_not_written_over(tmp_path: Path, make_recipe: Callable[..., Path]) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train", "eval"):
        path = tmp_path / "data" / f"{name}.parquet"
        parquet.write_table(Table.from_pylist([{"text": "one two three"}] * 9), path)
        before = path.read_bytes()
        recipe = make_recipe(stage="pretrain", sections={"data": {"train": {"path": str(path)}}})
        with pytest.raises(PosttrainError, match="would be written over by its own rows"):
            Prepare(recipe=str(recipe)).run(tmp_path / "data")
        assert path.read_bytes() == before


def test_what_is_wrong_with_a_recipe_is_said_where_it_stands(tmp_path: Path, make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe(stage="pretrain", sections={"data": {"train": {"path": "nowhere.jsonl"}}})
    with pytest.raises(PosttrainError, match=r"run\.yaml:3.*nowhere\.jsonl"):
        Prepare(recipe=str(recipe)).run(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.parquet"))
