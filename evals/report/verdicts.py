"""Which rows are better than the baseline, which are not to be told apart, and what each stage gained and lost."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import PurePath
from typing import Literal

import numpy as np

from ...chat_templates.errors import did_you_mean
from ..errors import SuiteError
from ..stats import compare
from ..stats.bradley_terry import standing
from ..stats.intervals import scale_of
from ..stats.selection import select
from .board import (
    BoardRow,
    BoardRun,
    Column,
    Figure,
    Headline,
    Judging,
    Leaderboard,
    Match,
    Pick,
    RowDifference,
    Transition,
    last_row,
)
from .items import Items, ItemsOf
from .text import detail_of, text

MOST_PAIRS = 4000
"""Differences between any two rows that a page holds; with more, only those against the baseline are worked out."""

_SHARED = 0.9  # of the items that both must have to be compared on those
_FEWEST = 3  # rows from which on the best is one that was chosen

_Method = Literal["paired", "unpaired", "win rate"]
_Pair = tuple[BoardRow, BoardRow]
_Key = tuple[str, ...]  # a column's id, the later row's and the earlier one's; or what a judge was asked


def find_baseline(runs: Sequence[BoardRun], rows: Sequence[BoardRow], wanted: str | None) -> str | None:
    """Returns the id of the row that all others are compared with.

    Without a wish it is the model that the others came from: the last scored row of the first run of the lineage (its
    final model, if scored). A run that stands alone is compared with its own first scored row.

    Args:
        runs: Parents before children.
        rows: Along the lineage.
        wanted: A run's name or folder, ``run/checkpoint``, or the beginning of a weights hash.

    Raises:
        SuiteError: No row is called so.
    """
    if wanted is not None:
        return _named(runs, rows, wanted).id
    theirs = {run.id for run in runs if run.stage == "foreign"}
    scored = [row for row in rows if row.cells]
    scored = [row for row in scored if row.run not in theirs] or scored
    first = [row for row in scored if row.run == scored[0].run]
    if not first:
        return None
    return (first[0] if len(first) == len(scored) else last_row(first)).id


def _named(runs: Sequence[BoardRun], rows: Sequence[BoardRow], wanted: str) -> BoardRow:
    known: dict[str, list[BoardRow]] = {}
    folders: dict[str, list[BoardRow]] = {}  # a run may be called otherwise than its folder, which is what was typed
    for run in runs:
        mine = [row for row in rows if row.run == run.id]
        if mine:
            known.setdefault(run.name, []).append(last_row(mine))
            folders.setdefault(PurePath(run.folder).name, []).append(last_row(mine))
        for row in mine:
            for name in row.names:
                known.setdefault(f"{run.name}/{name}", []).append(row)
    found = known.get(wanted) or folders.get(PurePath(wanted).name, [])
    if not found and len(wanted) >= 6:
        found = [row for row in rows if any((h or "").startswith(wanted) for h in (row.model_hash, row.weights_hash))]
    if len({row.id for row in found}) == 1:
        return found[0]
    hint = did_you_mean(wanted, known) or f"there are: {', '.join(list(known)[:12])}"
    what = "several rows are called so" if found else "no row is called so"
    raise SuiteError(what, where=f"baseline '{wanted}'", hint=hint)


def baseline_text(board: Leaderboard) -> str:
    """Says which row is the baseline, and why."""
    row = next((row for row in board.rows if row.id == board.baseline), None)
    if row is None:
        return ""
    if board.chosen:
        why = "as chosen"
    elif all(other.run == row.run for other in board.rows if other.cells):
        why = "the run's first scored checkpoint"
    else:
        why = "the last model of the first run"
    return f"{board.run_of(row).name} {row.label} ({why})"


def with_verdicts(board: Leaderboard, items: ItemsOf, tested: Mapping[_Key, compare.Difference]) -> Leaderboard:
    """Adds whatever the page says of one row beside another, all of it answers of one family.

    Those are the differences from the baseline, of the ledger and of all pairs, the tiers, the sides of judges' matches
    and the tiers and ranks of their ratings.

    Args:
        board: Without verdicts.
        items: The items behind a figure.
        tested: What verdicts on players of judges rest on.
    """
    family = _Family(board, items, tested)
    rows = family.rows_with_tiers()
    board = replace(board, rows=rows)
    order, headline = family.headline(board)
    return replace(
        board,
        order=order,
        headline=headline,
        differences=family.differences(family.against),
        pairs=family.differences(family.pairs) if family.few else (),
        ledger=tuple(
            Transition(run, before.id, after.id, found)
            for run, after, before in family.stages
            if (found := family.differences([(after, before)]))
        ),
        picks=tuple(pick for column in board.columns if (pick := _pick(column, rows, items))),
        judgings=tuple(family.judged(judging) for judging in board.judgings),
        compared=len(family.questions) + family.untested,
    )


class _Family:
    """All that one page asks of its rows and judges, and the answers."""

    def __init__(self, board: Leaderboard, items: ItemsOf, tested: Mapping[_Key, compare.Difference]):
        self.board, self.items = board, items
        rows = board.rows
        self.place = {row.id: i for i, row in enumerate(rows)}
        baseline = next((row for row in rows if row.id == board.baseline), None)
        self.against: list[_Pair] = [(row, baseline) for row in rows if baseline and row is not baseline]
        self.stages: list[
            tuple[str, BoardRow, BoardRow]
        ] = []  # each run with its last row and the parent's that it started from
        for run in board.runs:
            before, mine = board.fork(run), [row for row in rows if row.run == run.id and row.cells]
            if before is not None and mine:
                self.stages.append((run.id, last_row(mine), before))
        self.pairs: list[_Pair] = list(combinations(reversed(rows), 2))
        self.few = len(self.pairs) * len(board.columns) <= MOST_PAIRS
        self.planned = {frozenset((a.id, b.id)) for a, b in [*self.against, *((a, b) for _, a, b in self.stages)]}
        self.methods: dict[_Key, _Method | None] = {}
        self.questions: dict[_Key, compare.Hypothesis] = {}
        for column in board.columns:
            for later, earlier in self.pairs:
                if self.few or frozenset((later.id, earlier.id)) in self.planned:
                    self._ask(later, earlier, column)
        # A match whose win rate stands in a column is the same question, and has one answer.
        self.matches: dict[_Key, tuple[BoardRow, BoardRow, Column] | None] = {
            (judging.version, judging.task, match.candidate, match.opponent): self._column_of(judging, match)
            for judging in board.judgings
            for match in judging.matches
        }
        for key, found in tested.items():
            if key[0] != "match" or self.matches.get(key[1:]) is None:
                self.questions[key] = compare.Hypothesis(found, planned=key[0] == "match")
        self.answers = compare.judge(self.questions, self.untested)

    @property
    def untested(self) -> int:
        """Returns how many comparisons of rows keep their share of the family without being worked out."""
        return 0 if self.few else len(self.pairs) * len(self.board.columns) - len(self.methods)

    def _key(self, row: BoardRow, other: BoardRow, column: Column) -> tuple[_Key, bool]:
        """Returns what two rows' question is known by, and whether that turned them round: the later comes first."""
        turned = self.place[row.id] < self.place[other.id]
        return (column.id, *((other.id, row.id) if turned else (row.id, other.id))), turned

    def _ask(self, later: BoardRow, earlier: BoardRow, column: Column) -> None:
        key = (column.id, later.id, earlier.id)
        found, self.methods[key] = self._compare(later, earlier, column)
        if found:
            planned = frozenset(key[1:]) in self.planned or self.methods[key] == "win rate"
            self.questions[key] = compare.Hypothesis(found, column.primary.higher_is_better, planned)

    def _compare(
        self, row: BoardRow, other: BoardRow, column: Column
    ) -> tuple[compare.Difference | None, _Method | None]:
        for mine, theirs, sign in ((row, other, 1), (other, row, -1)):
            # A row that was judged against the very other one, which has no win rate of its own.
            judged = column.opponent and theirs.model_hash == column.opponent and column.id not in theirs.cells
            if judged and column.id in mine.cells:
                return _against_half(mine.figure(column), self.items(mine, column), sign)
        a, b = row.figure(column), other.figure(column)
        if a is None or b is None or a.value is None or b.value is None:
            return None, None
        if a.metric.startswith("win_rate") and column.opponent is None:
            return None, None  # a win rate against all others: one row's wins are the other's losses
        ours, others = self.items(row, column), self.items(other, column)
        # Rows leave out different items of a clean column, and may be compared on those that both keep, and no others.
        if ours and others and (paired := _paired(ours, others, 0.0 if column.clean else _SHARED)):
            return paired, "paired"
        if column.clean or any("foreign" in one.cells[column.id].score for one in (row, other)):
            return None, None  # of another harness's figures those alone are compared of which the items are known
        n = min(a.n or 0, b.n or 0)
        return compare.unpaired_difference(a.value, a.stderr, b.value, b.stderr, n), "unpaired"

    def answer(self, row: BoardRow, other: BoardRow, column: Column) -> compare.Comparison | None:
        """Returns how a row stands to another in a column; None where nothing compares them there."""
        key, turned = self._key(row, other, column)
        found = self.answers.get(key)
        return found.turned() if found and turned else found

    def differences(self, pairs: Sequence[_Pair]) -> tuple[RowDifference, ...]:
        """Returns how the first row of each pair stands to the second, in every column that compares them."""
        found = []
        for column in self.board.columns:
            for row, other in pairs:
                answer = self.answer(row, other, column)
                method = self.methods.get(self._key(row, other, column)[0])
                if answer is not None and method is not None:
                    d = answer.difference
                    p = None if d.test == "none" else answer.p_adjusted
                    low, high = d.low, d.high
                    if low is not None and high is not None and (scale := _scale((row, other), column)):
                        reach = scale[1] - scale[0]  # no two figures lie further apart
                        low, high = max(low, -reach), min(high, reach)
                    figures = (d.value, low, high, answer.verdict, p, answer.smallest, d.n or None)
                    found.append(RowDifference(column.id, row.id, other.id, *figures, method))
        return tuple(found)

    def rows_with_tiers(self) -> tuple[BoardRow, ...]:
        """Gives each cell its tier: the first holds the best row and those that cannot be told from it, and so on.

        Rows are gone through from the best; a tier ends at the first row that is worse than the tier's own best. Where
        not all pairs are worked out, those that this needs are, until it needs no more.
        """
        while True:
            cells, missing = {row.id: dict(row.cells) for row in self.board.rows}, []
            for column in self.board.columns:
                for identity, tier in self._tiers(column, missing).items():
                    cells[identity][column.id] = replace(cells[identity][column.id], tier=tier)
            if not missing:
                return tuple(replace(row, cells=cells[row.id]) for row in self.board.rows)
            for row, other, column in missing:
                turned = self._key(row, other, column)[1]
                self._ask(*((other, row) if turned else (row, other)), column)
            self.answers = compare.judge(self.questions, self.untested)

    def _tiers(self, column: Column, missing: list[tuple[BoardRow, BoardRow, Column]]) -> dict[str, int]:
        """Returns the tier of each row of a column, and adds the pairs that would have to be compared for it."""
        values = {row.id: f.value for row in self.board.rows if (f := row.figure(column)) and f.value is not None}
        sign = -1 if column.primary.higher_is_better else 1
        ranked = [row for row in self.board.rows if row.id in values and not row.cells[column.id].is_unseen]
        left = sorted(ranked, key=lambda row: sign * values[row.id])
        tiers: dict[str, int] = {}
        tier = 0
        while len(ranked) > 1 and left:
            head, rest = left[0], left[1:]
            missing += [(row, head, column) for row in rest if self._key(row, head, column)[0] not in self.methods]
            found = [self.answer(row, head, column) for row in rest]
            if not tier and not any(found):
                return {}  # as of win rates against all others: one tier would say that they are equal
            tier += 1
            worse = [i for i, answer in enumerate(found, start=1) if answer and answer.verdict == "worse"]
            end = worse[0] if worse else len(left)
            tiers |= {row.id: tier for row in left[:end]}
            left = left[end:]
        return tiers

    def headline(self, board: Leaderboard) -> tuple[tuple[str, ...], Headline | None]:
        """Returns the rows from the best, and what is to be said of that one first.

        Args:
            board: With tiers.
        """
        column = _leading(board)
        if column is None:
            return tuple(row.id for row in board.rows), None
        values = {row.id: value for row in board.rows if (value := _seen_value(row, column)) is not None}
        if not values:
            return tuple(row.id for row in board.rows), None
        sign = -1 if column.primary.higher_is_better else 1
        ranked = sorted(board.rows, key=lambda row: (row.id not in values, sign * values.get(row.id, 0.0)))
        best, second = ranked[0], ranked[1] if len(values) > 1 else None
        tier = best.cells[column.id].tier
        level = tuple(row.id for row in ranked[1:] if row.id in values and tier and row.cells[column.id].tier == tier)
        against = second if best.id == board.baseline else next((r for r in ranked if r.id == board.baseline), None)
        found: dict[compare.Verdict, list[str]] = {"better": [], "worse": [], "no verdict": []}
        said: dict[str, compare.Verdict] = {}
        for other in board.columns if against else ():
            answer = self.answer(best, against, other) if against else None
            # Its clean items are no second task, and news only where they say something else.
            if answer and not (other.clean and said.get(other.task) == answer.verdict):
                said[other.task] = answer.verdict
                found[answer.verdict].append(other.id)
        words = (tuple(found[verdict]) for verdict in ("better", "worse", "no verdict"))
        headline = Headline(column.id, best.id, level, against.id if against else None, *words)
        return tuple(row.id for row in ranked), headline

    def _column_of(self, judging: Judging, match: Match) -> tuple[BoardRow, BoardRow, Column] | None:
        """Returns the rows and the column of a match whose win rate stands in one."""
        rows = {player.id: player.row for player in judging.players}
        known = {row.id: row for row in self.board.rows}
        row, other = (known.get(rows.get(player) or "") for player in (match.candidate, match.opponent))
        if row is None or other is None:
            return None
        for column in self.board.columns:
            score = row.cells[column.id].score if column.id in row.cells else {}
            about = text(detail_of(score).get("prompts"))
            same = score.get("judge_version") == judging.version and about in (None, judging.task)
            if same and self.methods.get(self._key(row, other, column)[0]) == "win rate":
                return row, other, column
        return None

    def judged(self, judging: Judging) -> Judging:
        """Adds the verdicts of a judge's matches, and the tiers and ranks of its ratings."""
        about = (judging.version, judging.task)
        found: dict[tuple[str, str], compare.Verdict] = {}

        def note(one: str, other: str, answer: compare.Comparison) -> None:
            found[one, other], found[other, one] = answer.verdict, answer.turned().verdict

        matches = []
        for match in judging.matches:
            pair = (match.candidate, match.opponent)
            place = self.matches[(*about, *pair)]
            answer = self.answer(*place) if place else self.answers.get(("match", *about, *pair))
            if answer:
                match = replace(match, verdict=answer.verdict, p=answer.p_adjusted)
                note(*pair, answer)
            matches.append(match)
        players = [row.player for row in judging.ranking]
        pairs = [(one, other) for one in players for other in players]
        for one, other in pairs:  # of which some never met
            answer = self.answers.get(("rating", *about, one, other))
            if answer:
                note(one, other, answer)
        better = np.array([found.get(pair) == "better" for pair in pairs]).reshape(len(players), len(players))
        places = zip(judging.ranking, *standing(better), strict=True) if players else ()
        ranking = tuple(replace(r, tier=t, rank_low=low, rank_high=high) for r, t, low, high in places)
        return replace(judging, matches=tuple(matches), ranking=ranking)


