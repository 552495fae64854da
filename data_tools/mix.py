"""Mixtures of sources: weights are shares of tokens, seeded, exact to one document."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Share:
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
class Mixture:
    """An order of documents over all sources.

    Attributes:
        source: The source of each document, ``[n]``.
        document: Its number in that source, ``[n]``.
        shares: One for each source.
    """

    source: Ints
    document: Ints
    shares: tuple[Share, ...]


def mix(
    lengths: Sequence[Any],
    weights: Sequence[float] | None,
    *,
    tokens: int | None,
    seed: int,
    temperature: float = 1.0,
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
      own order, then part of one more.

    The part of a pass is the start of a seeded permutation, cut where its tokens come nearest to what is missing:
    each source is off by at most half of one document. Sources are interleaved so that every beginning of the
    mixture, too, holds the shares to about one document.

    Args:
        lengths: For each source the tokens of its documents, ``[documents]``; a zero is never drawn.
        weights: One positive number for each source, in any unit, or None.
        tokens: Total budget, or None.
        temperature: Flattens the proportions of the sources, where there are no weights.
        seed: The same seed and lengths give the same mixture on every machine.

    Raises:
        DataError: A source has no tokens, or the budget gives no source as much as half a document.
    """
    sizes = [np.asarray(source, dtype=np.int64) for source in lengths]
    totals = np.array([source.sum() for source in sizes], dtype=np.float64)
    if not len(sizes) or not totals.all():
        missing = int(np.flatnonzero(totals == 0)[0]) if len(sizes) else 0
        raise DataError("no document is left to mix", where=f"source {missing}", hint="see why its rows were dropped")
    flattened = np.exp(np.log(totals / totals.max()) / temperature)
    proportions = flattened if weights is None else np.asarray(weights, dtype=np.float64)
    proportions = proportions / proportions.sum()
    budget = float(tokens) if tokens is not None else float((totals / proportions).min())
    drawn = [
        _draw(size, budget * share, np.random.SeedSequence([seed, number]))
        for number, (size, share) in enumerate(zip(sizes, proportions, strict=True))
    ]
    taken = np.array([sizes[number][drawn[number]].sum() for number in range(len(sizes))], dtype=np.int64)
    if taken.sum() == 0:
        raise DataError(f"a budget of {tokens} tokens gives no source half a document", hint="raise data.tokens")
    shares = tuple(
        Share(len(documents), int(count), float(count / total), float(target), float(count / taken.sum()))
        for documents, count, total, target in zip(drawn, taken, totals, proportions, strict=True)
    )
    return Mixture(*_interleave(sizes, drawn), shares)


def in_order(lengths: Sequence[Ints]) -> Mixture:
    """Takes the documents of all sources once, as they come; those of no tokens are left out."""
    kept = [np.flatnonzero(source) for source in lengths]
    totals = [int(source.sum()) for source in lengths]
    shares = [total / sum(totals) for total in totals]
    return Mixture(
        np.repeat(np.arange(len(kept)), [len(documents) for documents in kept]),
        np.concatenate(kept),
        tuple(Share(len(k), t, 1.0, s, s) for k, t, s in zip(kept, totals, shares, strict=True)),
    )


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
    reached = np.concatenate([[0], np.cumsum(sizes[parts[-1]])])
    parts[-1] = parts[-1][: int(np.abs(reached - missing).argmin())]
    return np.concatenate(parts)


def _interleave(sizes: Sequence[Ints], drawn: Sequence[Ints]) -> tuple[Ints, Ints]:
    """Orders the documents of all sources by the middle of each in its source's own run of tokens."""
    places = []
    for size, documents in zip(sizes, drawn, strict=True):
        taken = size[documents]
        places.append((np.cumsum(taken) - taken / 2) / max(int(taken.sum()), 1))
    order = np.argsort(np.concatenate(places), kind="stable")
    source = np.repeat(np.arange(len(drawn), dtype=np.int64), [len(documents) for documents in drawn])
    return source[order], np.concatenate(drawn)[order]
