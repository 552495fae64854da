"""From run folders to a leaderboard: a pure function, and the four files it is written to.

The same folders always give the same bytes: no time, host name or absolute path enters but those in the records.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...data_tools.files import write_atomic
from ..runs import find_runs
from . import samples as report_samples
from .columns import tabulate
from .curves import best_of_n_curves, training_curve
from .facts import is_fact, sort_scores
from .items import item_finder
from .judging import player_names, unique, with_judgings
from .lineage import Scored, arrange, common_parent, relative, row_label
from .model import Leaderboard, Notice, Row, Run
from .read import read_run
from .task_items import task_items
from .text import plain
from .verdicts import find_baseline, with_verdicts

__all__ = ["Leaderboard", "build", "write"]


def build(paths: Sequence[Path], *, title: str = "Leaderboard", baseline: str | None = None) -> Leaderboard:
    """Reads run folders, or folders of run folders, into a leaderboard.

    Damaged files, records without a finite value, limited scores and figures that may not be compared become
    notices; everything readable is kept.

    Args:
        paths: Run folders, or folders at any height above them.
        title: The report's heading.
        baseline: What every row is compared with: a run's name, ``run/checkpoint``, or the beginning of a weights
            hash. By default the model that the first run of the lineage ended with.

    Raises:
        InputError: A path does not exist or holds no run, or no row is called like the baseline.
    """
    folders = [read_run(path) for path in find_runs([Path(path) for path in paths])]
    runs, scored, doubled = arrange(folders)
    judged = tuple(judgment for folder in folders for judgment in folder.judgments)
    ranked = sort_scores(scored, judged)
    rows, columns, footnotes, notices = tabulate(ranked.scored, ranked.rules)
    common = common_parent([folder.path for folder in folders])
    places = {relative(folder.path, common): folder for folder in folders}
    best, damaged = best_of_n_curves([folder.path for folder in folders])
    curves = [curve for run in runs if (curve := training_curve(run, places[run.folder].log))] + best
    first = [Notice("error", f"{plain(run.name)}: {problem}") for run in runs for problem in run.problems]
    first += [Notice("warning", f"several runs are named {plain(name)}: told apart by folder") for name in doubled]
    rest = _same_model(runs, rows) + _unscored(runs, rows, scored)
    ordered = sorted([*notices, *damaged, *first, *ranked.notices, *rest], key=lambda notice: notice.level != "error")
    board = Leaderboard(
        title,
        tuple(runs),
        tuple(rows),
        tuple(columns),
        footnotes,
        tuple(dict.fromkeys(ordered)),
        tuple(curves),
        baseline=find_baseline(runs, rows, baseline),
        chosen=baseline is not None,
    )
    held = {run.id: places[run.folder] for run in runs}
    shown = unique(judgment for judgment in judged if judgment.judge_version not in ranked.off)
    paths_of = {run: folder.path for run, folder in held.items()}
    items = item_finder(paths_of)
    board, tested = with_judgings(board, held, shown, ranked.rules)
    board = with_verdicts(board, items, tested)
    return replace(board, items=task_items(board, items, paths_of))


def write(leaderboard: Leaderboard, out_dir: Path) -> list[Path]:
    """Writes ``leaderboard.html``, ``.md``, ``.csv`` and ``.json``, each under a temporary name first.

    Where there are answers, ``leaderboard-samples.parquet`` holds all of them, with what was said of each; the page
    shows some.

    Returns:
        The paths written, the page first.

    Raises:
        PosttrainError: The folder cannot be written.
    """
    from .html import to_html
    from .markdown import to_markdown
    from .tables import to_csv, to_json

    writers = {"html": to_html, "md": to_markdown, "csv": to_csv, "json": to_json}
    contents: dict[Path, str | bytes] = {
        out_dir / f"leaderboard.{suffix}": writer(leaderboard) for suffix, writer in writers.items()
    }
    samples = out_dir / report_samples.FILE
    if leaderboard.samples:
        contents[samples] = report_samples.to_parquet(leaderboard.samples, player_names(leaderboard))
    for path, content in contents.items():
        write_atomic(path, content)
    if not leaderboard.samples:
        samples.unlink(missing_ok=True)  # of an earlier report; beside this page it would be taken for its own
    return list(contents)


def _same_model(runs: Sequence[Run], rows: Sequence[Row]) -> list[Notice]:
    """Names rows of several runs that hold the same model: not two results."""
    names = {run.id: plain(run.name) for run in runs}
    holders: dict[str, list[str]] = {}
    for row in rows:
        if row.model_hash:
            holders.setdefault(row.model_hash, []).append(f"{names[row.run]} {plain(row_label(row))}")
    shared = "; ".join(" = ".join(holder) for holder in holders.values() if len(holder) > 1)
    return [Notice("warning", f"rows of the same model, so not separate results: {shared}")] if shared else []


def _unscored(runs: Sequence[Run], rows: Sequence[Row], scored: Sequence[Scored]) -> list[Notice]:
    names = {run.id: plain(run.name) for run in runs}
    without = {item.row.id for item in scored if not item.scores}
    damaged = {item.row.id for item in scored if not any(is_fact(score) for score in item.scores)}
    empty = dict.fromkeys(names[row.run] for row in rows if not row.cells and row.id in without | damaged)
    return [Notice("warning", f"without scores: {', '.join(empty)}")] if empty else []
