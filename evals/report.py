"""From run folders to a leaderboard: a pure function, and the four files it is written to.

The same folders always give the same bytes: no time, host name or absolute path enters but those in the records.
"""

from collections.abc import Sequence
from pathlib import Path

from ..data_tools.files import write_atomic
from .report_columns import tabulate
from .report_curves import best_of_n_curves, training_curve
from .report_lineage import arrange, common_parent, relative, row_label
from .report_model import Leaderboard, Notice, Row, Run
from .report_read import find_runs, read_run
from .report_text import plain

__all__ = ["Leaderboard", "build", "write"]


def build(paths: Sequence[Path], *, title: str = "Leaderboard") -> Leaderboard:
    """Reads run folders, or folders of run folders, into a leaderboard.

    Damaged files, records without a finite value, limited scores and figures that may not be compared become
    notices; everything readable is kept.

    Args:
        paths: Run folders, or folders at any height above them.
        title: The report's heading.

    Raises:
        InputError: A path does not exist or holds no run.
    """
    folders = [read_run(path) for path in find_runs([Path(path) for path in paths])]
    runs, scored, doubled = arrange(folders)
    rows, columns, footnotes, notices = tabulate(scored)
    common = common_parent([folder.path for folder in folders])
    logs = {relative(folder.path, common): folder.log for folder in folders}
    best, damaged = best_of_n_curves([folder.path for folder in folders])
    curves = [curve for run in runs if (curve := training_curve(run, logs[run.folder]))] + best
    notices += damaged
    first = [Notice("error", f"{plain(run.name)}: {problem}") for run in runs for problem in run.problems]
    first += [Notice("warning", f"several runs are named {plain(name)}: told apart by folder") for name in doubled]
    rest = _same_weights(runs, rows) + _unscored(runs, rows)
    ordered = sorted([*notices, *first, *rest], key=lambda notice: notice.level != "error")
    all_notices = tuple(dict.fromkeys(ordered))
    return Leaderboard(title, tuple(runs), tuple(rows), tuple(columns), footnotes, all_notices, tuple(curves))


def write(leaderboard: Leaderboard, out_dir: Path) -> list[Path]:
    """Writes ``leaderboard.html``, ``.md``, ``.csv`` and ``.json``, each under a temporary name first.

    Returns:
        The four paths, the page first.

    Raises:
        PosttrainError: The folder cannot be written.
    """
    from .report_html import to_html
    from .report_tables import to_csv, to_json, to_markdown

    writers = {"html": to_html, "md": to_markdown, "csv": to_csv, "json": to_json}
    contents = {out_dir / f"leaderboard.{suffix}": writer(leaderboard) for suffix, writer in writers.items()}
    for path, content in contents.items():
        write_atomic(path, content)
    return list(contents)


def _same_weights(runs: Sequence[Run], rows: Sequence[Row]) -> list[Notice]:
    """Names rows of several runs that hold the same weights: one model, not two results."""
    names = {run.id: plain(run.name) for run in runs}
    holders: dict[str, list[str]] = {}
    for row in rows:
        if row.weights_hash:
            holders.setdefault(row.weights_hash, []).append(f"{names[row.run]} {plain(row_label(row))}")
    shared = "; ".join(" = ".join(holder) for holder in holders.values() if len(holder) > 1)
    return [Notice("warning", f"rows of the same weights, so not separate results: {shared}")] if shared else []


def _unscored(runs: Sequence[Run], rows: Sequence[Row]) -> list[Notice]:
    names = {run.id: plain(run.name) for run in runs}
    empty = dict.fromkeys(names[row.run] for row in rows if not row.cells)
    return [Notice("warning", f"without scores: {', '.join(empty)}")] if empty else []
