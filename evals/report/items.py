"""The value of every item behind a figure, read from a score's samples: what makes a comparison of two rows paired.

Each kind of task writes samples of its own shape. Whatever is read here is checked against the figure itself: values
whose mean is not the figure (a figure that is no mean, or samples of another scoring) are not used.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..records import model_of, samples_name
from ..stats.strata import group_mean
from .board import BoardRow, Column
from .text import Record, detail_of, mapping, text

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_CLOSE = 1e-6  # how far, relative to its size, a mean may lie from the figure that it is to reproduce
_CLUSTERS = 8  # documents from which on a perplexity's interval is over documents, as where it was scored


@dataclass(frozen=True)
class Items:
    """One figure, item by item.

    Attributes:
        keys: What tells items apart, the same for every row that was asked the same.
        values: Whose mean is the figure, float64 ``[n]``.
        clusters: For each item what it shares with items that are not independent of it, or None.
        recompute: Gives the values of some of the items, by their places, where what an item adds to a figure depends
            on which others there are; None where they have no such figure.
    """

    keys: tuple[str, ...]
    values: "np.ndarray"
    clusters: tuple[str, ...] | None = None
    recompute: "Callable[[np.ndarray], np.ndarray | None] | None" = None

    def only(self, places: "np.ndarray") -> "Items | None":
        """Returns some of the items, by their places; None where those have no such figure."""
        if not len(places):
            return None
        keys = tuple(self.keys[place] for place in places)
        clusters = tuple(self.clusters[place] for place in places) if self.clusters else None
        recompute = self.recompute
        if recompute is None:
            return Items(keys, self.values[places], clusters)
        values = recompute(places)
        return None if values is None else Items(keys, values, clusters, lambda some: recompute(places[some]))

    def without(self, ids: Collection[str | None]) -> "Items | None":
        """Returns the items that are not among some; None where those have no such figure.

        Args:
            ids: Whole keys, or what stands in them before a colon: a window's document, a row's number.
        """
        left = [i for i, key in enumerate(self.keys) if key not in ids and key.partition(":")[0] not in ids]
        return self.only(np.array(left, dtype=np.int64))


ItemsOf = Callable[[BoardRow, Column], Items | None]
"""From a row and a column to the items behind its primary figure."""


def item_finder(folders: Mapping[str, Path], columns: Sequence[Column]) -> ItemsOf:
    """Returns a function from a row and a column to the items behind its primary figure, which remembers them.

    Args:
        folders: Of the runs, by the run's id.
        columns: All of the page: the mean of a group over clean items is made of those of its tasks.
    """
    known: dict[tuple[str, str], Items | None] = {}

    def find(row: BoardRow, column: Column) -> Items | None:
        key = (row.id, column.id)
        if key not in known:
            known[key] = look(row, column)
        return known[key]

    def look(row: BoardRow, column: Column) -> Items | None:
        figure = row.figure(column)
        if figure is None:
            return None
        score = row.cells[column.id].score
        clean, detail = mapping(score.get("clean")), detail_of(score)
        if clean and column.group and detail.get("mean") != "robust":
            tasks = mapping(detail["tasks"])
            return group_items(detail, {task: held for task in tasks if (held := part(row, task, tasks[task]))})
        path, value = samples_path(folders[row.run], score), clean.get("value", figure.value)
        if path is None or value is None:
            return None
        return read_items(path, column.primary.name, value, clean.get("without", ()))

    def part(row: BoardRow, task: str, value: Any) -> Items | None:
        """Returns the items of a group's task: those that are clean, where some are not."""
        mine = [column for column in columns if column.task == task and column.id in row.cells]
        for column in sorted(mine, key=lambda column: not column.clean):
            clean, figure = mapping(row.cells[column.id].score.get("clean")), row.figure(column)
            if figure and value == (clean.get("value") if column.clean else figure.value):
                return find(row, column)
        return None

    return find


