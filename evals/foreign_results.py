"""Result files of other harnesses, read as what a run folder holds: a record, scores, and the items behind them.

Read are lm-eval's ``results_*.json`` with the ``samples_*.jsonl`` beside it, AlpacaEval's ``annotations.json`` and
leaderboards (``.csv``), and inspect's logs (``.eval`` and ``.json``). Each file may be packed by gzip. A figure whose
items are known is kept with their values, as our own samples are; of one without, only what the file says is known.
"""

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..chat_templates.errors import InputError, PosttrainError
from ..data_tools.files import hash_json, write_atomic, write_json
from ..data_tools.plain_values import is_number
from ..data_tools.readers import opened
from .checkpoints import FINAL
from .records import SCORES, parquet, samples_name
from .result_files import FAULTS, MOST_BYTES, Json, damaged, parse_json, read_archive, read_whole, too_large
from .runs import RUN_FILE
from .sequences import grouped
from .stats.intervals import LOWER_IS_BETTER
from .stats.win_rates import win_rate

STAGE = "foreign"
"""The stage of a run that another harness, or another's answers, stand for."""

_TAKEN = "lm-eval's results_*.json, AlpacaEval's annotations.json or leaderboard.csv, inspect's .eval or .json logs"
_MEASURED = ("task", "task_hash", "num_fewshot", "limit", "template_fingerprint")
_SPREADS = ("stderr", "std", "var", "bootstrap_stderr", "bootstrap_std", "ci", "ci_lower", "ci_upper")


@dataclass(frozen=True)
class ForeignScore:
    """One task as another harness scored it.

    Attributes:
        task: Its name.
        definition: What decides its figures beside the items, as far as the file says; equal ones share a column.
        metrics: As lines of ``scores.jsonl`` hold them, the first standing for the task.
        samples: A Parquet file of the items, if the file has them.
        items: What the items are, as hashes of documents, prompts and targets; None where they are not known.
        num_fewshot: Worked examples in the prompt, where known.
        limit: Items at most, or None.
        template: What identifies the chat template, where one was applied.
        judge_version: Of a judge.
        detail: As of :class:`~.records.Score`.
        notes: What a reader must know.
    """

    task: str
    definition: Json
    metrics: tuple[Json, ...]
    samples: bytes | None = None
    items: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    template: str | None = None
    judge_version: str | None = None
    detail: Json = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ForeignResults:
    """What a file of another harness says of one model.

    Attributes:
        source: The file.
        harness: ``lm-eval``, ``AlpacaEval`` or ``inspect``.
        version: Its version, where the file says so.
        model: The model's name.
        settings: What tells it from another model of the name, such as a revision.
        created: When, in ISO 8601, or None.
        scores: Its figures.
    """

    source: Path
    harness: str
    version: str | None
    model: str
    settings: Json
    created: str | None
    scores: tuple[ForeignScore, ...]

    @property
    def identity(self) -> str:
        """Returns what stands for the model's hash: files of one harness about one model make one row."""
        return hash_json([self.harness, self.model, self.settings])

    @property
    def title(self) -> str:
        """Returns the harness with its version."""
        return f"{self.harness} {self.version}" if self.version else f"{self.harness}, version not recorded"


def write_runs(files: Sequence[Path], folder: Path) -> list[tuple[Path, Path]]:
    """Reads result files and writes a run folder for each model in them.

    Returns:
        The run folders, each with the file that it was read from (the first of several).

    Raises:
        InputError: A file is damaged, holds no results of a known kind, or a figure that is no finite number.
    """
    every = (results for file in dict.fromkeys(files) for results in read_results(file))
    models = grouped(every, lambda results: results.identity)
    found = []
    for number, several in enumerate(models.values()):
        store = folder / str(number)
        _write_run(store, several)
        found.append((store, several[0].source))
    return found


