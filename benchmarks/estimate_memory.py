"""Memory of a training step: what `posttrain check` estimates beside what a process held.

    python benchmarks/estimate_memory.py MODEL_FOLDER... -o measured.json [--settings "full;dpo"]

Each setting is a recipe of its own, trained for two steps (the optimizer's state is there from the first step's end) by
the stage's own trainer in a process of its own, on a CPU, over rows made in code that are as long as `max_length`.
"Measured" is the largest resident memory while it trained (VmHWM of /proc/self/status, reset before the first step),
above what the process held before the model was loaded. By then a tiny model has gone through a step of the same
trainer, so that libraries and their threads are not counted. glibc is told to give freed blocks of 64 KiB and more back
at once (MALLOC_MMAP_THRESHOLD_): by its default, which keeps them, resident memory does not follow what is in use.
"""

import argparse
import ctypes
import gc
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

MIB = 2**20
_TWO_STEPS = {"max_steps": 2, "save_strategy": "no", "report_to": "none"}
_WHOLE = {"gradient_checkpointing": False}
_LORA = {"lora": {"r": 8, "target_modules": "all-linear"}}


def _setting(stage: str, batch: int, length: int, sections: dict[str, Any] | None = None, **trainer: Any) -> Any:
    fields = {"per_device_train_batch_size": batch, "max_length": length, **_WHOLE, **trainer}
    return {"stage": stage, **(sections or {}), "trainer": fields}


def _model(**fields: Any) -> dict[str, Any]:
    return {"model": fields}


# Packed unless the stage is another: `pretrain` packs by default.
SETTINGS: dict[str, Any] = {
    "full": _setting("pretrain", 1, 256, packing=False),
    "full, packed": _setting("pretrain", 2, 512),
    "full, checkpointed": _setting("pretrain", 4, 256, gradient_checkpointing=True),
    "full, accumulated": _setting("pretrain", 1, 256, gradient_accumulation_steps=2),
    "full, eager": _setting("pretrain", 1, 512, _model(attn_implementation="eager"), packing=False),
    "full, bf16 autocast": _setting("pretrain", 2, 256, bf16=True),
    "full, bf16 weights": _setting("pretrain", 2, 256, _model(dtype="bfloat16")),
    "full, Adafactor": _setting("pretrain", 1, 256, optim="adafactor"),
    "sft": _setting("sft", 2, 256),
    "lora": _setting("pretrain", 4, 512, {**_LORA, **_model(dtype="float32")}),
    "lora, checkpointed": _setting(
        "pretrain", 4, 512, {**_LORA, **_model(dtype="float32")}, gradient_checkpointing=True
    ),
    "lora, bf16 base": _setting("pretrain", 2, 256, _LORA),
    "sft, lora, new tokens": _setting("sft", 2, 256, {**_LORA, **_model(dtype="float32", chat_template="phi")}),
    "dpo": _setting("dpo", 1, 256),
    "dpo, lora": _setting("dpo", 2, 256, {**_LORA, **_model(dtype="float32")}),
    "reward": _setting("reward", 2, 256),
    "classify": _setting("classify", 4, 256),
    "kto": _setting("kto", 2, 256),
    "orpo": _setting("orpo", 1, 256),
    "distill": _setting("distill", 2, 256, {"teacher": {"name_or_path": "{model}"}}),
}


def _rows(stage: str, length: int) -> list[dict[str, Any]]:
    """Makes rows that are longer than `length` tokens, of words that repeat."""
    draw = random.Random(0)
    words = ["bridge", "river", "seven", "of", "the", "walks", "yellow", "over", "a", "machine", "reads", "slowly"]

    def text(tokens: int) -> str:
        return " ".join(draw.choice(words) for _ in range(tokens))

    rows = []
    for number in range(16):
        answer = {"role": "assistant", "content": text(2 * length)}
        prompt = {"role": "user", "content": text(8)}
        rows.append(
            {
                "pretrain": {"text": text(2 * length)},
                "sft": {"messages": [prompt, answer]},
                "distill": {"messages": [prompt, answer]},
                "classify": {"text": text(2 * length), "label": ("one", "two")[number % 2]},
                "kto": {"prompt": [prompt], "completion": [answer], "label": number % 2 == 0},
            }.get(stage)
            or {
                "prompt": [prompt],
                "chosen": [answer],
                "rejected": [{"role": "assistant", "content": text(2 * length)}],
            }
        )
    return rows


