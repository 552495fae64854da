"""Gradients that are accumulated over small batches are those of one large batch, and so are held-out losses."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from posttrain.recipes.decisions import decide, trainer_config
from posttrain.recipes.load import load
from posttrain.recipes.train import build, train

from .conftest import EVERY_RECIPE


def logged(recipe: Path) -> list[tuple[float, float]]:
    """Trains a recipe and returns its losses and gradient norms, step by step."""
    loaded = load(recipe)
    train(loaded)
    lines = [json.loads(line) for line in (Path(loaded.recipe.output_dir) / "log.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


@pytest.mark.parametrize("stage", sorted(EVERY_RECIPE))
def test_four_small_batches_are_one_large_one(make_recipe: Callable[..., Path], stage: str) -> None:
    steps = {"max_steps": 3, "save_strategy": "no", "max_grad_norm": 1e9}
    large = logged(make_recipe(stage, "large", per_device_train_batch_size=4, **steps))
    small = logged(make_recipe(stage, "small", per_device_train_batch_size=1, gradient_accumulation_steps=4, **steps))
    assert len(large) == 3
    for (loss, norm), (expected_loss, expected_norm) in zip(small, large, strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-4, abs=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-4)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "distill"])
def test_a_held_out_loss_is_that_of_all_tokens_whatever_the_batch(make_recipe: Callable[..., Path], stage: str) -> None:
    """A mean of the batches' means would weigh the tokens of a batch with few of them more."""
    answers = ["It is 5.", " ".join(f"It is {number}." for number in range(12)), "No.", "It is 8, I think."]
    asked = {"role": "user", "content": "What is it?"}
    rows = {
        "text": [{"text": said} for said in answers],
        "messages": [{"messages": [asked, {"role": "assistant", "content": said}]} for said in answers],
    }
    kind, unpacked = ("text", {"packing": False}) if stage == "pretrain" else ("messages", {})
    held_out = make_recipe(stage).parent / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows[kind]))
    given = [f"data.eval={{path: {held_out}, format: {kind}}}", "trainer.eval_strategy=epoch"]
    losses = []
    for size in (1, 3, 4):
        loaded = load(make_recipe(stage, per_device_eval_batch_size=size, max_length=128, **unpacked), given)
        losses.append(build(decide(loaded, trainer_config(loaded))).evaluate()["eval_loss"])
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


FLAT = {"packing": True, "packing_strategy": "bfd", "max_length": 64}


@pytest.mark.parametrize(
    ("stage", "sections", "fields"),
    [("sft", {}, {}), ("distill", {"top_k": 4}, {}), ("sft", {}, FLAT), ("distill", {"top_k": 4}, FLAT)],
)
def test_rows_that_fill_up_the_last_held_out_batch_of_all_processes_do_not_count(
    make_recipe: Callable[..., Path],
    other_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    sections: dict[str, Any],
    fields: dict[str, Any],
) -> None:
    """accelerate gives all processes as many rows, and repeats the first ones for that."""
    monkeypatch.setattr("posttrain.recipes.apart.VARLEN", ("sdpa",))  # whose packed rows lie end to end
    teacher = {"teacher": {"name_or_path": str(other_model_dir), **sections}} if sections else {}
    loaded = load(make_recipe(stage, sections=teacher, **fields))
    trainer = build(decide(loaded, trainer_config(loaded)))
    state = SimpleNamespace(end_of_dataloader=True, remainder=2)
    monkeypatch.setattr(trainer.accelerator, "gradient_state", state)
    rows, sums = [trainer.train_dataset[number] for number in range(3)], []
    for given in (rows[:2], rows):
        trainer._held_out = torch.zeros(())
        trainer.prediction_step(trainer.model, trainer.data_collator(given))
        sums.append(trainer._held_out.tolist())
    assert sums[1] == pytest.approx(sums[0], rel=1e-5)


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated")
def test_a_smoothed_held_out_loss_is_a_number_where_a_process_has_filling_alone(
    make_recipe: Callable[..., Path],
) -> None:
    loaded = load(make_recipe("sft", label_smoothing_factor=0.1))
    trainer: Any = build(decide(loaded, trainer_config(loaded)))
    batch = trainer.data_collator([trainer.train_dataset[0]])
    sums = trainer.held_out_sums(trainer.model, {**batch, "labels": torch.full_like(batch["labels"], -100)})
    assert sums.tolist() == [0, 0]
