"""lm-evaluation-harness as a library: one task on one model, offline, without its caches."""

import contextlib
import functools
import io
import json
import logging
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

from .errors import EvalError, SuiteError
from .models import quiet_bars
from .records import Metric, Result, parquet
from .sampling import Draws, Samples, check_drawn, generation_settings
from .saved_answers import notes_of
from .spec import SuiteSpec, TaskSpec

Sample = dict[str, Any]  # of lm-eval: an item, with what was answered and counted
# Draws for the standard errors that have no closed form (medians, F1): enough for two digits, in a second.
_BOOTSTRAP = 500
_PLAIN_SAMPLE_KEYS = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"}
_ENOUGH = 20  # rows, of which one option is right by chance in one of a million
_NOTHING_READ = "[invalid]"  # what lm-eval's filters give where their pattern finds nothing
_PLAIN_SAMPLE_KEYS |= {"doc_hash", "prompt_hash", "target_hash"}


@functools.cache
def keep_templates() -> None:
    """Has lm-eval compile each template of a task once. It does so anew for each row, which is most of a check's time.

    A compiled template holds nothing of a row, so what it gives stays the same.
    """
    from lm_eval import utils

    compiled = functools.lru_cache(maxsize=1024)(utils.env.from_string)

    def apply_template(template: str, doc: dict[str, Any]) -> str:
        return compiled(template).render(**doc)

    utils.apply_template = apply_template


def run_task(
    task: Any,
    spec: TaskSpec,
    primary: str | None,
    lm: Any,
    suite: SuiteSpec,
    *,
    templated: bool,
    notes: Counter[str] | None,
) -> Result:
    """Scores a model on one task.

    Neither of lm-eval's caches is used: ``use_cache`` keys on the request and not on the model, and
    ``cache_requests`` leaves out the data. Few-shot examples are turns of their own where a template is applied.

    Args:
        task: lm-eval's, built.
        spec: What the suite says of it.
        primary: The metric that stands for it where the suite names none.
        lm: The model, such as a :class:`~.harness_model.HarnessModel`. The result's ``detail`` says how it scored
            options, if there were any.
        suite: The suite.
        templated: Whether the chat template is applied.
        notes: What was warned of while the task was built.

    Raises:
        SuiteError: The task has no such metric.
        EvalError: The primary figure is not a number, or items are too long and are not to be cut.
    """
    from lm_eval import evaluator
    from lm_eval.utils import hash_string

    from .harness_model import unmarked

    evaluate: Any = evaluator.evaluate
    lm.shared.record = lm.thinking = None
    seed_all(suite.seed)
    task.set_fewshot_seed(suite.seed)
    setting, several = spec.sampling, None
    lm.setting, lm.draws = setting, None
    if setting is not None:
        task.set_config("generation_kwargs", generation_settings(setting, task.config.generation_kwargs), update=True)
        lm.draws = Draws(setting, suite.seed) if setting.temperature > 0 and not lm.draws_itself else None
        several = Samples(task, setting, spec.metric or primary, suite.seed) if setting.samples > 1 else None
    if task.OUTPUT_TYPE == "generate_until" and lm.longest is not None:
        most = _answer_limit(task.config.generation_kwargs, lm)
        if most >= lm.max_length:
            what = f"an answer of {most} tokens leaves no room for a prompt: the model takes {lm.max_length} together"
            raise EvalError(what, where=spec.title, hint="say less, as `gen_kwargs: {max_gen_toks: …}`")
    no_pool = mock.patch.dict(os.environ, {"DISABLE_MULTIPROC": "1"})  # a fork of a process that runs torch may hang
    no_prints = contextlib.redirect_stdout(io.StringIO())
    long = _leave_out_long_items(task, lm, suite, spec.title)
    with quiet_bars(), noted(notes) as told, no_pool, no_prints:
        results = evaluate(
            lm,
            {"tasks": {spec.title: task}},
            limit=spec.limit,
            bootstrap_iters=_BOOTSTRAP,
            apply_chat_template=templated,
            fewshot_as_multiturn=templated,
        )
    if setting is not None and lm.draws is not None:
        check_drawn(lm.draws, task, setting)
        lm.draws = None
    name, samples = spec.title, results["samples"][spec.title]
    if any(_is_nan(response) for sample in samples for responses in sample["resps"] for response in responses):
        raise EvalError("a log-likelihood is not a number", where=name, hint="do the weights hold NaN?")
    for sample in samples if templated else ():
        sample["arguments"] = [(unmarked(first), *rest) for first, *rest in sample["arguments"]]
        sample["prompt_hash"] = hash_string(sample["arguments"][0][0])
    figures, up = results["results"][name], {"unparsed": False} | results["higher_is_better"].get(name, {})
    if task.OUTPUT_TYPE == "generate_until":
        _count_unread(task, samples, figures)
    metrics = _primary_first(_metrics(figures, up, samples), spec, primary)
    metrics = tuple(several.told(metrics) if several else metrics)
    record = lm.shared.record or {}
    foreign = notes_of(record["foreign"], setting) if record.get("foreign") else ()
    said = (
        *foreign,
        *summary(told),
        *_constant(task, samples),
        *_tied(task, samples, lm),
        *_notes_on_items(lm, len(long), metrics[0].n),
    )
    detail = record | ({"thinking": lm.thinking} if lm.thinking else {}) | ({"too_long": len(long)} if long else {})
    limited = spec.limit is not None and spec.limit < results["n-samples"][name]["original"]
    return Result(metrics, samples_to_parquet(samples), results["n-shot"][name], said, detail or None, limited)


