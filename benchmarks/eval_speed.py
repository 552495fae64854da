"""What scoring costs beside lm-eval's own HFLM, and beside the forward passes that cannot be saved.

    OMP_NUM_THREADS=1 python benchmarks/eval_speed.py MODEL --options arc_easy.jsonl.gz [--items 24]
    OMP_NUM_THREADS=1 python benchmarks/eval_speed.py MODEL --options arc_easy.jsonl.gz --limits
    OMP_NUM_THREADS=1 python benchmarks/eval_speed.py MODEL --prompts gsm8k.jsonl [--items 8]
    OMP_NUM_THREADS=1 python benchmarks/eval_speed.py MODEL --adapters arc_easy.jsonl.gz [--items 100 --shots 0]
    OMP_NUM_THREADS=1 python benchmarks/eval_speed.py MODEL --first arc_easy.jsonl.gz
    OMP_NUM_THREADS=1 python benchmarks/eval_speed.py MODEL --long 700 1400 1900 [--dtype bfloat16]

``--options`` takes ARC's rows (``question``, ``choices``, ``answerKey``) and scores the task arc_easy with five worked
examples that are the same for all items, with five drawn for each, and with none. ``--prompts`` takes GSM8K's rows and
writes answers to gsm8k_cot with its eight examples, in batches of eight, once in full and once the first token only,
which is what reading the prompts costs.

``--adapters`` makes four LoRA adapters of the model (16 ranks on every linear layer, weights drawn) and scores arc_easy
with examples drawn for each item (``--shots``): all together, each in a call of its own, and each one's requests alone
on a model that is loaded, which is the passes of the adapted model without comparison, loading or files. What passes
take within the call that scores all together is told too: a neighbour slows both alike. ``--first`` scores one item in
a process that has imported everything, with reading the model and its tokenizer. ``--long`` scores two options behind
contexts of some lengths, with attention in blocks of queries and in one call by turns, beside the model's body alone.

Times are of this process's CPU, one thread, in float32. HFLM scores the items in parts, and between the parts the suite
scores all of them, so a busy neighbour slows both alike; of the suite's times the median counts. It compares two
requests of a task with plain passes, however many items there are; the time without that stands beside two limits, in
passes of as many tokens: the model without its output layer on every distinct beginning of a request once, and the same
with the output layer at the places that are read. A pass of the limit is of the shape that costs least a token.
``--limits`` compares with these alone, and leaves HFLM out.
"""

# Pyright cannot follow the import hook that maps `posttrain.…` to the rooms.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import argparse
import datetime
import importlib.metadata
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from posttrain.data_tools.sources import read_rows
from posttrain.data_tools.spec import SourceSpec
from posttrain.evals import block_attention, shared_context
from posttrain.evals.definitions import build, define
from posttrain.evals.harness import noted
from posttrain.evals.harness_model import HarnessModel
from posttrain.evals.models import LoadedModel, load_model
from posttrain.evals.records import ScoreStore
from posttrain.evals.score import score
from posttrain.evals.shared_context import BUDGET, continuation_logs
from posttrain.evals.spec import SuiteSpec, TaskSpec

SHOTS = 5
PARTS = 3
WIDTHS = (64, 128, 256)  # of rows in passes of one budget


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model's folder")
    parser.add_argument("--options", type=Path, help="rows of ARC")
    parser.add_argument("--prompts", type=Path, help="rows of GSM8K")
    parser.add_argument("--adapters", type=Path, help="rows of ARC")
    parser.add_argument("--first", type=Path, help="rows of ARC")
    parser.add_argument("--long", type=int, nargs="+", help="tokens of contexts")
    parser.add_argument("--dtype", default="float32", help="with --long")
    parser.add_argument("--limits", action="store_true", help="compare options with the limits alone")
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--shots", type=int, default=SHOTS, help="examples with --adapters")
    parser.add_argument("--new-tokens", type=int, default=64, help="of an answer, at most")
    given = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(given.model, device="cpu", dtype=given.dtype)
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "lm_eval"))
    print(f"{datetime.date.today()}, {platform.machine()}, Python {platform.python_version()}, {packages}")
    print(f"{Path(given.model).name}, {given.items} items, CPU seconds\n", flush=True)
    with noted():
        if given.options:
            options(loaded, given.options, given.items, given.limits)
        if given.prompts:
            prompts(loaded, given.prompts, given.items, given.new_tokens)
        if given.first:
            with tempfile.TemporaryDirectory() as folder:
                spec = TaskSpec(task="arc_easy", data_files={"validation": str(given.first)}, limit=1, num_fewshot=0)
                suite = SuiteSpec(name="first", tasks=[spec], dtype="float32", contamination="never")
                models(loaded, make("arc_easy", spec.data_files, 1, {})[1])  # imports what scoring does
                begun = time.perf_counter()
                seconds = clock(score, [given.model], suite, device="cpu", output=Path(folder))
                print(f"the first request: {seconds:.1f} s of CPU, {time.perf_counter() - begun:.1f} s by the clock")
        if given.long:
            long_rows(loaded.model, given.long)
        if given.adapters:
            with tempfile.TemporaryDirectory() as folder:
                adapters(loaded, Path(given.model), given.adapters, given.items, given.shots, Path(folder))


