"""Splits the pairs of the real run and measures what the lengths of the answers alone would give.

python benchmarks/real_run/preference.py split      # writes runs/real_run/preference/heldout.jsonl
python benchmarks/real_run/preference.py lengths    # prints the accuracy of "the shorter (or longer) answer"
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

from posttrain.data_tools.errors import RowError
from posttrain.data_tools.pairs import read_preference
from posttrain.evals.statistics import wilson

SOURCE = Path(__file__).parents[3] / "shared/data/preference/hh_rlhf_harmless/harmless_base_test_first1812.jsonl.gz"
HELD_OUT = Path("runs/real_run/preference/heldout.jsonl")
TRAINED = 1312  # the first 1,300 usable rows, which the recipes train on, all lie in these


def rows() -> list[dict[str, Any]]:
    """Reads the pairs in their order."""
    with gzip.open(SOURCE, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def opening(row: dict[str, Any]) -> str:
    """Returns the first turn, which two rows about one conversation share."""
    return row["chosen"].split("\n\nAssistant:")[0].strip()


def split() -> None:
    """Writes the rows after those trained on, without conversations that begin like one of them."""
    every = rows()
    seen = {opening(row) for row in every[:TRAINED]}
    kept = [row for row in every[TRAINED:] if opening(row) not in seen]
    HELD_OUT.parent.mkdir(parents=True, exist_ok=True)
    HELD_OUT.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    print(
        f"{HELD_OUT}: {len(kept)} rows; {len(every) - TRAINED - len(kept)} left out for a first turn that is trained on"
    )


def lengths() -> None:
    """Prints how often the shorter answer is the chosen one in training, and the better rule's accuracy held out."""
    shorter, ties, n = _shorter(rows()[:TRAINED])
    print(f"training: the shorter answer is chosen in {shorter} of {n} pairs, {ties} ties")
    rule = "shorter" if shorter + ties / 2 >= n / 2 else "longer"
    held, ties, n = _shorter([json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()])
    right = (held if rule == "shorter" else n - ties - held) + ties / 2
    found = wilson(right, n)
    print(f"held out: the {rule} one is right in {right / n:.3f} [{found.low:.3f}, {found.high:.3f}] of {n} pairs")


def _shorter(pairs: list[dict[str, Any]]) -> tuple[int, int, int]:
    """Counts pairs with a shorter chosen answer (in characters), pairs of one length, and all usable pairs."""
    shorter = ties = n = 0
    for pair in pairs:
        try:
            row = read_preference(pair)
        except RowError:
            continue
        chosen, rejected = (len(row[side][-1]["content"]) for side in ("chosen", "rejected"))
        shorter, ties, n = shorter + (chosen < rejected), ties + (chosen == rejected), n + 1
    return shorter, ties, n


if __name__ == "__main__":
    {"split": split, "lengths": lengths}[sys.argv[1]]()