def _is_nan(response: Any) -> bool:
    """Says whether a response holds a log-likelihood of NaN, beside which the first option passes for the likeliest."""
    value = response[0] if isinstance(response, tuple | list) and response else response
    return isinstance(value, float) and math.isnan(value)


def _notes_on_items(lm: Any, long: int, scored: int) -> Iterator[str]:
    """Says what was done otherwise than asked, and which items have no answer."""
    record, thinking = lm.shared.record or {}, lm.thinking
    if "reason" in record:
        yield f"scored without shared contexts: {record['reason']}"
    if record.get("compared_on"):
        yield f"shared contexts were compared with plain passes on {record['compared_on']}"
    if record.get("continuous"):
        yield f"generated without continuous batching: {record['continuous']}"
    if long:
        yield f"{long} of {long + scored} items are longer than the model takes: left out"
    if thinking and thinking["cut"]:
        yield f"{thinking['cut']} of {thinking['answers']} never ended their thoughts: no answer"


def _leave_out_long_items(task: Any, lm: Any, suite: SuiteSpec, where: str) -> set[int]:
    """Has a task leave out the items that the model cannot take whole, or refuse them.

    The others keep their numbers and their worked examples, whatever is left out.

    Returns:
        The numbers of what is left out, once the task has built its requests.
    """
    long: set[int] = set()
    if suite.too_long == "cut" or lm.longest is None:  # what others have answered was not too long for them
        return long
    build, iterate = task.build_all_requests, task.doc_iterator

    def build_all_requests(**options: Any) -> None:
        build(**options)
        found = {request.doc_id for request in task.instances if _is_too_long(request, lm)}
        several = {request.doc_id for request in task.instances}
        if found and (suite.too_long == "error" or found == several):
            what = f"{len(found)} of {len(several)} items are longer than the model takes ({lm.max_length} tokens)"
            raise EvalError(what, where=where, hint="say `too_long: cut` or `skip`, or ask with fewer examples")
        task._instances = [request for request in task.instances if request.doc_id not in found]
        long.update(found)

    def doc_iterator(**options: Any) -> Iterator[tuple[int, Any]]:
        return ((number, doc) for number, doc in iterate(**options) if number not in long)

    task.build_all_requests, task.doc_iterator = build_all_requests, doc_iterator
    return long


def _is_too_long(request: Any, lm: Any) -> bool:
    """Says whether lm-eval would cut a request's beginning."""
    first, *rest = request.args
    if request.request_type == "generate_until":
        return len(lm.tok_encode(first)) > lm.max_length - _answer_limit(rest[0], lm)
    if request.request_type != "loglikelihood":  # windows of a whole text
        return False
    context, continuation = lm._encode_pair(first, rest[0]) if first else ([0], lm.tok_encode(rest[0]))
    return len(context) + len(continuation) > lm.longest


