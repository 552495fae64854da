"""For each data tool a small call that works, on which kills, hostile files and executors are tried."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain.data_tools.row_tool import RowTool
from posttrain.recipes.tools import TOOLS, load_tool

# What is not tried, and why.
ALONE = {
    "explain": "it reads what dedup wrote, and writes nothing",
    "scaling": "it reads figures of runs, not texts, and writes nothing but its report",
    "mup": "it trains small models that it does not keep, and writes nothing but its report",
    "prepare": "it reads a recipe; its rows come from the cache that kills of trainings try",
}
EVERY = [name for name in TOOLS if name not in ALONE]

# What a tool needs beside its sources; a new one that needs something says it here.
NEEDS: dict[str, Sequence[str]] = {
    "answers": ("--model", "{model}", "--max-new-tokens", "40", "--temperature", "1", "--max-bad-share", "1"),
    "best_of_n": ("--policy", "{model}", "--reward", "{reward}", "--n", "2", "--max-new-tokens", "3", "--limit", "4"),
    "clean": ("--presets", "c4"),
    "compare_tokenizers": ("--tokenizers", "{model}"),
    "decontaminate": ("--items", "{items}"),
    "extend_tokenizer": (
        "--model",
        "{model}",
        "--min-frequency",
        "2",
        "--min-gain",
        "0",
        "--new-tokens",
        "9",
        "--measure",
        "2",
    ),
    "quality": ("--good", "{good}", "--bad", "{bad}"),
    "sample": ("--by", "dsir", "--target", "{items}", "--tokens", "2000"),
    "score_rows": ("--model", "{model}"),
    "semantic": ("--model", "wordllama"),
    "scrub": ("--replace", "pseudonym", "--seed", "secret"),
    "select": ("--model", "{model}", "--queries", "{items}", "--count", "20"),
    "synthesize": ("--method", "{method}", "--model", "{model}", "--temperature", "1", "--max-new-tokens", "5"),
    "tokenizer": ("--vocab-size", "300"),
}
# Tools once more, with what changes how they write.
VARIANTS = [("convert", ("--held-out", "0.2"))]
CALLS = [*((name, ()) for name in EVERY), *VARIANTS]
_PROMPTS = ("answers", "best_of_n")  # read prompts
_METHOD = """
description: a reply
steps: [{name: reply, prompt: "{{ text[:40] }}", pattern: "(?s)^(.)"}]
output: {prompt: "{{ text[:40] }}", completion: "{{ reply }}"}
"""
_REWARD = "def reward(prompts, completions, **columns):\n    return [float(len(str(text))) for text in completions]\n"


def row_tools(*, writing: bool = False) -> list[str]:
    """Returns the tools that look at rows block by block; only those that write rows, if asked."""
    found = {name: tool for name in EVERY if issubclass(tool := load_tool(name), RowTool)}
    return [name for name, tool in found.items() if tool.writes_rows or not writing]


def rows_of(name: str, count: int = 70) -> list[dict[str, Any]]:
    """Returns rows that a tool can use: documents, some of them twice, almost twice, or with something to be found."""
    draw = random.Random(0)
    words = ["the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with", "be", "by", "have"]
    words += [f"{first}{second}" for first in ("par", "lin", "gor", "set") for second in ("ton", "mer", "ding", "ical")]
    texts = []
    for number in range(count):
        sentences = [" ".join(draw.choices(words, k=draw.randint(9, 15))).capitalize() + "." for _ in range(9)]
        text = "\n".join(sentences)
        if number % 7 == 3:
            text = texts[-1]
        elif number % 7 == 5:
            text = texts[-1].replace(".", " indeed.", 1)
        elif number % 7 == 6:
            text += f"\nWrite to anna.{number}@firm.org for more. function() {{ lorem ipsum }}"
        texts.append(text)
    return [
        {"prompt": text[:40], "id": number} if name in _PROMPTS else {"text": text, "id": number}
        for number, text in enumerate(texts)
    ]


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """Writes JSON Lines; a row that is bytes stays as it is."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def needs(name: str, folder: Path, model: Callable[[], Path]) -> list[str]:
    """Returns the arguments beside the sources, and writes the files that they name into a folder."""
    items = write_rows(folder / "items.jsonl", [{"text": row["text"]} for row in rows_of("clean")[:3]])
    (folder / "reward.py").write_text(_REWARD)
    some = [row["text"].split() for row in rows_of("clean", 150)]
    for side, texts in (("good", some), ("bad", [words[::-1] for words in some])):
        write_rows(folder / f"{side}.jsonl", [{"text": " ".join(words)} for words in texts])
    values = {"good": str(folder / "good.jsonl"), "bad": str(folder / "bad.jsonl")}
    (folder / "method.yaml").write_text(_METHOD)
    values |= {"method": str(folder / "method.yaml"), "items": str(items), "reward": f"{folder / 'reward.py'}:reward"}
    if any("{model}" in part for part in NEEDS.get(name, ())):
        values["model"] = str(model())
    return [part.format(**values) if "{" in part else part for part in NEEDS.get(name, ())]
