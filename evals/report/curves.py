"""Over-optimisation: the reward that is optimised and a gold reward that is not, against the KL divergence.

Gao et al. 2023, "Scaling laws for reward model overoptimization" (arXiv:2210.10760), figure 1: the x axis is the square
root of the KL divergence from the policy that training, or best-of-n, departed from.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..best_of_n import FILE
from ..curves import Point, Segment, Series, chart, thin
from ..stats.intervals import interval, scale_of
from .charts import Chart
from .model import Curve, CurvePoint, Leaderboard, Notice, Run
from .text import plain, text, whole

X_LABEL = "√KL from the starting policy, nats per answer"
_DOTS = 40  # points of a run up to which each is drawn
# TRL logs the mean over tokens; times the tokens of an answer it is the divergence of whole answers.
_PER_TOKEN = ("grpo", "rloo")


def training_curve(run: Run, log: Sequence[dict[str, Any]]) -> Curve | None:
    """Returns a run's curve from its log: from evaluations where there are two or more, else from training."""
    for prefix, kind in (("eval_", "evaluation"), ("", "training")):
        points = _points(run, log, prefix)
        if len(points) > 1:
            found: Literal["evaluation", "training"] = "evaluation" if kind == "evaluation" else "training"
            return Curve(run.name, found, points, run.id)
    return None


def _points(run: Run, log: Sequence[dict[str, Any]], prefix: str) -> tuple[CurvePoint, ...]:
    found: dict[int, CurvePoint] = {}
    for line in log:
        step, kl, reward = whole(line.get("step")), _number(line, f"{prefix}kl"), _number(line, f"{prefix}reward")
        tokens = _number(line, f"{prefix}completions/mean_length") if run.stage in _PER_TOKEN else 1.0
        if step is not None and kl is not None and reward is not None and tokens is not None:
            gold = _number(line, f"{prefix}rewards/gold/mean")
            found[step] = CurvePoint(step, kl * tokens, reward, gold)  # a resumed run logs a step again
    return tuple(found[step] for step in sorted(found))


def _number(line: dict[str, Any], key: str) -> float | None:
    value = line.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def best_of_n_curves(folders: Sequence[Path]) -> tuple[list[Curve], list[Notice]]:
    """Reads what the tool ``best_of_n`` wrote beside run folders; a damaged file becomes a notice."""
    beside = {path.resolve() for folder in folders for path in folder.resolve().parent.glob(f"*/{FILE}")}
    curves, notices = [], []
    for path in sorted(path for path in beside if ".old-" not in path.parent.name):
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


def _best_of(point: dict[str, Any]) -> CurvePoint:
    keys = ("gold", "reward_stderr", "gold_stderr")
    return CurvePoint(
        int(point["n"]),
        float(point["kl"]),
        float(point["reward"]),
        **{k: _number(point, k) for k in keys},
        prompts=whole(point.get("prompts")),
    )


def reward_charts(leaderboard: Leaderboard) -> list[Chart]:
    """Draws two charts on one x axis: the reward that is optimised, and gold; none without curves."""
    shown = [thinned(curve) for curve in leaderboard.curves]
    far = max((_x(point) for curve in shown for point in curve.points), default=0.0)
    if far <= 0:
        return []
    segment = Segment(0.0, far, far, "")
    found = []
    texts = {"reward": ("Reward that is optimised", "reward"), "gold": ("Gold reward, never optimised", "gold reward")}
    for key, (title, what) in texts.items():
        series = [_series(leaderboard, curve, place, key) for place, curve in enumerate(shown)]
        drawn = [item for item in series if item.points]
        svg = chart(drawn, [segment], name=f"{title}, against KL", x_label=X_LABEL, log=False) if drawn else None
        if svg is not None:
            found.append(Chart(title, f"↑ mean {what} of an answer", svg))
    return found


def thinned(curve: Curve) -> Curve:
    """Averages runs of neighbours of a long log, so that the noise of single steps does not hide the curve."""
    if curve.kind == "best-of-n" or len(curve.points) <= _DOTS:
        return curve
    columns = {
        key: thin([(point.at, value) for point in curve.points if (value := getattr(point, key)) is not None], 60)
        for key in ("kl", "reward", "gold")
    }
    gold = [value for _, value in columns["gold"]] if len(columns["gold"]) == len(columns["kl"]) else []
    points = tuple(
        CurvePoint(round(at), kl, reward, gold[i] if gold else None)
        for i, ((at, kl), (_, reward)) in enumerate(zip(columns["kl"], columns["reward"], strict=True))
    )
    return replace(curve, points=points)


def _x(point: CurvePoint) -> float:
    return math.sqrt(max(point.kl, 0.0))  # an estimate may be slightly negative


def color_of(leaderboard: Leaderboard, curve: Curve, place: int) -> int:
    """Returns the colour of a curve: that of its run, and of a best-of-n the next one that is free."""
    ids = [run.id for run in leaderboard.runs]
    first = next((i for i, other in enumerate(leaderboard.curves) if other.run is None), 0)
    return ids.index(curve.run) if curve.run in ids else len(ids) + place - first


def _series(leaderboard: Leaderboard, curve: Curve, place: int, key: str) -> Series:
    best = curve.kind == "best-of-n"
    points = []
    for point in curve.points:
        value, error = getattr(point, key), getattr(point, f"{key}_stderr")
        if value is None:
            continue
        where = f"best of {point.at}" if best else f"step {point.at}"
        label = f"{plain(curve.name, 40)} {where}: KL {point.kl:.3g}, {key} {value:.4g}"
        found = interval(value, error, point.prompts, scale_of("reward"))
        points.append(Point(_x(point), value, found and found.low, found and found.high, label))
    dots = best or len(points) <= _DOTS
    name = curve.run or f"best-{place}"
    return Series(name, color_of(leaderboard, curve, place), tuple(points), dots=dots, dashed=best)
