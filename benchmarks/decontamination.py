"""Test items in training data: speed and recall beside lm-eval's Janitor, and paraphrases against chance.

    pip install pyarrow
    OMP_NUM_THREADS=1 python benchmarks/decontamination.py DATA [--rounds 3] [--choose]

DATA holds public data: ``dedup/near_dup_20k.parquet`` (20,000 documents), ``benchmarks/gsm8k/test.jsonl``,
``benchmarks/mmlu/test.jsonl.gz``, ``sft/gsm8k_train`` (the training split), ``sft/alpaca/alpaca_5000.json.gz``,
``sft/dolly_hhrlhf``, and ``decontamination/rephrased/rephrase_gsm8k.jsonl``, GSM8K's test split reworded by a language
model (lm-sys/llm-decontaminator). The time is CPU time of looking up, from texts in memory, without building the index
and without reading files. Prints Markdown. Exit code 1 says that fewer than 45,000 documents a CPU-second were looked
up by any rule, that a planted copy was missed, that a reworded item was claimed by n-grams, or that fewer than 90% of
reworded items among other rows were told at the rate of .1%.

What the paraphrase verdict weighs was chosen on other data (``choose``, with ``--choose``): rows of GSM8K's training
split, reworded by rules, among the rest of it and among code, and HumanEval reworded in Python and JavaScript.
"""

# Pyright cannot follow the import hook that maps `posttrain.…` to the rooms.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import argparse
import contextlib
import datetime
import gzip
import importlib.metadata
import io
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from posttrain.data_tools.decontaminate import COPIES, Benchmarks, DecontaminateSpec
from posttrain.data_tools.ngrams import ngrams, split_words, words_in
from posttrain.data_tools.overlap import RULES, Item, Overlap, text_of
from posttrain.data_tools.paraphrases import Nearest, count_words
from posttrain.data_tools.spec import SourceSpec

FLOOR = 45_000  # documents a CPU-second
TOLD = 0.9
BATCH = 2048


def read(path: Path) -> list[dict[str, Any]]:
    """Reads JSON Lines or a JSON list, packed or not."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return (
        json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.split("\n") if line]
    )


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yields some texts at a time."""
    for first in range(0, len(texts), BATCH):
        yield texts[first : first + BATCH]


def ours(items: Sequence[Item], rule: str) -> Callable[[Sequence[str]], list[bool]]:
    """Returns what says of each text whether it holds an item, by a rule of ours."""
    overlap = Overlap(RULES[rule], items)

    def look(texts: Sequence[str]) -> list[bool]:
        found = set()
        for batch in batches(texts):
            found |= {match.row for match in overlap.look(split_words(batch))}
        first = overlap.rows - len(texts)
        return [first + place in found for place in range(len(texts))]

    return look


