"""Recomputes published figures of AlpacaEval 2 and of lm-evaluation-harness with this project's statistics.

    python benchmarks/published/recompute.py DATA [--intervals]

DATA is a folder with ``judge/alpaca_eval2`` and ``leaderboard/pythia_lm_eval`` (``README.md`` beside this says what
lies in them and where it comes from). Prints each figure beside the published one as Markdown. Exit code 1 says that
one is further off than allowed, 2 that a file is missing.

``--intervals`` also bootstraps the length-controlled win rates, with the penalty as first chosen and, for comparison,
chosen anew on each resample.
"""

# Pyright cannot follow the import hook that maps `posttrain.…` to the rooms.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import argparse
import csv
import gzip
import hashlib
import json
import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from posttrain.evals.stats.intervals import binary_successes, mean_estimate, widened
from posttrain.evals.stats.win_rates import (
    at_equal_length,
    counts,
    fit,
    length_controlled,
    pool_difficulty,
    win_rate,
)

EXACT, CONTROLLED = 1e-6, 0.02
STRENGTHS = [float(c) for c in np.logspace(-4, 4, 10)]
FOLDS, ANCHOR_WEIGHT = 5, 0.1  # AlpacaEval: lambda .2, halved between its two rewritten baselines
FILES = ("leaderboard_rows_for_these_models", "instruction_difficulty", "annotations_compact_5models")


@dataclass(frozen=True)
class Anchors:
    """Battles of the baseline's own answers, rewritten to other lengths, against the baseline; two for each prompt.

    They tell the regression what length alone does, and count little.

    Attributes:
        preferences: For the rewritten answer, in [0, 1], ``[n]``.
        features: Its length less the baseline's, squashed, the prompt's difficulty, and 0, ``[n, 3]``.
        prompts: ``[n]``.
    """

    preferences: np.ndarray
    features: np.ndarray
    prompts: list[str]


@dataclass(frozen=True)
class AlpacaEval:
    """AlpacaEval 2's data, everything keyed by the hash of the instruction.

    Attributes:
        board: The published row of each model.
        preferences: By model and prompt, in [0, 1].
        lengths: By model and prompt, characters of its answer less the baseline's.
        difficulty: By prompt.
        anchors: The two rewritten baselines.
    """

    board: dict[str, dict[str, str]]
    preferences: dict[str, dict[str, float]]
    lengths: dict[str, dict[str, float]]
    difficulty: dict[str, float]
    anchors: Anchors


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def unzipped(path: Path) -> Any:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def key_of(instruction: str) -> str:
    return hashlib.sha256(instruction.encode()).hexdigest()[:16]


def preference_of(cell: float) -> float:
    """Returns AlpacaEval's code, 1 for the baseline to 2 for the model and 0 or 1.5 for a draw, as a share."""
    return 0.5 if cell == 0 else cell - 1


def load_alpaca(folder: Path) -> AlpacaEval:
    board, difficulties, compact = (rows_of(folder / f"{name}.csv") for name in FILES)
    # The tables know a prompt by its row in the baseline's file: that is turned into its hash once, here.
    prompts = [
        key_of(row["instruction"]) for row in unzipped(folder / "outputs/gpt4_1106_preview.model_outputs.json.gz")
    ]
    preferences: dict[str, dict[str, float]] = defaultdict(dict)
    lengths: dict[str, dict[str, float]] = defaultdict(dict)
    for row in compact:
        prompt = prompts[int(row["index"])]
        preferences[row["model"]][prompt] = preference_of(float(row["preference"]))
        lengths[row["model"]][prompt] = float(row["len_2"]) - float(row["len_1"])
    # The one model whose annotations are here in full is read from them, joined by the instruction itself.
    full = unzipped(folder / "annotations/vicuna-7b.annotations.json.gz")
    preferences["vicuna-7b"] = {key_of(row["instruction"]): preference_of(float(row["preference"])) for row in full}
    lengths["vicuna-7b"] = {key_of(row["instruction"]): len(row["output_2"]) - len(row["output_1"]) for row in full}
    gamed = rows_of(folder / "gamed_baseline_equivalent.csv")
    columns = [np.tanh([-float(row["std_delta_len"]) for row in gamed])]
    columns += [np.array([float(row["instruction_difficulty"]) for row in gamed]), np.zeros(len(gamed))]
    liked = np.array([float(row["preference"]) for row in gamed])
    anchors = Anchors(liked, np.stack(columns, axis=1), [prompts[int(row["index"])] for row in gamed])
    return AlpacaEval(
        board={row[""]: row for row in board},
        preferences=dict(preferences),
        lengths=dict(lengths),
        difficulty={prompts[int(row["index"])]: float(row["instruction_difficulty"]) for row in difficulties},
        anchors=anchors,
    )


