"""Answers of others, scored from a file: joined by id, prompt or place, and what cannot be joined named."""

import json
from pathlib import Path
from typing import Any

import pytest
from posttrain.chat_templates.errors import InputError
from posttrain.evals.errors import SuiteError
from posttrain.evals.runs import find_targets
from posttrain.evals.score import ScoreReport, score

from .conftest import PROMPTS, write_rows

ROWS = [row | {"id": f"sum/{n}"} for n, row in enumerate(PROMPTS)]


def scored(tmp_path: Path, rows: list[dict[str, Any]], *, name: str = "gpt.jsonl", more: str = "") -> ScoreReport:
    write_rows(tmp_path / "prompts.jsonl", ROWS)
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"{more}tasks:\n  - {{task: exact_match, name: sums, data_files: {{test: prompts.jsonl}}}}\n")
    return score([write_rows(tmp_path / name, rows)], suite, output=tmp_path / "board")


@pytest.mark.parametrize(
    "rows",
    [
        [{"id": row["id"], "completion": f" {row['answer']}\n\nNext:"} for row in ROWS],
        [{"prompt": row["prompt"], "output": row["answer"], "task": "sums"} for row in reversed(ROWS)],
        [{"doc_id": n, "doc": row, "resps": [[row["answer"]]]} for n, row in enumerate(ROWS)],
        [{"id": row["id"], "response": f"<think>\n{row['answer']}1\n</think>\n{row['answer']}"} for row in ROWS],
    ],
    ids=["id", "prompt", "lm-eval's samples", "thoughts"],
)
def test_right_answers_are_right_however_they_are_joined(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    report = scored(tmp_path, rows)
    assert not report.failed
    [line] = report.done
    assert (line.run, line.metrics[0].name, line.metrics[0].value, line.metrics[0].n) == (
        "gpt.jsonl",
        "exact_match",
        1,
        4,
    )
    assert line.notes[0] == "answers of others, read from gpt.jsonl"
    assert not scored(tmp_path, rows).done  # they are not scored twice


def test_what_cannot_be_joined_is_counted_and_named(tmp_path: Path) -> None:
    rows = [
        {"id": "sum/0", "completion": "0"},
        {"id": "sum/0", "completion": "7"},
        {"id": "sum/1", "completion": "3"},
        {"id": "other/9", "completion": "3"},
        {"id": "sum/2"},
        {"id": "sum/3", "completion": "6", "task": "elsewhere"},
    ]
    [line] = scored(tmp_path, rows).done
    assert line.metrics[0].value == 0.25
    assert line.notes[:5] == (
        "answers of others, read from gpt.jsonl",
        "2 items have no answer there and count as empty ones: sum/2, sum/3",
        "1 rows answer no item: other/9",
        "1 rows answer an item that has its answers already; the first stand: sum/0",
        "1 rows hold no answer",
    )
    assert (line.detail or {})["foreign"]["missing"] == 2


def test_several_answers_to_an_item_are_its_samples(tmp_path: Path) -> None:
    rows = [{"id": row["id"], "completions": [row["answer"], "no", row["answer"]]} for row in ROWS]
    setting = "sampling:\n  - {name: three, temperature: 1.0, samples: 3, k: [2, 3]}\n"
    [line] = scored(tmp_path, rows, more=setting).done
    figures = {metric.name: metric.value for metric in line.metrics}
    assert figures["exact_match"] == pytest.approx(2 / 3)
    assert (figures["pass@2"], figures["pass@3"], figures["maj@3"]) == (1, 1, 1)


def test_answers_to_a_suite_that_asks_for_none_are_refused(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "gpt.jsonl", [{"id": 1, "completion": "1"}])
    choices = {"question": "q", "choices": ["a", "b"], "answer": 1}
    write_rows(tmp_path / "choices.jsonl", [choices])
    suite = tmp_path / "suite.yaml"
    suite.write_text("tasks: [{task: multiple_choice, data_files: {test: choices.jsonl}}]")
    with pytest.raises(SuiteError, match="no task of the suite asks for written answers"):
        score([rows], suite, output=tmp_path / "board")


def test_answers_to_something_else_are_refused(tmp_path: Path) -> None:
    report = scored(tmp_path, [{"id": "x", "completion": "1"}])
    [failure] = report.failed
    assert report.exit_code == 2
    assert failure.reason.startswith(
        "no row of gpt.jsonl answers an item: 0 hold no answer, 1 are to no item of the task"
    )
    with pytest.raises(InputError, match="the scores of answers need a place"):
        find_targets([tmp_path / "gpt.jsonl"], None)


def test_tasks_that_ask_for_likelihoods_are_left_out_and_the_row_is_foreign(suite_file: Path, tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "completion": row["answer"]} for row in PROMPTS]
    report = score([write_rows(tmp_path / "gpt.jsonl", rows)], suite_file, output=tmp_path / "board")
    assert not report.failed
    assert [line.task for line in report.done] == ["sums"]
    record = json.loads((tmp_path / "board" / "gpt.jsonl" / "run.json").read_text())
    assert (record["stage"], record["finished"] is not None) == ("foreign", True)
