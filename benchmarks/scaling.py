"""Checks the scaling fit: do its intervals hold what was planted, and does it find what others published?

    OMP_NUM_THREADS=1 python benchmarks/scaling.py [svg_extracted_data.csv]

The file is that of github.com/epoch-research/analyzing-chinchilla (data/, sha256 193478df...): Figure 4 of Hoffmann et
al. 2022, read off the picture.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from posttrain.evals.stats.scaling import ParametricLaw, fit

# Besiroglu et al. 2024 (arXiv:2404.10102), table 1.
LAW = ParametricLaw(1.8172, 482.01, 0.3478, 2085.43, 0.3658)
SIMULATIONS = 100


def coverage(sizes: int, lengths: int, noise: float) -> list[int]:
    """Counts the simulations whose 95% interval holds alpha, beta and the exponent of compute."""
    held = [0, 0, 0]
    for seed in range(SIMULATIONS):
        n = np.repeat(np.geomspace(4e7, 1e10, sizes), lengths)
        d = n * np.tile(np.geomspace(3, 200, lengths), sizes)
        losses = LAW.loss(n, d) * np.exp(np.random.default_rng(seed).normal(0, noise, len(n)))
        found = fit(n, d, losses, draws=300, seed=seed)
        for place, name in enumerate(("alpha", "beta", "exponent")):
            estimate = found.estimate(lambda law, name=name: getattr(law, name))
            assert estimate.low is not None
            assert estimate.high is not None
            held[place] += estimate.low <= getattr(LAW, name) <= estimate.high
    return held


def published(path: Path) -> None:
    """Fits Epoch's points, by their choice and by three others."""
    print(f"\nsha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:8]}\n")
    print("| fit | E | A | alpha | B | beta | exponent | objective |\n|---|---|---|---|---|---|---|---|")
    points = pd.read_csv(path).sort_values("loss")
    for left_out, delta in ((5, 1e-3), (5, None), (0, 1e-3), (0, None)):
        some = points.iloc[: len(points) - left_out]
        n, flops, losses = (some[name].to_numpy() for name in ("Model Size", "Training FLOP", "loss"))
        found = fit(n, flops / 6 / n, losses, delta=delta, draws=1000 if (left_out, delta) == (5, 1e-3) else 0)
        law = found.law
        figures = [f"{law.E:.4f}", f"{law.A:.1f}", f"{law.alpha:.4f}", f"{law.B:.1f}", f"{law.beta:.4f}"]
        figures += [f"{law.exponent:.4f}", f"{found.objective:.7f}"]
        print(f"| {'Huber' if delta else 'squares'}, {len(some)} runs | {' | '.join(figures)} |")
        for name in ("alpha", "beta", "exponent") if found.resampled else ():
            one = found.estimate(lambda law, name=name: getattr(law, name))
            print(f"| its {name}: standard error {one.stderr:.4f}, [{one.low:.4f}, {one.high:.4f}] | | | | | | | |")


def main() -> None:
    """Prints both tables."""
    print("| sizes x lengths | noise of the loss | alpha held | beta held | exponent held |\n|---|---|---|---|---|")
    for sizes, lengths, noise in ((10, 6, 0.002), (6, 5, 0.002), (5, 4, 0.002)):
        held = coverage(sizes, lengths, noise)
        print(f"| {sizes} x {lengths} | {100 * noise:.1f}% | {held[0]} | {held[1]} | {held[2]} |", flush=True)
    if len(sys.argv) > 1:
        published(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
