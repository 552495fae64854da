"""The texts of many rows: read once and kept on the disk, with what is known of each; a killed pass goes on."""

import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .files import write_atomic
from .progress import progress_shown
from .ragged import bounds_of
from .row_tool import text_blocks
from .sources import Row
from .spec import SourceSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Describe = Callable[[Sequence[tuple[str, str]]], Mapping[str, NDArray[Any]]]
    Flags = NDArray[np.bool_]

_BOUNDS, _WHERE = "text bounds", "where"


class KeptTexts:
    """The usable texts of sources, in order, each with what a tool finds out about it.

    Args:
        folder: Takes two files for each block of rows.
        sources: The sources.
        readers: For each what gives the text of a row, or those of its turns; it raises RowError.
        describe: Gives arrays about the texts of a block, each behind where it is, of shape (texts, …) each; not asked
            again for the blocks of a killed call.
        doing: What the progress is called.

    Attributes:
        blocks: Of each block the number of its source, and how many texts it has.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[SourceSpec],
        readers: "Sequence[Callable[[Row], str | list[str]]]",
        describe: "Describe",
        doing: str,
    ):
        self._folder = folder
        self._found: dict[str, list[NDArray[Any]]] = {}
        self.blocks: list[tuple[int, int]] = []
        with progress_shown(doing) as advance:
            for number, (source, read) in enumerate(zip(sources, readers, strict=True)):
                for block in text_blocks(source, read):
                    self._add(block, describe)
                    self.blocks.append((number, len(block)))
                    advance(len(block))
        if not self.blocks:
            self._add([], describe)

    def _path(self, block: int) -> Path:
        return self._folder / f"{block:06}.npz"

    def _add(self, block: Sequence[tuple[str, str]], describe: "Describe") -> None:
        path = self._path(len(self.blocks))
        if not path.exists():
            texts = [text.encode(errors="surrogatepass") for _, text in block]
            where = "\0".join(where for where, _ in block).encode(errors="surrogateescape")
            arrays: Any = {
                **describe(block),
                _BOUNDS: bounds_of(np.fromiter(map(len, texts), np.int64, len(texts))),
                _WHERE: np.frombuffer(where, np.uint8),
            }
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)
            write_atomic(path.with_suffix(".txt"), b"".join(texts))  # before what says that the block is there
            write_atomic(path, buffer.getvalue())
        with np.load(path) as loaded:
            for name in loaded.files:
                if name not in (_BOUNDS, _WHERE):
                    self._found.setdefault(name, []).append(loaded[name])

    def __len__(self) -> int:
        """Returns how many texts there are."""
        return sum(count for _, count in self.blocks)

    def found(self, name: str) -> "NDArray[Any]":
        """Returns what was found of all texts under a name, shape (texts, …)."""
        parts = self._found[name]
        return np.concatenate([part for part in parts if len(part)] or parts[:1])

    def read(self, wanted: "Flags") -> Iterator[tuple[int, int, str, str]]:
        """Yields some texts: their numbers, the numbers of their sources, where they are, and the texts."""
        first = 0
        for block, (source, count) in enumerate(self.blocks):
            places = np.flatnonzero(wanted[first : first + count]).tolist()
            if places:
                with np.load(self._path(block)) as loaded:
                    bounds = loaded[_BOUNDS].tolist()
                    where = loaded[_WHERE].tobytes().decode(errors="surrogateescape").split("\0")
                data = self._path(block).with_suffix(".txt").read_bytes()
                for place in places:
                    text = data[bounds[place] : bounds[place + 1]].decode(errors="surrogatepass")
                    yield first + place, source, where[place], text
            first += count

    def batches(self, size: int, wanted: "Flags | None" = None) -> Iterator[tuple[int, list[tuple[str, str]]]]:
        """Yields all or some texts, so many at a time, each behind where it is, and how many came before them."""
        rows = self.read(np.ones(len(self), bool) if wanted is None else wanted)
        first = 0
        while batch := [(where, text) for _, _, where, text in itertools.islice(rows, size)]:
            yield first, batch
            first += len(batch)

    def pick(self, numbers: "Sequence[int] | NDArray[np.int64]") -> dict[int, tuple[str, str]]:
        """Returns some texts by number, each behind where it is."""
        wanted = np.zeros(len(self), bool)
        wanted[np.asarray(numbers, np.int64)] = True
        return {number: (where, text) for number, _, where, text in self.read(wanted)}
