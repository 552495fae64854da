"""A row without a right answer that could be given is refused by name, before any model is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from posttrain.evals import definitions
from posttrain.evals import score as scoring
from posttrain.evals.errors import EvalError, SuiteError
from posttrain.evals.score import score
from posttrain.evals.suite_files import load_suite

GOOD = {"question": "Q", "choices": ["a", "b"], "answer": 0}
NAN = float("nan")


def task_of(folder: Path, rows: list[dict[str, Any]], task: str = "multiple_choice", **more: Any) -> Any:
    """Defines a task on rows, of a built-in name or of a YAML text."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if "\n" in task:
        (folder / "own.yaml").write_text(task)
        task = str(folder / "own.yaml")
    path = folder / "suite.yaml"
    entry = {"task": task, "name": "it", "data_files": {"test": "rows.jsonl"}, **more}
    path.write_text(f"tasks: [{json.dumps(entry)}]\n")
    suite = load_suite(path)
    return definitions.define(suite.tasks[0], suite)


def refused(folder: Path, rows: list[dict[str, Any]], task: str = "multiple_choice", **more: Any) -> str:
    with pytest.raises((SuiteError, EvalError)) as caught:
        task_of(folder, rows, task, **more).check()
    return str(caught.value)


BAD = [5, 2, -1, None, True, 1.0, "c", "", "0.5"]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_option_that_is_none_is_refused_by_row_and_value(tmp_path: Path, value: Any, place: int):
    rows = [dict(GOOD) for _ in range(3)]
    rows[place]["answer"] = value
    told = refused(tmp_path, rows)
    assert f"rows.jsonl:{place + 1}" in told or f"answer of row {place + 1} is {value!r}" in told
    assert repr(value) in told or str(value) in told
    assert not any(f"rows.jsonl:{other + 1}:" in told for other in range(3) if other != place)


def test_a_missing_label_is_refused_and_all_rows_are_counted(tmp_path: Path):
    rows = [{"question": "Q", "choices": ["a", "b"]} if n % 2 else dict(GOOD) for n in range(30)]
    told = refused(tmp_path, rows)
    assert "15 rows have no right answer" in told
    assert "rows.jsonl:2" in told
    assert "and 10 more" in told
    assert task_of(tmp_path, rows, limit=1).check() is None, "rows that take no part need no answer"
    assert "'answer'" in refused(tmp_path, [{"question": "Q", "choices": ["a", "b"]}])


def test_none_is_a_word(tmp_path: Path):
    task_of(tmp_path, [GOOD | {"choices": ["None", "nan"], "answer": "None"}]).check()
    task_of(tmp_path, [{"prompt": "Q", "answer": "None"}], "exact_match").check()


def test_options_may_be_named_by_index_or_by_text(tmp_path: Path):
    task_of(tmp_path, [GOOD, GOOD | {"answer": 1}]).check()
    task_of(tmp_path, [GOOD | {"answer": "a"}, GOOD | {"answer": "b"}]).check()
    task_of(tmp_path, [GOOD | {"choices": ["x²", "²"], "answer": "²"}]).check()


def test_digits_that_name_another_option_than_they_count_are_refused(tmp_path: Path):
    text = OWN.format(target='"{{answer}}"')
    numbers = {"question": "Q", "choices": ["1", "2", "3"]}
    task_of(tmp_path, [numbers | {"answer": 1}], text).check()  # a number counts options
    told = refused(tmp_path, [numbers | {"answer": "1"}], text)
    assert "rows.jsonl:1: the answer '1' is the text of one option and the number of another" in told


def test_an_answer_in_brackets_is_a_text_and_no_list_of_answers(tmp_path: Path):
    rows = [
        {"prompt": "Q", "answer": "[1, 2]"},
        {"prompt": "Q", "answer": '["apple", "pear"]'},
        {"prompt": "Q", "answer": 3},
    ]
    task: Any = definitions.build(
        task_of(tmp_path, [dict(row, answer=str(row["answer"])) for row in rows], "exact_match")
    )
    for doc, row in zip(task.task_docs, rows, strict=True):
        told = [task.process_results(doc, [text])["exact_match"] for text in (str(row["answer"]), "apple", "1")]
        assert told == [1, 0, 0]
    options = {"question": "Q", "choices": ["[2, 1]", "[1, 2]", "[3]"], "answer": "[1, 2]"}
    task = definitions.build(task_of(tmp_path, [options, dict(options, answer="1")]))
    for doc in task.task_docs:
        right = [task.process_results(doc, [(-float(n != k), n == k) for n in range(3)])["acc"] for k in range(3)]
        assert right == [0, 1, 0]


def test_right_answers_may_be_numbers_in_worked_examples_too(tmp_path: Path):
    task = task_of(tmp_path, [{"prompt": f"Q{n}", "answer": n} for n in range(3)], "exact_match", num_fewshot=2)
    built: Any = definitions.build(task)
    built.set_fewshot_seed(0)
    assert "Q2 2" in built.fewshot_context(built.task_docs[0], 2)