def janitor(items: Sequence[Item]) -> Callable[[Sequence[str]], list[bool]]:
    """Returns the same by lm-eval's Janitor at its own n of 13, in Python as it is installed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from lm_eval.decontamination.janitor import Janitor
    cleaner = Janitor(minimum_slice_length=0)
    for item in items:
        cleaner.register_contaminant_python(item.text)
    return lambda texts: [cleaner.clean_python(text) != [text] for text in texts]


def speed(documents: Sequence[str], items: Sequence[Item], more: Sequence[Item], rounds: int) -> float:
    """Prints documents a CPU-second of each; returns the least of ours at the median."""
    print(f"\n## Speed\n\n{len(documents):,} documents of {np.mean([*map(len, documents)]):.0f} characters, looked up")
    print(f"for {len(items):,} items (GSM8K test, question and answer), or for these and {len(more):,} of MMLU;")
    print(f"medians of {rounds} rounds in turns.\n")
    programs = {"13-grams (gpt3)": ours(items, "gpt3"), "8-grams (tulu3)": ours(items, "tulu3")}
    programs["8-grams (palm, as clean scores)"] = ours(items, "palm")
    programs["with MMLU, 10-grams (gpt3)"] = ours([*items, *more], "gpt3")
    programs["with MMLU, 8-grams (tulu3)"] = ours([*items, *more], "tulu3")
    programs["lm-eval's Janitor, 13-grams"] = janitor(items)
    rates: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, look in programs.items():
            some = documents if "Janitor" not in name else documents[:2000]
            began = time.process_time()
            look(some)
            rates[name].append(len(some) / (time.process_time() - began))
    print("| program | documents a CPU-second |\n|---|---|")
    for name, found in rates.items():
        print(f"| {name} | {statistics.median(found):,.0f} |")
    return min(statistics.median(found) for name, found in rates.items() if "Janitor" not in name)


def recall(documents: Sequence[str], items: Sequence[Item]) -> float:
    """Plants copies of items between halves of documents; prints how many are found, returns the share of ours."""
    print("\n## Recall\n\n1,000 copies of items, each between the halves of a document, changed in one way. Some")
    print("documents hold GSM8K themselves, as the share of reworded ones that are found shows.\n")
    names = ("13-grams (gpt3)", "8-grams (tulu3)", "Janitor")
    programs = dict(zip(names, (ours(items, "gpt3"), ours(items, "tulu3"), janitor(items)), strict=True))
    print(f"| copy | {' | '.join(names)} |\n|---|---|---|---|")
    draw = random.Random(0)
    least = 1.0
    for kind, change in COPIES.items():
        rows = []
        for item in draw.choices(items, k=1000):
            copy, around = change(item.text), draw.choice(documents)
            if copy is not None:
                rows.append(f"{around[: len(around) // 2]}\n{copy}\n{around[len(around) // 2 :]}")
        shares = {name: np.mean(look(rows)) for name, look in programs.items()}
        print(f"| {kind} | {' | '.join(f'{100 * share:.1f}%' for share in shares.values())} |")
        if kind not in ("other numbers", "reworded"):
            least = min(least, *(float(shares[name]) for name in names[:2]))
    return least


def shared_ngrams(items: Sequence[Item], rows: Sequence[str]) -> None:
    """Prints how many training rows share an n-gram with a test item."""
    wanted, given = split_words([item.question for item in items]), split_words(rows)
    counts = []
    for n in (8, 10, 13):
        hashes, bounds = ngrams(given, n)
        hits = np.isin(hashes, ngrams(wanted, n)[0])
        total = np.concatenate([[0], np.cumsum(hits)])
        counts.append(f"{int(np.sum(total[bounds[1:]] > total[bounds[:-1]]))} at n = {n}")
    print(
        f"\nOf {len(rows):,} rows of GSM8K's training split share an n-gram with its test split: {', '.join(counts)}."
    )


def paraphrases(data: Path, items: Sequence[Item], train: Sequence[str]) -> tuple[float, int]:
    """Prints how many reworded items are told among other rows; returns the least share, and n-gram hits."""
    print("\n## Paraphrases at a rate of .1%\n")
    reworded = [row["text"] for row in read(data / "decontamination/rephrased/rephrase_gsm8k.jsonl")]
    general = [text_of(row) for row in read(data / "sft/alpaca/alpaca_5000.json.gz")]
    general += [text_of(row) for row in read(next((data / "sft/dolly_hhrlhf").glob("*.jsonl")))]
    print("| rows | reworded items among them | told | right item | other rows told | n-gram hits (tulu3) |")
    print("|---|---|---|---|---|---|")
    least, hits = 1.0, 0
    for name, rows in (("Alpaca and Dolly", general), ("GSM8K train", list(train))):
        for count in (0, 66, 330, len(reworded)):
            share, right, others, grams = told(items, reworded, rows, count)
            print(
                f"| {name} ({len(rows):,}) | {count} | {f'{100 * share:.1f}%' if count else ''} | {right} | "
                f"{len(others)} ({100 * len(others) / len(rows):.2f}%) | {grams} |"
            )
            hits += grams
            least = min(least, share) if name != "GSM8K train" else least
    print("\nThe curve among GSM8K's training rows, 330 reworded items among them:\n")
    print(
        "| rate asked for | other rows told | of them with an 8-gram of that item | reworded told |\n|---|---|---|---|"
    )
    for rate in (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01):
        share, _, others, _ = told(items, reworded, train, 330, rate)
        near = sum(_share_ngram(items[number].question, train[row]) for row, number in others.items())
        print(
            f"| {100 * rate:g}% | {len(others)} ({100 * len(others) / len(train):.2f}%) | {near} | {100 * share:.1f}% |"
        )
    by_pairs(items, reworded, train)
    return least, hits


def told(
    items: Sequence[Item], reworded: Sequence[str], rows: Sequence[str], count: int, rate: float = 0.001
) -> tuple[float, int, dict[int, int], int]:
    """Puts reworded items among rows.

    Returns:
        The share of them that are told, how many as the right item, the other rows that are told with their items, and
        how many are claimed by n-grams.
    """
    chosen = random.Random(count).sample(range(len(reworded)), count)
    found = run(items, [*(reworded[number] for number in chosen), *rows], rate)
    by_row = {row: number for row, number, verdict in found if verdict == "possible paraphrase"}
    mine = [row for row in by_row if row < count]
    right = sum(by_row[row] == chosen[row] for row in mine)
    grams = sum(verdict == "n-grams" and row < count for row, _, verdict in found)
    others = {row - count: number for row, number in by_row.items() if row >= count}
    return len(mine) / count if count else 1.0, right, others, grams


def _share_ngram(one: str, other: str) -> bool:
    ours, theirs = (ngrams(split_words([text]), 8)[0] for text in (one, other))
    return bool(np.isin(ours, theirs).any())


class GSM8K(DecontaminateSpec):
    """The tool, with items that are in memory."""

    items_to_find: ClassVar[Sequence[Item]] = ()

    def benchmarks(self) -> Benchmarks:
        """Returns them."""
        return {"gsm8k": self.items_to_find}


def run(items: Sequence[Item], rows: Sequence[str], rate: float) -> list[tuple[int, int, str]]:
    """Runs the tool on rows; returns row, item and verdict of each finding."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        source.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        GSM8K.items_to_find = items
        GSM8K(sources=[SourceSpec(path=str(source))], paraphrase_rate=rate).run(Path(folder) / "out")
        found = read(Path(folder) / "out" / "evidence.log")
    return [(int(line["row"].rpartition(":")[2]) - 1, int(line["item"]), line["verdict"]) for line in found]


