"""A folder of benchmarks is read by its layout, and what a row of it was made of is part of the score's identity."""

import json
from pathlib import Path
from typing import Any

import pytest
from posttrain.data_tools.errors import SpecError
from posttrain.evals import spec as specs
from posttrain.evals import task_index
from posttrain.evals.definitions import build, define, origin
from posttrain.evals.errors import SuiteError
from posttrain.evals.report import build as build_board
from posttrain.evals.spec import SuiteSpec, TaskSpec
from posttrain.evals.suite_files import load_suite
from posttrain.evals.task_data import LAYOUTS, open_folder, read_layout, read_task_rows

from .report_fixtures import make_run, score, share

BOOLQ = [
    {"passage": "Water is wet.", "question": "is water wet", "answer": True},
    {"passage": "Fire is hot.", "question": "is fire cold", "answer": False},
]
SUBJECTS = ("anatomy", "virology")
MMLU = [
    {"question": f"{subject} {n}", "subject": subject, "choices": ["a", "b", "c", "d"], "answer": n}
    for n in range(2)
    for subject in SUBJECTS
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a layout of its own, with the columns that the files are published with."""
    data = tmp_path / "data"
    write(data / "boolq.jsonl", BOOLQ)
    write(data / "mmlu.jsonl", MMLU)
    (data / "layout.yaml").write_text(
        "tasks:\n"
        "  boolq: {files: {validation: boolq.jsonl}, fields: {label: '{{ answer | int }}'}, coverage: two rows}\n"
        "  mmlu_{subject}: {files: {test: mmlu.jsonl, dev: mmlu.jsonl}, where: {subject: '{subject}'}}\n"
        "  piqa: {files: {validation: not_there.jsonl}}\n"
    )
    return data


def suite_of(folder: Path, *tasks: str, more: str = "") -> SuiteSpec:
    path = folder.parent / "mine.yaml"
    path.write_text(f"data_dir: data\n{more}tasks:\n" + "".join(f"  - {{task: {task}}}\n" for task in tasks))
    return load_suite(path)


@pytest.fixture(autouse=True)
def _built_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Knows three of lm-eval's tasks without scanning all of them."""
    tasks = {
        "boolq": "super_glue/boolq/default.yaml",
        "piqa": "piqa/piqa.yaml",
        "mmlu_anatomy": "mmlu/default/mmlu_anatomy.yaml",
    }
    monkeypatch.setattr(task_index, "_index", lambda: {"tasks": tasks, "several": {}})


def built(suite: SuiteSpec, index: int = 0) -> Any:
    return build(define(suite.tasks[index], suite))


def test_a_column_that_the_task_reads_is_made_of_the_files_own(folder: Path):
    task = built(suite_of(folder, "boolq"))
    assert [task.doc_to_target(doc) for doc in task.eval_docs] == [1, 0]
    assert [doc["answer"] for doc in task.eval_docs] == [True, False]


def test_a_task_reads_the_rows_that_are_its_own(folder: Path):
    task = built(suite_of(folder, "mmlu_anatomy"))
    assert [doc["question"] for doc in task.eval_docs] == ["anatomy 0", "anatomy 1"]


def test_a_name_of_its_own_leaves_a_task_its_rows_but_for_a_name_that_the_layout_spells_out(folder: Path):
    write(folder / "hard.jsonl", BOOLQ[:1])
    with (folder / "layout.yaml").open("a") as layout:
        layout.write("  boolq_hard: {files: {validation: hard.jsonl}}\n")
    own, hard = suite_of(folder, "mmlu_anatomy, name: mmlu_anatomy_0shot", "boolq, name: boolq_hard").tasks
    assert own.where == {"subject": "anatomy"}
    assert hard.data_files == {"validation": str(folder / "hard.jsonl")}


def test_the_map_of_columns_and_the_choice_of_rows_are_part_of_the_hash(folder: Path):
    suite = suite_of(folder, "boolq", "mmlu_anatomy")
    boolq, mmlu = suite.tasks
    hashes = {define(task, suite).task_hash for task in (boolq, mmlu)}
    other = boolq.model_copy(update={"fields": {"label": "{{ 1 - (answer | int) }}"}})
    assert define(other, suite).task_hash not in hashes
    fewer = mmlu.model_copy(update={"where": {"subject": "virology"}})
    assert define(fewer, suite).task_hash not in hashes
    plain = TaskSpec(task="boolq", data_files=boolq.data_files)
    named = TaskSpec(task="boolq", data_files=boolq.data_files, coverage="half")
    assert define(plain, suite).task_hash == define(named, suite).task_hash, "words in a title change no answer"


def test_where_a_folder_lies_does_not_matter(folder: Path, tmp_path: Path):
    here = suite_of(folder, "boolq")
    folder.rename(tmp_path / "moved")
    (tmp_path / "mine.yaml").write_text("data_dir: moved\ntasks: [{task: boolq}]\n")
    there = load_suite(tmp_path / "mine.yaml")
    assert here.tasks[0].data_files != there.tasks[0].data_files
    (tmp_path / "moved").rename(folder)
    before = define(here.tasks[0], here).task_hash
    folder.rename(tmp_path / "moved")
    assert define(there.tasks[0], there).task_hash == before


def test_what_a_folder_does_not_hold_is_left_out_and_named(folder: Path):
    suite = suite_of(folder, "boolq", "piqa")
    assert (suite.name, [task.title for task in suite.tasks], suite.left_out) == ("mine-local", ["boolq"], ("piqa",))
    assert suite_of(folder, "boolq").name == "mine", "all of it is there"
    with pytest.raises(
        SpecError, match=r"mine\.yaml:1: data_dir: .* none of the suite's tasks; piqa needs not_there\.jsonl there"
    ):
        suite_of(folder, "piqa")


def test_a_name_that_nobody_knows_is_told_alone_and_a_long_layout_in_part(folder: Path):
    with pytest.raises(SpecError) as caught:
        suite_of(folder, "bolq")
    [problem] = caught.value.problems
    assert "tasks[0].task: lm-eval has no task 'bolq'; did you mean 'boolq'?" in problem
    names = "".join(f"  own_{n}: {{files: {{test: a.jsonl}}}}\n" for n in range(20))
    (folder / "layout.yaml").write_text(f"tasks:\n{names}")
    with pytest.raises(SpecError, match=r"its layout knows: own_0, .* own_7 and 12 more$"):
        suite_of(folder, "piqa")


def test_a_task_may_be_named_alone(folder: Path, tmp_path: Path):
    (tmp_path / "short.yaml").write_text("data_dir: data\ntasks: [boolq]\n")
    assert len(built(load_suite(tmp_path / "short.yaml")).eval_docs) == 2


def test_a_split_may_be_several_files_whose_rows_say_which(folder: Path):
    for n, row in enumerate(BOOLQ):
        write(folder / f"part-{n}.jsonl", [row])
    (folder / "layout.yaml").write_text(
        "tasks: {boolq: {files: {validation: part-*.jsonl}, fields: {label: '{{ answer | int }}'}}}\n"
    )
    suite = suite_of(folder, "boolq")
    task = built(suite)
    assert [task.doc_to_target(doc) for doc in task.eval_docs] == [1, 0]
    assert [doc["file"] for doc in task.eval_docs] == ["part-0.jsonl", "part-1.jsonl"]
    before = define(suite.tasks[0], suite).task_hash
    write(folder / "part-1.jsonl", [BOOLQ[1] | {"answer": True}])
    assert define(suite.tasks[0], suite).task_hash != before
    for n in range(2):
        (folder / f"part-{n}.jsonl").unlink()
    with pytest.raises(SpecError, match="none of the suite's tasks"):
        suite_of(folder, "boolq")


def test_a_task_with_files_of_its_own_does_not_read_the_folder(folder: Path):
    write(folder / "mine.jsonl", [BOOLQ[0] | {"label": 1}])
    suite = suite_of(folder, "boolq, data_files: {validation: data/mine.jsonl}")
    assert len(built(suite).eval_docs) == 1


@pytest.mark.parametrize("name", ["own", "boolq"])
def test_a_task_whose_yaml_names_its_files_is_neither_left_out_nor_given_others(
    folder: Path, tmp_path: Path, name: str
):
    write(tmp_path / "own.jsonl", [BOOLQ[0] | {"label": 1}])
    (tmp_path / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{validation: own.jsonl}}}}\n"
        "output_type: multiple_choice\nvalidation_split: validation\ndoc_to_text: question\n"
        "doc_to_choice: ['no', 'yes']\ndoc_to_target: label\nmetric_list: [{metric: acc}]\n"
    )
    suite = suite_of(folder, f"{name}.yaml")
    assert (suite.left_out, len(built(suite).eval_docs)) == ((), 1)
    (tmp_path / "own.jsonl").unlink()
    if name == "boolq":
        assert len(built(suite_of(folder, "boolq.yaml")).eval_docs) == len(BOOLQ), (
            "the folder's stand for what is not there"
        )
    else:
        with pytest.raises(SuiteError, match=r"there is no file .*own\.jsonl"):
            suite_of(folder, "own.yaml")


