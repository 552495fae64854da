"""Near-duplicates: recall, precision, speed and memory, beside datasketch and rensa.

    pip install pyarrow datasketch rensa
    OMP_NUM_THREADS=1 python benchmarks/dedup_speed.py DATA [--texts FOLDER] [--rounds 3]

DATA holds ``dedup/near_dup_20k.parquet`` and its truth, every pair of 5-gram similarity at least .5. From the text
files below ``--texts`` (Python's own packages by default) 200,000 documents of about the same length are cut, of which
a tenth are copies with a changed word. Time is CPU time from texts in memory to the list of what goes; each library is
told its usual parameters for a threshold of .8 and splits words as its users do. Prints Markdown. Exit code 1 says that
less than .985 of the pairs at .8 and above were compared, that a row went without a row that stays and is as like it,
that a document of 200,000 costs over 1.2 times one of 20,000, or more than 1.5 kB of memory.
"""

# Pyright cannot follow the import hook that maps `posttrain.…` to the rooms, and the peers need not be installed.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import argparse
import datetime
import importlib.metadata
import platform
import random
import statistics
import sys
import sysconfig
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from posttrain.data_tools.near_duplicates import Bands, Candidates, Removals, Shingles, choose_removals, jaccard
from posttrain.data_tools.ngrams import bounds_of, split_words, words_in

BANDS = Bands()
THRESHOLD = 0.8
CORE = "numpy"
BLOCK = 4096


def ours(texts: Sequence[str]) -> tuple[Removals, Candidates, Shingles]:
    """Finds what goes, as `data dedup` does: band keys of all texts, then shingles of those worth comparing."""
    keys = np.concatenate([BANDS.keys(split_words(block, CORE), 5, CORE) for block in blocks(texts)])
    candidates = Candidates.of(keys)
    wanted = np.zeros(len(texts), bool)
    for some in (candidates.pairs.ravel(), *candidates.buckets):
        wanted[some] = True
    shingles = shingles_of(texts, np.flatnonzero(wanted).tolist())
    place = np.cumsum(wanted) - 1
    removals = choose_removals(candidates, len(texts), lambda pairs: jaccard(shingles, place[pairs]), THRESHOLD)
    return removals, candidates, shingles


def shingles_of(texts: Sequence[str], chosen: Sequence[int]) -> Shingles:
    """Returns the shingles of some texts, made block by block."""
    hashes, counts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for block in blocks(chosen):
        part = Shingles.of(split_words([texts[one] for one in block], CORE), 5)
        hashes.append(part.hashes)
        counts.append(part.counts)
    return Shingles(np.concatenate(hashes), bounds_of(np.concatenate(counts)))


def blocks(values: Sequence) -> Iterator[Sequence]:
    """Yields some at a time."""
    for first in range(0, len(values), BLOCK):
        yield values[first : first + BLOCK]


def word_grams(text: str) -> set[str]:
    """Returns word 5-grams as users of the peers make them."""
    words = words_in(text)
    return {" ".join(words[place : place + 5]) for place in range(max(len(words) - 4, min(len(words), 1)))}


def with_datasketch(texts: Sequence[str]) -> int:
    """Returns how many texts have an earlier one in datasketch's index, 128 permutations."""
    from datasketch import MinHash, MinHashLSH

    index, gone = MinHashLSH(threshold=THRESHOLD, num_perm=128), 0
    for number, text in enumerate(texts):
        sketch = MinHash(num_perm=128)
        sketch.update_batch([gram.encode() for gram in word_grams(text)])
        gone += bool(index.query(sketch))
        index.insert(str(number), sketch)
    return gone


def with_rensa(texts: Sequence[str]) -> int:
    """Returns how many texts have an earlier one in rensa's index, 128 permutations, 16 bands."""
    from rensa import RMinHash, RMinHashLSH

    index, gone = RMinHashLSH(threshold=THRESHOLD, num_perm=128, num_bands=16), 0
    for number, text in enumerate(texts):
        sketch = RMinHash(num_perm=128, seed=1)
        sketch.update(list(word_grams(text)))
        gone += bool(index.query(sketch))
        index.insert(number, sketch)
    return gone


def cut_texts(folder: Path, count: int) -> list[str]:
    """Cuts documents of 500 to 1,400 characters from text files, a tenth of them followed by a changed copy."""
    draw = random.Random(0)
    texts: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".py", ".md", ".rst", ".txt") or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        place = 0
        while place < len(text) - 400:
            size = draw.randrange(500, 1400)
            texts.append(text[place : place + size])
            place += size
            if draw.random() < 0.1:
                words = texts[-1].split(" ")
                words[draw.randrange(len(words))] = "otherwise"
                texts.append(" ".join(words))
            if len(texts) >= count:
                return texts[:count]
    raise SystemExit(f"{folder} holds only {len(texts)} documents of {count}")


