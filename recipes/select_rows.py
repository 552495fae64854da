"""`data select`: the rows most like rows that are wanted, by a language model's hidden states (RDS+)."""

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data_tools.ask import Count
from ..data_tools.errors import DataError, RowError
from ..data_tools.files import read_json, write_atomic, write_json
from ..data_tools.row_tool import Counts, Decide, Outcome, Plan
from ..data_tools.sources import Row
from ..data_tools.spec import SourceSpec
from ..data_tools.tool import Sources
from ..data_tools.tool_report import Table, ToolReport
from .model_rows import ModelRows, RowModel, histogram, rank_correlation

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLUMNS = ("rds", "rds_query", "rds_rank")
_SAME = 0.9999  # a row so like a query says what it says
_LEAST_RANKED = 16
_AHEAD = 4  # rows that a query ranks at first, for each that it will take


class Select(ModelRows):
    """Keeps the rows that are most like the queries, such as examples of the tasks that a model is trained for.

    A row is the mean of the model's last hidden states over its tokens, later ones weighing more, and its similarity to
    a query the cosine (RDS+, Ivison et al. 2025, arXiv:2503.01807). The sources of queries take turns, and so do the
    queries of each: whose turn it is takes the row most like it that nobody has taken. Rows that are kept say in `rds`
    how like they are to the query `rds_query` that took them, and in `rds_rank` as which.
    """

    queries: Sources
    """Rows of what is wanted, a source for each task; see that none of them is of a test."""
    count: Count = 10_000
    """How many rows are kept."""

    def plan(self, folder: Path) -> Plan:
        """Embeds all rows, which are kept in the folder of work, and lets the queries choose.

        Raises:
            PosttrainError: The model cannot be loaded or used for these rows, or there is no query.
        """
        model = _Embedder(self)
        tasks = [model.embed(source, folder / f"queries-{number}") for number, source in enumerate(self.queries)]
        for source, task in zip(self.queries, tasks, strict=True):
            if not task.usable().any():
                raise DataError("holds no row that could be a query", where=source.title)
        pools = [model.embed(source, folder / f"rows-{number}") for number, source in enumerate(self.sources)]
        choice = _Choice(tasks, pools, self.count)
        offsets = np.cumsum([0, *(len(pool) for pool in pools)]).tolist()

        def decider(source: SourceSpec) -> Decide:
            number = [one is source for one in self.sources].index(True)
            places = {where: place for place, where in enumerate(pools[number].where, offsets[number])}

            def decide(rows: Sequence[Row]) -> list[Outcome]:
                return [self._outcome(row, choice, places[row.where]) for row in rows]

            return decide

        def add(report: ToolReport, _: Mapping[str, Counts]) -> ToolReport:
            return _add(report, self, choice)

        return Plan(decider, add)

    def _outcome(self, row: Row, choice: "_Choice", place: int) -> Outcome:
        if taken := [name for name in COLUMNS if name in row.values]:
            hint = "it comes from an earlier selection: take that column out first"
            raise DataError(f"has a column {taken[0]} already", where=row.where, hint=hint)
        error = choice.errors[place]
        if error is not None:
            return Outcome(None, f"no score: {error.reason}", error.detail)
        edits = {f"read up to {self.max_length or 'the most'} tokens": 1} if choice.cut[place] else {}
        if place not in choice.taken:
            return Outcome(None, "less like the queries than those that stay", f"{choice.nearest[place]:.4f}")
        query, rank, similarity = choice.taken[place]
        values = dict(zip(COLUMNS, (round(similarity, 6), choice.queries[query], rank), strict=True))
        return Outcome(row.values | values, edits=edits)


@dataclass
class _Vectors:
    """Rows as vectors, which lie in files.

    Attributes:
        paths: The files, float32 ``[rows, hidden]`` each; a row without a vector has zeros.
        where: Where each row is.
        tokens: How many of its tokens were read.
        cut: Whether it has more.
        errors: Why it has no vector.
    """

    paths: list[Path] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)
    errors: list[RowError | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.where)

    def parts(self) -> Iterator["NDArray[np.float32]"]:
        """Yields the vectors, some at a time."""
        for path in self.paths:
            yield np.load(path)

    def usable(self) -> "NDArray[np.bool_]":
        """Returns which rows have a vector."""
        return np.array([error is None for error in self.errors], bool)