def choose(data: Path) -> None:
    """Prints the same of the data that the verdict's weights were chosen on."""
    rows = [row for file in sorted((data / "sft/gsm8k_train").iterdir()) for row in read(file)]
    code = [text_of(row) for row in read(data / "sft/codealpaca/code_alpaca_2k.json")]
    more = [text_of(row) for row in read(data / "sft/gpteacher/codegen-instruct.json.gz")]
    draw = random.Random(1)
    draw.shuffle(rows)
    items = [Item(str(number), row["question"]) for number, row in enumerate(rows[:1319])]
    rest = [text_of(row) for row in rows[1319:]]
    pool = [word for row in rows[1319:3000] for word in words_in(row["question"]) if not word[0].isdigit()]
    humaneval = read(data / "decontamination/rephrased/HumanEval.jsonl")
    functions = [Item(str(number), row["text"]) for number, row in enumerate(humaneval)]
    print("\n## The data that the weights were chosen on\n")
    print("| reworded | among | told | other rows told |\n|---|---|---|---|")
    for lost in (0.4, 0.55, 0.7):
        made = [_by_rules(item.question, lost, pool, draw) for item in items]
        for name, others in (("GSM8K train, the rest", rest), ("code", code)):
            share, _, found, _ = told(items, made, others, 330)
            what = f"330 rows of GSM8K train by rules, {100 * lost:.0f}% of words"
            print(f"| {what} | {name} | {100 * share:.1f}% | {100 * len(found) / len(others):.2f}% |")
    for language in ("python", "js"):
        made = [row["text"] for row in read(data / f"decontamination/rephrased/humaneval_{language}.jsonl")]
        share, _, found, _ = told(functions, made, [*code, *more], len(made))
        count = len(code) + len(more)
        print(f"| {len(made)} of HumanEval, {language} | code | {100 * share:.1f}% | {100 * len(found) / count:.2f}% |")


