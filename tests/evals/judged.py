"""Runs with answers that no model gave: what judges read, without the hours that it takes to make it."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain.data_tools.files import write_atomic
from posttrain.evals.answers import KIND, Answer, to_parquet
from posttrain.evals.generations import define
from posttrain.evals.judging.judgments import Judgment, JudgmentStore
from posttrain.evals.prompt_sets import Prompt
from posttrain.evals.records import Metric, Score, ScoreStore
from posttrain.evals.spec import SuiteSpec
from posttrain.evals.suite_files import load_suite

Say = Callable[[Prompt], str | tuple[str, ...]]

RULE = """
def longer(prompt, answer):
    return float(len(answer))

def count_good(prompt, answer):
    return float(answer.count("good"))

def broken(prompt, answer):
    return 1 / 0
"""


def write_suite(folder: Path, judges: str, *, prompts: int = 8, name: str = "suite") -> Path:
    """Writes a suite with one prompt set, ``chat``, and the given entries of ``judges:``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"p{n}", "prompt": f"Question {n}?", "category": "even" if n % 2 == 0 else "odd"} for n in range(prompts)
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rules.py").write_text(RULE)
    path = folder / f"{name}.yaml"
    path.write_text(f"prompts:\n  - {{name: chat, path: chat.jsonl}}\njudges:\n{judges}")
    return path


def add_answers(
    run: Path, suite: SuiteSpec | Path, say: Say, *, checkpoint: str = "final", step: int | None = None, **record: Any
) -> str:
    """Saves answers to a run folder as ``score`` does; returns the weights hash, which hashes their place."""
    spec = load_suite(suite) if isinstance(suite, Path) else suite
    job = define(spec.prompts[0], spec)
    weights = hashlib.sha256(f"{run.name}/{checkpoint}".encode()).hexdigest()
    score = Score(
        run=run.name,
        run_id="",
        checkpoint=checkpoint,
        step=step,
        weights_hash=weights,
        suite=spec.name,
        suite_version="v",
        task=job.spec.title,
        task_hash=job.task_hash,
        num_fewshot=None,
        metrics=(Metric("answered", 1.0, 0.0, len(job.prompts), True),),
        template_fingerprint=None,
        judge_version=None,
        limit=None,
        versions={},
        seconds=1.0,
        created="2026-11-21T00:00:00+00:00",
        detail={"kind": KIND},
    )
    run.mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text(json.dumps({"name": run.name, **record}))
    write_atomic(run / score.samples_name, to_parquet([_answer(prompt, say(prompt)) for prompt in job.prompts]))
    assert ScoreStore(run).append(score)
    return weights


def _answer(prompt: Prompt, said: str | tuple[str, ...]) -> Answer:
    texts = (said,) if isinstance(said, str) else said
    finish = ("stop",) * len(texts)
    refs = prompt.references
    return Answer(prompt.id, prompt.key, prompt.category, prompt.turns, refs, 0, texts, texts, finish, 5, 5, 0.1)


def judgments(*runs: Path) -> list[Judgment]:
    return [judgment for run in runs for judgment in JudgmentStore(run).load()]


def scores(run: Path, task: str) -> list[Score]:
    return [score for score in ScoreStore(run).load() if score.task == task]


def metrics(score: Score) -> Mapping[str, Metric]:
    return {metric.name: metric for metric in score.metrics}
