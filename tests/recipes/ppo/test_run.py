"""PPO from a recipe to its checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path

from posttrain.recipes.load import load
from posttrain.recipes.train import train


def run(recipe: Path) -> Path:
    loaded = load(recipe)
    train(loaded)
    return Path(loaded.recipe.output_dir)


def log(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_it_runs(make_recipe: Callable[..., Path]) -> None:
    lines = log(run(make_recipe("ppo")))
    print(lines[0])
    print(lines[-1])
