"""What DeepSpeed's ZeRO divides over two processes learns what one process learns, resumes, and is saved as it is.

``ZERO=all`` is for every stage under every configuration; `benchmarks/zero.py` writes their table.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from posttrain.evals import checkpoints
from posttrain.recipes import rundir

from . import warm
from .conftest import command, for_cpus, log, needs_deepspeed, stage_recipe

STAGES = ("sft", "dpo", "reward", "classify", "ppo", "distill")
CONFIGS = ("zero1", "zero2", "zero3", "zero3_offload", "zero2 qlora", "zero3 qlora")
TABLE = [(stage, config) for config in CONFIGS for stage in STAGES]
DIAGONAL = [  # each stage and each configuration once
    ("sft", "zero3_offload"),
    ("dpo", "zero2"),
    ("reward", "zero3 qlora"),
    ("classify", "zero1"),
    ("ppo", "zero3"),
    ("distill", "zero2 qlora"),
]
QLORA = {"lora": {"r": 4, "alpha": 8}, "quantization": "nf4"}
FIELDS = {"max_steps": 8, "save_steps": 2, "lr_scheduler_type": "constant"}
MORE: dict[str, dict[str, Any]] = {"ppo": {"critic_learning_rate": 1e-3, "missing_eos_penalty": 0.5, "kl_target": 1.0}}

Recipes = Callable[..., Path]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, other_model_dir: Path) -> Recipes:
    """Returns a function that writes the recipe of a stage into a folder that the whole module shares."""
    root = tmp_path_factory.mktemp("zero")

    def write(stage: str, name: str, *, qlora: bool, rows: int) -> Path:
        folder = root / f"{stage}{' qlora' if qlora else ''}"
        folder.mkdir(exist_ok=True)
        recipe = stage_recipe(stage, folder, model=str(tiny_model_dir), teacher=str(other_model_dir))
        fields = {**recipe["trainer"], **FIELDS, **MORE.get(stage, {}), "per_device_train_batch_size": rows}
        recipe |= {"output_dir": str(folder / name), "trainer": fields, **(QLORA if qlora else {})}
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return write


def curves(run_dir: Path) -> dict[str, list[float]]:
    """Returns what is logged of the loss, and of rewards and their KL where there are any."""
    lines = [line for line in log(run_dir) if "loss" in line]
    found = {name: [line[name] for line in lines if name in line] for name in ("loss", "reward", "kl")}
    return {name: values for name, values in found.items() if values}


def one_process(recipes: Recipes, stage: str, *, qlora: bool) -> Path:
    """Returns the run in one process, which configurations share."""
    recipe = recipes(stage, "one", qlora=qlora, rows=4)
    if not rundir.is_finished(recipe.with_suffix("")):
        result = warm.run("train", recipe)
        assert result.returncode == 0, result.stderr[-3000:]
    return recipe.with_suffix("")


def kill_after_a_save(recipe: Path, config: Path) -> None:
    """Starts a run in two processes and kills both once its first checkpoint is whole."""
    run_dir = recipe.with_suffix("")
    started = [warm.start(command("train", recipe), environment=told) for told in warm.environments_of_two(config)]
    while started[0].is_alive() and checkpoints.read_manifest(run_dir / "checkpoint-2") is None:
        time.sleep(0.005)
    for process in started:
        psutil.Process(process.pid).suspend()  # first, so that neither mourns the other
    for process in started:
        process.kill()
        process.join()
    assert rundir.find_resume(run_dir) is not None
    assert not rundir.is_finished(run_dir), "the run ended before it could be killed"


def furthest(run_dir: Path, other: Path) -> float:
    """Returns the largest difference of a weight in two runs' files, those of their checkpoints and critics too."""
    from safetensors.torch import load_file

    apart = 0.0
    for path in other.rglob("*.safetensors"):
        mine, theirs = load_file(run_dir / path.relative_to(other)), load_file(path)
        assert mine.keys() == theirs.keys()
        apart = max([apart, *((mine[name] - theirs[name]).abs().max().item() for name in mine)])
    return apart


def saved_logits(run_dir: Path, stage: str, base: Path, *, qlora: bool) -> torch.Tensor:
    """Returns what stock transformers and peft make of what a run has saved.

    A merged QLoRA model is another by what quantization rounds; so its adapter is put on the base as it was trained.
    """
    from peft import PeftModel
    from posttrain.recipes.model import keep_linear4bit_unpacked, quantization_config
    from posttrain.recipes.schema import Recipe
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    outputs = {"reward": 1, "classify": 2}.get(stage)
    model_class: Any = AutoModelForSequenceClassification if outputs else AutoModelForCausalLM
    if qlora:
        recipe = Recipe.model_validate(yaml.safe_load(run_dir.with_suffix(".yaml").read_text()))
        options: dict[str, Any] = {"quantization_config": quantization_config(recipe)}
        if outputs:
            options["num_labels"] = outputs
            options["quantization_config"].llm_int8_skip_modules = ["score"]
        model = model_class.from_pretrained(base, **options)
        keep_linear4bit_unpacked(model)
        model = PeftModel.from_pretrained(model, run_dir / "adapter")
    else:
        model = model_class.from_pretrained(run_dir)
    probe = torch.tensor([warm.PROBE])
    with torch.no_grad():
        return model.eval()(input_ids=probe, attention_mask=torch.ones_like(probe)).logits.float()


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("stage", "config"), TABLE if os.environ.get("ZERO") == "all" else DIAGONAL)
def test_two_processes_learn_resume_and_save_what_one_does(
    recipes: Recipes,
    tiny_model_dir: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    stage: str,
    config: str,
) -> None:
    engine, _, adapters = config.partition(" ")
    qlora = bool(adapters)
    one, described = one_process(recipes, stage, qlora=qlora), for_cpus(engine, tmp_path)
    recipe = recipes(stage, f"{engine} whole", qlora=qlora, rows=2)
    whole = recipe.with_suffix("")
    result = warm.run_two("train", recipe, config=described, **{warm.LOGITS: str(tmp_path / "logits")})
    assert result.returncode == 0, result.stderr[-3000:]
    expected, found = curves(one), curves(whole)
    assert expected.keys() == found.keys()
    assert len(found["loss"]) == FIELDS["max_steps"]
    apart = {name: max(abs(a - b) for a, b in zip(expected[name], found[name], strict=True)) for name in expected}
    record_property("loss", apart["loss"])

    held = torch.load(tmp_path / "logits", weights_only=True)
    saved = saved_logits(whole, stage, tiny_model_dir, qlora=qlora)
    record_property("logits", (held - saved).abs().max().item())

    again = recipes(stage, f"{engine} killed", qlora=qlora, rows=2)
    killed = again.with_suffix("")
    kill_after_a_save(again, described)
    result = warm.run_two("train", again, config=described)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "resuming from" in result.stdout
    resumed = furthest(killed, whole)
    record_property("resumed", resumed)

    assert max(apart.values()) < 1e-4, apart
    torch.testing.assert_close(held, saved, atol=2e-6, rtol=1e-5)
    if engine == "zero3_offload":  # DeepSpeed's Adam for CPUs multiplies its betas up, and after a load takes powers
        assert resumed < 1e-5
        assert curves(killed)["loss"] == pytest.approx(curves(whole)["loss"], abs=1e-5)
    else:
        assert resumed == 0.0
        assert log(killed) == log(whole)
