"""Mixtures of sources: weights are shares of tokens, seeded, exact to one document; and the documents' order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .ragged import bounds_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SourceShare:
    """What a mixture took from one source.

    Attributes:
        documents: Documents taken, repetitions counted.
        tokens: Their tokens.
        epochs: Tokens taken over the source's tokens; above 1 means that documents repeat.
        target: The share of the mixture's tokens that was asked for.
        share: The share that was reached.
    """

    documents: int
    tokens: int
    epochs: float
    target: float
    share: float


@dataclass(frozen=True)
class Phase:
    """A part of a run in which the sources' shares of tokens stay as they are, or go evenly from some to others.

    Attributes:
        share: Its part of all tokens, relative to the other phases.
        start: The sources' weights where it begins, in any unit, ``[sources]``.
        end: Their weights where it ends, ``[sources]``.
    """

    share: float
    start: tuple[float, ...]
    end: tuple[float, ...]


@dataclass(frozen=True)
class PhaseShares:
    """What a phase of a mixture holds.

    Attributes:
        documents: Its documents.
        tokens: Their tokens.
        target: The shares of its tokens that were asked for, ``[sources]``.
        share: The shares that were reached, ``[sources]``.
    """

    documents: int
    tokens: int
    target: tuple[float, ...]
    share: tuple[float, ...]


@dataclass(frozen=True)
class Mixture:
    """An order of documents over all sources.

    Attributes:
        source: The source of each document, ``[n]``.
        document: Its number in that source, ``[n]``.
        shares: One for each source.
        phases: One for each phase, whose documents follow each other; empty without a schedule.
    """

    source: Ints
    document: Ints
    shares: tuple[SourceShare, ...]
    phases: tuple[PhaseShares, ...] = ()

    def begins(self) -> Ints:
        """Returns the first document of each phase, ``[phases]``."""
        counts = np.array([phase.documents for phase in self.phases], dtype=np.int64)
        return np.cumsum(counts) - counts


class MixSchedule:
    """Shares of the sources as a function of the share of tokens that has gone by, linear in each phase.

    Args:
        phases: In order; every source has a weight above 0 somewhere.
    """

    def __init__(self, phases: Sequence[Phase]):
        lengths = np.array([phase.share for phase in phases], dtype=np.float64)
        self._lengths = lengths / lengths.sum()
        ends = [np.array([getattr(p, name) for p in phases], dtype=np.float64) for name in ("start", "end")]
        self._start, self._end = (weights / weights.sum(axis=1, keepdims=True) for weights in ends)
        taken = (self._start + self._end) / 2 * self._lengths[:, None]
        self._before = np.concatenate([np.zeros((1, taken.shape[1])), np.cumsum(taken, axis=0)])
        self.edges = np.concatenate([[0.0], np.cumsum(self._lengths)])

    @property
    def proportions(self) -> Floats:
        """Each source's share of all tokens, ``[sources]``."""
        return self._before[-1]

    @property
    def targets(self) -> Floats:
        """Each source's share of the tokens of each phase, ``[phases, sources]``."""
        return (self._start + self._end) / 2

    def places(self, source: int, fractions: Floats) -> Floats:
        """Returns how much of the run has gone by where a source has given some fractions of its tokens.

        In a phase of length l whose share goes from a to b, what the source has given after u of it is
        ``a u + (b - a) u^2 / 2 l``; this is solved for u, in the form that loses no digits where a and b are alike.

        Args:
            source: The number of the source.
            fractions: Between 0 and 1, ``[documents]``.
        """
        amounts = fractions * self.proportions[source]
        before = self._before[:, source]
        phase = np.clip(np.searchsorted(before, amounts, side="left") - 1, 0, len(self._lengths) - 1)
        given = np.maximum(amounts - before[phase], 0.0)
        first, last, length = self._start[phase, source], self._end[phase, source], self._lengths[phase]
        root = np.sqrt(np.maximum(first**2 + 2 * (last - first) / length * given, 0.0))
        gone = np.divide(2 * given, first + root, out=np.zeros_like(given), where=first + root > 0)
        return self.edges[phase] + np.minimum(gone, length)