def check_raw(data: AlpacaEval) -> float:
    """Prints raw win rates; returns the largest distance, in points and in counts."""
    print("| model | win rate | standard error | wins | losses | draws | n | discrete | largest distance |")
    print("|---|---|---|---|---|---|---|---|---|")
    worst = 0.0
    for model, row in data.board.items():
        # The baseline against itself is a draw by definition; upstream has no annotations of it.
        by_prompt = data.preferences.get(model) or dict.fromkeys(data.difficulty, 0.5)
        values = list(by_prompt.values())
        found, count = win_rate(values), counts(values)
        discrete = (count.wins + count.draws / 2) / count.total  # if every preference is taken for a vote
        assert found.stderr is not None, "many prompts"
        ours = (100 * found.value, 100 * found.stderr, count.wins, count.losses, count.draws, count.total)
        names = ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate")
        figures = (*ours, 100 * discrete)
        distance = max(abs(figure - float(row[name])) for figure, name in zip(figures, names, strict=True))
        cells = [f"{figure:.6f}" if isinstance(figure, float) else str(figure) for figure in figures]
        print(f"| {model} | {' | '.join(cells)} | {distance:.0e} |")
        worst = max(worst, distance)
    return worst


def arrays(data: AlpacaEval, model: str) -> tuple[list[float], list[float], list[float], list[str]]:
    prompts = list(data.preferences[model])
    lengths = [data.lengths[model][prompt] for prompt in prompts]
    hard = [data.difficulty[prompt] for prompt in prompts]
    return [data.preferences[model][prompt] for prompt in prompts], lengths, hard, prompts


def choose_strength(features: np.ndarray, labels: np.ndarray, weights: np.ndarray, fold: np.ndarray) -> float:
    """Returns the C that predicts rows left out best, of ten between 1e-4 and 1e4.

    The score of a fold is its weighted soft log-loss over its rows, and folds count alike, as in scikit-learn's
    ``LogisticRegressionCV`` with a ``GroupKFold`` of five.
    """
    folds = np.arange(FOLDS)[:, None]
    left = fold == folds
    start, losses = np.zeros((FOLDS, features.shape[1])), []
    for strength in STRENGTHS:
        start = fit(features, labels, weights * ~left, strength, start)
        eta = start @ features.T
        loss = (weights * left * (np.logaddexp(0, eta) - labels * eta)).sum(axis=1)
        losses.append(float((loss / left.sum(axis=1)).mean()))
    return STRENGTHS[int(np.argmin(losses))]


def with_anchors(
    data: AlpacaEval, model: str, times: np.ndarray, strength: float | None = None
) -> tuple[np.ndarray, float]:
    """Returns AlpacaEval's own length-controlled win rate of some resamples, ``[resamples]``, and the last C.

    Args:
        data: With the anchors, which are a prior and not resampled.
        model: Whose rate it is.
        times: How often each prompt counts, ``[resamples, prompts]``.
        strength: C; chosen by cross-validation over prompts, for each resample, by default.
    """
    values, lengths, hard, prompts = arrays(data, model)
    n, anchors = len(values), data.anchors
    scaled = np.tanh(np.array(lengths) / np.std(lengths, ddof=1))
    features = np.concatenate([np.stack([scaled, hard, np.ones(n)], axis=1), anchors.features])
    labels = np.concatenate([values, anchors.preferences])
    places = {prompt: place for place, prompt in enumerate(prompts)}
    fold = np.array([*range(n), *(places[prompt] for prompt in anchors.prompts)]) % FOLDS
    rates, chosen = [], 0.0
    for some in times:
        weights = np.concatenate([some, np.full(len(anchors.prompts), ANCHOR_WEIGHT)])
        chosen = strength or choose_strength(features, labels, weights, fold)
        found = fit(features, labels, weights[None], chosen, np.zeros((1, 3)))
        rates.append(float(at_equal_length(found[:, 1:], features[:n, 1:], some[None])[0]))
    return np.array(rates), chosen


