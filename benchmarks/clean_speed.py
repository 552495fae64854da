"""`data clean`: documents a CPU-second of each preset beside datatrove's filters, and whether both decide alike.

    pip install pyarrow
    OMP_NUM_THREADS=1 python benchmarks/clean_speed.py DATA --datatrove FOLDER [--rounds 3] [--sample 4000]

DATA holds public data: ``dedup/near_dup_20k.parquet`` (20,000 documents: documentation, code, instructions),
``text/c4_wiki_demo/c4_demo.jsonl`` (300 pages of C4) and ``sft/alpaca/alpaca_5000.json.gz``. FOLDER holds datatrove
0.10.1, as ``pip install --target FOLDER --no-deps datatrove`` leaves it; what else it imports and these filters do not
need is stood in for. Both take words and sentences from ``web_rules``, so that rules are compared and not tokenisers.
The time is CPU time of deciding on texts in memory, in turns. Prints Markdown. Exit code 1 says that one of the presets
named after datatrove decides otherwise.
"""

# Pyright cannot follow the import hook that maps `posttrain.…` to the rooms.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import argparse
import datetime
import gzip
import importlib.abc
import importlib.machinery
import json
import platform
import random
import re
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
from posttrain.data_tools.clean import Thresholds, chat_verdict, code_verdict, is_cut_off
from posttrain.data_tools.web_rules import DATATROVE, SENTENCE_END, RuleVerdict, c4, fineweb, gopher, words_of

Filter = Callable[[str], tuple[str, str]]
Program = Callable[[Sequence[str]], Any]
BATCH = 4096
LIMITS = Thresholds()
PRESETS = {"gopher": gopher, "c4": c4, "fineweb": fineweb}
# What datatrove's filters import and do not need to look at one text.
_UNNEEDED = frozenset({"fsspec", "huggingface_hub", "humanize", "loguru", "multiprocess", "nltk", "rich", "tqdm"})


class _Unneeded(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for packages that are not installed and not needed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Finds them."""
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in _UNNEEDED else None

    def create_module(self, spec: Any) -> Any:
        """Makes something that has every attribute."""
        module = MagicMock()
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Does nothing."""


class Tokenizer:
    """This project's words and sentences, as datatrove asks for them."""

    def word_tokenize(self, text: str) -> list[str]:
        """Returns the words of a text."""
        return words_of(text)

    def span_tokenize(self, text: str) -> Iterator[tuple[int, int]]:
        """Yields where sentences begin and end."""
        start = 0
        for found in SENTENCE_END.finditer(text):
            yield start, found.end()
            start = found.end()
        yield start, len(text)


def datatrove_filters() -> dict[str, Filter]:
    """Returns functions from a text to the reason for which datatrove drops it, if any, and to what it becomes.

    Raises:
        ImportError: datatrove is not installed.
    """
    finder = _Unneeded()
    sys.meta_path.append(finder)
    try:
        from datatrove.data import Document
        from datatrove.pipeline.filters import (
            C4QualityFilter,
            FineWebQualityFilter,
            GopherQualityFilter,
            GopherRepetitionFilter,
        )
        from datatrove.utils import word_tokenizers
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] in _UNNEEDED]:
            if isinstance(sys.modules[name], MagicMock):
                del sys.modules[name]
    word_tokenizers.load_word_tokenizer = lambda language: Tokenizer()

    def filter_of(made: Any) -> Filter:
        def run(text: str) -> tuple[str, str]:
            document = Document(text=text, id="0")
            result = made.filter(document)
            return ("" if result is True else result[1]), document.text

        return run

    made = [GopherQualityFilter(), GopherRepetitionFilter(), C4QualityFilter(), FineWebQualityFilter()]
    return dict(zip(("gopher_quality", "gopher_repetition", "c4", "fineweb"), map(filter_of, made), strict=True))


def in_batches(check: Callable[[Sequence[str]], Sequence[RuleVerdict]]) -> Callable[[Sequence[str]], list[RuleVerdict]]:
    """Returns what decides on some thousand texts at a time, as the tool does."""

    def run(texts: Sequence[str]) -> list[RuleVerdict]:
        return [verdict for first in range(0, len(texts), BATCH) for verdict in check(texts[first : first + BATCH])]

    return run


def one_by_one(filters: Sequence[Filter]) -> Callable[[Sequence[str]], list[tuple[str, str]]]:
    """Returns what applies datatrove's filters in turn until one drops the text."""

    def decide(text: str) -> tuple[str, str]:
        reason = made = ""
        for run in filters:
            reason, made = run(text)
            if reason:
                break
        return reason, made

    return lambda texts: [decide(text) for text in texts]


def cpu_seconds(run: Callable[[Sequence[str]], Any], texts: Sequence[str]) -> tuple[float, Any]:
    """Returns the CPU time of a call, and what it gave."""
    start = time.process_time()
    result = run(texts)
    return time.process_time() - start, result


def unlike(texts: Sequence[str], ours: Sequence[RuleVerdict], theirs: Sequence[tuple[str, str]]) -> int:
    """Returns for how many texts the decisions or the texts that are left differ."""
    return sum(
        bool(verdict.reason) != bool(reason)
        or (not reason and (text if verdict.text is None else verdict.text) != made)
        for text, verdict, (reason, made) in zip(texts, ours, theirs, strict=True)
    )


