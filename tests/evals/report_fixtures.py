"""Writes run folders as training and scoring leave them."""

import json
import math
from pathlib import Path
from typing import Any

from posttrain.evals.report import Leaderboard, build

EVIL = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>{{ 7*7 }}"


def share(successes: int, n: int, name: str = "acc") -> dict[str, Any]:
    value = successes / n
    stderr = math.sqrt(value * (1 - value) / (n - 1))
    return {"name": name, "value": value, "stderr": stderr, "n": n, "higher_is_better": True}


def score(checkpoint: str, step: int | None, task: str, *metrics: dict[str, Any], **fields: Any) -> dict[str, Any]:
    record = {
        "run": "sft",
        "run_id": "0" * 16,
        "checkpoint": checkpoint,
        "step": step,
        "weights_hash": f"weights of step {step}",
        "suite": "core",
        "suite_version": "v1",
        "task": task,
        "task_hash": f"hash of {task}",
        "num_fewshot": 0,
        "metrics": list(metrics),
        "template_fingerprint": None,
        "judge_version": None,
        "limit": None,
        "versions": {"lm_eval": "0.4.13"},
        "seconds": 1.5,
        "created": "2026-01-01T00:00:00Z",
    }
    return {**record, **fields}


def make_run(
    folder: Path,
    name: str,
    scores: list[dict[str, Any]],
    *,
    parent: dict[str, Any] | None = None,
    stage: str = "sft",
    final: str | None = None,
    losses: int = 0,
    **record: Any,
) -> Path:
    folder.mkdir(parents=True)
    run = {
        "schema": 1,
        "name": name,
        "stage": stage,
        "recipe": {"stage": stage, "trainer": {"seed": 17}},
        "recipe_hash": f"recipe-{name}",
        "data": {"train": {"fingerprint": f"data-{name}", "rows": 10, "dropped": {"too_long": 1}}, "eval": None},
        "template": {"name": "chatml", "fingerprint": "tf"},
        "versions": {"torch": "2.13.0"},
        "git": {"revision": "abc", "dirty": True},
        "parent": parent,
        "processes": 1,
        "created": "2026-01-01T00:00:00Z",
        "finished": None,
        "command": f"posttrain train {name}.yaml",
    }
    (folder / "run.json").write_text(json.dumps({**run, **record}))
    (folder / "scores.jsonl").write_text("".join(json.dumps({**s, "run": name}) + "\n" for s in scores))
    if final is not None:
        files = {"model.safetensors": {"size": 1, "sha256": final}}
        manifest = {"schema": 1, "step": 20, "resumable": False, "files": files, "weights": final}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    if losses:
        (folder / "log.jsonl").write_text("".join(f'{{"step": {i}, "loss": {9 / i}}}\n' for i in range(1, losses + 1)))
    return folder


def board_of(root: Path, *scores: dict[str, Any], **record: Any) -> Leaderboard:
    """The leaderboard of one run."""
    return build([make_run(root / "run", "run", list(scores), **record)])


def lineage(root: Path) -> Path:
    """A pretraining run and its fine-tuned child, two checkpoints each, two tasks."""
    base = [
        score(f"checkpoint-{step}", step, task, share(hits, 200, "acc"), share(hits // 2, 200, "acc_norm"))
        for step, hits in ((10, 60), (20, 80))
        for task in ("arc", "piqa")
    ]
    base = [{**s, "weights_hash": f"base {s['step']}"} for s in base]
    make_run(root / "zz-base", "base", base, stage="pretrain", final="base 20", losses=20)
    tuned = []
    for step, hits in ((5, 150), (20, 160)):
        tuned.append(
            score(f"checkpoint-{step}", step, "arc", share(hits, 200, "acc"), share(hits // 2, 200, "acc_norm"))
        )
        bits = {"name": "bits_per_byte", "value": 2.0 - step / 100, "stderr": 0.01, "n": 9, "higher_is_better": False}
        tuned.append(score(f"checkpoint-{step}", step, "wiki", bits))
    parent = {"name": "base", "path": "runs/zz-base", "weights_hash": "base 20", "recipe_hash": "recipe-base"}
    make_run(root / "aa-tuned", "tuned", tuned, parent=parent, final="weights of step 20", losses=20)
    return root
