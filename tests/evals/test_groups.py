"""Means over tasks: their formulas in closed form, and their rows on a board."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from posttrain.data_tools.errors import SpecError
from posttrain.data_tools.specfile import load_document
from posttrain.evals import task_index
from posttrain.evals.definitions import read_yaml
from posttrain.evals.records import Score, ScoreStore
from posttrain.evals.report import build as build_board
from posttrain.evals.score import score
from posttrain.evals.spec import SuiteSpec
from posttrain.evals.stats.compare import paired_difference
from posttrain.evals.stats.intervals import interval, scale_of
from posttrain.evals.stats.strata import group_mean
from posttrain.evals.suite_files import SUITES, load_suite
from posttrain.evals.task_index import find

from .conftest import CHOICES, write_rows

FIRST, SECOND = np.array([1.0, 0.0, 1.0, 1.0]), np.array([0.0, 1.0])


def test_the_macro_mean_weighs_tasks_and_the_micro_mean_items():
    macro, micro = group_mean("macro", [FIRST, SECOND]), group_mean("micro", [FIRST, SECOND])
    assert macro.value == pytest.approx((0.75 + 0.5) / 2)
    assert micro.value == pytest.approx(4 / 6)
    # s^2 / n is p (1 - p) / (n - 1) of items that are 0 or 1
    assert macro.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3 + 0.5 * 0.5 / 1) / 2)
    assert micro.stderr == pytest.approx(math.sqrt((4 / 6) * (2 / 6) / 5))


def test_the_centred_mean_is_0_at_guessing_and_1_where_all_is_right():
    assert group_mean("centred", [[1, 0, 0, 0], [1, 0]], [0.25, 0.5]).value == pytest.approx(0.0)
    assert group_mean("centred", [[1, 1, 1, 1], [1, 1]], [0.25, 0.5]).value == pytest.approx(1.0)
    found = group_mean("centred", [FIRST, SECOND], [0.25, 0.4])
    assert found.value == pytest.approx(((0.75 - 0.25) / 0.75 + (0.5 - 0.4) / 0.6) / 2)
    errors = (0.75 * 0.25 / 3 / 0.75**2, 0.5 * 0.5 / 0.6**2)
    assert found.stderr == pytest.approx(math.sqrt(sum(errors)) / 2)


def test_the_items_of_a_mean_carry_its_value_and_the_error_of_differences():
    rng = np.random.default_rng(0)
    ours = [rng.integers(0, 2, size).astype(float) for size in (400, 50)]
    theirs = [rng.integers(0, 2, size).astype(float) for size in (400, 50)]
    mine, other = group_mean("macro", ours), group_mean("macro", theirs)
    assert mine.items.mean() == pytest.approx(mine.value)
    found = paired_difference(mine.items, other.items)
    difference = group_mean("macro", [a - b for a, b in zip(ours, theirs, strict=True)])
    assert found.value == pytest.approx(difference.value)
    # one degree of freedom is lost in all instead of one a stratum
    assert found.stderr == pytest.approx(difference.stderr, rel=0.01)


def test_the_error_of_a_macro_mean_is_its_spread_over_samples():
    rng = np.random.default_rng(1)
    shares, sizes = (0.9, 0.4, 0.6), (40, 200, 15)
    draws = [[rng.random(n) < p for p, n in zip(shares, sizes, strict=True)] for _ in range(4000)]
    means = [group_mean("macro", draw) for draw in draws]
    spread = np.std([mean.value for mean in means])
    assert math.sqrt(np.mean([(mean.stderr or 0) ** 2 for mean in means])) == pytest.approx(spread, rel=0.03)


@pytest.mark.parametrize(
    ("sizes", "rights"), [((60, 100, 200), (0.2, 0.5, 0.9)), ((40,) * 22, np.linspace(0.05, 0.95, 22))]
)
def test_the_interval_of_a_mean_of_tasks_holds_the_truth_19_times_of_20(sizes: Sequence[int], rights: Sequence[float]):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        drawn = [(rng.random(n) < right).astype(float) for n, right in zip(sizes, rights, strict=True)]
        mean = group_mean("macro", drawn)
        ends = interval(mean.value, mean.stderr, sum(sizes), scale_of("acc_macro"))
        assert ends is not None
        held += ends.low <= float(np.mean(rights)) <= ends.high
    assert 0.935 < held / 2000 < 0.965  # 95% of samples of 2,000 lie within .01 of the truth


def test_a_task_of_one_item_has_no_spread():
    assert group_mean("macro", [FIRST, [1.0]]).stderr is None


MakeRun = Callable[..., Path]
TASKS = [
    {"task": "multiple_choice", "name": "all", "data_files": {"test": "all.jsonl"}, "baseline": 0.25},
    {"task": "multiple_choice", "name": "half", "data_files": {"test": "half.jsonl"}, "baseline": 0.5},
]


def suite(folder: Path, groups: list[dict[str, Any]], tasks: list[dict[str, Any]] | None = None) -> Path:
    write_rows(folder / "all.jsonl", CHOICES)
    write_rows(
        folder / "half.jsonl",
        [row | {"choices": row["choices"][::-1], "answer": 2 - row["answer"]} for row in CHOICES[:2]],
    )
    path = folder / "mine.yaml"
    path.write_text(json.dumps({"tasks": tasks or TASKS, "groups": groups}))
    return path


def by_task(run: Path) -> dict[str, Score]:
    return {found.task: found for found in ScoreStore(run).load()}


def test_a_group_is_scored_once_after_its_tasks_and_stands_in_a_column(make_run: MakeRun, tmp_path: Path):
    path = suite(tmp_path, [{"name": "both", "mean": "centred"}])
    run = make_run((1, 2), final=False)
    assert score([run], path, device="cpu").exit_code == 0
    found = by_task(run)
    shares = [found["all"].metrics[0].value, found["half"].metrics[0].value]
    figures = {metric.name: metric.value for metric in found["both"].metrics}
    assert list(figures) == ["centred_accuracy", "acc_macro", "acc_micro"]
    assert figures["acc_macro"] == pytest.approx(sum(shares) / 2)
    assert figures["acc_micro"] == pytest.approx((4 * shares[0] + 2 * shares[1]) / 6)
    assert figures["centred_accuracy"] == pytest.approx(((shares[0] - 0.25) / 0.75 + (shares[1] - 0.5) / 0.5) / 2)
    again = score([run], path, device="cpu")
    assert (again.done, again.skipped) == ((), 6)
    board = build_board([run])
    [column] = [column for column in board.columns if column.task == "both"]
    assert column.primary.name == "centred_accuracy"
    assert any(difference.column == column.id and difference.method == "paired" for difference in board.pairs)


def test_another_baseline_is_another_mean_and_no_model_is_asked_again(make_run: MakeRun, tmp_path: Path):
    run = make_run((1,), final=False)
    score([run], suite(tmp_path, [{"name": "both", "mean": "centred"}]), device="cpu")
    tasks = [TASKS[0] | {"baseline": 0.1}, TASKS[1]]
    report = score([run], suite(tmp_path, [{"name": "both", "mean": "centred"}], tasks), device="cpu")
    assert [done.task for done in report.done] == ["both"]


def test_a_mean_of_what_is_better_greater_and_what_is_better_smaller_is_refused(make_run: MakeRun, tmp_path: Path):
    down = [{"metric": "acc", "aggregation": "mean", "higher_is_better": False}]
    tasks = [TASKS[0], TASKS[1] | {"overrides": {"metric_list": down}}]
    report = score([make_run((1,), final=False)], suite(tmp_path, [{"name": "both"}], tasks), device="cpu")
    [failure] = report.failed
    assert "acc of half is better the smaller it is" in failure.reason
    assert [done.task for done in report.done] == ["all", "half"]


def test_a_mean_waits_for_a_task_that_failed(make_run: MakeRun, tmp_path: Path):
    path = suite(tmp_path, [{"name": "both"}])
    write_rows(tmp_path / "half.jsonl", [CHOICES[0] | {"answer": 7}])
    run = make_run((1,), final=False)
    report = score([run], path, device="cpu")
    assert [failure.task for failure in report.failed] == ["half", "both"]
    assert "its task half has no score" in report.failed[1].reason
    suite(tmp_path, [{"name": "both"}])
    assert {done.task for done in score([run], path, device="cpu").done} == {"half", "both"}


def test_a_figure_that_is_no_mean_of_items_is_refused(make_run: MakeRun, tmp_path: Path):
    write_rows(tmp_path / "last.jsonl", [{"context": "The sky is", "continuation": "blue"}] * 3)
    task = {"task": "lambada", "name": "last", "data_files": {"test": "last.jsonl"}, "metric": "perplexity"}
    report = score([make_run((1,), final=False)], suite(tmp_path, [{"name": "g"}], [task]), device="cpu")
    assert "name a `metric` of the task" in report.failed[0].reason


@pytest.mark.parametrize(
    ("group", "told"),
    [
        ({"name": "g", "tasks": ["al"]}, r"groups\[0\].tasks: the suite has no task 'al'; did you mean 'all'"),
        ({"name": "all"}, "the name 'all' stands twice"),
        ({"name": "g", "mean": "centred"}, "needs the `baseline` of half"),
    ],
)
def test_a_wrong_group_is_refused_with_its_line(tmp_path: Path, group: dict[str, Any], told: str):
    tasks = [TASKS[0], {key: value for key, value in TASKS[1].items() if key != "baseline"}]
    with pytest.raises(SpecError, match=told):
        load_suite(suite(tmp_path, [group], tasks))


def test_the_name_of_a_group_stands_for_its_tasks_and_their_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tasks = {"mmlu_anatomy": "a.yaml", "mmlu_virology": "b.yaml"}
    several = {"mmlu": ["mmlu_stem"], "mmlu_stem": ["mmlu_anatomy", "mmlu_virology"]}
    monkeypatch.setattr(task_index, "_index", lambda: {"tasks": tasks, "several": several})
    path = tmp_path / "mine.yaml"
    path.write_text("tasks: [{task: mmlu, num_fewshot: 5, limit: 3}]\n")
    found = load_suite(path)
    assert [(task.title, task.num_fewshot, task.limit) for task in found.tasks] == [(name, 5, 3) for name in tasks]
    assert [(group.title, group.tasks) for group in found.groups] == [("mmlu", list(tasks))]
    path.write_text("tasks: [{task: mmlu, baseline: 0.25}]\n")
    with pytest.raises(SpecError, match="'mmlu' stands for 2 tasks, which have none in common"):
        load_suite(path)


def test_a_mean_of_fewer_tasks_than_its_own_is_called_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(task_index, "_index", lambda: {"tasks": {"piqa": "p.yaml", "copa": "c.yaml"}, "several": {}})
    data = tmp_path / "data"
    data.mkdir()
    write_rows(data / "copa.jsonl", [{"a": 1}])
    (data / "layout.yaml").write_text("tasks: {copa: {files: {validation: copa.jsonl}}}\n")
    path = tmp_path / "mine.yaml"
    tasks = [{"task": "piqa", "baseline": 0.5}, {"task": "copa", "baseline": 0.5}]
    path.write_text(json.dumps({"data_dir": "data", "tasks": tasks, "groups": [{"name": "core", "mean": "centred"}]}))
    [group] = load_suite(path).groups
    assert (group.title, group.tasks, group.coverage) == ("core-local", ["copa"], "1 of 2 tasks")


def test_core_is_what_dclm_lists():
    suite = SuiteSpec.model_validate(load_document(SUITES / "core.yaml").value)
    tasks = {task.title: task for task in suite.tasks}
    assert len(tasks) == 22
    assert Counter(task.num_fewshot for task in tasks.values()) == {0: 7, 10: 14, 3: 1}
    baselines = [task.baseline for task in tasks.values() if task.baseline is not None]
    assert Counter(baselines) == {0.0: 9, 0.25: 7, 0.5: 4, 0.403: 1, 0.62: 1}
    own = [task.task for task in suite.tasks if task.task.startswith("core_")]
    assert all(read_yaml(find(name))["output_type"] == "loglikelihood" for name in own)