def cut_answers(path: Path, least: int) -> str:
    """Says how many whole answers `chat` takes for cut off, and how many that are cut behind a random word."""
    answers = [row["output"].strip() for row in json.loads(gzip.decompress(path.read_bytes()))]
    draw = random.Random(0)
    lines = []
    for name, shortest in (("all", 0), ("of 60 words and more", 60)):
        some = [answer for answer in answers if len(answer.split()) >= shortest]
        whole = sum(is_cut_off(answer, least) for answer in some)
        found = looked = 0
        for answer in some:
            ends = [space.start() for space in re.finditer(r"\s", answer)][20:]
            if ends:
                looked += 1
                found += is_cut_off(answer[: draw.choice(ends)].rstrip(), least)
        lines.append(f"| {name} | {whole} of {len(some):,} | {found:,} of {looked:,} ({100 * found / looked:.0f}%) |")
    return "\n".join(["| answers | taken for cut off | found when cut |", "|---|---|---|", *lines])


def programs_of(peers: Mapping[str, Sequence[Filter]]) -> dict[str, Program]:
    """Returns what is timed: each preset of ours as it is and as datatrove has it, and datatrove's filters."""
    exact = Thresholds(**DATATROVE)
    programs: dict[str, Program] = {}
    for name, preset in PRESETS.items():
        programs[name] = in_batches(preset(LIMITS))
        programs[f"{name}_datatrove"] = in_batches(preset(exact, True))
        programs[f"datatrove's {name}"] = one_by_one(peers[name])
    for name, some, datatrove in (("gopher", LIMITS, False), ("gopher_datatrove", exact, True)):
        programs[name] = in_batches(gopher(some, datatrove, compiled=False))
        programs[f"{name}, numba"] = in_batches(gopher(some, datatrove, compiled=True))
    programs["code"] = in_batches(lambda some: [code_verdict(text, False, LIMITS) for text in some])
    programs["chat"] = in_batches(
        lambda some: [
            chat_verdict([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}], LIMITS)
            for text in some
        ]
    )
    return programs


def time_in_turns(
    programs: Mapping[str, Program], texts: Sequence[str], rounds: int, sample: int
) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Returns what each program says of the texts, and its median rate in texts a CPU-second.

    Args:
        programs: By name; those of datatrove look at the first ``sample`` texts only.
        texts: Shuffled.
        rounds: How often each has its turn.
        sample: See there.
    """
    rates: dict[str, list[float]] = {name: [] for name in programs}
    results: dict[str, list[Any]] = {}
    for _ in range(rounds):
        for name, run in programs.items():
            some = texts[:sample] if name.startswith("datatrove") else texts
            seconds, results[name] = cpu_seconds(run, some)
            rates[name].append(len(some) / seconds)
    return results, {name: statistics.median(found) for name, found in rates.items()}


def share_out(found: Sequence[Any]) -> str:
    """Returns the share of texts that a program leaves out."""
    gone = sum(bool(one[0] if isinstance(one, tuple) else one.reason) for one in found)
    return f"{100 * gone / len(found):.1f}%"


def main() -> int:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--datatrove", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample", type=int, default=4000, help="documents that datatrove looks at")
    arguments = parser.parse_args()
    sys.path.append(str(arguments.datatrove))
    import pyarrow.parquet

    filters = datatrove_filters()
    programs = programs_of({name: [run for key, run in filters.items() if key.startswith(name)] for name in PRESETS})
    table = pyarrow.parquet.read_table(arguments.data / "dedup/near_dup_20k.parquet", columns=["text"])
    texts = table["text"].to_pylist()
    random.Random(0).shuffle(texts)
    lines = (arguments.data / "text/c4_wiki_demo/c4_demo.jsonl").read_text().split("\n")
    web = [json.loads(line)["text"] for line in lines if line]
    for run in programs.values():  # tables of signs are made, and loops compiled, once
        run(texts[:100] + web[:50])
    of_texts, rates = time_in_turns(programs, texts, arguments.rounds, arguments.sample)
    of_web, page_rates = time_in_turns(programs, web, arguments.rounds, len(web))
    processor = platform.processor() or platform.machine()
    versions = f"Python {platform.python_version()}, numpy {np.__version__}"
    print(f"{datetime.date.today()}, {processor}, {versions}. Documents a CPU-second:\n")
    lengths = [f"{statistics.mean(map(len, some)):,.0f} characters" for some in (texts, web)]
    print(f"| program | documents ({lengths[0]}) | left out | pages of C4 ({lengths[1]}) | left out |")
    print("|---|---|---|---|---|")
    for name in programs:
        figures = f"{rates[name]:,.0f} | {share_out(of_texts[name])} | {page_rates[name]:,.0f}"
        print(f"| {name} | {figures} | {share_out(of_web[name])} |")
    differ = 0
    for name in PRESETS:
        some = texts[: arguments.sample]
        differ += unlike(some, of_texts[f"{name}_datatrove"][: len(some)], of_texts[f"datatrove's {name}"])
        differ += unlike(web, of_web[f"{name}_datatrove"], of_web[f"datatrove's {name}"])
    print(f"\nDecisions that differ from datatrove's: {differ} of {len(PRESETS) * (arguments.sample + len(web)):,}.")
    print("\nAnswers of Alpaca, as they are and cut behind a random word, the twentieth or later:\n")
    print(cut_answers(arguments.data / "sft/alpaca/alpaca_5000.json.gz", LIMITS.min_prose_words or 0))
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
