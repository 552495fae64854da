"""Tasks are found without lm-eval's index, hashed by what decides their result, and read local files."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from posttrain.chat_templates.errors import InputError
from posttrain.evals import definitions, task_index
from posttrain.evals.definitions import build, define, read_table, read_yaml
from posttrain.evals.errors import EvalError, SuiteError
from posttrain.evals.row_changes import RowChange, TypingErrors
from posttrain.evals.spec import SuiteSpec, TaskSpec
from posttrain.evals.suite_files import load_suite, suite_names
from posttrain.evals.task_index import find, lm_eval_folder, members_of

ARC = {
    "id": "1",
    "question": "Which is blue?",
    "choices": {"text": ["sky", "coal"], "label": ["A", "B"]},
    "answerKey": "A",
}


def rows(path: Path, *values: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def suite(task: TaskSpec, **keys: Any) -> SuiteSpec:
    return SuiteSpec(name="s", tasks=[task], **keys)


def task_hash(task: TaskSpec, **keys: Any) -> str:
    return define(task, suite(task, **keys)).task_hash


@pytest.fixture
def own_task(tmp_path: Path) -> Path:
    (tmp_path / "helpers.py").write_text("def target(doc):\n    return doc['answer']\n")
    (tmp_path / "parent.yaml").write_text("output_type: generate_until\ndoc_to_text: '{{prompt}}'\n")
    path = tmp_path / "own.yaml"
    path.write_text(
        "include: parent.yaml\ntask: own\ndataset_path: json\ntest_split: test\n"
        "dataset_kwargs: {data_files: {test: own.jsonl}}\ndoc_to_target: !function helpers.target\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    rows(tmp_path / "own.jsonl", {"prompt": "a", "answer": "b"})
    return path


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("own.yaml", "task: own", "task: own\nrepeats: 2"),
        ("parent.yaml", "{{prompt}}", "{{prompt}}!"),
        ("helpers.py", "doc['answer']", "doc['answer'] + '.'"),
        ("own.jsonl", '"b"', '"c"'),
    ],
)
def test_a_change_in_any_file_of_a_task_makes_it_another_task(own_task: Path, name: str, old: str, new: str):
    before = task_hash(TaskSpec(task=str(own_task)))
    path = own_task.parent / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert task_hash(TaskSpec(task=str(own_task))) != before


@pytest.mark.parametrize(
    "keys",
    [
        {"num_fewshot": 1},
        {"limit": 1},
        {"gen_kwargs": {"max_gen_toks": 5}},
        {"chat": "never"},
        {"overrides": {"repeats": 2}},
    ],
)
def test_another_way_of_asking_makes_it_another_task(own_task: Path, keys: dict[str, Any]):
    assert task_hash(TaskSpec(task=str(own_task))) != task_hash(TaskSpec(task=str(own_task), **keys))


@pytest.mark.parametrize(
    ("keys", "file"),
    [
        ("dataset_path: {folder}/set\n", "set/test.jsonl"),
        ("dataset_path: json\ndataset_kwargs: {{data_dir: {folder}/set}}\n", "set/test.jsonl"),
        ("dataset_path: text\ndataset_kwargs: {{data_files: {{test: '{folder}/set/*.txt'}}}}\n", "set/a.txt"),
    ],
)
def test_files_that_the_data_sets_library_reads_are_part_of_a_task_too(
    own_task: Path, tmp_path: Path, keys: str, file: str
):
    (tmp_path / "set" / ".git").mkdir(parents=True)
    rows(tmp_path / file, {"prompt": "a", "answer": "b"})
    rows(tmp_path / "set" / ".git" / "index", {})
    head, _, tail = own_task.read_text().partition("dataset_path: json\n")
    tail = tail.replace("dataset_kwargs: {data_files: {test: own.jsonl}}\n", "")
    own_task.write_text(head + keys.format(folder=tmp_path) + tail)
    task = TaskSpec(task=str(own_task))
    before = define(task, suite(task))
    assert not before.is_remote
    assert before.needs() == [f"its own files: {tmp_path / file}"]
    rows(tmp_path / "set" / ".git" / "index", {}, {})
    assert task_hash(task) == before.task_hash
    rows(tmp_path / file, {"prompt": "a", "answer": "c"})
    assert task_hash(task) != before.task_hash


def test_what_one_setting_adds_to_a_task_no_other_finds_there(own_task: Path):
    own_task.write_text(own_task.read_text() + "num_fewshot: 0\n")
    overrides = {"generation_kwargs": {"max_gen_toks": 8, "until": ["."]}}
    task = TaskSpec(task=str(own_task), overrides=overrides)
    for _ in range(2):
        built: Any = build(define(task, suite(task)))
        assert built.config.generation_kwargs == {"max_gen_toks": 8, "until": ["."]}
        built.set_config("generation_kwargs", {"num_beams": 4}, update=True)
    assert overrides == {"generation_kwargs": {"max_gen_toks": 8, "until": ["."]}}


def test_the_limit_of_an_answer_has_one_name_and_takes_the_place_of_the_tasks_own():
    limits = [TaskSpec(task="exact_match", gen_kwargs={name: 5}) for name in ("max_gen_toks", "max_new_tokens")]
    assert limits[0] == limits[1]
    with pytest.raises(ValueError, match="names of one limit"):
        TaskSpec(task="exact_match", gen_kwargs={"max_tokens": 5, "max_gen_toks": 6})


def test_a_name_keeps_its_dots():
    assert TaskSpec(task="longproc_countdown_0.5k").title == "longproc_countdown_0.5k"
    assert TaskSpec(task="mine/own.v2.yaml").title == "own.v2"


def test_settings_count_if_they_change_answers(own_task: Path):
    task = TaskSpec(task=str(own_task))
    assert task_hash(task, batch_size=1) == task_hash(task, batch_size=2)
    assert len({task_hash(task), task_hash(task, seed=1), task_hash(task, dtype="float32")}) == 3


def test_comments_and_places_do_not_make_another_task(own_task: Path, tmp_path: Path):
    before = task_hash(TaskSpec(task=str(own_task)))
    own_task.write_text("# a comment\n" + own_task.read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("own.yaml", "parent.yaml", "helpers.py", "own.jsonl"):
        (own_task.parent / name).rename(moved / name)
    assert task_hash(TaskSpec(task=str(moved / "own.yaml"))) == before


def test_a_task_of_ones_own_runs_its_functions_and_finds_its_data_beside_it(own_task: Path):
    task = TaskSpec(task=str(own_task))
    built = build(define(task, suite(task)))
    assert [built.doc_to_target(doc) for doc in built.eval_docs] == ["b"]


def test_a_built_in_reads_local_files_offline(tmp_path: Path):
    path = str(lm_eval_folder() / "tasks" / "arc" / "arc_easy.yaml")
    task = TaskSpec(task=path, data_files={"validation": rows(tmp_path / "arc.jsonl", ARC)})
    built: Any = build(define(task, suite(task)))
    assert len(built.eval_docs) == 1  # the validation file is scored, since there is none for test
    assert built.doc_to_text(built.eval_docs[0]) == "Question: Which is blue?\nAnswer:"
    assert built.doc_to_choice(built.eval_docs[0]) == ["sky", "coal"]


def test_a_changed_file_of_the_same_time_and_size_is_read_afresh(tmp_path: Path):
    import os

    path = tmp_path / "arc.jsonl"
    found = []
    for word in ("sky", "sea"):
        rows(path, ARC | {"question": word})
        os.utime(path, (0, 0))
        task = TaskSpec(task=str(lm_eval_folder() / "tasks/arc/arc_easy.yaml"), data_files={"test": str(path)})
        found.append(build(define(task, suite(task))).eval_docs[0]["question"])
    assert found == ["sky", "sea"]


def test_worked_examples_never_hold_the_scored_document(tmp_path: Path):
    docs = [{"prompt": f"question {i}", "answer": f"answer {i}"} for i in range(3)]
    task = TaskSpec(task="exact_match", data_files={"test": rows(tmp_path / "p.jsonl", *docs)}, num_fewshot=2)
    built: Any = build(define(task, suite(task)))
    built.set_fewshot_seed(0)
    for index, doc in enumerate(built.eval_docs):
        prompt = built.fewshot_context(doc, 2)
        assert f"answer {index}" not in prompt
        assert prompt.count("answer") == 2


SHUFFLED = "import random\ndef docs(rows):\n    return rows.map(lambda row: {'order': random.random()})\n"


@pytest.mark.parametrize(
    "keys",
    [
        "validation_split: rows\nfewshot_split: rows\n",
        "validation_split: rows\nfewshot_config: {split: rows}\n",
        "test_split: rows\ntraining_split: rows\n",
        "validation_split: rows\ntraining_split: rows\nprocess_docs: !function own_docs.docs\n",  # as lm-eval's GPQA
    ],
)
@pytest.mark.parametrize("change", [None, RowChange(seed=1, how=TypingErrors(column="prompt", rate=1.0))])
def test_no_item_stands_among_its_own_examples_whatever_split_they_come_from(
    tmp_path: Path, keys: str, change: RowChange | None
):
    docs = [{"prompt": f"what is called number {i}", "answer": f"answer {i}"} for i in range(4)]
    rows(tmp_path / "rows.jsonl", *docs)
    (tmp_path / "own_docs.py").write_text(SHUFFLED)
    path = tmp_path / "own.yaml"
    path.write_text(
        f"task: own\ndataset_path: json\ndataset_kwargs: {{data_files: {{rows: rows.jsonl}}}}\n{keys}num_fewshot: 3\n"
        "doc_to_text: '{{prompt}}'\ndoc_to_target: '{{answer}}'\nmetric_list: [{metric: exact_match}]\n"
    )
    task = TaskSpec(task=str(path), change=change)
    built: Any = build(define(task, suite(task)))
    built.set_fewshot_seed(0)
    for doc in built.task_docs:
        prompt = built.fewshot_context(doc, 3)
        shown = {other["answer"] for other in docs if other["answer"] in prompt}
        assert shown == {other["answer"] for other in docs} - {doc["answer"]}


def test_a_copy_of_a_task_without_its_module_says_what_to_do(tmp_path: Path):
    rows(tmp_path / "rows.jsonl", {"prompt": "1", "answer": "2"})
    copy = tmp_path / "copy.yaml"
    copy.write_text(find("exact_match").read_text())
    task = TaskSpec(task=str(copy), data_files={"test": str(tmp_path / "rows.jsonl")})
    with pytest.raises(SuiteError, match=r"module is not here: .*'answers'.*`include:` the YAML"):
        build(define(task, suite(task)))
    copy.write_text(f"include: {find('exact_match')}\ntask: mine\n")
    assert build(define(task, suite(task))).doc_to_target({"answer": "2"}) == "2"


def test_examples_are_rows_to_validate_on_where_there_are_none_to_train_on(tmp_path: Path):
    for split in ("test", "validation"):
        rows(tmp_path / f"{split}.jsonl", *({"prompt": f"{split} {n}", "answer": f"of {split}"} for n in range(3)))
    path = tmp_path / "own.yaml"
    path.write_text(
        "task: own\ndataset_path: json\n"
        "dataset_kwargs: {data_files: {test: test.jsonl, validation: validation.jsonl}}\n"
        "test_split: test\nvalidation_split: validation\nnum_fewshot: 2\n"
        "doc_to_text: '{{prompt}}'\ndoc_to_target: '{{answer}}'\nmetric_list: [{metric: exact_match}]\n"
    )
    task = TaskSpec(task=str(path))
    built: Any = build(define(task, suite(task)))
    built.set_fewshot_seed(0)
    assert [doc["prompt"][:4] for doc in built.task_docs] == ["test"] * 3
    assert built.fewshot_context(built.task_docs[0], 2).count("of validation") == 2


def test_worked_examples_are_asked_for_even_where_the_task_says_none(own_task: Path):
    own_task.write_text(own_task.read_text() + "num_fewshot: 0\n")
    task = TaskSpec(task=str(own_task), num_fewshot=3)
    assert build(define(task, suite(task))).config.num_fewshot == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data_files": {"tset": "x"}}, "did you mean 'test'"),
        ({"data_files": {"training": "x"}}, "no split 'training'"),
        ({"data_files": {"train": "x"}}, "no split to score.*'test'"),
        ({"overrides": {"doc_to_txt": "x"}}, "did you mean 'doc_to_text'"),
        ({"overrides": {"task": "x"}}, "cannot set 'task'"),
        ({"gen_kwargs": {"max_gen_tok": 5}}, "did you mean 'max_gen_toks'"),
        ({"overrides": {"generation_kwargs": {"num_beam": 2}}}, "did you mean 'num_beams'"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(tmp_path: Path, keys: dict[str, Any], message: str):
    if "data_files" in keys:
        keys = {"data_files": {split: rows(tmp_path / "x.jsonl", {"a": 1}) for split in keys["data_files"]}}
    with pytest.raises(SuiteError, match=message):
        task_hash(TaskSpec(task="exact_match", **keys))


def test_a_group_is_refused(tmp_path: Path):
    path = tmp_path / "group.yaml"
    path.write_text("group: g\ntask: [a, b]\n")
    with pytest.raises(SuiteError, match="groups are refused"):
        task_hash(TaskSpec(task=str(path)))


@pytest.mark.parametrize("text", ["- a\n", "a: [", "include: self.yaml\n"])
def test_a_file_that_is_no_task_is_one_clear_error(tmp_path: Path, text: str):
    path = tmp_path / "self.yaml"
    path.write_text(text)
    with pytest.raises(SuiteError, match=r"self\.yaml"):
        read_yaml(path)


def test_tables_keep_keys_that_the_first_row_lacks(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    rows(path, {"a": 1}, {"a": 2, "b": {"c": ["x"]}})
    assert read_table(path).to_list() == [{"a": 1, "b": None}, {"a": 2, "b": {"c": ["x"]}}]


@pytest.mark.parametrize("text", ["", '{"a": 1}\nnot json\n', '{"a": 1}\n{"a": "x"}\n', "[1, 2]"])
def test_unreadable_data_is_one_clear_error(tmp_path: Path, text: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=r"rows\.jsonl"):
        read_table(path)


def test_a_data_set_that_is_not_here_is_refused_offline():
    task = TaskSpec(task=str(lm_eval_folder() / "tasks/arc/arc_easy.yaml"))
    with pytest.raises(EvalError, match="data_files"):
        build(define(task, suite(task)))


@pytest.mark.slow
def test_the_index_is_built_once_and_knows_groups_tags_and_every_task_of_our_suites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find("arc_easy") == lm_eval_folder() / "tasks" / "arc" / "arc_easy.yaml"
    monkeypatch.setattr(task_index, "_scan", lambda: pytest.fail("scanned again"))
    with pytest.raises(SuiteError, match=r"stands for \d+ tasks"):
        find("mmlu")
    with pytest.raises(SuiteError, match="did you mean 'hellaswag'"):
        find("helaswag")
    for group in ("mmlu", "mmlu_continuation"):  # of groups of tags; the second writes its groups inside itself
        members = members_of(group)
        assert len(members) == len(set(members)) == 57
        assert all(find(member).is_file() for member in members)
    assert members_of("arc_easy") == []
    for name in set(suite_names()) - {"perplexity"}:
        coming = load_suite(name)
        assert coming.name == name
        assert all(define(task, coming).path.is_file() for task in coming.tasks)


def test_the_private_names_of_lm_eval_are_there():
    from lm_eval import utils
    from lm_eval.tasks._index import Kind, TaskIndex
    from lm_eval.tasks._yaml_loader import load_yaml

    assert list(inspect.signature(utils.apply_template).parameters) == ["template", "doc"]
    assert utils.env.from_string("{{ a }}").render(a=1) == "1"
    assert next(iter(inspect.signature(load_yaml).parameters)) == "path"
    assert "paths" in inspect.signature(TaskIndex.build).parameters
    assert {"TASK", "PY_TASK", "GROUP", "TAG"} <= set(Kind.__members__)
    assert {"doc_to_text", "custom_dataset", "metric_list"} <= definitions._config_keys()