def recipe_of(name: str, model: Path, folder: Path) -> Path:
    """Writes a setting's recipe and rows into a folder."""
    setting = SETTINGS[name]
    kinds = {"pretrain": "text", "classify": "classification", "kto": "unpaired"}
    kinds |= dict.fromkeys(("sft", "distill"), "messages")
    kind = kinds.get(setting["stage"], "preference")
    data = folder / "rows.jsonl"
    rows = _rows(setting["stage"], setting["trainer"]["max_length"])
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = {} if setting["stage"] in ("pretrain", "classify") else {"chat_template": "chatml"}
    too_long = {} if setting["trainer"].get("packing", True) and setting["stage"] == "pretrain" else "truncate"
    recipe = {
        **setting,
        "model": {"name_or_path": str(model), **template, **setting.get("model", {})},
        "data": {"train": {"path": str(data), "format": kind}} | ({"too_long": too_long} if too_long else {}),
        # The last row of cut texts is shorter than the others, so it is not to be drawn.
        "trainer": {**_TWO_STEPS, **setting["trainer"], "train_sampling_strategy": "sequential"},
        "output_dir": str(folder / "run"),
    }
    if setting["stage"] == "kto":
        del recipe["trainer"]["train_sampling_strategy"]  # shuffles as its estimate of the divergence needs it
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe).replace("{model}", str(model)))
    return path


def _held(field: str) -> int:
    """Reads a field of /proc/self/status, in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, field
    return int(found[1]) * 1024


def estimated(name: str, model: Path, size: dict[str, int] | None) -> dict[str, dict[str, float]]:
    """Estimates a setting: bytes by part at each moment of a step; with parameters as counted in the model."""
    from posttrain.recipes import architectures, estimate, needs
    from posttrain.recipes.load import load

    with tempfile.TemporaryDirectory() as folder:
        loaded = load(recipe_of(name, model, Path(folder)))
    shape = architectures.find(loaded, {})
    assert isinstance(shape, architectures.Architecture), shape
    return estimate.moments(
        needs.setup_of(loaded, shape, estimate.Machine(gpu=False), size and estimate.ModelSize(**size))
    )


def measure(name: str, model: Path) -> dict[str, Any]:
    """Trains a setting in this process; returns the bytes held."""
    from posttrain.recipes import check
    from posttrain.recipes.decisions import decide, trainer_config
    from posttrain.recipes.load import load
    from posttrain.recipes.train import build

    with tempfile.TemporaryDirectory() as folder:
        loaded = load(recipe_of(name, model, Path(folder)))
        ready = decide(loaded, trainer_config(loaded))
        check.rehearse(ready)
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        baseline = _held("VmRSS")
        trainer = build(ready)
        Path("/proc/self/clear_refs").write_text("5")
        before = _held("VmHWM")
        trainer.train()
        return {
            "model": str(model),
            "setting": name,
            "measured": _held("VmHWM") - baseline,
            "loaded": before - baseline,
            "size": asdict(ready.size),
        }


def in_a_process(name: str, model: Path) -> dict[str, Any]:
    """Measures a setting in a process of its own."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--one", name, str(model), "-o", os.devnull]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(found: list[dict[str, Any]]) -> str:
    """Tabulates estimates beside measurements, in MiB."""
    lines = ["| model | setting | rows x tokens | at the | estimated | measured | estimated / measured |"]
    lines.append("|---|---|---|---|--:|--:|--:|")
    for one in found:
        model = Path(one["model"])
        sums = {
            moment: sum(parts.values()) for moment, parts in estimated(one["setting"], model, one.get("size")).items()
        }
        moment = max(sums, key=lambda name: sums[name])
        fields = SETTINGS[one["setting"]]["trainer"]
        size = f"{fields['per_device_train_batch_size']} x {fields['max_length']}"
        lines.append(
            f"| {model.name} | {one['setting']} | {size} | {moment} | {sums[moment] / MIB:,.0f} | "
            f"{one['measured'] / MIB:,.0f} | {sums[moment] / one['measured']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON; what it holds is not measured again")
    parser.add_argument("--settings", help="names, with semicolons between", default=";".join(SETTINGS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.models[0])))
        return
    found: list[dict[str, Any]] = json.loads(options.output.read_text()) if options.output.exists() else []
    known = {(one["model"], one["setting"]) for one in found}
    for model in options.models:
        for name in options.settings.split(";"):
            if (str(model), name) in known:
                continue
            found.append(in_a_process(name, model))
            print(table(found[-1:]).splitlines()[-1], flush=True)
            options.output.write_text(json.dumps(found, indent=1))
    print(table(found))


if __name__ == "__main__":
    main()
