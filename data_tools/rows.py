"""Tokenised sources to finished rows: long documents decided on, mixed, packed and written to Arrow."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .dataset import DataReport
from .errors import DataError
from .mix import Mixture, Share, mix
from .pack import Rows, Strategy, one_per_row, pack, ranges, split
from .store import Store
from .summary import PreparedReport, SourceSummary
from .tokens import NO_LOSS

TOO_LONG = "longer than max_length"
WRITE_TOKENS = 1 << 20


@dataclass(frozen=True)
class Plan:
    """How rows are made of documents; whatever it holds is part of the key under which rows are cached.

    Attributes:
        max_length: Tokens of a row; None for no bound.
        packing: How documents share rows; None for one document a row.
        too_long: What happens to a document longer than a row, unless the packing cuts it without loss.
        mixed: Whether documents are mixed and shuffled; otherwise all come once, in order.
        weights: See ``mix.mix``.
        tokens: See ``mix.mix``.
        seed: Of the mixture and of the order of packed rows.
    """

    max_length: int | None
    packing: Strategy | None
    too_long: Literal["drop", "truncate", "split", "error"]
    mixed: bool
    weights: tuple[float, ...] | None = None
    tokens: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Tokenised:
    """The tokens of a source, and what was dropped on the way to them."""

    store: Store
    report: DataReport


@dataclass(frozen=True)
class _Fitted:
    """A source after the decision on long rows: tokens of each document (0: not used), and how many were cut."""

    lengths: NDArray[np.int64]
    truncated: int = 0


def _fit(source: Tokenised, plan: Plan) -> _Fitted:
    """Decides on documents longer than a row; what is dropped is added to the source's report."""
    lengths, limit = source.store.lengths, plan.max_length
    if limit is None or plan.packing in ("bfd_split", "wrapped"):
        return _Fitted(lengths)
    long = np.flatnonzero(lengths > limit)
    if not len(long):
        return _Fitted(lengths)
    action = plan.too_long
    if action == "error" or (action == "split" and source.report.kind != "text"):
        where = next(source.store.where([int(long[0])]))
        what = f"{len(long)} rows are longer than {limit} tokens (the first has {lengths[long[0]]})"
        if action == "split":
            what += f", and only text can be split, not {source.report.kind}"
        raise DataError(what, where=where, hint="raise max_length, or set data.too_long to drop or truncate")
    fitted = lengths.copy()
    if action == "split":
        return _Fitted(fitted)
    if action == "drop":
        _drop(source, long, fitted, TOO_LONG)
        return _Fitted(fitted)
    fitted[long] = limit
    _drop(source, long[~source.store.learns(long, limit)], fitted, NO_LOSS)
    return _Fitted(fitted, truncated=int((fitted[long] > 0).sum()))


def _drop(source: Tokenised, documents: NDArray[np.int64], lengths: NDArray[np.int64], reason: str) -> None:
    """Takes documents out and counts them."""
    if not len(documents):
        return
    report = source.report
    tokens = source.store.lengths
    lengths[documents] = 0
    report.kept -= len(documents)
    report.dropped[reason] = report.dropped.get(reason, 0) + len(documents)
    examples = report.examples.setdefault(reason, [])
    for number, where in zip(documents, source.store.where(documents[: 3 - len(examples)].tolist()), strict=False):
        examples.append(f"{where}: {tokens[number]} tokens{' (data.too_long: drop)' if reason == TOO_LONG else ''}")


def order(plan: Plan, lengths: Sequence[NDArray[np.int64]]) -> Mixture:
    """Mixes training documents; takes evaluation documents as they come, those of no length left out."""
    if plan.mixed:
        return mix(lengths, plan.weights, tokens=plan.tokens, seed=plan.seed)
    kept = [np.flatnonzero(source) for source in lengths]
    source = np.repeat(np.arange(len(kept)), [len(documents) for documents in kept])
    totals = [int(source.sum()) for source in lengths]
    shares = [total / sum(totals) for total in totals]
    return Mixture(
        source,
        np.concatenate(kept),
        tuple(Share(len(k), t, 1.0, s, s) for k, t, s in zip(kept, totals, shares, strict=True)),
    )


def _lay_out(plan: Plan, lengths: NDArray[np.int64]) -> Rows:
    """Makes rows of the documents of a mixture."""
    if plan.packing is None:
        return one_per_row(lengths) if plan.max_length is None else split(lengths, plan.max_length)
    assert plan.max_length is not None
    strategy = "bfd_split" if plan.packing == "bfd" and plan.too_long == "split" else plan.packing
    rows = pack(lengths, plan.max_length, strategy)
    if plan.mixed and not rows.joined:  # packing has sorted by length; a trainer may read in order
        rows = rows.take(np.random.default_rng([plan.seed, len(rows)]).permutation(len(rows)))
    return rows