def group_items(detail: Mapping[str, Any], parts: Mapping[str, Items]) -> Items | None:
    """Joins the items of a group's tasks to those of its mean.

    Args:
        detail: What the group's score says of it.
        parts: The items of its tasks.

    Returns:
        The items; None where those of a task are unknown.
    """
    tasks = list(mapping(detail.get("tasks")))
    if not tasks or any(task not in parts for task in tasks):
        return None
    strata = [parts[task].values for task in tasks]
    stratum = np.repeat(np.arange(len(tasks)), [len(values) for values in strata])
    values, given = np.concatenate(strata), mapping(detail.get("baselines"))
    baselines = [float(given.get(task) or 0.0) for task in tasks]

    def compute(places: "np.ndarray") -> "np.ndarray | None":
        left = [values[places[stratum[places] == number]] for number in range(len(tasks))]
        try:
            return group_mean(str(detail.get("mean")), left, baselines).items
        except ValueError:  # no item of a task is left
            return None

    found = compute(np.arange(len(values)))
    keys = tuple(f"{task}:{key}" for task in tasks for key in parts[task].keys)
    return None if found is None else Items(keys, found, None, compute)


def samples_path(folder: Path, score: Record) -> Path | None:
    """Returns the file of a score's samples, or None where the record could name no file of the run folder."""
    model, task, task_hash = model_of(score), text(score.get("task")), text(score.get("task_hash"))
    if not model or not task or not task_hash or (name := samples_name(model, task, task_hash)).count("/") > 1:
        return None
    path = folder / name
    try:
        return path if path.is_file() else None
    except (OSError, ValueError):  # a name too long, or with a NUL
        return None


def read_items(path: Path, metric: str, value: float, without: Collection[str | None] = ()) -> Items | None:
    """Reads the items of a figure; None where the file cannot be read or does not hold them.

    Args:
        path: The samples.
        metric: The figure's name.
        value: The figure, over all items.
        without: Keys of items that are left out; None of the others is left gives None.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = set(file.schema_arrow.names)
            read = next((reader for needed, reader in _READERS if needed <= names), None)
            found = read(file, names, metric) if read else None
    except (OSError, pyarrow.ArrowException, ValueError, TypeError):
        return None
    if found is None or not len(found.values) or len(set(found.keys)) < len(found.keys):
        return None
    if abs(float(found.values.mean()) - value) > _CLOSE * max(1.0, abs(value)):
        return None
    return found.without(set(without)) if without else found


def _columns(file: "ParquetFile", *names: str) -> list[list[Any]]:
    table = file.read(columns=list(names), use_threads=False)  # thousands of small files: threads cost more
    return [table.column(name).to_pylist() for name in names]


def _harness(file: "ParquetFile", names: set[str], metric: str) -> Items | None:
    """Reads lm-eval's samples, of one filter where there are several."""
    name, _, wanted = metric.partition(",")
    if f"metric.{name}" not in names:
        return None
    ids, hashes, filters, values = _columns(file, "doc_id", "doc_hash", "filter", f"metric.{name}")
    kept = [i for i, used in enumerate(filters) if used == wanted or not wanted]
    if any(not isinstance(values[i], int | float) for i in kept):
        return None
    keys = tuple(f"{ids[i]}:{hashes[i]}" for i in kept)
    return Items(keys, np.array([values[i] for i in kept], dtype=np.float64))


def _pairs(file: "ParquetFile", names: set[str], metric: str) -> Items | None:
    """Reads pairs of a preference set; those of one prompt are not independent."""
    prompts, chosen, rejected, margins = _columns(file, "prompt", "chosen", "rejected", "margin")
    margin = np.array(margins, dtype=np.float64)
    right = np.where(margin > 0, 1.0, np.where(margin == 0, 0.5, 0.0))
    kinds = {"accuracy": right, "kappa": 2 * right - 1, "margin": margin, "nll": np.logaddexp(0.0, -margin)}
    if metric not in kinds:
        return None
    keys = tuple(f"{i}:{_digest(*texts)}" for i, texts in enumerate(zip(prompts, chosen, rejected, strict=True)))
    return Items(keys, kinds[metric], tuple(_digest(prompt) for prompt in prompts))


