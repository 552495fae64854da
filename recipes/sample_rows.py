"""`data sample`: so many tokens of rows, drawn at random or chosen by length, by a score, or by DSIR.

Random and length are what every other way to select must be compared with: most that score rows by themselves do not
beat them (Diddee and Ippolito 2024, arXiv:2410.09335).
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
import xxhash
from pydantic import PositiveFloat, model_validator

from ..data_tools.errors import DataError, RowError
from ..data_tools.row_tool import Counts, Decide, Outcome, Plan, TextTool, text_blocks
from ..data_tools.score_columns import column_values
from ..data_tools.sources import Row
from ..data_tools.spec import SourceSpec
from ..data_tools.tool import Sources
from ..data_tools.tool_report import Table, ToolReport, percent
from .model_rows import rank_correlation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Mask = NDArray[np.bool_]

Baseline = Literal["random", "longest", "shortest"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
_BUCKETS = 10_000  # of n-grams, as DSIR has them
_UNSEEN = 1e-8  # added to a bucket's share, as DSIR does
_PIECES = re.compile(r"\w+|[^\w\s]+")  # nltk's WordPunct, which DSIR cuts texts by
_GROUPS = 20  # of lengths, where they are matched


class Sample(TextTool):
    """Keeps so many tokens of rows: drawn at random, or chosen by length, by a column of scores, or by DSIR.

    DSIR (Xie et al. 2023, arXiv:2302.03169) draws rows by how much likelier their hashed words and pairs of words are
    in `target` than in all rows. As published the logarithms are summed over a row, which is nearly a choice of short
    rows; `dsir_mean` takes their mean and no noise, and `match_length` leaves lengths as they are. The page has the
    rows' lengths and scores beside those of all, and says how much a score is length.
    """

    by: Literal["random", "longest", "shortest", "dsir", "dsir_mean", "column"] = "random"
    """What rows are chosen by."""
    column: str | None = None
    """With `by: column`: the numbers, such as `quality`, `ifd` or `loss`; the highest are kept."""
    lowest: bool = False
    """Keeps the lowest of `column`."""
    target: Sources | None = None
    """With `dsir`: rows like those that are wanted; see that none of them is of a test."""
    tokens: PositiveFloat
    """How many tokens are kept, of `tokenizer`, else words: as many rows as fit."""
    tokenizer: str | None = None
    """A run, folder or Hub id whose tokenizer counts; by default words and signs are counted."""
    match_length: bool = False
    """Chooses among rows of like length, a twentieth of them at a time, so that what is kept is as long as all."""
    seed: int = 0
    """Of what is drawn."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.column is None) == (self.by == "column") or (self.lowest and self.column is None):
            raise ValueError("column, and lowest with it, belong to `by: column`")
        if (self.target is None) == self.by.startswith("dsir"):
            raise ValueError("target belongs to `by: dsir` and `by: dsir_mean`")
        return self

    def identity(self) -> Any:
        """Returns the hash of the tokenizer's files."""
        from .tokenizer_tools import tokenizer_hashes

        return tokenizer_hashes([self.tokenizer]) if self.tokenizer else None

    def plan(self, folder: Path) -> Plan:
        """Reads all rows once for their lengths and scores (twice by DSIR), and chooses."""
        pool = self._read()
        kept = self._choose(pool)

        def decider(source: SourceSpec) -> Decide:
            places = pool.places[self.number_of(source)]
            read = self.reader(source)

            def decide(rows: Sequence[Row]) -> list[Outcome]:
                return [self._outcome(row, read, places, pool, kept) for row in rows]

            return decide

        def add(report: ToolReport, _: Mapping[str, Counts]) -> ToolReport:
            return _add(report, self, pool, kept)

        return Plan(decider, add)

    def _outcome(
        self, row: Row, read: Callable[[Row], str], places: Mapping[str, int], pool: "_Pool", kept: "Mask"
    ) -> Outcome:
        place = places.get(row.where)
        if place is None:
            try:
                read(row)
            except RowError as error:
                return Outcome(None, error.reason, error.detail)
            return Outcome(None, f"no number in '{self.column}'")
        if not kept[place]:
            return Outcome(None, "not chosen", "" if self.by == "random" else f"{pool.scores[place]:.4g}")
        return Outcome(row.values)

    def _read(self) -> "_Pool":
        """Returns the length and the score of every readable row."""
        count = self._counter()
        ratios = self._ratios() if self.by.startswith("dsir") else None
        draw = np.random.default_rng(self.seed)
        sizes: list[float] = []
        scores: list[float] = []
        places: list[dict[str, int]] = []
        for source in self.sources:
            values = dict(column_values(source, self.column)) if self.column else {}
            mine: dict[str, int] = {}
            for block in text_blocks(source, self.reader(source)):
                for (where, text), size in zip(block, count([text for _, text in block]), strict=True):
                    if self.column and where not in values:
                        continue
                    if ratios is not None:
                        score = _importance(text, ratios, mean=self.by == "dsir_mean")
                        score += draw.gumbel() if self.by == "dsir" else 0.0
                    elif self.column:
                        score = -values[where] if self.lowest else values[where]
                    else:
                        score = 0.0  # of a baseline, which looks at the sizes of all
                    mine[where] = len(sizes)
                    sizes.append(size)
                    scores.append(score)
            places.append(mine)
        pool = _Pool(np.array(sizes, np.float64), np.array(scores, np.float64), places)
        if self.by in BASELINES:
            return dataclasses.replace(pool, scores=baseline_scores(self.by, pool.sizes, self.seed))
        return pool

    def _counter(self) -> Callable[[Sequence[str]], list[float]]:
        if self.tokenizer is None:
            return lambda texts: [float(len(_PIECES.findall(text))) for text in texts]
        from .tokenizer_tools import load_tokenizers

        (named,) = load_tokenizers([self.tokenizer])
        return lambda texts: [float(len(ids)) for ids in named.encode(texts)]

    def _ratios(self) -> "Floats":
        """Returns for each bucket the log of its share in the target over its share in all rows, ``[buckets]``."""
        counts = []
        for sources in (self.target or [], self.sources):
            total = np.zeros(_BUCKETS)
            for source in sources:
                for block in text_blocks(source, self.reader(source)):
                    for _, text in block:
                        np.add.at(total, _buckets(text), 1)
            if not total.any():
                raise DataError("holds no text", where=sources[0].title if sources else "target")
            counts.append(np.log(total / total.sum() + _UNSEEN))
        return counts[0] - counts[1]

    def _choose(self, pool: "_Pool") -> "Mask":
        """Returns which rows are kept.

        Raises:
            DataError: None fits.
        """
        sizes = pool.sizes
        kept = np.zeros(len(sizes), bool)
        for group in _like_lengths(sizes) if self.match_length else [np.arange(len(sizes))]:
            budget = self.tokens * sizes[group].sum() / max(1.0, sizes.sum())
            kept[group[_highest(pool.scores[group], sizes[group], budget)]] = True
        if not kept.any():
            least = "of each group of like length " if self.match_length else ""
            hint = "say more tokens" + (", or leave match_length out" if self.match_length else "")
            raise DataError(f"no row fits: the first {least}has more than the share of {self.tokens:g}", hint=hint)
        return kept