def _seen_value(row: BoardRow, column: Column) -> float | None:
    """Returns a row's figure; None of another harness's of which no items are known."""
    figure = row.figure(column)
    return figure.value if figure and not row.cells[column.id].is_unseen else None


def _scale(rows: Sequence[BoardRow], column: Column) -> tuple[float, float] | None:
    """Returns the ends of a column's scale; None where it has none, or a row's figure shows that it is another.

    A scale is known by the metric's name alone, which a user may give to marks or to per cent.
    """
    cells = [row.cells[column.id] for row in rows if column.id in row.cells]
    scale = scale_of(column.primary.name, detail_of(cells[0].score)) if cells else None
    if scale is None or scale.low is None or scale.high is None:
        return None
    values = [f.value for row in rows if (f := row.figure(column)) and f.value is not None]
    return (scale.low, scale.high) if all(scale.low <= value <= scale.high for value in values) else None


def _leading(board: Leaderboard) -> Column | None:
    """Returns the column that rows are ordered by: of groups if there are any, the one that most rows have, the first.

    A rule that is no judge, items that some training data touches left out, and a task of which only the first items
    were scored: such columns lead only where there is nothing else.
    """
    filled = {column.id: sum(_seen_value(row, column) is not None for row in board.rows) for column in board.columns}
    seen = [column for column in board.columns if filled[column.id]] or list(board.columns)
    whole = [c for c in seen if not c.stamp and not c.clean and c.limit is None] or seen
    some = [column for column in whole if column.group] or whole
    return max(some, key=lambda column: filled[column.id], default=None)