class _Embedder(RowModel):
    """Embeds rows with one model."""

    def embed(self, source: SourceSpec, folder: Path) -> _Vectors:
        """Returns the vectors of a source's readable rows."""
        from ..data_tools.progress import progress_shown

        read = self.reader(source)
        found = _Vectors()
        with progress_shown(f"embedding {source.title}") as advance:
            for number, rows in enumerate(self.chunks(source)):
                path = folder / f"{number:06}.npy"
                known = read_json(path.with_suffix(".json"))  # written after the vectors
                if known is None:
                    known, vectors = self._embed(rows, read)
                    buffer = io.BytesIO()
                    np.save(buffer, vectors)
                    write_atomic(path, buffer.getvalue())
                    write_json(path.with_suffix(".json"), known)
                found.paths.append(path)
                found.where += [row.where for row in rows]
                found.tokens += known["tokens"]
                found.cut += known["cut"]
                found.errors += [error and RowError(*error) for error in known["errors"]]
                advance(len(rows), sum(known["tokens"]))
        return found

    def _embed(
        self, rows: Sequence[Row], read: Callable[[Row], dict[str, Any]]
    ) -> tuple[dict[str, list[Any]], "NDArray[np.float32]"]:
        from ..evals.forward import weighted_means
        from ..evals.row_scores import whole_tokens

        made: list[Any] = []
        for row in rows:
            try:
                made.append(read(row))
            except RowError as error:
                made.append(error)
        good = [place for place, one in enumerate(made) if not isinstance(one, RowError)]
        tokens = whole_tokens(self.loaded, [made[place] for place in good], max_length=self.max_length)
        for place, one in zip(good, tokens, strict=True):
            made[place] = one
        good = [place for place in good if not isinstance(made[place], RowError)]
        hidden: Any = self.loaded.model.config.get_text_config()
        vectors = np.zeros((len(rows), hidden.hidden_size), np.float32)
        if good:
            ids = [made[place][0] for place in good]
            vectors[good] = weighted_means(self.loaded.model, ids, self.spec.batch_size)
        errors = [[one.reason, one.detail] if isinstance(one, RowError) else None for one in made]
        sizes = [0 if isinstance(one, RowError) else len(one[0]) for one in made]
        cut = [not isinstance(one, RowError) and one[1] for one in made]
        return {"tokens": sizes, "cut": cut, "errors": errors}, vectors


