"""Which rows are better than the baseline, which are not to be told apart, and what each stage gained and lost."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal

from ..checkpoints import FINAL
from ..errors import SuiteError
from ..stats import compare
from ..stats.bradley_terry import standing
from ..stats.intervals import scale_of
from ..stats.selection import select
from .items import Items
from .judged_model import Judging, Match
from .lineage import row_label
from .model import Cell, Column, Difference, Figure, Leaderboard, Pick, Row, Run, Transition
from .text import mapping, text

MOST_PAIRS = 4000
"""Differences between any two rows that a page holds; with more, only those against the baseline are worked out."""

_SHARED = 0.9  # of the items that both must have to be compared on those

_FEWEST = 3  # rows from which on the best is one that was chosen

_Method = Literal["paired", "unpaired", "win rate"]
_Found = tuple[compare.Difference, _Method]
_Pair = tuple[Row, Row]
_Key = tuple[str, ...]  # a column's id, the later row's and the earlier one's; or what a judge was asked

Tested = Mapping[_Key, compare.Difference]
"""What judges said of two players, as tests: ``("match", judge, task, candidate, opponent)``, ``("rating", …)``."""

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
    return last_row(first).id


def last_row(rows: Sequence[Row]) -> Row:
    """Returns a run's final model, or else its last row."""
    return next((row for row in rows if FINAL in row.names), rows[-1])


def _named(runs: Sequence[Run], rows: Sequence[Row], wanted: str) -> Row:
    from ...chat_templates.errors import did_you_mean

    known: dict[str, list[Row]] = {}
    for run in runs:
        mine = [row for row in rows if row.run == run.id]
        if mine:
            known.setdefault(run.name, []).append(last_row(mine))
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


