"""A command that is killed before any of its changes to files ends, run again, with the same bits."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import STAGE_RECIPES
from .kills import Command, Killer

KILLS = int(os.environ.get("KILLS", "5"))  # of each command; what is shown is taken with 5 and more

SHORT = {"max_steps": 4, "save_steps": 2, "lr_scheduler_type": "constant", "per_device_train_batch_size": 2}
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"r": 2, "alpha": 4}},
    "dora": {"lora": {"r": 2, "alpha": 4, "use_dora": True}},
    "qlora": {"lora": {"r": 2, "alpha": 4}, "quantization": "nf4"},
}


@pytest.fixture
def killer(tmp_path: Path, make_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Killer]:
    """Returns a function that makes a killer of a training run, its token cache included."""

    def make(stage: str, **options: Any) -> Killer:
        recipe = make_recipe(stage, **{**SHORT, **options})
        root = tmp_path / "root"
        (root / "run").mkdir(parents=True)
        monkeypatch.setattr("posttrain.recipes.job.cache_dir", lambda: root / "cache")
        monkeypatch.setattr("posttrain.recipes.stages.sft.cache_dir", lambda: root / "cache")
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        return Killer(Command(root, ["train", recipe, f"output_dir={root / 'run'}"]), scratch)

    return make


def named(runs: Killer, *ends: str) -> list[int]:
    """Returns the last event of each kind, by how its line ends."""
    return [max(n for n, event in enumerate(runs.events, 1) if event.strip().endswith(end)) for end in ends]


def test_a_run_killed_between_its_last_checkpoint_and_its_end_takes_no_step_more(killer: Callable[..., Killer]) -> None:
    runs = killer("sft")
    for at in named(runs, "checkpoint-4/trainer_state.json", "run/log.jsonl", "run/model.safetensors", "run/run.json"):
        runs.kill(at)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", STAGE_RECIPES)
def test_every_stage_ends_with_the_same_bits_wherever_it_was_killed(killer: Callable[..., Killer], stage: str) -> None:
    runs = killer(stage)
    for at in runs.chosen(KILLS):
        runs.kill(at)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_kind_of_adapter_ends_with_the_same_bits(killer: Callable[..., Killer], adapter: str) -> None:
    runs = killer("sft", sections=ADAPTERS[adapter])
    for at in runs.chosen(KILLS):
        runs.kill(at)
