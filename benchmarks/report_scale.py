"""A leaderboard of 200 rows and 60 tasks: seconds to build it, bytes of its page, milliseconds to show and use it.

    python benchmarks/report_scale.py [--rows 200] [--tasks 60] [--items 100] [--chromium /usr/bin/chromium]

Run folders of 10 checkpoints each are written to a temporary folder from a seed, with the items behind every figure,
so that the comparisons are paired as on a real board. Timed are `build` (reading and comparing) and `write` (all
files), in CPU seconds of one thread. Where there is a chromium, a copy of the page with a script that times it (the
policy that forbids such scripts taken out of the copy) says how long loading, sorting, filtering, the change of the
view and scrolling take, each until its frame is painted. Prints Markdown. Exit code 1 says that building and writing
took more than 30 s, or that the page is larger than 2 MB.
"""

# Pyright cannot follow the import hook that maps `posttrain.…` to the rooms.
# pyright: reportMissingImports=false

import argparse
import datetime
import json
import math
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from posttrain.evals.records import parquet
from posttrain.evals.report import build, write

SECONDS, BYTES = 30.0, 2_000_000
CHECKPOINTS = 10  # of a run

# Waits for a painted frame after each action, and asks the layout for a place so that nothing is left to do later.
PROBE = """
addEventListener("load", async () => {
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const timed = async (act) => {
    const start = performance.now();
    act();
    document.body.getBoundingClientRect();
    await frame();
    return performance.now() - start;
  };
  await frame();
  const found = { shown: performance.now() };
  const heads = [...document.querySelectorAll("#board thead .sort")], text = document.getElementById("filter");
  found.sort = await timed(() => heads[heads.length - 1].click());
  const type = (words) => { text.value = words; text.dispatchEvent(new Event("input", { bubbles: true })); };
  found.filter = await timed(() => type("step 40"));
  type("");
  const dense = document.getElementById("dense");
  if (dense) found.view = await timed(() => dense.click());
  const scroller = document.querySelector("#ranking .scroll"), frames = [];
  for (let i = 0; i < 40; i++) frames.push(await timed(() => { scroller.scrollBy(60, 120); scrollBy(0, 120); }));
  frames.sort((a, b) => a - b);
  found.scroll = frames[20]; found.slowest = frames[39];
  found.elements = document.querySelectorAll("*").length;
  document.title = "TIMED " + JSON.stringify(found);
});
"""


def make(root: Path, rows: int, tasks: int, items: int) -> None:
    """Writes run folders; a run is better than the one before it, and a checkpoint than the one before."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, (tasks, items))
    skill = rng.normal(0, 0.3, (rows, tasks)) + np.linspace(-1, 1.5, rows)[:, None]
    for place in range(0, rows, CHECKPOINTS):
        name = f"run-{place // CHECKPOINTS:02d}"
        folder = root / name
        (folder / "samples").mkdir(parents=True)
        recipe = {"stage": "sft", "trainer": {"learning_rate": 1e-5 * (1 + place), "seed": 1}}
        record = {"schema": 1, "name": name, "stage": "sft", "recipe": recipe, "created": f"2026-01-01T00:{place:03d}"}
        (folder / "run.json").write_text(json.dumps(record))
        losses = (f'{{"step": {step}, "loss": {3 + 4 / (1 + step / 50):.4f}}}\n' for step in range(1, 1001))
        (folder / "log.jsonl").write_text("".join(losses))
        lines = []
        for i in range(min(CHECKPOINTS, rows - place)):
            step, weights = 100 * (i + 1), f"{place + i:04d}" * 16
            for task in range(tasks):
                right = rng.random(items) < 1 / (1 + np.exp(hard[task] - skill[place + i, task]))
                lines.append(_score(folder, name, step, weights, f"task_{task:02d}", right))
        (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _score(folder: Path, run: str, step: int, weights: str, task: str, right: np.ndarray) -> dict[str, Any]:
    n, value = len(right), float(right.mean())
    stderr = math.sqrt(value * (1 - value) / (n - 1))
    table = {
        "doc_id": list(range(n)),
        "filter": ["none"] * n,
        "doc": ["{}"] * n,
        "doc_hash": [f"{task}{i}" for i in range(n)],
        "prompt": [f"Question {i} of {task}: which of the two is it, and why would one say so?" for i in range(n)],
        "target": ["1"] * n,
        "options": [[" no", " yes"]] * n,
        "filtered": [json.dumps([[-1.0 - one, False], [-2.0 + 2 * one, False]]) for one in right.astype(float)],
        "metric.acc": right.astype(float).tolist(),
    }
    (folder / "samples" / f"{weights[:12]}-{task}-{task.ljust(8)[:8]}.parquet").write_bytes(parquet(table))
    return {
        "run": run,
        "checkpoint": f"checkpoint-{step}",
        "step": step,
        "weights_hash": weights,
        "suite": "scale",
        "suite_version": "1",
        "task": task,
        "task_hash": task.ljust(8),
        "num_fewshot": 0,
        "metrics": [{"name": "acc", "value": value, "stderr": stderr, "n": n, "higher_is_better": True}],
        "template_fingerprint": None,
        "judge_version": None,
        "limit": None,
        "created": "2026-01-01T00:00:00Z",
    }


def browse(page: Path, chromium: str) -> dict[str, float]:
    """Returns what a browser needed for the page, in milliseconds, and its elements."""
    from playwright.sync_api import sync_playwright

    policy = r'<meta http-equiv="Content-Security-Policy"[^>]*>'
    copy = page.with_name("timed.html")
    copy.write_text(re.sub(policy, "", page.read_text()).replace("</body>", f"<script>{PROBE}</script></body>"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1280, "height": 900})
        shown.goto(copy.as_uri())
        shown.wait_for_function("document.title.startsWith('TIMED ')", timeout=60_000)
        found = json.loads(shown.title().removeprefix("TIMED "))
        browser.close()
    return found


def main() -> int:
    """Makes, builds, writes and shows; prints what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--keep", type=Path, help="write here, and leave it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        if not (root / "runs").exists():
            make(root / "runs", options.rows, options.tasks, options.items)
        start = time.process_time()
        board = build([root / "runs"], title="Scale")
        built = time.process_time()
        page = write(board, root / "board")[0]
        seconds = time.process_time() - start
        size = page.stat().st_size
        print(
            f"{datetime.date.today()}, {len(board.rows)} rows, {len(board.columns)} tasks, {options.items} items each\n"
        )
        print(f"- build {built - start:.1f} s, write {seconds - built + start:.1f} s of CPU time; page {size:,} bytes")
        for notice in board.notices:
            print(f"- notice: {notice.text}")
        if options.chromium:
            found = browse(page, options.chromium)
            print("- browser: " + ", ".join(f"{name} {value:.0f}" for name, value in found.items()))
    return int(seconds > SECONDS or size > BYTES)


if __name__ == "__main__":
    sys.exit(main())
