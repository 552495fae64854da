"""`data score_rows`: how likely a language model finds each row, as columns; rows kept by threshold or quantile."""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ..data_tools.errors import RowError
from ..data_tools.files import read_json, write_json
from ..data_tools.row_tool import Counts, Decide, Outcome, Plan, blocks_of, quote, with_columns
from ..data_tools.score_columns import Bounds, outside
from ..data_tools.sources import Row
from ..data_tools.spec import SourceSpec
from ..data_tools.tool import comma_separated
from ..data_tools.tool_report import EXAMPLES, Table, Tally, ToolReport
from .model_rows import ModelRows, RowModel, histogram, rank_correlation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..evals.row_scores import Likelihood

RowScore = Literal["loss", "perplexity", "bits_per_byte", "ifd", "ifd_perplexity"]
_ALONE = ("ifd", "ifd_perplexity")  # scores of an answer alone and behind its prompt
_NO_SCORE = "no score"


class ScoreRows(ModelRows):
    """Scores rows by a language model and writes the scores as columns; `keep` leaves rows out by them.

    Of rows with a prompt the answer is scored given what stands before it, of a conversation its last turn; of texts,
    and with `of: text` of all rows, the whole text. What ends a turn is not scored. `loss` is the mean negative
    log-likelihood of a token in nats and `perplexity` its exponential; `bits_per_byte` can be compared between
    tokenizers; `ifd` is the loss of the answer given the prompt over its loss alone (Li et al. 2024, arXiv:2308.12032),
    and `ifd_perplexity` the ratio of perplexities (arXiv:2402.00530), which ranks rows otherwise. Texts longer than
    `max_length` are scored in windows that overlap by half; a row whose prompt and answer are longer gets no score, and
    is counted.
    """

    scores: Annotated[list[RowScore], Field(min_length=1), BeforeValidator(comma_separated)] = Field(["perplexity"])
    """Which scores: several of `loss`, `perplexity`, `bits_per_byte`, `ifd` and `ifd_perplexity`."""
    keep: dict[RowScore, Bounds] = Field({})
    """Which rows stay, such as `{ifd: {max: 1, min_quantile: .9}}`; all bounds must hold. By default all rows stay."""
    suffix: str = ""
    """What the names of the columns end in, so that the scores of several models stand side by side."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if missing := [name for name in self.keep if name not in self.scores]:
            raise ValueError(f"keep: {missing[0]} is not among the scores")
        if self.of == "text" and (alone := [name for name in self.scores if name in _ALONE]):
            raise ValueError(f"{alone[0]} compares an answer with and without its prompt; a text has none")
        return self

    def plan(self, folder: Path) -> Plan:
        """Scores all rows; what is scored is kept in the folder of work.

        Raises:
            PosttrainError: The model cannot be loaded or used for these rows.
        """
        scorer = _Scorer(self)
        found = [scorer.score(source, folder / f"scores-{number}") for number, source in enumerate(self.sources)]
        table = _Table.of(
            self.scores, {source.title: list(one.values()) for source, one in zip(self.sources, found, strict=True)}
        )
        bounds = {name: limits.resolve(table.scores[name]) for name, limits in self.keep.items()}

        def decider(source: SourceSpec) -> Decide:
            mine = found[self.number_of(source)]

            def decide(rows: Sequence[Row]) -> list[Outcome]:
                return [self._outcome(row, mine[row.where], bounds) for row in rows]

            return decide

        def add(report: ToolReport, _: Mapping[str, Counts]) -> ToolReport:
            return _add(report, table, bounds, self._examples(found, bounds))

        return Plan(decider, add)

    def _examples(
        self, found: "Sequence[Mapping[str, Likelihood | RowError]]", bounds: Mapping[str, tuple[float, float]]
    ) -> Tally:
        """Reads the rows again that have the least and the largest scores, and those next to a bound."""
        wanted: dict[tuple[int, str], list[tuple[str, str]]] = {}
        for name in self.scores:
            ranked = sorted(
                (getattr(one, name), number, where)
                for number, scored in enumerate(found)
                for where, one in scored.items()
                if not isinstance(one, RowError)
            )
            some = {f"lowest {name}": ranked[:EXAMPLES], f"highest {name}": ranked[-EXAMPLES:]}
            for bound in bounds.get(name, ()):
                if math.isfinite(bound):
                    at = bisect.bisect_left(ranked, (bound,))
                    some[f"{name} just below {bound:.6g}"] = ranked[max(0, at - EXAMPLES) : at]
                    some[f"{name} at {bound:.6g} and just above"] = ranked[at : at + EXAMPLES]
            for heading, rows in some.items():
                for value, number, where in rows:
                    wanted.setdefault((number, where), []).append((heading, f"{name} {value:.6g}"))
        tally = Tally()
        for number, source in enumerate(self.sources):
            for row in itertools.chain.from_iterable(blocks_of(source)):
                for heading, detail in wanted.get((number, row.where), ()):
                    tally.add(heading, row.where, quote(row.values), detail)
        return tally

    def _outcome(self, row: Row, scored: Any, bounds: Mapping[str, tuple[float, float]]) -> Outcome:
        if isinstance(scored, RowError):
            reason = f"{_NO_SCORE}: {scored.reason}"
            if self.keep:
                return Outcome(None, reason, scored.detail)
            return Outcome(self.with_scores(row, {}), detail=scored.detail, edits={reason: 1})
        values = {name: getattr(scored, name) for name in self.scores}
        for name, limits in bounds.items():
            if side := outside(values[name], limits):
                return Outcome(None, f"{name} {side}", f"{values[name]:.6g}")
        return Outcome(self.with_scores(row, values))

    def with_scores(self, row: Row, values: Mapping[str, float]) -> dict[str, Any]:
        """Returns a row with its scores, None of one that is not given.

        Raises:
            DataError: It has some already.
        """
        columns = {f"{name}{self.suffix}": values.get(name) for name in self.scores}
        return with_columns(row, columns, "give these scores another name: `suffix`")


class _Scorer(RowModel):
    """Scores rows with one model."""

    def __init__(self, spec: ScoreRows):
        self.alone = any(name in _ALONE for name in spec.scores)
        self.with_scores = spec.with_scores
        super().__init__(spec, answers=self.alone)

    def score(self, source: SourceSpec, folder: Path) -> "dict[str, Likelihood | RowError]":
        """Returns the likelihood of each readable row, or why it has none, by where the row is.

        Raises:
            DataError: The rows' layout is unknown or holds nothing to score.
        """
        from ..data_tools.progress import progress_shown

        read = self.reader(source)
        found: dict[str, Any] = {}
        with progress_shown(f"scoring {source.title}") as advance:
            for number, rows in enumerate(self.chunks(source)):
                path = folder / f"{number:06}.json"
                known = read_json(path)
                if known is None:
                    write_json(path, known := [_to_json(one) for one in self._score(rows, read)])
                scored = [_from_json(value) for value in known]
                found |= {row.where: one for row, one in zip(rows, scored, strict=True)}
                advance(len(rows), sum(one.tokens for one in scored if not isinstance(one, RowError)))
        return found

    def _score(self, rows: Sequence[Row], read: Callable[[Row], dict[str, Any]]) -> "list[Likelihood | RowError]":
        from ..evals.row_scores import answer_likelihoods, text_likelihoods

        found: dict[int, Any] = {}
        texts: dict[int, str] = {}
        answers: dict[int, Any] = {}
        for place, row in enumerate(rows):
            try:
                self.with_scores(row, {})  # refuses a row before it is scored
                values = read(row)
            except RowError as error:
                found[place] = error
                continue
            if "text" in values:
                texts[place] = values["text"]
            else:
                answers[place] = values
        options: dict[str, Any] = {"max_length": self.max_length, "batch_size": self.spec.batch_size}
        scored = text_likelihoods(self.loaded, list(texts.values()), **options)
        found |= dict(zip(texts, scored, strict=True))
        scored = answer_likelihoods(self.loaded, list(answers.values()), alone=self.alone, **options)
        found |= dict(zip(answers, scored, strict=True))
        return [found[place] for place in range(len(rows))]


def _to_json(scored: "Likelihood | RowError") -> Any:
    return [scored.reason, scored.detail] if isinstance(scored, RowError) else dataclasses.asdict(scored)


def _from_json(value: Any) -> "Likelihood | RowError":
    from ..evals.row_scores import Likelihood

    return RowError(*value) if isinstance(value, list) else Likelihood(**value)


@dataclass(frozen=True)
class _Table:
    """What is known of the scored rows, a value for each.

    Attributes:
        scores: By name.
        tokens: How many were scored.
        source: The number of each row's source.
        titles: Of the sources.
        unscored: Rows without a score.
    """

    scores: "Mapping[str, NDArray[np.float64]]"
    tokens: "NDArray[np.float64]"
    source: "NDArray[np.float64]"
    titles: Sequence[str]
    unscored: int

    @classmethod
    def of(cls, names: Sequence[RowScore], scored: "Mapping[str, Sequence[Likelihood | RowError]]") -> "_Table":
        """Lays scores out by column, given those of each source by its title."""
        import numpy as np

        from ..evals.row_scores import Likelihood

        every = [(number, one) for number, some in enumerate(scored.values()) for one in some]
        good = [(number, one) for number, one in every if isinstance(one, Likelihood)]

        def column(name: str) -> "NDArray[np.float64]":
            return np.array([getattr(one, name) for _, one in good], dtype=np.float64)

        scores = {name: column(name) for name in names}
        source = np.array([number for number, _ in good], dtype=np.float64)
        return cls(scores, column("tokens"), source, [*scored], len(every) - len(good))

    def kept(self, bounds: Mapping[str, tuple[float, float]]) -> "NDArray[np.bool_]":
        """Returns which rows are within all bounds."""
        import numpy as np

        within = np.ones(len(self.tokens), bool)
        for name, (low, high) in bounds.items():
            within &= (self.scores[name] >= low) & (self.scores[name] <= high)
        return within


def _add(report: ToolReport, table: _Table, bounds: Mapping[str, tuple[float, float]], examples: Tally) -> ToolReport:
    """Adds how the scores are distributed, what they have to do with length, and what is kept by them."""
    tables, summary = [*report.tables, _distribution(table)], [*report.summary]
    if len(table.titles) > 1:
        tables.append(_by_source(table))
    if table.unscored:
        summary.append(f"{table.unscored:,} rows have no score")
    if "ifd" in table.scores:
        above = int((table.scores["ifd"] > 1).sum())
        summary.append(
            f"IFD is above 1 for {above:,} of {len(table.tokens):,} rows: the prompt makes the answer less likely"
        )
    if bounds and len(table.tokens):
        summary += [f"kept: {name} from {low:.6g} to {high:.6g}" for name, (low, high) in bounds.items()]
        tables.append(_kept(table, bounds))
    plots = [*report.plots, *(histogram(name, values) for name, values in table.scores.items() if len(values))]
    tallies = {**report.tallies, "Rows at either end": examples}
    return dataclasses.replace(report, summary=summary, tables=tables, plots=plots, tallies=tallies)


def _distribution(table: _Table) -> Table:
    import numpy as np

    rows: list[list[Any]] = []
    for name, values in table.scores.items():
        if len(values):
            quantiles = np.quantile(values, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1], method="inverted_cdf")
            correlation = rank_correlation(values, table.tokens)
            rows.append([name, len(values), float(values.mean()), *quantiles.tolist(), correlation])
    header = ["score", "rows", "mean", "least", "5%", "25%", "median", "75%", "95%", "most", "with length"]
    note = (
        "Last, the rank correlation (Spearman) with the number of scored tokens: a selection by a score that follows "
        "length is one by length."
    )
    return Table("Scores", header, rows, note)


def _by_source(table: _Table) -> Table:
    parts = [(title, table.source == number) for number, title in enumerate(table.titles)]
    rows = [_means(title, table, mine) for title, mine in parts if mine.any()]
    return Table("Means by source", ["source", "rows", "tokens a row", *table.scores], rows)


def _kept(table: _Table, bounds: Mapping[str, tuple[float, float]]) -> Table:
    kept = table.kept(bounds)
    rows = [_means("all", table, kept | True)]
    if kept.any():
        rows.append(_means("kept", table, kept))
    note = "Rows drawn at random would have the means of all. See that what is kept is not merely longer or shorter."
    return Table("What is kept, beside all", ["scored rows", "rows", "tokens a row", *table.scores], rows, note)


def _means(name: str, table: _Table, mine: Any) -> list[Any]:
    """Returns a line with the means of the rows that are meant, bool ``[rows]``."""
    scores = (float(values[mine].mean()) for values in table.scores.values())
    return [name, int(mine.sum()), float(table.tokens[mine].mean()), *scores]
