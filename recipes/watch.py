"""``posttrain watch``: the curves of runs in the terminal and what the watchdog saw; in the browser by trackio.

All of it is read from ``run.json``, ``log.jsonl`` and ``watchdog.jsonl``; nothing heavy is imported.
"""

import importlib
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..chat_templates.errors import InputError
from ..data_tools.files import read_jsonl_log
from ..data_tools.plain_values import is_number
from ..evals.runs import RUN_FILE, read_record
from . import faults
from .rundir import LOG

_COLORS = ("cyan", "yellow", "magenta", "green", "red", "blue")
# What is shown if it was logged, in this order; losses of sources and of the evaluation come after the loss.
_FIRST = ("loss", "eval_loss", "reward", "kl", "rewards/accuracies", "accuracy", "grad_norm", "learning_rate")
_LAST = ("tokens_per_second", "mfu", "memory_gib")
_EVERY = 2.0  # seconds between looks at the files

Curve = list[tuple[float, float]]  # steps and values


@dataclass(frozen=True)
class Watched:
    """What is shown of a run.

    Attributes:
        name: Its name.
        stage: What it trains.
        finished: Whether it has ended.
        lines: Its log.
        events: What its watchdog saw.
    """

    name: str
    stage: str
    finished: bool
    lines: list[dict[str, Any]]
    events: list[dict[str, Any]]

    def curve(self, metric: str) -> Curve:
        """Returns a metric's values by step; what was logged as no number is left out."""
        lines = (line for line in self.lines if is_number(line.get("step")) and is_number(line.get(metric)))
        return [(line["step"], line[metric]) for line in lines]


def read_run(run_dir: Path) -> Watched:
    """Reads what a run has written so far; lines that are just being written are left out.

    Raises:
        InputError: The folder is no run's.
    """
    problems: list[str] = []
    record = read_record(run_dir, problems)
    if not record and not (run_dir / LOG).is_file():
        hint = f"a run's folder holds {RUN_FILE}; recipes name theirs as output_dir"
        raise InputError("no run", where=str(run_dir), hint=hint)
    lines = read_jsonl_log(run_dir / LOG, problems)
    finished = bool(record.get("finished"))
    name, stage = str(record.get("name") or run_dir.name), str(record.get("stage") or "")
    return Watched(name, stage, finished, lines, faults.read(run_dir, problems))


def metrics_of(runs: Iterable[Watched]) -> list[str]:
    """Returns what the runs have logged that is worth a curve, the most telling first."""
    logged = dict.fromkeys(name for run in runs for line in run.lines for name in line)
    by_source = [name for name in logged if name.startswith(("loss/", "reward/"))]
    wanted = [_FIRST[0], *by_source, *_FIRST[1:], *_LAST]
    return [name for name in wanted if name in logged]


