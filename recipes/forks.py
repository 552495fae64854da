"""Starts the processes of a pipeline as forks of one that has imported what they need, while other steps are at work.

Training and scoring each import for seconds what the step before them had imported too. A fork has it already, and is
a process of its own all the same: its memory is free again at its end. An accelerator's driver does not outlive a fork,
so where there is one, and on systems other than Linux, processes are started as anywhere else.
"""

import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO

from . import launch
from .errors import RunError

_MODULES = (
    "posttrain.recipes.cli",
    "posttrain.recipes.train",
    "posttrain.recipes.callbacks",
    "posttrain.recipes.trainers.text",
    "posttrain.evals.score",
    "posttrain.evals.harness",
    "posttrain.evals.harness_model",
    "posttrain.evals.judging.run",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
)
_FORKED = "forked"


class Forks:
    """What a pipeline starts its processes with.

    Use it as a context manager: the process that has imported ends with the block.

    Args:
        wanted: Whether the pipeline trains in single processes at all; else all are started as anywhere else.
    """

    def __init__(self, *, wanted: bool = True):
        self._wanted = wanted
        self._server: subprocess.Popen[str] | None = None
        self._requests: int | None = None  # written at once: nothing is left to fail when it is closed
        self._replies: IO[str] | None = None

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None and self._requests is not None and self._replies is not None:
            os.close(self._requests)
            self._replies.close()
            self._server.wait()

    def prepare(self) -> None:
        """Begins to import, in a process beside this one, what the processes to come will need."""
        if not self._wanted or self._server is not None or not sys.platform.startswith("linux"):
            return
        (asked, ask), (reply, replied) = os.pipe(), os.pipe()
        command = [sys.executable, "-m", "posttrain.recipes.forks", str(asked), str(replied)]
        self._server = subprocess.Popen(command, pass_fds=(asked, replied), text=True)
        os.close(asked)
        os.close(replied)
        self._requests, self._replies = ask, os.fdopen(reply)

    def run(self, command: Sequence[str]) -> int:
        """Runs a command of ``launch`` to its end and returns its exit code, as :func:`.launch.run` does.

        Raises:
            RunError: What it ran in was killed.
        """
        if self._requests is None or self._replies is None or command[:2] != [sys.executable, "-m"]:
            return launch.run(command)
        try:
            os.write(self._requests, f"{json.dumps(list(command[2:]))}\n".encode())
        except BrokenPipeError:
            return launch.run(command)
        if _line(self._replies) != _FORKED:  # it has found an accelerator, and left
            return launch.run(command)
        code = _line(self._replies)
        if not code:
            raise RunError("the process was killed", where=" ".join(command[2:5]), hint="the same command goes on")
        return int(code)


def _line(replies: IO[str]) -> str:
    """Reads a line; an interrupt reaches what was started, which ends first."""
    while True:
        try:
            return replies.readline().strip()
        except KeyboardInterrupt:
            continue


def _end_with_parent() -> None:
    """Has the kernel end this process once its parent has ended in whatever way: no training outlives its pipeline."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def main() -> int | None:
    """Imports, and forks for each command that is asked for; returns a fork's exit code."""
    asked, replied = (int(number) for number in sys.argv[1:3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for what is forked
    _end_with_parent()
    launch.quiet_libraries()
    import torch

    if torch.accelerator.is_available():
        return 0
    for name in _MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what has been imported is nothing to collect, and its pages stay shared
    with os.fdopen(asked) as requests, os.fdopen(replied, "w") as replies:
        for line in requests:
            print(_FORKED, file=replies, flush=True)
            server, child = os.getpid(), os.fork()
            if child == 0:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                _end_with_parent()
                if os.getppid() != server:  # killed before the kernel was asked
                    return 1
                sys.argv = json.loads(line)
                return importlib.import_module(sys.argv[0]).main()
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(code, file=replies, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
