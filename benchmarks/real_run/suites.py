"""Scores tasks of ``core`` and ``safety`` with posttrain and with stock lm-eval, and compares them item by item.

Stock reads files that are converted here by hand, not by the layout's field map, through lm-eval's own readers, task
files and HFLM. Prints a Markdown table: per task both figures, the largest difference of a log-probability, and what
answers known beforehand score.

    python benchmarks/real_run/suites.py MODEL FOLDER_OF_BENCHMARKS [ITEMS] [TASK=SHOTS ...]
    python benchmarks/real_run/suites.py MODEL TEXTS.jsonl [ITEMS]

Without tasks: the nine of ``core`` that the folder holds, and the five of ``safety`` that are lm-eval's own, zero-shot.
From a file of texts instead: the log-likelihood of each whole text.
"""

import csv
import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet
import yaml
from posttrain.evals.records import Score, ScoreStore
from posttrain.evals.score import score
from posttrain.evals.spec import SuiteSpec
from posttrain.evals.suite_files import load_suite
from posttrain.evals.task_index import find

FILES = {
    "arc_easy": "olmo_hf_validation/ai2_arc__ARC-Easy.validation.jsonl.gz",
    "arc_challenge": "olmo_hf_validation/ai2_arc__ARC-Challenge.validation.jsonl.gz",
    "copa": "olmo_hf_validation/super_glue__copa.validation.jsonl.gz",
    "commonsense_qa": "olmo_hf_validation/tau__commonsense_qa.validation.jsonl.gz",
    "piqa": "olmo_hf_validation/piqa__plain_text.validation.jsonl.gz",
    "openbookqa": "olmo_hf_validation/openbookqa__main.validation.jsonl.gz",
    "winogrande": "olmo_hf_validation/winogrande__winogrande_xl.validation.jsonl.gz",
    "boolq": "olmo_hf_validation/boolq.validation.jsonl.gz",
    "lambada_openai": "lambada_openai/lambada_openai.jsonl.gz",
    "crows_pairs_english": "crows_pairs/crows_pairs_anonymized.csv",
    "bbq_disability_status": "bbq/Disability_status.jsonl.gz",
    "bbq_physical_appearance": "bbq/Physical_appearance.jsonl.gz",
    "bbq_religion": "bbq/Religion.jsonl.gz",
    "bbq_sexual_orientation": "bbq/Sexual_orientation.jsonl.gz",
}


def upstream(task: str) -> str:
    """Returns lm-eval's task: BBQ's categories are one there."""
    return "bbq" if task.startswith("bbq_") else task


def rows_of(task: str, path: Path) -> list[dict[str, Any]]:
    """Reads a task's rows, with the columns of its data set on the Hub."""
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    if task == "boolq":
        return [{**row, "label": 1 if row["answer"] else 0} for row in rows]
    if task == "lambada_openai":
        return [{"text": row["context"] + " " + row["continuation"]} for row in rows]
    return rows


def write_stock(task: str, data: Path, folder: Path, shots: int) -> None:
    """Writes a task's rows and a YAML that includes lm-eval's own."""
    file = folder / f"{task}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(task, data / FILES[task])))
    keys = {
        "include": str(find(upstream(task))),
        "task": f"stock_{task}",
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": str(file)}},
        "training_split": None,
        "validation_split": None,
        "test_split": "validation",  # lm-eval leaves a row out of its own examples only where the test split is theirs
        "fewshot_split": "validation",
        "num_fewshot": shots,
    }
    (folder / f"stock_{task}.yaml").write_text(yaml.safe_dump(keys))


def stock(model: str, tasks: list[str], folder: Path, items: int, **loading: Any) -> dict[str, Any]:
    """Runs stock lm-eval."""
    import lm_eval
    from lm_eval.models import huggingface
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    hflm: Any = huggingface.HFLM
    lm = hflm(**{"pretrained": model, "dtype": "float32", "device": "cpu", "batch_size": 8} | loading)
    evaluate: Any = lm_eval.simple_evaluate
    return evaluate(
        lm, tasks=tasks, task_manager=manager, limit=items, random_seed=0, numpy_random_seed=0, torch_random_seed=0,
        fewshot_random_seed=0, fewshot_as_multiturn=False, bootstrap_iters=0, log_samples=True, cache_requests=False,
    )  # fmt: skip


def ours(model: str, tasks: dict[str, int], data: Path, items: int, output: Path) -> tuple[dict[str, Score], Path]:
    """Runs posttrain."""
    entries: list[dict[str, Any]] = []
    for task, shots in tasks.items():
        entries.append({"task": upstream(task), "name": task, "num_fewshot": shots, "limit": items})
        if upstream(task) != task:
            entries[-1]["overrides"] = {"dataset_name": task.removeprefix("bbq_").capitalize()}
    return scored(model, {"data_dir": str(data), "tasks": entries}, output)