def read_results(path: Path) -> list[ForeignResults]:
    """Reads a file of another harness; of a leaderboard each row is a model.

    Raises:
        InputError: As of :func:`write_runs`.
    """
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if not path.is_file():
        raise InputError("no such file", where=str(path))
    if kind == "csv":
        return _read_leaderboard(path)
    if kind not in ("json", "eval"):
        samples = path.name.startswith("samples_") and kind == "jsonl"
        hint = "samples are read with the results_*.json beside them: name that" if samples else f"read are {_TAKEN}"
        raise InputError("not a file of results", where=str(path), hint=hint)
    values, samples = read_archive(path) if kind == "eval" else (parse_json(read_whole(path), path), ())
    try:
        if isinstance(values, list):
            return _read_annotations(path, values)
        if isinstance(values, dict) and isinstance(values.get("results"), dict) and "eval" not in values:
            return [_read_lm_eval(path, values)]
        if isinstance(values, dict) and isinstance(values.get("eval"), dict):
            return [_read_inspect(path, values, samples or values.get("samples") or ())]
    except PosttrainError:
        raise
    except FAULTS as error:
        raise damaged(path, error) from error
    raise InputError("not a file of results", where=str(path), hint=f"read are {_TAKEN}")


# --- lm-eval: evaluation_tracker.py writes results_<date>.json, and samples_<task>_<date>.jsonl a task ---


def _read_lm_eval(path: Path, values: Json) -> ForeignResults:
    config = _mapping(values.get("config"))
    model, settings = _lm_eval_model(values, config)
    scores = []
    for task, figures in values["results"].items():
        metrics = _lm_eval_metrics(task, _mapping(figures), values, path)
        if metrics:  # the name of a group without a mean has none
            scores.append(_lm_eval_score(path, task, metrics, values, config))
    if not scores:
        raise InputError("holds no figures", where=str(path), hint="did lm-eval end?")
    version = values.get("lm_eval_version") or values.get("git_hash")
    date = values.get("date")
    created = datetime.fromtimestamp(date, UTC).isoformat(timespec="seconds") if isinstance(date, int | float) else None
    version = str(version) if version else None
    return ForeignResults(path, "lm-eval", version, model or path.stem, settings, created, tuple(scores))


def _lm_eval_model(values: Json, config: Json) -> tuple[str, Json]:
    arguments = config.get("model_args")
    if isinstance(arguments, str):
        pairs = (part.partition("=") for part in arguments.split(",") if part)
        arguments = {name: value for name, _, value in pairs}
    arguments = _mapping(arguments)
    named = (arguments.get(key) for key in ("peft", "delta", "pretrained", "model", "path", "engine"))
    name = values.get("model_name") or next(filter(None, named), None) or config.get("model") or ""
    settings = {"backend": config.get("model"), "arguments": arguments, "sha": config.get("model_sha")}
    name = str(name)
    return Path(name).name if name.startswith((".", "/", "~")) else name, settings


def _lm_eval_metrics(task: str, figures: Json, values: Json, path: Path) -> tuple[Json, ...]:
    """Reads ``metric,filter`` keys, or those of versions before 0.4 that had no filters."""
    keys = [key for key in figures if "," in key] or [
        key for key, value in figures.items() if key not in ("sample_len", "sample_count") and is_number(value)
    ]
    keys = [key for key in keys if not key.partition(",")[0].endswith("_stderr")]
    filters = {key.partition(",")[2] for key in keys}
    up = _mapping(_mapping(values.get("higher_is_better")).get(task))
    counts = _mapping(_mapping(values.get("n-samples")).get(task))
    n = counts.get("effective", figures.get("sample_len"))
    metrics = []
    for key in keys:
        name, _, used = key.partition(",")
        if not is_number(figures[key]):
            continue  # N/A, or a text
        stderr = figures.get(f"{name}_stderr,{used}" if used else f"{name}_stderr")
        label = key if len(filters) > 1 else name
        metrics.append(_metric(label, figures[key], stderr, n, path, task, up.get(name)))
    return tuple(metrics)


