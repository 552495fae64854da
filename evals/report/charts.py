"""The curves of a report: each task and metric over the lineage, the training loss, and rewards against KL.

Over-optimisation shows where the reward that is optimised rises with the KL divergence and a gold reward that is not
falls: Gao et al. 2023, "Scaling laws for reward model overoptimization" (arXiv:2210.10760), figure 1, whose x axis is
the square root of the KL divergence from the policy that training, or best-of-n, departed from.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..best_of_n import FILE
from ..runs import is_set_aside
from ..stats.intervals import interval, scale_of
from .board import BoardRow, BoardRun, Column, ColumnMetric, Curve, CurvePoint, Leaderboard, Notice
from .format import Speller, arrow
from .svg import Point, Segment, Series, chart, thin
from .text import Record, finite, plain, text, whole

X_LABEL = "training steps of each stage"
KL_LABEL = "√KL from the starting policy, nats per answer"
_NARROWEST = 0.22  # of the width that all steps together get
_Layout = tuple[dict[str, int], list[Segment]]
_MOST_SOURCES = 8  # charts of losses; a mixture may be of hundreds of files
_DOTS = 40  # points of a curve up to which each is drawn
# TRL logs the mean over tokens; times the tokens of an answer it is the divergence of whole answers.
_PER_TOKEN = ("grpo", "rloo")
_KINDS: dict[str, Literal["evaluation", "training"]] = {"eval_": "evaluation", "": "training"}


@dataclass(frozen=True)
class Chart:
    """One drawn chart; ``column`` and ``index`` are the places of its column and metric, None for other curves."""

    title: str
    detail: str
    svg: str
    column: int | None = None
    index: int | None = None


def training_charts(spell: Speller, *, every_metric: bool, lines_only: bool) -> list[Chart]:
    """Draws each column's metrics (or only the primary one) over training, and the losses, where there is a curve.

    With ``lines_only`` without intervals and points to rest on: of hundreds of rows they would be most of a page.
    """
    layout = _layout(spell.board)
    charts = [
        Chart(plain(column.name), f"{arrow(metric)} {_described(metric)}", svg, place, index)
        for place, column in enumerate(spell.board.columns)
        for index, metric in enumerate(column.main if every_metric else column.main[:1])
        if (svg := _task_chart(spell, column, metric, layout, lines_only=lines_only))
    ]
    loss = _loss_chart(spell.board, layout)
    return [*([loss] if loss else []), *_source_charts(spell.board, layout), *charts]


def _described(metric: ColumnMetric) -> str:
    unit = ", %" if metric.unit else ""
    return f"{plain(metric.name, 40)}{unit}, {'higher' if metric.higher_is_better else 'lower'} is better"


def _task_chart(
    spell: Speller, column: Column, metric: ColumnMetric, layout: _Layout, *, lines_only: bool
) -> str | None:
    board, (generation, segments) = spell.board, layout
    points = {row.id: _point(spell, row, column, metric, segments[generation[row.run]]) for row in board.rows}
    series = []
    for index, run in enumerate(board.runs):
        mine = [point for row in board.rows if row.run == run.id and (point := points[row.id])]
        fork = board.fork(run)
        if mine:
            drawn = tuple(sorted(mine, key=lambda point: point.x))
            if lines_only:
                drawn = tuple(replace(point, low=None, high=None) for point in drawn)
            series.append(Series(run.id, index, drawn, points.get(fork.id) if fork else None, dots=not lines_only))
    name = f"{plain(column.name)}, {plain(metric.name, 40)}, over training steps"
    return chart(series, segments, name=name, x_label=X_LABEL)


def _point(spell: Speller, row: BoardRow, column: Column, metric: ColumnMetric, segment: Segment) -> Point | None:
    cell = row.cells.get(column.id)
    figure = cell.figure(metric.name) if cell else None
    if figure is None or figure.value is None or row.step is None:
        return None
    scale = 100 if metric.unit == "%" else 1
    low, high = (figure.interval.low * scale, figure.interval.high * scale) if figure.interval else (None, None)
    value, ends = spell.number(figure.value, column, metric), spell.interval(figure, column, metric)
    n = f", n = {figure.n}" if figure.n is not None else ""
    label = f"{spell.board.label(row)}: {value} ({ends}{n})"
    return Point(_place(segment, row.step), figure.value * scale, low, high, label)


def _layout(board: Leaderboard) -> _Layout:
    """Lays the generations of runs side by side, each with its own step scale.

    A common scale would squeeze a fine-tuning of 300 steps behind a pretraining of 100,000 into nothing, so a
    generation gets its share of all steps as its width, but never less than a fixed part. Returned are each run's
    generation (0 for runs without a parent here), and the segments by generation.
    """
    generation: dict[str, int] = {}
    for run in board.runs:  # parents come before children
        generation[run.id] = generation[run.parent] + 1 if run.parent in generation else 0
    steps = [0] * (max(generation.values(), default=0) + 1)
    names: list[dict[str, None]] = [{} for _ in steps]
    for run in board.runs:
        at = generation[run.id]
        saved = [row.step for row in board.rows if row.run == run.id and row.step is not None]
        steps[at] = max([steps[at], *saved, *(step for step, _ in run.losses[-1:])])
        names[at][plain(run.stage or run.name, 20)] = None
    total = sum(steps) or 1
    segments, start = [], 0.0
    for step, name in zip(steps, names, strict=True):
        end = start + max(step / total, _NARROWEST)
        segments.append(Segment(start, end, step, ", ".join(name)))
        start = end
    return generation, segments


def _place(segment: Segment, step: float) -> float:
    return segment.start + (step / segment.steps if segment.steps else 0.0) * (segment.end - segment.start)


def _loss_chart(board: Leaderboard, layout: _Layout) -> Chart | None:
    """Draws every run's training loss, and its evaluation loss dashed; None where no run logged two steps."""
    generation, segments = layout
    series = [
        Series(run.id, index, tuple(Point(_place(segment, s), v) for s, v in thin(values)), dots=False, dashed=dashed)
        for index, run in enumerate(board.runs)
        for segment in (segments[generation[run.id]],)
        for values, dashed in ((run.losses, False), (run.eval_losses, True))
        if values
    ]
    svg = chart(series, segments, name="Loss over training steps", x_label=X_LABEL)
    if svg is None:
        return None
    dashed = "; dashed: evaluation loss" if any(run.eval_losses for run in board.runs) else ""
    return Chart("Loss", f"↓ as each stage defines it, so not comparable between stages{dashed}", svg, index=0)


