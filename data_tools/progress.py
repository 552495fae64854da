"""How far long work is: a line that moves on a terminal, and a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 30.0  # seconds between plain lines


@contextmanager
def progress_shown(title: str) -> Iterator[Callable[..., None]]:
    """Shows on standard error how many rows, and tokens if they are counted, are done.

    Args:
        title: What is done.

    Yields:
        What takes the rows and tokens that are done since it was last called.
    """
    done = [0, 0]
    began = time.monotonic()

    def said() -> str:
        return f"{done[0]:,} rows" + (f", {done[1]:,} tokens" if done[1] else "")

    if not sys.stderr.isatty():
        last = began

        def report(rows: int, tokens: int = 0) -> None:
            nonlocal last
            done[0] += rows
            done[1] += tokens
            if time.monotonic() - last >= EVERY:
                last = time.monotonic()
                print(f"{title}: {said()}, {last - began:.0f} s", file=sys.stderr, flush=True)

        yield report
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(escape(title), total=None, said=said())

        def advance(rows: int, tokens: int = 0) -> None:
            done[0] += rows
            done[1] += tokens
            progress.update(task, said=said())

        yield advance
