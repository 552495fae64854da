"""What the models of study.yaml are scored by."""

from pathlib import Path
from typing import Any

from posttrain.data_tools.functions import load_function
from posttrain.evals.models import LoadedModel
from posttrain.evals.row_scores import answer_likelihoods

HELD_OUT = 30  # problems of the test set: the first
FILE = Path("../shared/data/benchmarks/gsm8k/test.jsonl")


def solutions(model: Any, tokenizer: Any, step: int | None) -> list[float]:
    """Returns the bits per byte of each held-out solution given its problem, under the model's chat template."""
    row = load_function(f"{Path(__file__).with_name('pool.py')}:solution")
    rows = [row(line) for line in FILE.read_bytes().splitlines()[:HELD_OUT]]
    loaded = LoadedModel(model, tokenizer, None)
    found: list[Any] = answer_likelihoods(loaded, rows, alone=False, max_length=1024, batch_size=8)
    return [one.bits_per_byte for one in found]  # a row without a likelihood has none, which is told
