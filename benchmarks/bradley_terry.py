"""One million battles of 60 models: ratings with 1,000 prompt-cluster bootstraps, beside evalica.

    pip install evalica
    OMP_NUM_THREADS=1 python benchmarks/bradley_terry.py [--rounds 5] [--battles 1000000] [--prompts 2000]

Both rate the same battles, made here from a seed, in turns in one process of one thread. The time is CPU time from
arrays of labels to ratings, so what each needs to count the battles is in it; the labels' own making is not. evalica
has no bootstrap over prompts: its own resamples single battles, of which a few are timed. Prints Markdown. Exit code 1
says that fit and bootstraps took more than 2 s in the median, or that ratings differ by more than half a point.
"""

# Pyright cannot follow the import hook that maps `posttrain.…` to the rooms, and evalica is no dependency.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import argparse
import datetime
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from posttrain.evals.stats.bradley_terry import SCALE, fit

CEILING, POINTS = 2.0, 0.5
DRAWS, FEW = 1000, 3


def make(battles: int, players: int, prompts: int) -> tuple[Any, Any, Any, Any]:
    """Returns two players, a preference and a prompt for each battle; players have their own luck on each prompt."""
    rng = np.random.default_rng(0)
    theta = rng.normal(0, 0.8, players)
    a = rng.integers(0, players, battles)
    b = (a + rng.integers(1, players, battles)) % players
    prompt = rng.integers(0, prompts, battles)
    luck = rng.normal(0, 0.5, (prompts, players))
    chance = 1 / (1 + np.exp(theta[b] - theta[a] + luck[prompt, b] - luck[prompt, a]))
    won = (rng.random(battles) < chance).astype(float)
    return a, b, np.where(rng.random(battles) < 0.15, 0.5, won), prompt


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def evalica_work(a: Any, b: Any, preference: Any) -> tuple[Callable[[], Any], Callable[[], Any]] | None:
    """Returns evalica's fit and a few of its resamples, or None where it is not installed."""
    try:
        import evalica
    except ImportError:
        return None
    xs, ys = a.tolist(), b.tolist()
    kinds = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
    winners = [kinds[value] for value in preference.tolist()]

    def one() -> Any:
        return evalica.bradley_terry(xs, ys, winners)

    def several() -> Any:
        return evalica.bootstrap(
            evalica.bradley_terry,
            xs,
            ys,
            winners,
            n_resamples=FEW,
            bootstrap_method="percentile",
            random_state=0,
        )

    return one, several


def furthest(ranking: Any, scores: Any) -> float:
    """Returns the largest difference of two sets of ratings with the same mean, in Elo points."""
    ours = dict(zip(ranking.names, ranking.rating, strict=True))
    theirs = {int(name): SCALE * float(np.log(score)) for name, score in scores.items()}
    shift = statistics.fmean(ours.values()) - statistics.fmean(theirs.values())
    return max(abs(ours[name] - theirs[name] - shift) for name in ours)


def version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} not installed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--battles", type=int, default=1_000_000)
    parser.add_argument("--players", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=2000)
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        print("set OMP_NUM_THREADS=1, so that one core is one core", file=sys.stderr)
        return 2
    a, b, preference, prompt = make(options.battles, options.players, options.prompts)
    peer = evalica_work(a, b, preference)
    fit(a[:1000], b[:1000], preference[:1000], prompt[:1000], draws=10)  # imports are not timed
    versions = ", ".join(map(version, ("numpy", "scipy", "evalica")))
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}\n")
    print(f"{options.battles:,} battles, {options.players} players, {options.prompts:,} prompts; CPU seconds.\n")
    print(f"| round | fit | fit and {DRAWS:,} prompt bootstraps | evalica: fit | ratio of fits | evalica: a resample |")
    print("|---|---|---|---|---|---|")
    rounds, apart, ratios = [], 0.0, []
    for number in range(options.rounds):
        alone, _ = timed(lambda: fit(a, b, preference, prompt, draws=0))
        theirs, scores = timed(peer[0]) if peer else (float("nan"), None)
        whole, ranking = timed(lambda: fit(a, b, preference, prompt, draws=DRAWS))
        few = timed(peer[1])[0] if peer and number == 0 else float("nan")
        each = f"{(few - theirs) / FEW:.2f}" if few == few else ""
        apart = max(apart, furthest(ranking, scores.scores)) if scores is not None else apart
        print(f"| {number + 1} | {alone:.2f} | {whole:.2f} | {theirs:.2f} | {theirs / alone:.1f} | {each} |")
        rounds.append(whole)
        ratios.append(theirs / alone)
    median = statistics.median(rounds)
    print(f"\nMedian of fit and bootstraps {median:.2f} s, at most {CEILING:.0f} wanted.")
    if peer:
        print(f"Median ratio of fits {statistics.median(ratios):.1f}; ratings differ by at most {apart:.3f} points.")
    return int(median > CEILING or apart > POINTS)


if __name__ == "__main__":
    raise SystemExit(main())
