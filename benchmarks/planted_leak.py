"""A planted leak on the quickstart's world: is all of it found, and what is the clean score worth?

    python benchmarks/planted_leak.py runs/quickstart OUT [--steps 400]

Fine-tunes the quickstart's pretrained model twice, on its first 4,000 conversations and on these with 5% of the
held-out questions among them, 30 times each: verbatim, in lower case, with other punctuation, with other white space,
in turns. Prints a Markdown table. Exit code 1 says that a planted item was not found, or that the clean score of the
model with the leak lies outside the interval of the one without it.
"""

# Pyright cannot follow the import hook that maps `posttrain.…` to the rooms.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from posttrain.evals.report import build

LIBRARY = Path(__file__).parents[1] / "recipes" / "library" / "quickstart"
ROWS, COPIES, SHARE = 4000, 30, 20  # of 20 items one leaks
WAYS: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    str.lower,
    lambda text: text.replace(",", " ;").replace("?", " !!").replace(".", " -"),
    lambda text: text.replace(" ", "\n  "),
)


def command(*args: object) -> None:
    """Runs posttrain."""
    subprocess.run([sys.executable, "-m", "posttrain.recipes.cli", *map(str, args)], check=True)


def main() -> None:
    """Trains, scores and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quickstart", type=Path, help="the finished quickstart's runs")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    world = args.quickstart.absolute() / "world"
    held_out = [json.loads(line) for line in (world / "heldout" / "all.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (world / "sft.jsonl").read_text().splitlines()[:ROWS]]
    draw = random.Random(0)
    planted = sorted(draw.sample(range(len(held_out)), len(held_out) // SHARE))
    leak = []
    for place, number in enumerate(planted):
        asked, answer = WAYS[place % len(WAYS)](held_out[number]["question"]), held_out[number]["answer"]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        leak += [{"messages": messages}] * COPIES
    leaky = [*rows, *leak]
    draw.shuffle(leaky)
    args.out.mkdir(parents=True, exist_ok=True)
    suite = args.out / "suite.yaml"
    task = {"task": str(LIBRARY / "tasks" / "question.yaml"), "name": "all"}
    task |= {"data_files": {"test": str(world / "heldout" / "all.jsonl")}}
    suite.write_text(json.dumps({"name": "leak", "batch_size": 64, "tasks": [task]}))
    runs = []
    for name, chosen in (("without", rows), ("with", leaky)):
        data = args.out / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in chosen))
        runs.append(args.out / "runs" / name)
        steps = [f"trainer.max_steps={args.steps}", f"trainer.save_steps={args.steps}", "score=null"]
        places = [f"model.name_or_path={args.quickstart / 'pretrain'}", f"data.train.path={data.absolute()}"]
        command("train", LIBRARY / "sft.yaml", *places, *steps, f"output_dir={runs[-1]}")
    command("score", *runs, "--suite", suite, "--final-only")
    board = build(runs)
    whole, clean = board.columns
    figures, found = {}, {}  # by run
    print("| fine-tuned | all, % | clean, % | n | planted found | others found |\n|---|---|---|---|---|---|")
    for row in board.rows:
        name = board.run_of(row).name.removeprefix("sft-")
        told = []
        for column in (whole, clean):
            figure = row.cells[column.id].figures[0]
            assert figure.interval is not None
            told.append(
                f"{100 * figure.value:.1f} ({100 * figure.interval.low:.1f} to {100 * figure.interval.high:.1f})"
            )
        figures[name] = figure
        [entry] = [entry for entry in board.contamination if entry.run == row.run]
        found[name] = {int(item.id.split(":")[0]) for item in entry.touched}
        hits = f"{len(found[name] & set(planted))} of {len(planted)}" if name == "with" else ""
        print(f"| {name} the leak | {' | '.join(told)} | {figure.n} | {hits} | {len(found[name] - set(planted))} |")
    verdicts = {one.verdict for one in board.pairs}
    print(f"\nVerdicts on the page: {', '.join(sorted(verdicts))}.")
    without = figures["without"].interval
    sys.exit(not set(planted) <= found["with"] or not without.low <= figures["with"].value <= without.high)


if __name__ == "__main__":
    main()
