"""What a run shows: what it is about to do before anything heavy is imported, how far it is, what to do next."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from posttrain.recipes import announce
from posttrain.recipes.decisions import trainer_config
from posttrain.recipes.load import load
from posttrain.recipes.train import train

from .conftest import ABSENT

Make = Callable[..., Path]


def test_the_header_needs_no_heavy_import(make_recipe: Make, tiny_model_dir: Path) -> None:
    recipe = make_recipe(max_steps=-1, num_train_epochs=2)
    script = (
        "import sys; from pathlib import Path; from posttrain.recipes.train import header, load\n"
        "print(*header(load(Path(sys.argv[1])), 2), sep='\\n')\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'peft', 'trl', 'pandas'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", script, recipe], capture_output=True, text=True, check=True)
    *lines, heavy = found.stdout.splitlines()
    assert heavy == "[]"
    said = "\n".join(lines)
    assert lines[0] == "sft: run"
    assert f"{tiny_model_dir.name} (llama, " in said
    assert "messages.jsonl: 80 rows" in said
    assert "2 epochs, about 20, of 8 rows each" in said  # of 4 rows in each of two processes
    assert str(recipe.parent / "run") in said


def test_a_run_shows_neither_dictionaries_nor_bars_of_libraries(
    make_recipe: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(max_steps=2, save_strategy="no")
    train(load(recipe))
    out, err = capfd.readouterr()
    assert "{'" not in out
    assert err == ""
    assert out.startswith("sft: run\n")
    assert f"  posttrain chat {recipe.parent / 'run'}" in out
    lines = [json.loads(line) for line in (recipe.parent / "run" / "log.jsonl").read_text().splitlines()]
    assert all(line["tokens_per_second"] > 0 and line["memory_gib"] > 0 for line in lines if "loss" in line)
    assert not any("mfu" in line for line in lines)  # nobody knows what a CPU could do


def test_a_terminal_shows_one_line_and_evaluations_above_it(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(max_steps=2, save_strategy="no", eval_strategy="steps", eval_steps=1)
    recipe.write_text(recipe.read_text().replace("  train:", "  eval: &rows {path: messages.jsonl}\n  train:"))
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    train(load(recipe))
    assert "2/2, loss " in terminal.getvalue()
    assert "evaluating" in terminal.getvalue()
    assert "step 1: eval_loss " in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "said"), [(5, "0:05"), (245.4, "4:05"), (11045, "3:04:05")])
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    from posttrain.recipes.callbacks import clock

    assert clock(seconds) == said


def test_only_a_checkpoint_that_was_saved_to_its_end_stands(make_recipe: Make) -> None:
    recipe = make_recipe(max_steps=4, save_steps=2)
    train(load(recipe))
    run_dir = recipe.parent / "run"
    standing = announce.standing_checkpoint(run_dir)
    assert standing == run_dir / "checkpoint-4"
    (standing / "manifest.json").unlink()
    assert announce.standing_checkpoint(run_dir) == run_dir / "checkpoint-2"


_TAUGHT = {"adapter": {"type": "prefix_tuning", "num_virtual_tokens": 2}}


@pytest.mark.parametrize(
    ("stage", "sections", "said", "checkpointing"),
    [
        ("sft", {}, ABSENT, "on (the default; trainer.gradient_checkpointing: false is faster, and takes more memory)"),
        ("sft", {}, True, "on (as the recipe says)"),
        ("dpo", {}, False, "off (as the recipe says)"),
        ("classify", {}, ABSENT, "off (the default)"),
        ("sft", _TAUGHT, ABSENT, "off (prefix_tuning's tokens stand in a cache, which is not recomputed)"),
    ],
)
def test_a_run_says_what_computes_it_and_why_layers_are_computed_again(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, stage: str, sections: Any, said: Any, checkpointing: str
) -> None:
    loaded = load(make_recipe(stage, sections=sections, gradient_checkpointing=said))
    model = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"))
    loss = "of the head's outputs" if stage == "classify" else "fused with the output layer, in tiles (TRL's)"
    line = announce.kernels(loaded, model, trainer_config(loaded))
    assert line == f"kernels: attention sdpa, loss {loss}; activation checkpointing {checkpointing}"
    monkeypatch.setattr(announce, "find_spec", lambda name: name in ("flash_attn", "liger_kernel"))
    line = announce.kernels(loaded, model, trainer_config(loaded))
    assert "sdpa (flash_attn is installed: model.attn_implementation: flash_attention_2 would use it)" in line
    assert "no liger (it is installed: trainer.use_liger_kernel: true)" in line


def test_kernels_of_the_hub_are_looked_for_again_where_and_as_the_model_trains(
    make_recipe: Make, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fake stands for transformers' search: the package kernels is not installed, and its kernels are for GPUs."""
    from transformers import PreTrainedModel
    from transformers.utils import import_utils

    searched = []

    def fake(self: Any, use_kernels: bool, *_: Any) -> None:
        searched.extend(["training" if self.training else "evaluating"] * use_kernels)
        self._use_kernels = use_kernels

    monkeypatch.setattr(PreTrainedModel, "set_use_kernels", fake)
    monkeypatch.setattr(import_utils, "is_kernels_available", lambda: True)
    model = {"name_or_path": str(tiny_model_dir), "chat_template": "chatml", "use_kernels": True}
    train(load(make_recipe(sections={"model": model}, max_steps=1, save_steps=1)))
    assert searched[:2] == ["evaluating", "training"]
    assert "layers by the Hub's kernels where it has some" in capsys.readouterr().out