def plot(curves: Sequence[Curve], width: int, height: int) -> list[Text]:
    """Draws curves with Braille dots, two across and four down in a cell, one colour a curve.

    Args:
        curves: What is drawn, each by rising steps; at least one has a point.
        width: Cells across, of which the axis takes ten.
        height: Cells down, the line of the steps included.
    """
    points = [point for curve in curves for point in curve]
    low, high = min(y for _, y in points), max(y for _, y in points)
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    across, down = (width - 10) * 2, (height - 1) * 4
    cells: dict[tuple[int, int], tuple[int, str]] = {}

    def place(x: float, y: float) -> tuple[int, int]:
        right = (x - first) / ((last - first) or 1) * (across - 1)
        up = (y - low) / ((high - low) or 1) * (down - 1)
        return round(right), down - 1 - round(up)

    for number, curve in enumerate(curves):
        color = _COLORS[number % len(_COLORS)]
        dots = [place(*point) for point in curve]
        for (x0, y0), (x1, y1) in zip(dots, dots[1:] or dots, strict=False):
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for part in range(steps + 1):
                x, y = x0 + round((x1 - x0) * part / steps), y0 + round((y1 - y0) * part / steps)
                bits, _ = cells.get((y // 4, x // 2), (0, color))
                cells[y // 4, x // 2] = bits | _DOTS[y % 4][x % 2], color
    rows = []
    for row in range(height - 1):
        label = {0: f"{high:.4g}", height - 2: f"{low:.4g}"}.get(row, "")
        text = Text(f"{label:>9}│")
        for column in range(width - 10):
            bits, color = cells.get((row, column), (0, ""))
            text.append(chr(0x2800 + bits) if bits else " ", style=color)
        rows.append(text)
    return [*rows, Text(f"{'':9}└{f'{first:g}':<{width - 10 - len(f'{last:g}')}}{last:g}")]


_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a Braille cell, by row and column


def picture(runs: Sequence[Watched], metrics: Sequence[str], width: int, height: int) -> Group:
    """Draws runs: a line for each, its latest faults, and as many curves as there is room for."""
    table = Table(box=None, pad_edge=False)
    for title in ("", "run", "stage", "step", "loss", "tokens/s", "watchdog"):
        table.add_column(title)
    for number, run in enumerate(runs):
        known: dict[str, Any] = {}
        for line in run.lines:
            known |= line
        seen = f"{len(run.events)} fault{'s' * (len(run.events) != 1)}" if run.events else "nothing"
        step = f"{known.get('step', 0):,}" + (", finished" if run.finished else "")
        figures = [f"{known[key]:,.4g}" if is_number(known.get(key)) else "" for key in ("loss", "tokens_per_second")]
        dot = Text("●", style=_COLORS[number % len(_COLORS)])
        table.add_row(dot, Text(run.name), run.stage, step, *figures, seen)
    events = [(run, event) for run in runs for event in run.events[-3:]]
    said = [
        Text(f"{run.name}, step {event.get('step')}: {event.get('what')}; {event.get('did')}", style="red")
        for run, event in events
    ]
    columns = 2 if width >= 120 else 1
    each = width // columns - 2
    tall = 9
    room = max(1, (height - len(runs) - len(said) - 3) // (tall + 1)) * columns
    shown = [name for name in metrics if any(run.curve(name) for run in runs)][:room]
    grid = Table.grid(padding=(0, 2))
    for start in range(0, len(shown), columns):
        charts = []
        for name in shown[start : start + columns]:
            charts.append(Group(Text(name, style="bold"), *plot([run.curve(name) for run in runs], each, tall)))
        grid.add_row(*charts)
    return Group(table, *said, Text(), grid if shown else Text("nothing was logged yet"))


def watch(folders: Sequence[Path], metrics: Sequence[str] = (), *, once: bool = False) -> None:
    """Shows the curves of runs until all have ended; once where there is no terminal, or where that is asked for.

    Raises:
        InputError: A folder is no run's, or no run has logged a metric.
    """
    console = Console()

    def look() -> tuple[Group, bool]:
        runs = [read_run(folder) for folder in folders]
        known = list(dict.fromkeys(name for run in runs for line in run.lines for name in line))
        for name in metrics:
            if known and name not in known:
                raise InputError(f"no run has logged {name}", hint=f"logged were: {', '.join(known)}")
        size = shutil.get_terminal_size()
        shown = picture(runs, metrics or metrics_of(runs), size.columns, 10**6 if once else size.lines)
        return shown, all(run.finished for run in runs)

    once = once or not sys.stdout.isatty()
    shown, ended = look()
    if once:
        console.print(shown)
        return
    with Live(shown, console=console, refresh_per_second=1, screen=False) as live:
        while not ended:
            time.sleep(_EVERY)
            shown, ended = look()
            live.update(shown, refresh=True)


def browse(folders: Sequence[Path]) -> None:
    """Gives the runs' logs to trackio and serves its page, on this machine alone, until Ctrl-C.

    Its database lies in the first run's folder. The address that trackio prints holds a token with which anyone can
    write; what is said here leaves it out.

    Raises:
        InputError: trackio is not installed, or a folder is no run's.
    """
    import contextlib
    import io

    runs = [read_run(folder) for folder in folders]
    store = folders[0] / ".trackio"
    os.environ["TRACKIO_DIR"] = str(store)  # it is read at the import
    shutil.rmtree(store, ignore_errors=True)  # made anew from the logs each time
    try:
        trackio = importlib.import_module("trackio")
    except ImportError as error:
        what = "--browser shows the curves by trackio, which is not installed"
        hint = "pip install 'posttrain[watch]', or leave --browser out: curves in the terminal"
        raise InputError(what, hint=hint) from error
    with contextlib.redirect_stdout(io.StringIO()):
        for folder, run in zip(folders, runs, strict=True):
            own = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
            trackio.init(project="posttrain", name=f"{run.name} ({folder.name})", **own)
            for line in run.lines:
                step = line.get("step", 0)
                figures = {name: value for name, value in line.items() if is_number(value) and name != "step"}
                trackio.log(figures, step=step)
            trackio.finish()
        served: Any = trackio.show(
            project="posttrain", open_browser=False, block_thread=False, host="127.0.0.1", share=False
        )
    address = next((part for part in served if isinstance(part, str) and part.startswith("http")), "")
    print(f"{address.partition('?')[0]} shows {len(runs)} run{'s' * (len(runs) != 1)}; Ctrl-C ends it", flush=True)
    while True:
        time.sleep(3600)