def test_a_folder_on_the_command_line_replaces_the_data_of_any_suite(folder: Path, tmp_path: Path):
    path = tmp_path / "online.yaml"
    path.write_text("offline: false\ntasks: [{task: boolq}, {task: piqa}]\n")
    assert not load_suite(path).tasks[0].data_files
    suite = load_suite(path, data_dir=folder)
    assert suite.name == "online-local"
    assert len(built(suite).eval_docs) == 2


def test_what_is_held_only_in_part_is_said_in_the_title_of_its_column(folder: Path):
    suite = suite_of(folder, "boolq")
    definition = define(suite.tasks[0], suite)
    record = score("final", 1, "boolq", share(1, 2), detail=origin(definition))
    board = build_board([make_run(folder.parent / "run", "run", [record])])
    [column] = board.columns
    assert (column.task, column.variant) == ("boolq", "two rows")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tasks: {boolq: {files: {validation: b.jsonl}, fields: {label: '{{ 1 +'}}}", "fields.label"),
        ("tasks: {boolq: {file: b.jsonl}}", "tasks.boolq.file: unknown key; did you mean 'files'"),
        ("tasks: {boolq: {files: {}}}", "files"),
    ],
)
def test_a_wrong_layout_is_refused_with_its_line(tmp_path: Path, text: str, told: str):
    path = tmp_path / "layout.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=told) as caught:
        read_layout(path)
    assert f"{path}:1" in str(caught.value)


