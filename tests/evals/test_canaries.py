"""An answer that is always right scores 1 on a task, and a constant one its share, or the task is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from posttrain.evals.canaries import Canaries, canaries
from posttrain.evals.definitions import build, define
from posttrain.evals.errors import SuiteError
from posttrain.evals.score import score
from posttrain.evals.spec import SuiteSpec, TaskSpec
from posttrain.evals.task_index import lm_eval_folder

from .conftest import CHOICES, PROMPTS, write_rows

BOOLQ = [{"passage": "P", "question": f"q {n}", "answer": n % 3 > 0} for n in range(9)]
BOOLQ_YAML = str(lm_eval_folder() / "tasks" / "super_glue" / "boolq" / "default.yaml")


LETTERS = (
    "task: letters\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\ndoc_to_text: question\n"
    "doc_to_choice: [A, B, C]\ndoc_to_target: answer\nmetric_list: [{metric: acc}]\n"
)


def of(task: TaskSpec) -> Canaries | None:
    definition = define(task, SuiteSpec(name="s", tasks=[task]))
    return canaries(build(definition), task, definition.primary)


def on(folder: Path, rows: list[dict[str, Any]], task: str = "multiple_choice", **keys: Any) -> Canaries | None:
    path = write_rows(folder / "rows.jsonl", rows)
    split = "validation" if task == BOOLQ_YAML else "test"
    return of(TaskSpec(task=task, data_files={split: str(path)}, **keys))


def test_boolq_with_the_files_own_column_is_refused_where_stock_scores_zero(tmp_path: Path):
    """lm-eval takes the missing column's name for the label and exits with accuracy 0."""
    with pytest.raises(SuiteError, match="no answer to 9 of 9 items is right by acc"):
        on(tmp_path, BOOLQ, BOOLQ_YAML)


def test_boolq_with_its_column_mapped_has_its_majority_class(tmp_path: Path):
    found = on(tmp_path, BOOLQ, BOOLQ_YAML, fields={"label": "{{ answer | int }}"})
    assert found == Canaries("acc", 1.0, pytest.approx(6 / 9), "yes", 0.5)


def test_options_that_differ_by_item_are_named_by_their_place(tmp_path: Path):
    found = on(tmp_path, CHOICES, metric="acc_norm")
    assert found == Canaries("acc_norm", 1.0, 0.5, 0, pytest.approx(1 / 3))


def test_only_the_items_that_take_part_count(tmp_path: Path):
    found = on(tmp_path, CHOICES, limit=1)
    assert found is not None
    assert found.majority == 1.0


def test_items_of_several_numbers_of_options_have_their_own_chance(tmp_path: Path):
    rows = [CHOICES[0], {"question": "Q", "choices": ["a", "b"], "answer": 1}]
    found = on(tmp_path, rows)
    assert found is not None
    assert found.chance == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_a_last_word_can_be_right(tmp_path: Path):
    rows = [{"context": "The sky is", "continuation": "blue"}]
    assert on(tmp_path, rows, "lambada", metric="perplexity") == Canaries("acc", 1.0)


def test_texts_go_through_the_filters(tmp_path: Path):
    rows = [*PROMPTS, {"prompt": "1 and 5 make", "answer": "6"}]
    assert on(tmp_path, rows, "exact_match") == Canaries("exact_match", 1.0, 0.4, "6")


