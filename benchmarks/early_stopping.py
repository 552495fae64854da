"""How often a run is stopped in error, and how soon in truth, by the verdict and by patience: a simulation.

    python benchmarks/early_stopping.py [--runs 2000]

Runs of made-up checkpoints, whose true scores are known, answer items of different difficulty. An early stop is false
where one of the checkpoints that it was made for is truly better than the best by ``min_delta`` or more.
"""

import argparse
from collections.abc import Callable

import numpy as np
from posttrain.evals.stats.stopping import no_gain

ITEMS, LOOKS, PATIENCE, MIN_DELTA = 1000, 12, 2, 0.03
Curve = Callable[[int], "np.ndarray"]


def _steps(gain: float, start: float = 0.4) -> "np.ndarray":
    return start + gain * np.arange(LOOKS)


CURVES: dict[str, "np.ndarray"] = {
    "rises by .03 a look": _steps(0.03),
    "rises by .015 a look": _steps(0.015),
    "rises by .03 once, after look 2": np.where(np.arange(LOOKS) < 2, 0.5, 0.53),
    "flat": np.full(LOOKS, 0.5),
    "rises by .05 to look 4, then falls by .03": np.concatenate(
        [_steps(0.05)[:4], 0.55 - 0.03 * np.arange(1, LOOKS - 3)]
    ),
    "falls by .10 after look 2": np.where(np.arange(LOOKS) < 2, 0.6, 0.5),
}
"""True scores of the checkpoints at each look."""


def answers(curve: "np.ndarray", items: int, rng: np.random.Generator, spread: float = 1.0) -> "np.ndarray":
    """Returns 0 or 1 for each checkpoint and item, ``[looks, items]``, whose means over items are the curve's.

    Items differ in difficulty (a probit model with one factor), and each checkpoint has its own noise on them.
    """
    from scipy.special import ndtri

    difficulty = spread * rng.standard_normal(items)
    level = ndtri(curve) * np.sqrt(1 + spread**2)
    return (level[:, None] + difficulty + rng.standard_normal((len(curve), items)) > 0).astype(np.float64)


def by_verdict(values: "np.ndarray", min_delta: float = MIN_DELTA) -> tuple[int, int] | None:
    """Returns the look, from 0, at which the verdict stops a run, and the checkpoint held best; None if it runs on."""
    for look in range(1, len(values)):
        scores = {str(number): dict(enumerate(row)) for number, row in enumerate(values[: look + 1].tolist())}
        found = no_gain(scores, looks=len(values), min_delta=min_delta, patience=PATIENCE)
        if found:
            return look, int(found.best)
    return None


def by_patience(values: "np.ndarray", min_delta: float = MIN_DELTA) -> tuple[int, int] | None:
    """Likewise for the rule of patience: so many scores in a row that pass the best one by less than ``min_delta``."""
    best, since = 0, 0
    means = values.mean(axis=1)
    for look in range(1, len(values)):
        if means[look] >= means[best] + min_delta:
            best, since = look, 0
        else:
            since += 1
        if since >= PATIENCE and look < len(values) - 1:
            return look, best
    return None


def simulate(curve: "np.ndarray", rule: Callable[["np.ndarray"], tuple[int, int] | None], runs: int, seed: int = 0):
    """Returns the share of runs stopped, the share stopped in error, and the mean look at which they stopped."""
    rng = np.random.default_rng(seed)
    stops, false = [], 0
    for _ in range(runs):
        found = rule(answers(curve, ITEMS, rng))
        if found:
            look, best = found
            stops.append(look + 1)
            false += bool((curve[look + 1 - PATIENCE : look + 1] >= curve[best] + MIN_DELTA - 1e-12).any())
    return len(stops) / runs, false / runs, float(np.mean(stops)) if stops else None


def main() -> None:
    """Writes the table beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args().runs
    lines = ["| true scores | verdict: stopped | in error | at look | patience: stopped | in error | at look |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, curve in CURVES.items():
        cells = []
        for rule in (by_verdict, by_patience):
            stopped, false, look = simulate(curve, rule, runs)
            cells += [f"{100 * stopped:.1f}%", f"{100 * false:.1f}%", "" if look is None else f"{look:.1f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
