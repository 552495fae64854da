"""An adapter becomes a plain folder by a command, and what cannot be merged is refused."""

from pathlib import Path

import pytest
from posttrain.chat_templates.errors import InputError
from posttrain.evals.parity import PARITY
from posttrain.recipes.cli import app
from posttrain.recipes.merge import merge_to
from typer.testing import CliRunner

from ..evals import parity_fixtures as planted


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.make_run(tmp_path_factory.mktemp("merge"))


@pytest.mark.parametrize("place", ["", "adapter"])
def test_the_command_writes_a_plain_folder_that_is_the_adapter_on_its_base(
    run: Path, tmp_path: Path, place: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output = tmp_path / "deep" / "merged"
    result = CliRunner().invoke(app, ["merge", str(run / place), "-o", str(output)])
    assert result.exit_code == 0, result.output
    assert "PASS" in result.output
    assert [path.name for path in output.parent.iterdir()] == ["merged"]
    names = {path.name for path in output.iterdir()}
    assert {"model.safetensors", "generation_config.json", "chat_template.jinja", "tokenizer.json", PARITY} <= names
    assert "adapter_config.json" not in names
    ids = torch.arange(6, 20)[None]
    mine, theirs = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (output, run))
    with torch.no_grad():
        torch.testing.assert_close(mine(ids).logits, theirs(ids).logits)
    assert mine.generation_config.eos_token_id == [AutoTokenizer.from_pretrained(output).eos_token_id]


def test_a_merge_that_is_another_model_exits_with_1_and_names_the_cause(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.recipes import merge

    whole = merge.write_whole

    def spoil(model: object, tokenizer: object, output: Path) -> None:
        whole(model, tokenizer, output)
        planted.wrong_rope(output)

    monkeypatch.setattr(merge, "write_whole", spoil)
    result = CliRunner().invoke(app, ["merge", str(run), "-o", str(tmp_path / "merged")])
    assert result.exit_code == 1
    assert "cause: wrong RoPE parameters" in result.output


def test_what_cannot_be_merged_is_refused_and_nothing_is_left(run: Path, tmp_path: Path) -> None:
    base = run.parent / "base"
    with pytest.raises(InputError, match="no adapter here"):
        merge_to(str(base), tmp_path / "merged")
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists already"):
        merge_to(str(run), tmp_path / "there")
    copy = planted.copy_run(run, tmp_path / "copy")
    planted.edit(copy / "run.json", lambda value: value.update(recipe={"model": {"layers": [0]}}))
    with pytest.raises(InputError, match=r"model\.layers"):
        merge_to(str(copy), tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "there"]