def options(loaded: LoadedModel, path: Path, items: int, limits_alone: bool) -> None:
    """Compares times, log-likelihoods and metrics of multiple choice."""
    columns = ["examples", "less comparison", "body once", "of it", "with output layer", "of it"]
    if not limits_alone:
        columns[1:1] = ["HFLM", "suite", "ratio"]
        columns += ["largest difference", "metrics equal"]
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|", flush=True)
    rows = [row.values for row in read_rows(SourceSpec(path=str(path)), path.parent)]
    for kind in ("fixed", "varying", "none"):
        how: dict[str, Any] = {"num_fewshot": 0 if kind == "none" else SHOTS}
        if kind == "fixed":
            how["overrides"] = {"fewshot_config": {"sampler": "first_n", "samples": rows[-SHOTS:]}}
        task, suite = make("arc_easy", {"validation": str(path)}, items, how)
        asked = task.instances
        stock, own = models(loaded, suite)
        requests = [own._encode_pair(*request.args) for request in asked]
        if limits_alone:
            alone = statistics.median(clock(continuation_logs, own.model, requests) for _ in range(PARTS))
            before, after = [kind], []
        else:
            expected, found, (hflm, whole, alone) = interleaved(stock, own, asked, requests)
            difference = max(abs(a - b) for (a, _), (b, _) in zip(expected, found, strict=True))
            before = [kind, f"{hflm:.1f}", f"{whole:.2f}", f"{hflm / whole:.1f}"]
            after = [f"{difference:.1e}", str(metrics(task, expected) == metrics(task, found))]
        body, full = limits(loaded.model, requests)
        sharing = [f"{alone:.2f}", f"{body:.2f}", f"{alone / body:.2f}", f"{full:.2f}", f"{alone / full:.2f}"]
        print(f"| {' | '.join([*before, *sharing, *after])} |", flush=True)


def prompts(loaded: LoadedModel, path: Path, items: int, new_tokens: int) -> None:
    """Compares times and texts of answers."""
    how = {"gen_kwargs": {"max_gen_toks": new_tokens, "do_sample": False, "temperature": 0.0}}
    task, suite = make("gsm8k_cot", {"test": str(path)}, items, how)
    stock, own = models(loaded, suite)
    asked = task.instances
    lengths = [len(own.tok_encode(request.args[0])) for request in asked]
    print(f"prompts of {min(lengths)} to {max(lengths)} tokens, answers of up to {new_tokens}\n")
    spent: dict[str, list[float]] = {}
    texts: dict[str, list[str]] = {}
    for count in (new_tokens, 1):
        for request in asked:
            request.arguments[1]["max_gen_toks"] = count
        for name, lm in (("HFLM", stock), ("suite", own)):
            begun = time.process_time()
            found = lm.generate_until(asked, disable_tqdm=True)
            spent.setdefault(name, []).append(time.process_time() - begun)
            texts.setdefault(name, found)  # the whole ones
    print("| | in all | prompts | answers |")
    print("|---|---|---|---|")
    for name, (whole, first) in spent.items():
        print(f"| {name} | {whole:.1f} | {first:.1f} | {whole - first:.1f} |")
    ratios = [a / b for a, b in zip(*spent.values(), strict=True)]
    rest = (spent["HFLM"][0] - spent["HFLM"][1]) / (spent["suite"][0] - spent["suite"][1])
    print(f"| ratio | {ratios[0]:.2f} | {ratios[1]:.2f} | {rest:.2f} |\n")
    differ = [number for number, (a, b) in enumerate(zip(*texts.values(), strict=True)) if a != b]
    print(f"texts equal: {items - len(differ)} of {items}{'; others: ' + str(differ) if differ else ''}", flush=True)


