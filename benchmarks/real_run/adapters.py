"""Trains three steps of every stage with LoRA on a real model, and loads each adapter as a user of peft would.

For each stage: ``check``, ``show`` and ``train`` end with 0; the adapter file holds what ``check`` counted as trained,
in float32, and nothing else; ``PeftModel.from_pretrained`` on a stock ``AutoModel`` loads every tensor of it.

    python benchmarks/real_run/adapters.py FOLDER_OF_SMOLLM2_135M_INSTRUCT [STAGE ...]

With a file of rows in alpaca's format it trains 30 steps with several kinds of adapters instead, and evaluates before
and after them.

    python benchmarks/real_run/adapters.py FOLDER_OF_SMOLLM2_135M_INSTRUCT --rows alpaca.json [TYPE ...]
"""

import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROWS = 6
ONE_TURN = [{"role": "user", "content": "What is 2 + 3?"}]
REWARD = "def words(completions, **_):\n    return [len(str(answer)) / 100 for answer in completions]\n"
ANSWER = [{"role": "assistant", "content": "It is 5."}]
KINDS: dict[str, dict[str, Any]] = {
    "text": {"text": "Two and three make five. " * 4},
    "messages": {"messages": [*ONE_TURN, *ANSWER]},
    "prompt": {"prompt": ONE_TURN},
    "preference": {"prompt": ONE_TURN, "chosen": ANSWER, "rejected": [{"role": "assistant", "content": "No idea."}]},
    "unpaired": {"prompt": ONE_TURN, "completion": ANSWER, "label": True},
    "classification": {"text": "What is 2 + 3?", "label": 1},
}
SAMPLED = {"max_completion_length": 4}
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "pretrain": ("text", {"packing": False}),
    "sft": ("messages", {}),
    "reward": ("preference", {}),
    "dpo": ("preference", {}),
    "kto": ("unpaired", {}),
    "orpo": ("preference", {}),
    "grpo": ("prompt", {**SAMPLED, "num_generations": 2}),
    "rloo": ("prompt", {**SAMPLED, "num_generations": 2}),
    "ppo": ("prompt", SAMPLED),
    "classify": ("classification", {}),
    "distill": ("messages", {}),
    "distill_on_policy": ("prompt", SAMPLED),
}


def write_recipe(stage: str, model: Path, folder: Path) -> Path:
    """Writes a stage's rows and recipe."""
    kind, fields = STAGES[stage]
    rows = [dict(KINDS[kind]) for _ in range(ROWS)]
    for number, row in enumerate(rows):
        if "label" in row:
            row["label"] = bool(number % 2) if kind == "unpaired" else number % 2
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    template = {} if kind in ("text", "classification") else {"chat_template": "chatml"}
    recipe = {
        "stage": stage,
        "model": {"name_or_path": str(model), **template},
        "lora": {"r": 8, "target_modules": ["q_proj"]},
        "data": {"train": {"path": "rows.jsonl", "format": kind}},
        "trainer": {"max_steps": 3, "save_strategy": "no", "logging_steps": 1, "per_device_train_batch_size": 2}
        | {"gradient_checkpointing": False, "learning_rate": 1.0e-3, "report_to": "none"}
        | ({} if "max_completion_length" in fields else {"max_length": 64})
        | fields,
        "output_dir": str(folder / "run"),
    }
    if stage == "classify":
        recipe["trainer"].pop("max_length")
    if stage in ("grpo", "rloo", "ppo"):
        recipe["rewards"] = [{"function": "reward.py:words"}]
    if stage == "ppo":
        recipe["critic"] = {"shared": True}
    if stage.startswith("distill"):
        recipe["teacher"] = {"name_or_path": str(model)}
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "r.yaml"