def _lm_eval_score(path: Path, task: str, metrics: tuple[Json, ...], values: Json, config: Json) -> ForeignScore:
    definition = dict(_mapping(_mapping(values.get("configs")).get(task)))
    metadata = _mapping(definition.pop("metadata", None))  # holds the model's arguments too
    shots = _mapping(values.get("n-shot")).get(task, config.get("num_fewshot"))
    definition |= {"name": task, "version": _mapping(values.get("versions")).get(task, metadata.get("version"))}
    definition |= {"hash": _mapping(values.get("task_hashes")).get(task), "n": metrics[0]["n"]}
    members = _mapping(values.get("group_subtasks")).get(task) or []
    detail: Json = {}
    if members:
        results = values["results"]
        firsts = {name: _lm_eval_metrics(name, _mapping(results.get(name)), values, path) for name in members}
        detail = {"kind": "group", "tasks": {name: found[0]["value"] for name, found in firsts.items() if found}}
    template = values.get("chat_template_sha") or (values.get("chat_template") and hash_json(values["chat_template"]))
    samples = None if members else _lm_eval_samples(path, task, metrics[0]["n"])
    if samples is not None:
        count = len(set(samples[1]))
        metrics = tuple(metric if metric["n"] is not None else metric | {"n": count} for metric in metrics)
    items = items_digest(io.BytesIO(samples[0])) if samples else None
    if items and config.get("gen_kwargs") and definition.get("output_type") == "generate_until":
        items = hash_json([items, config["gen_kwargs"]])  # asked alike, and answered under settings of its own
    if items:  # they show the task, but not how their answers are made and read
        definition = {key: definition.get(key) for key in ("generation_kwargs", "filter_list")}
    return ForeignScore(
        task,
        definition,
        metrics,
        samples[0] if samples else None,
        items,
        shots if isinstance(shots, int) else None,
        _lm_eval_limit(_mapping(_mapping(values.get("n-samples")).get(task)), config.get("limit")),
        str(template)[:16] if template else None,
        detail=detail,
    )


def _lm_eval_limit(counts: Json, limit: Any) -> int | None:
    """Returns how many items were scored if those are not all; ``limit`` may be a share of them."""
    all_items, scored = counts.get("original"), counts.get("effective")
    if isinstance(all_items, int) and isinstance(scored, int):
        return scored if scored < all_items else None
    return int(limit) if isinstance(limit, int | float) and limit >= 1 else None


def _lm_eval_samples(path: Path, task: str, n: int | None) -> tuple[bytes, list[Any]] | None:
    """Reads the samples of a task that lie beside its results, if they do; with the numbers of their items."""
    from .harness import samples_to_parquet

    safe = re.sub(r"\W", "_", task)  # lm_eval.utils.sanitize_task_name
    date = re.search(r"_(\d{4}-\d\d-\d\dT[\d.-]+)\.json(\.gz)?$", path.name)
    file = path.parent / f"samples_{safe}_{date[1]}.jsonl" if date else None
    if file is None or not file.is_file():
        return None
    rows = []
    with opened(file) as handle:
        for number, line in enumerate(_lines(handle, file), start=1):
            where = f"{file}:{number}"
            row = parse_json(line, where)
            try:
                rows.append(_lm_eval_row(row))
            except FAULTS as error:
                raise damaged(where, error, "mend it, or remove it to have the figures without items") from error
    ids = [row["doc_id"] for row in rows]
    if not rows or (n is not None and len(set(ids)) != n):
        what = f"holds {len(set(ids))} items, and the results are over {n}"
        hint = "mend it, or remove it to have the figures without items"
        raise InputError(what, where=str(file), hint=hint)
    import pyarrow

    try:
        return samples_to_parquet(rows), ids
    except (pyarrow.ArrowException, KeyError, TypeError, ValueError, IndexError) as error:
        raise damaged(file, error) from error


