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
from .board import Curve, CurvePoint, Notice, Run
from .svg import thin
from .text import plain, text, whole

DOTS = 40
"""Points of a run up to which each is drawn."""
# TRL logs the mean over tokens; times the tokens of an answer it is the divergence of whole answers.
_PER_TOKEN = ("grpo", "rloo")
_KINDS: dict[str, Literal["evaluation", "training"]] = {"eval_": "evaluation", "": "training"}


def training_curve(run: Run, log: Sequence[dict[str, Any]]) -> Curve | None:
    """Returns a run's curve from its log: from evaluations where there are two or more, else from training."""
    for prefix, kind in _KINDS.items():
        points = _points(run, log, prefix)
        if len(points) > 1:
            return Curve(run.name, kind, points, run.id)
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
    known = {key: _number(point, key) for key in ("gold", "reward_stderr", "gold_stderr")}
    n, kl, reward = int(point["n"]), float(point["kl"]), float(point["reward"])
    return CurvePoint(n, kl, reward, **known, prompts=whole(point.get("prompts")))


def thinned(curve: Curve) -> Curve:
    """Averages runs of neighbours of a long log, so that the noise of single steps does not hide the curve."""
    if curve.kind == "best-of-n" or len(curve.points) <= DOTS:
        return curve
    kl, reward, gold = (
        thin([(point.at, value) for point in curve.points if (value := getattr(point, key)) is not None], 60)
        for key in ("kl", "reward", "gold")
    )
    known = [value for _, value in gold] if len(gold) == len(kl) else [None] * len(kl)
    points = [CurvePoint(round(at), x, y, z) for (at, x), (_, y), z in zip(kl, reward, known, strict=True)]
    return replace(curve, points=tuple(points))
