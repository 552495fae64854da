"""`data score_rows` and `data select`: CPU time beside bare forward passes over the same tokens; scores and choices.

    OMP_NUM_THREADS=1 python benchmarks/row_scores.py MODEL DATA [--rows 60] [--rounds 3]

MODEL is a folder of a causal language model with a chat template; DATA holds ``sft/alpaca/alpaca_5000.json.gz``,
``sft/codealpaca/code_alpaca_2k.json`` and ``sft/gsm8k_train/train.jsonl.gz``. Each tool runs whole, from file to file,
with the model loaded before. The bare pass is ``model(input_ids=…)`` over the token ids that the tool reads, longest
first in batches of as many rows, padded, with nothing done to what comes out (logits; for `select` the last hidden
states). They take turns, and the figure is the median of the rounds' ratios. Prints Markdown.
"""

# Pyright cannot follow the import hook that maps `posttrain.…` to the rooms.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import argparse
import contextlib
import datetime
import gzip
import io
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from posttrain.data_tools.spec import SourceSpec
from posttrain.evals import forward, models
from posttrain.recipes.score_rows import ScoreRows
from posttrain.recipes.select_rows import Select

BATCH = 16
QUERIES = 10


def read_sets(folder: Path, rows: int) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Returns the first rows of three public sets, and later ones of two of them as queries."""
    alpaca = json.loads(gzip.decompress((folder / "sft/alpaca/alpaca_5000.json.gz").read_bytes()))
    code = json.loads((folder / "sft/codealpaca/code_alpaca_2k.json").read_text())
    lines = gzip.decompress((folder / "sft/gsm8k_train/train.jsonl.gz").read_bytes()).decode().splitlines()
    said = [json.loads(line) for line in lines]
    sums = [{"prompt": row["question"], "completion": row["answer"]} for row in said]
    pool = {"alpaca": alpaca[:rows], "code": code[:rows], "gsm8k": sums[:rows]}
    return pool, {"gsm8k": sums[1000 : 1000 + QUERIES], "code": code[1000 : 1000 + QUERIES]}


def write(folder: Path, sets: dict[str, list[Any]]) -> list[SourceSpec]:
    """Writes sets as JSON Lines and returns them as sources."""
    folder.mkdir(exist_ok=True)
    for name, rows in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [SourceSpec(path=str(folder / f"{name}.jsonl"), name=name) for name in sets]


def bare(model: Any, rows: Sequence[Sequence[int]]) -> None:
    """Runs a model over rows, longest first, in padded batches, and looks at nothing."""
    ordered = sorted(rows, key=len, reverse=True)
    for at in range(0, len(ordered), BATCH):
        batch = ordered[at : at + BATCH]
        ids = torch.zeros(len(batch), len(batch[0]), dtype=torch.int64)
        for number, row in enumerate(batch):
            ids[number, : len(row)] = torch.as_tensor(row)
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)


def cpu_seconds(act: Callable[[], object]) -> float:
    """Returns the CPU time that something takes, what it prints left aside."""
    begun = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        act()
    return time.process_time() - begun


def recorded(act: Callable[[], object]) -> list[list[int]]:
    """Returns the rows of token ids that a tool gives its model."""
    seen: list[list[int]] = []
    plain = forward.run

    def run(model: Any, rows: Any, *args: Any, **options: Any) -> Any:
        seen.extend(list(row) for row in rows)
        return plain(model, rows, *args, **options)

    with mock.patch.object(forward, "run", run):
        act()
    return seen


def report_of(folder: Path) -> dict[str, Any]:
    """Reads a tool's report: its tables by title."""
    found = json.loads((folder / "report.json").read_text())
    return {table["title"]: table for table in found["tables"]}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    loaded = models.load_model(options.model, device="cpu", dtype="float32")
    name = Path(options.model).name
    print(
        f"{datetime.date.today()}, {platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} thread, "
    )
    print(f"{name} in float32, {options.rows} rows of each set, batches of {BATCH}.\n")
    with (
        tempfile.TemporaryDirectory() as scratch,
        mock.patch.object(models, "load_language_model", return_value=loaded),
    ):
        root = Path(scratch)
        pool, queries = read_sets(options.data, options.rows)
        sources, wanted = write(root / "pool", pool), write(root / "queries", queries)
        common: dict[str, Any] = {"sources": sources, "model": options.model, "batch_size": BATCH}
        count = options.rows
        tools: dict[str, tuple[Any, Any]] = {
            "score_rows, loss": (ScoreRows(**common, scores=["loss"]), loaded.model),
            "score_rows, IFD": (ScoreRows(**common, scores=["loss", "bits_per_byte", "ifd"]), loaded.model),
            "select": (Select(**common, queries=wanted[:1], count=count), loaded.model.base_model),
        }
        print("| tool | tokens | CPU seconds | bare passes | ratio |")
        print("|---|---|---|---|---|")
        for number, (title, (tool, model)) in enumerate(tools.items()):
            rows = recorded(partial(tool.run, root / f"{number}"))
            ratios, spent, plain = [], [], []
            for turn in range(options.rounds):
                spent.append(cpu_seconds(partial(tool.run, root / f"{number}-{turn}")))
                plain.append(cpu_seconds(partial(bare, model, rows)))
                ratios.append(spent[-1] / plain[-1])
            tokens = sum(map(len, rows))
            print(
                f"| {title} | {tokens:,} | {statistics.median(spent):.1f} | {statistics.median(plain):.1f} | "
                f"{statistics.median(ratios):.2f} |",
                flush=True,
            )
        scores = report_of(root / "1")["Scores"]
        print("\n| " + " | ".join(scores["header"]) + " |\n|" + "---|" * len(scores["header"]))
        for row in scores["rows"]:
            print("| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row) + " |")
        print(f"\n| {QUERIES} queries of | rows chosen | of the same set | by chance |\n|---|---|---|---|")
        for task in wanted:
            folder = root / f"select-{task.name}"
            Select(**common, queries=[task], count=count).run(folder)
            kept = sum(1 for _ in (folder / f"{task.name}.jsonl").open())
            chance = len(pool[str(task.name)]) / sum(map(len, pool.values()))
            print(f"| {task.name} | {count} | {kept / count:.0%} | {chance:.0%} |")


if __name__ == "__main__":
    main()
