"""From run folders to a leaderboard: a pure function, and the four files it is written to.

The same folders always give the same bytes: no time, host name or absolute path enters but those in the records.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...data_tools.files import write_atomic
from ..parity.record import ParityReport
from ..runs import chosen_like
from . import samples
from .board import BoardRow, Leaderboard, Notice, Parity, last_row
from .charts import best_of_n_curves, training_curve
from .clean import with_clean
from .columns import is_fact, select_ranked, tabulate
from .foreign import read_folders, with_badges
from .html import to_html
from .items import item_finder
from .judged import with_judgings
from .lineage import ScoredRow, arrange
from .markdown import to_markdown
from .read import RunFolder
from .tables import to_csv, to_json
from .text import plain
from .verdicts import find_baseline, with_verdicts

__all__ = ["Leaderboard", "build", "write"]


def build(paths: Sequence[Path], *, title: str = "Leaderboard", baseline: str | None = None) -> Leaderboard:
    """Reads run folders, folders of run folders, and result files of other harnesses into a leaderboard.

    Damaged files, records without a finite value, limited scores and figures that may not be compared become
    notices; everything readable is kept.

    Args:
        paths: Run folders, or folders at any height above them; files of results, as of :mod:`~..foreign_results`.
        title: The report's heading.
        baseline: What every row is compared with: a run's name or folder, ``run/checkpoint``, or the beginning of a
            weights hash. By default the last model of the first run.

    Raises:
        InputError: A path does not exist or holds no run, a file of results is damaged or unknown, or no row is
            called like the baseline.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return _build(read_folders(paths, Path(scratch)), title, baseline)


def _build(folders: Sequence[RunFolder], title: str, baseline: str | None) -> Leaderboard:
    """Puts what run folders hold together; their samples are read meanwhile."""
    runs, scored, held, doubled = arrange(folders)
    judged = [judgment for folder in folders for judgment in folder.judgments]
    ranked = select_ranked(scored, judged)
    with_clean_ones, contamination = with_clean(ranked.scored, held)
    rows, columns, footnotes, notices = tabulate(with_clean_ones, ranked.rules)
    best, damaged = best_of_n_curves([folder.path for folder in folders])
    curves = [curve for run in runs if (curve := training_curve(run, held[run.id].log))]
    first = [Notice("error", f"{plain(run.name)}: {problem}") for run in runs for problem in run.problems]
    first += [Notice("warning", f"several runs are named {plain(name)}: told apart by folder") for name in doubled]
    board = Leaderboard(
        title,
        tuple(runs),
        tuple(_with_parity(with_badges(rows, held), held)),
        tuple(columns),
        footnotes,
        curves=(*curves, *best),
        baseline=find_baseline(runs, rows, baseline),
        chosen=baseline is not None,
        contamination=contamination,
    )
    first += _chosen_like(board, held)
    all_notices = [*notices, *damaged, *first, *ranked.notices, *_same_model(board), *_unscored(board, scored)]
    all_notices.sort(key=lambda notice: notice.level != "error")
    board = replace(board, notices=tuple(dict.fromkeys(all_notices)))
    shown = [judgment for judgment in judged if judgment.judge_version not in ranked.off]
    paths_of = {run: folder.path for run, folder in held.items()}
    items = item_finder(paths_of, columns)
    board, tested = with_judgings(board, held, shown, ranked.rules)
    board = with_verdicts(board, items, tested)
    return replace(board, items=samples.task_items(board, items, paths_of))


def write(leaderboard: Leaderboard, out_dir: Path) -> list[Path]:
    """Writes ``leaderboard.html``, ``.md``, ``.csv`` and ``.json``, each under a temporary name first.

    Where there are answers, ``leaderboard-samples.parquet`` holds all of them, with what was said of each; the page
    shows some.

    Returns:
        The paths written, the page first.

    Raises:
        PosttrainError: The folder cannot be written.
    """
    writers = {"html": to_html, "md": to_markdown, "csv": to_csv, "json": to_json}
    contents: dict[Path, str | bytes] = {
        out_dir / f"leaderboard.{suffix}": writer(leaderboard) for suffix, writer in writers.items()
    }
    beside = out_dir / samples.FILE
    if leaderboard.samples:
        contents[beside] = samples.to_parquet(leaderboard)
    for path, content in contents.items():
        write_atomic(path, content)
    if not leaderboard.samples:
        beside.unlink(missing_ok=True)  # of an earlier report; beside this page it would be taken for its own
    return list(contents)


def _with_parity(rows: Sequence[BoardRow], held: Mapping[str, RunFolder]) -> list[BoardRow]:
    """Gives the row of each model that was compared with another form of it what came of that."""
    found = list(rows)
    for run, folder in held.items():
        mine = [row for row in rows if row.run == run]
        for comparison in folder.parity if mine else ():
            begin = comparison.one.place.partition("/")[0]  # a checkpoint's folder, or the run's last model
            row = next((row for row in mine if begin in row.names), None)
            if row is None and begin.startswith("checkpoint-"):
                continue  # it has no scores, and so no row
            at = rows.index(row or last_row(mine))
            found[at] = replace(found[at], parity=(*found[at].parity, _parity(comparison)))
    return found


def _parity(comparison: ParityReport) -> Parity:
    differ = [check for check in comparison.checks if check.status == "differs"]
    clauses = [f"{check.name}: {check.detail}{f' ({check.cause})' if check.cause else ''}" for check in differ]
    hidden = tuple(check.name for check in comparison.checks if check.status == "not compared")
    compared = tuple(check.name for check in comparison.checks if check.status != "not compared")
    verdict = "out of date" if comparison.stale else "differs" if differ else "same"
    forms = comparison.one.name, comparison.other.name
    return Parity(*forms, verdict, compared, hidden, "; ".join(clauses), comparison.created)


def _chosen_like(board: Leaderboard, held: Mapping[str, RunFolder]) -> list[Notice]:
    """Names runs whose training rows were chosen to be like others, and the tasks that are called as those are."""
    chosen: dict[str, list[str]] = {}
    for run in board.runs:
        for like in chosen_like(held[run.id].path):
            chosen.setdefault(like, []).append(plain(run.name))
    found = []
    for like, runs in chosen.items():
        words = _words("/".join(Path(like).parts[-2:]))
        tasks = [plain(column.name) for column in board.columns if _words(column.name) <= words]
        domain = f", of the domain of {', '.join(tasks)}" if tasks else "; see whether a task here is of that domain"
        text = f"training rows were chosen to be like {plain(Path(like).name)}{domain}"
        found.append(Notice("warning", f"{', '.join(runs)}: {text}"))
    return found


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))


def _same_model(board: Leaderboard) -> list[Notice]:
    """Names rows of several runs that hold the same model: not two results."""
    holders: dict[str, list[str]] = {}
    for row in board.rows:
        if row.model_hash:
            holders.setdefault(row.model_hash, []).append(f"{plain(board.run_of(row).name)} {plain(row.label)}")
    shared = "; ".join(" = ".join(holder) for holder in holders.values() if len(holder) > 1)
    return [Notice("warning", f"rows of the same model, so not separate results: {shared}")] if shared else []


def _unscored(board: Leaderboard, scored: Sequence[ScoredRow]) -> list[Notice]:
    # A row of answers alone is scored, though nothing of it is ranked.
    bare = {item.row.id for item in scored if not any(is_fact(score) for score in item.scores)}
    rows = (row for row in board.rows if not row.cells and row.id in bare)
    empty = dict.fromkeys(plain(board.run_of(row).name) for row in rows)
    return [Notice("warning", f"without scores: {', '.join(empty)}")] if empty else []