def check_controlled(data: AlpacaEval) -> float:
    """Prints length-controlled win rates; returns the largest distance in points."""
    print("\n| model | published | ours | distance | no anchors, pooled difficulty | neither |")
    print("|---|---|---|---|---|---|")
    distances: list[tuple[float, float, float]] = []
    for model in data.preferences:
        values, lengths, _, prompts = arrays(data, model)
        published = float(data.board[model]["length_controlled_winrate"])
        exact = float(with_anchors(data, model, np.ones((1, len(values))))[0][0])
        pool = pool_difficulty([by for other, by in data.preferences.items() if other != model])
        pooled = length_controlled(values, lengths, [pool[prompt] for prompt in prompts], prompts, draws=0)
        bare = length_controlled(values, lengths, None, prompts, draws=0)
        ours = tuple(100 * value for value in (exact, pooled.value, bare.value))
        off = (abs(ours[0] - published), abs(ours[1] - published), abs(ours[2] - published))
        print(f"| {model} | {published:.4f} | {ours[0]:.4f} | {off[0]:.4f} | {ours[1]:.2f} | {ours[2]:.2f} |")
        distances.append(off)
    means = np.mean(distances, axis=0)
    print(f"\nMean distance: {means[0]:.4f} with the published recipe, {means[1]:.1f} with pooled difficulties,")
    print(f"{means[2]:.1f} with neither, in points.")
    return max(distance for distance, _, _ in distances)


def show_intervals(data: AlpacaEval, draws: int = 500, rechosen: int = 100) -> None:
    print("\n| model | published error | bootstrap error, penalty fixed | penalty rechosen | 95% interval |")
    print("|---|---|---|---|---|")
    for model in data.preferences:
        n, rng = len(data.preferences[model]), np.random.default_rng(0)
        times = np.stack([np.bincount(rng.integers(0, n, n), minlength=n).astype(float) for _ in range(draws)])
        whole, strength = with_anchors(data, model, np.ones((1, n)))
        rates, _ = with_anchors(data, model, times, strength)
        error, again = (100 * np.std(some, ddof=1) for some in (rates, with_anchors(data, model, times[:rechosen])[0]))
        low, high = widened(float(whole[0]), *np.quantile(rates, (0.025, 0.975)).tolist(), n)
        assert low is not None, "many prompts"
        assert high is not None, "many prompts"
        published = data.board[model]["lc_standard_error"]
        said = f"{float(published):.2f}" if published else "none"
        print(f"| {model} | {said} | {error:.2f} | {again:.2f} | {100 * low:.2f} to {100 * high:.2f} |")


def check_harness(folder: Path) -> float:
    """Recomputes standard errors from 0/1 items; returns the largest distance.

    The result files do not say how many documents a task has. It is taken from the first file, as the one whole number
    that its figure and error name, and has to explain every other file and metric.
    """
    files = sorted(folder.glob("*.json"))
    results = [json.loads(path.read_text(encoding="utf-8"))["results"] for path in files]
    sizes: dict[str, int] = {}
    distances: dict[str, list[float]] = defaultdict(list)
    left: dict[str, int] = defaultdict(int)
    for result in results:
        for task, metrics in result.items():
            for name in (key for key in metrics if f"{key}_stderr" in metrics):
                value, stderr = metrics[name], metrics[f"{name}_stderr"]
                if name not in ("acc", "acc_norm", "pct_stereotype"):
                    left[name] += 1
                    continue
                n = sizes.setdefault(task, round(value * (1 - value) / stderr**2 + 1))
                ones = binary_successes(value, stderr, n)
                found = mean_estimate(np.arange(n) < ones).stderr if ones is not None else None
                distances[name].append(math.inf if found is None else abs(found - stderr))
    print("\n| metric | standard errors | files | tasks | largest distance |")
    print("|---|---|---|---|---|")
    for name, found in distances.items():
        print(f"| {name} | {len(found)} | {len(files)} | {len(found) // len(files)} | {max(found):.0e} |")
    without = ", ".join(f"{count} of {name}" for name, count in left.items())
    print(f"\nNot recomputed, since each needs the documents' own values: {without}.")
    return max(map(max, distances.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds judge/ and leaderboard/")
    parser.add_argument("--intervals", action="store_true", help="bootstrap the length-controlled win rates too")
    options = parser.parse_args()
    try:
        data = load_alpaca(options.data / "judge/alpaca_eval2")
        raw, controlled = check_raw(data), check_controlled(data)
        harness = check_harness(options.data / "leaderboard/pythia_lm_eval")
    except FileNotFoundError as error:
        print(f"{error.filename}: no such file", file=sys.stderr)
        return 2
    if options.intervals:
        show_intervals(data)
    print(f"\nraw within {raw:.0e} ({EXACT:.0e} allowed), length-controlled within {controlled:.4f} ({CONTROLLED})")
    print(f"lm-eval's standard errors within {harness:.0e} ({EXACT:.0e})")
    return int(raw > EXACT or controlled > CONTROLLED or harness > EXACT)


if __name__ == "__main__":
    raise SystemExit(main())
