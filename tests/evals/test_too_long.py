"""Items longer than the model takes are cut, left out and counted, or refused, as a suite says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from posttrain.evals.definitions import define
from posttrain.evals.score import score
from posttrain.evals.suite_files import load_suite

from .conftest import CHOICES, PROMPTS, write_rows

MakeRun = Callable[..., Path]
LONG = "hello " * 400  # the tiny model takes 256 tokens


def suite(folder: Path, **keys: Any) -> Path:
    choices = [CHOICES[0], CHOICES[1] | {"question": LONG}, *CHOICES[2:]]
    write_rows(folder / "choices.jsonl", choices)
    write_rows(folder / "sums.jsonl", [PROMPTS[0] | {"prompt": LONG}, *PROMPTS[1:]])
    tasks = [
        {"task": "multiple_choice", "name": "choices", "data_files": {"test": "choices.jsonl"}},
        {"task": "exact_match", "name": "sums", "data_files": {"test": "sums.jsonl"}},
    ]
    path = folder / "mine.yaml"
    path.write_text(json.dumps({"tasks": tasks, "chat": "never", "dtype": "float32"} | keys))
    return path


def ids(run: Path, record: Any) -> list[int]:
    return pq.read_table(run / record.samples_name).column("doc_id").to_pylist()


def test_they_are_left_out_and_counted_and_the_others_keep_their_figures(make_run: MakeRun, tmp_path: Path):
    run = make_run((1,), final=False)
    cut = score([run], suite(tmp_path), device="cpu").done
    left = score([run], suite(tmp_path, too_long="skip"), device="cpu").done
    assert [ids(run, record) for record in cut] == [[0, 1, 2, 3]] * 2
    assert [ids(run, record) for record in left] == [[0, 2, 3], [1, 2, 3]]
    for record in left:
        assert record.metrics[0].n == 3
        assert record.detail is not None
        assert record.detail["too_long"] == 1
        assert "1 of 4 items are longer than the model takes: left out" in record.notes
    assert all("too_long" not in (record.detail or {}) for record in cut)
    whole, rest = (pq.read_table(run / some[0].samples_name).to_pylist() for some in (cut, left))
    kept = [row["responses"] for row in whole if row["doc_id"] != 1]
    numbers = [[json.loads(text)[0][0] for text in row] for row in kept]
    others = [[json.loads(text)[0][0] for text in row["responses"]] for row in rest]
    assert [pytest.approx(row, abs=1e-4) for row in numbers] == others


def test_prompts_that_are_cut_are_counted_one_by_one_and_nothing_is_said_to_be_shared(
    make_run: MakeRun, tmp_path: Path
):
    path = suite(tmp_path, batch_size=2)
    write_rows(tmp_path / "sums.jsonl", [row | {"prompt": f"{n} {LONG}{n}"} for n, row in enumerate(PROMPTS[:3])])
    sums = score([make_run((1,), final=False)], path, device="cpu").done[1]
    assert sums.notes == ("3 prompts are longer than the model takes; their beginnings were cut",)
    assert "shared_tokens" not in (sums.detail or {})


def test_an_answer_that_leaves_no_room_for_a_prompt_is_refused(make_run: MakeRun, tmp_path: Path):
    task = {"task": "exact_match", "data_files": {"test": "sums.jsonl"}, "gen_kwargs": {"max_new_tokens": 256}}
    report = score([make_run((1,), final=False)], suite(tmp_path, tasks=[task]), device="cpu")
    [failure] = report.failed
    assert "an answer of 256 tokens leaves no room for a prompt" in failure.reason
    assert (failure.detail, report.exit_code) == ("", 1)


def test_an_answer_that_ends_where_the_task_does_not_say_is_noted(make_run: MakeRun, tmp_path: Path):
    entry = {"task": "exact_match", "data_files": {"test": "sums.jsonl"}, "limit": 2}
    entry["overrides"] = {"generation_kwargs": {"max_gen_toks": 2}}
    tasks = [entry | {"name": "cut"}, entry | {"name": "whole", "gen_kwargs": {"until": []}}]
    cut, whole = score([make_run((1,), final=False)], suite(tmp_path, tasks=tasks), device="cpu").done
    note = "answers end at '\\n\\n', for no `until` is named"
    assert [note in record.notes for record in (cut, whole)] == [True, False]


def test_they_are_refused_by_number(make_run: MakeRun, tmp_path: Path):
    report = score([make_run((1,), final=False)], suite(tmp_path, too_long="error"), device="cpu")
    assert [failure.task for failure in report.failed] == ["choices", "sums"]
    assert all("1 of 4 items are longer than the model takes (256 tokens)" in f.reason for f in report.failed)
    assert all(failure.detail == "" for failure in report.failed)


def test_a_task_of_nothing_but_long_items_is_not_scored(make_run: MakeRun, tmp_path: Path):
    path = suite(tmp_path, too_long="skip")
    write_rows(tmp_path / "choices.jsonl", [row | {"question": LONG} for row in CHOICES])
    report = score([make_run((1,), final=False)], path, device="cpu")
    assert "4 of 4 items" in report.failed[0].reason


def test_what_happens_to_them_is_part_of_what_is_measured(tmp_path: Path):
    def task_hash(**keys: Any) -> str:
        found = load_suite(suite(tmp_path, **keys))
        return define(found.tasks[0], found).task_hash

    assert task_hash() == task_hash(too_long="cut")
    assert len({task_hash(), task_hash(too_long="skip"), task_hash(too_long="error")}) == 3
