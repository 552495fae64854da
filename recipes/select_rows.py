"""`data select`: rows like those that are wanted, or unlike one another, by a language model's hidden states."""

import dataclasses
import functools
import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from ..data_tools.errors import DataError, RowError
from ..data_tools.files import read_json, write_atomic, write_json
from ..data_tools.row_tool import Counts, Decide, Outcome, Plan, blocks_of, file_names, json_line, with_columns
from ..data_tools.score_columns import column_values
from ..data_tools.sources import Row
from ..data_tools.spec import Count, SourceSpec
from ..data_tools.tool import Sources, comma_separated
from ..data_tools.tool_report import REPORT, Table, ToolReport
from .model_rows import ModelRows, RowModel, histogram
from .sample_rows import Baseline, baselines, comparison, within

if TYPE_CHECKING:
    from numpy.typing import NDArray

By = Literal["rds", "k_center", "score_times_distance", "deita"]
_DEITA = 0.9  # the cosine above which rows are passed over, as published
_NOT_CHOSEN: dict[By, str] = {
    "rds": "less like the queries than those that stay",
    "k_center": "nearer to those that stay than they are to one another",
    "score_times_distance": "not chosen",
    "deita": "not chosen",
}
_MOST = 10_000  # rows, where neither rows nor tokens are said
_SAME = 0.9999  # a row so like a query says what it says
_LEAST_RANKED = 16
_AHEAD = 4  # rows that a query ranks at first, for each that it will take