class _Choice:
    """Which rows the queries take, in turns.

    Attributes:
        queries: Where each query is.
        task: The number of its source.
        taken: By the number of a row: the query that took it, as which row from 1, and how like the two are.
        nearest: The similarity of each row to the query most like it, ``[rows]``.
        errors: Why a row could not be read.
        cut: Whether not all of it was.
        tokens: How many of its tokens were.
    """

    def __init__(self, tasks: Sequence[_Vectors], pools: Sequence[_Vectors], count: int):
        self._pools = pools
        self.errors = [error for pool in pools for error in pool.errors]
        self.cut = [cut for pool in pools for cut in pool.cut]
        self.tokens = np.array([tokens for pool in pools for tokens in pool.tokens], np.float64)
        self.usable = np.array([error is None for error in self.errors], bool)
        self.queries = [where for task in tasks for where, good in zip(task.where, task.usable(), strict=True) if good]
        self.task = [number for number, task in enumerate(tasks) for _ in range(int(task.usable().sum()))]
        self._vectors = np.concatenate([np.concatenate([*task.parts()])[task.usable()] for task in tasks])
        self.nearest = np.zeros(len(self.errors))
        count = min(count, int(self.usable.sum()))
        self.taken: dict[int, tuple[int, int, float]] = {}
        self._take(self._rank(max(_LEAST_RANKED, _AHEAD * -(-count // len(self.queries)))), count)

    def _parts(self) -> Iterator[tuple[int, "NDArray[np.float32]"]]:
        """Yields the vectors of rows, each part with the number of its first row."""
        first = 0
        for pool in self._pools:
            for part in pool.parts():
                yield first, part
                first += len(part)

    def _rank(self, most: int) -> list[list[tuple[int, float]]]:
        """Returns the rows most like each query, the likest first: a running choice over parts of the rows."""
        count = len(self.queries)
        best = np.full((count, 0), -np.inf, np.float32)
        rows = np.zeros((count, 0), np.int64)
        for first, part in self._parts():
            alike = self._vectors @ part.T
            self.nearest[first : first + len(part)] = alike.max(axis=0)
            alike[:, ~self.usable[first : first + len(part)]] = -np.inf
            best = np.concatenate([best, alike], axis=1)
            numbers = np.arange(first, first + len(part))
            rows = np.concatenate([rows, np.broadcast_to(numbers, (count, len(part)))], axis=1)
            order = np.argsort(-best, axis=1, kind="stable")[:, :most]  # of two alike, the first row
            best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
        return [
            [(row, alike) for row, alike in zip(mine.tolist(), theirs.tolist(), strict=True) if alike > -np.inf]
            for mine, theirs in zip(rows, best, strict=True)
        ]

    def _rank_rest(self, query: int, most: int) -> list[tuple[int, float]]:
        """Returns the rows most like a query among those that nobody has taken."""
        alike = np.concatenate([part @ self._vectors[query] for _, part in self._parts()])
        alike[~self.usable] = -np.inf
        alike[list(self.taken)] = -np.inf
        order = np.argsort(-alike, kind="stable")[:most]
        return [(row, float(alike[row])) for row in order.tolist() if alike[row] > -np.inf]

    def _take(self, ranked: list[list[tuple[int, float]]], count: int) -> None:
        """Lets the tasks take turns, and the queries of each."""
        most = max(map(len, ranked))
        waiting = [[query for query, number in enumerate(self.task) if number == task] for task in sorted({*self.task})]
        at = [0] * len(ranked)
        while len(self.taken) < count:
            for queries in waiting:
                if len(self.taken) == count:
                    break
                query = queries.pop(0)
                queries.append(query)
                while at[query] < len(ranked[query]) and ranked[query][at[query]][0] in self.taken:
                    at[query] += 1
                if at[query] == len(ranked[query]):
                    ranked[query], at[query] = self._rank_rest(query, most), 0
                row, alike = ranked[query][at[query]]
                self.taken[row] = (query, len(self.taken) + 1, alike)


def _add(report: ToolReport, spec: Select, choice: _Choice) -> ToolReport:
    """Adds how like rows are to the queries, who took how many, and whether length explains it."""
    kept = np.zeros(len(choice.errors), bool)
    kept[list(choice.taken)] = True
    usable, nearest = choice.usable, choice.nearest
    summary = [*report.summary]
    same = int((nearest[usable] > _SAME).sum())
    if same:
        summary.append(f"{same:,} rows say what a query says: if the queries are of a test, take them out first")
    if kept.sum() < spec.count:
        summary.append(f"there are fewer rows than the {spec.count:,} asked for, so all are kept")
    rows = [
        [source.title, choice.task.count(number), *_taken_by(choice, number)]
        for number, source in enumerate(spec.queries)
    ]
    compared = [
        [name, int(some.sum()), float(choice.tokens[some].mean()), float(nearest[some].mean())]
        for name, some in (("all", usable), ("kept", kept))
        if some.any()
    ]
    with_length = rank_correlation(nearest[usable], choice.tokens[usable]) if usable.any() else "–"
    shown = f"{with_length:.2f}" if isinstance(with_length, float) else with_length
    note = (
        "Rows drawn at random would have the means of all. The rank correlation (Spearman) of a row's similarity with "
        f"its length is {shown}."
    )
    tables = [
        *report.tables,
        Table("Queries", ["source", "queries", "rows taken", "mean similarity"], rows),
        Table("What is kept, beside all", ["rows", "count", "tokens a row", "similarity"], compared, note),
    ]
    plots = [*report.plots, histogram("similarity to the nearest query", nearest[usable])] if usable.any() else []
    return dataclasses.replace(report, summary=summary, tables=tables, plots=plots)


def _taken_by(choice: _Choice, task: int) -> tuple[int, float]:
    """Returns how many rows the queries of a task took, and how like they are to them on average."""
    alike = [similarity for query, _, similarity in choice.taken.values() if choice.task[query] == task]
    return len(alike), float(np.mean(alike)) if alike else 0.0
