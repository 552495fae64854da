"""Gradients that are accumulated over small batches are those of one large batch, for every stage."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from posttrain.recipes.load import load
from posttrain.recipes.train import train

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
