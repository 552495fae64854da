"""The items of tasks as texts: what a task asks, without what surrounds all of its questions."""

import json
from pathlib import Path
from typing import Any

from posttrain.evals.definitions import define
from posttrain.evals.score import define_all
from posttrain.evals.spec import SuiteSpec, TaskSpec
from posttrain.evals.suite_files import load_suite

CHOICES = ["the red one", "that of Ann", "none", "all"]
DOCS = [
    {"question": f"Which of the {number} houses is old?", "choices": CHOICES, "answer": number % 4}
    for number in range(12)
]


def items_of(tmp_path: Path, keys: dict[str, Any], docs: list[dict[str, Any]] = DOCS, limit: int | None = None) -> Any:
    data = tmp_path / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    task = tmp_path / "quiz.yaml"
    base = {"task": "quiz", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice"}
    task.write_text(json.dumps(base | keys))
    spec = TaskSpec(task=str(task), data_files={"test": str(data)}, limit=limit)
    return define(spec, SuiteSpec(name="s", tasks=[spec])).items()


def test_the_words_around_every_question_are_left_out(tmp_path: Path) -> None:
    keys = {
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
    }
    found = items_of(tmp_path, keys, limit=11)
    assert len(found) == 11
    whole = "question which of the 1 houses is old answer"  # all but the number is the same, and makes the question
    assert (found[1].question, found[1].answer) == (whole, "that of Ann")
    other = [*DOCS[:-2], {**DOCS[0], "question": "Where is it?"}]
    found = items_of(tmp_path, keys, other)
    assert (found[1].question, found[-1].question) == ("which of the 1 houses is old", "where is it")


def test_a_letter_stands_for_the_option_that_it_names_and_options_are_no_part_of_the_question(tmp_path: Path) -> None:
    docs = [*DOCS[:-2], {**DOCS[1], "question": "Is it none of them?"}]
    keys = {
        "doc_to_text": "{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
    }
    found = items_of(tmp_path, keys, docs)
    assert (found[2].question, found[2].answer) == ("which of the 2 houses is old", "none")
    assert (found[-1].question, found[-1].answer) == ("is it none of them", "that of Ann")


def test_of_beginnings_the_right_one_is_the_question(tmp_path: Path) -> None:
    keys = {"doc_to_text": "answer", "doc_to_choice": "choices", "doc_to_target": "{{' is the oldest of them'}}"}
    found = items_of(tmp_path, keys, DOCS[:4])
    assert (found[1].question, found[1].answer.strip()) == ("that of ann", "is the oldest of them")


def test_prompts_are_items_with_their_references(tmp_path: Path) -> None:
    rows = [{"prompt": "Who is there?", "reference": "Ann"}, {"prompt": "Is it late?"}]
    (tmp_path / "ask.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "suite.yaml").write_text("prompts: [{name: ask, path: ask.jsonl}]\n")
    [task] = define_all(load_suite(tmp_path / "suite.yaml"))
    assert [(item.question, item.answer) for item in task.items() or ()] == [
        ("Who is there?", "Ann"),
        ("Is it late?", ""),
    ]


def test_items_bear_the_ids_of_the_samples_and_documents_their_numbers(suite_file: Path) -> None:
    suite = load_suite(suite_file)
    found = {task.spec.title: task.items() for task in define_all(suite)}
    assert found["lines"] is not None
    assert [item.id for item in found["lines"][:3]] == ["0", "1", "2"]
    assert found["lines"][0].question == "The quick brown fox."
    assert found["sums"] is not None
    assert [item.answer for item in found["sums"]] == ["0", "2", "4", "6"]
    assert len({item.id for item in found["sums"]}) == 4