@pytest.mark.parametrize("train", [None, 2, 3])
def test_more_worked_examples_than_there_are_are_refused(tmp_path: Path, train: int | None):
    rows = [{"prompt": f"Q{n}", "answer": "a"} for n in range(3)]
    files = {"test": "rows.jsonl"}
    if train:  # none of which is scored
        files["train"] = "train.jsonl"
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:train]))
    there = train or 2  # of three scored rows an item has the two others
    told = refused(tmp_path, rows, "exact_match", data_files=files, num_fewshot=there + 1)
    assert f"{there + 1} worked examples are asked for, and there are {there} to take" in told
    most = task_of(tmp_path, rows, "exact_match", data_files=files, num_fewshot=there)
    most.check()
    built: Any = definitions.build(most)
    assert all(built.fewshot_context(doc, there).count("Q") == there + 1 for doc in built.task_docs)


def test_a_template_that_makes_a_list_of_a_text_is_refused(tmp_path: Path):
    text = OWN.format(target='"{{answer}}"')
    told = refused(tmp_path, [GOOD | {"answer": "a"}, GOOD | {"answer": "[0, 1]"}], text)
    assert "rows.jsonl:2: the text '[0, 1]' is read as a list" in told
    task_of(tmp_path, [GOOD | {"answer": [0, 1]}], text).check()  # a list is one


def test_options_that_are_no_texts_are_refused(tmp_path: Path):
    assert "the options are [3, 4], no list of texts" in refused(tmp_path, [GOOD | {"choices": [3, 4]}])


@pytest.mark.parametrize("value", [None, "", "  "])
@pytest.mark.parametrize(("task", "rest"), [("exact_match", "prompt"), ("lambada", "context")])
def test_an_empty_text_is_no_right_answer(tmp_path: Path, value: Any, task: str, rest: str):
    column = "answer" if task == "exact_match" else "continuation"
    rows = [{rest: "Q", column: "yes"}, {rest: "Q", column: value}, {rest: "Q"}]
    told = refused(tmp_path, rows, task)
    assert "2 rows" in told
    assert "rows.jsonl:2" in told
    assert "rows.jsonl:3" in told


OWN = """task: own
dataset_path: json
output_type: multiple_choice
test_split: test
doc_to_text: question
doc_to_choice: choices
doc_to_target: {target}
metric_list: [{{metric: acc}}]
"""


def test_several_right_answers_are_each_looked_at(tmp_path: Path):
    text = OWN.format(target="answers")
    rows = [GOOD | {"answers": [0, 1]}, GOOD | {"answers": [1]}]
    task_of(tmp_path, rows, text).check()
    for bad in ([], [0, 2], [-1], [None]):
        assert "rows.jsonl:3" in refused(tmp_path, [*rows, GOOD | {"answers": bad}], text)


@pytest.mark.parametrize("target", ["label", "labl"])
def test_a_column_that_the_rows_lack_is_not_taken_for_a_text(tmp_path: Path, target: str):
    told = refused(tmp_path, [GOOD], OWN.format(target=target))
    assert f"doc_to_target reads the column '{target}'" in told
    assert "question, choices, answer" in told


def test_a_built_in_task_refuses_rows_of_other_columns(tmp_path: Path):
    rows = [{"passage": "P", "question": "Q", "answer": True}]
    told = refused(tmp_path, rows, "boolq", data_files={"validation": "rows.jsonl"})
    assert "'label'" in told


def test_nothing_is_loaded_for_rows_that_cannot_be_scored(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    task_of(tmp_path, [GOOD, GOOD | {"answer": 7}])
    monkeypatch.setattr(scoring.Loader, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    report = score([tiny_model_dir], tmp_path / "suite.yaml", device="cpu", output=tmp_path / "out")
    (failure,) = report.failed
    assert "rows.jsonl:2" in failure.reason
    assert failure.detail == "", "an error of the rows, without a traceback"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import no_such_package_at_all", "pip install no_such_package_at_all"),
        ("import evaluate\nx = evaluate.load('no_such_metric_at_all')", "not here"),
        ("def text(doc): return 'x'\n1 / 0", "ZeroDivisionError"),
        ("def text(:", "SyntaxError"),
        ("other = 1", "text"),
    ],
)
def test_a_module_that_cannot_be_used_is_one_line(tmp_path: Path, code: str, words: str):
    (tmp_path / "own_functions.py").write_text(code + "\n")
    text = OWN.format(target="answer").replace(": question", ": !function own_functions.text")
    told = refused(tmp_path, [GOOD], text)
    assert words in told
    assert "\n" not in told


def test_a_metric_of_the_hub_is_refused_offline(tmp_path: Path):
    told = refused(tmp_path, [GOOD], OWN.format(target="answer").replace("acc}", "no_such_metric_at_all}"))
    assert "there is no metric 'no_such_metric_at_all' here" in told


def test_a_label_that_never_changes_is_noted_and_unknown_warnings_reach_the_reader(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import logging
    import warnings

    task_of(tmp_path, [GOOD] * 25)
    original = definitions.build

    def build(definition: Any) -> Any:
        logging.getLogger("lm_eval.x").warning("the figures of %d rows are odd", 3)
        logging.getLogger("lm_eval").warning("[Task: it] No `until` specified")
        warnings.warn("a library says that something is off", UserWarning, stacklevel=1)
        return original(definition)

    monkeypatch.setattr(definitions, "build", build)
    warnings.simplefilter("always")  # the task is built twice: for its check, and to be run
    report = score([tiny_model_dir], tmp_path / "suite.yaml", device="cpu", output=tmp_path / "out")
    notes = report.done[0].notes
    assert any("the right answer is 0 in all 25 rows" in note for note in notes)
    assert any("the figures of N rows are odd" in note for note in notes)
    assert any("something is off" in note for note in notes)
    assert len(notes) == 3
