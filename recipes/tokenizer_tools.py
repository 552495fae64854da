"""The data tools that need tokenizers of models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data_tools.compare_tokenizers import CompareTokenizersSpec, Named


class CompareTokenizers(CompareTokenizersSpec):
    """Compares tokenizers on rows: tokens, bytes per token, tokens per word, vocabulary used, and what they lose.

    Numbers, code and odd characters are shown as each cuts them. Writes ``report.json`` and ``report.html``.
    """

    def open(self) -> list[Named]:
        """Loads the tokenizers, each by a name as short as tells them apart.

        Raises:
            PosttrainError: One cannot be found or read.
        """
        return load_tokenizers(self.tokenizers)

    def identity(self) -> Any:
        """Returns the hashes of the tokenizers' files, and what else the figures depend on."""
        return [super().identity(), *tokenizer_hashes(self.tokenizers)]


def load_tokenizers(names: Sequence[str]) -> list[Named]:
    """Loads the tokenizers of runs, folders or Hub ids; a folder is called by its own name, where no two have it.

    Raises:
        PosttrainError: One cannot be found or read.
    """
    from ..evals.models import load_tokenizer

    short = [Path(name).resolve().name if Path(name).is_dir() else name for name in names]
    shown = [one if short.count(one) == 1 else name for one, name in zip(short, names, strict=True)]
    return [Named(title, load_tokenizer(str(_folder(name)))[0]) for title, name in zip(shown, names, strict=True)]


def tokenizer_hashes(names: Sequence[str]) -> list[str]:
    """Returns the hashes of the tokenizers' files."""
    from ..evals.checkpoints import tokenizer_hash

    return [tokenizer_hash(_folder(name)) for name in names]


def _folder(name: str) -> Path:
    """Returns where a tokenizer is: in a folder of its own, as `data tokenizer` writes it, or beside a model."""
    from ..evals.runs import locate

    alone = Path(name)
    return alone if (alone / "tokenizer.json").is_file() else locate(name)