def mix(
    lengths: Sequence[Any],
    weights: Sequence[float] | None,
    *,
    tokens: int | None,
    seed: int,
    temperature: float = 1.0,
    row_weights: Sequence[Any] | None = None,
    phases: Sequence[Phase] = (),
) -> Mixture:
    """Draws a mixture of documents whose shares of tokens are the weights.

    How much is taken:

    * no weights, no budget: every document once;
    * no weights, a budget: every source in proportion to its own size;
    * weights, no budget: the largest mixture of these shares in which no document repeats, so one source is taken
      whole and the others in part;
    * a temperature T instead of weights: as with weights that are the sources' own tokens to the power 1/T (Arivazhagan
      et al. 2019, arXiv:1907.05019, section 3.2), so that 1 leaves the proportions and a large one makes all alike;
    * weights and a budget: the budget times the share. A source shorter than that repeats: whole passes, each in its
      own order, then part of one more;
    * phases: as with weights that are the phases' mean shares.

    The part of a pass is the start of a seeded permutation, cut where its tokens come nearest to what is missing:
    each source is off by at most half of one document. Sources are interleaved so that every beginning of the
    mixture, too, holds the shares to about one document; with phases, the shares that the schedule has up to there.

    A document with a weight of its own is taken in proportion to it: that often on average where its source is taken
    whole, and as many times more or less often as the source has to give more or less. A mean of 2.3 is two or three
    times: which documents get one more is drawn with the fractions as chances, by Pareto sampling (Rosén 1997, "On
    sampling with probability proportional to size", section 3) cut by tokens as above.

    Args:
        lengths: For each source the tokens of its documents, ``[documents]``; a zero is never drawn.
        weights: One positive number for each source, in any unit, or None.
        tokens: Total budget, or None.
        temperature: Flattens the proportions of the sources, where there are no weights.
        seed: The same seed and lengths give the same mixture on every machine.
        row_weights: For each source a number from 0 up for each of its documents, ``[documents]``, or None for 1.
        phases: Shares that change along the mixture, in place of weights and temperature.

    Raises:
        DataError: A source has no tokens, or the budget gives no source as much as half a document.
    """
    sizes = [np.asarray(source, dtype=np.int64) for source in lengths]
    given: list[Any] = list(row_weights) if row_weights is not None else [None] * len(sizes)
    rows = [None if numbers is None else np.asarray(numbers, dtype=np.float64) for numbers in given]
    totals = np.array(
        [size.sum() if row is None else size @ row for size, row in zip(sizes, rows, strict=True)], dtype=np.float64
    )
    if not len(sizes) or not totals.all():
        missing = int(np.flatnonzero(totals == 0)[0]) if len(sizes) else 0
        raise DataError("no document is left to mix", where=f"source {missing}", hint="see why its rows were dropped")
    schedule = MixSchedule(phases) if phases else None
    if schedule is not None:
        proportions = schedule.proportions
    elif weights is not None:
        proportions = np.asarray(weights, dtype=np.float64)
    else:
        proportions = np.exp(np.log(totals / totals.max()) / temperature)
    proportions = proportions / proportions.sum()
    budget = float(tokens) if tokens is not None else float((totals / proportions).min())
    drawn = []
    for number, (size, row, share) in enumerate(zip(sizes, rows, proportions, strict=True)):
        source_seed = np.random.SeedSequence([seed, number])
        target = budget * share
        drawn.append(
            _draw(size, target, source_seed) if row is None else _draw_weighted(size, row, target, source_seed)
        )
    taken = np.array([sizes[number][drawn[number]].sum() for number in range(len(sizes))], dtype=np.int64)
    if taken.sum() == 0:
        raise DataError(f"a budget of {tokens} tokens gives no source half a document", hint="raise data.tokens")
    held = [size.sum() for size in sizes]
    shares = tuple(
        SourceShare(len(documents), int(count), float(count / total), float(target), float(count / taken.sum()))
        for documents, count, total, target in zip(drawn, taken, held, proportions, strict=True)
    )
    return _interleave(sizes, drawn, shares, schedule)


def in_order(lengths: Sequence[Ints]) -> Mixture:
    """Takes the documents of all sources once, as they come; those of no tokens are left out."""
    kept = [np.flatnonzero(source) for source in lengths]
    totals = [int(source.sum()) for source in lengths]
    shares = [total / sum(totals) for total in totals]
    return Mixture(
        np.repeat(np.arange(len(kept)), [len(documents) for documents in kept]),
        np.concatenate(kept),
        tuple(SourceShare(len(k), t, 1.0, s, s) for k, t, s in zip(kept, totals, shares, strict=True)),
    )


def as_given(mixture: Mixture) -> Mixture:
    """Puts what a mixture took in the order of the sources and of their rows, a second pass behind the first."""
    order = np.lexsort((mixture.document, mixture.source))
    source, document = mixture.source[order], mixture.document[order]
    again = np.ones(len(order), dtype=bool)
    again[1:] = (source[1:] == source[:-1]) & (document[1:] == document[:-1])
    again[:1] = False
    numbers = np.arange(len(order))
    passes = numbers - np.maximum.accumulate(np.where(again, 0, numbers))
    order = order[np.lexsort((document, passes, source))]
    return replace(mixture, source=mixture.source[order], document=mixture.document[order])