def _lm_eval_row(row: Json) -> Json:
    """Returns a sample as lm-eval holds it: what was made fit for JSON, and what older versions left out, put back."""
    arguments = row["arguments"]
    if isinstance(arguments, dict):
        arguments = [tuple(argument.values()) for argument in arguments.values()]
    prompt = str(arguments[0][0])
    document = json.dumps(row["doc"], indent=2, ensure_ascii=False)
    old = {"filter": "none", "doc_hash": _sha(document), "prompt_hash": _sha(prompt)}
    if not isinstance(row["doc_id"], int):
        raise ValueError("doc_id is no number")
    whole = old | row | {"arguments": [tuple(argument) for argument in arguments], "target": str(row["target"])}
    for key in ("resps", "filtered_resps"):
        whole[key] = _likelihoods(row[key])
    return whole


def _likelihoods(value: Any) -> Any:
    """Turns ``["-1.5", "False"]``, as samples are written, into a log-likelihood and whether it is the greedy text."""
    if isinstance(value, list):
        if len(value) == 2 and value[1] in ("True", "False") and isinstance(value[0], str):
            return [float(value[0]), value[1] == "True"]
        return [_likelihoods(one) for one in value]
    return value


def items_digest(samples: Any) -> str | None:
    """Returns what identifies the items of lm-eval's samples: documents, prompts, targets and options.

    Args:
        samples: A Parquet file as :func:`~.harness.samples_to_parquet` makes them, ours or another's.

    Returns:
        A hash, or None where the file is of another kind.
    """
    import pyarrow
    import pyarrow.parquet

    names = ["doc_id", "doc_hash", "prompt", "target", "options"]
    try:
        rows = pyarrow.parquet.read_table(samples, columns=names, use_threads=False).to_pylist()
    except (OSError, pyarrow.ArrowException, ValueError):
        return None
    if not rows or set(rows[0]) != set(names):
        return None
    items = {_sha(json.dumps([row[name] or None for name in names], ensure_ascii=True)) for row in rows}
    return _sha("".join(sorted(items)))[:16]


# --- AlpacaEval: main.py writes leaderboard.csv and annotations.json; metrics/winrate.py says what is counted ---


def _read_annotations(path: Path, rows: list[Any]) -> list[ForeignResults]:
    """Reads verdicts on pairs: ``preference`` is 1 where the opponent's output is better, 2 where the model's is."""
    if rows and all(isinstance(row, dict) and "output" in row and "preference" not in row for row in rows):
        hint = f"score them: posttrain score {path.name} --suite SUITE -o FOLDER; or name them as a judge's baseline"
        raise InputError("holds answers, and no figures", where=str(path), hint=hint)
    needed = {"preference", "generator_1", "generator_2", "instruction"}
    groups: dict[str, dict[tuple[str, str], list[tuple[str, float | None]]]] = {}
    for number, row in enumerate(rows):
        where = f"{path}[{number}]"
        if not isinstance(row, dict) or not needed <= set(row):
            missing = ", ".join(sorted(needed - set(row))) if isinstance(row, dict) else "an object"
            raise InputError(f"no annotation of AlpacaEval: it lacks {missing}", where=where, hint=f"read are {_TAKEN}")
        model, opponent, judge = (str(row.get(key) or "?") for key in ("generator_2", "generator_1", "annotator"))
        value = row["preference"]
        mine = groups.setdefault(model, {}).setdefault((opponent, judge), [])
        if value is None or (isinstance(value, float) and math.isnan(value)):
            mine.append((str(row["instruction"]), None))
        elif not is_number(value) or not (value == 0 or 1 <= value <= 2):
            raise InputError(f"preference {value!r} is neither 0 nor from 1 to 2", where=where)
        else:  # 0 and 1.5 are ties
            mine.append((str(row["instruction"]), 0.5 if value == 0 else value - 1))
    found = []
    for model, sets in groups.items():
        scores = [_win_rate(path, model, *between, pairs) for between, pairs in sets.items()]
        found.append(ForeignResults(path, "AlpacaEval", None, model, {}, None, tuple(scores)))
    if not found:
        raise InputError("holds no results", where=str(path), hint=f"read are {_TAKEN}")
    return found


