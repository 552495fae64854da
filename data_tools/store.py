"""Tokens on the disk: the examples of a source as flat files, mapped into memory, and finished rows made of them."""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .examples import PARTS
from .pack import Rows
from .ragged import bounds_of, ranges

if TYPE_CHECKING:
    from .dataset import DataReport
    from .mix import Mixture
    from .spec import Kind

IDS, LOSS, LENGTHS, WHERE = "ids.int32", "loss.uint8", "lengths.int64", "where.txt"
FIELDS, ENDS, NUMBERS = "fields.json", "fields.int64", "numbers.float64"

SOURCE_COLUMNS = ("sources", "source_lengths")  # of documents, lists
SOURCE_COLUMN = "source_number"  # of other rows

Lengths = NDArray[np.int64]


class StoreWriter:
    """Appends documents to a folder; five bytes a token and about thirty a document."""

    def __init__(self, folder: Path):
        self._files = [(folder / name).open("wb") for name in (IDS, LOSS, LENGTHS, WHERE, FIELDS, ENDS, NUMBERS)]
        self._at = 0

    def append(
        self,
        ids: NDArray[np.int32],
        loss: NDArray[np.uint8],
        lengths: NDArray[np.int64],
        where: list[str],
        fields: Sequence[str] = (),
        numbers: Sequence[Sequence[float]] = (),
    ) -> None:
        """Appends documents that lie end to end in ``ids`` and ``loss``.

        Args:
            ids: Token ids, ``[tokens]``.
            loss: 1 where a token carries loss, ``[tokens]``.
            lengths: Tokens of each document, ``[documents]``.
            where: Where each document came from.
            fields: The further columns of each example, a JSON object; none for documents.
            numbers: What each example is weighed and ordered by, ``[examples, columns]``; none if by nothing.
        """
        if not (len(ids) == len(loss) == lengths.sum() and len(lengths) == len(where)):
            raise ValueError("ids, loss, lengths and where do not fit together")
        places = "".join(place.replace("\n", " ") + "\n" for place in where).encode()
        objects = [text.encode() for text in fields]
        ends = self._at + np.cumsum([len(text) for text in objects], dtype=np.int64)
        self._at = int(ends[-1]) if len(ends) else self._at
        arrays = (ids.astype("<i4"), loss.astype("u1"), lengths.astype("<i8"))
        parts = (
            *(array.tobytes() for array in arrays),
            places,
            b"".join(objects),
            ends.astype("<i8").tobytes(),
            np.array(numbers, dtype="<f8").tobytes(),
        )
        for file, part in zip(self._files, parts, strict=True):
            file.write(part)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        for file in self._files:
            file.close()


