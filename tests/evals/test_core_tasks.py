"""Tasks of ``core`` with data sets on the Hub only read the columns of those: a right answer scores 1."""

from pathlib import Path
from typing import Any

import pytest
from posttrain.evals.canaries import canaries
from posttrain.evals.definitions import build, define
from posttrain.evals.gold import check_gold
from posttrain.evals.spec import SuiteSpec, TaskSpec
from posttrain.evals.suite_files import SUITES
from posttrain.evals.task_index import lm_eval_folder

from .conftest import write_rows

BIGBENCH = [
    {
        "idx": n,
        "inputs": f"Question {n}?  ",
        "targets": [f"word {n}"],
        "multiple_choice_targets": [],
        "multiple_choice_scores": [],
    }
    for n in range(3)
]
LANGUAGES = [
    {
        "idx": n,
        "inputs": f"Text {n}\n  Language:",
        "targets": [name],
        "multiple_choice_targets": ["Ga", "Mam", "Xhosa"],
        "multiple_choice_scores": [0, 0, 0],
    }
    for n, name in enumerate(["Mam", "Ga", "Ga"])
]
HELLASWAG = [
    {
        "ind": n,
        "activity_label": "Baking",
        "ctx_a": "A cook stirs.",
        "ctx_b": "the cook",
        "ctx": "A cook stirs. the cook",
        "endings": ["bakes [title] it", "flies", "sings", "sleeps"],
        "source_id": "x",
        "split": "val",
        "split_type": "indomain",
        "label": str(n),
    }
    for n in range(3)
]
JEOPARDY = [
    {"context": f"HISTORY: The {n}th of its kind", "continuation": f"Answer {n}", "category": "history"}
    for n in range(3)
]
WINOGRAD = [
    {
        "text": "The trophy does not fit in the case because it is too large.",
        "pronoun": "it",
        "pronoun_loc": 44,
        "quote": "it",
        "quote_loc": 44,
        "options": ["The trophy", "The case"],
        "label": 0,
        "source": "(1)",
    },
    {
        "text": "The trophy does not fit in the case because it is too small.",
        "pronoun": "it",
        "pronoun_loc": 44,
        "quote": "it",
        "quote_loc": 44,
        "options": ["The trophy", "The case"],
        "label": 1,
        "source": "(2)",
    },
]
LSAT = [
    {
        "query": f"Q {n}? Answer Choices: (A)a (B)b Among A through E, the answer is",
        "choices": ["(A)a", "(B)b", "(C)c"],
        "gold": [n],
    }
    for n in range(3)
]
SQUAD = [
    {
        "id": str(n),
        "title": "T",
        "context": f"It was {n} here.",
        "question": "What was it?",
        "answers": {"text": [f"{n} here", str(n)], "answer_start": [7, 7]},
    }
    for n in range(3)
]
COQA = [
    {
        "id": str(n),
        "source": "wiki",
        "story": f"Ann has {n} cats.",
        "questions": {"input_text": ["Who?", "How many?"], "turn_id": [1, 2]},
        "answers": {
            "input_text": ["Ann", f"{n} cats"],
            "answer_start": [0, 8],
            "answer_end": [3, 14],
            "turn_id": [1, 2],
        },
    }
    for n in range(3)
]
TASKS = lm_eval_folder() / "tasks"
ONLINE = {
    "hellaswag_0shot": (HELLASWAG, TASKS / "hellaswag" / "hellaswag.yaml"),
    "hellaswag": (HELLASWAG, TASKS / "hellaswag" / "hellaswag.yaml"),
    "core_jeopardy": (JEOPARDY, None),
    "core_qa_wikidata": (BIGBENCH, None),
    "wsc273": (WINOGRAD, TASKS / "wsc273" / "default.yaml"),
    "core_dyck_languages": (BIGBENCH, None),
    "agieval_lsat_ar": (LSAT, TASKS / "agieval" / "lsat-ar.yaml"),
    "core_cs_algorithms": (BIGBENCH, None),
    "core_operators": (BIGBENCH, None),
    "core_repeat_copy_logic": (BIGBENCH, None),
    "core_squad": (SQUAD, None),
    "core_coqa": (COQA, None),
    "bigbench_language_identification_multiple_choice": (
        LANGUAGES,
        TASKS / "bigbench" / "multiple_choice" / "language_identification.yaml",
    ),
}
LAST = {
    "hellaswag": ("Baking: A cook stirs. The cook", "bakes. it"),
    "core_jeopardy": ("HISTORY: The 0th of its kind\nAnswer:", " Answer 0"),
    "core_qa_wikidata": ("Question 0?", " word 0"),
    "core_squad": ("Context: It was 0 here.\nQuestion: What was it?\nAnswer:", " 0 here"),
    "core_coqa": ("Ann has 0 cats.\n\nQ: Who?\n\nA: Ann\n\nQ: How many?\n\nA:", " 0 cats"),
}


def entries() -> dict[str, TaskSpec]:
    """Returns what the suite says of its tasks, by name."""
    from posttrain.data_tools.specfile import load_document

    suite = SuiteSpec.model_validate(load_document(SUITES / "core.yaml").value)
    return {task.title: task for task in suite.tasks}


def built(folder: Path, name: str) -> tuple[Any, Any]:
    """Builds a task of the suite as it stands on rows of the data set that it names."""
    rows, path = ONLINE[name]
    entry = entries()[name]
    config = define(
        entry.model_copy(update={"task": str(path or entry.task)}), SuiteSpec(name="s", tasks=[entry])
    ).config
    splits = [config[key] for key in ("test_split", "validation_split", "training_split") if config.get(key)]
    files = {split: str(write_rows(folder / f"{split}.jsonl", rows)) for split in splits}
    update = {"task": str(path or entry.task), "data_files": files, "num_fewshot": min(entry.num_fewshot or 0, 1)}
    spec = entry.model_copy(update=update)
    definition = define(spec, SuiteSpec(name="s", tasks=[spec]))
    return build(definition), definition


@pytest.mark.parametrize("name", ONLINE)
def test_a_right_answer_to_rows_as_the_hub_has_them_scores_1(tmp_path: Path, name: str):
    task, definition = built(tmp_path, name)
    check_gold(task, definition.spec, definition.data_files)
    found = canaries(task, definition.spec, definition.primary)
    assert found is not None
    assert found.oracle == 1.0
    if found.majority is not None:
        assert found.majority < 1, "the rows have several right places, and all of them are read"
    if name in LAST:
        doc = next(iter(task.eval_docs))
        target = task.doc_to_target(doc)
        if task.config.doc_to_choice is not None:
            target = task.doc_to_choice(doc)[int(target)]
        assert (task.doc_to_text(doc), target) == LAST[name]


def test_what_the_folder_of_layouts_lacks_is_what_is_tried_here():
    """With the tasks that a layout of ours has files for, these are the 22."""
    from posttrain.evals.task_data import LAYOUTS, read_layout

    layout = read_layout(LAYOUTS / "benchmarks.yaml")
    assert {name for name in entries() if layout.entry(name) is None} == set(ONLINE)