def test_a_folder_that_is_not_there_or_not_known_is_one_clear_error(tmp_path: Path):
    with pytest.raises(SuiteError, match="there is no folder"):
        open_folder(tmp_path / "none")
    with pytest.raises(SuiteError, match=r"none of the layouts.*layout\.yaml"):
        open_folder(tmp_path)
    with pytest.raises(SuiteError, match="did you mean 'benchmarks'"):
        open_folder(tmp_path, "benchmark")


def test_the_layouts_that_come_with_posttrain_are_told_from_a_file_of_theirs(tmp_path: Path):
    for file in LAYOUTS.glob("*.yaml"):
        layout = read_layout(file)
        entry = next(iter(layout.tasks.values()))
        for name in entry.files.values():
            write(tmp_path / file.stem / name, [{}])
        assert open_folder(tmp_path / file.stem).layout == layout


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"where": {"subject": "history"}}, "none of its 4 rows has subject 'history'"),
        ({"where": {"subjct": "anatomy"}}, "did you mean 'subject'"),
        ({"fields": {"label": "{{ anser }}"}}, "rows.jsonl:1.*did you mean 'answer'"),
        ({"records": "examples"}, "rows.jsonl:1: there is no list of rows under 'examples'"),
    ],
)
def test_rows_that_are_not_as_told_are_refused_by_line(tmp_path: Path, keys: dict[str, Any], told: str):
    path = write(tmp_path / "rows.jsonl", MMLU)
    with pytest.raises(SuiteError, match=told):
        read_task_rows(path, specs.TaskRows(**keys))


def test_rows_may_stand_in_a_list_inside_an_object(tmp_path: Path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"canary": "x", "examples": BOOLQ}))
    rows = read_task_rows(path, specs.TaskRows(records="examples"))
    assert [row.values for row in rows] == BOOLQ


def test_a_map_without_files_is_refused(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("tasks: [{task: boolq, fields: {label: '{{ answer | int }}'}}]\n")
    with pytest.raises(SpecError, match="of the rows of files"):
        load_suite(path)


def texts_of(folder: Path, *entries: dict[str, Any]) -> Path:
    write(folder / "talk.jsonl", [{"lang": lang, "text": f"{lang} {n} words here"} for lang in "ab" for n in range(3)])
    path = folder.parent / "texts.yaml"
    path.write_text(json.dumps({"data_dir": "data", "perplexity": list(entries)}))
    return path


def test_texts_of_a_folder_need_no_layout_and_may_be_of_one_language(folder: Path):
    from posttrain.evals import perplexity

    (folder / "layout.yaml").unlink()
    whole = {"name": "all", "path": "talk.jsonl"}
    path = texts_of(
        folder, whole, {**whole, "name": "a", "where": {"lang": "a"}, "limit": 2}, {"name": "c", "path": "c.txt"}
    )
    suite = load_suite(path)
    assert (suite.name, suite.left_out) == ("texts-local", ("c",))
    every, some = suite.perplexity
    assert len(perplexity.documents(every)) == 6
    assert [text for _, text in perplexity.documents(some)] == ["a 0 words here", "a 1 words here"]
    hashes = {perplexity.define(text, suite).task_hash for text in (every, some)}
    assert len(hashes) == 2
    other = some.model_copy(update={"where": {"lang": "b"}})
    assert perplexity.define(other, suite).task_hash not in hashes


def test_a_language_that_is_not_there_is_refused_before_a_model_is_loaded(folder: Path):
    from posttrain.evals import perplexity

    suite = load_suite(texts_of(folder, {"name": "z", "path": "talk.jsonl", "where": {"lang": "z"}}))
    with pytest.raises(SuiteError, match="none of its 6 rows has lang 'z'"):
        perplexity.define(suite.perplexity[0], suite).check(Path())


def test_a_mean_of_the_suites_choosing_stands_for_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tasks = {"mmlu_anatomy": "a.yaml"}
    monkeypatch.setattr(task_index, "_index", lambda: {"tasks": tasks, "several": {"mmlu": ["mmlu_anatomy"]}})
    path = tmp_path / "mine.yaml"
    path.write_text("tasks: [{task: mmlu}]\ngroups: [{name: mmlu, mean: micro}]\n")
    [group] = load_suite(path).groups
    assert (group.tasks, group.mean) == (["mmlu_anatomy"], "micro")