def _source_charts(board: Leaderboard, layout: _Layout) -> list[Chart]:
    """Draws the loss on each source of the runs' mixtures, of those sources that most runs have learnt from."""
    generation, segments = layout
    found: dict[str, list[Series]] = {}
    for index, run in enumerate(board.runs):
        segment = segments[generation[run.id]]
        for name, values in run.source_losses.items():
            points = tuple(Point(_place(segment, step), value) for step, value in thin(values))
            found.setdefault(name, []).append(Series(run.id, index, points, dots=False))
    names = sorted(found, key=lambda name: -len(found[name]))[:_MOST_SOURCES]  # of equals those that came first
    charts = []
    for name in names:
        svg = chart(found[name], segments, name=f"Loss on {plain(name)} over training steps", x_label=X_LABEL)
        if svg is not None:
            charts.append(
                Chart(f"Loss on {plain(name, 60)}", "↓ of training, this source's tokens alone", svg, index=0)
            )
    return charts


# --- rewards against KL ---


def training_curve(run: BoardRun, log: Sequence[Record]) -> Curve | None:
    """Returns a run's curve from its log: from evaluations where there are two or more, else from training."""
    for prefix, kind in _KINDS.items():
        points = _points(run, log, prefix)
        if len(points) > 1:
            return Curve(run.name, kind, points, run.id)
    return None


def _points(run: BoardRun, log: Sequence[Record], prefix: str) -> tuple[CurvePoint, ...]:
    found: dict[int, CurvePoint] = {}
    for line in log:
        step, kl, reward = whole(line.get("step")), finite(line.get(f"{prefix}kl")), finite(line.get(f"{prefix}reward"))
        tokens = finite(line.get(f"{prefix}completions/mean_length")) if run.stage in _PER_TOKEN else 1.0
        if step is not None and kl is not None and reward is not None and tokens is not None:
            gold = finite(line.get(f"{prefix}rewards/gold/mean"))
            found[step] = CurvePoint(step, kl * tokens, reward, gold)  # a resumed run logs a step again
    return tuple(found[step] for step in sorted(found))


