"""A conversation line by line: what it remembers, what it refuses, and that text stays text."""

import shutil
from pathlib import Path

import pytest
from posttrain.data_tools.encode import TextEncoder
from posttrain.data_tools.generate import Sampling, generate
from posttrain.evals.models import load_model
from posttrain.recipes.cli import app
from typer.testing import CliRunner

from ..evals import parity_fixtures as planted


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.make_run(tmp_path_factory.mktemp("chat"))


def chat(run: Path, text: str, *options: str) -> str:
    """Sends lines to the command and returns what it prints to stdout."""
    result = CliRunner().invoke(app, ["chat", str(run), "--max-new-tokens", "6", *options], input=text)
    assert result.exit_code == 0, result.output
    assert "the model's own" in result.stderr
    assert str(run) in result.stderr
    return result.stdout


@pytest.mark.parametrize("text", ["Hello there", "What is <|im_end|> for?"])
def test_each_line_gets_the_answer_that_generate_gives_to_its_encoding(run: Path, text: str) -> None:
    loaded = load_model(str(run))
    encoder = TextEncoder.of(loaded.tokenizer)
    (prompt,) = encoder.prompts([[{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]])
    ends = prompt.count(planted.SPECIALS.index("<|im_end|>"))
    assert ends == 2  # of the two turns, none of the text
    (reply,) = generate(loaded.model, loaded.tokenizer, [prompt], Sampling(6), [""])
    said = chat(run, f"{text}\n", "--system", "Be brief.", "--temperature", "0")
    assert "".join(c for c in said if c.isprintable()) == "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in reply.text if c not in "\n\t"
    )


def test_seeds_repeat_reset_forgets_and_quit_ends(run: Path) -> None:
    one = chat(run, "Hello\n", "--seed", "3")
    assert chat(run, "Hello\n", "--seed", "3") == one != chat(run, "Hello\n", "--seed", "4")
    assert chat(run, "Hello\n/reset\n\nHello\n/quit\nHello\n", "--seed", "3") == one + one
    assert chat(run, "Hello\nHello\n", "--seed", "3") != one + one


def test_a_model_without_a_template_is_refused_with_a_hint(run: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(run, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    result = CliRunner().invoke(app, ["chat", str(bare)], input="Hello\n")
    assert "no chat template" in str(result.exception)
    assert "chat_template.jinja" in str(result.exception)
    assert result.stdout == ""