def _labelled(file: "ParquetFile", names: set[str], metric: str) -> Items | None:
    texts, labels, predictions = _columns(file, "text", "label", "prediction")
    keys = tuple(f"{i}:{_digest(item)}" for i, item in enumerate(texts))
    if metric == "accuracy":
        right = [label == prediction for label, prediction in zip(labels, predictions, strict=True)]
        return Items(keys, np.array(right, dtype=np.float64))
    if metric not in ("mse", "mae"):
        return None
    errors = np.array(predictions, dtype=np.float64) - np.array(labels, dtype=np.float64)
    return Items(keys, np.square(errors) if metric == "mse" else np.abs(errors))


def _perplexity(file: "ParquetFile", names: set[str], metric: str) -> Items | None:
    """Returns what each document adds to a ratio of two sums, so that the mean is the ratio.

    ``R + (y - R x) / mean(x)`` are the linearised values of a ratio estimator (Cochran, Sampling Techniques, 3rd ed.,
    1977, section 6.4): their standard error is its standard error, and that of their differences that of a difference.
    """
    over = {"bits_per_byte": "bytes", "bits_per_token": "tokens"}.get(metric)
    if over is None:
        return None
    documents, first, tokens, sizes, nll = _columns(file, "document", "first_token", "tokens", "bytes", "nll")
    size = sizes if over == "bytes" else tokens
    keys = [str(document) for document in documents]
    if len(set(keys)) < _CLUSTERS:
        # Places are counted in tokens: where another tokenizer makes more of a document, they are places in other text.
        spans = [(d, start, start + count) for d, start, count in zip(documents, first, tokens, strict=True)]
        length = {document: end for document, _, end in spans}  # that of its last window
        keys = [f"{document}:{start}-{end}/{length[document]}" for document, start, end in spans]
    order, groups = np.unique(keys, return_inverse=True)
    y, x = (np.bincount(groups, weights=np.array(w, dtype=np.float64)) for w in (nll, size))
    y = y / math.log(2)

    def linearised(places: "np.ndarray") -> "np.ndarray":
        some, size = y[places], x[places]
        ratio = some.sum() / size.sum()
        return ratio + (some - ratio * size) / size.mean()

    return Items(tuple(order.tolist()), linearised(np.arange(len(y))), None, linearised)


def _judged(file: "ParquetFile", names: set[str], metric: str) -> Items | None:
    """Reads a judge's preferences or marks; those on one prompt are not independent."""
    wanted = {"win_rate": "preference", "rating": "rating"}.get(metric)
    if wanted is None or wanted not in names:
        return None
    prompts, samples, values = _columns(file, "prompt_key", "sample", wanted)
    opponents = _columns(file, "opponent")[0] if "opponent" in names else [""] * len(values)
    rows = [row for row in zip(prompts, samples, opponents, values, strict=True) if row[3] is not None]
    keys = tuple(f"{prompt}:{sample}:{opponent}" for prompt, sample, opponent, _ in rows)
    return Items(keys, np.array([row[3] for row in rows], dtype=np.float64), tuple(row[0] for row in rows))


def _own(file: "ParquetFile", names: set[str], metric: str) -> Items | None:
    """Reads what a function of the user's said of each item; one number is no item."""
    figures, items, values = _columns(file, "figure", "item", "value")
    rows = [(item, value) for figure, item, value in zip(figures, items, values, strict=True) if figure == metric]
    if len(rows) < 2:
        return None
    return Items(tuple(str(item) for item, _ in rows), np.array([value for _, value in rows], dtype=np.float64))


def _digest(*texts: object) -> str:
    return hashlib.sha256("\0".join(map(str, texts)).encode("utf-8", "replace")).hexdigest()[:16]


_Reader = Callable[["ParquetFile", set[str], str], Items | None]
_READERS: Sequence[tuple[set[str], _Reader]] = (
    ({"doc_id", "doc_hash", "filter"}, _harness),
    ({"prompt", "chosen", "rejected", "margin"}, _pairs),
    ({"text", "label", "prediction"}, _labelled),
    ({"prompt_key", "sample", "category"}, _judged),
    ({"figure", "item", "value"}, _own),
    ({"document", "first_token", "nll", "bytes", "tokens"}, _perplexity),
)
