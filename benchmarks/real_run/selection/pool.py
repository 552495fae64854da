"""What study.yaml chooses from; the data lie in `../shared/data`, as the README has it."""

import gzip
import json
import random
import re
from pathlib import Path

from posttrain.data_tools.files import write_atomic
from posttrain.data_tools.tool import Tool

DATA = Path("../shared/data")
LONGEST = 1200  # characters of a row of Alpaca, so that it fits into the 384 tokens that are trained on at once


class Pool(Tool):
    """Writes `pool.jsonl`, rows of Alpaca and problems of GSM8K's training set, and other such problems as queries."""

    general: int
    """Rows of Alpaca."""
    problems: int
    """Problems of GSM8K's training set in the pool."""
    queries: int
    """Problems of GSM8K's training set that are not: what is wanted."""

    def run(self, output_dir: Path) -> str:
        """Writes the files, drawn once for all seeds of the study."""
        draw = random.Random(0)
        alpaca = json.loads(gzip.decompress((DATA / "sft/alpaca/alpaca_5000.json.gz").read_bytes()))
        general = [row("\n\n".join(filter(None, (one["instruction"], one["input"]))), one["output"]) for one in alpaca]
        lines = gzip.decompress((DATA / "sft/gsm8k_train/train.jsonl.gz").read_bytes()).splitlines()
        solved = draw.sample([solution(line) for line in lines], self.problems + self.queries)
        fitting = [one for one in general if one["completion"] and len("".join(one.values())) <= LONGEST]
        pool = [*draw.sample(fitting, self.general), *solved[self.queries :]]
        draw.shuffle(pool)
        for name, rows in (("pool", pool), ("queries", solved[: self.queries])):
            write_atomic(output_dir / f"{name}.jsonl", "".join(json.dumps(one) + "\n" for one in rows))
        return f"{len(pool)} rows, {self.problems} of them problems"


def row(prompt: str, completion: str) -> dict[str, str]:
    """Returns a row as the recipe reads it."""
    return {"prompt": prompt, "completion": completion}


def solution(line: bytes) -> dict[str, str]:
    """Returns a problem of GSM8K without the calculator's notes, `<<48/2=24>>`, which are no prose."""
    value = json.loads(line)
    return row(value["question"], re.sub("<<.*?>>", "", value["answer"]))
