"""Splits the pairs of the real run and measures what the lengths of the answers alone would give.

python benchmarks/real_run/preference.py split      # writes runs/real_run/preference/heldout.jsonl
python benchmarks/real_run/preference.py lengths    # prints the accuracy of "the shorter (or longer) answer"
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

from posttrain.evals.stats.intervals import wilson
from posttrain.recipes.job import Job, open_job
from posttrain.recipes.load import load
from posttrain.recipes.rows import prepare_rows

SOURCE = Path(__file__).parents[3] / "shared/data/preference/hh_rlhf_harmless/harmless_base_test_first1812.jsonl.gz"
HELD_OUT = Path("runs/real_run/preference/heldout.jsonl")
TRAINED = 1312  # the first 1,300 usable rows, which the recipes train on, all lie in these


def opening(row: dict[str, Any]) -> str:
    """Returns the first turn, which two rows about one conversation share."""
    return row["chosen"].split("\n\nAssistant:")[0].strip()


def split() -> None:
    """Writes the rows after those trained on, without conversations that begin like one of them."""
    with gzip.open(SOURCE, "rt", encoding="utf-8") as lines:
        every = [json.loads(line) for line in lines]
    seen = {opening(row) for row in every[:TRAINED]}
    kept = [row for row in every[TRAINED:] if opening(row) not in seen]
    HELD_OUT.parent.mkdir(parents=True, exist_ok=True)
    HELD_OUT.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    print(
        f"{HELD_OUT}: {len(kept)} rows; {len(every) - TRAINED - len(kept)} left out for a first turn that is trained on"
    )


def lengths() -> None:
    """Prints how often the shorter answer is the chosen one in training, and the better rule's accuracy held out."""
    held_out = [f"data.eval.path={HELD_OUT}", "data.eval.format=preference"]
    job = open_job(load(Path(__file__).parent / "reward.yaml", held_out, {"sft": Path("runs/real_run/sft")}))
    shorter, ties, n = shorter_chosen(job, "train")
    print(f"training: the shorter answer is chosen in {shorter} of {n} pairs, {ties} ties")
    rule = "shorter" if shorter + ties / 2 >= n / 2 else "longer"
    shorter, ties, n = shorter_chosen(job, "eval")
    right = (shorter if rule == "shorter" else n - ties - shorter) + ties / 2
    found = wilson(right, n)
    print(f"held out: the {rule} one is right in {right / n:.3f} [{found.low:.3f}, {found.high:.3f}] of {n} pairs")


def shorter_chosen(job: Job, split: Any) -> tuple[int, int, int]:
    """Counts a split's pairs with fewer tokens in the chosen answer, with as many, and all."""
    prepared = prepare_rows(job, split)
    assert prepared is not None, "both splits are given"
    pairs = [(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in prepared.dataset.to_list()]
    return sum(a < b for a, b in pairs), sum(a == b for a, b in pairs), len(pairs)


if __name__ == "__main__":
    {"split": split, "lengths": lengths}[sys.argv[1]]()
