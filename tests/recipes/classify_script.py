"""Trains tiny classifiers with several ways to cut up a step, in this process or as one of several; prints the norms.

Usage: classify_script.py OUTPUT MODEL
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from posttrain.recipes.classification.losses import row_weights
from posttrain.recipes.classification.rows import ClassifyCollator, ClassifyRows
from posttrain.recipes.classification.trainer import ClassifyConfig, ClassifyTrainer

ROWS, STEP, CLASSES = 22, 8, 3  # three steps an epoch, the last of six rows
PROBLEMS = ("single_label", "multi_label", "regression")


def rows_of(problem: Any, weights: torch.Tensor, teacher: bool) -> ClassifyRows:
    """Makes rows of unequal lengths with labels of unequal frequencies."""
    import datasets

    tokens = datasets.Dataset.from_list(
        [{"input_ids": [5 + (7 * row + place) % 200 for place in range(2 + row % 9)]} for row in range(ROWS)]
    )
    draw = torch.Generator().manual_seed(1)
    labels = {
        "single_label": torch.randint(CLASSES, (ROWS,), generator=draw) * torch.randint(2, (ROWS,), generator=draw),
        "multi_label": torch.randint(2, (ROWS, CLASSES), generator=draw).float(),
        "regression": torch.randn(ROWS, generator=draw) * 3,
    }[problem]
    logits = torch.randn(ROWS, 1 if problem == "regression" else CLASSES, generator=draw)
    return ClassifyRows(tokens, labels, row_weights(problem, labels, weights), logits if teacher else None)


def norms(model_dir: str, problem: Any, accumulation: int, processes: int, *, teacher: bool, folder: Path) -> list[Any]:
    """Trains two epochs and returns loss and gradient norm of each step."""
    from transformers import AutoModelForSequenceClassification, set_seed

    set_seed(0)
    outputs = 1 if problem == "regression" else CLASSES
    model = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=outputs, dtype=torch.float32)
    weights = torch.tensor([0.2, 1.0, 2.5])
    trainer = ClassifyTrainer(
        sources=("rows",),
        problem=problem,
        class_weights=weights if problem == "multi_label" else None,
        model=model,
        args=ClassifyConfig(
            output_dir=str(folder),
            per_device_train_batch_size=STEP // accumulation // processes,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=2,
            learning_rate=1e-3,
            optim="sgd",  # AdamW would turn the rounding of a gradient near zero into a whole step
            label_smoothing_factor=0.1 if problem == "single_label" else 0.0,
            max_grad_norm=1e9,
            logging_steps=1,
            save_strategy="no",
            remove_unused_columns=False,
            use_cpu=True,
            disable_tqdm=True,
            report_to=[],
        ),
        train_dataset=rows_of(problem, weights, teacher),
        data_collator=ClassifyCollator(model.config.pad_token_id),
    )
    trainer.train()
    return [(line["loss"], line["grad_norm"]) for line in trainer.state.log_history if "grad_norm" in line]


def main(output: Path, model_dir: str) -> None:
    """Runs every case; the main process writes what it logged."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    found = {
        f"{problem}{' taught' if teacher else ''}, accumulation {accumulation}": norms(
            model_dir, problem, accumulation, processes, teacher=teacher, folder=output.parent / "out"
        )
        for problem in PROBLEMS
        for teacher in (False, True)
        for accumulation in ((1, 4) if teacher else (1, 2, 4))
    }
    if int(os.environ.get("RANK", "0")) == 0:
        output.write_text(json.dumps({"processes": PartialState().num_processes, "cases": found}))
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
