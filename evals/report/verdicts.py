"""Which rows are better than the baseline, which are not to be told apart, and what each stage gained and lost."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal

from .. import comparisons
from ..checkpoints import FINAL
from ..errors import SuiteError
from ..selection import select
from .items import Items
from .lineage import row_label
from .model import Cell, Column, Difference, Figure, Leaderboard, Pick, Row, Run, Transition

MOST_PAIRS = 4000
"""Differences between any two rows that a page holds; with more, only those against the baseline are worked out."""

_SHARED = 0.9  # of the items that both must have to be compared on those

_FEWEST = 3  # rows from which on the best is one that was chosen

_Method = Literal["paired", "unpaired", "win rate"]
_Found = tuple[comparisons.Difference, _Method]

ItemsOf = Callable[[Row, Column], Items | None]
"""From a row and a column to the items behind its primary figure."""


def find_baseline(runs: Sequence[Run], rows: Sequence[Row], wanted: str | None) -> str | None:
    """Returns the id of the row that all others are compared with.

    Without a wish it is the model that the others came from: the last scored row of the first run of the lineage (its
    final model, if scored). A run that stands alone is compared with its own first scored row.

    Args:
        runs: Parents before children.
        rows: Along the lineage.
        wanted: A run's name, ``run/checkpoint``, or the beginning of a weights hash.

    Raises:
        SuiteError: No row is called so.
    """
    if wanted is not None:
        return _named(runs, rows, wanted).id
    scored = [row for row in rows if row.cells]
    if not scored:
        return None
    first = [row for row in scored if row.run == scored[0].run]
    if len(first) == len(scored):
        return first[0].id
    return _last(first).id


def _last(rows: Sequence[Row]) -> Row:
    """Returns a run's final model, or else its last row."""
    return next((row for row in rows if FINAL in row.names), rows[-1])


def _named(runs: Sequence[Run], rows: Sequence[Row], wanted: str) -> Row:
    from ...chat_templates.errors import did_you_mean

    known: dict[str, list[Row]] = {}
    for run in runs:
        mine = [row for row in rows if row.run == run.id]
        if mine:
            known.setdefault(run.name, []).append(_last(mine))
        for row in mine:
            for name in row.names:
                known.setdefault(f"{run.name}/{name}", []).append(row)
    found = known.get(wanted, [])
    if not found and len(wanted) >= 6:
        found = [row for row in rows if any((h or "").startswith(wanted) for h in (row.model_hash, row.weights_hash))]
    if len({row.id for row in found}) == 1:
        return found[0]
    hint = did_you_mean(wanted, known) or f"there are: {', '.join(list(known)[:12])}"
    what = "several rows are called so" if found else "no row is called so"
    raise SuiteError(what, where=f"baseline '{wanted}'", hint=hint)


def with_verdicts(leaderboard: Leaderboard, items: ItemsOf) -> Leaderboard:
    """Adds the differences from the baseline, the tiers, the differences of all pairs and the ledger."""
    judge = _Judge(leaderboard, items)
    rows = _tiers(leaderboard, judge)
    baseline = next((row for row in rows if row.id == leaderboard.baseline), None)
    others = [(row, baseline) for row in rows if baseline and row is not baseline]
    every = list(combinations(reversed(rows), 2)) if len(rows) > 1 else []
    few = len(every) * len(leaderboard.columns) <= MOST_PAIRS
    return replace(
        leaderboard,
        rows=tuple(rows),
        differences=judge.family(others),
        pairs=tuple(found for pair in every for found in judge.family([pair], alone=True)) if few else (),
        ledger=_ledger(leaderboard, rows, judge),
        picks=tuple(pick for column in leaderboard.columns if (pick := _pick(column, rows, items))),
    )