def _answer_limit(settings: dict[str, Any], lm: Any) -> int:
    """Returns how many tokens an answer may have, whichever of its names a task's settings give it."""
    from lm_eval.models.utils import normalize_gen_kwargs

    return normalize_gen_kwargs(settings, lm.max_gen_toks).get("max_gen_toks", lm.max_gen_toks)


def _constant(task: Any, samples: list[Sample]) -> list[str]:
    """Warns of options of which always the same is right: a label that was lost reads so."""
    config = getattr(task, "config", None)
    if task.OUTPUT_TYPE != "multiple_choice" or isinstance(getattr(config, "doc_to_target", 0), int):
        return []
    golds = {str(sample["target"]) for sample in samples}
    few = len(samples) < _ENOUGH or len(golds) > 1
    return [] if few else [f"the right answer is {golds.pop()} in all {len(samples)} rows: are the labels right?"]


def _tied(task: Any, samples: list[Sample], lm: Any) -> list[str]:
    """Says in how many items several options are the likeliest, of which lm-eval takes the first."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return []
    tied = 0
    for sample in samples:
        logs = [responses[0][0] for responses in sample["resps"]]
        options = logs[: len(logs) // 2] if "acc_mutual_info" in sample else logs
        tied += options.count(max(options)) > 1
    if not tied or tied < len(samples) / 100:
        return []
    dtype = str(getattr(getattr(lm, "model", None), "dtype", "")).removeprefix("torch.")
    why = f": {dtype} rounds logits, and `dtype: float32` tells them apart" if dtype in ("bfloat16", "float16") else ""
    return [f"in {tied} of {len(samples)} items several options are likeliest, and the first counts{why}"]


def seed_all(seed: int) -> None:
    """Seeds the generators that lm-eval, its tasks and functions of a user draw from: Python's, NumPy's and torch's."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _metrics(results: dict[str, Any], up: dict[str, Any], samples: list[Sample]) -> list[Metric]:
    """Reads lm-eval's ``metric,filter`` keys; the filter is named only where a task has several."""
    filters = {key.split(",", 1)[1] for key in results if "," in key}
    metrics = []
    for key, value in results.items():
        metric, _, filter_name = key.partition(",")
        if not filter_name or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = results.get(f"{metric}_stderr,{filter_name}")
        error = float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None
        count = sum(1 for sample in samples if sample["filter"] == filter_name and metric in sample)
        label = f"{metric},{filter_name}" if len(filters) > 1 else metric
        metrics.append(Metric(label, float(value), error, count, up.get(metric) is not False))
    return metrics


def _count_unread(task: Any, samples: list[Sample], results: dict[str, Any]) -> None:
    """Adds to samples and results the share of answers in which a filter by pattern found nothing.

    A model that forgets the format then differs from one whose answers are wrong, which lm-eval's figures do not tell.
    Of several samples of an item each is an answer.
    """
    from lm_eval.api.metrics import mean, mean_stderr

    for entry in getattr(task.config, "filter_list", None) or ():
        if not any(step["function"] in ("regex", "multi_choice_regex") for step in entry["filter"]):
            continue
        mine = [sample for sample in samples if sample["filter"] == entry["name"]]
        for sample in mine:
            sample["unparsed"] = mean([float(text == _NOTHING_READ) for text in _flat(sample["filtered_resps"])])
        values = [sample["unparsed"] for sample in mine]
        results[f"unparsed,{entry['name']}"] = mean(values)
        results[f"unparsed_stderr,{entry['name']}"] = mean_stderr(values) if len(values) > 1 else "N/A"


def _flat(read: Any) -> list[Any]:
    """Returns what filters gave for a document, which may stand in a list for each request and for each sample."""
    return [text for one in read for text in _flat(one)] if isinstance(read, list) else [read]


