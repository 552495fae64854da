"""The command line: what it prints, where, and with which exit code."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from posttrain.recipes import check
from posttrain.recipes.load import load
from posttrain.recipes.schema import json_schema
from posttrain.recipes.show import show_rows

from .conftest import posttrain


def test_a_wrong_recipe_is_one_line_a_problem_exit_two_and_no_traceback(make_recipe: Callable[..., Path]) -> None:
    result = posttrain("train", make_recipe(lerning_rate=1.0))
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "trainer.lerning_rate: unknown key; did you mean 'learning_rate'?" in result.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    result = posttrain("check", tmp_path / "none.yaml")
    assert (result.returncode, result.stderr) == (
        2,
        f"{tmp_path / 'none.yaml'}: cannot read: No such file or directory\n",
    )


def test_check_reports_data_template_size_and_cost(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.check_all([make_recipe()], [], {}, read_data=True) == 0
    printed = capsys.readouterr().out
    for words in ("checks passed", "80 of 80 rows", "carry loss", "parameters", "12 steps of 4 rows", "FLOPs"):
        assert words in printed


def test_check_fails_where_training_would(
    make_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "messages.jsonl").unlink(missing_ok=True)
    recipe = make_recipe()
    (tmp_path / "messages.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n' * 9)
    assert check.check_all([recipe], [], {}, read_data=True) == 2
    assert "9 of 9 rows cannot be used" in capsys.readouterr().err


def test_show_marks_the_tokens_that_carry_loss(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    show_rows(load(make_recipe()), split="train", rows=2)
    printed = capsys.readouterr().out
    assert printed.count("⟦It is ") == 2
    assert printed.count("<|im_end|>⟧") == 2
    assert "⟦What" not in printed


@pytest.mark.parametrize(
    ("stage", "shown"),
    [
        ("dpo", ["chosen: ⟦It is ", "rejected: ⟦No idea", "<|im_start|>user\nWhat is "]),
        ("kto", ["label True", "completion: ⟦It is ", "completion: ⟦No idea", "<|im_start|>user\nWhat is "]),
        ("grpo", ["answer '", "<|im_end|>\n<|im_start|>assistant\n"]),
        ("classify", ["label 1", "label 0", "⟦What is ", "⟦It is "]),
    ],
)
def test_show_prints_every_kind_of_row(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str], stage: str, shown: list[str]
) -> None:
    show_rows(load(make_recipe(stage)), split="train", rows=20)
    printed = capsys.readouterr().out
    for words in shown:
        assert words in printed


@pytest.mark.parametrize(
    ("stage", "words"),
    [("dpo", "in answers"), ("kto", "in answers"), ("grpo", "tokens in prompts"), ("classify", "tok")],
)
def test_check_counts_the_tokens_of_every_kind_of_row(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str], stage: str, words: str
) -> None:
    assert check.check_all([make_recipe(stage)], [], {}, read_data=True) == 0
    printed = capsys.readouterr().out
    assert "80 of 80 rows" in printed
    assert words in next(line for line in printed.splitlines() if "data.train" in line)


def test_the_json_schema_knows_our_keys_and_the_trainers(make_recipe: Callable[..., Path]) -> None:
    schema = json.loads(json_schema())
    assert schema["additionalProperties"] is False
    trainer = schema["properties"]["trainer"]["properties"]
    assert trainer["learning_rate"]["type"] == ["integer", "number"]
    assert "cosine" in trainer["lr_scheduler_type"]["enum"]
    assert "output_dir" not in trainer


def test_suites_and_judges_have_a_json_schema_that_says_what_each_key_is() -> None:
    suite, judge = (json.loads(json_schema(of)) for of in ("suite", "judge"))
    assert suite["additionalProperties"] is judge["additionalProperties"] is False
    models = [suite, judge, *suite["$defs"].values(), *judge["$defs"].values()]
    bare = [key for model in models for key, entry in model.get("properties", {}).items() if "description" not in entry]
    assert set(bare) <= {"name", "split", "subset", "revision", "text", "columns", "sample_by", "limit", "budget"}
    assert suite["required"] == []


def test_the_json_schema_knows_ranges_and_words_by_stage() -> None:
    schema = json.loads(json_schema())
    trainer = schema["properties"]["trainer"]["properties"]
    assert (trainer["adam_beta2"]["minimum"], trainer["adam_beta2"]["exclusiveMaximum"]) == (0, 1)
    then = {
        rule["if"]["properties"]["stage"]["const"]: rule["then"]["properties"]["trainer"] for rule in schema["allOf"]
    }
    assert trainer["packing_strategy"] == {} or "enum" in trainer["packing_strategy"]
    assert "dapo" in then["grpo"]["properties"]["loss_type"]["enum"]
    assert then["dpo"]["properties"]["beta"]["exclusiveMinimum"] == 0
    assert then["ppo"]["properties"]["epsilon"] is False
