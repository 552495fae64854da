"""Duplicates: recall, precision, speed and memory, beside datasketch, rensa, datatrove and polars.

    pip install pyarrow polars datasketch rensa datatrove "posttrain[fast]"
    OMP_NUM_THREADS=1 POLARS_MAX_THREADS=1 python benchmarks/data_speed.py DATA [--texts FOLDER] [--rounds 3]
    OMP_NUM_THREADS=1 POLARS_MAX_THREADS=1 python benchmarks/data_speed.py DATA --files-only    # from file to file

DATA holds ``dedup/near_dup_20k.parquet`` and its truth, every pair of 5-gram similarity at least .5. From the text
files below ``--texts`` (Python's own packages by default) 200,000 documents of about the same length are cut, of which
a tenth are copies with a changed word. Time is CPU time from texts in memory to the list of what goes, in turns; each
library is told its usual parameters for a threshold of .8 and splits words as ours does. Peers that are not installed
are left out and named. Prints Markdown. Exit code 1 says that less than .985 of the pairs at .8 or more were compared,
that a row went without a row that stays and is as like it, that numpy and numba disagree, that numpy does less than
15,000 documents a CPU-second or numba less than 45,000, that a document of 200,000 costs over 1.2 times one of 20,000,
or more than 1.5 kB of memory, or that finding equal texts takes more than twice as long as polars.
"""

# Pyright cannot follow the import hook that maps `posttrain.…` to the rooms, and the peers need not be installed.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import io
import json
import platform
import random
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash
from posttrain.data_tools.dedup import first_equal
from posttrain.data_tools.near_duplicates import Bands, Candidates, Removals, Shingles, choose_removals, jaccard
from posttrain.data_tools.ngrams import Core, split_words, words_in
from posttrain.data_tools.ragged import bounds_of

BANDS = Bands()
THRESHOLD = 0.8
BLOCK = 4096
OURS = [sys.executable, "-c", "from posttrain.recipes.cli import main; main()"]
PEERS = ("datasketch", "rensa", "datatrove", "polars")
MISSING = [name for name in PEERS if importlib.util.find_spec(name) is None]
NUMBA = importlib.util.find_spec("numba") is not None


def ours(texts: Sequence[str], core: Core = "numpy") -> tuple[Removals, Candidates, Shingles]:
    """Finds what goes, as `data dedup` does: band keys of all texts, then shingles of those worth comparing."""
    keys = np.concatenate([BANDS.keys(split_words(block, core), 5, core) for block in blocks(texts)])
    candidates = Candidates.of(keys)
    wanted = np.zeros(len(texts), bool)
    for some in (candidates.pairs.ravel(), *candidates.buckets):
        wanted[some] = True
    shingles = shingles_of(texts, np.flatnonzero(wanted).tolist(), core)
    place = np.cumsum(wanted) - 1
    removals = choose_removals(candidates, len(texts), lambda pairs: jaccard(shingles, place[pairs], core), THRESHOLD)
    return removals, candidates, shingles


def shingles_of(texts: Sequence[str], chosen: Sequence[int], core: Core) -> Shingles:
    """Returns the shingles of some texts, made block by block."""
    hashes, counts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for block in blocks(chosen):
        part = Shingles.of(split_words([texts[one] for one in block], core), 5)
        hashes.append(part.hashes)
        counts.append(part.counts)
    return Shingles(np.concatenate(hashes), bounds_of(np.concatenate(counts)))


def joined(texts: Sequence[str]) -> Removals:
    """Finds what goes among all pairs at the threshold, as `data dedup --exact-join` does."""
    shingles = shingles_of(texts, range(len(texts)), "numpy")
    candidates = Candidates.joined(shingles, THRESHOLD)
    return choose_removals(candidates, len(texts), lambda pairs: jaccard(shingles, pairs), THRESHOLD)


def exact(texts: Sequence[str]) -> int:
    """Counts texts equal to an earlier one, as `data dedup --match exact` finds them."""
    digests = b"".join([xxhash.xxh3_128_digest(text.encode(errors="surrogatepass")) for text in texts])
    first = first_equal(np.frombuffer(digests, np.uint64).reshape(-1, 2))
    return int((first < np.arange(len(texts))).sum())


def normalised(texts: Sequence[str], core: Core = "numpy") -> int:
    """Counts texts with the words of an earlier one."""
    hashes = np.concatenate([split_words(block, core).wholes for block in blocks(texts)])
    return int((first_equal(hashes[:, None]) < np.arange(len(texts))).sum())


def with_polars(texts: Any) -> int:
    """Counts texts equal to an earlier one by polars' unique; texts are strings, or a series of them."""
    import polars

    frame = polars.DataFrame({"text": texts})
    return frame.height - frame.unique(subset="text", keep="first", maintain_order=True).height