def test_a_loose_figure_does_not_hide_that_a_strict_one_wants_a_phrase(tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "def count(doc, results):\n"
        "    return {'exact_match': 1.0, 'acc': float(results[0] == f\"The answer is {doc['answer']}.\")}\n"
    )
    (tmp_path / "own.yaml").write_text(
        "task: own\ndataset_path: json\noutput_type: generate_until\ntest_split: test\ndoc_to_text: prompt\n"
        "doc_to_target: answer\nprocess_results: !function own.count\nmetadata: {right_answer: '{{answer}}'}\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}, "
        "{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    assert on(tmp_path, PROMPTS, str(tmp_path / "own.yaml"), metric="acc") == Canaries("acc", 1.0)


def test_rows_of_math_without_worked_solutions_have_right_answers(tmp_path: Path):
    rows = [{"problem": "Half of 1?", "answer": r"\frac{1}{2}"}, {"problem": "Of 2?", "answer": "1"}]
    assert on(tmp_path, rows, "math_verified") == Canaries("exact_match", 1.0)


def test_texts_that_no_filter_lets_through_are_refused(tmp_path: Path):
    filters = [
        {"name": "n", "filter": [{"function": "regex", "regex_pattern": "Antwort: (.*)"}, {"function": "take_first"}]}
    ]
    with pytest.raises(SuiteError, match="right answers score 0 on exact_match"):
        on(tmp_path, PROMPTS, "exact_match", overrides={"filter_list": filters})


def test_a_task_that_does_not_count_its_labels_is_refused(tmp_path: Path):
    """Some option of each item counts, but not the one that the label names."""
    path = tmp_path / "own.yaml"
    path.write_text(LETTERS)
    write_rows(tmp_path / "rows.jsonl", CHOICES)
    task = TaskSpec(task=str(path), data_files={"test": str(tmp_path / "rows.jsonl")})
    built: Any = build(define(task, SuiteSpec(name="s", tasks=[task])))
    original = built.process_results
    built.process_results = lambda doc, results: original({**doc, "answer": 0}, results)
    with pytest.raises(SuiteError, match=r"always choosing option 0 scores 1\.0000, and the labels of 2 of 4"):
        canaries(built, task)


def test_the_figures_are_kept_with_the_score_and_shared_examples_are_said(
    make_run: Callable[..., Path], tmp_path: Path
):
    write_rows(tmp_path / "choices.jsonl", CHOICES)
    (tmp_path / "letters.yaml").write_text(LETTERS)
    path = tmp_path / "suite.yaml"
    entry = {"task": "multiple_choice", "data_files": {"test": "choices.jsonl"}, "num_fewshot": 1}
    plain = {key: value for key, value in entry.items() if key != "num_fewshot"}
    path.write_text(
        f"tasks: [{json.dumps(entry | {'name': 'shots'})}, {json.dumps(plain | {'name': 'none'})},\n"
        f"  {json.dumps(plain | {'task': 'letters.yaml', 'name': 'letters'})}]\n"
    )
    report = score([make_run((1,), final=False)], path, device="cpu")
    shots, none, letters = report.done
    assert shots.detail is not None
    assert shots.detail["canaries"]["majority"] == 0.5
    assert any("worked examples come from the scored rows" in note for note in shots.notes)
    assert none.notes == ()
    assert letters.notes == ("always 'A' would score 0.500 on acc",)


def test_templates_are_compiled_once_a_task_and_the_figures_are_those_of_compiling_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from lm_eval import utils

    path = write_rows(
        tmp_path / "rows.jsonl", [{"passage": "P", "question": f"q {n}", "label": n % 2} for n in range(9)]
    )
    words = {"doc_to_text": "{{ passage }} here: {{ question }}?"}
    spec = TaskSpec(task=BOOLQ_YAML, data_files={"validation": str(path)}, overrides=words)
    compile_template, compiled = utils.env.compile, []

    def counted(source: str, *args: Any, **kwargs: Any) -> Any:
        compiled.append(source)
        return compile_template(source, *args, **kwargs)

    monkeypatch.setattr(utils.env, "compile", counted)
    kept, anew = (define(spec, SuiteSpec(name="s", tasks=[spec])) for _ in range(2))
    kept.check()
    assert spec.overrides["doc_to_text"] in compiled
    assert len(compiled) == len(set(compiled))
    monkeypatch.setattr(utils, "apply_template", lambda source, doc: utils.env.from_string(source).render(**doc))
    anew.check()
    assert len(compiled) > 9, "lm-eval's own way compiles for each row"
    assert kept.canaries() == anew.canaries()
    assert kept.canaries() is not None