def write_rows(plan: Plan, sources: Sequence[Tokenised], path: Path, max_bad_share: float) -> PreparedReport:
    """Writes the rows of all sources to an Arrow stream.

    Args:
        plan: How to make them.
        sources: The documents; rows dropped here are added to the sources' reports.
        path: The file to write.
        max_bad_share: The largest share of a source's rows that may be dropped in all.

    Raises:
        DataError: Too many rows are too long, or one is that must not be.
    """
    fitted = [_fit(source, plan) for source in sources]
    for source in sources:
        source.report.check(max_bad_share)
    mixture = order(plan, [source.lengths for source in fitted])
    lengths = np.zeros(len(mixture.source), dtype=np.int64)
    for number, source in enumerate(fitted):
        mine = mixture.source == number
        lengths[mine] = source.lengths[mixture.document[mine]]
    rows = _lay_out(plan, lengths)
    loss_tokens, without = _write_arrow(rows, mixture, [source.store for source in sources], path, plan.packing)
    summaries = tuple(
        SourceSummary(
            name=source.report.source,
            kind=str(source.report.kind),
            rows=source.report.rows,
            kept=source.report.kept,
            dropped=source.report.dropped,
            examples=source.report.examples,
            truncated=fit.truncated,
            loss_tokens=loss,
            unread=source.report.unread,
            turns=source.report.turns,
            literal=source.report.literal,
            **asdict(share),
        )
        for source, fit, share, loss in zip(sources, fitted, mixture.shares, loss_tokens, strict=True)
    )
    fill = rows.fill(plan.max_length) if plan.packing and plan.max_length else None
    return PreparedReport(summaries, len(rows), int(rows.length.sum()), sum(loss_tokens), fill, without)


def _write_arrow(
    rows: Rows, mixture: Mixture, stores: Sequence[Store], path: Path, packing: Strategy | None
) -> tuple[list[int], int]:
    """Writes rows in batches of about a million tokens; returns loss tokens per source and rows without any."""
    import pyarrow as pa

    integers = pa.list_(pa.int32())
    fields = {"input_ids": integers, "labels": integers} | ({"seq_lengths": integers} if packing else {})
    loss_tokens = [0] * len(stores)
    without = 0
    ends = np.cumsum(rows.row_lengths())
    begin = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, pa.schema(list(fields.items()))) as writer:
        while begin < len(rows):
            before = int(ends[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + WRITE_TOKENS, side="right")))
            part = rows.take(np.arange(begin, end))
            sequences = part.row_lengths() if part.joined else part.length
            per_row = np.ones(len(part), dtype=np.int64) if part.joined else np.diff(part.offsets)
            ids, labels, source = _gather(part, mixture, stores)
            labels[np.cumsum(sequences) - sequences] = -100
            with_loss = labels != -100
            for number in range(len(stores)):
                loss_tokens[number] += int((with_loss & (source == number)).sum())
            offsets = np.concatenate([[0], np.cumsum(part.row_lengths())])
            without += int((np.add.reduceat(with_loss, offsets[:-1], dtype=np.int64) == 0).sum())
            columns = [list_array(offsets, ids), list_array(offsets, labels)]
            if packing:
                columns.append(list_array(np.concatenate([[0], np.cumsum(per_row)]), sequences.astype(np.int32)))
            writer.write_batch(pa.record_batch(columns, names=list(fields)))
            begin = end
    return loss_tokens, without


def _gather(
    part: Rows, mixture: Mixture, stores: Sequence[Store]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int16]]:
    """Collects ids, labels and the number of the source of every token of some rows, ``[tokens]`` each."""
    total = int(part.length.sum())
    ids, labels = np.empty(total, dtype=np.int32), np.empty(total, dtype=np.int32)
    source = np.repeat(mixture.source[part.document].astype(np.int16), part.length)
    target = np.cumsum(part.length) - part.length
    for number, store in enumerate(stores):
        mine = np.flatnonzero(mixture.source[part.document] == number)
        if not len(mine):
            continue
        documents = mixture.document[part.document[mine]]
        there = ranges(store.starts[documents] + part.start[mine], part.length[mine])
        here = ranges(target[mine], part.length[mine])
        tokens = store.ids[there]
        ids[here] = tokens
        labels[here] = np.where(store.loss[there], tokens, -100)
    return ids, labels, source


def list_array(offsets: NDArray[np.int64], values: NDArray[np.int32]) -> Any:
    """Makes an Arrow list column."""
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))