def _pick(column: Column, rows: Sequence[Row], items: ItemsOf) -> Pick | None:
    """Chooses the best row of a column on one half of its items; None of fewer than three rows, or of ratios."""
    if column.metrics[0].name.startswith("bits_per_"):
        return None  # a half's ratio of sums is no mean of what each document adds to the whole's
    held = {row.id: found for row in rows if (found := items(row, column)) is not None}
    if len(held) < _FEWEST:
        return None
    scores: dict[str, dict[Hashable, float]] = {
        name: dict(zip(found.keys, found.values.tolist(), strict=True)) for name, found in held.items()
    }
    first = next(iter(held.values()))
    clusters: dict[Hashable, Hashable] | None = (
        dict(zip(first.keys, first.clusters, strict=True)) if first.clusters else None
    )
    found = select(scores, clusters, higher_is_better=column.metrics[0].higher_is_better)
    if found is None or found.items < _SHARED * max(len(one.keys) for one in held.values()):
        return None
    rest = found.reported
    numbers = (found.chosen, rest.value, rest.low, rest.high, found.whole)
    return Pick(column.id, found.name, *numbers, found.candidates, found.items)


def _ledger(leaderboard: Leaderboard, rows: Sequence[Row], judge: "_Judge") -> tuple[Transition, ...]:
    found = []
    for run in leaderboard.runs:
        before = leaderboard.fork(run)
        mine = [row for row in rows if row.run == run.id and row.cells]
        if before is None or not mine:
            continue
        after = _last(mine)
        differences = judge.family([(after, before)])
        if differences:
            found.append(Transition(run.id, before.id, after.id, differences))
    return tuple(found)


def _tiers(leaderboard: Leaderboard, judge: "_Judge") -> list[Row]:
    """Gives each cell its tier: the first holds the best row and those that cannot be told from it, and so on.

    Rows are gone through from the best; a tier ends at the first row that is worse than the tier's own best, as one of
    all that are compared with that best.
    """
    cells = {row.id: dict(row.cells) for row in leaderboard.rows}
    for column in leaderboard.columns:
        ranked = [(row, figure) for row in leaderboard.rows if (figure := _value(row, column)) is not None]
        up = column.metrics[0].higher_is_better
        ranked.sort(key=lambda item: -item[1] if up else item[1])
        tier, left = 0, [row for row, _ in ranked]
        while len(ranked) > 1 and left:
            found = judge.family([(row, left[0]) for row in left[1:]], only=column)
            if not tier and not found:
                break  # nothing can be compared, as of win rates against all others: one tier would say they are equal
            tier += 1
            verdicts = {d.row: d.verdict for d in found}
            worse = next((i for i, row in enumerate(left) if verdicts.get(row.id) == "worse"), len(left))
            for row in left[:worse]:
                cells[row.id][column.id] = replace(cells[row.id][column.id], tier=tier)
            left = left[worse:]
    return [replace(row, cells=cells[row.id]) for row in leaderboard.rows]


def _value(row: Row, column: Column) -> float | None:
    figure = _primary(row.cells.get(column.id), column)
    return figure.value if figure else None


def _primary(cell: Cell | None, column: Column) -> Figure | None:
    return next((f for f in cell.figures if f.metric == column.metrics[0].name), None) if cell else None