def command(*arguments: str | Path) -> str:
    """Runs a posttrain command and returns what it printed.

    Raises:
        RuntimeError: It did not end with 0.
    """
    line = [sys.executable, "-m", "posttrain.recipes.cli", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def load_with_peft(stage: str, model: Path, adapter: Path) -> int:
    """Loads an adapter as any user of peft would; returns how many numbers its file holds.

    Raises:
        RuntimeError: The file holds something else than adapters and a head in float32, or not all of it was loaded.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    tensors = load_file(adapter / "adapter_model.safetensors")
    strange = [name for name, tensor in tensors.items() if tensor.dtype != torch.float32]
    strange += [name for name in tensors if "lora_" not in name and not name.endswith("score.weight")]
    base: Any
    if stage in ("reward", "classify"):
        outputs = 1 if stage == "reward" else 2
        base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=outputs)
    else:
        base = AutoModelForCausalLM.from_pretrained(model)
    loaded = get_peft_model_state_dict(PeftModel.from_pretrained(base, str(adapter)))
    for name, tensor in tensors.items():  # peft holds a head in the type of the base
        strange += [] if torch.equal(loaded[name], tensor.to(loaded[name].dtype)) else [name]
    if strange or loaded.keys() != tensors.keys():
        raise RuntimeError(f"the adapter file is not what was trained: {strange[:3]}")
    return sum(tensor.numel() for tensor in tensors.values())


ADAPTERS: dict[str, tuple[dict[str, Any], float]] = {  # the section, and a learning rate that is usual for it
    "lora": ({"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}, 1e-3),
    "adalora": ({"init_r": 12, "target_r": 8, "tinit": 5, "tfinal": 10, "target_modules": ["q_proj", "v_proj"]}, 1e-3),
    "prefix_tuning": ({"num_virtual_tokens": 16}, 1e-2),
    "p_tuning": ({"num_virtual_tokens": 16, "encoder_hidden_size": 128}, 1e-3),
}


def compare(kind: str, model: Path, rows: Path) -> str:
    """Trains 30 steps with a kind of adapter and returns its row of the table."""
    section, rate = ADAPTERS[kind]
    with tempfile.TemporaryDirectory() as folder:
        read = [row for row in json.loads(rows.read_text()) if len("".join(map(str, row.values()))) < 240]
        for name, part in (("train", read[:200]), ("held_out", read[200:216])):
            (Path(folder) / f"{name}.json").write_text(json.dumps(part))
        recipe = {
            "stage": "sft",
            "model": {"name_or_path": str(model), "chat_template": "chatml"},
            "adapter": {"type": kind, **section},
            "data": {
                "train": {"path": "train.json", "format": "alpaca"},
                "eval": {"path": "held_out.json", "format": "alpaca"},
            },
            "trainer": {"max_steps": 30, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "steps"}
            | {"eval_steps": 30, "eval_on_start": True, "per_device_train_batch_size": 1, "max_length": 128}
            | {"learning_rate": rate, "gradient_checkpointing": False, "report_to": "none"},
            "output_dir": str(Path(folder) / "run"),
        }
        (Path(folder) / "r.yaml").write_text(yaml.safe_dump(recipe))
        command("train", Path(folder) / "r.yaml")
        log = [json.loads(line) for line in (Path(folder) / "run" / "log.jsonl").read_text().splitlines()]
        final = Path(folder) / "run" / ("adapter" if (Path(folder) / "run" / "adapter").is_dir() else "")
        trained = sum(tensor.numel() for tensor in _tensors(final).values())
    held_out = [line["eval_loss"] for line in log if "eval_loss" in line]
    losses = [line["loss"] for line in log if "loss" in line]
    means = [sum(part) / len(part) for part in (losses[:10], losses[10:20], losses[20:])]
    seconds = next(line["train_runtime"] for line in log if "train_runtime" in line) / len(losses)
    curve = ", ".join(f"{mean:.3f}" for mean in means)
    return f"| {kind} | {trained:,} | {curve} | {held_out[0]:.3f}, {held_out[-1]:.3f} | {seconds:.1f} |"


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    name = "adapter_state.safetensors" if (folder / "adapter_state.safetensors").is_file() else None
    tensors = load_file(folder / (name or "adapter_model.safetensors"))
    return {key: tensor for key, tensor in tensors.items() if "/" not in key}


def measure(stage: str, model: Path) -> str:
    """Runs a stage and returns its row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_recipe(stage, model, Path(folder))
        checked = command("check", recipe)
        command("show", recipe)
        start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        command("train", recipe)
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start
        counted = re.search(r"M trained \(([\d,]+)\)", checked)
        stored = load_with_peft(stage, model, Path(folder) / "run" / "adapter")
        if counted is None or int(counted[1].replace(",", "")) != stored:
            raise RuntimeError(f"check counted {counted and counted[1]} trained numbers, the file holds {stored}")
        lines = [json.loads(line) for line in (Path(folder) / "run" / "log.jsonl").read_text().splitlines()]
        losses = [f"{line['loss']:.4g}" for line in lines if "loss" in line]
    return f"| {stage} | {stored:,} | {', '.join(losses)} | {seconds:.0f} |"


if __name__ == "__main__":
    model_folder, *names = sys.argv[1:]
    if names[:1] == ["--rows"]:
        print("| adapter | trained numbers | mean losses of 10 steps | held-out loss before, after | s a step |")
        print("|---|---|---|---|---|", flush=True)
        for name in names[2:] or ADAPTERS:
            print(compare(name, Path(model_folder).resolve(), Path(names[1]).resolve()), flush=True)
        sys.exit()
    print("| stage | numbers in the adapter file | losses | CPU-s of training |\n|---|---|---|---|", flush=True)
    for name in names or STAGES:
        try:
            print(measure(name, Path(model_folder).resolve()), flush=True)
        except RuntimeError as error:
            print(f"| {name} | failed: {error} | | |", flush=True)
