"""A student and a teacher whose weights ZeRO-3 divides over two processes: the same losses as in one."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from posttrain.recipes import launch

from . import warm

MISSING = [name for name in ("g++", "ninja") if shutil.which(name) is None]
MISSING += [] if importlib.util.find_spec("deepspeed") else ["deepspeed"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"DeepSpeed on CPUs compiles its collectives: {', '.join(MISSING)} missing"
    ),
]


def curve(run_dir: Path, name: str) -> list[float]:
    lines = map(json.loads, (run_dir / "log.jsonl").read_text().splitlines())
    return [line[name] for line in lines if "loss" in line]


@pytest.mark.parametrize("how", ["teacher", "answers"])
def test_zero3_logs_the_losses_of_one_process(
    make_recipe: Callable[..., Path], tmp_path: Path, tiny_model_dir: Path, other_model_dir: Path, how: str
) -> None:
    config = yaml.safe_load((launch.CONFIGS / "zero3.yaml").read_text())
    (tmp_path / "zero3.yaml").write_text(yaml.safe_dump({**config, "use_cpu": True, "num_processes": 2}))
    teacher = {"name_or_path": str(other_model_dir), **({"top_k": 8} if how == "answers" else {})}
    model = {"name_or_path": str(tiny_model_dir), "chat_template": "chatml", "layers": [1]}
    sections = {"teacher": teacher, "model": model}
    # So few tokens at a time that the two processes have different numbers of chunks.
    fields: dict[str, Any] = {"max_steps": 4, "chunk": 7, "hidden_cosine": 0.5 if how == "teacher" else 0.0}
    one = warm.run("train", make_recipe("distill", "one", sections=sections, **fields))
    assert one.returncode == 0, one.stderr[-3000:]
    fields["per_device_train_batch_size"] = 2
    recipe = make_recipe("distill", "two", sections=sections, **fields)
    two = warm.run_two("train", recipe, config=tmp_path / "zero3.yaml")
    assert two.returncode == 0, two.stderr[-3000:]
    for name in ("loss", "ce", "kl", "grad_norm", *(["cosine"] if how == "teacher" else [])):
        assert curve(tmp_path / "two", name) == pytest.approx(curve(tmp_path / "one", name), rel=1e-4), name
