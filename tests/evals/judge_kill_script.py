"""Judges again and again, each time killed by SIGKILL a little later, then once to the end.

Run as ``python judge_kill_script.py KILLS SUITE RUN…``. Imports are paid once: each attempt is a fork. Prints how many
attempts were killed before they ended.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import openai
import pyarrow.parquet  # noqa: F401
import scipy.special  # noqa: F401
from posttrain.evals.judging.run import judge
from posttrain.evals.suite_files import load_suite

assert openai.AsyncOpenAI is not None  # resolves what is imported lazily


def lines() -> int:
    """Counts the judgments on the disk."""
    return sum(
        path.read_bytes().count(b"\n") for run in sys.argv[3:] if (path := Path(run, "judgments.jsonl")).exists()
    )


def attempt(more: int | None, then: float = 0.0) -> int:
    """Judges, and dies a moment after so many more judgments are on the disk."""
    wanted = lines() + (more or 0)
    pid = os.fork()
    if pid == 0:
        os._exit(judge([Path(path) for path in sys.argv[3:]], load_suite(sys.argv[2])).exit_code)
    while more is not None and lines() < wanted:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):  # it has ended before that
            break
        time.sleep(0.002)
    if more is not None:
        time.sleep(then)
        os.kill(pid, signal.SIGKILL)  # of one that has ended nothing but its exit code is left
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    rng = random.Random(0)
    attempts = [attempt(rng.randrange(1, 7), rng.uniform(0, 0.1)) for _ in range(int(sys.argv[1]))]
    code = attempt(None)
    print(attempts.count(-signal.SIGKILL))
    sys.exit(code)


if __name__ == "__main__":
    main()