def scored(model: str, suite_keys: dict[str, Any], output: Path) -> tuple[dict[str, Score], Path]:
    """Scores a model on a suite of these keys in ``output``."""
    path = output / "suite.yaml"
    path.write_text(yaml.safe_dump({"chat": "never", "dtype": "float32"} | suite_keys))
    suite: SuiteSpec = load_suite(path)
    report = score([model], suite, device="cpu", output=output, progress=lambda line: print(line, file=sys.stderr))
    assert not report.failed, report.failed
    [store] = {folder.parent for folder in output.glob("*/scores.jsonl")}
    return {found.task: found for found in ScoreStore(store).load()}, store


def largest(task: str, found: Score, store: Path, samples: list[dict[str, Any]]) -> float:
    """Returns the largest difference of an option's log-probability; the rows must be the same."""
    mine = {row["doc_id"]: row for row in pyarrow.parquet.read_table(store / found.samples_name).to_pylist()}
    worst = 0.0
    assert len(mine) == len(samples), task
    for sample in samples:
        row = mine[sample["doc_id"]]
        assert row["prompt"] == sample["arguments"][0][0], (task, sample["doc_id"])
        theirs = [float(answers[0][0]) for answers in sample["resps"]]
        here = [float(json.loads(answers)[0][0]) for answers in row["responses"]]
        worst = max(worst, *(abs(a - b) for a, b in zip(theirs, here, strict=True)))
    return worst


def compare_texts(model: str, texts: Path, items: int, length: int = 1024) -> None:
    """Compares whole texts, in windows of ``length`` tokens that follow each other, and prints.

    lm-eval predicts ``length`` tokens of each window from one token before it and those within; posttrain counts that
    token as the window's.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        keys = {
            "task": "stock_texts",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(texts.resolve())}},
            "test_split": "test",
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        }
        (folder / "stock_texts.yaml").write_text(yaml.safe_dump(keys))
        # One text at a time, for its logits; without the tokenizer's BOS, which lm-eval puts behind another and counts.
        theirs = stock(model, ["stock_texts"], folder, items, max_length=length, batch_size=1, add_bos_token=False)
        entry = {"name": "texts", "path": str(texts), "limit": items, "max_length": length + 1, "stride": length}
        scores, store = scored(model, {"perplexity": [entry], "batch_size": 1}, folder)
        windows = pyarrow.parquet.read_table(store / scores["texts"].samples_name).to_pylist()
    figure = next(metric for metric in scores["texts"].metrics if metric.name == "bits_per_byte")
    other = theirs["results"]["stock_texts"]["bits_per_byte,none"]
    tokens, sums = [0] * items, [0.0] * items
    for window in windows:
        tokens[window["document"]] += window["tokens"]
        sums[window["document"]] -= window["nll"]
    samples = sorted(theirs["samples"]["stock_texts"], key=lambda sample: sample["doc_id"])
    assert len(samples) == items
    gaps = [abs(mine - float(sample["resps"][0][0])) for mine, sample in zip(sums, samples, strict=True)]
    a_token = max(gap / count for gap, count in zip(gaps, tokens, strict=True))
    print("| texts | tokens | metric | posttrain | lm-eval | largest difference of a text | a token |")
    print("|---|---|---|---|---|---|---|")
    figures = f"{figure.value:.6f} | {other:.6f} | {max(gaps):.1e} | {a_token:.1e}"
    print(f"| {items} | {sum(tokens)} | bits_per_byte | {figures} |")
    assert a_token < 1e-4
    assert abs(figure.value - other) < 1e-4


def compare_tasks(model: str, data: Path, items: int, tasks: dict[str, int]) -> None:
    """Compares tasks, each with its number of worked examples, and prints."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for task, count in tasks.items():
            write_stock(task, data, folder, count)
        theirs = stock(model, [f"stock_{task}" for task in tasks], folder, items)
        scores, store = ours(model, tasks, data, items, folder)
        print("| task | shots | n | metric | posttrain | lm-eval | largest difference | oracle | constant answer |")
        print("|---|---|---|---|---|---|---|---|---|")
        for task, count in tasks.items():
            found, name = scores[task], f"stock_{task}"
            gap = largest(task, found, store, theirs["samples"][name])
            known = (found.detail or {}).get("canaries", {})  # CrowS-Pairs has no right answer
            oracle = f"{known['oracle']:.1f}" if known else ""
            constant = f"{known['majority']:.3f} ({known['answer']})" if known.get("majority") is not None else ""
            for metric in found.metrics:
                other = theirs["results"][name][f"{metric.name},none"]
                print(
                    f"| {task} | {count} | {metric.n} | {metric.name} | {metric.value:.4f} | {other:.4f} | {gap:.1e} "
                    f"| {oracle} | {constant} |"
                )
                assert abs(metric.value - other) < 1e-4 * max(1, abs(other)), (task, metric.name)
            assert gap < 1e-4, task


def main(model: str, data: str, items: str = "25", *shots: str) -> None:
    """Compares texts of a file, or tasks of a folder."""
    if Path(data).is_file():
        compare_texts(model, Path(data), int(items))
    else:
        tasks = {name: int(count) for name, count in (pair.split("=") for pair in shots)}
        compare_tasks(model, Path(data), int(items), tasks or dict.fromkeys(FILES, 0))


if __name__ == "__main__":
    main(*sys.argv[1:])