def _primary_first(metrics: list[Metric], spec: TaskSpec, primary: str | None) -> tuple[Metric, ...]:
    """Puts the metric that stands for the task first and drops others that are not finite."""
    wanted = spec.metric or primary
    found = [metric for metric in metrics if wanted in (metric.name, metric.name.split(",")[0])]
    if spec.metric and not found:
        names = ", ".join(metric.name for metric in metrics)
        raise SuiteError(f"the task has no metric '{wanted}'", where=spec.title, hint=f"it has: {names}")
    if not metrics:
        raise EvalError("the task gave no figures", where=spec.title)
    first = (found or metrics)[0]
    if not math.isfinite(first.value):
        raise EvalError(f"{first.name} is {first.value}", where=spec.title, hint="do the logits hold NaN?")
    return (first, *(metric for metric in metrics if metric is not first and math.isfinite(metric.value)))


def samples_to_parquet(samples: list[Sample]) -> bytes:
    """Packs lm-eval's samples as Parquet.

    Columns: ``doc_id, filter, doc`` (JSON)``, doc_hash, prompt, prompt_hash, target, options`` (the continuations that
    were compared; empty where text was generated)``, responses`` (a JSON list for each request: the generated texts, or
    ``[log-likelihood, is-greedy]``)``, filtered`` (JSON: what the metrics saw), and ``metric.<name>`` for each metric,
    numbers where they are numbers and JSON elsewhere.
    """
    names = dict.fromkeys(name for sample in samples for name in sample if name not in _PLAIN_SAMPLE_KEYS)
    rows = [_sample_row(sample) for sample in samples]
    columns = {key: [row[key] for row in rows] for key in rows[0]} if rows else {}
    for name in names:
        values = [sample.get(name) for sample in samples]
        numbers = all(value is None or isinstance(value, int | float) for value in values)
        columns[f"metric.{name}"] = (
            [None if v is None else float(v) for v in values] if numbers else [_json(value) for value in values]
        )
    return parquet(columns)


def _sample_row(sample: Sample) -> dict[str, Any]:
    arguments = sample["arguments"]
    return {
        "doc_id": sample["doc_id"],
        "filter": sample["filter"],
        "doc": _json(sample["doc"]),
        "doc_hash": sample["doc_hash"],
        "prompt": str(arguments[0][0]),
        "prompt_hash": sample["prompt_hash"],
        "target": str(sample["target"]),
        "options": [a[1] for a in arguments if len(a) > 1 and isinstance(a[1], str)],
        "responses": [_json(responses) for responses in sample["resps"]],
        "filtered": _json(sample["filtered_resps"]),
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


_LOGGERS = ("lm_eval", "transformers", "datasets", "evaluate", "py.warnings")
# Warnings that say nothing of a score: lm-eval's of its own defaults and of how this project calls it, and libraries'
# of each other's old names. Any other is a note.
_HARMLESS = re.compile(
    r"model kwarg is not of type `str`|already-initialized model through `pretrained`|No `until` specified"
    r"|No `generation_kwargs` specified|fewshot_split is None|Custom kwargs can be passed|aggregation is not defined"
    r"|aggregation is not\.|aggregation is not$|higher_is_better is not|is deprecated|will be removed in"
    r"|DeprecationWarning|FutureWarning|Setting `pad_token_id`|Could not find registered metric"
)


@contextlib.contextmanager
def noted(found: Counter[str] | None = None) -> Iterator[Counter[str]]:
    """Counts the libraries' warnings, alike but for their numbers, instead of printing one for each prompt."""
    counted: Counter[str] = Counter() if found is None else found

    class Count(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            counted[re.sub(r"\d+", "N", record.getMessage())] += 1

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    handler, states = Count(logging.WARNING), [(logger.level, logger.propagate) for logger in loggers]
    handlers = [list(logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    try:
        yield counted
    finally:
        logging.captureWarnings(False)
        for logger, own, (level, propagate) in zip(loggers, handlers, states, strict=True):
            logger.handlers, logger.propagate = own, propagate
            logger.setLevel(level)


def summary(notes: Counter[str]) -> Iterator[str]:
    """Words warnings, but for those that are known to be harmless."""
    for text, count in notes.items():
        if "exceeds model's maximum length" in text or "Truncating context" in text:
            yield f"{count} prompts are longer than the model takes; their beginnings were cut"
        elif not _HARMLESS.search(text):
            said = " ".join(text.split())
            yield f"{count}x {said[:300]}{'…' if len(said) > 300 else ''}"
