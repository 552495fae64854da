"""What the tests of reward, DPO, KTO and ORPO share."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from posttrain.recipes.decisions import decide, trainer_config
from posttrain.recipes.load import load
from posttrain.recipes.train import build

from .conftest import run
from .test_resume import undo_end


def built(recipe: Path) -> Any:
    """Builds a recipe's trainer without training."""
    loaded = load(recipe)
    return build(decide(loaded, trainer_config(loaded)))


def first_batch(trainer: Any, rows: int = 4) -> dict[str, Any]:
    """Returns a batch of a trainer's first rows."""
    return trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[number] for number in range(rows)]))


def loss_of(trainer: Any, batch: dict[str, Any] | None = None) -> float:
    """Returns the loss of a batch, by default of the first rows."""
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, dict(batch or first_batch(trainer))))


def logged(run_dir: Path, name: str = "loss") -> list[float]:
    """Returns a figure of the training log, step by step."""
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if "loss" in line]


def resumed(recipe: Path, missing: str = "optimizer.pt") -> Path:
    """Trains a recipe, damages its last checkpoint and trains it again from the one before."""
    run_dir = run(recipe)
    undo_end(run_dir)
    (run_dir / "checkpoint-12" / missing).unlink()
    return run(recipe)


def rows_at(recipe: Path, rows: list[dict[str, Any]], tmp_path: Path, name: str = "rows") -> dict[str, Any]:
    """Writes rows to a file and returns a data section that reads them, whatever share of them is bad."""
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kind = "unpaired" if "kto" in recipe.name else "preference"
    return {"train": {"path": str(path), "format": kind}, "max_bad_share": 0.9}


def close(value: float, expected: float) -> bool:
    """Says whether a loss is the closed form's, to a millionth."""
    return value == pytest.approx(expected, abs=1e-6)