class _Judge:
    """Compares rows, and remembers the difference of each pair."""

    def __init__(self, leaderboard: Leaderboard, items: ItemsOf):
        self.columns = leaderboard.columns
        self.items = items
        self.known: dict[tuple[str, str, str], _Found | None] = {}

    def family(
        self, pairs: Sequence[tuple[Row, Row]], *, only: Column | None = None, alone: bool = False
    ) -> tuple[Difference, ...]:
        """Compares the first row of each pair with the second in every column that both have, as one family.

        Args:
            pairs: The rows.
            only: The one column to look at.
            alone: Whether each comparison is a family of its own.
        """
        found: list[tuple[Row, Row, Column, _Method]] = []
        bare: list[comparisons.Comparison] = []
        for column in (only,) if only else self.columns:
            for row, other in pairs:
                known = self._difference(row, other, column)
                if known is not None:
                    up = column.metrics[0].higher_is_better
                    bare.append(comparisons.Comparison(known[0], 1.0, "no verdict", None, up))
                    found.append((row, other, column, known[1]))
        judged = [one for each in bare for one in comparisons.adjust([each])] if alone else comparisons.adjust(bare)
        return tuple(_flat(*names, one) for names, one in zip(found, judged, strict=True))

    def _difference(self, row: Row, other: Row, column: Column) -> _Found | None:
        key = (column.id, row.id, other.id)
        if key not in self.known:
            self.known[key] = self._compare(row, other, column)
        return self.known[key]

    def _compare(self, row: Row, other: Row, column: Column) -> _Found | None:
        if self._played(row, other, column):
            return _half(_primary(row.cells.get(column.id), column), self.items(row, column), 1)
        if self._played(other, row, column):
            return _half(_primary(other.cells.get(column.id), column), self.items(other, column), -1)
        a, b = (_primary(each.cells.get(column.id), column) for each in (row, other))
        if a is None or b is None or a.value is None or b.value is None:
            return None
        if a.metric.startswith("win_rate") and column.opponent is None:
            return None  # a win rate against all others: one row's wins are the other's losses
        mine, theirs = self.items(row, column), self.items(other, column)
        if mine and theirs and (paired := _pair(mine, theirs)):
            return paired, "paired"
        n = min(a.n or 0, b.n or 0)
        return comparisons.unpaired_difference(a.value, a.stderr, b.value, b.stderr, n), "unpaired"

    def _played(self, row: Row, other: Row, column: Column) -> bool:
        """Says whether a row was judged against the very other one, which has no win rate of its own."""
        if not column.opponent or other.model_hash != column.opponent or column.id not in row.cells:
            return False
        return column.id not in other.cells


def _pair(mine: Items, theirs: Items) -> comparisons.Difference | None:
    """Compares two rows on the items that both have; None where those are too few."""
    import numpy as np

    if mine.keys == theirs.keys:  # as a rule, and much faster than looking each one up
        return comparisons.paired_difference(mine.values, theirs.values, mine.clusters)
    place = {key: i for i, key in enumerate(theirs.keys)}
    both = [i for i, key in enumerate(mine.keys) if key in place]
    if len(both) < _SHARED * max(len(mine.keys), len(theirs.keys)):
        return None
    order = np.array([place[mine.keys[i]] for i in both])
    clusters = [mine.clusters[i] for i in both] if mine.clusters else None
    return comparisons.paired_difference(mine.values[both], theirs.values[order], clusters)


def _half(figure: Figure | None, items: Items | None, sign: int) -> _Found | None:
    """Compares a win rate with the half that two equal players would share, by prompt where preferences are known."""
    if figure is None or figure.value is None or not figure.metric.startswith("win_rate"):
        return None
    if items is not None:
        less_half = sign * (items.values - 0.5)
        return comparisons.paired_difference(less_half, 0 * less_half, items.clusters), "win rate"
    value = sign * (figure.value - 0.5)
    return comparisons.unpaired_difference(value, figure.stderr, 0.0, 0.0, figure.n or 0), "win rate"


def _flat(row: Row, other: Row, column: Column, method: _Method, comparison: comparisons.Comparison) -> Difference:
    found = comparison.difference
    return Difference(
        column.id,
        row.id,
        other.id,
        found.value,
        found.low,
        found.high,
        comparison.verdict,
        None if found.test == "none" else comparison.p_adjusted,
        comparison.smallest,
        found.n or None,
        method,
    )


def baseline_text(leaderboard: Leaderboard) -> str:
    """Says which row is the baseline, and why."""
    row = next((row for row in leaderboard.rows if row.id == leaderboard.baseline), None)
    if row is None:
        return ""
    run = leaderboard.run_of(row)
    if leaderboard.chosen:
        why = "as chosen"
    elif all(other.run == row.run for other in leaderboard.rows if other.cells):
        why = "the run's first scored checkpoint"
    else:
        why = "the model that the first run of the lineage ended with"
    return f"{run.name} {row_label(row)} ({why})"
