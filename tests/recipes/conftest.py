"""A small supervised run, in this process or in its own."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from posttrain.recipes import launch

from ..encoders import ENCODERS, save_encoder

ABSENT = object()  # as a trainer field: not in the recipe, for stages that have no such field
_SHARE = f"{Path(__file__).parent / 'reward_functions.py'}:share_of_low_ids"
_SAMPLED = {"max_length": ABSENT, "max_completion_length": 8}

# What a recipe of each stage says beyond what all say; `{model}` and `{teacher}` stand for folders of tiny models.
STAGE_RECIPES: dict[str, dict[str, Any]] = {
    "pretrain": {"kind": "text"},
    "sft": {"kind": "messages", "chat": True},
    "reward": {"kind": "preference", "chat": True},
    "dpo": {"kind": "preference", "chat": True},
    "kto": {"kind": "unpaired", "chat": True},
    "orpo": {"kind": "preference", "chat": True},
    "grpo": {
        "kind": "prompt",
        "chat": True,
        "sections": {"rewards": [{"function": _SHARE}]},
        "trainer": {**_SAMPLED, "num_generations": 2, "beta": 0.05},
    },
    "rloo": {
        "kind": "prompt",
        "chat": True,
        "sections": {"rewards": [{"function": _SHARE}]},
        "trainer": {**_SAMPLED, "num_generations": 2},
    },
    "ppo": {
        "kind": "prompt",
        "chat": True,
        "sections": {"rewards": [{"function": _SHARE}]},
        "trainer": {**_SAMPLED, "num_iterations": 2},
    },
    "classify": {"kind": "classification"},
    "distill": {"kind": "messages", "chat": True, "sections": {"teacher": {"name_or_path": "{teacher}"}}},
    "distill_on_policy": {
        "kind": "prompt",
        "chat": True,
        "sections": {"teacher": {"name_or_path": "{teacher}"}},
        "trainer": _SAMPLED,
    },
}

# Recipes of a stage that is something else by a section of its own.
VARIANTS: dict[str, dict[str, Any]] = {
    f"pretrain mlm {kind}": {
        "stage": "pretrain",
        "kind": "text",
        "sections": {"model": {"name_or_path": f"{{{kind}}}"}, "objective": "mlm"},
        "trainer": {"lr_scheduler_type": "constant"},
    }
    for kind in ENCODERS
}
EVERY_RECIPE = STAGE_RECIPES | VARIANTS


@pytest.fixture(scope="session")
def encoder_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The folder of a tiny encoder of each kind. Do not change them."""
    return {kind: str(save_encoder(tmp_path_factory.mktemp(kind), kind)) for kind in ENCODERS}


@pytest.fixture(scope="session")
def other_model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """The tiny model with other weights: a teacher that its student differs from. Do not change it."""
    return save_teacher(tmp_path_factory.mktemp("teacher"), tiny_model_dir)


def save_teacher(folder: Path, model: Path) -> Path:
    """Saves a model with other weights, wider spread."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    torch.manual_seed(1)
    config: Any = AutoConfig.from_pretrained(model)
    config.initializer_range = 0.3
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


@pytest.fixture
def make_recipe(
    tmp_path: Path, tiny_model_dir: Path, other_model_dir: Path, request: pytest.FixtureRequest
) -> Callable[..., Path]:
    """Returns a function that writes a recipe of 12 steps with a save every 4, changed by its arguments.

    Keyword arguments are trainer fields, but for ``sections``, which replaces whole sections of the recipe.
    """

    def make(stage: str = "sft", name: str = "run", sections: dict[str, Any] | None = None, **trainer: Any) -> Path:
        folders = {"model": str(tiny_model_dir), "teacher": str(other_model_dir)}
        folders |= request.getfixturevalue("encoder_dirs") if stage in VARIANTS else {}
        recipe = stage_recipe(stage, tmp_path, **folders)
        recipe |= {"output_dir": str(tmp_path / name), **(sections or {})}
        if "trainer" not in (sections or {}):
            fields = {**recipe["trainer"], **trainer}
            recipe["trainer"] = {key: value for key, value in fields.items() if value is not ABSENT}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return make


def stage_recipe(stage: str, folder: Path, model: str, teacher: str, **others: str) -> dict[str, Any]:
    """Returns a recipe of a stage as plain values, without an output folder, and writes its rows into a folder."""
    described = EVERY_RECIPE[stage]
    rows = folder / f"{described['kind']}.jsonl"
    rows.write_text("".join(json.dumps(_row(described["kind"], number)) + "\n" for number in range(80)))
    trainer = {
        "max_length": 64,
        "max_steps": 12,
        "save_steps": 4,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.003,
        "gradient_checkpointing": False,
        **described.get("trainer", {}),
    }
    return {
        "stage": described.get("stage", stage),
        "model": {"name_or_path": model} | ({"chat_template": "chatml"} if described.get("chat") else {}),
        "data": {"train": {"path": str(rows), "format": described["kind"]}},
        **filled(described.get("sections", {}), model=model, teacher=teacher, **others),
        "trainer": {key: value for key, value in trainer.items() if value is not ABSENT},
    }


def filled(value: Any, **folders: str) -> Any:
    """Replaces the names of folders in a recipe's sections."""
    if isinstance(value, dict):
        return {key: filled(item, **folders) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, **folders) for item in value]
    return value.format(**folders) if isinstance(value, str) else value


