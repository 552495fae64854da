"""`data synthesize` beside a real `transformers serve`, killed again and again: the same rows, and what they cost.

    OMP_NUM_THREADS=1 python benchmarks/synthesize.py MODEL [--questions 24] [--kills 10] [--budget 20000]

MODEL is a folder of an instruct model, served in float32 on this machine's CPU; needs fastapi and uvicorn. Sums and
words whose letters are to be counted, made here, are asked greedily and verified. One call runs undisturbed; another is
killed (SIGKILL) each time after some more requests, and started again, until it ends. Prints Markdown.
"""

# Pyright cannot follow the import hook that maps `posttrain.…` to the rooms.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import argparse
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain.data_tools.ledger import Record

METHOD = """
description: Answers to sums and to how many letters words have
steps: [{name: reply, prompt: "{{ question }}"}]
output: {prompt: "{{ question }}", completion: "{{ reply }}"}
"""
WORDS = ("apple", "bell", "candle", "flag", "glove", "hat", "lamp", "pear", "ring", "table", "violin", "wheel")


def main() -> None:
    """Serves, asks, kills and compares."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--budget", type=int, default=20_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, serving(given.model) as url:
        folder = Path(scratch)
        (folder / "method.yaml").write_text(METHOD)
        (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions(given.questions)))
        arguments = ["questions.jsonl", "--method", "method.yaml", "--model", str(given.model), "--base-url", url]
        arguments += ["--max-new-tokens", "32", "--budget", f"{{tokens: {given.budget}}}", "--concurrency", "2"]
        arguments += ["--verify", "{verifier: numeric, of: reply, column: answer}"]
        print("| call | kills | requests | unsettled | tokens | rows kept | of |\n|---|---|---|---|---|---|---|")
        kept = []
        for name, kills in (("undisturbed", 0), ("killed", given.kills)):
            done = run(folder, [*arguments, "-o", name], name, kills)
            rows = (folder / name / "rows.jsonl").read_bytes()
            kept.append(rows)
            report = json.loads((folder / name / "report.json").read_text())
            begun = sum(one["count"] for some in report["counts"].values() for one in some)
            record = Record(folder / name / "requests.log", None)
            record.refresh()
            spent, count = record.spent, rows.count(b"\n")
            assert spent.tokens <= given.budget
            print(f"| {name} | {done} | {spent.calls} | {spent.unsettled} | {spent.tokens:,} | {count} | {begun} |")
        print(f"\nThe same rows, byte by byte: {'yes' if kept[0] == kept[1] else 'no'}.")


def questions(number: int) -> list[dict[str, str]]:
    """Returns sums, and every third time a word whose letters are to be counted."""
    rng, rows = random.Random(0), []
    for place in range(number):
        a, b, word = rng.randint(2, 40), rng.randint(2, 9), WORDS[place % len(WORDS)]
        sum_of = {"question": f"What is {a} plus {b}? Answer with the number.", "answer": str(a + b)}
        letters = {
            "question": f"How many letters has the word {word}? Answer with the number.",
            "answer": str(len(word)),
        }
        rows.append(letters if place % 3 == 2 else sum_of)
    return rows


def run(folder: Path, arguments: Sequence[str], name: str, kills: int) -> int:
    """Calls the command until it ends by itself; returns how often it was killed."""
    command = [sys.executable, "-m", "posttrain.recipes.cli", "data", "synthesize", *arguments]
    record, rng, done = folder / name / "requests.log", random.Random(kills), 0
    while True:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        before = lines(record)
        while process.poll() is None:
            if done < kills and lines(record) > before + 1:
                time.sleep(rng.uniform(0, 1.0))
                process.kill()
                done += process.wait() < 0
                break
            time.sleep(0.01)
        else:
            assert process.returncode == 0, process.returncode
            return done


def lines(path: Path) -> int:
    """Counts the lines of a file that may not be there yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serves a model for the length of a ``with`` block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    quiet: dict[str, Any] = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "env": {**os.environ, "HF_HUB_OFFLINE": "1"},
    }
    process = subprocess.Popen(command, **quiet)
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as response:
                if response.status == 200:
                    yield f"http://127.0.0.1:{port}/v1"
                    return
            time.sleep(0.25)
        raise RuntimeError("transformers serve ended before it was ready")
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
