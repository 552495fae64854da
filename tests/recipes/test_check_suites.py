"""``posttrain check`` takes suites, judges and what a pipeline scores, as it takes recipes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from posttrain.evals import task_index
from posttrain.evals.score import score
from posttrain.evals.suite_files import suite_of_tasks
from posttrain.recipes.check import check_all
from posttrain.recipes.cli import app
from typer.testing import CliRunner

ROWS = [{"question": f"Q{n}", "choices": ["a", "b"], "answer": n % 2} for n in range(4)]
LETTERS = (
    "task: letters\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\ndoc_to_text: question\n"
    "doc_to_choice: [A, B]\ndoc_to_target: !function words.target\nmetric_list: [{metric: acc}]\n"
)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "letters.yaml").write_text(LETTERS)
    (tmp_path / "words.py").write_text("import jinja2\n\n\ndef target(doc):\n    return doc['answer']\n")
    path = tmp_path / "mine.yaml"
    path.write_text("tasks: [{task: letters.yaml, data_files: {test: rows.jsonl}}]\ngroups: [{name: all}]\n")
    return path


def checked(capsys: pytest.CaptureFixture[str], *paths: Any, **keys: Any) -> tuple[int, str]:
    code = check_all([Path(path) for path in paths], [], {}, **({"read_data": True} | keys))
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_a_suite_says_what_each_task_needs(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = checked(capsys, suite)
    assert code == 0
    assert f"{suite}: ok (suite mine)" in told
    assert "letters: test from rows.jsonl; package jinja2; always 'A' scores 0.500 on acc" in told
    assert "all: the macro mean of 1 tasks" in told


def test_everything_wrong_with_the_tasks_of_a_suite_is_told_at_once(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (suite.parent / "words.py").write_text("import no_such_package_at_all\ndef target(doc): return 0\n")
    (suite.parent / "bad.jsonl").write_text(json.dumps(ROWS[0] | {"answer": 7}) + "\n")
    entry = "  - {task: multiple_choice, data_files: {test: bad.jsonl}}\n"
    suite.write_text(f"tasks:\n  - {{task: letters.yaml, data_files: {{test: rows.jsonl}}}}\n{entry}")
    code, told = checked(capsys, suite)
    assert code == 2
    assert "letters: needs the package no_such_package_at_all, which is not installed" in told
    assert "bad.jsonl:1" in told
    assert "Traceback" not in told


def test_a_misspelt_key_of_a_suite_is_no_broken_recipe(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite.write_text(suite.read_text() + "chatt: never\n")
    code, told = checked(capsys, suite)
    assert code == 2
    assert "mine.yaml:3: chatt: unknown key; did you mean 'chat'?" in told
    assert "stage" not in told


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("name: s\ntaks: [piqa]\n", ":2: taks: unknown key; did you mean 'tasks'?"),
        ("recipe: r.yaml\namrs: {a: [], b: []}\nseeds: [1, 2]\n", ":2: amrs: unknown key; did you mean 'arms'?"),
        ("output_dir: out\nstpes: []\n", ":2: stpes: unknown key; did you mean 'steps'?"),
        ("output_dir: out\nstgae: sft\n", ":2: stgae: unknown key; did you mean 'stage'?"),
    ],
)
def test_a_file_whose_telling_key_is_misspelt_is_no_file_of_another_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], written: str, said: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(written)
    code, told = checked(capsys, path)
    assert code == 2
    assert f"{path}{said}" in told


def test_a_judge_is_read_and_its_prompt_rendered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "strict"
    folder.mkdir()
    (folder / "judge.yaml").write_text("{kind: pairwise, backend: model}\n")
    (folder / "prompt.jinja").write_text("{{ turns[0] }} {{ answers_first[0] }} {{ answers_second[0] }}")
    code, told = checked(capsys, folder, folder / "judge.yaml", "rating")
    assert code == 0
    assert f"{folder}: ok (pairwise judge)" in told
    assert "rating: ok (rating judge)" in told
    (folder / "prompt.jinja").write_text("{{ answer_first[0] }}")
    code, told = checked(capsys, folder)
    assert code == 2
    assert "does not render" in told
    (folder / "judge.yaml").write_text("{kind: pairwse}\n")
    assert "did you mean 'pairwise'" in checked(capsys, folder)[1]


def test_the_judges_of_a_suite_are_checked_with_it(
    suite: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    (suite.parent / "asked.jsonl").write_text('{"prompt": "Why?"}\n')
    served = "judge: rating, model: big, base_url: 'http://localhost:9/v1', api_key_env: NO_SUCH_KEY"
    prompts = "prompts: [{name: asked, path: asked.jsonl}]\n"
    suite.write_text(f"{prompts}judges: [{{prompts: asked, name: marks, {served}}}]\n")
    code, told = checked(capsys, suite)
    assert code == 0
    assert "marks: rating judge rating asks big at http://localhost:9/v1 about asked; its key is to be in NO_" in told
    lost = "{prompts: asked, judge: pairwise, backend: model, model: ./nowhere, pairs: all}"
    suite.write_text(f"{prompts}judges: [{lost}]\n")
    code, told = checked(capsys, suite)
    assert code == 2
    assert "asked-pairwise: judge pairwise: there is no model" in told


def test_what_a_recipe_scores_is_checked_with_it(
    suite: Path, make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(sections={"score": {"suite": str(suite)}})
    code, told = checked(capsys, recipe, read_data=False)
    assert code == 0
    assert "score: letters: test from rows.jsonl" in told
    (suite.parent / "words.py").write_text("import no_such_package_at_all\ndef target(doc): return 0\n")
    code, told = checked(capsys, recipe, read_data=False)
    assert code == 2
    assert "no_such_package_at_all" in told


def test_what_a_pipeline_scores_is_checked_with_it(
    suite: Path, make_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe()
    path = tmp_path / "pipeline.yaml"
    value = {"steps": [{"name": "sft", "recipe": str(recipe)}], "score": {"suite": str(suite)}, "output_dir": "out"}
    path.write_text(json.dumps(value))
    code, told = checked(capsys, path, read_data=False)
    assert code == 0
    assert "all steps: letters: test from rows.jsonl" in told
    suite.write_text(suite.read_text().replace("rows.jsonl", "no_rows.jsonl"))
    code, told = checked(capsys, path, read_data=False)
    assert code == 2
    assert "no_rows.jsonl" in told
    suite.write_text("tasks: [{task: multiple_choice, data_files: {test: '@sft/rows.jsonl'}}]\n")
    assert "whose files steps have yet to write" in checked(capsys, path, read_data=False)[1]


def test_tasks_on_the_spot(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {"piqa": "piqa/piqa.yaml", "hellaswag": "hellaswag/hellaswag.yaml"}
    monkeypatch.setattr(task_index, "_index", lambda: {"tasks": tasks, "several": {}})
    (tmp_path / "piqa.jsonl").write_text(
        "".join(json.dumps({"goal": "g", "sol1": "a", "sol2": "b", "label": n % 2}) + "\n" for n in range(6))
    )
    (tmp_path / "layout.yaml").write_text("tasks: {piqa: {files: {validation: piqa.jsonl}}}\n")

    def run(*arguments: str) -> Any:
        given = ["score", str(tiny_model_dir), "--data-dir", str(tmp_path), "-o", str(tmp_path / "out"), *arguments]
        return CliRunner().invoke(app, given)

    found = run("--tasks", "piqa", "--limit", "4")
    assert found.exit_code == 0, found.output
    assert "piqa: acc" in found.output
    assert "(n=4," in found.output
    again = score([tiny_model_dir], suite_of_tasks(["piqa"], data_dir=tmp_path, limit=4), output=tmp_path / "out")
    assert again.skipped == 1
    assert "did you mean 'piqa'" in str(run("--tasks", "piqaa").exception)
    assert "does not hold hellaswag" in str(run("--tasks", "piqa,hellaswag").exception)
    assert "give one of them" in str(run("--tasks", "piqa", "--suite", "base").exception)
    assert "a suite says `chat:` itself" in str(run("--suite", "base", "--chat", "never").exception)
