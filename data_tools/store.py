"""Tokenised documents of one source, or parts of its examples, as flat files that are mapped into memory."""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .pack import ranges

IDS, LOSS, LENGTHS, WHERE = "ids.int32", "loss.uint8", "lengths.int64", "where.txt"
FIELDS, ENDS = "fields.json", "fields.int64"


class StoreWriter:
    """Appends documents to a folder; five bytes a token and about thirty a document."""

    def __init__(self, folder: Path):
        self._files = [(folder / name).open("wb") for name in (IDS, LOSS, LENGTHS, WHERE, FIELDS, ENDS)]
        self._at = 0

    def append(
        self,
        ids: NDArray[np.int32],
        loss: NDArray[np.uint8],
        lengths: NDArray[np.int64],
        where: list[str],
        fields: Sequence[str] = (),
    ) -> None:
        """Appends documents that lie end to end in ``ids`` and ``loss``.

        Args:
            ids: Token ids, ``[tokens]``.
            loss: 1 where a token carries loss, ``[tokens]``.
            lengths: Tokens of each document, ``[documents]``.
            where: Where each document came from.
            fields: The further columns of each example, a JSON object; none for documents.
        """
        if not (len(ids) == len(loss) == lengths.sum() and len(lengths) == len(where)):
            raise ValueError("ids, loss, lengths and where do not fit together")
        places = "".join(place.replace("\n", " ") + "\n" for place in where).encode()
        objects = [text.encode() for text in fields]
        ends = self._at + np.cumsum([len(text) for text in objects], dtype=np.int64)
        self._at = int(ends[-1]) if len(ends) else self._at
        numbers = (ids.astype("<i4"), loss.astype("u1"), lengths.astype("<i8"))
        parts = (*(array.tobytes() for array in numbers), places, b"".join(objects), ends.astype("<i8").tobytes())
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
            edges = np.cumsum(np.maximum(kept[part], 0))
            total = np.concatenate([[0], np.cumsum(loss, dtype=np.int64)])
            result[part] = np.diff(total[np.concatenate([[0], edges])]) > 0
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