def within(order: Iterable[int], sizes: "Floats", budget: float) -> Iterator[int]:
    """Yields rows in the order of their choice up to the first that does not fit into a budget any more.

    Args:
        order: Rows by number, the first choice first; no more are asked for than are needed.
        sizes: Tokens of each row, ``[rows]``.
        budget: Tokens of all that are yielded.
    """
    spent = 0.0
    for row in order:
        spent += sizes[row]
        if spent > budget + 1e-6:
            return
        yield row


def baseline_scores(by: Baseline, sizes: "Floats", seed: int) -> "Floats":
    """Returns what rows are chosen by that nobody has looked at, the highest first; ``sizes``: tokens, ``[rows]``."""
    if by == "random":
        return np.random.default_rng(seed).random(len(sizes))
    return sizes if by == "longest" else -sizes


def _highest(scores: "Floats", sizes: "Floats", budget: float) -> list[int]:
    order = np.argsort(-scores, kind="stable")  # of equal scores the first row
    return [*within(order.tolist(), sizes, budget)]


def baselines(kept: "Mask", usable: "Mask", sizes: "Floats", seed: int) -> "dict[Baseline, Mask]":
    """Returns for each baseline the rows of as many tokens that it keeps.

    Args:
        kept: The rows that were chosen, bool ``[rows]``.
        usable: Those that could have been, likewise.
        sizes: Tokens of each, ``[rows]``.
        seed: Of the random draw, which is that of ``data sample`` among rows of these sizes.
    """
    rows, found = np.flatnonzero(usable), {}
    for by in BASELINES:
        found[by] = np.zeros(len(kept), bool)
        found[by][rows[_highest(baseline_scores(by, sizes[rows], seed), sizes[rows], sizes[kept].sum())]] = True
    return found


