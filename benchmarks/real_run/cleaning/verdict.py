"""What cleaning did to each domain: bits per byte on cleaned less those on raw text, with a verdict.

    python benchmarks/real_run/cleaning/verdict.py runs/cleaning

Documents are paired. Where a side has several seeds, the difference is the mean over seeds, and its error holds both
the documents and the seeds: their variances are added, and Student's t has the degrees of freedom of Satterthwaite, "An
approximate distribution of estimates of variance components", Biometrics Bulletin 2 (1946).
All rows of the page are one family (Holm).
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
from posttrain.evals.report.items import Items, read_items, samples_path
from posttrain.evals.stats.compare import Difference, Hypothesis, from_error, judge


def items(folder: Path) -> dict[str, tuple[float, Items]]:
    """Returns the figure of each domain and its documents, of the last scored weights of a run."""
    found = {}
    for line in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines():
        score = json.loads(line)
        path = samples_path(folder, score)
        value = next(one["value"] for one in score["metrics"] if one["name"] == "bits_per_byte")
        documents = path and read_items(path, "bits_per_byte", value)
        if documents:
            found[score["task"]] = (value, documents)
    return found


def difference(cleaned: list[Items], raw: list[Items]) -> Difference:
    """Estimates the difference of two sides, a run for each seed."""
    by_seed = np.array([one.values - other.values for one, other in zip(cleaned, raw, strict=True)])
    documents = by_seed.mean(axis=0)
    parts = [(documents.var(ddof=1) / len(documents), len(documents) - 1)]
    if len(by_seed) > 1:
        parts.append((by_seed.mean(axis=1).var(ddof=1) / len(by_seed), len(by_seed) - 1))
    variance = sum(part for part, _ in parts)
    df = variance**2 / sum(part**2 / free for part, free in parts)
    return from_error(float(documents.mean()), math.sqrt(variance), len(documents), df, "t")


def unfit(folder: Path, domain: str) -> set[str]:
    """Returns the numbers of the held-out documents that the rules would leave out."""
    path = folder / "held_prose" / f"{domain}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {str(number) for number, line in enumerate(lines) if json.loads(line)["clean_reasons"]}


def main() -> None:
    """Prints a table for each model."""
    folder = Path(sys.argv[1])
    models = {"small": ["-1", "-2", "-3"], "smollm2": [""]}
    questions, figures = {}, {}
    for model, seeds in models.items():
        sides = [[items(folder / f"{model}-{side}{seed}") for seed in seeds] for side in ("cleaned", "raw")]
        for domain in sides[0][0]:
            whole = [[run[domain][1] for run in side] for side in sides]
            fit = [[one.without(unfit(folder, domain)) for one in side] for side in whole]
            figures[model, domain] = [np.mean([run[domain][0] for run in side]) for side in reversed(sides)]
            for name, some in (("as found", whole), ("that the rules keep", fit)):
                if name == "as found" or (some[0][0] and 1 < len(some[0][0].keys) < len(whole[0][0].keys)):
                    questions[model, domain, name] = Hypothesis(difference(*some), higher_is_better=False)
    answers = judge(questions)
    for model in models:
        print(f"\n{model}:\n\n| domain | raw | cleaned | documents | cleaned less raw | | smallest that would show |")
        print("|---|---|---|---|---|---|---|")
        for (whose, domain, name), answer in answers.items():
            if whose == model:
                raw, cleaned = (f"{value:.4f}" for value in figures[model, domain]) if name == "as found" else ("", "")
                found = answer.difference
                print(
                    f"| {domain if raw else ''} | {raw} | {cleaned} | {found.n} {name} | {found.value:+.4f} "
                    f"[{found.low:+.4f}, {found.high:+.4f}] | {answer.verdict} | {answer.smallest:.4f} |"
                )


if __name__ == "__main__":
    main()