def template_rows(count: int) -> list[str]:
    """Returns rows of one template with answers of their own: half of each row's words are its own."""
    draw = random.Random(1)
    frame = "Read the question below with care and answer it in one sentence without any further remark Question"
    words = [
        f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "en", "ip", "ol", "un") for c in ("ka", "to", "ri", "mu")
    ]
    return [f"{frame} {number} {' '.join(draw.choices(words, k=16))}" for number in range(count)]


def cpu(run: Callable[[], object]) -> float:
    """Returns CPU seconds."""
    start = time.process_time()
    run()
    return time.process_time() - start


def peak(texts: Sequence[str]) -> float:
    """Returns the most memory that is held at a time beside the texts, in bytes a document, numpy's included."""
    tracemalloc.start()
    ours(texts)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / len(texts)


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--texts", type=Path, default=Path(sysconfig.get_paths()["purelib"]))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-peers", action="store_true")
    options = parser.parse_args()
    failed = []

    texts = pq.read_table(options.data / "dedup/near_dup_20k.parquet")["text"].to_pylist()
    truth = pq.read_table(options.data / "dedup/near_dup_20k_truth.parquet").to_pylist()
    removals, candidates, _ = ours(texts)
    compared = set(map(tuple, candidates.pairs.tolist()))
    for bucket in candidates.buckets:  # of a large bucket every pair can be asked for
        compared |= {(a, b) for place, b in enumerate(bucket.tolist()) for a in bucket[:place].tolist()}
    print("| similarity | pairs | compared | by the formula |\n|---|---|---|---|")
    for low, high in ((0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.01)):
        pairs = [one for one in truth if low <= one["jaccard"] + 1e-6 < high]
        share = sum((one["id_a"], one["id_b"]) in compared for one in pairs) / max(len(pairs), 1)
        expected = statistics.mean(BANDS.recall(min(one["jaccard"], 1)) for one in pairs) if pairs else 0
        print(f"| {low} to {min(high, 1):g} | {len(pairs)} | {share:.3f} | {expected:.3f} |")
    at_least = [one for one in truth if one["jaccard"] >= THRESHOLD - 1e-6]
    recall = sum((one["id_a"], one["id_b"]) in compared for one in at_least) / len(at_least)
    grams = {place: word_grams(texts[place]) for place in np.flatnonzero(removals.kept >= 0).tolist()}
    wrong = 0
    for place, mine in grams.items():
        keeper = int(removals.kept[place])
        other = word_grams(texts[keeper])
        wrong += removals.kept[keeper] >= 0 or len(mine & other) / max(len(mine | other), 1) < THRESHOLD
    print(f"\nPairs at {THRESHOLD} and above: {recall:.4f} compared. Rows that go: {len(grams)}; wrongly: {wrong}.\n")
    failed += ["recall"] if recall < 0.985 else []
    failed += ["precision"] if wrong else []

    many = cut_texts(options.texts, 200_000)
    runs = {
        "posttrain, 20,000": (texts, ours),
        "posttrain, 200,000": (many, ours),
        "of them the first 20,000": (many[:20_000], ours),
    }
    if not options.without_peers:
        runs |= {
            "datasketch, 2,000 of the 20,000": (texts[:2000], with_datasketch),
            "rensa, 20,000": (texts, with_rensa),
        }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, (some, run) in runs.items():
            rates[name].append(len(some) / cpu(lambda some=some, run=run: run(some)))
    print("| run | documents a CPU-second, median | all |\n|---|---|---|")
    for name, found in rates.items():
        print(f"| {name} | {statistics.median(found):,.0f} | {', '.join(f'{one:,.0f}' for one in found)} |")
    ratio = statistics.median(rates["of them the first 20,000"]) / statistics.median(rates["posttrain, 200,000"])
    memory = peak(many)
    print(
        f"\nA document of 200,000 costs {ratio:.2f} times one of 20,000; "
        f"at most {memory:,.0f} bytes of memory a document."
    )
    failed += ["cost"] if ratio > 1.2 else []
    failed += ["memory"] if memory > 1500 else []

    rows = template_rows(100_000)
    start = time.process_time()
    found, _, _ = ours(rows)
    seconds = time.process_time() - start
    gone = int((found.kept >= 0).sum())
    print(
        f"One template with 100,000 answers: {gone} go, {found.passed_over:,} not compared with all, "
        f"{seconds:.0f} CPU s."
    )
    failed += ["template"] if gone else []

    names = ("numpy", "datasketch", "rensa")
    versions = {
        name: importlib.metadata.version(name) for name in names if not options.without_peers or name == "numpy"
    }
    print(f"\n{datetime.date.today()}, {platform.processor() or platform.machine()}, {versions}")
    if failed:
        print("failed:", ", ".join(failed))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