def adapters(loaded: LoadedModel, model: Path, path: Path, items: int, shots: int, folder: Path) -> None:
    """Compares the time of scoring adapters of one base with that of their forward passes alone."""
    runs = make_adapters(loaded, model, folder)
    spec = TaskSpec(task="arc_easy", data_files={"validation": str(path)}, limit=items, num_fewshot=shots)
    suite = SuiteSpec(name="speed", tasks=[spec], batch_size=8, dtype="float32", contamination="never")
    begun = time.process_time()
    first = score(runs[:1], suite, device="cpu", output=folder / "warm")  # imports, and files of the task
    cold = time.process_time() - begun
    asked = make("arc_easy", {"validation": str(path)}, items, {"num_fewshot": shots})[0].instances
    passes, single, whole, within = [], [], 0.0, 0.0
    for number, run in enumerate(runs):
        adapted = load_model(str(run), device="cpu", dtype="float32")
        lm: Any = HarnessModel(adapted, suite)
        requests = [lm._encode_pair(*request.args) for request in asked]
        passes.append(clock(lambda lm=lm, requests=requests: continuation_logs(lm.model, requests)))
        del adapted, lm
        single.append(clock(lambda run=run, n=number: score([run], suite, device="cpu", output=folder / f"one{n}")))
        if number == 1:  # between the others, so that a busy neighbour slows all alike
            whole, within = with_passes(lambda: score(runs, suite, device="cpu", output=folder / "all"))
    found = [figures(folder / "all" / run.name) for run in runs]
    alone = [figures(folder / f"one{number}" / run.name) for number, run in enumerate(runs)]
    print(f"the first in a process, imports included: {cold:.1f} s, {len(first.done)} task\n")
    columns = ["four adapters together", "passes within", "together / within", "one after another, each loaded anew"]
    print(f"| {' | '.join([*columns, 'passes alone', 'together / alone', 'same'])} |")
    print("|---|---|---|---|---|---|---|")
    print(f"| {whole:.1f} | {within:.1f} | {whole / within:.2f} | {sum(single):.1f} | ", end="")
    print(f"{sum(passes):.1f} | {whole / sum(passes):.2f} | {found == alone} |")


def make_adapters(loaded: LoadedModel, model: Path, folder: Path) -> list[Path]:
    """Saves four adapters of a model, and leaves it as it was."""
    from peft import LoraConfig, get_peft_model

    base: Any = loaded.model
    folders = []
    for seed in range(4):
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.002)
        adapted.peft_config["default"].base_model_name_or_path = str(model.absolute())
        folders.append(folder / f"adapter{seed}")
        adapted.save_pretrained(folders[-1])
        loaded.tokenizer.save_pretrained(folders[-1])
        base = adapted.unload()
    return folders


def figures(run: Path) -> list[Any]:
    """Returns what was scored, and the bytes of the samples."""
    return [(one.metrics, (run / one.samples_name).read_bytes()) for one in ScoreStore(run).load()]


def make(name: str, files: dict[str, str], items: int, how: dict[str, Any]) -> tuple[Any, SuiteSpec]:
    """Builds a task as a suite does, and its requests."""
    spec = TaskSpec(task=name, data_files=files, limit=items, **how)
    suite = SuiteSpec(name="speed", tasks=[spec], batch_size=8)
    task: Any = build(define(spec, suite))
    task.set_fewshot_seed(suite.seed)
    task.build_all_requests(limit=items, rank=0, world_size=1)
    return task, suite


def models(loaded: LoadedModel, suite: SuiteSpec) -> tuple[Any, Any]:
    """Returns the model as lm-eval's own and as the suite's."""
    from lm_eval.models import huggingface

    hflm: Any = huggingface.HFLM  # its registering decorator hides its type
    how = {"batch_size": suite.size_of_batch(), "softmax_dtype": "float32"}
    return hflm(pretrained=loaded.model, tokenizer=loaded.tokenizer, **how), HarnessModel(loaded, suite)


