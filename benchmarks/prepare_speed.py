"""What preparing rows costs beside the tokenizer: the same texts through `prepare` and through bare tokenizer calls.

    OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false python benchmarks/prepare_speed.py MODEL FILE... [--rounds 5]

MODEL is a folder with a tokenizer, and a chat template for conversations. Each FILE is read as `data.train` reads it:
texts, or conversations of any layout. `prepare` reads, renders, masks, tokenises, mixes, packs and stores; the bare
calls have the finished texts (of conversations what the template renders) in memory and make ids of them: ``tokenizer``
is ``tokenizer(texts)``, a thousand texts at a time, as scripts call it, and ``Rust`` its ``encode_batch_fast``, which
makes no offsets and masks. CPU time, in turns, the median of the rounds. Prints Markdown.
"""

# Pyright cannot follow the import hook that maps `posttrain.…` to the rooms.
# pyright: reportMissingImports=false

import argparse
import datetime
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain import chat_templates
from posttrain.data_tools.dataset import load
from posttrain.data_tools.prepare import prepare
from posttrain.data_tools.spec import DataSpec

ACCEPTS = ("text", "messages", "prompt_completion")
BATCH = 1000


def timed(call: Callable[[], Any]) -> float:
    """Returns the CPU seconds of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def finished_texts(file: Path, tokenizer: Any, template: Any) -> list[str]:
    """Returns the texts that the tokenizer is given for the rows of a file."""
    texts = []
    for _, row in load(
        DataSpec.model_validate({"train": {"path": str(file)}}).train[0], Path(), ACCEPTS, template=template
    ):
        if "text" in row:
            texts.append(row["text"])
            continue
        messages = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
        texts.append(chat_templates.render(template, messages, tokenizer=tokenizer, tools=row.get("tools")).text)
    return texts


def measure(model: Path, file: Path, rounds: int) -> str:
    """Returns a line of the table."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    template = chat_templates.from_tokenizer(tokenizer) if tokenizer.chat_template else None
    if template is not None:
        template = chat_templates.recognise(template, tokenizer) or template
        chat_templates.install(template, tokenizer)
    texts = finished_texts(file, tokenizer, template)
    batches = [texts[at : at + BATCH] for at in range(0, len(texts), BATCH)]
    spec = DataSpec.model_validate({"train": {"path": str(file)}, "max_bad_share": 0.5, "too_long": "truncate"})

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {"accepts": ACCEPTS, "max_length": 2048, "packing": "bfd_split"}
            prepare(
                spec,
                "train",
                base_dir=Path(),
                tokenizer=tokenizer,
                template=template,
                cache_dir=Path(folder),
                **options,
            )

    calls: dict[str, Callable[[], Any]] = {
        "prepare": ours,
        "tokenizer": lambda: [tokenizer(batch)["input_ids"] for batch in batches],
        "Rust": lambda: [
            [one.ids for one in tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
            for batch in batches
        ],
    }
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(timed(call))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(times["prepare"], times[name], strict=True))
        for name in ("tokenizer", "Rust")
    }
    size = sum(map(len, texts)) / 1e6
    cells = [f"{seconds[name]:.2f}" for name in calls] + [f"{ratio:.2f}" for ratio in ratios.values()]
    return f"| {file.parent.name}/{file.name} | {len(texts):,} | {size:.1f} | {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{datetime.date.today()}, {platform.machine()}, Python {platform.python_version()}, {options.model.name}\n")
    print("| file | rows | million characters | prepare, s | tokenizer, s | Rust, s | to tokenizer | to Rust |")
    print("|---|---|---|---|---|---|---|---|")
    for file in options.files:
        print(measure(options.model, file, options.rounds), flush=True)


if __name__ == "__main__":
    main()
