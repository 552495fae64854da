"""What a run records, refuses and tells."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from posttrain.chat_templates.errors import PosttrainError, TemplateError
from posttrain.data_tools.errors import DataError, SpecError
from posttrain.evals import checkpoints
from posttrain.evals.models import load_tokenizer
from posttrain.recipes.errors import RecipeError, RunError
from posttrain.recipes.load import load
from posttrain.recipes.train import main, train

from . import warm
from .conftest import losses


def run(recipe: Path, **sections: object) -> Path:
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), **sections}))
    loaded = load(recipe)
    train(loaded)
    return Path(loaded.recipe.output_dir)


def test_the_record_says_what_was_trained_on_what(make_recipe: Callable[..., Path], tiny_model_dir: Path) -> None:
    run_dir = run(make_recipe())
    record = json.loads((run_dir / "run.json").read_text())
    assert record["data"]["train"]["rows"] == 80
    assert record["data"]["train"]["loss_tokens"] > 80
    assert record["template"]["name"] == "chatml"
    assert record["parent"]["weights_hash"] == checkpoints.weights_hash(tiny_model_dir)
    assert record["versions"]["trl"].startswith("1.16")
    assert record["finished"] is not None
    assert len(losses(run_dir)) == 12


def test_the_final_model_stands_alone(make_recipe: Callable[..., Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_dir = run(make_recipe())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run_dir), AutoTokenizer.from_pretrained(run_dir)
    assert " generation %}" in tokenizer.chat_template
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt"
    )
    assert model.generate(**ids, max_new_tokens=3).shape[1] > ids["input_ids"].shape[1]


def test_a_model_keeps_the_tools_of_its_own_template_whose_marks_are_another_s(
    make_recipe: Callable[..., Path], tmp_path: Path, instruct_model_dir: Path
) -> None:
    from transformers import AutoTokenizer

    shutil.copytree(instruct_model_dir, model := tmp_path / "model")
    file = model / "chat_template.jinja"
    file.write_text(own := "{% if tools %}{{ tools | tojson }}{% endif %}{# tool_calls #}" + file.read_text())
    run_dir = run(make_recipe(sections={"model": {"name_or_path": str(model)}}, max_steps=1))
    saved, fingerprint = load_tokenizer(str(run_dir))
    assert saved.chat_template == AutoTokenizer.from_pretrained(model).chat_template == own
    record = json.loads((run_dir / "run.json").read_text())
    assert record["template"]["name"].startswith("chatml, recognised in the model's own")
    assert record["template"]["fingerprint"] == fingerprint


def test_a_new_model_is_built_from_its_configuration(make_recipe: Callable[..., Path], tiny_model_dir: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    run_dir = run(make_recipe("pretrain"), model={"config": config, "tokenizer": str(tiny_model_dir)})
    saved = json.loads((run_dir / "config.json").read_text())
    assert (saved["hidden_size"], saved["num_hidden_layers"]) == (16, 1)
    assert json.loads((run_dir / "run.json").read_text())["parent"] is None


def test_a_base_model_without_a_pad_token_can_be_trained_on(
    make_recipe: Callable[..., Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "base")
    run_dir = run(make_recipe("pretrain"), model={"name_or_path": "base"})
    saved = AutoTokenizer.from_pretrained(run_dir)
    assert saved.pad_token is not None
    assert saved.pad_token_id != saved.eos_token_id


def test_packed_rows_count_every_token(make_recipe: Callable[..., Path]) -> None:
    run_dir = run(make_recipe("pretrain", max_steps=3))
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    assert [line["num_tokens"] for line in lines if "loss" in line] == [4 * 64, 8 * 64, 12 * 64]


def test_scoring_before_the_first_step_keeps_the_first_weights(
    make_recipe: Callable[..., Path], tmp_path: Path, tiny_model_dir: Path
) -> None:
    (tmp_path / "text.txt").write_text("The quick brown fox.\n")
    (tmp_path / "suite.yaml").write_text("perplexity: [{name: text, path: text.txt}]\n")
    run_dir = run(make_recipe(), score={"suite": "suite.yaml", "every": "checkpoint", "start": True})
    start = checkpoints.read_manifest(run_dir / "checkpoint-0")
    assert start is not None
    assert not start.resumable
    assert start.weights != checkpoints.weights_hash(run_dir)


@pytest.mark.parametrize(
    ("sections", "error", "words"),
    [
        (
            {"model": {"name_or_path": "nobody/nothing", "chat_template": "chatml"}},
            RecipeError,
            "cannot load the model nobody/nothing",
        ),
        ({"data": {"train": {"path": "messages.jsonl", "format": "alpaca"}}}, DataError, "instruction"),
        ({"trainer": {"max_length": 4}}, DataError, "longer than max_length"),
        ({"lora": {"target_modules": ["nope"]}}, SpecError, "nope"),
        ({"trainer": {"save_strategy": "epoch", "load_best_model_at_end": True}}, RecipeError, "trainer: "),
    ],
)
def test_wrong_input_is_one_clear_error(
    make_recipe: Callable[..., Path], sections: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        run(make_recipe(), **sections)


def test_conversations_without_a_template_are_refused(make_recipe: Callable[..., Path], tiny_model_dir: Path) -> None:
    with pytest.raises(PosttrainError, match="template"):
        run(make_recipe(), model={"name_or_path": str(tiny_model_dir)})


def test_a_template_without_generation_marks_is_refused(
    make_recipe: Callable[..., Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "plain.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    model = {"name_or_path": str(tiny_model_dir), "chat_template": "plain.jinja"}
    with pytest.raises(TemplateError, match="generation"):
        run(make_recipe(), model=model)


def test_a_loss_that_is_not_a_number_ends_the_run(
    make_recipe: Callable[..., Path], tmp_path: Path, tiny_model_dir: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    broken = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        broken.state_dict()["model.embed_tokens.weight"].fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "broken")
    with pytest.raises(RunError, match="step 1: the loss is nan"):
        run(make_recipe(), model={"name_or_path": "broken", "chat_template": "chatml"})


@pytest.mark.slow
def test_a_second_process_does_not_write_into_the_same_folder(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    from posttrain.data_tools.files import locked

    recipe = make_recipe()
    with locked(tmp_path / "run" / ".lock"):
        result = warm.run("train", recipe)
    assert result.returncode == 1
    assert "another process is working here" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_the_run_goes_on_later(
    make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    recipe = make_recipe(max_steps=40, save_steps=4)
    target = tmp_path / "run"
    target.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", target], check=False)
    if mounted.returncode != 0:
        pytest.skip("cannot mount a small disk here")
    try:
        full = warm.run("train", recipe)
        assert full.returncode == 1
        assert "Traceback" not in full.stderr
        assert "make room" in full.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", target], check=True)
        again = warm.run("train", recipe)
        assert again.returncode == 0, again.stderr
        assert "resuming from" in again.stdout
    finally:
        subprocess.run(["umount", target], check=True)


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_explained_as_a_full_disk_is(
    make_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    recipe, target = make_recipe(max_steps=4, save_steps=2), tmp_path / "run"
    for kilobytes in (4, 100, 200, 300):  # too small for a record, the weights, the optimizer; enough for all
        result = warm.run("train", recipe, kilobytes=kilobytes)
        print(kilobytes, result.stderr[-300:], sorted(path.name for path in target.rglob("*")))
        assert "Traceback" not in result.stderr
        if result.returncode == 0:
            break
        assert result.returncode == 1
        assert "make room and run the same command again" in result.stderr
    assert result.returncode == 0
    assert checkpoints.verify(target) == []


def test_overrides_may_stand_behind_flags(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    assert main([str(make_recipe()), "--no-score", "trainer.max_steps=1", "trainer.save_steps=1"]) == 0
    assert (tmp_path / "run" / "checkpoint-1").is_dir()


_NOISE = """
import logging, warnings
from posttrain.recipes.launch import quiet_libraries
quiet_libraries()
logging.basicConfig(format="%(message)s")
for words in ("Failed to load CPU gemm_4bit_forward from a hub", "another kernel fails"):
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning(words)
for words in ("Setting accelerator to CPU. No GPU.", "the optimizer fails"):
    logging.getLogger("DeepSpeed").warning(words)
for words in ("`is_gradient_checkpointing` is deprecated and will be removed", "`another` is deprecated"):
    warnings.warn(words, FutureWarning)
"""


def test_only_what_is_known_to_be_harmless_is_silenced() -> None:
    said = subprocess.run([sys.executable, "-c", _NOISE], capture_output=True, text=True, check=True).stderr
    assert not any(words in said for words in ("gemm_4bit", "Setting accelerator", "is_gradient_checkpointing"))
    assert all(words in said for words in ("another kernel fails", "the optimizer fails", "`another` is deprecated"))
