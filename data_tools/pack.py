"""Packing: which pieces of which documents share a training row. Every token lands in exactly one row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .ragged import bounds_of, ranges

Ints = NDArray[np.int64]
Strategy = Literal["bfd", "bfd_split", "wrapped"]


@dataclass(frozen=True)
class Rows:
    """Rows made of pieces of documents, in order.

    Attributes:
        document: The document of each piece, ``[pieces]``.
        start: Its first token in that document, ``[pieces]``.
        length: Its tokens, ``[pieces]``.
        offsets: Row ``r`` is the pieces ``offsets[r]`` to ``offsets[r + 1]``, ``[rows + 1]``.
        joined: Whether the pieces of a row are one running text, and so one sequence to attend over.
    """

    document: Ints
    start: Ints
    length: Ints
    offsets: Ints
    joined: bool = False

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row_lengths(self) -> Ints:
        """Returns the tokens of each row, ``[rows]``."""
        return np.diff(bounds_of(self.length)[self.offsets])

    def fill(self, max_length: int) -> float:
        """Returns the share of ``rows x max_length`` positions that hold a token."""
        return float(self.length.sum() / (len(self) * max_length)) if len(self) else 0.0

    def take(self, order: Ints) -> "Rows":
        """Returns the rows in another order."""
        counts = np.diff(self.offsets)[order]
        pieces = ranges(self.offsets[:-1][order], counts)
        return Rows(self.document[pieces], self.start[pieces], self.length[pieces], bounds_of(counts), self.joined)


def in_batches(parts: Sequence[Rows], tokens: int, most: int) -> Iterator[list[Rows]]:
    """Yields the rows of every part in batches of about as many tokens, parts together, and of so many rows at most."""
    ends = np.cumsum(sum(part.row_lengths() for part in parts))
    begin = 0
    while begin < len(ends):
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + tokens, side="right")))
        numbers = np.arange(begin, min(end, begin + most))
        yield [part.take(numbers) for part in parts]
        begin += len(numbers)


def one_per_row(lengths: Any) -> Rows:
    """Makes every document, or a part of every example, a row of its own."""
    lengths = np.asarray(lengths, dtype=np.int64)
    numbers = np.arange(len(lengths) + 1)
    return Rows(numbers[:-1], np.zeros_like(lengths), lengths, numbers)


def split(lengths: Any, max_length: int) -> Rows:
    """Cuts every document into rows of ``max_length`` tokens and a shorter last one.

    A last row of a single token, on which nothing can be learnt, takes one more from the row before it.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    pieces = -(-lengths // max_length)
    document = np.repeat(np.arange(len(lengths)), pieces)
    start = ranges(np.zeros_like(pieces), pieces) * max_length
    if max_length > 2:
        start[(start > 0) & (lengths[document] - start == 1)] -= 1
    ends = np.append(start[1:], 0)
    last = np.cumsum(pieces)[pieces > 0] - 1
    ends[last] = lengths[pieces > 0]
    return Rows(document, start, ends - start, np.arange(len(document) + 1))


def pack(lengths: Any, max_length: int, strategy: Strategy, *, seed: int | None = None) -> Rows:
    """Packs documents into rows of at most ``max_length`` tokens.

    * ``bfd``: best-fit decreasing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", arXiv:2404.10830,
      section 3), documents whole;
    * ``bfd_split``: the same after cutting documents longer than a row into pieces, each attended to on its own;
    * ``wrapped``: documents end to end, cut every ``max_length`` tokens; the last row is shorter.

    Args:
        lengths: Tokens of each document, ``[documents]``; empty ones vanish.
        max_length: Tokens of a full row.
        strategy: One of the above.
        seed: Shuffles the rows of whole documents or pieces, which packing has sorted by length; None leaves them.

    Raises:
        ValueError: With ``bfd``, a document is longer than a row (too-long documents are decided on before packing).
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if strategy == "wrapped":
        return _wrap(lengths, max_length)
    if strategy == "bfd" and len(lengths) and lengths.max() > max_length:
        raise ValueError(f"a document of {lengths.max()} tokens does not fit into rows of {max_length}")
    pieces = split(lengths, max_length)
    placed, bins = best_fit_decreasing(pieces.length, max_length)
    order = placed[np.argsort(bins, kind="stable")]
    counts = np.bincount(bins) if len(bins) else np.zeros(0, dtype=np.int64)
    rows = Rows(pieces.document[order], pieces.start[order], pieces.length[order], bounds_of(counts))
    return rows if seed is None else rows.take(np.random.default_rng([seed, len(rows)]).permutation(len(rows)))


_WINDOWS = 64  # of the whole set, so that an order along it shows
_WINDOW_ROWS = (8, 256)  # enough documents for full rows; enough windows for an order


def pack_in_order(lengths: Any, max_length: int, strategy: Strategy, begins: Any) -> Rows:
    """Packs documents so that the order of the rows is that of the documents.

    Where rows are filled with the documents that fit best, those are looked for among neighbours: in windows of a 64th
    of all tokens, but of 8 to 256 rows. The rows of a window are sorted by the mean place of their tokens.

    Args:
        lengths: As ``pack`` takes them, like the next two.
        max_length: Tokens of a full row.
        strategy: How rows are filled.
        begins: Documents that no window reaches across, ``[n]``, such as the first of each phase of a schedule.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if strategy == "wrapped" or not lengths.any():
        return pack(lengths, max_length, strategy)
    ends = np.cumsum(lengths)
    rows = int(np.clip(ends[-1] // max_length // _WINDOWS, *_WINDOW_ROWS))
    inner = np.searchsorted(ends, np.arange(0, ends[-1], rows * max_length), side="right")
    cuts = np.unique(np.concatenate([[0], inner, np.asarray(begins, dtype=np.int64), [len(lengths)]]))
    packed = []
    for begin, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        window = pack(lengths[begin:end], max_length, strategy)
        if not len(window):
            continue
        places = np.add.reduceat(window.document * window.length, window.offsets[:-1]) / window.row_lengths()
        window = window.take(np.argsort(places, kind="stable"))
        packed.append((window.document + begin, window.start, window.length, np.diff(window.offsets)))
    document, start, length, counts = (np.concatenate(parts) for parts in zip(*packed, strict=True))
    return Rows(document, start, length, bounds_of(counts))


def best_fit_decreasing(lengths: Ints, capacity: int) -> tuple[Ints, Ints]:
    """Puts items, longest first, each into the fullest bin that still holds it.

    Items of one length are placed together: the fullest bin with room ``s`` takes ``s // length`` of them in a row, as
    it stays the fullest. The work is one array operation per pair of a length and a room in use, not per item.

    Args:
        lengths: Between 1 and ``capacity``, ``[items]``.
        capacity: Room of an empty bin.

    Returns:
        The items in the order in which they were placed, and the bin of each, both ``[items]``.
    """
    placed = np.argsort(-lengths, kind="stable")
    bins = np.empty(len(lengths), dtype=np.int64)
    room: dict[int, list[Ints]] = {}  # bins by the room left, the oldest first
    used = np.zeros(capacity + 1, dtype=bool)
    distinct, first = np.unique(-lengths[placed], return_index=True)
    bounds = [*first.tolist(), len(lengths)]
    opened = 0

    def put(space: int, new: Ints) -> None:
        if space > 0 and len(new):
            room.setdefault(space, []).append(new)
            used[space] = True

    for number, length in enumerate((-distinct).tolist()):
        at, end = bounds[number], bounds[number + 1]
        spaces = (np.flatnonzero(used[length:]) + length).tolist()
        for space in [*spaces, capacity]:
            each = space // length
            needed = -(-(end - at) // each)
            if space == capacity:
                chosen = np.arange(opened, opened + needed)
                opened += needed
            else:
                waiting = np.concatenate(room.pop(space))
                used[space] = False
                chosen, rest = waiting[:needed], waiting[needed:]
                put(space, rest)
            count = min(end - at, each * len(chosen))
            bins[at : at + count] = np.repeat(chosen, each)[:count]
            last = count - each * (len(chosen) - 1)
            put(space - each * length, chosen[:-1] if last < each else chosen)
            if last < each:
                put(space - last * length, chosen[-1:])
            at += count
            if at == end:
                break
    return placed, bins


def _wrap(lengths: Ints, max_length: int) -> Rows:
    """Cuts the running text of all documents every ``max_length`` tokens."""
    document = np.flatnonzero(lengths)
    ends = np.cumsum(lengths[document])
    total = int(ends[-1]) if len(ends) else 0
    rows = np.append(np.arange(0, total, max_length), total)
    if max_length > 2 and total > 1 and total % max_length == 1:
        rows[-2] -= 1  # a row of one token would teach nothing
    cuts = np.union1d(np.concatenate([[0], ends]), rows)
    begins = cuts[:-1]
    owner = np.searchsorted(ends, begins, side="right")
    start = begins - (ends - lengths[document])[owner] if len(ends) else begins
    return Rows(document[owner], start, np.diff(cuts), np.searchsorted(cuts, rows), joined=True)