class Select(ModelRows):
    """Keeps rows that are like the queries, or unlike one another: so many, or so many tokens.

    A row is the mean of the model's last hidden states over its tokens, later ones weighing more, and two rows are as
    like as the cosine of theirs. By `rds` (RDS+, Ivison et al. 2025, arXiv:2503.01807) the sources of queries take
    turns, and so do the queries of each: whose turn it is takes the row most like it that nobody has taken. By
    `k_center` the row comes next that is farthest from all that are taken, the first being nearest to the mean (the
    greedy k-center of Sener and Savarese 2018, arXiv:1708.00489, algorithm 1). By `score_times_distance` it is the one
    with the largest product of that distance, 1 - cosine, and its standing in `column`, from 0 to 1; by `deita` the
    highest in `column` that is not too like one that is taken (Liu et al. 2024, arXiv:2312.15685, section 2.4). Kept
    rows say in `rds_rank`, or so, as which they were taken, and in `rds` how like they are to the query `rds_query`
    that took them, or else to the nearest row that was taken before.
    """

    by: By = "rds"
    """How rows are chosen."""
    queries: Sources | None = None
    """With `rds`: rows of what is wanted, a source for each task; see that none of them is of a test."""
    column: str | None = None
    """With `score_times_distance` and `deita`: the numbers of which the highest are wanted, such as `quality`."""
    max_similarity: Annotated[float, Field(gt=-1, le=1)] | None = None
    """Passes over rows whose cosine with one that is taken is larger: near-duplicates at .99 or so; .9 by `deita`."""
    count: Count | None = None
    """How many rows are kept; 10,000, unless tokens are said."""
    tokens: PositiveFloat | None = None
    """How many tokens are kept, as the model reads the rows: as many rows as fit."""
    baselines: Annotated[list[Baseline], BeforeValidator(comma_separated)] = Field([])
    """Of `random`, `longest` and `shortest`, those whose rows are written too, each into a folder of that name: as many
    tokens as are kept, to train on beside them. What they would keep is in the report in any case."""
    seed: int = 0
    """Of the rows drawn at random."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.queries is None) == (self.by == "rds"):
            raise ValueError("`by: rds` needs queries, and nothing else takes them")
        if (self.column is None) == (self.by in ("score_times_distance", "deita")):
            raise ValueError("`by: score_times_distance` and `by: deita` need a column, and nothing else takes one")
        return self

    def plan(self, folder: Path) -> Plan:
        """Embeds all rows, which are kept in the folder of work, and lets the queries choose.

        Raises:
            PosttrainError: The model cannot be loaded or used for these rows, or there is no query.
        """
        model = _Embedder(self)
        queries = self.queries or []
        tasks = [model.embed(source, folder / f"queries-{number}") for number, source in enumerate(queries)]
        for source, task in zip(queries, tasks, strict=True):
            if not task.usable().any():
                raise DataError("holds no row that could be a query", where=source.title)
        pools = [model.embed(source, folder / f"rows-{number}") for number, source in enumerate(self.sources)]
        if self.column is not None:
            for source, pool in zip(self.sources, pools, strict=True):
                pool.take_values(dict(column_values(source, self.column)), self.column)
        choice = _Choice(self, tasks, pools)
        others = baselines(choice.kept, choice.usable, choice.tokens, self.seed)

        def decider(source: SourceSpec) -> Decide:
            places = choice.places(self.number_of(source))

            def decide(rows: Sequence[Row]) -> list[Outcome]:
                return [self._outcome(row, choice, places[row.where]) for row in rows]

            return decide

        def add(report: ToolReport, _: Mapping[str, Counts]) -> ToolReport:
            return _add(report, self, choice, others)

        written = self._write(folder, choice, {by: others[by] for by in self.baselines})
        return Plan(decider, add, written)

    def _write(self, folder: Path, choice: "_Choice", others: "Mapping[Baseline, NDArray[np.bool_]]") -> list[str]:
        """Writes the rows of baselines into the folder of work and returns the names of the files.

        Raises:
            DataError: No row of a baseline fits, or an earlier call has written one that this call does not.
        """
        earlier = (read_json(folder.parent / REPORT) or {}).get("arguments", {}).get("baselines", [])
        if left := [by for by in earlier if by not in others and (folder.parent / by).exists()]:
            what = f"holds rows of an earlier call that this one would not write over: {left[0]}/"
            raise DataError(what, where=str(folder.parent), hint="name another folder: -o, or remove that one")
        for by, some in others.items():
            if not some.any():
                budget = choice.tokens[choice.kept].sum()
                what = f"no row fits: the first of `{by}` has more than the {budget:,.0f} tokens that are kept"
                raise DataError(what, where="baselines", hint="keep more, or leave it out")
            (folder / by).mkdir(parents=True, exist_ok=True)
        files = file_names(self.sources, self.output_format) if others else {}
        for number, source in enumerate(self.sources if others else ()):
            places = choice.places(number)
            with ExitStack() as stack:
                outs = [
                    (stack.enter_context((folder / by / files[source.title]).open("wb")), others[by]) for by in others
                ]
                for row in itertools.chain.from_iterable(blocks_of(source)):
                    for out, some in outs:
                        if row.problem is None and some[places[row.where]]:
                            out.write(json_line(row.values, row.where))
        return [f"{by}/{name}" for by in others for name in files.values()]

    def _outcome(self, row: Row, choice: "_Choice", place: int) -> Outcome:
        error = choice.errors[place]
        if error is not None:
            return Outcome(None, f"no score: {error.reason}", error.detail)
        edits = {f"read up to {self.max_length or 'the most'} tokens": 1} if choice.cut[place] else {}
        if place not in choice.taken:
            reason = "too like a row that stays" if place in choice.passed else _NOT_CHOSEN[self.by]
            return Outcome(None, reason, f"{choice.nearest[place]:.4f}")
        query, rank, similarity = choice.taken[place]
        alike = None if math.isnan(similarity) else round(similarity, 6)
        named = {self.by: alike, "rds_query": None if query is None else choice.queries[query], f"{self.by}_rank": rank}
        values = {name: value for name, value in named.items() if value is not None}
        return Outcome(with_columns(row, values), edits=edits)


@dataclass
class _Vectors:
    """Rows as vectors, which lie in files.

    Attributes:
        paths: The files, float32 ``[rows, hidden]`` each; a row without a vector has zeros.
        where: Where each row is.
        tokens: How many of its tokens were read.
        cut: Whether it has more.
        errors: Why it has no vector.
        values: Its number in the column that rows are chosen by, if they are.
    """

    paths: list[Path] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)
    errors: list[RowError | None] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.where)

    def parts(self) -> Iterator["NDArray[np.float32]"]:
        """Yields the vectors, some at a time."""
        for path in self.paths:
            yield np.load(path)

    def usable(self) -> "NDArray[np.bool_]":
        """Returns which rows have a vector."""
        return np.array([error is None for error in self.errors], bool)

    def take_values(self, known: Mapping[str, float], column: str) -> None:
        """Keeps the rows' numbers, by where each row is; one without is not used."""
        missing = RowError(f"no number in '{column}'")
        self.values = [known.get(where, 0.0) for where in self.where]
        self.errors = [
            error or (None if where in known else missing) for where, error in zip(self.where, self.errors, strict=True)
        ]


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
    """Which rows are taken.

    Attributes:
        queries: Where each query is.
        task: The number of its source.
        taken: By the number of a row: the query that took it, if there are queries, as which row from 1, and how like
            it is to that query or else to the nearest row taken before, NaN of the first.
        passed: The rows that were too like one that was taken.
        nearest: The similarity of each row to the query most like it, or to the nearest row that is taken, ``[rows]``.
        errors: Why a row could not be read.
        cut: Whether not all of it was.
        tokens: How many of its tokens were.
        values: Its number in the column that rows are chosen by, if they are.
        source: The number of its source.
    """

    def __init__(self, spec: Select, tasks: Sequence[_Vectors], pools: Sequence[_Vectors]):
        self._pools = pools
        published = _DEITA if spec.by == "deita" else None
        self._most = published if spec.max_similarity is None else spec.max_similarity
        self.errors = [error for pool in pools for error in pool.errors]
        self.cut = [cut for pool in pools for cut in pool.cut]
        self.tokens = np.array([tokens for pool in pools for tokens in pool.tokens], np.float64)
        self.values = np.array([value for pool in pools for value in pool.values], np.float64)
        self.source = np.repeat(np.arange(len(pools)), [len(pool) for pool in pools])
        self.usable = np.array([error is None for error in self.errors], bool)
        self.queries = [where for task in tasks for where, good in zip(task.where, task.usable(), strict=True) if good]
        self.task = [number for number, task in enumerate(tasks) for _ in range(int(task.usable().sum()))]
        self.nearest = np.full(len(self.errors), -1.0)
        self.passed: set[int] = set()
        self.taken: dict[int, tuple[int | None, int, float]] = {}
        self._free = self.usable.copy()
        count = min(spec.count or (_MOST if spec.tokens is None else len(self.errors)), int(self.usable.sum()))
        if spec.by == "rds":
            self._vectors = np.concatenate([np.concatenate([*task.parts()])[task.usable()] for task in tasks])
            order = self._in_turns(self._rank(max(_LEAST_RANKED, _AHEAD * -(-count // len(self.queries)))))
        else:
            order = self._farthest(spec.by)
        found: dict[int, tuple[int | None, float]] = {}

        def rows() -> Iterator[int]:
            for row, query, alike in order:
                found[row] = query, alike
                yield row

        budget = math.inf if spec.tokens is None else spec.tokens
        for row in itertools.islice(within(rows(), self.tokens, budget), count):
            query, alike = found[row]
            self.taken[row] = query, len(self.taken) + 1, alike
            self._free[row] = False
            if spec.by != "rds" or self._most is not None:
                self._keep_away(row, nearest=spec.by != "rds")
        if found and not self.taken:
            raise DataError(f"no row fits: the first choice has more than {budget:g} tokens", hint="say more tokens")

    @functools.cached_property
    def kept(self) -> "NDArray[np.bool_]":
        """Which rows are taken, ``[rows]``."""
        kept = np.zeros(len(self.errors), bool)
        kept[list(self.taken)] = True
        return kept

    def places(self, source: int) -> dict[str, int]:
        """Returns the number of each row of a source, by where it is."""
        return dict(zip(self._pools[source].where, np.flatnonzero(self.source == source).tolist(), strict=True))

    @functools.cached_property
    def _all(self) -> "NDArray[np.float32]":
        """The vectors of all rows, ``[rows, hidden]``."""
        return np.concatenate([part for _, part in self._parts()])

    def _keep_away(self, row: int, *, nearest: bool) -> None:
        """Passes over what is too like a row that has been taken, and notes how near all are to it."""
        alike = self._all @ self._all[row]
        if nearest:
            self.nearest = np.maximum(self.nearest, alike)
        if self._most is not None:
            close = np.flatnonzero(self._free & (alike > self._most))
            self._free[close] = False
            self.passed.update(close.tolist())

    def _farthest(self, by: By) -> Iterator[tuple[int, int | None, float]]:
        """Yields rows by their distance to those that are taken and by their standing among the values."""
        from ..evals.stats.bootstrap import midranks

        standing = np.zeros(len(self.nearest))
        if by != "k_center" and self.usable.any():
            standing[self.usable] = midranks(self.values[self.usable])(np.ones((1, int(self.usable.sum()))))[0]
            standing /= standing.max()
        while self._free.any():
            distance = 1 - self.nearest
            if by == "k_center":
                gain = distance if self.taken else self._all @ self._all[self.usable].mean(axis=0)
            else:
                gain = standing * distance if by == "score_times_distance" else standing
            row = int(np.where(self._free, gain, -np.inf).argmax())  # of equal ones the first row
            yield row, None, float(self.nearest[row]) if self.taken else math.nan

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
        """Returns the rows most like a query among those that can still be taken."""
        alike = np.concatenate([part @ self._vectors[query] for _, part in self._parts()])
        alike[~self._free] = -np.inf
        order = np.argsort(-alike, kind="stable")[:most]
        return [(row, float(alike[row])) for row in order.tolist() if alike[row] > -np.inf]

    def _in_turns(self, ranked: list[list[tuple[int, float]]]) -> Iterator[tuple[int, int | None, float]]:
        """Yields what the queries take, the tasks in turns, and the queries of each."""
        most = max(map(len, ranked))
        waiting = [[query for query, number in enumerate(self.task) if number == task] for task in sorted({*self.task})]
        at = [0] * len(ranked)
        for queries in itertools.cycle(waiting):
            if not self._free.any():
                return
            query = queries.pop(0)
            queries.append(query)
            while at[query] < len(ranked[query]) and not self._free[ranked[query][at[query]][0]]:
                at[query] += 1
            if at[query] == len(ranked[query]):
                ranked[query], at[query] = self._rank_rest(query, most), 0
            row, alike = ranked[query][at[query]]
            yield row, query, alike


def _add(
    report: ToolReport, spec: Select, choice: _Choice, others: "Mapping[Baseline, NDArray[np.bool_]]"
) -> ToolReport:
    """Adds how like rows are to the queries, who took how many, and what random draws and length would have kept."""
    usable, kept, nearest = choice.usable, choice.kept, choice.nearest
    summary = [*report.summary]
    same = int((nearest[usable] > _SAME).sum()) if spec.queries else 0
    if same:
        summary.append(f"{same:,} rows say what a query says: if the queries are of a test, take them out first")
    if choice.passed:
        summary.append(f"{len(choice.passed):,} rows are passed over, as too like one that stays")
    wanted = spec.count or _MOST
    if spec.tokens is None and kept.sum() < wanted:
        rest = "" if choice.passed else ", so all are kept"
        summary.append(f"there are fewer rows than the {wanted:,} asked for{rest}")
    if not spec.queries and kept.any():
        farthest = 1 - nearest[usable].min()
        summary.append(f"no row is farther than {farthest:.4f} (1 - cosine) from one that is kept")
    summary += [f"{by}: its rows are in {by}/" for by in spec.baselines]
    rows = [
        [source.title, choice.task.count(number), *_taken_by(choice, number)]
        for number, source in enumerate(spec.queries or ())
    ]
    similarity = f"similarity to the nearest {'query' if spec.queries else 'kept row'}"
    figures = {similarity: nearest} | ({spec.column: choice.values} if spec.column else {})
    beside = comparison({"all": usable, "kept": kept, **others}, choice.tokens, choice.source, figures, "tokens")
    queries = [Table("Queries", ["source", "queries", "rows taken", "mean similarity"], rows)] if rows else []
    tables = [*report.tables, *queries, beside]
    plots = [*report.plots, *([histogram(similarity, nearest[usable])] if usable.any() else [])]
    return dataclasses.replace(report, summary=summary, tables=tables, plots=plots, printed=[beside])


def _taken_by(choice: _Choice, task: int) -> tuple[int, float]:
    """Returns how many rows the queries of a task took, and how like they are to them on average."""
    alike = [
        similarity for query, _, similarity in choice.taken.values() if query is not None and choice.task[query] == task
    ]
    return len(alike), float(np.mean(alike)) if alike else 0.0
