"""How far long work is: a line that moves on a terminal, and a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

EVERY = 30.0  # seconds between plain lines
Say = Callable[[str], None]  # takes a line for the user


def say_now(line: str) -> None:
    """Prints a line at once, wherever it goes to."""
    print(line, flush=True)


class ProgressLine:
    """One line on standard error.

    Args:
        title: What is done.
        total: How much there is to do, which a bar is drawn for; None where that is not known.
        terminal: Whether the line moves; by default on a terminal.
    """

    def __init__(self, title: str, total: int | None = None, *, terminal: bool | None = None):
        self._title, self._total = title, total
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._began = self._last = time.monotonic()
        self._bar: Any = None

    def show(self, text: str, done: int = 0) -> None:
        """Says how far the work is; elsewhere than on a terminal no more often than every ``EVERY`` seconds."""
        if self._terminal:
            if self._bar is None:
                self._bar = self._moving()
            self._bar.update(self._bar.task_ids[0], said=text, completed=done)
        elif time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            print(f"{self._title}: {text}, {self._last - self._began:.0f} s", file=sys.stderr, flush=True)

    def hide(self) -> None:
        """Takes the line off the terminal, for what others print there; the next ``show`` brings it back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _moving(self) -> Any:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = [
            SpinnerColumn(),
            TextColumn("{task.description}"),
            *([BarColumn(20)] if self._total is not None else []),
            TextColumn("{task.fields[said]}"),
            *([TimeElapsedColumn()] if self._total is None else []),
        ]
        # lines that are printed meanwhile come above it, but not those that go into a file
        console, shown = Console(stderr=True), sys.stdout.isatty()
        bar = Progress(*columns, console=console, transient=True, refresh_per_second=4, redirect_stdout=shown)
        bar.add_task(escape(self._title), total=self._total, said="")
        bar.start()
        return bar


@contextmanager
def progress_shown(title: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Shows on standard error how many rows, and tokens if they are counted, are done.

    Args:
        title: What is done.
        total: How many rows there are, if that is known.

    Yields:
        What takes the rows and tokens that are done since it was last called.
    """
    done = [0, 0]
    line = ProgressLine(title, total)

    def advance(rows: int, tokens: int = 0) -> None:
        done[0] += rows
        done[1] += tokens
        of = "" if total is None else f" of {total:,}"
        line.show(f"{done[0]:,}{of} rows" + (f", {done[1]:,} tokens" if done[1] else ""), done[0])

    try:
        yield advance
    finally:
        line.hide()
