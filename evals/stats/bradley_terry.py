"""Ratings from battles: the Bradley-Terry model, with ties, intervals by prompt, and how far players lie apart.

Bradley and Terry, "Rank analysis of incomplete block designs: I. The method of paired comparisons", Biometrika 39
(1952): ``P(i beats j) = 1 / (1 + exp(theta_j - theta_i))``. Ratings are on Elo's scale, ``400 / ln 10`` points to a
unit of theta, so that 400 points are odds of ten to one (Elo, "The Rating of Chessplayers, Past and Present" (1978)).
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import EvalError
from .bootstrap import resample
from .classification import sigmoid
from .compare import Difference, from_error
from .intervals import Floats, Integers, codes, widening

SCALE = 400 / math.log(10)
MEAN = 1000.0
DRAWS = 1000
PRIOR = 0.001
"""Precision of the normal prior on theta: a deviation of 32, or 5,493 points. It moves a rating of a hundred
battles by a ten-thousandth of its distance from the mean, and keeps that of a player who never lost finite."""
_STEPS, _TOLERANCE = 200, 1e-9
_CELLS = 1 << 18
_DEFINED = 0.9  # of the resamples must hold a player
_TAIL = 0.025
_MANY = 20_000  # clusters from which on those of one battle are merged by what they hold
_DENSE = 20_000_000  # cells of a table that may be held in full: 80 MB
_CHUNK = 4_000_000  # weights drawn at a time


@dataclass(frozen=True)
class Ranking:
    """Players from best to worst; every tuple is in that order.

    Attributes:
        names: The players.
        rating: Elo points; the mean of the players with a finite rating is 1,000.
        low: Lower ends of the 95% intervals. None where there is none: a player that never won, or resamples that say
            nothing, such as of nothing but ties.
        high: Upper ends. None of a player that never lost.
        notices: What a reader must know, such as who never lost.
        differences: How far the first of two players lies above the second, in points, for all pairs of which the
            resamples say so; players that won or lost every battle are in none. Who is better is for a page to say,
            which judges all that it shows as one family.
    """

    names: tuple[Any, ...]
    rating: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    notices: tuple[str, ...]
    differences: dict[tuple[Any, Any], Difference]


@dataclass(frozen=True)
class BattleCounts:
    """Sufficient statistics, by unit of resampling.

    Attributes:
        names: The players, in the order of their first battle.
        first: For each pair that met, the number of the one, int ``[pairs]``.
        second: The number of the other.
        met: How often each pair met, ``[pairs]``.
        won: What ``first`` scored in that, ``[pairs]``.
        table: ``[units, pairs + players]``: how often each pair met, then what each player scored (a win 1, a tie .5);
            float32, or a scipy CSR matrix; None if nothing is to be resampled.
        times: How many clusters each unit stands for, ``[units]``.
        clusters: How many clusters there are.
        present: In how many clusters each player occurs, ``[players]``.
    """

    names: tuple[Any, ...]
    first: "Integers"
    second: "Integers"
    met: "Floats"
    won: "Floats"
    table: Any
    times: "Integers"
    clusters: int
    present: "Integers"

    def scored(self) -> "Floats":
        """Returns what each player scored, ``[players]``."""
        return self.by_player(self.won, self.met - self.won)

    def by_player(self, first: "Floats", second: "Floats") -> "Floats":
        """Adds up what pairs hold for each side, ``[pairs]`` each, to ``[players]``."""
        players = len(self.names)
        added = np.bincount(self.first, first, players) + np.bincount(self.second, second, players)
        return added.astype(np.float64)

    def resamples(self, draws: int, seed: int) -> "Iterator[tuple[Floats, Floats]]":
        """Yields how often pairs met and what players scored in resamples of whole clusters, with replacement.

        ``[some, pairs]`` and ``[some, players]``, float64.
        """
        rng = np.random.default_rng(seed)
        units = len(self.times)
        plain = units == self.clusters
        chunk = max(1, _CHUNK // units)
        for at in range(0, draws, chunk):
            rows = min(chunk, draws - at)
            if plain:
                weights = resample(rng, units, rows)
            else:  # clusters that hold the same are drawn together
                weights = rng.multinomial(self.clusters, self.times / self.clusters, size=rows)
            # float32 counts exactly up to 2^24, and halves the time of the product that everything else waits for.
            summed = np.asarray(weights.astype(np.float32) @ self.table, dtype=np.float64)
            yield summed[:, : len(self.first)], summed[:, len(self.first) :]


def count(
    a: "Sequence[Hashable] | NDArray[Any]",
    b: "Sequence[Hashable] | NDArray[Any]",
    preference: "ArrayLike",
    clusters: "Sequence[Hashable] | NDArray[Any] | None",
    *,
    resampled: bool = True,
) -> BattleCounts:
    """Counts battles by pair and cluster.

    Args:
        a: The one player of each battle, ``[n]``.
        b: The other.
        preference: How much ``a`` is preferred, in [0, 1], ``[n]``.
        clusters: The prompt of each battle, ``[n]``; None takes each by itself.
        resampled: Whether to count by cluster too, which takes most of the time; else there is no table.

    Raises:
        ValueError: Arrays differ in length, are empty, hold a preference out of range or a player against itself.
    """
    score = np.asarray(preference, dtype=np.float64)
    n = len(score)
    if score.ndim != 1 or not n or len(a) != n or len(b) != n:
        raise ValueError("needs two players and a preference for each battle, and one battle or more")
    if not ((score >= 0) & (score <= 1)).all():
        raise ValueError("a preference lies outside [0, 1]")
    names, one, other = _players(a, b, n)
    if (one == other).any():
        raise ValueError("a player against itself")
    cluster, many = _numbered(clusters, n)
    low, high = np.minimum(one, other), np.maximum(one, other)
    met, pair = _pairs(low * len(names) + high, len(names))
    won = np.where(one == low, score, 1 - score)  # what the lower number scored
    table, times = None, np.empty(0, dtype=np.int64)
    if resampled:
        unit, times = _units(pair, won, cluster, many)
        table = _table(pair, won, unit, len(times), low, high, (len(met), len(names)), times)
    present = _present(one, other, cluster, many, len(names))
    often, scored = (np.bincount(pair, weights).astype(np.float64) for weights in (None, won))
    return BattleCounts(names, met // len(names), met % len(names), often, scored, table, times, many, present)


def _players(a: Any, b: Any, n: int) -> "tuple[tuple[Any, ...], Integers, Integers]":
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype.kind in "iu" and b.dtype.kind in "iu":
        together, many = _numbered(np.concatenate([a, b]), 2 * n)
        names = np.empty(many, dtype=np.int64)
        names[together] = np.concatenate([a, b])
        return tuple(names.tolist()), together[:n], together[n:]
    numbers: dict[Hashable, int] = {}
    one = np.fromiter((numbers.setdefault(name, len(numbers)) for name in a), dtype=np.int64, count=n)
    other = np.fromiter((numbers.setdefault(name, len(numbers)) for name in b), dtype=np.int64, count=n)
    return tuple(numbers), one, other


def _numbered(labels: Any, n: int) -> "tuple[Integers, int]":
    """Numbers labels from 0; small whole numbers by a table, which takes a tenth of the time."""
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and len(labels) == n > 0:
        low, high = int(labels.min()), int(labels.max())
        if low >= 0 and high < 4 * n + 1000:
            seen = np.bincount(labels, minlength=high + 1) > 0
            return (np.cumsum(seen) - 1)[labels], int(seen.sum())
    return codes(labels, n)


def _pairs(key: "Integers", players: int) -> "tuple[Integers, Integers]":
    """Returns the pairs that met and which of them each battle was; of few players without sorting the battles."""
    if players**2 > _DENSE:
        met, pair = np.unique(key, return_inverse=True)
        return met, pair.ravel()
    seen = np.bincount(key, minlength=players**2) > 0
    return np.flatnonzero(seen), (np.cumsum(seen) - 1)[key]


def _units(pair: "Integers", won: "Floats", cluster: "Integers", many: int) -> "tuple[Integers, Integers]":
    """Returns the unit of each battle and how many clusters each unit stands for.

    Clusters of one battle with the same pair and outcome are one unit where there are very many: drawing among them
    is drawing a multinomial, which gives the same distribution for a fraction of the work.
    """
    if many < _MANY:
        return cluster, np.ones(many, dtype=np.int64)
    single = np.bincount(cluster, minlength=many)[cluster] == 1
    scores, score = np.unique(won[single], return_inverse=True)
    kind, kinds = _numbered(pair[single] * len(scores) + score.ravel(), int(single.sum()))
    unit = np.empty(len(pair), dtype=np.int64)
    unit[single] = kind
    rest, units = _numbered(cluster[~single], int((~single).sum()))
    unit[~single] = kinds + rest
    return unit, np.concatenate([np.bincount(kind, minlength=kinds), np.ones(units, dtype=np.int64)])


def _table(
    pair: "Integers",
    won: "Floats",
    unit: "Integers",
    units: int,
    low: "Integers",
    high: "Integers",
    shape: tuple[int, int],
    times: "Integers",
) -> Any:
    """Sums battles up by unit; a unit that stands for many clusters gets what one of them holds."""
    pairs, players = shape
    columns = pairs + players
    share = 1.0 / times[unit]
    if units * columns <= _DENSE:
        weights = None if len(times) and times.max() == 1 else share
        met = np.bincount(unit * pairs + pair, weights, units * pairs).reshape(units, pairs)
        scored = np.bincount(unit * players + low, weights=share * won, minlength=units * players)
        scored += np.bincount(unit * players + high, weights=share * (1 - won), minlength=units * players)
        return np.concatenate([met, scored.reshape(units, players)], axis=1).astype(np.float32)
    from scipy.sparse import coo_array

    rows = np.concatenate([unit, unit, unit])
    places = np.concatenate([pair, pairs + low, pairs + high])
    values = np.concatenate([share, share * won, share * (1 - won)]).astype(np.float32)
    return coo_array((values, (rows, places)), shape=(units, columns)).tocsr()


def _present(one: "Integers", other: "Integers", cluster: "Integers", many: int, players: int) -> "Integers":
    key = np.concatenate([one * many + cluster, other * many + cluster])
    if players * many > 5 * _DENSE:
        return np.bincount(np.unique(key) // many, minlength=players)
    held = np.zeros(players * many, dtype=bool)
    held[key] = True
    return held.reshape(players, many).sum(axis=1)


def standing(better: "NDArray[np.bool_]") -> tuple[list[int], list[int], list[int]]:
    """Returns the tier, the best rank and the worst of players, best first, from who is better than whom.

    Args:
        better: Whether the one is better than the other, ``[players, players]``.
    """
    tiers, head = [1], 0
    for player in range(1, len(better)):
        if better[head, player]:
            head = player
        tiers.append(tiers[-1] + (head == player))
    above, below = better.sum(axis=0), better.sum(axis=1)
    return tiers, [1 + int(count) for count in above], [len(better) - int(count) for count in below]


def fit(
    a: "Sequence[Hashable] | NDArray[Any]",
    b: "Sequence[Hashable] | NDArray[Any]",
    preference: "ArrayLike",
    clusters: "Sequence[Hashable] | NDArray[Any] | None" = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Ranking:
    """Fits ratings to battles by maximum likelihood, under a prior too weak to be seen (:data:`PRIOR`).

    A tie counts as half a win for each, and a preference of .7 as .7 of a win: the estimating equations then say that
    each player's expected score is its actual one, which holds whatever ties mean. Intervals are percentiles over
    resamples of whole prompts, widened for few of them (:func:`~.intervals.widened`). Differences have standard errors
    over the same resamples (Student's t, corrected for few prompts alike).

    Args:
        a: The one player of each battle, ``[n]``.
        b: The other.
        preference: How much ``a`` is preferred, in [0, 1], ``[n]``.
        clusters: The prompt of each battle, ``[n]``; None takes each by itself.
        draws: Resamples; 0 for no intervals and no differences.
        seed: Of the resamples. The result depends on the order in which clusters first appear.

    Raises:
        EvalError: Players fall into groups that never met, so that no rating compares them.
        ValueError: Arrays differ in length or a value is out of range.
    """
    counts = count(a, b, preference, clusters, resampled=draws > 0)
    _check_connected(counts)
    met, scored = counts.met, counts.scored()
    theta = _newton(counts.first, counts.second, met[None], scored[None], np.zeros((1, len(scored))))[0]
    played = counts.by_player(met, met)
    unbeaten, winless = scored >= played * (1 - 1e-12), scored <= played * 1e-12
    bounded = ~(unbeaten | winless)
    # A rating that only the prior keeps finite must not move the mean, and with it everyone else's.
    base = np.flatnonzero(bounded if bounded.any() else np.ones_like(bounded))
    theta, replicates = _centred(counts, theta, base, draws, seed)
    low, high = _ends(theta, replicates, counts.clusters)
    for player in np.flatnonzero(~bounded):
        end = _one_sided(counts, theta, int(player), bool(unbeaten[player]))
        low[player], high[player] = (end, np.nan) if unbeaten[player] else (np.nan, end)
    order = sorted(range(len(theta)), key=lambda player: (-theta[player], str(counts.names[player])))
    place = {player: rank for rank, player in enumerate(order)}
    differences = {}
    for (i, j), found in _differences(counts, theta, replicates, bounded).items():
        first, second, seen = (i, j, found) if place[i] < place[j] else (j, i, found.turned())
        differences[counts.names[first], counts.names[second]] = seen
    low, high = (
        tuple(MEAN + SCALE * float(ends[player]) if math.isfinite(ends[player]) else None for player in order)
        for ends in (low, high)
    )
    names, rating = zip(*((counts.names[player], MEAN + SCALE * float(theta[player])) for player in order), strict=True)
    return Ranking(names, rating, low, high, _notices(counts, unbeaten, winless), differences)


def components(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[list[Hashable]]:
    """Returns the groups of players that battles connect, largest first: each can be rated by itself."""
    counts = count(a, b, np.full(len(a), 0.5), None, resampled=False)
    groups = sorted(_groups(counts), key=len, reverse=True)
    return [[counts.names[player] for player in group] for group in groups]


def posterior(wins: "Floats", met: "Floats", precision: float) -> "tuple[Floats, Floats]":
    """Returns ratings in natural units under a normal prior, and their covariance by Laplace's approximation.

    Args:
        wins: What i won of its battles with j, ties one half, ``[players, players]``, two players or more.
        met: How often they met, symmetric, ``[players, players]``.
        precision: Of the prior on each rating.

    Returns:
        ``[players]`` and ``[players, players]``.
    """
    first, second = np.triu_indices(len(met), 1)
    start = np.zeros((1, len(met)))
    theta = _newton(first, second, met[first, second][None], wins.sum(axis=1)[None], start, precision)[0]
    share = sigmoid(theta[:, None] - theta[None, :])
    curvature = met * share * (1 - share)
    information = np.diag(curvature.sum(axis=1) + precision) - curvature
    return theta, np.asarray(np.linalg.inv(information), dtype=np.float64)


def _newton(
    first: "Integers", second: "Integers", met: "Floats", scored: "Floats", start: "Floats", precision: float = PRIOR
) -> "Floats":
    """Maximises the likelihood once for each row.

    Newton's method, each step cut so that no difference of ratings moves by more than 1: within that the likelihood is
    sure to rise (Bach, "Self-concordant analysis for logistic regression", Electronic Journal of Statistics 4 (2010),
    proposition 1).

    Args:
        first: The one player of each pair that met, ``[pairs]``.
        second: The other.
        met: How often each pair met, ``[fits, pairs]``.
        scored: What each player scored, ``[fits, players]``.
        start: Where to start, ``[fits, players]``.
        precision: Of the normal prior on each rating.
    """
    players = start.shape[1]
    to_first, to_second = np.eye(players)[first], np.eye(players)[second]
    either = to_first + to_second
    theta, active = start.copy(), np.arange(len(start))
    for _ in range(_STEPS):
        now, times = theta[active], met[active]
        share = 1 / (1 + np.exp(now[:, second] - now[:, first]))
        expected = times * share
        gradient = scored[active] - expected @ to_first - (times - expected) @ to_second - precision * now
        curvature = expected * (1 - share)
        hessian = np.zeros((len(active), players, players))
        hessian[:, first, second] = hessian[:, second, first] = -curvature
        hessian[:, range(players), range(players)] = curvature @ either + precision
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        furthest = np.abs(step[:, first] - step[:, second]).max(axis=1)
        theta[active] = now + step / np.maximum(1.0, furthest)[:, None]
        active = active[furthest > _TOLERANCE]
        if not len(active):
            break
    return theta


def _centred(counts: BattleCounts, theta: "Floats", base: "Integers", draws: int, seed: int) -> "tuple[Floats, Floats]":
    """Fits resamples, then sets the zero of all; a player that a resample does not hold is NaN in it."""
    parts = []
    for met, scored in counts.resamples(draws, seed) if draws and counts.clusters > 1 else ():
        found = _newton(counts.first, counts.second, met, scored, np.broadcast_to(theta, scored.shape))
        held, seen = np.zeros(found.shape, dtype=bool), met > 0
        for player in range(len(theta)):
            held[:, player] = seen[:, (counts.first == player) | (counts.second == player)].any(axis=1)
        known = held[:, base].sum(axis=1, keepdims=True)
        zero = np.where(held[:, base], found[:, base], 0.0).sum(axis=1, keepdims=True) / np.maximum(known, 1)
        parts.append(np.where(held & (known > 0), found - zero, np.nan))
    replicates = np.concatenate(parts) if parts else np.empty((0, len(theta)))
    return theta - theta[base].mean(), replicates


def _ends(value: "Floats", replicates: "Floats", clusters: int) -> "tuple[Floats, Floats]":
    """Returns the widened percentile interval of each column; NaN where resamples lack it or know no spread."""
    if not len(replicates):
        return np.full(len(value), np.nan), np.full(len(value), np.nan)
    columns = np.ascontiguousarray(replicates.T)
    few = np.isfinite(columns).mean(axis=1) < _DEFINED
    columns[few] = 0.0
    quantile = np.quantile if np.isfinite(columns).all() else np.nanquantile
    low, high = quantile(columns, (_TAIL, 1 - _TAIL), axis=1)
    few |= high - low <= 1e-9
    factor = widening(clusters)
    low, high = value - factor * (value - low), value + factor * (high - value)
    return np.where(few, np.nan, low), np.where(few, np.nan, high)


def _one_sided(counts: BattleCounts, theta: "Floats", player: int, unbeaten: bool) -> float:
    """Returns the one end that a player who won (or lost) every battle has.

    The rating at which doing so has a probability of 2.5%, all others being what they are: Clopper and Pearson's bound,
    "The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika 26 (1934). Battles
    that share a prompt are counted as one.
    """
    ahead, behind = counts.first == player, counts.second == player
    times = np.concatenate([counts.met[ahead], counts.met[behind]])
    rivals = np.concatenate([theta[counts.second[ahead]], theta[counts.first[behind]]])
    times = times * min(1.0, counts.present[player] / times.sum())
    sign = 1.0 if unbeaten else -1.0
    low, high = float(rivals.min()) - 60.0, float(rivals.max()) + 60.0
    for _ in range(100):
        middle = (low + high) / 2
        chance = -float(times @ np.logaddexp(0.0, -sign * (middle - rivals)))
        if (chance < math.log(_TAIL)) == unbeaten:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _differences(
    counts: BattleCounts, theta: "Floats", replicates: "Floats", bounded: "NDArray[np.bool_]"
) -> dict[tuple[int, int], Difference]:
    """Returns how far the one of each pair lies above the other, in points, where resamples know a spread."""
    if not len(replicates):
        return {}
    one, other = np.triu_indices(len(theta), 1)
    kept = bounded[one] & bounded[other]
    one, other = one[kept], other[kept]
    apart = replicates[:, one] - replicates[:, other]
    defined = np.isfinite(apart).mean(axis=0) >= _DEFINED
    df = counts.clusters - 1
    spread = np.nanstd(np.where(defined, apart, 0.0), axis=0, ddof=1) * math.sqrt(counts.clusters / df)
    return {
        (i, j): from_error(SCALE * float(theta[i] - theta[j]), SCALE * float(error), counts.clusters, df, "bootstrap")
        for i, j, error, known in zip(one.tolist(), other.tolist(), spread, defined & (spread > 1e-9), strict=True)
        if known
    }


def _groups(counts: BattleCounts, arcs: "tuple[NDArray[np.int64], NDArray[np.int64]] | None" = None) -> list[list[int]]:
    """Returns the players that battles connect, or those that directed arcs connect in both directions."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    players = len(counts.names)
    ends = (counts.first, counts.second) if arcs is None else arcs
    graph = coo_array((np.ones(len(ends[0])), ends), shape=(players, players))
    number, label = connected_components(graph, directed=arcs is not None, connection="strong")
    return [np.flatnonzero(label == group).tolist() for group in range(number)]


def _some(counts: BattleCounts, group: list[int]) -> str:
    return ", ".join(str(counts.names[player]) for player in group[:3]) + (", …" if len(group) > 3 else "")


def _check_connected(counts: BattleCounts) -> None:
    groups = _groups(counts)
    if len(groups) > 1:
        shown = "; ".join(_some(counts, group) for group in groups[:4])
        raise EvalError(
            f"{len(groups)} groups of players never met, so no rating compares them: {shown}",
            hint="judge a few pairs across the groups, or rate each group by itself",
        )


def _notices(counts: BattleCounts, unbeaten: "NDArray[np.bool_]", winless: "NDArray[np.bool_]") -> tuple[str, ...]:
    """Says where the likelihood has its maximum at infinity.

    It is finite if and only if, however the players are split in two, each side has scored against the other (Ford,
    "Solution of a ranking problem from binary comparisons", American Mathematical Monthly 64 (1957)).
    """
    told = [
        f"{counts.names[player]} {word} every battle: its rating has only one end"
        for flags, word in ((unbeaten, "won"), (winless, "lost"))
        for player in np.flatnonzero(flags)
    ]
    above, below = counts.won > 0, counts.won < counts.met
    arcs = np.r_[counts.first[above], counts.second[below]], np.r_[counts.second[above], counts.first[below]]
    groups = [group for group in _groups(counts, arcs) if not (unbeaten | winless)[group].all()]
    if len(groups) > 1:
        shown = "; ".join(_some(counts, group) for group in groups[:4])
        told.append(f"between these groups one side won every battle, so how far apart they are is unknown: {shown}")
    return tuple(told)
