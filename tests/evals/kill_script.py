"""Scores a run again and again, each time killed by SIGKILL at another point, then once to the end.

Run as ``python kill_script.py RUN SUITE OTHER_RUN``. Imports are paid once: each attempt is a fork. Prints a JSON line
for each attempt: where it was killed, how it ended, and the lines of ``scores.jsonl`` that are whole. At last two
processes score the other run at the same time.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import lm_eval.models.huggingface
import peft  # noqa: F401
import pyarrow.parquet  # noqa: F401
import transformers
from posttrain.data_tools import files
from posttrain.evals import records, score

assert transformers.AutoModelForCausalLM is not None  # resolves what is imported lazily


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(count: int, action: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that acts at its call number ``count`` (from 0) and else does as it should."""
    calls = iter(range(10**6))
    return lambda *args, **kwargs: (action if next(calls) == count else otherwise)(*args, **kwargs)


def plant(point: str, count: int) -> None:
    """Replaces one step of scoring so that it kills the process."""
    write, append, evaluate = files.write_atomic, files.append_line, lm_eval.evaluator.evaluate

    def torn(path: Path, line: str) -> None:
        with path.open("a") as handle:
            handle.write(line[: len(line) // 2])
        die()

    def half_samples(path: Path, content: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        (path.parent / f".{path.name}.tmp").write_bytes(content[: len(content) // 2])
        die()

    def after(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (function(*args, **kwargs), die())

    if point == "in the model":
        lm_eval.evaluator.evaluate = at(count, die, evaluate)
    elif point == "half the samples":
        records.write_atomic = at(count, half_samples, write)
    elif point == "after the samples":
        records.write_atomic = at(count, after(write), write)
    elif point == "half the line":
        records.append_line = at(count, torn, append)
    elif point == "after the line":
        records.append_line = at(count, after(append), append)


def attempt(run: Path, suite: Path, point: str, count: int) -> int:
    pid = os.fork()
    if pid == 0:
        plant(point, count)
        report = score.score([run], suite, device="cpu")
        os._exit(report.exit_code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def at_once(run: Path, suite: Path) -> list[int]:
    """Lets two processes score one run at the same time; each exits with the number of scores that it wrote."""
    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            report = score.score([run], suite, device="cpu", poll_seconds=0.05)
            os._exit(99 if report.failed else len(report.done))
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def main() -> None:
    run, suite = Path(sys.argv[1]), Path(sys.argv[2])
    points = ["in the model", "half the samples", "after the samples", "half the line", "after the line"]
    plan = [(point, count) for count in (0, 1) for point in points]
    for point, count in [*plan, ("to the end", 0), ("to the end", 0)]:
        code = attempt(run, suite, point, count)
        path = run / records.SCORES
        whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        print(json.dumps({"point": point, "code": code, "lines": [line.decode() for line in whole]}), flush=True)
    print(json.dumps({"point": "two at once", "codes": at_once(Path(sys.argv[3]), suite)}), flush=True)


if __name__ == "__main__":
    main()