def _paired(mine: Items, theirs: Items, share: float) -> compare.Difference | None:
    """Compares two rows on the items that both have; None where those are less than a share of either's."""
    if mine.keys == theirs.keys:  # as a rule, and much faster than looking each one up
        return compare.paired_difference(mine.values, theirs.values, mine.clusters)
    place = {key: i for i, key in enumerate(theirs.keys)}
    both = np.array([i for i, key in enumerate(mine.keys) if key in place], dtype=np.int64)
    if len(both) < max(2, share * max(len(mine.keys), len(theirs.keys))):
        return None
    ours, others = mine.only(both), theirs.only(np.array([place[mine.keys[i]] for i in both]))
    return compare.paired_difference(ours.values, others.values, ours.clusters) if ours and others else None


def _against_half(
    figure: Figure | None, items: Items | None, sign: int
) -> tuple[compare.Difference | None, _Method | None]:
    """Compares a win rate with the half that two equal players would share, by prompt where preferences are known."""
    if figure is None or figure.value is None or not figure.metric.startswith("win_rate"):
        return None, None
    if items is not None:
        less_half = sign * (items.values - 0.5)
        return compare.paired_difference(less_half, 0 * less_half, items.clusters), "win rate"
    value = sign * (figure.value - 0.5)
    return compare.unpaired_difference(value, figure.stderr, 0.0, 0.0, figure.n or 0), "win rate"


def _pick(column: Column, rows: Sequence[BoardRow], items: ItemsOf) -> Pick | None:
    """Chooses the best row of a column on one half of its items; None of fewer than three rows, or of ratios."""
    held = {row.id: found for row in rows if (found := items(row, column)) is not None}
    if len(held) < _FEWEST or any(found.recompute for found in held.values()):
        return None  # a half's ratio of sums is no mean of what each document adds to the whole's
    scores: dict[str, dict[Hashable, float]] = {
        name: dict(zip(found.keys, found.values.tolist(), strict=True)) for name, found in held.items()
    }
    first = next(iter(held.values()))
    clusters: dict[Hashable, Hashable] | None = (
        dict(zip(first.keys, first.clusters, strict=True)) if first.clusters else None
    )
    up = column.primary.higher_is_better
    found = select(scores, clusters, higher_is_better=up, scale=_scale(rows, column))
    if found is None or found.items < _SHARED * max(len(one.keys) for one in held.values()):
        return None
    rest = found.reported
    numbers = (found.chosen, rest.value, rest.low, rest.high, found.whole)
    return Pick(column.id, found.name, *numbers, found.candidates, found.items)
