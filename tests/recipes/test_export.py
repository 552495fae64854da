"""A model is written for a server by a command that ends with parity, and what would not be right is refused."""

import json
import sys
from pathlib import Path

import pytest
from posttrain.chat_templates.errors import InputError
from posttrain.evals.parity import PARITY
from posttrain.recipes.cli import app
from posttrain.recipes.errors import RunError
from posttrain.recipes.export import export
from typer.testing import CliRunner

from ..evals import parity_fixtures as planted
from ..evals import tiny_converter

CONVERTER = Path(tiny_converter.__file__)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.make_run(tmp_path_factory.mktemp("export"))


@pytest.mark.parametrize("place", ["", "adapter"])
def test_ollama_gets_a_modelfile_whose_weights_template_and_stops_are_the_models(
    run: Path, tmp_path: Path, place: str
) -> None:
    output = tmp_path / "deep" / "served"
    result = CliRunner().invoke(
        app, ["export", str(run / place), "--to", "ollama", "-o", str(output), "--converter", str(CONVERTER)]
    )
    assert result.exit_code == 0, result.output
    assert "PASS" in result.output
    assert [path.name for path in output.parent.iterdir()] == ["served"]
    assert {path.name for path in output.iterdir()} == {"model.gguf", "Modelfile"}
    text = (output / "Modelfile").read_text()
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "<s>" not in text  # Ollama puts it there


def test_vllm_gets_a_plain_folder_that_names_every_stop(run: Path, tmp_path: Path) -> None:
    copy = planted.copy_run(run, tmp_path / "copy")
    planted.edit(copy / "generation_config.json", lambda value: value.update(eos_token_id=[2]))
    found = export(str(copy), "vllm", tmp_path / "served")
    assert found.passed, found.checks
    names = {path.name for path in (tmp_path / "served").iterdir()}
    wanted = {"model.safetensors", "generation_config.json", "chat_template.jinja", "tokenizer.json", PARITY}
    assert wanted <= names
    assert not {"run.json", "adapter"} & names
    written = json.loads((tmp_path / "served/generation_config.json").read_text())
    assert sorted(written["eos_token_id"]) == [2, 4]


def test_what_would_be_lost_is_refused_and_nothing_is_left(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(folder: Path, match: str, converter: Path = CONVERTER) -> None:
        with pytest.raises((InputError, RunError), match=match):
            export(str(folder), "ollama", tmp_path / "served", converter=converter)
        assert not (tmp_path / "served").exists()

    refused(run, "no converter", tmp_path / "none.py")
    failing = tmp_path / "failing.py"
    failing.write_text("raise NotImplementedError('BPE pre-tokenizer was not recognized - update')")
    refused(run, "how this tokenizer splits text", failing)
    failing.write_text("raise ValueError('the disk is gone')")
    refused(run, "the disk is gone", failing)
    copy = planted.copy_run(run, tmp_path / "copy")
    (copy / "added_tokens.json").write_text('{"<lost>": 9999}')
    refused(copy, "<lost>")
    (copy / "added_tokens.json").unlink()
    (copy / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[-1].content | upper }}")
    refused(copy, "cannot be written as Ollama's")
    (copy / "chat_template.jinja").unlink()
    refused(copy, "converter failed")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    refused(run, "sentencepiece")
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists already"):
        export(str(run), "gguf", tmp_path / "there")