def with_polars_normalised(texts: Sequence[str]) -> int:
    """Counts texts with the words of an earlier one, by polars' expressions."""
    import polars

    words = polars.col("text").str.to_lowercase().str.replace_all(r"\W+", " ").str.strip_chars()
    return with_polars(polars.DataFrame({"text": texts}).select(words)["text"])


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


def with_datatrove(texts: Sequence[str]) -> int:
    """Returns how many texts datatrove's three stages would remove, 14 buckets of 8 hashes, numbers as they are."""
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.text import TextNormConfig
    from datatrove.utils.word_tokenizers import WordTokenizer
    from loguru import logger

    class Tokenizer(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return words_in(text)

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError

    logger.remove()
    config = MinhashConfig(norm_config=TextNormConfig(norm_numbers=False))
    with tempfile.TemporaryDirectory() as folder:
        signatures = MinhashDedupSignature(f"{folder}/sig", config, Tokenizer())
        # datatrove 0.10.1 gives xxhash a string, which xxhash 4 no longer takes.
        signatures._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode(errors="replace"))
        documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]
        stages = [
            ([documents, signatures], 1),
            ([MinhashDedupBuckets(f"{folder}/sig", f"{folder}/buckets", config=config)], config.num_buckets),
            ([MinhashDedupCluster(f"{folder}/buckets", f"{folder}/remove", config=config)], 1),
        ]
        for number, (stage, tasks) in enumerate(stages):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                LocalPipelineExecutor(stage, tasks=tasks, workers=1, logging_dir=f"{folder}/log{number}").run()
        return sum(path.stat().st_size // 4 for path in Path(folder).glob("remove/*.remove"))


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


def check_pairs(texts: Sequence[str], truth: Sequence[Mapping[str, Any]]) -> list[str]:
    """Prints how many of the true pairs are compared, by similarity, and which rows go wrongly; returns what failed."""
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
    print(f"Of all pairs, by the exact join: {int((joined(texts).kept >= 0).sum())} rows go.\n")
    failed = ["recall"] * (recall < 0.985) + ["precision"] * bool(wrong)
    if NUMBA:
        again, _, _ = ours(texts, "numba")
        failed += ["cores"] * (not np.array_equal(again.kept, removals.kept))
    return failed


def runs_of(texts: Sequence[str], many: Sequence[str]) -> dict[str, tuple[Sequence[str], Callable[[Any], Any]]]:
    """Returns what is timed, ours and each peer's that is installed: the texts, and what looks for duplicates."""
    copies = [*many[:180_000], *("".join(text) for text in map(list, many[:20_000]))]  # equal, at other addresses
    runs: dict[str, tuple[Sequence[str], Callable[[Any], Any]]] = {
        "near: numpy, 20,000": (texts, ours),
        "near: numpy, 200,000": (many, ours),
        "near: exact join, numpy, 20,000": (texts, joined),
        "near: numpy, of them the first 20,000": (many[:20_000], ours),
    }
    if NUMBA:
        runs |= {
            "near: numba, 20,000": (texts, lambda some: ours(some, "numba")),
            "near: numba, 200,000": (many, lambda some: ours(some, "numba")),
        }
    peers = {
        "datasketch": ("near: datasketch, 2,000 of the 20,000", texts[:2000], with_datasketch),
        "rensa": ("near: rensa, 20,000", texts, with_rensa),
        "datatrove": ("near: datatrove, 2,000 of the 20,000", texts[:2000], with_datatrove),
    }
    runs |= {title: (some, run) for name, (title, some, run) in peers.items() if name not in MISSING}
    runs |= {"exact: xxh3, 200,000": (copies, exact), "normalised: numpy, 200,000": (copies, normalised)}
    if NUMBA:
        runs["normalised: numba, 200,000"] = (copies, lambda some: normalised(some, "numba"))
    if "polars" not in MISSING:
        import polars

        column = polars.Series("text", copies)
        runs |= {
            "exact: polars from strings, 200,000": (copies, with_polars),
            "exact: polars from its own column, 200,000": (copies, lambda _: with_polars(column)),
            "normalised: polars from strings, 200,000": (copies, with_polars_normalised),
        }
    return runs


def time_in_turns(runs: Mapping[str, tuple[Sequence[str], Callable[[Any], Any]]], rounds: int) -> dict[str, float]:
    """Times all in turns, prints the rates and returns the median of each, in documents a CPU-second."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (some, run) in runs.items():
            rates[name].append(len(some) / cpu(lambda some=some, run=run: run(some)))
    median = {name: statistics.median(found) for name, found in rates.items()}
    print("| run | documents a CPU-second, median | all |\n|---|---|---|")
    for name, found in rates.items():
        print(f"| {name} | {median[name]:,.0f} | {', '.join(f'{one:,.0f}' for one in found)} |")
    return median


def check_rates(median: Mapping[str, float], memory: float) -> list[str]:
    """Prints what the rates come to; returns which of them failed."""
    ratio = median["near: numpy, of them the first 20,000"] / median["near: numpy, 200,000"]
    print(
        f"\nA document of 200,000 costs {ratio:.2f} times one of 20,000; "
        f"at most {memory:,.0f} bytes of memory a document."
    )
    failed = ["numpy"] * (median["near: numpy, 20,000"] < 15_000) + ["cost"] * (ratio > 1.2)
    failed += ["numba"] * (NUMBA and median["near: numba, 20,000"] < 45_000) + ["memory"] * (memory > 1500)
    if "polars" not in MISSING:
        slower = median["exact: polars from strings, 200,000"] / median["exact: xxh3, 200,000"]
        print(f"Equal texts take {slower:.2f} times as long as by polars, from strings in memory.")
        failed += ["exact"] * (slower > 2)
    held = 8 * BANDS.bands + 16 + 8 + 4  # bytes of a row's keys, of its exact hash, of its words' hash and length
    core = "numba" if NUMBA else "numpy"
    hours = 1e9 / median[f"near: {core}, 200,000"] / 3600
    print(
        f"\nA billion such documents, extrapolated: {hours:,.1f} CPU hours of {core} beside reading and "
        f"writing; {held:,} GB of keys and hashes, up to {memory:,.0f} GB in all while pairs are looked for.\n"
    )
    return failed


def check_template() -> list[str]:
    """Prints what becomes of rows of one template with answers of their own; returns what failed."""
    rows = template_rows(100_000)
    start = time.process_time()
    found, _, _ = ours(rows)
    seconds = time.process_time() - start
    gone = int((found.kept >= 0).sum())
    print(
        f"One template with 100,000 answers: {gone} go, {found.passed_over:,} not compared with all, "
        f"{seconds:.0f} CPU s."
    )
    return ["template"] * bool(gone)


POLARS = """
import sys, polars
rows = polars.read_ndjson(sys.argv[1]).unique(subset="text", keep="first", maintain_order=True)
rows.write_ndjson(sys.argv[2])
"""


def from_file_to_file(texts: Sequence[str], rounds: int) -> None:
    """Prints what exact duplicates of a file of rows cost as a command, and by polars, their starts included."""
    with tempfile.TemporaryDirectory() as folder:
        rows, out = Path(folder) / "rows.jsonl", Path(folder) / "out"
        rows.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
        commands = {
            "data dedup --match exact": [*OURS, "data", "dedup", str(rows), "--match", "exact", "-o", str(out)],
            "polars": [sys.executable, "-c", POLARS, str(rows), str(out / "polars.jsonl")],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                seconds[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        for name, found in seconds.items():
            print(f"{name}: {', '.join(f'{one:.2f}' for one in found)} CPU s for {len(texts):,} rows")
        ours, theirs = map(statistics.median, seconds.values())
        print(f"From file to file equal rows take {ours / theirs:.1f} times as long as by polars.")


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--texts", type=Path, default=Path(sysconfig.get_paths()["purelib"]))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files-only", action="store_true")
    options = parser.parse_args()
    if options.files_only:
        many = cut_texts(options.texts, 200_000)
        from_file_to_file([*many[:180_000], *many[:20_000]], options.rounds)
        return 0

    texts = pq.read_table(options.data / "dedup/near_dup_20k.parquet")["text"].to_pylist()
    failed = check_pairs(texts, pq.read_table(options.data / "dedup/near_dup_20k_truth.parquet").to_pylist())
    many = cut_texts(options.texts, 200_000)
    failed += check_rates(time_in_turns(runs_of(texts, many), options.rounds), peak(many))
    if "datatrove" not in MISSING:
        both = with_datatrove(texts[:2000]), int((ours(texts[:2000])[0].kept >= 0).sum())
        print(f"Of 2,000 documents datatrove removes {both[0]}, unchecked; ours {both[1]}, each checked.")
    failed += check_template()
    names = ("numpy", "numba", "xxhash", *PEERS)
    versions = {name: importlib.metadata.version(name) for name in names if importlib.util.find_spec(name)}
    print(f"\n{datetime.date.today()}, {platform.processor() or platform.machine()}, {versions}")
    print(f"Not installed: {', '.join(MISSING)}" if MISSING else "")
    if failed:
        print("failed:", ", ".join(failed))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
