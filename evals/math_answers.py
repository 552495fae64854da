"""Whether two answers to a question of mathematics are equal, by ``math-verify`` in a process that can be killed.

math-verify (Kydlíček, 2024) reads LaTeX and numbers into sympy, which may simplify an expression for hours or exhaust
the stack or the memory. So it works in a process of its own with a limit of memory: one that says nothing in time is
killed and another begun. What cannot be decided is told as such and is no wrong answer of the library's making; sympy
swallows a MemoryError and calls the two different, so a process that came near its limit says nothing but "equal".
"""

import json
import math
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

from .errors import EvalError

SECONDS = 10.0
"""How many seconds of a processor one comparison may take: on a busy machine an answer is right no less often."""

MEMORY = 1 << 30
"""Bytes of address space that its process may have; it needs 60 MiB before its first comparison."""

_PATIENCE = 20  # times as long by the clock, in which a process that waits its turn gets so much of a processor

Verdict = Literal["equal", "different", "unread", "undecided"]
"""``unread``: the answer is no expression that math-verify reads. ``undecided``: it took too much time or memory, or
broke."""


class MathVerifier:
    """Compares answers, one after the other, in a process of its own that is begun with the first.

    Attributes:
        seconds: Seconds of a processor that a comparison may take.
        memory: Bytes that its process may have.
        restarts: How many processes were lost.
    """

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY):
        self.seconds = seconds
        self.memory = memory
        self.restarts = 0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def compare(self, pairs: Iterable[tuple[str, str]]) -> Iterator[Verdict]:
        """Yields for each right answer and given answer, as LaTeX or plain text, whether they are equal.

        Raises:
            EvalError: math-verify is not installed, or its process cannot be begun.
        """
        for pair in pairs:
            yield self._compare(*pair)

    def _compare(self, gold: str, answer: str) -> Verdict:
        if self._process is None:
            self._process = self._begin()
        told = self._ask(self._process, {"gold": gold, "answer": answer}, self.seconds)
        if told is None:
            self._end()
            self.restarts += 1
            return "undecided"
        return told

    def _begin(self) -> subprocess.Popen[str]:
        """Starts a worker and waits until its imports are done, which take longer than a comparison may."""
        command = [sys.executable, "-m", __name__, str(self.memory)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        said = self._ask(process, None, 30.0)
        if said != "ready":
            process.kill()
            process.wait()
            hint = "pip install 'posttrain[reasoning]'"
            raise EvalError(f"math-verify cannot be used: {said or 'its process ended'}", hint=hint)
        return process

    @staticmethod
    def _ask(process: subprocess.Popen[str], question: Any, seconds: float) -> Any:
        """Returns what the worker says, or None if it says nothing in time or is gone."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if question is not None:
                process.stdin.write(json.dumps(question) + "\n")
                process.stdin.flush()
            begun, until = _processor_seconds(process.pid), time.monotonic() + seconds * _PATIENCE
            while not select.select([process.stdout], [], [], min(seconds, 1.0))[0]:
                if _processor_seconds(process.pid) - begun >= seconds or time.monotonic() > until:
                    return None
            return json.loads(process.stdout.readline() or "null")
        except (BrokenPipeError, ValueError):
            return None

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _processor_seconds(pid: int) -> float:
    """Returns how long a process has run on a processor; endlessly where it is gone."""
    try:
        _, _, values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")  # a name may hold spaces
    except OSError:
        return math.inf
    user, system = values.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _peak() -> int:
    """Returns the most bytes of address space that this process ever had."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmPeak"))


def _work(memory: int) -> None:
    """Answers comparisons line by line; what sympy prints goes to the other stream."""
    out, sys.stdout = sys.stdout, sys.stderr

    def say(value: Any) -> None:
        print(json.dumps(value), file=out, flush=True)

    try:
        import logging

        from math_verify import parse, verify
    except ImportError as error:
        say(str(error))
        return
    logging.disable()  # it warns that nothing but this process's end bounds its time, which is so
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # What grows by doubling has had a quarter of the room before it is refused the rest.
    near = _peak() + (memory - _peak()) // 4
    say("ready")
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            gold = parse(asked["gold"], parsing_timeout=0, raise_on_error=True)
            answer = parse(asked["answer"], parsing_timeout=0, raise_on_error=True)
            same = bool(answer) and verify(gold, answer, timeout_seconds=0, raise_on_error=True)
            if not same and _peak() > near:
                os._exit(1)
            say("unread" if not answer else "equal" if same else "different")
        except MemoryError:
            os._exit(1)
        except Exception:  # whatever sympy raises of what a model wrote; it is counted as undecided
            say("undecided")


if __name__ == "__main__":
    _work(int(sys.argv[1]))
