"""HumanEval and MBPP: asked as lm-eval asks them, run within walls, failures told apart."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from posttrain.data_tools.sandbox import Limits, ProgramOutcome, ProgramSandbox, SandboxError, find_sandbox
from posttrain.evals import canaries
from posttrain.evals.canaries import Canaries
from posttrain.evals.definitions import define, read_yaml
from posttrain.evals.errors import EvalError, SuiteError
from posttrain.evals.score import score
from posttrain.evals.spec import SuiteSpec, TaskSpec
from posttrain.evals.task_index import TASKS, lm_eval_folder
from posttrain.recipes.check import check_all

from .conftest import write_rows

FUNCTION = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(x: int) -> int:\n    """Twice a number."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
}
TREE = {
    "task_id": 11,
    "text": "Write a function to sum a tree.",
    "code": "class Node:\r\n  def __init__(self, n):\r\n    self.n = n\r\n    self.left = None\r\ndef sum(t):\r\n"
    "  return t.n + (sum(t.left) if t.left else 0)",
    "test_setup_code": "root = Node(1)\r\nroot.left = Node(2)",
    "test_list": ["assert sum(root) == 3", "assert sum(root.left) == 2", "assert sum(Node(7)) == 7"],
}


@pytest.fixture(scope="module")
def tasks() -> ModuleType:
    try:
        find_sandbox()
    except SandboxError as error:
        pytest.skip(str(error))
    spec = importlib.util.spec_from_file_location("code_tasks", TASKS / "code_tasks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["humaneval", "humaneval_instruct", "mbpp", "mbpp_instruct"])
def test_prompts_and_stops_are_those_of_lm_eval(name: str) -> None:
    own = read_yaml(TASKS / f"{name}.yaml")
    theirs = read_yaml(lm_eval_folder() / "tasks" / name.partition("_")[0] / f"{name}.yaml")
    for key in ("doc_to_text", "doc_to_target", "gen_prefix", "target_delimiter", "generation_kwargs", "num_fewshot"):
        wanted = theirs.get(key)
        if (name, key) == ("humaneval_instruct", "generation_kwargs"):
            wanted = wanted | {"until": []}  # "\ndef" would cut an answer that begins a block of its own
        assert own.get(key) == wanted, key
    for key in ("dataset_path", "dataset_name", "test_split", "output_type"):
        assert own.get(key) == theirs.get(key), key


def test_the_worked_examples_are_those_of_lm_eval() -> None:
    source = (lm_eval_folder() / "tasks" / "mbpp" / "utils.py").read_text()
    names: dict[str, Any] = {}
    exec(source[source.index("def list_fewshot_samples") :], names)
    assert read_yaml(TASKS / "mbpp.yaml")["fewshot_config"]["samples"] == names["list_fewshot_samples"]()


def test_failures_are_told_apart(tasks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "LIMITS", Limits(wall=10, cpu=1))
    answers = {
        "    return 2 * x": "passed",
        "    return 3 * x": "wrong",
        "    raise KeyError": "wrong",
        "    return 2 *": "syntax_error",
        "    while True: pass": "timeout",
        "    return 'x' * (1 << 40)": "limit",
        " \n": "no_code",
    }
    [outcomes] = tasks.run_humaneval([list(answers)], [FUNCTION])
    assert [outcome["kind"] for outcome in outcomes] == list(answers.values())
    figures = [tasks.count(FUNCTION, [[outcome]]) for outcome in outcomes]
    assert [figure["pass@1"] for figure in figures] == [1, 0, 0, 0, 0, 0, 0]
    assert all(sum(figure.values()) == 1 for figure in figures)


def test_chat_answers_end_with_their_code_block(tasks: ModuleType) -> None:
    answers = ["    return 2 * x\n```\nThis doubles x.", "I cannot do that."]
    [outcomes] = tasks.run_humaneval_instruct([answers], [FUNCTION])
    assert [outcome["kind"] for outcome in outcomes] == ["passed", "syntax_error"]
    code = TREE["code"]
    answers = [f"{code}\n```\nIt adds.", code, f"```python\n{code}```", "```", "It adds.\n```"]
    [outcomes] = tasks.run_mbpp_instruct([answers], [TREE])
    assert [outcome["kind"] for outcome in outcomes] == ["passed", "passed", "passed", "no_code", "syntax_error"]


def test_an_answer_that_ends_behind_its_fence_holds_no_code(tasks: ModuleType) -> None:
    answers = ["```python", "```", "```python\n"]
    for outcomes in (*tasks.run_humaneval_instruct([answers], [FUNCTION]), *tasks.run_mbpp_instruct([answers], [TREE])):
        assert [outcome["kind"] for outcome in outcomes] == ["no_code"] * 3


@pytest.mark.parametrize("said", ["", "Here it is:\n", "Answer: code\n", "Sure! It is short.\n\n"])
def test_chat_answers_of_others_are_read_as_their_own_code_block(tasks: ModuleType, tmp_path: Path, said: str) -> None:
    asked = {"humaneval": "functions", "mbpp": "trees"}
    function = f"{said}```python\n{FUNCTION['prompt']}{FUNCTION['canonical_solution']}```\nIt doubles x.\n```\n4\n```"
    answers = [{"id": FUNCTION["task_id"], "completion": function}]
    answers += [{"id": TREE["task_id"], "completion": f"{said}```\n{TREE['code']}\n```\nIt adds."}]
    write_rows(tmp_path / "functions.jsonl", [FUNCTION])
    write_rows(tmp_path / "trees.jsonl", [TREE])
    suite = tmp_path / "code.yaml"
    entries = [f"{{task: {task}_instruct, data_files: {{test: {file}.jsonl}}}}" for task, file in asked.items()]
    suite.write_text(f"tasks: [{', '.join(entries)}]\n")
    report = score([write_rows(tmp_path / "gpt.jsonl", answers)], suite, output=tmp_path / "board")
    assert not report.failed
    assert [line.metrics[0].value for line in report.done] == [1, 1]


def test_rows_that_need_their_set_up_and_a_builtin_redefined_have_a_right_answer(tasks: ModuleType) -> None:
    [[right, wrong]] = tasks.run_mbpp([[TREE["code"], "def sum(t):\n  return 3"]], [TREE])
    assert (right["kind"], right["reason"]) == ("passed", "")
    assert (wrong["kind"], wrong["reason"]) == ("wrong", "NameError: name 'Node' is not defined")


def test_a_sandbox_that_fails_is_reported_and_no_wrong_answer(
    tasks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProgramSandbox, "run", lambda *_: ProgramOutcome("unknown", "no room", "", "", 0.0))
    with pytest.raises(EvalError, match="failed on 2 of 2 programs, which are no wrong answers: no room"):
        tasks.run_humaneval([["    return 2 * x", "    return 1"]], [FUNCTION])


def test_a_suite_scores_programs_from_files(tasks: ModuleType, make_run: Callable[..., Path], tmp_path: Path) -> None:
    write_rows(tmp_path / "functions.jsonl", [FUNCTION])
    write_rows(tmp_path / "trees.jsonl", [TREE | {"task_id": 600}, TREE])
    suite = tmp_path / "code.yaml"
    suite.write_text(
        "tasks:\n"
        "  - {task: humaneval, data_files: {test: functions.jsonl}, gen_kwargs: {max_gen_toks: 8}}\n"
        "  - {task: mbpp, data_files: {test: trees.jsonl}, gen_kwargs: {max_gen_toks: 8}, num_fewshot: 0}\n"
    )
    report = score([make_run((1,))], suite)
    assert not report.failed
    for line in report.done:
        figures = {metric.name: metric.value for metric in line.metrics}
        assert line.metrics[0].name == "pass@1"
        assert line.metrics[0].n == 1
        assert sum(figures.values()) == pytest.approx(1)
        assert (line.detail or {})["canaries"]["oracle"] == 1


@pytest.mark.usefixtures("tasks")
def test_tests_that_a_rows_own_solution_fails_are_refused_before_a_model_is_asked(tmp_path: Path) -> None:
    def known(row: dict[str, Any]) -> Canaries | None:
        path = write_rows(tmp_path / "functions.jsonl", [row])
        task = TaskSpec(task="humaneval", data_files={"test": str(path)})
        return define(task, SuiteSpec(name="s", tasks=[task])).canaries()

    with pytest.raises(SuiteError, match="right answers score 0 on pass@1"):
        known(FUNCTION | {"test": FUNCTION["test"].replace("== 4", "== 5")})
    assert known({key: value for key, value in FUNCTION.items() if key != "canonical_solution"}) is None


@pytest.mark.usefixtures("tasks")
def test_rows_whose_own_solution_fails_are_told_where_others_pass(tmp_path: Path, capsys: Any) -> None:
    wrong = FUNCTION | {"task_id": "HumanEval/1", "canonical_solution": "    return x\n"}
    write_rows(tmp_path / "functions.jsonl", [FUNCTION, wrong])
    suite = tmp_path / "code.yaml"
    suite.write_text("tasks: [{task: humaneval, data_files: {test: functions.jsonl}}]\n")
    assert check_all([suite], [], {}, read_data=True) == 0
    assert "its own right answers score 0.500 on pass@1" in capsys.readouterr().out


@pytest.mark.usefixtures("tasks")
def test_where_not_all_items_were_tried_their_number_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canaries, "_TRIED", 2)
    wrong = FUNCTION | {"canonical_solution": "    return x\n"}
    rows = [row | {"task_id": f"HumanEval/{n}"} for n, row in enumerate([FUNCTION, FUNCTION, wrong])]
    task = TaskSpec(task="humaneval", data_files={"test": str(write_rows(tmp_path / "functions.jsonl", rows))})
    found = define(task, SuiteSpec(name="s", tasks=[task])).canaries()
    assert found is not None
    assert found.fault == "its own right answers score 0.500 on pass@1 (2 items were tried)"