def _win_rate(
    path: Path, model: str, opponent: str, judge: str, asked: Sequence[tuple[str, float | None]]
) -> ForeignScore:
    """Returns the share of its wins against an opponent; what could not be read is left out, as AlpacaEval does."""
    pairs = [(instruction, value) for instruction, value in asked if value is not None]
    values, unread = [value for _, value in pairs], len(asked) - len(pairs)
    n = len(values)
    if not n:
        raise InputError(f"no verdict on {model} could be read", where=str(path))
    found = win_rate(values)
    seen: dict[str, int] = {}
    samples = []
    for instruction, _ in pairs:
        seen[instruction] = seen.get(instruction, -1) + 1
        samples.append(seen[instruction])
    keys = [_sha(instruction)[:16] for instruction, _ in pairs]
    table = {"prompt_key": keys, "sample": samples, "category": [None] * n, "opponent": [opponent] * n}
    metric = _metric("win_rate", found.value, found.stderr, n, path, model, True)
    items = _sha("\0".join(sorted(instruction for instruction, _ in asked)))[:16]
    return ForeignScore(
        "alpaca_eval",
        {"judge": judge, "opponent": opponent},
        (metric,),
        parquet(table | {"preference": values}),
        items,
        judge_version=hash_json(["AlpacaEval", judge]),
        detail={
            "judge": judge,
            "backend": "endpoint",
            "opponents": [opponent],
            "coverage": f"{judge} against {opponent}",
        },
        notes=(f"{unread} verdicts could not be read and are left out",) if unread else (),
    )


def _read_leaderboard(path: Path) -> list[ForeignResults]:
    """Reads a row for each model, in percent: win rates raw and length-controlled, with their standard errors."""
    try:
        text = read_whole(path).decode()
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise damaged(path, error) from error
    if not rows or not {"", "win_rate", "standard_error"} <= set(rows[0]):
        hint = "it needs the columns win_rate and standard_error, with the models' names before them"
        raise InputError("not a leaderboard of AlpacaEval", where=str(path), hint=hint)
    # The file does not say who judged: its name does, as the package's own, or its folder's.
    name = path.name.removesuffix(".gz").removesuffix(".csv").removesuffix("leaderboard").strip("_")
    judge = name or path.absolute().parent.name
    found = []
    for number, row in enumerate(rows, start=2):
        where = f"{path}:{number}"
        n = _of_text(row.get("n_total"), where)
        metrics = []
        for label, value, stderr in (
            ("win_rate", "win_rate", "standard_error"),
            ("win_rate_length_controlled", "length_controlled_winrate", "lc_standard_error"),
        ):
            percent, error = _of_text(row.get(value), where), _of_text(row.get(stderr), where)
            if percent is not None:
                share = None if error is None else error / 100
                metrics.append(_metric(label, percent / 100, share, n, where, value, True))
        if not metrics or metrics[0]["name"] != "win_rate":
            raise InputError("no win_rate", where=where)
        score = ForeignScore(
            "alpaca_eval",
            {"judge": judge, "leaderboard": True},
            tuple(metrics),
            judge_version=hash_json(["AlpacaEval", judge, "leaderboard"]),
            detail={"judge": judge, "backend": "endpoint", "coverage": judge},
        )
        found.append(ForeignResults(path, "AlpacaEval", None, row[""] or "?", {"judge": judge}, None, (score,)))
    return found


def _of_text(value: Any, where: str) -> float | None:
    """Returns a number of a table; None of an empty cell."""
    if value is None or not str(value).strip():
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{str(value)[:40]!r} is no number", where=where) from error