def with_verdicts(leaderboard: Leaderboard, items: ItemsOf, tested: Tested) -> Leaderboard:
    """Adds whatever the page says of one row beside another, all of it answers of one family.

    Those are the differences from the baseline, of the ledger and of all pairs, the tiers, the sides of judges' matches
    and the tiers and ranks of their ratings.
    """
    page = _Page(leaderboard, items, tested)
    rows = page.rows_with_tiers()
    return replace(
        leaderboard,
        rows=rows,
        differences=page.differences(page.against),
        pairs=page.differences(page.pairs) if page.few else (),
        ledger=tuple(
            Transition(run, before.id, after.id, found)
            for run, after, before in page.stages
            if (found := page.differences([(after, before)]))
        ),
        picks=tuple(pick for column in leaderboard.columns if (pick := _pick(column, rows, items))),
        judgings=tuple(page.judged(judging) for judging in leaderboard.judgings),
        compared=len(page.questions) + page.untested,
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
    details = (mapping(row.cells[column.id].score.get("detail")) for row in rows if column.id in row.cells)
    scale = scale_of(column.metrics[0].name, next(details))
    ends = (scale.low, scale.high) if scale and scale.low is not None and scale.high is not None else None
    found = select(scores, clusters, higher_is_better=column.metrics[0].higher_is_better, scale=ends)
    if found is None or found.items < _SHARED * max(len(one.keys) for one in held.values()):
        return None
    rest = found.reported
    numbers = (found.chosen, rest.value, rest.low, rest.high, found.whole)
    return Pick(column.id, found.name, *numbers, found.candidates, found.items)


def _stages(leaderboard: Leaderboard) -> Iterator[tuple[str, Row, Row]]:
    """Yields each run with its last row and the row of its parent that it started from."""
    for run in leaderboard.runs:
        before = leaderboard.fork(run)
        mine = [row for row in leaderboard.rows if row.run == run.id and row.cells]
        if before is not None and mine:
            yield run.id, last_row(mine), before


def _value(row: Row, column: Column) -> float | None:
    figure = _primary(row.cells.get(column.id), column)
    return figure.value if figure else None


def _primary(cell: Cell | None, column: Column) -> Figure | None:
    return next((f for f in cell.figures if f.metric == column.metrics[0].name), None) if cell else None


class _Page:
    """What one page asks of its rows and judges, and the answers."""

    def __init__(self, leaderboard: Leaderboard, items: ItemsOf, tested: Tested):
        self.board, self.items = leaderboard, items
        rows = leaderboard.rows
        self.place = {row.id: i for i, row in enumerate(rows)}
        baseline = next((row for row in rows if row.id == leaderboard.baseline), None)
        self.against: list[_Pair] = [(row, baseline) for row in rows if baseline and row is not baseline]
        self.stages = list(_stages(leaderboard))
        self.pairs: list[_Pair] = list(combinations(reversed(rows), 2)) if len(rows) > 1 else []
        self.few = len(self.pairs) * len(leaderboard.columns) <= MOST_PAIRS
        self.planned = {frozenset((a.id, b.id)) for a, b in [*self.against, *((a, b) for _, a, b in self.stages)]}
        self.methods: dict[_Key, _Method | None] = {}
        self.questions: dict[_Key, compare.Question] = {}
        for column in leaderboard.columns:
            for pair in self.pairs:
                if self.few or frozenset((pair[0].id, pair[1].id)) in self.planned:
                    self._ask(*pair, column)
        self.matches: dict[_Key, tuple[Row, Row, Column] | None] = {
            (judging.version, judging.task, match.candidate, match.opponent): self._column_of(judging, match)
            for judging in leaderboard.judgings
            for match in judging.matches
        }
        for key, found in tested.items():
            if self.matches.get(key[1:]) is None or key[0] != "match":  # else a column asks the same
                self.questions[key] = compare.Question(found, planned=key[0] == "match")
        self.answers = compare.judge(self.questions, self.untested)

    @property
    def untested(self) -> int:
        """Returns how many comparisons of rows keep their share of the family without being worked out."""
        return 0 if self.few else len(self.pairs) * len(self.board.columns) - len(self.methods)

    def _ordered(self, row: Row, other: Row) -> tuple[Row, Row, bool]:
        """Returns the later of two rows, the earlier, and whether that turned them round."""
        turned = self.place[row.id] < self.place[other.id]
        return (other, row, True) if turned else (row, other, False)

    def _ask(self, row: Row, other: Row, column: Column) -> None:
        later, earlier, _ = self._ordered(row, other)
        key = (column.id, later.id, earlier.id)
        found = self._compare(later, earlier, column)
        self.methods[key] = found[1] if found else None
        if found:
            planned = frozenset(key[1:]) in self.planned or found[1] == "win rate"
            self.questions[key] = compare.Question(found[0], column.metrics[0].higher_is_better, planned)

    def answer(self, row: Row, other: Row, column: Column) -> compare.Comparison | None:
        """Returns how a row stands to another in a column; None where nothing compares them there."""
        later, earlier, turned = self._ordered(row, other)
        found = self.answers.get((column.id, later.id, earlier.id))
        return found.turned() if found and turned else found

    def differences(self, pairs: Sequence[_Pair]) -> tuple[Difference, ...]:
        """Returns how the first row of each pair stands to the second, in every column that compares them."""
        found = []
        for column in self.board.columns:
            for row, other in pairs:
                answer = self.answer(row, other, column)
                if answer is not None:
                    later, earlier, _ = self._ordered(row, other)
                    method = self.methods[column.id, later.id, earlier.id]
                    assert method is not None, "it was compared"
                    found.append(_flat(row, other, column, method, answer))
        return tuple(found)

    def rows_with_tiers(self) -> tuple[Row, ...]:
        """Gives each cell its tier: the first holds the best row and those that cannot be told from it, and so on.

        Rows are gone through from the best; a tier ends at the first row that is worse than the tier's own best. Where
        not all pairs are worked out, those that this needs are, until it needs no more.
        """
        while True:
            cells, missing = {row.id: dict(row.cells) for row in self.board.rows}, []
            for column in self.board.columns:
                tiers = self._tiers(column, missing)
                for identity, tier in tiers.items():
                    cells[identity][column.id] = replace(cells[identity][column.id], tier=tier)
            if not missing:
                return tuple(replace(row, cells=cells[row.id]) for row in self.board.rows)
            for row, other, column in missing:
                self._ask(row, other, column)
            self.answers = compare.judge(self.questions, self.untested)

    def _tiers(self, column: Column, missing: list[tuple[Row, Row, Column]]) -> dict[str, int]:
        """Returns the tier of each row of a column, and adds the pairs that would have to be compared for it."""
        ranked = [(row, figure) for row in self.board.rows if (figure := _value(row, column)) is not None]
        up = column.metrics[0].higher_is_better
        ranked.sort(key=lambda item: -item[1] if up else item[1])
        tiers: dict[str, int] = {}
        tier, left = 0, [row for row, _ in ranked]
        while len(ranked) > 1 and left:
            head, rest = left[0], left[1:]
            keys = [(column.id, *(each.id for each in self._ordered(row, head)[:2])) for row in rest]
            missing += [(row, head, column) for row, key in zip(rest, keys, strict=True) if key not in self.methods]
            found = [self.answer(row, head, column) for row in rest]
            if not tier and not any(found):
                return {}  # as of win rates against all others: one tier would say that they are equal
            tier += 1
            worse = next(
                (i for i, answer in enumerate(found, start=1) if answer and answer.verdict == "worse"), len(left)
            )
            tiers |= {row.id: tier for row in left[:worse]}
            left = left[worse:]
        return tiers

    def _column_of(self, judging: Judging, match: Match) -> tuple[Row, Row, Column] | None:
        """Returns the rows and the column of a match whose win rate stands in one: the same question, one answer."""
        rows = {player.id: player.row for player in judging.players}
        known = {row.id: row for row in self.board.rows}
        row, other = (known.get(rows.get(player) or "") for player in (match.candidate, match.opponent))
        if row is None or other is None:
            return None
        later, earlier, _ = self._ordered(row, other)
        for column in self.board.columns:
            score = row.cells[column.id].score if column.id in row.cells else {}
            about = text(mapping(score.get("detail")).get("prompts"))
            same = score.get("judge_version") == judging.version and about in (None, judging.task)
            if same and self.methods.get((column.id, later.id, earlier.id)) == "win rate":
                return row, other, column
        return None

    def judged(self, judging: Judging) -> Judging:
        """Adds the verdicts of a judge's matches, and the tiers and ranks of its ratings."""
        import numpy as np

        about = (judging.version, judging.task)
        found: dict[tuple[str, str], compare.Verdict] = {}
        matches = []
        for match in judging.matches:
            pair = (match.candidate, match.opponent)
            place = self.matches[(*about, *pair)]
            answer = self.answer(*place) if place else self.answers.get(("match", *about, *pair))
            if answer:
                match = replace(match, verdict=answer.verdict, p=answer.p_adjusted)
                found[pair], found[pair[1], pair[0]] = answer.verdict, answer.turned().verdict
            matches.append(match)
        players = [row.player for row in judging.ranking]
        pairs = [(one, other) for one in players for other in players]
        for one, other in pairs:
            answer = self.answers.get(("rating", *about, one, other))
            if answer:  # two that never met
                found[one, other], found[other, one] = answer.verdict, answer.turned().verdict
        better = np.array([found.get(pair) == "better" for pair in pairs]).reshape(len(players), len(players))
        places = zip(judging.ranking, *standing(better), strict=True) if players else ()
        ranking = tuple(replace(r, tier=t, rank_low=low, rank_high=high) for r, t, low, high in places)
        return replace(judging, matches=tuple(matches), ranking=ranking)

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
        return compare.unpaired_difference(a.value, a.stderr, b.value, b.stderr, n), "unpaired"

    def _played(self, row: Row, other: Row, column: Column) -> bool:
        """Says whether a row was judged against the very other one, which has no win rate of its own."""
        if not column.opponent or other.model_hash != column.opponent or column.id not in row.cells:
            return False
        return column.id not in other.cells


def _pair(mine: Items, theirs: Items) -> compare.Difference | None:
    """Compares two rows on the items that both have; None where those are too few."""
    import numpy as np

    if mine.keys == theirs.keys:  # as a rule, and much faster than looking each one up
        return compare.paired_difference(mine.values, theirs.values, mine.clusters)
    place = {key: i for i, key in enumerate(theirs.keys)}
    both = [i for i, key in enumerate(mine.keys) if key in place]
    if len(both) < _SHARED * max(len(mine.keys), len(theirs.keys)):
        return None
    order = np.array([place[mine.keys[i]] for i in both])
    clusters = [mine.clusters[i] for i in both] if mine.clusters else None
    return compare.paired_difference(mine.values[both], theirs.values[order], clusters)


def _half(figure: Figure | None, items: Items | None, sign: int) -> _Found | None:
    """Compares a win rate with the half that two equal players would share, by prompt where preferences are known."""
    if figure is None or figure.value is None or not figure.metric.startswith("win_rate"):
        return None
    if items is not None:
        less_half = sign * (items.values - 0.5)
        return compare.paired_difference(less_half, 0 * less_half, items.clusters), "win rate"
    value = sign * (figure.value - 0.5)
    return compare.unpaired_difference(value, figure.stderr, 0.0, 0.0, figure.n or 0), "win rate"


def _flat(row: Row, other: Row, column: Column, method: _Method, comparison: compare.Comparison) -> Difference:
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
