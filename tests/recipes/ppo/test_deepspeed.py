"""What DeepSpeed divides over two processes learns what one process learns, and resumes as it does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .. import warm
from ..conftest import for_cpus, needs_deepspeed
from ..test_resume import WEIGHTS, undo_end
from .test_run import SHARE, critic_of, curve, scorer, with_eval

NAMES = ("loss", "grad_norm", "reward", "kl", "kl_coef", "value_loss", "explained_variance", "entropy", "eval_reward")

pytestmark = [pytest.mark.slow, needs_deepspeed]


def trained(recipe: Path, config: Path | None = None) -> None:
    result = warm.run_two("train", recipe, config=config) if config else warm.run("train", recipe)
    assert result.returncode == 0, result.stderr[-3000:]


ADAPTERS = {"lora": {"r": 4, "alpha": 8}, "critic": {"shared": True}}


TRAINER: dict[str, Any] = {
    "max_steps": 6,
    "save_steps": 4,
    "critic_learning_rate": 0.001,
    "missing_eos_penalty": 0.5,
    "kl_target": 1.0,
    "kl_horizon": 20,
    "eval_strategy": "steps",
    "eval_steps": 3,
}
HALF = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}


def same_ends(run_dir: Path, other: Path) -> bool:
    """Says whether two runs ended with the same policy and the same critic, bit for bit."""
    import torch
    from safetensors.torch import load_file

    pairs = [(load_file(run_dir / WEIGHTS), load_file(other / WEIGHTS)), (critic_of(run_dir), critic_of(other))]
    assert all(mine.keys() == others.keys() for mine, others in pairs)
    return all(torch.equal(mine[name], others[name]) for mine, others in pairs for name in mine)


@pytest.mark.parametrize(("config", "adapters"), [("zero2", False), ("zero3", True)])
def test_two_processes_log_the_metrics_of_one_and_resume_to_the_same_weights(
    make_recipe: Callable[..., Path], tmp_path: Path, tiny_model_dir: Path, config: str, adapters: bool
) -> None:
    from safetensors.torch import load_file

    named = str(scorer(tmp_path / "scorer", tiny_model_dir))
    sections = {"rewards": [{"model": named}, SHARE], **(ADAPTERS if adapters else {"critic": {"name_or_path": named}})}
    one = with_eval(make_recipe("ppo", "one", sections, **TRAINER, per_device_eval_batch_size=4))
    trained(one)
    two = with_eval(make_recipe("ppo", "two", sections, **TRAINER, **HALF))
    trained(two, for_cpus(config, tmp_path))
    expected, found = curve(tmp_path / "one", *NAMES), curve(tmp_path / "two", *NAMES)
    assert [len(values) for values in found] == [len(values) for values in expected]
    for name, values, others in zip(NAMES, found, expected, strict=True):
        assert values == pytest.approx(others, abs=2e-4, rel=2e-3), name
    run_dir = tmp_path / "two"
    assert not any(name.startswith("critic.") for name in load_file(run_dir / WEIGHTS))
    shutil.copytree(run_dir, tmp_path / "whole")
    undo_end(run_dir)
    shutil.rmtree(run_dir / "checkpoint-6")
    trained(two, for_cpus(config, tmp_path))
    assert json.loads((run_dir / "run.json").read_text())["processes"] == 2
    assert curve(run_dir, *NAMES) == found
    assert same_ends(run_dir, tmp_path / "whole")