def _by_rules(text: str, lost: float, pool: Sequence[str], draw: random.Random) -> str:
    """Drops some words and exchanges others for any; numbers stay."""
    kept = []
    for word in words_in(text):
        chance = draw.random()
        if word[0].isdigit() or chance >= lost:
            kept.append(word)
        elif chance >= 0.4 * lost:
            kept.append(draw.choice(pool))
    return " ".join(kept)


def by_pairs(items: Sequence[Item], reworded: Sequence[str], train: Sequence[str]) -> None:
    """Prints the same by the plainer measure: likeness above what .1% of pairs of a row and an item have."""
    frequencies = count_words(split_words(train))
    nearest = Nearest(items, frequencies)
    draw = np.random.default_rng(0)
    null = []
    for batch in (train[first : first + 256] for first in range(0, len(train), 256)):
        alike = nearest.alike(split_words(batch))[1]
        null.append(draw.choice(alike.ravel(), alike.size // 20))
    threshold = float(np.quantile(np.concatenate(null), 0.999))
    mine = [nearest.alike(split_words([row]))[1] for row in reworded]
    places = {int(number): place for place, number in enumerate(nearest.numbers)}
    own = [float(alike[0, places[number]]) for number, alike in enumerate(mine) if number in places]
    rows = np.concatenate([nearest.of(split_words(train[i : i + 256])).alike[:, 0] for i in range(0, len(train), 256)])
    print(
        f"\nA rate over *pairs* says less. Likeness to the own item exceeds what .1% of the pairs of a row of GSM8K's "
        f"training split and an item have for {100 * np.mean(np.array(own) > threshold):.1f}% of the reworded; but "
        f"{100 * np.mean(rows > threshold):.0f}% of the training rows exceed it with some item."
    )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--choose", action="store_true", help="only what the weights were chosen on")
    args = parser.parse_args()
    import pyarrow.parquet

    if args.choose:
        choose(args.data)
        return
    documents = pyarrow.parquet.read_table(args.data / "dedup/near_dup_20k.parquet").column("text").to_pylist()
    test = read(args.data / "benchmarks/gsm8k/test.jsonl")
    items = [Item(str(number), row["question"], row["answer"]) for number, row in enumerate(test)]
    rows = [row for file in sorted((args.data / "sft/gsm8k_train").iterdir()) for row in read(file)]
    train = [text_of(row) for row in rows]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "scipy", "lm_eval"))
    print(f"{datetime.date.today()}, {platform.processor() or platform.machine()}, one thread, Python", end=" ")
    print(f"{platform.python_version()}, {versions}")
    mmlu = read(args.data / "benchmarks/mmlu/test.jsonl.gz")
    more = [Item(f"m{n}", row["question"], row["choices"][row["answer"]]) for n, row in enumerate(mmlu)]
    rate = speed(documents, items, more, args.rounds)
    least = recall(documents, items)
    shared_ngrams(items, [row["question"] for row in rows])
    share, hits = paraphrases(args.data, items, train)
    sys.exit(rate < FLOOR or least < 1 or share < TOLD or hits > 0)


if __name__ == "__main__":
    main()
