"""Lets a checkpoint answer prompts again and again, each time killed by SIGKILL at another point, then to the end.

Run as ``python kill_answers_script.py RUN SUITE``. Imports are paid once: each attempt is a fork. Prints a JSON line
for each attempt: where it was killed, how it ended, and how many whole lines the log of answers and ``scores.jsonl``
have.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets  # noqa: F401
import pyarrow.parquet  # noqa: F401
from posttrain.data_tools import ask, files, generate
from posttrain.evals import records, score
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM, LogitsProcessorList

_IMPORTED = (AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM, LogitsProcessorList)


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(count: int, action: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that acts at its call number ``count`` (from 0) and else does as it should."""
    calls = iter(range(10**6))
    return lambda *args, **kwargs: (action if next(calls) == count else otherwise)(*args, **kwargs)


def torn(path: Path, line: str, **_: Any) -> None:
    with path.open("a") as handle:
        handle.write(line[: len(line) // 2])
    die()


def after(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: (function(*args, **kwargs), die())


def plant(point: str, count: int) -> None:
    """Replaces one step of answering so that it kills the process."""
    append, write = files.append_line, files.write_atomic
    if point == "in the model":
        generate.draw = at(count, die, generate.draw)
    elif point == "half the line":
        ask.append_line = at(count, torn, append)
    elif point == "after the line":
        ask.append_line = at(count, after(append), append)
    elif point == "after the answers":
        records.write_atomic = at(0, after(write), write)
    elif point == "after the score":
        records.append_line = at(0, after(append), append)


def attempt(run: Path, suite: Path, point: str, count: int) -> int:
    pid = os.fork()
    if pid == 0:
        plant(point, count)
        os._exit(score.score([run], suite, device="cpu").exit_code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def lines(paths: list[Path]) -> int:
    return sum(path.read_bytes().count(b"\n") for path in paths)


def main() -> None:
    run, suite = Path(sys.argv[1]), Path(sys.argv[2])
    draw = random.Random(4)
    plan = [(draw.choice(["in the model", "half the line", "after the line"]), draw.randrange(3)) for _ in range(10)]
    for point, count in [*plan, ("after the answers", 0), ("after the score", 0), ("to the end", 0), ("to the end", 0)]:
        code = attempt(run, suite, point, count)
        logs = [*run.glob(".scoring/answers-*")]
        found = {"point": point, "code": code, "log": lines(logs), "logs": len(logs)}
        print(json.dumps(found | {"scores": lines([*run.glob("scores.jsonl")])}), flush=True)


if __name__ == "__main__":
    main()
