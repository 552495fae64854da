"""Items of lm-eval's tasks for the sample browser: those on which rows differ most, since those tell them apart."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints import FINAL
from .items import Items, samples_path
from .judged_model import Given, Sample
from .model import Column, Leaderboard, Row
from .verdicts import ItemsOf

MOST = 6
"""Items of a task that the page shows."""
_ROWS = 8  # rows whose answers are read
_PROMPT = 900  # characters of a prompt's end, where the question is
_COLUMNS = ("prompt", "target", "options", "filtered", "doc_id", "doc_hash", "filter")


def task_items(leaderboard: Leaderboard, items: ItemsOf, folders: Mapping[str, Path]) -> tuple[Sample, ...]:
    """Returns, for each task with samples of lm-eval, a few items with what the last row of each run made of them.

    Args:
        leaderboard: With its rows and columns.
        items: The items behind a figure.
        folders: Of the runs, by the run's id.
    """
    rows = _shown(leaderboard)
    found: list[Sample] = []
    for column in leaderboard.columns:
        if column.judge is None:
            found += _of_column(column, rows, items, folders)
    return tuple(found)


def _shown(leaderboard: Leaderboard) -> list[Row]:
    """Returns the baseline and the last row of each run, each model once."""
    last = {}
    for row in leaderboard.rows:
        if row.cells and row.model_hash and (row.run not in last or FINAL not in last[row.run].names):
            last[row.run] = row
    wanted = {row.id for row in last.values()} | {leaderboard.baseline}
    once: dict[str, Row] = {}
    for row in leaderboard.rows:
        if row.id in wanted and row.model_hash:
            once.setdefault(row.model_hash, row)
    return list(once.values())[:_ROWS]


def _of_column(column: Column, rows: Sequence[Row], items: ItemsOf, folders: Mapping[str, Path]) -> list[Sample]:
    known = {row.id: (row, held) for row in rows if (held := items(row, column)) is not None}
    first = next((held for _, held in known.values()), None)
    if first is None:
        return []
    same = [(row, held) for row, held in known.values() if held.keys == first.keys]
    chosen = _most_different([held for _, held in same])
    samples: dict[str, Sample] = {}
    for row, held in same:
        path = samples_path(folders[row.run], row.cells[column.id].score)
        for place, record in _records(path, held, chosen, column) if path and chosen else ():
            key = held.keys[place]
            if key not in samples:
                samples[key] = _sample(column, key, record)
            given = _given(row, record, column, float(held.values[place]))
            samples[key] = _with(samples[key], given)
    return list(samples.values())


def _most_different(held: Sequence[Items]) -> list[int]:
    """Returns the places of the items whose values are spread most over the rows, in their order; none if none are."""
    import numpy as np

    spread = np.stack([one.values for one in held]).std(axis=0)
    return sorted(place for place in np.argsort(-spread, kind="stable")[:MOST].tolist() if spread[place] > 0)


def _records(path: Path, held: Items, chosen: Sequence[int], column: Column) -> list[tuple[int, dict[str, Any]]]:
    """Reads the chosen items of one row; nothing where the file is of another kind."""
    import pyarrow
    import pyarrow.parquet

    try:
        if not set(_COLUMNS) <= set(pyarrow.parquet.read_schema(path).names):
            return []
        table = pyarrow.parquet.read_table(path, columns=list(_COLUMNS))
        ids, hashes, filters = (table.column(name).to_pylist() for name in ("doc_id", "doc_hash", "filter"))
        wanted = column.metrics[0].name.partition(",")[2]
        places = {f"{ids[i]}:{hashes[i]}": i for i, used in enumerate(filters) if used == wanted or not wanted}
        rows = table.take([places[held.keys[place]] for place in chosen]).to_pylist()
    except (OSError, pyarrow.ArrowException, ValueError, TypeError, KeyError):
        return []
    return list(zip(chosen, rows, strict=True))


def _sample(column: Column, key: str, record: dict[str, Any]) -> Sample:
    prompt = str(record["prompt"])
    shown = f"… {prompt[-_PROMPT:].lstrip()}" if len(prompt) > _PROMPT else prompt
    target = _target(record)
    return Sample(column.task, key.partition(":")[0], key, None, (shown,), (target,) if target else None, (), ())


def _with(sample: Sample, given: Given) -> Sample:
    return Sample(**{**vars(sample), "answers": (*sample.answers, given)})


def _target(record: dict[str, Any]) -> str:
    """Returns the right answer; of several options the text of the one that the task's number names."""
    target, options = str(record["target"]).strip(), record["options"] or []
    return str(options[int(target)]).strip() if target.isdigit() and int(target) < len(options) else target


def _given(row: Row, record: dict[str, Any], column: Column, value: float) -> Given:
    text = _answer(record, column.metrics[0].name)
    mark = f"{column.metrics[0].name} {value:g}"
    return Given(row.model_hash or "", 0, "", (text,), (text,), (), None, None, mark)


def _answer(record: dict[str, Any], metric: str) -> str:
    """Returns what a row answered: the option that the metric takes for it, or the text that the metrics saw."""
    options = [str(option) for option in record["options"] or []]
    try:
        seen = json.loads(record["filtered"])
    except (ValueError, TypeError):
        return str(record["filtered"])
    if options and isinstance(seen, list) and len(seen) == len(options):
        firsts = [part[0] if isinstance(part, list) and part else part for part in seen]
        scores = [float(score) for score in firsts if isinstance(score, int | float)]
        if len(scores) == len(options):
            return _likeliest(options, scores, metric)
    if isinstance(seen, list) and len(seen) == 1:
        seen = seen[0]
    return seen if isinstance(seen, str) else json.dumps(seen, ensure_ascii=False)


def _likeliest(options: Sequence[str], scores: Sequence[float], metric: str) -> str:
    """Returns the option of the highest log-likelihood, for ``acc_norm`` by character; of one option its own."""
    if len(options) == 1:
        return f"log-likelihood of the reference: {scores[0]:.4g}"
    texts = [option.strip() for option in options]
    if metric.startswith("acc_norm"):
        scores = [score / max(1, len(text)) for score, text in zip(scores, texts, strict=True)]
    return texts[scores.index(max(scores))]
