"""Tiny classifiers and reward models, saved as runs leave them."""

import shutil
from pathlib import Path
from typing import Any

import torch
from posttrain.evals.checkpoints import write_manifest

from .conftest import write_run_json


def headed_model(model_dir: Path, outputs: int, *, names: list[str] | None = None, **config: Any) -> Any:
    """A two-layer Llama with a head whose weights are large enough to tell texts apart."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}} if names else {}
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        model_dir, num_labels=outputs, pad_token_id=tokenizer.pad_token_id, **labels, **config
    )
    torch.nn.init.normal_(model.score.weight, std=0.5)
    return model.eval()


def save_run(run: Path, model: Any, model_dir: Path, *, template: str | None = None) -> Path:
    """Saves a model as the final one of a finished run."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
    if template is not None:
        tokenizer.chat_template = template
    if run.exists():
        shutil.rmtree(run)
    model.save_pretrained(run)
    tokenizer.save_pretrained(run)
    write_manifest(run, step=1, resumable=False)
    write_run_json(run, run.name, finished=True)
    return run