@dataclass(frozen=True)
class Store:
    """Documents to read.

    Attributes:
        folder: Where they lie.
        ids: Token ids, mapped, ``[tokens]``.
        loss: 1 where a token carries loss, mapped, ``[tokens]``.
        lengths: Tokens of each document, ``[documents]``.
        starts: Its first token in ``ids``, ``[documents]``.
    """

    folder: Path
    ids: NDArray[np.int32]
    loss: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """Maps a folder that ``StoreWriter`` wrote."""
        lengths = np.fromfile(folder / LENGTHS, dtype="<i8")
        return cls(folder, _map(folder / IDS, "<i4"), _map(folder / LOSS, "u1"), lengths, np.cumsum(lengths) - lengths)

    def learns(self, documents: NDArray[np.int64], length: int) -> NDArray[np.bool_]:
        """Says of each document whether, cut to ``length`` tokens, a token after its first carries loss."""
        kept = np.minimum(self.lengths[documents], length) - 1
        result = np.zeros(len(documents), dtype=bool)
        for begin in range(0, len(documents), 256):  # bounds the memory: rows can be long
            part = slice(begin, begin + 256)
            loss = self.loss[self.places(documents[part], 1, np.maximum(kept[part], 0))]
            result[part] = np.diff(bounds_of(loss)[bounds_of(np.maximum(kept[part], 0))]) > 0
        return result

    def fields(self, examples: Iterable[int]) -> list[dict[str, Any]]:
        """Reads the further columns of some examples."""
        objects, edges = self._objects
        return [json.loads(objects[edges[number] : edges[number + 1]].tobytes()) for number in examples]

    @functools.cached_property
    def _objects(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return _map(self.folder / FIELDS, "u1"), np.concatenate([[0], np.fromfile(self.folder / ENDS, dtype="<i8")])

    def places(self, documents: NDArray[np.int64], start: Any, length: Any) -> NDArray[np.int64]:
        """Returns where in ``ids`` and ``loss`` the tokens of pieces of some documents lie, end to end."""
        return ranges(self.starts[documents] + start, length)

    def where(self, documents: list[int]) -> Iterator[str]:
        """Yields where each of some documents, in ascending order, came from."""
        wanted = iter(documents)
        number = next(wanted, None)
        with (self.folder / WHERE).open(encoding="utf-8") as handle:
            for at, line in enumerate(handle):
                while number == at:
                    yield line.rstrip("\n")
                    number = next(wanted, None)
                if number is None:
                    return


def _map(path: Path, dtype: str) -> Any:
    """Maps a file of numbers; an empty file, which cannot be mapped, is an empty array."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype=dtype)


@dataclass(frozen=True)
class Examples:
    """The tokenised examples of a source.

    Attributes:
        store: Their tokens; each part of an example is a document of its own.
        report: What was dropped on the way to them.
        parts: Parts of an example.
        per_row: Examples that each row became.
        types: For each further column the types of value found, with where each was found first.
        truncated: Examples that have been cut already.
        columns: The columns of numbers that are kept of each example.
    """

    store: Store
    report: "DataReport"
    parts: int = 1
    per_row: int = 1
    types: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    truncated: int = 0
    columns: tuple[str, ...] = ()

    def numbers(self, column: str) -> NDArray[np.float64]:
        """Returns the numbers that the examples have in a column, ``[examples]``."""
        values = np.fromfile(self.store.folder / NUMBERS, dtype="<f8").reshape(-1, len(self.columns))
        return values[:, self.columns.index(column)]

    @property
    def lengths(self) -> Lengths:
        """Tokens of each part, ``[examples, parts]``."""
        return self.store.lengths.reshape(-1, self.parts)

    def ids(self, example: int, part: int, length: int) -> NDArray[np.int32]:
        """Returns the first tokens of a part of an example."""
        start = int(self.store.starts[example * self.parts + part])
        return self.store.ids[start : start + length]


def write_arrow(
    path: Path,
    kind: "Kind | None",
    batches: Iterable[Sequence[Rows]],
    mixture: "Mixture",
    sources: Sequence[Examples],
    types: Mapping[str, Any],
    *,
    packed: bool,
    by_source: bool,
) -> tuple[list[int], int, set[bool]]:
    """Writes batches of finished rows, each the rows of every part of the examples of a mixture, as an Arrow stream.

    With ``by_source`` a row of documents also says from which ``sources`` its pieces are, of ``source_lengths`` tokens
    each; another row the ``source_number``.

    Returns:
        For each source its tokens that carry loss, of documents, or else those of its answers; how many documents carry
        none; and the labels found, of kind ``unpaired``.
    """
    import pyarrow as pa

    lists = PARTS[kind] if kind != "prompt" else ()  # prompts are tokenised again where they are answered
    if kind is None:
        lists += ("labels", "seq_lengths") if packed else ("labels",)
        lists += SOURCE_COLUMNS if by_source else ()
    number = [(SOURCE_COLUMN, pa.int32())] if by_source and kind is not None else []
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in lists] + list(types.items()) + number)
    loss_tokens = np.zeros(len(sources), dtype=np.int64)
    labels: set[bool] = set()
    without = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for here in batches:
            owners = [mixture.source[part.document] for part in here]
            if kind is None:
                columns, with_loss = _document_columns(here[0], mixture, sources)
                columns = columns if packed else columns[:2]
                if by_source:
                    pieces = np.diff(here[0].offsets)
                    columns += [_lists(pieces, of.astype(np.int32)) for of in (owners[0], here[0].length)]
                loss_tokens += np.bincount(np.repeat(owners[0], here[0].length)[with_loss], minlength=len(sources))
                starts = np.cumsum(here[0].row_lengths()) - here[0].row_lengths()
                without += int((np.add.reduceat(with_loss, starts, dtype=np.int64) == 0).sum())
            else:
                columns = [
                    _lists(part.length, _gather(part, number, mixture, sources, "ids"))
                    for number, part in enumerate(here[: len(lists)])
                ]
                for part, owner in zip(here[1:], owners[1:], strict=True):
                    np.add.at(loss_tokens, owner, part.length)
                columns += _field_arrays(sources, owners[0], mixture.document[here[0].document], types)
                labels |= set(columns[-1].to_pylist()) if kind == "unpaired" else set()
                columns += [pa.array(owners[0].astype(np.int32))] if by_source else []
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return loss_tokens.tolist(), without, labels


def _document_columns(
    part: Rows, mixture: "Mixture", sources: Sequence[Examples]
) -> tuple[list[Any], NDArray[np.bool_]]:
    """Makes ``input_ids``, ``labels`` and ``seq_lengths`` of some rows; also says which tokens carry loss."""
    sequences = part.row_lengths() if part.joined else part.length
    per_row = np.ones(len(part), dtype=np.int64) if part.joined else np.diff(part.offsets)
    ids = _gather(part, 0, mixture, sources, "ids")
    with_loss = _gather(part, 0, mixture, sources, "loss").astype(bool)
    with_loss[np.cumsum(sequences) - sequences] = False  # what precedes the first token is another sequence
    labels = np.where(with_loss, ids, np.int32(-100))
    lists = [_lists(part.row_lengths(), values) for values in (ids, labels)]
    return [*lists, _lists(per_row, sequences.astype(np.int32))], with_loss


def _gather(
    part: Rows, number: int, mixture: "Mixture", sources: Sequence[Examples], column: Literal["ids", "loss"]
) -> Any:
    """Collects ids or loss of the tokens of one part of the examples of some rows, ``[tokens]``."""
    values = np.empty(int(part.length.sum()), dtype=np.int32)
    owners, documents = mixture.source[part.document], mixture.document[part.document]
    for owner, source in enumerate(sources):
        mine = owners == owner
        there = source.store.places(documents[mine] * source.parts + number, part.start[mine], part.length[mine])
        values[np.repeat(mine, part.length)] = getattr(source.store, column)[there]
    return values


def _lists(lengths: Lengths, values: NDArray[np.int32]) -> Any:
    """Makes an Arrow column of lists."""
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(bounds_of(lengths).astype(np.int32)), pa.array(values))


def _field_arrays(
    sources: Sequence[Examples], owner: Lengths, document: Lengths, types: Mapping[str, Any]
) -> list[Any]:
    """Collects the further columns of some examples."""
    import pyarrow as pa

    if not types:
        return []
    values: list[dict[str, Any]] = [{}] * len(owner)
    for number, examples in enumerate(sources):
        mine = np.flatnonzero(owner == number)
        for place, fields in zip(mine.tolist(), examples.store.fields(document[mine]), strict=True):
            values[place] = fields
    columns = []
    for name, kind in types.items():
        column = [fields.get(name) for fields in values]
        if kind == pa.json_():
            texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in column]
            columns.append(pa.ExtensionArray.from_storage(kind, pa.array(texts, pa.string())))
        else:
            columns.append(pa.array(column, kind))
    return columns
