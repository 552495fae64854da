"""``profile: true`` traces steps, says where their time went, and changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from posttrain.evals import checkpoints
from posttrain.recipes.load import load
from posttrain.recipes.train import train


def test_a_profile_says_where_time_goes_and_changes_nothing(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"max_steps": 5, "save_strategy": "no"}
    plain = make_recipe(name="plain", **options)
    train(load(plain))
    capsys.readouterr()
    train(load(make_recipe(name="traced", sections={"profile": True}, **options)))
    run_dir = plain.parent / "traced"
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("profile: ")]
    assert "forward pass and loss" in said[0]
    shares = [int(word.rstrip("%,")) for word in said[0].split() if "%" in word]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(100, abs=2)
    assert min(shares[:3]) > 0
    assert "aten::" in said[1]
    assert said[:-1] == (run_dir / "profile" / "profile.txt").read_text().splitlines()
    events = json.loads((run_dir / "profile" / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name", "").startswith("Optimizer.step") for event in events) == 3
    assert checkpoints.weights_hash(run_dir) == checkpoints.weights_hash(plain.parent / "plain")


def test_a_run_that_is_too_short_says_so(make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    train(load(make_recipe(sections={"profile": True}, max_steps=4, save_strategy="no")))
    assert "nothing was written, since the run took fewer than 5 steps" in capsys.readouterr().out
