"""Answers of others, scored from a file: joined by id, prompt or place, and what cannot be joined named."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from posttrain.chat_templates.errors import InputError
from posttrain.evals.errors import SuiteError
from posttrain.evals.runs import find_targets
from posttrain.evals.score import ScoreReport, score
from posttrain.evals.suite_files import SUITES
from posttrain.recipes.scoring import score_models

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
        [{"instruction": row["prompt"], "output": row["answer"], "generator": "gpt"} for row in ROWS],
        [{"id": row["id"], "answer": "the right one", "prediction": row["answer"]} for row in ROWS],
        [{"instruction": row["prompt"], "output": "the right one", "response": row["answer"]} for row in ROWS],
        [{"id": row["id"], "response": f"<think>\n{row['answer']}1\n</think>\n{row['answer']}"} for row in ROWS],
    ],
    ids=[
        "id",
        "prompt",
        "lm-eval's samples",
        "AlpacaEval's outputs",
        "beside the right answer",
        "beside a data set's output",
        "thoughts",
    ],
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
    assert line.notes[0].startswith("answers of others, the ")
    assert not scored(tmp_path, rows).done  # they are not scored twice


@pytest.mark.parametrize("what", ["skip", "error"])
def test_no_item_is_too_long_for_who_has_answered_it(tmp_path: Path, what: str) -> None:
    rows = [{"id": row["id"], "completion": row["answer"]} for row in ROWS]
    report = scored(tmp_path, rows, more=f"too_long: {what}\n")
    assert [line.metrics[0].value for line in report.done] == [1]


@pytest.mark.parametrize("task", ["exact_match", "sums", "sums-greedy"])
def test_rows_may_call_a_task_by_its_own_name_or_by_that_of_a_setting(tmp_path: Path, task: str) -> None:
    rows = [{"id": row["id"], "completion": row["answer"], "task": task} for row in ROWS]
    [line] = scored(tmp_path, rows, more="sampling: [{name: greedy}]\n").done
    assert (line.task, line.metrics[0].value) == ("sums-greedy", 1)


def test_answers_need_no_chat_template(tmp_path: Path) -> None:
    rows = [{"id": row["id"], "completion": row["answer"]} for row in ROWS]
    [line] = scored(tmp_path, rows, more="chat: always\n").done
    assert (line.metrics[0].value, line.template_fingerprint) == (1, None)


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
    assert line.notes[:6] == (
        "answers of others, the completion of each row of gpt.jsonl",
        "2 items have no answer there and count as empty ones: sum/2, sum/3",
        "1 rows answer no item: other/9",
        "1 rows answer an item that has its answers already; the first stand: sum/0",
        "1 rows are of other tasks: elsewhere",
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
    [first] = scored(tmp_path, rows, name="again.jsonl").done  # of which one answer each is asked
    assert first.metrics[0].value == 1
    assert first.notes[1].startswith("4 rows hold more answers to an item than are asked for; the first of each count")


def test_worked_answers_vote_by_the_number_that_is_read_from_them(tmp_path: Path) -> None:
    write_rows(tmp_path / "sums.jsonl", [{"id": n, "context": f"What is {n}?", "answer": n} for n in range(2)])
    rows = [{"id": n, "completions": [f"So it is {n}.", "I cannot tell", f"The answer is {n}."]} for n in range(2)]
    rows[1]["completions"] = ["It is 7.", "The answer is 7.", "The answer is 1."]
    suite = tmp_path / "suite.yaml"
    setting = "sampling:\n  - {name: three, temperature: 1.0, samples: 3}\n"
    suite.write_text(f"{setting}tasks:\n  - {{task: svamp, data_files: {{test: sums.jsonl}}}}\n")
    [line] = score([write_rows(tmp_path / "gpt.jsonl", rows)], suite, output=tmp_path / "board").done
    figures = {metric.name: metric.value for metric in line.metrics}
    assert (figures["exact_match"], figures["pass@3"], figures["maj@3"]) == (0.5, 1, 0.5)


@pytest.mark.parametrize("filters", [["said"], ["said", "shouted"]])
def test_of_several_samples_each_is_read_or_not_and_a_metric_may_name_its_filter(
    tmp_path: Path, filters: list[str]
) -> None:
    step = "filter: [{function: regex, regex_pattern: 'is ([0-9]+)'}]"
    listed = ", ".join(f"{{name: {name}, {step}}}" for name in filters)
    own = f"include: {SUITES.parent / 'tasks' / 'exact_match.yaml'}\nfilter_list: [{listed}]\n"
    (tmp_path / "said.yaml").write_text(own)
    write_rows(tmp_path / "prompts.jsonl", ROWS)
    suite = tmp_path / "suite.yaml"
    chosen = ",".join(["exact_match", *filters[1:]])  # of several
    asked = (
        "sampling: [{name: four, temperature: 1.0, samples: 4, k: [2]}]\n"
        "tasks: [{task: said.yaml, name: sums, data_files: {test: prompts.jsonl}, metric: METRIC}]\n"
    )
    suite.write_text(asked.replace("METRIC", f"'{chosen}'"))
    rows = [{"id": row["id"], "completions": [f"It is {row['answer']}", "No", "No", "No"]} for row in ROWS]
    [line] = score([write_rows(tmp_path / "gpt.jsonl", rows)], suite, output=tmp_path / "board").done
    figures = {metric.name.partition(",")[0]: metric.value for metric in line.metrics}
    assert (figures["unparsed"], figures["pass@2"], figures["maj@2"]) == (0.75, 0.5, 0.5)
    suite.write_text(asked.replace("METRIC", "f1"))
    [failure] = score([tmp_path / "gpt.jsonl"], suite, output=tmp_path / "board").failed
    assert "no metric 'f1', of which samples could be combined" in failure.reason


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
    report = scored(tmp_path, [{"id": row["id"], "completion": "1", "task": "maths"} for row in ROWS])
    [failure] = report.failed
    what = "4 are of other tasks: maths; the task is sums: write that as their `task`, or drop the column"
    assert failure.reason.endswith(what)
    with pytest.raises(InputError, match="the scores of answers need a place"):
        find_targets([tmp_path / "gpt.jsonl"], None)


def test_tasks_that_ask_for_likelihoods_are_left_out_and_the_row_is_foreign(suite_file: Path, tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "completion": row["answer"]} for row in PROMPTS]
    report = score([write_rows(tmp_path / "gpt.jsonl", rows)], suite_file, output=tmp_path / "board")
    assert not report.failed
    assert [line.task for line in report.done] == ["sums"]
    record = json.loads((tmp_path / "board" / "gpt.jsonl" / "run.json").read_text())
    assert (record["stage"], record["finished"] is not None) == ("foreign", True)


def test_a_sample_that_lm_eval_wrote_for_each_filter_is_one_answer(tmp_path: Path) -> None:
    rows = [
        {"doc_id": n, "doc": row, "resps": [[row["answer"]]], "filter": name}
        for name in ("strict-match", "flexible-extract")
        for n, row in enumerate(ROWS)
    ]
    [line] = scored(tmp_path, rows).done
    assert (line.metrics[0].value, len(line.notes)) == (1, 1)


def test_samples_of_other_documents_are_not_joined_by_their_places(tmp_path: Path) -> None:
    others = [{"doc_id": n, "doc": {"question": f"Else {n}"}, "resps": [["0"]]} for n in range(4)]
    [failure] = scored(tmp_path, others).failed
    assert "4 are to no item of the task" in failure.reason


def test_an_id_that_counts_the_rows_of_its_file_takes_no_answer_to_another_item(tmp_path: Path) -> None:
    items = [row | {"id": n} for n, row in enumerate(PROMPTS, start=1)]
    write_rows(tmp_path / "prompts.jsonl", items)
    suite = tmp_path / "suite.yaml"
    suite.write_text("tasks:\n  - {task: exact_match, name: sums, data_files: {test: prompts.jsonl}}\n")
    rows = [{"id": n, "prompt": row["prompt"], "completion": row["answer"]} for n, row in enumerate(PROMPTS)]
    [line] = score([write_rows(tmp_path / "gpt.jsonl", rows)], suite, output=tmp_path / "board").done
    assert line.metrics[0].value == 1
    assert "3 rows bear the id or place of another item than was asked; what was asked counts: 1, 2, 3" in line.notes


def test_what_two_items_are_asked_alike_tells_neither(tmp_path: Path) -> None:
    twice = [{"prompt": "0 and 0 make", "answer": "0", "id": "a"}, {"prompt": "0 and 0 make", "answer": "1", "id": "b"}]
    write_rows(tmp_path / "prompts.jsonl", twice)
    suite = tmp_path / "suite.yaml"
    suite.write_text("tasks:\n  - {task: exact_match, name: sums, data_files: {test: prompts.jsonl}}\n")
    rows = [{"prompt": "0 and 0 make", "completion": "0"}, {"id": "b", "prompt": "0 and 0 make", "completion": "1"}]
    [line] = score([write_rows(tmp_path / "gpt.jsonl", rows)], suite, output=tmp_path / "board").done
    assert line.metrics[0].value == 0.5
    assert "1 rows answer no item: #1" in line.notes


def test_rows_that_cannot_be_read_are_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "gpt.jsonl"
    scored(tmp_path, [])
    path.write_text('{"id": "sum/0", "completion": "0"}\n{"id": "sum/1", "comp\n[]\n')
    [line] = score([path], tmp_path / "suite.yaml", output=tmp_path / "board").done
    assert "2 rows could not be read: gpt.jsonl:2, gpt.jsonl:3" in "; ".join(line.notes).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("name", ["log.json", "log.eval"])
def test_the_answers_of_a_log_of_inspect_are_scored_again(tmp_path: Path, name: str) -> None:
    samples = [
        {"id": n + 1, "epoch": 1, "target": "?", "scores": {}}
        | {
            "input": row["prompt"]
            if n
            else [{"role": "system", "content": "Add."}, {"role": "user", "content": row["prompt"]}]
        }
        | {"output": {"completion": row["answer"]}}
        for n, row in enumerate(reversed(ROWS))
    ]
    if name == "log.json":
        (tmp_path / name).write_text(json.dumps({"eval": {}, "status": "success", "samples": samples}))
    else:
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.writestr("header.json", "{}")
            for sample in samples:
                file.writestr(f"samples/{sample['id']}_epoch_1.json", json.dumps(sample))
    scored(tmp_path, [])
    [line] = score([tmp_path / name], tmp_path / "suite.yaml", output=tmp_path / "board").done
    assert (line.metrics[0].value, line.metrics[0].n) == (1, 4)


def test_fewer_answers_than_samples_are_refused_and_a_setting_is_not_claimed(tmp_path: Path) -> None:
    rows = [{"id": row["id"], "completion": row["answer"]} for row in ROWS]
    setting = "sampling:\n  - {name: greedy}\n  - {name: three, temperature: 1.0, samples: 3}\n"
    report = scored(tmp_path, rows, more=setting)
    [failure] = report.failed
    assert "holds at most 1 answers to an item, and 3 samples of each are asked for" in failure.reason
    [line] = report.done
    assert "drawn as their author drew them, of which the setting greedy says nothing" in line.notes


def test_why_a_file_failed_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scored(tmp_path, [])
    write_rows(tmp_path / "gpt.jsonl", [{"id": "x", "completion": "1"}])
    capfd.readouterr()
    arguments: dict[str, Any] = {"watch": False, "final_only": False, "references": {}}
    suite, output = str(tmp_path / "suite.yaml"), tmp_path / "board"
    assert score_models([str(tmp_path / "gpt.jsonl")], suite=suite, output=output, **arguments) == 2
    out, err = capfd.readouterr()
    assert (out + err).count("no row of gpt.jsonl answers an item") == 1
    assert "no row of gpt.jsonl answers an item" in err


def test_a_file_that_is_not_there_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        find_targets([tmp_path / "gpt.jsonl"], tmp_path)
