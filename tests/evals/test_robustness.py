"""A task asked in several ways: the changes, the figures in closed form, and a suite of them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from posttrain.data_tools.errors import SpecError
from posttrain.evals.definitions import build, define
from posttrain.evals.errors import SuiteError
from posttrain.evals.records import ScoreStore
from posttrain.evals.row_changes import OptionOrder, RowChange, TypingErrors
from posttrain.evals.score import score
from posttrain.evals.stats.robustness import robustness
from posttrain.evals.suite_files import load_suite

from .conftest import write_rows

ROWS = [
    {"question": f"Which number comes after the number {n}?", "choices": [str(n), str(n + 1), "none"], "answer": 1}
    for n in range(12)
]
LETTERS = (
    "task: letters\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
    "doc_to_text: '{{question}} {{choices}}'\ndoc_to_choice: [A, B, C]\ndoc_to_target: answer\n"
    "metric_list: [{metric: acc}]\n"
)


def changed(how: TypingErrors | OptionOrder, seed: int = 1) -> list[dict]:
    return RowChange(seed=seed, how=how).apply(Dataset.from_list(ROWS), "t").to_list()


def test_options_move_and_the_right_one_with_them():
    rows = changed(OptionOrder())
    assert all(row["choices"][row["answer"]] == str(n + 1) for n, row in enumerate(rows))
    assert len({row["answer"] for row in rows}) == 3
    assert rows == changed(OptionOrder())
    assert rows != changed(OptionOrder(), seed=2)


@pytest.mark.parametrize("last", ["All of the above.", "both A and B", "none of below", "A, B, and C only"])
def test_an_item_whose_options_name_others_by_their_place_keeps_its_order(last: str):
    rows = [{"choices": [str(n), "A", "a band", last], "answer": n % 4} for n in range(12)]
    change = RowChange(seed=1, how=OptionOrder())
    assert change.apply(Dataset.from_list(rows), "t").to_list() == rows
    others = [row | {"choices": [*row["choices"][:3], "A and a B"]} for row in rows]
    assert change.apply(Dataset.from_list(others), "t").to_list() != others


def test_words_get_one_error_and_numbers_none():
    rows = changed(TypingErrors(rate=1.0))
    for old, new in zip(ROWS, rows, strict=True):
        pairs = list(zip(old["question"].split(), new["question"].split(), strict=True))
        assert all((a == b) == (len(a.rstrip("?")) < 4 or not a.isalpha()) or sorted(a) == sorted(b) for a, b in pairs)
        assert new["question"] != old["question"]
        assert abs(len(new["question"]) - len(old["question"])) <= len(pairs)
        assert (new["choices"], new["answer"]) == (old["choices"], old["answer"])


def test_a_row_is_changed_alike_whatever_stands_beside_it():
    change = RowChange(seed=3, how=TypingErrors(rate=0.5))
    alone = change.apply(Dataset.from_list(ROWS[4:5]), "t").to_list()
    assert alone == change.apply(Dataset.from_list(ROWS), "t").to_list()[4:5]


def test_a_change_that_does_not_fit_names_the_row_and_the_columns():
    with pytest.raises(SuiteError, match=r"row 0 cannot be changed.*goal.*"):
        changed(TypingErrors(column="goal"))


def test_figures_are_those_of_items_asked_alike():
    values = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0]], dtype=float)
    metrics, least = robustness(values, seed=0)
    assert {metric.name: metric.value for metric in metrics} == {
        "acc_in_all": 0.25,
        "acc_mean": pytest.approx(7 / 12),
        "acc_worst": 0.5,
        "acc_spread": 0.25,
    }
    assert least.tolist() == [1, 0, 0, 0]
    # s^2 / n of the items' means 1, 2/3, 2/3, 0
    assert metrics[1].stderr == pytest.approx(np.std([1, 2 / 3, 2 / 3, 0], ddof=1) / 2)


def test_equal_ways_have_no_spread():
    metrics, _ = robustness(np.ones((3, 9)), seed=0)
    assert [metric.value for metric in metrics] == [1, 1, 1, 0]


def suite_of(folder: Path, **keys: object) -> Path:
    write_rows(folder / "rows.jsonl", ROWS)
    (folder / "letters.yaml").write_text(LETTERS)
    task = {"task": "letters.yaml", "data_files": {"test": "rows.jsonl"}, "seeds": [1, 2]} | keys
    path = folder / "robust.yaml"
    path.write_text(json.dumps({"robustness": [task]}))
    return path


def test_each_way_is_a_task_of_its_own_and_the_group_compares_them(make_run: Callable[..., Path], tmp_path: Path):
    run, path = make_run(), suite_of(tmp_path, options={}, phrasings=["{{question}}"])
    names = ["letters-plain", "letters-phrasing1", "letters-options1", "letters-options2"]
    suite = load_suite(path)
    assert [task.title for task in suite.tasks] == names
    assert len({define(task, suite).task_hash for task in suite.tasks}) == 4
    report = score([run], path, device="cpu")
    assert not report.failed
    found = {one.task: one for one in ScoreStore(run).load()}
    assert set(found) == {*names, "letters"}
    figures = {metric.name: metric.value for metric in found["letters"].metrics}
    ways = [found[name].metrics[0].value for name in names]
    assert figures["acc_mean"] == pytest.approx(sum(ways) / 4)
    assert figures["acc_worst"] == min(ways)
    assert figures["acc_spread"] == pytest.approx(max(ways) - min(ways))
    assert figures["acc_in_all"] <= min(ways)


def test_a_limit_of_the_command_line_holds_for_every_way(tmp_path: Path):
    suite = load_suite(suite_of(tmp_path, options={}, limit=9), limit=3)
    assert [task.limit for task in suite.tasks] == [3] * 3


def test_a_task_that_is_not_varied_is_refused(tmp_path: Path):
    with pytest.raises(SpecError, match="nothing is varied"):
        load_suite(suite_of(tmp_path))


def test_the_suite_that_comes_with_posttrain_can_be_read():
    suite = load_suite("robustness")
    assert {group.mean for group in suite.groups} == {"robust"}
    assert all(define(task, suite).primary for task in suite.tasks)


@pytest.mark.parametrize("change", [{"typing_errors": {"column": "hint", "rate": 1.0}}, {"options": {}}])
def test_a_change_that_no_prompt_shows_is_refused(tmp_path: Path, change: dict[str, object]):
    path = suite_of(tmp_path, **change)
    write_rows(tmp_path / "rows.jsonl", [row | {"hint": "Think before you answer it"} for row in ROWS])
    (tmp_path / "letters.yaml").write_text(LETTERS.replace(" {{choices}}", "").replace("[A, B, C]", "choices"))
    suite = load_suite(path)
    build(define(suite.tasks[0], suite))
    with pytest.raises(SuiteError, match="the change of its rows changes no prompt"):
        build(define(suite.tasks[1], suite))


def test_ways_that_leave_out_other_items_are_not_compared(make_run: Callable[..., Path], tmp_path: Path):
    path = suite_of(tmp_path, phrasings=["{{question}} {{one}}"])
    rows = [row | {"one": "a b " * 200 * (n == 3), "other": "a b " * 200 * (n == 5)} for n, row in enumerate(ROWS)]
    write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "letters.yaml").write_text(LETTERS.replace("{{choices}}", "{{other}}"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"too_long": "skip"}))
    [failure] = score([make_run((1,), final=False)], path, device="cpu").failed
    assert "its ways to ask do not have the same items" in failure.reason
