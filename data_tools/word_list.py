"""Lists of words and phrases, and which of many texts hold them: as whole words, whatever their case."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import DataError
from .ngrams import Words, ngrams, split_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

BUILT_IN = {"profanity": "profanity_en.txt", "identity": "identity_terms_en.txt"}
"""Lists that come with posttrain, by name."""


@dataclass(frozen=True)
class WordList:
    """Words and phrases to be looked for.

    Attributes:
        entries: As the list has them.
        hashes: By number of words, the hashes of the entries of so many words and their places, sorted by hash.
    """

    entries: Sequence[str]
    hashes: "dict[int, tuple[NDArray[np.uint64], Integers]]"

    @classmethod
    def of(cls, entries: Sequence[str]) -> "WordList":
        """Makes a list of entries, each once; those without words are left out."""
        words = split_words(entries)
        sizes, wholes = (
            words.counts,
            [_ngrams_of(words, int(size)) for size in range(int(words.counts.max(initial=0)) + 1)],
        )
        hashes = {}
        for size in np.unique(sizes[sizes > 0]).tolist():
            found, bounds = wholes[size]
            places = np.flatnonzero(sizes == size)
            distinct, first = np.unique(found[bounds[places]], return_index=True)
            hashes[size] = (distinct, places[first])
        return cls(entries, hashes)

    @classmethod
    def read(cls, name: str) -> "WordList":
        """Reads a file of one entry a line, `#` before remarks, or a list of :data:`BUILT_IN`.

        Raises:
            DataError: There is no such file, it is no text, or holds no words.
        """
        path = path_of(name)
        try:
            lines = path.read_text("utf-8").split("\n")
        except OSError as error:
            hint = f"a file of one word or phrase a line, or one of: {', '.join(BUILT_IN)}"
            raise DataError(f"cannot be read: {error.strerror or error}", where=name, hint=hint) from error
        except UnicodeDecodeError as error:
            raise DataError(f"is no UTF-8 text: {error.reason}", where=name) from error
        made = cls.of([line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")])
        if not made.hashes:
            raise DataError("holds no words", where=name)
        return made

    def find(self, texts: Sequence[str]) -> tuple["Integers", "Integers"]:
        """Returns each place where an entry stands: the numbers of the texts in order, and those of the entries."""
        words = split_words(texts)
        owners, entries = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for size, (hashes, places) in self.hashes.items():
            found, bounds = _ngrams_of(words, size)
            at = np.searchsorted(hashes, found)
            is_entry = np.append(hashes, 0)[at] == found
            owners.append(np.searchsorted(bounds, np.flatnonzero(is_entry), "right") - 1)
            entries.append(places[at[is_entry]])
        numbers, which = np.concatenate(owners), np.concatenate(entries)
        order = np.lexsort((which, numbers))
        return numbers[order], which[order]


def path_of(name: str) -> Path:
    """Returns the file of a list, its own path or one of :data:`BUILT_IN`."""
    return Path(__file__).with_name(BUILT_IN[name]) if name in BUILT_IN else Path(name).expanduser()


def _ngrams_of(words: Words, size: int) -> "tuple[NDArray[np.uint64], Integers]":
    return (words.hashes, words.bounds) if size == 1 else ngrams(words, max(size, 1))
