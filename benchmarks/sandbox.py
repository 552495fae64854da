"""The sandbox on programs that are known to be right, and on attacks.

    python benchmarks/sandbox.py --data benchmarks-folder > benchmarks/sandbox.md

``--data`` holds ``humaneval/HumanEval.jsonl.gz`` and ``mbpp/mbpp.jsonl`` as their authors publish them. Every
own solution goes through the code that scores the tasks `humaneval` and `mbpp`, and must pass.
"""

import argparse
import gzip
import importlib.util
import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain.data_tools.sandbox import Limits, find_sandbox
from posttrain.evals.task_index import TASKS

ATTACKS = {
    "fork bomb": "import os\nwhile True:\n    if os.fork() == 0:\n        while True: pass",
    "endless loop": "while True: pass",
    "memory bomb, one process": "x = 'a' * (1 << 33)",
    "memory bomb, eight processes": "import os, time\nfor _ in range(8):\n    if os.fork() == 0: break\n"
    "x = bytearray(b'a') * (600 << 20)\ntime.sleep(9)",
    "network": "import socket\nsocket.create_connection(('1.1.1.1', 80), 2)",
    "write outside": "open('/usr/planted', 'w')",
    "reading the home folder": f"import os\nos.listdir({str(Path.home())!r})",
    "output flood": "while True: print('x' * 1000)",
    "killing its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(1, signal.SIGKILL)",
}


def main() -> None:
    """Runs all and prints a page of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    sandbox, tasks = find_sandbox(), code_tasks()
    user = "root" if sandbox.as_root else "an ordinary user"
    print("# The sandbox\n")
    print(f"`python benchmarks/sandbox.py --data …`, {datetime.now(UTC):%Y-%m-%d}: {sandbox.walls}, as {user}, Python")
    print(
        f"{platform.python_version()}, {args.workers} programs at a time on {os.cpu_count()} cores that were shared.\n"
    )
    print("| own solutions | pass | programs a minute (wall) |")
    print("|---|---|---|")
    with gzip.open(args.data / "humaneval/HumanEval.jsonl.gz", "rt") as file:
        functions = [json.loads(line) for line in file]
    programs = [row["prompt"] + row["canonical_solution"] for row in functions]
    print(measured("HumanEval", sandbox, tasks, programs, functions, args.workers), flush=True)
    rows = [json.loads(line) for line in (args.data / "mbpp/mbpp.jsonl").read_text().splitlines()]
    print(measured("MBPP", sandbox, tasks, [row["code"] for row in rows], rows, args.workers), flush=True)
    print("\n| attack | status | reason | seconds |")
    print("|---|---|---|---|")
    for name, program in ATTACKS.items():
        outcome = sandbox.run(program, limits=Limits(wall=10, cpu=2))
        print(f"| {name} | {outcome.status} | {outcome.reason} | {outcome.seconds:.1f} |", flush=True)


def code_tasks() -> ModuleType:
    """Returns the module that the code tasks' definitions name."""
    spec = importlib.util.spec_from_file_location("code_tasks", TASKS / "code_tasks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(
    name: str, sandbox: Any, tasks: ModuleType, programs: list[str], rows: list[dict[str, Any]], workers: int
) -> str:
    """Runs programs with the checks of their rows; returns a line of the table."""
    jobs = [(program, tasks.checks_of(row)) for program, row in zip(programs, rows, strict=True)]
    begun = time.perf_counter()
    outcomes = list(sandbox.run_all(jobs, tasks.LIMITS, workers))
    rate = len(jobs) / (time.perf_counter() - begun) * 60
    passed = sum(outcome.status == "ended" for outcome in outcomes)
    return f"| {name} | {passed} of {len(jobs)} | {rate:,.0f} |"


if __name__ == "__main__":
    main()