# --- inspect: log/_log.py says what a log holds ---


def _read_inspect(path: Path, log: Json, samples: Iterable[Any]) -> ForeignResults:
    spec, status = log["eval"], log.get("status")
    results = log.get("results")
    if status != "success" or not isinstance(results, dict) or not results.get("scores"):
        raise InputError(f"the evaluation has no figures: its status is {status}", where=str(path))
    config = _mapping(spec.get("config"))
    values = _inspect_values(samples)
    task = str(spec["task"])
    entries = results["scores"]
    metrics = []
    for entry in entries:
        known = _mapping(entry.get("metrics"))
        stderr = _mapping(known.get("stderr")).get("value")
        several = len(entries) > 1
        items = {item for item, scored in values.items() if str(entry.get("name")) in scored}
        n = len(items) or entry.get("scored_samples") or results.get("completed_samples")
        for key, metric in known.items():
            if key in _SPREADS:
                continue
            # An entry is a scorer's, and where it joins epochs in several ways one of those.
            names = (key, entry["name"], entry.get("reducer")) if several else (key,)
            spread = stderr if key in ("accuracy", "mean") else None
            metrics.append(_metric(",".join(filter(None, names)), metric["value"], spread, n, path, task))
    if not metrics:
        raise InputError("the evaluation has no figures", where=str(path))
    scored = {item: found[entries[0]["name"]] for item, found in values.items() if entries[0]["name"] in found}
    rows = [(item, sum(several) / len(several)) for item, several in sorted(scored.items())]
    table = {"figure": [metrics[0]["name"]] * len(rows), "item": [item for item, _ in rows]}
    dataset, epochs = _mapping(spec.get("dataset")), config.get("epochs") or 1
    limit, total, runs = config.get("limit"), dataset.get("samples"), results.get("total_samples")
    if isinstance(total, int) and isinstance(runs, int):
        # What was asked tells more: a limit may go beyond the last item, be a range, or stand as a choice of ids.
        limit = asked if (asked := runs // epochs) < total else None
    name = task.rpartition("/")[2]
    definition: Json = {  # what is empty is as what is not said
        "version": spec.get("task_version"),
        "arguments": spec.get("task_args") or None,
        "solver": [spec.get("solver"), spec.get("solver_args") or None],
        "scorer": [entries[0].get("scorer"), entries[0].get("params") or None, spec.get("model_roles") or None],
        "epochs": [epochs, config.get("epochs_reducer") or ["mean"]] if epochs > 1 else None,
    }
    if not rows:  # which tell the items, by whatever name or from whatever place they were run
        definition |= {"task": task, "dataset": dataset.get("name"), "n": metrics[0]["n"]}
    score = ForeignScore(
        name,
        definition,
        tuple(metrics),
        parquet(table | {"value": [value for _, value in rows]}) if rows else None,
        _sha("".join(item for item, _ in rows))[:16] if rows else None,
        limit=limit if isinstance(limit, int) and not isinstance(limit, bool) else None,
    )
    version = _mapping(spec.get("packages")).get("inspect_ai")
    settings = {"arguments": spec.get("model_args"), "generation": spec.get("model_generate_config")}
    created = spec.get("created") if isinstance(spec.get("created"), str) else None
    return ForeignResults(path, "inspect", version, str(spec["model"]), settings, created, (score,))


def _inspect_values(samples: Iterable[Any]) -> dict[str, dict[str, list[float]]]:
    """Returns each item's values by scorer, one an epoch; an item is its id, what was asked, and what is right."""
    found: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        asked = json.dumps([sample["input"], sample["target"], sample.get("choices")], sort_keys=True)
        item = f"{sample['id']}:{_sha(asked)[:16]}"
        for name, score in _mapping(sample.get("scores")).items():
            value = _inspect_value(_mapping(score).get("value"))
            if value is not None:
                found.setdefault(item, {}).setdefault(name, []).append(value)
    return found


def _inspect_value(value: Any) -> float | None:
    """Returns a mark as a number, as inspect's ``value_to_float`` does; None of one that has none."""
    letters = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
    if isinstance(value, str):
        return letters.get(value, letters.get(value.lower()))
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


# --- what all of them share ---


def _write_run(store: Path, several: Sequence[ForeignResults]) -> None:
    """Writes a model's results as a run folder: its record, its scores, and the samples that they have."""
    first = several[0]
    record: Json = {"schema": 1, "name": first.model, "stage": STAGE, "recipe": {"model": first.model}}
    record |= {"recipe_hash": "", "data": None, "template": None, "git": None, "parent": None, "processes": None}
    record |= {"versions": {first.harness: first.version} if first.version else {}, "created": None, "command": ""}
    harness = ", ".join(dict.fromkeys(results.title for results in several))
    record |= {"harness": harness, "files": [results.source.name for results in several]}
    found = [(_line(results, score), score) for results in several for score in results.scores]
    lines = []
    for same in grouped(found, lambda pair: tuple(pair[0][key] for key in _MEASURED)).values():
        line, score = sorted(same, key=lambda pair: pair[0]["created"] or "")[-1]
        if len(same) > 1:  # whose samples have one name
            line["notes"].append(f"scored {len(same)} times; the newest is shown")
        if score.samples is not None:
            write_atomic(store / samples_name(line["model_hash"], line["task"], line["task_hash"]), score.samples)
        lines.append(line)
    write_json(store / RUN_FILE, record)
    write_atomic(store / SCORES, "".join(json.dumps(line) + "\n" for line in lines))


def _line(results: ForeignResults, score: ForeignScore) -> Json:
    """Returns a line of ``scores.jsonl``."""
    content = {"harness": results.harness, "items": score.items} | score.definition
    # A function stands in a definition by its name and by its address, which is another in each process.
    told = json.loads(re.sub(r" at 0x[0-9a-fA-F]+", "", json.dumps(content)))
    task, task_hash = re.sub(r"[^\w.:+@ ()-]", "_", score.task)[:150], hash_json(told)
    foreign = {"harness": results.title, "file": results.source.name, "items": score.items}
    return {
        "run": results.model,
        "run_id": "",
        "checkpoint": FINAL,
        "step": None,
        "weights_hash": None,
        "model_hash": results.identity,
        "suite": None,
        "suite_version": None,
        "task": task,
        "task_hash": task_hash,
        "num_fewshot": score.num_fewshot,
        "metrics": list(score.metrics),
        "template_fingerprint": score.template,
        "judge_version": score.judge_version,
        "limit": score.limit,
        "created": results.created,
        "notes": [f"{results.title}: {results.source.name}", *score.notes],
        "detail": {"coverage": results.harness} | score.detail,
        "foreign": foreign,
    }


def _metric(name: str, value: Any, stderr: Any, n: Any, where: object, task: str, up: Any = None) -> Json:
    """Returns a figure as a score's line holds it; its direction follows from its name where the file does not say."""
    if not is_number(value) or not math.isfinite(value):
        hint = "score it again, or remove that figure from the file"
        raise InputError(f"{task}: {name} is {value}, no finite number", where=str(where), hint=hint)
    error = float(stderr) if is_number(stderr) and math.isfinite(stderr) and stderr >= 0 else None
    count = int(n) if is_number(n) and math.isfinite(n) and n >= 1 else None
    up = up if isinstance(up, bool) else name.partition(",")[0] not in LOWER_IS_BETTER
    return {"name": name, "value": float(value), "stderr": error, "n": count, "higher_is_better": up}


def _lines(handle: Any, file: Path) -> Iterator[bytes]:
    """Yields the lines of a file of samples."""
    while line := handle.readline(MOST_BYTES + 1):
        if len(line) > MOST_BYTES:
            raise too_large(file, len(line))
        if line.strip():
            yield line


def _mapping(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