def comparison(
    choices: "Mapping[str, Mask]", sizes: "Floats", source: "NDArray[Any]", figures: "Mapping[str, Floats]", unit: str
) -> Table:
    """Returns a table of choices side by side, and in its note how much each figure goes with length.

    Args:
        choices: By name the rows of each, bool ``[rows]``: ``all`` that could be chosen, ``kept``, and others.
        sizes: Tokens of each row, ``[rows]``.
        source: The number of each row's source, ``[rows]``.
        figures: What rows are chosen by, by name, ``[rows]`` each.
        unit: What sizes count.
    """
    every, kept = choices["all"], choices["kept"]
    several = len(np.unique(source)) > 1
    rows: list[list[Any]] = []
    for name, some in choices.items():
        means = [float(values[some].mean()) if some.any() else "–" for values in (sizes, *figures.values())]
        sources = [len(np.unique(source[some]))] if several else []
        shared = percent(int((some & kept).sum()), int(kept.sum()))
        rows.append([name, int(some.sum()), float(sizes[some].sum()), *means, shared, *sources])
    note = (
        f"Random, longest, shortest: as many {unit} as are kept; shared: the part of the kept rows that is there too."
    )
    for name, values in figures.items():
        found = rank_correlation(values[every], sizes[every]) if every.any() else "–"
        shown = f"{found:.2f}" if isinstance(found, float) else found
        note += f" The rank correlation (Spearman) of {name} with length is {shown}."
    header = ["rows", "count", unit, f"{unit} a row", *figures, "shared", *(["sources"] if several else [])]
    return Table("What is kept, beside all and the baselines", header, rows, note)


@dataclass(frozen=True)
class _Pool:
    """All readable rows.

    Attributes:
        sizes: Tokens of each.
        scores: What each is chosen by, the highest first.
        places: For each source, by where a row is, its number.
    """

    sizes: "Floats"
    scores: "Floats"
    places: list[dict[str, int]]


def _buckets(text: str) -> "NDArray[np.int64]":
    """Returns the bucket of every word and pair of words."""
    pieces = _PIECES.findall(text.lower())
    grams = [*pieces, *(f"{one} {other}" for one, other in itertools.pairwise(pieces))]
    return np.array([xxhash.xxh3_64_intdigest(gram.encode(errors="replace")) % _BUCKETS for gram in grams], np.int64)


def _importance(text: str, ratios: "Floats", *, mean: bool) -> float:
    """Returns a row's log importance weight: the sum over its n-grams, or their mean."""
    buckets = _buckets(text)
    total = float(ratios[buckets].sum())
    return total / max(1, len(buckets)) if mean else total


def _like_lengths(sizes: "Floats") -> "list[NDArray[np.int64]]":
    """Returns the rows in groups of like length, each with about a twentieth of them."""
    return [group for group in np.array_split(np.argsort(sizes, kind="stable"), _GROUPS) if len(group)]


def _add(report: ToolReport, spec: Sample, pool: _Pool, kept: "Mask") -> ToolReport:
    """Adds what is kept beside all rows and the baselines, and how much of the score is length."""
    unit = "tokens" if spec.tokenizer else "words"
    every = np.ones(len(kept), bool)
    others = {by: some for by, some in baselines(kept, every, pool.sizes, spec.seed).items() if by != spec.by}
    figures = {} if spec.by in BASELINES else {spec.column or "score": -pool.scores if spec.lowest else pool.scores}
    source = np.repeat(np.arange(len(pool.places)), [len(places) for places in pool.places])
    table = comparison({"all": every, "kept": kept, **others}, pool.sizes, source, figures, unit)
    summary = [
        *report.summary,
        f"{percent(pool.sizes[kept].sum(), pool.sizes.sum())} of the {unit} are kept, by {spec.column or spec.by}",
    ]
    if kept.all():
        summary.append("there are no more rows than asked for, so all are kept")
    return dataclasses.replace(report, summary=summary, tables=[*report.tables, table], printed=[table])