def best_of_n_curves(folders: Sequence[Path]) -> tuple[list[Curve], list[Notice]]:
    """Reads what the tool ``best_of_n`` wrote beside run folders; a damaged file becomes a notice."""
    beside = {path.resolve() for folder in folders for path in folder.resolve().parent.glob(f"*/{FILE}")}
    curves, notices = [], []
    for path in sorted(path for path in beside if not is_set_aside(path.parent)):
        try:
            record = json.loads(path.read_bytes())
            points = tuple(_best_of(point) for point in record["points"])
            names = {key: text(record.get(key)) for key in ("reward", "gold")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{plain(path.parent.name)}/{FILE} cannot be read ({plain(error, 120)})"
            notices.append(Notice("error", what))
            continue
        curves.append(Curve(path.parent.name, "best-of-n", points, None, **names))
    return curves, notices


def _best_of(point: Record) -> CurvePoint:
    known = {key: finite(point.get(key)) for key in ("gold", "reward_stderr", "gold_stderr")}
    n, kl, reward = int(point["n"]), float(point["kl"]), float(point["reward"])
    return CurvePoint(n, kl, reward, **known, prompts=whole(point.get("prompts")))


def thinned(curve: Curve) -> Curve:
    """Averages runs of neighbours of a long log, so that the noise of single steps does not hide the curve."""
    if curve.kind == "best-of-n" or len(curve.points) <= _DOTS:
        return curve
    kl, reward, gold = (
        thin([(point.at, value) for point in curve.points if (value := getattr(point, key)) is not None], 60)
        for key in ("kl", "reward", "gold")
    )
    known = [value for _, value in gold] if len(gold) == len(kl) else [None] * len(kl)
    points = [CurvePoint(round(at), x, y, z) for (at, x), (_, y), z in zip(kl, reward, known, strict=True)]
    return replace(curve, points=tuple(points))


def reward_charts(board: Leaderboard) -> list[Chart]:
    """Draws two charts on one x axis: the reward that is optimised, and gold; none without curves."""
    shown = [thinned(curve) for curve in board.curves]
    far = max((_root(point.kl) for curve in shown for point in curve.points), default=0.0)
    if far <= 0:
        return []
    found = []
    texts = {"reward": ("Reward that is optimised", "reward"), "gold": ("Gold reward, never optimised", "gold reward")}
    for key, (title, what) in texts.items():
        series = [item for place, curve in enumerate(shown) if (item := _series(board, curve, place, key)).points]
        name = f"{title}, against KL"
        svg = chart(series, [Segment(0.0, far, far, "")], name=name, x_label=KL_LABEL, log=False)
        if svg is not None:
            found.append(Chart(title, f"↑ mean {what} of an answer", svg))
    return found


def _root(kl: float) -> float:
    return math.sqrt(max(kl, 0.0))  # an estimate may be slightly negative


def _series(board: Leaderboard, curve: Curve, place: int, key: str) -> Series:
    best = curve.kind == "best-of-n"
    points = []
    for point in curve.points:
        value, error = getattr(point, key), getattr(point, f"{key}_stderr")
        if value is not None:
            where = f"best of {point.at}" if best else f"step {point.at}"
            label = f"{plain(curve.name, 40)} {where}: KL {point.kl:.3g}, {key} {value:.4g}"
            ends = interval(value, error, point.prompts, scale_of("reward"))
            points.append(Point(_root(point.kl), value, ends and ends.low, ends and ends.high, label))
    dots = best or len(points) <= _DOTS
    name = curve.run or f"best-{place}"
    return Series(name, color_of(board, curve, place), tuple(points), dots=dots, dashed=best)


def color_of(board: Leaderboard, curve: Curve, place: int) -> int:
    """Returns the colour of a curve: that of its run, and of a best-of-n the next one that is free."""
    ids = [run.id for run in board.runs]
    first = next((i for i, other in enumerate(board.curves) if other.run is None), 0)
    return ids.index(curve.run) if curve.run in ids else len(ids) + place - first