def _row(kind: str, number: int) -> dict[str, Any]:
    question, answer = f"What is {number}+{number + 3}?", f"It is {2 * number + 3}."
    prompt, right = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
    wrong = {"role": "assistant", "content": f"No idea{'!' * (number % 4)}"}
    rows: dict[str, dict[str, Any]] = {
        "text": {"text": f"{question} {answer} " * (1 + number % 5)},
        "messages": {"messages": [prompt, right]},
        "prompt": {"prompt": [prompt], "answer": str(2 * number + 3)},
        "preference": {"prompt": [prompt], "chosen": [right], "rejected": [wrong]},
        "unpaired": {"prompt": [prompt], "completion": [right if number % 2 else wrong], "label": bool(number % 2)},
        "classification": {"text": question if number % 2 else f"{answer} " * (1 + number % 3), "label": number % 2},
    }
    return rows[kind]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps tokenised data out of the user's cache."""
    cache = tmp_path_factory.getbasetemp() / "tokens"
    monkeypatch.setattr("posttrain.recipes.job.cache_dir", lambda: cache)


def command(*arguments: str | Path) -> list[str]:
    """Returns the command line of a posttrain process."""
    return [sys.executable, "-m", "posttrain.recipes.cli", *map(str, arguments)]


MISSING = [name for name in ("g++", "ninja") if shutil.which(name) is None]
MISSING += [] if importlib.util.find_spec("deepspeed") else ["deepspeed"]
needs_deepspeed = pytest.mark.skipif(bool(MISSING), reason=f"DeepSpeed on CPUs needs {', '.join(MISSING)}")


def for_cpus(name: str, folder: Path) -> Path:
    """Writes one of the library's launch configurations for two processes on CPUs."""
    config = yaml.safe_load((launch.CONFIGS / f"{name}.yaml").read_text())
    path = folder / f"{name}_cpu.yaml"
    path.write_text(yaml.safe_dump({**config, "use_cpu": True, "num_processes": 2}))
    return path


def posttrain(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a posttrain command in a process of its own."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)


def run(recipe: Path) -> Path:
    """Trains a recipe in this process and returns its folder."""
    from posttrain.recipes.load import load
    from posttrain.recipes.train import train

    loaded = load(recipe)
    train(loaded)
    return Path(loaded.recipe.output_dir)


def figures(run_dir: Path) -> list[tuple[int, float, float]]:
    """Returns step, loss and gradient norm of each logged step."""
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def losses(run_dir: Path) -> list[float]:
    """Returns the logged training losses, step by step."""
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def log(run_dir: Path) -> list[dict[str, Any]]:
    """Returns the log, wall times and memory aside."""
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    times = ("_runtime", "_per_second", "step_time", "memory_gib")
    return [{key: value for key, value in line.items() if not key.endswith(times)} for line in lines]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many commands were killed and ended all the same as if they had not been."""
    kills = [name for report in terminalreporter.getreports("passed") for name, _ in report.user_properties]
    if "kill" in kills:
        terminalreporter.write_line(f"{kills.count('kill')} kills, each with the same bits in the end")