def interleaved(stock: Any, own: Any, asked: Sequence[Any], requests: Any) -> tuple[Any, Any, tuple[float, ...]]:
    """Scores requests both ways; returns both results, and the CPU seconds of each and of sharing alone."""
    expected: list[Any] = []
    found: list[Any] = []
    spent, times, alone = 0.0, [], []
    for part in range(PARTS):
        begun = time.process_time()
        found = own.loglikelihood(asked, disable_tqdm=True)
        times.append(time.process_time() - begun)
        alone.append(clock(continuation_logs, own.model, requests))
        begun = time.process_time()
        some = asked[len(asked) * part // PARTS : len(asked) * (part + 1) // PARTS]
        expected += stock.loglikelihood(some, disable_tqdm=True)
        spent += time.process_time() - begun
    return expected, found, (spent, statistics.median(times), statistics.median(alone))


def limits(model: Any, requests: Sequence[tuple[list[int], list[int]]]) -> tuple[float, float]:
    """Returns the CPU seconds of the passes that no sharing can save: the body's, and with the output layer."""
    run, read = set(), set()
    for context, rest in requests:
        whole = (*context, *rest)
        run |= {whole[:end] for end in range(1, len(whole))}
        read |= {whole[:end] for end in range(len(context), len(whole))}
    body, head = model.base_model, model.get_output_embeddings()
    bare = float("inf")
    with torch.inference_mode():
        for width in WIDTHS:
            ids = torch.randint(0, head.weight.shape[0], (BUDGET // width, width))
            body(ids, use_cache=False)  # the first of a shape costs more
            seconds = statistics.median(clock(body, ids, use_cache=False) for _ in range(PARTS))
            bare = min(bare, seconds * len(run) / ids.numel())
        hidden = torch.randn(256, head.weight.shape[1])
        head_s = statistics.median(clock(head, hidden) for _ in range(PARTS))
    return bare, bare + head_s * len(read) / len(hidden)


def long_rows(model: Any, lengths: Sequence[int]) -> None:
    """Compares attention in blocks of queries with attention in one call, on contexts of some lengths."""
    print("| tokens | in blocks | in one call | ratio | body alone | largest difference |\n|---|---|---|---|---|---|")
    size = model.get_input_embeddings().weight.shape[0]
    for length in lengths:
        ids = torch.randint(0, size, (1, length))
        requests = [(ids[0].tolist(), [token]) for token in (1, 2)]
        spent: dict[str, list[float]] = {"blocks": [], "whole": [], "body": []}
        logs = {}
        for _ in range(PARTS + 1):  # the first of a shape costs more
            for name, block in (("blocks", block_attention.BLOCK), ("whole", length)):
                with mock.patch.object(block_attention, "BLOCK", block):
                    begun = time.process_time()
                    logs[name] = continuation_logs(model, requests)
                    spent[name].append(time.process_time() - begun)
            with torch.inference_mode():
                spent["body"].append(clock(model.base_model, ids, use_cache=False))
        blocks, whole, body = (statistics.median(times[1:]) / length * 1000 for times in spent.values())
        apart = max(abs(a - b) for (a, _), (b, _) in zip(*logs.values(), strict=True))
        print(
            f"| {length} | {blocks:.2f} | {whole:.2f} | {whole / blocks:.2f} | {body:.2f} | {apart:.1e} |", flush=True
        )


def clock(function: Callable[..., Any], *args: Any, **options: Any) -> float:
    """Returns the CPU seconds of a call."""
    begun = time.process_time()
    function(*args, **options)
    return time.process_time() - begun


def with_passes(function: Callable[[], Any]) -> tuple[float, float]:
    """Returns the CPU seconds of a call, and those that passes of shared contexts took within it."""
    spent = 0.0

    def timed(*args: Any, **options: Any) -> Any:
        nonlocal spent
        begun = time.process_time()
        found = continuation_logs(*args, **options)
        spent += time.process_time() - begun
        return found

    with mock.patch.object(shared_context, "continuation_logs", timed):
        return clock(function), spent


def metrics(task: Any, results: Sequence[tuple[float, bool]]) -> list[dict[str, Any]]:
    """Returns what lm-eval makes of the results, item by item."""
    by_item: dict[int, list[tuple[float, bool]]] = {}
    for request, result in zip(task.instances, results, strict=True):
        by_item.setdefault(request.doc_id, []).append(result)
    documents = {request.doc_id: request.doc for request in task.instances}
    return [task.process_results(documents[number], results) for number, results in sorted(by_item.items())]


if __name__ == "__main__":
    main()
