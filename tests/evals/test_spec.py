"""A suite file with mistakes names all of them with their lines."""

from pathlib import Path

import pytest
from posttrain.data_tools.errors import SpecError
from posttrain.evals.errors import SuiteError
from posttrain.evals.suite_files import SUITES, check_suite, load_suite, suite_names


def test_every_mistake_has_its_line_and_a_suggestion(tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "chat: sometimes\n"  # 1
        "batch_sise: 4\n"  # 2
        "tasks:\n"
        "  - task: exact_match\n"
        "    num_fewshots: 5\n"  # 5
        "  - {task: a.yaml, limit: 0}\n"  # 6
        "perplexity:\n"
        "  - {name: x}\n"  # 8
    )
    with pytest.raises(SpecError) as caught:
        load_suite(path)
    problems = {int(problem.split(":")[1]): problem for problem in caught.value.problems}
    assert set(problems) == {1, 2, 5, 6, 8}
    assert "'batch_size'" in problems[2]
    assert "'num_fewshot'" in problems[5]
    assert "tasks[1].limit" in problems[6]


def test_a_limit_of_the_command_line_is_one_of_every_section_that_has_items(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    entry = "{name: NAME, path: rows.jsonl, limit: 9}"
    sections = ("perplexity", "pairs", "classification", "prompts")
    text = "tasks: [{task: exact_match}]\nrobustness: [{task: multiple_choice, options: {}}]\n"
    path = tmp_path / "suite.yaml"
    path.write_text(text + "".join(f"{name}: [{entry.replace('NAME', name)}]\n" for name in sections))
    suite = load_suite(path, limit=2)
    assert {item.limit for name in ("tasks", *sections) for item in getattr(suite, name)} == {2}


def test_missing_files_and_names_that_stand_twice_are_found_before_anything_runs(tmp_path: Path):
    path = tmp_path / "suite.yaml"
    path.write_text(
        "tasks:\n"
        "  - {task: nowhere.yaml}\n"
        "  - {task: exact_match, data_files: {test: absent.jsonl}}\n"
        "  - {task: exact_match}\n"
        "perplexity:\n"
        "  - {name: text, path: absent.txt}\n"
        "  - {name: other, path: absent.txt, max_length: 8, stride: 8}\n"
    )
    with pytest.raises(SpecError) as caught:
        load_suite(path)
    lines = [int(problem.split(":")[1]) for problem in caught.value.problems]
    assert sorted(set(lines)) == [2, 3, 4, 6, 7]


def test_paths_are_relative_to_the_suite_file(suite_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    suite = load_suite(suite_file)
    assert suite.name == "toy"
    assert Path(suite.tasks[0].data_files["test"]).is_file()
    assert Path(suite.perplexity[0].path).is_file()


def test_an_unknown_suite_suggests_a_known_one():
    with pytest.raises(SuiteError, match="did you mean 'base'"):
        load_suite("bases")


def test_a_suite_that_scores_nothing_is_refused(tmp_path: Path):
    path = tmp_path / "empty.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(SpecError, match="scores nothing"):
        load_suite(path)


def test_a_suite_of_texts_asks_once_for_their_folder():
    with pytest.raises(
        SpecError, match=r"the files of its 16 texts are not here.*--data-dir names the folder"
    ) as caught:
        load_suite("perplexity")
    assert len(caught.value.problems) == 1


def test_every_suite_that_comes_with_posttrain_loads():
    assert suite_names()
    for name in suite_names():
        check_suite(name, {})
    assert {path.stem for path in SUITES.glob("*.yaml")} == set(suite_names())