def sort_by(mixture: Mixture, values: Sequence[Any], *, descending: bool) -> Mixture:
    """Sorts the documents of a mixture by a number; those of one number stay in the order that they had.

    Args:
        mixture: The documents.
        values: For each source the numbers of its documents, ``[documents]``.
        descending: The largest first.
    """
    keys = np.empty(len(mixture.source), dtype=np.float64)
    for number, numbers in enumerate(values):
        mine = mixture.source == number
        keys[mine] = np.asarray(numbers, dtype=np.float64)[mixture.document[mine]]
    order = np.argsort(-keys if descending else keys, kind="stable")
    return replace(mixture, source=mixture.source[order], document=mixture.document[order])


def _draw(sizes: Ints, target: float, seed: np.random.SeedSequence) -> Ints:
    """Draws whole passes over a source and the part of one more that comes nearest to ``target`` tokens."""
    filled = np.flatnonzero(sizes)
    total = float(sizes.sum())
    passes = int(target // total)
    if total - target % total < 1e-6 * total:  # the rounding of a share that asks for a whole pass
        passes += 1
    streams = [np.random.default_rng(child) for child in seed.spawn(passes + 1)]
    parts = [filled[stream.permutation(len(filled))] for stream in streams]
    missing = max(target - passes * total, 0.0)
    parts[-1] = _nearest(sizes, parts[-1], missing)
    return np.concatenate(parts)


def _draw_weighted(sizes: Ints, weights: Floats, target: float, seed: np.random.SeedSequence) -> Ints:
    """Draws documents in proportion to their weights, in all as near to ``target`` tokens as a document allows."""
    stream = np.random.default_rng(seed)
    means = np.where(sizes > 0, weights, 0.0) * (target / float(sizes @ weights))
    copies = np.floor(means + 1e-9).astype(np.int64)
    parts = means - copies
    unsure = np.flatnonzero(parts > 1e-9)
    uniform, chance = stream.random(len(unsure)), parts[unsure]
    ranks = uniform * (1 - chance) / ((1 - uniform) * chance)
    copies[_nearest(sizes, unsure[np.argsort(ranks, kind="stable")], target - float(copies @ sizes))] += 1
    documents = np.repeat(np.arange(len(sizes)), copies)
    # the copies of a document lie apart: one in each of as many equal parts of the source's run
    copy = np.arange(len(documents)) - np.repeat(np.cumsum(copies) - copies, copies)
    places = (copy + stream.random(len(documents))) / copies[documents]
    return documents[np.argsort(places, kind="stable")]


def _nearest(sizes: Ints, documents: Ints, target: float) -> Ints:
    """Returns the beginning of some documents whose tokens come nearest to a number."""
    reached = bounds_of(sizes[documents])
    return documents[: int(np.abs(reached - target).argmin())]


def _interleave(
    sizes: Sequence[Ints], drawn: Sequence[Ints], shares: tuple[SourceShare, ...], schedule: MixSchedule | None
) -> Mixture:
    """Orders the documents of all sources by the middle of each in its source's own run of tokens.

    With a schedule, that is the place in the whole run at which the source is to have given so much.
    """
    places = []
    for number, (size, documents) in enumerate(zip(sizes, drawn, strict=True)):
        taken = size[documents]
        middles = (np.cumsum(taken) - taken / 2) / max(int(taken.sum()), 1)
        places.append(middles if schedule is None else schedule.places(number, middles))
    order = np.argsort(np.concatenate(places), kind="stable")
    source = np.repeat(np.arange(len(drawn), dtype=np.int64), [len(documents) for documents in drawn])
    mixture = Mixture(source[order], np.concatenate(drawn)[order], shares)
    if schedule is None:
        return mixture
    taken = np.concatenate([size[documents] for size, documents in zip(sizes, drawn, strict=True)])[order]
    inner = schedule.edges[1:-1]
    cuts = [0, *np.searchsorted(np.concatenate(places)[order], inner, side="left").tolist(), len(order)]
    phases = []
    for begin, end, target in zip(cuts, cuts[1:], schedule.targets, strict=False):
        counts = np.bincount(mixture.source[begin:end], weights=taken[begin:end], minlength=len(drawn))
        total = int(counts.sum())
        phases.append(PhaseShares(end - begin, total, tuple(target.tolist()), tuple((counts / max(total, 1)).tolist())))
    return replace(mixture, phases=tuple(phases))
