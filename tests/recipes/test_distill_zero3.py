"""A student and a teacher whose weights ZeRO-3 divides over two processes: the same losses as in one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from . import warm
from .conftest import for_cpus, needs_deepspeed

pytestmark = [pytest.mark.slow, needs_deepspeed]


def curve(run_dir: Path, name: str) -> list[float]:
    lines = map(json.loads, (run_dir / "log.jsonl").read_text().splitlines())
    return [line[name] for line in lines if "loss" in line]


@pytest.mark.parametrize("how", ["teacher", "answers"])
def test_zero3_logs_the_losses_of_one_process(
    make_recipe: Callable[..., Path], tmp_path: Path, tiny_model_dir: Path, other_model_dir: Path, how: str
) -> None:
    teacher = {"name_or_path": str(other_model_dir), **({"top_k": 8} if how == "answers" else {})}
    model = {"name_or_path": str(tiny_model_dir), "chat_template": "chatml", "layers": [1]}
    sections = {"teacher": teacher, "model": model}
    # So few tokens at a time that the two processes have different numbers of chunks.
    fields: dict[str, Any] = {"max_steps": 4, "chunk": 7, "hidden_cosine": 0.5 if how == "teacher" else 0.0}
    one = warm.run("train", make_recipe("distill", "one", sections=sections, **fields))
    assert one.returncode == 0, one.stderr[-3000:]
    fields["per_device_train_batch_size"] = 2
    recipe = make_recipe("distill", "two", sections=sections, **fields)
    two = warm.run_two("train", recipe, config=for_cpus("zero3", tmp_path))
    assert two.returncode == 0, two.stderr[-3000:]
    for name in ("loss", "ce", "kl", "grad_norm", *(["cosine"] if how == "teacher" else [])):
        assert curve(tmp_path / "two", name) == pytest.approx(curve(tmp_path / "one", name), rel=1e-4), name
