"""Tokens hidden for masked language modelling: chosen, replaced and labelled as BERT's are (Devlin et al. 2019).

What a row's mask is depends on a seed, the epoch and the row's number alone: it changes from epoch to epoch, and is the
same for any batch, number of processes, and after a kill.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

IGNORED = -100
HELD_OUT = 0  # the stream of rows that are masked in the same way at every evaluation; epochs have those behind it


@dataclass(frozen=True)
class Masking:
    """How tokens are hidden (Devlin et al. 2019, section 3.1 and appendix A.1).

    Attributes:
        probability: With which a token is chosen, each for itself; 15% there.
        mask: The share of chosen tokens that become the mask token; 80% there.
        random: The share that become any token of the vocabulary, each as likely; 10% there. The rest stay.
        mask_id: The mask token.
        fixed: Whether a token of the vocabulary is never chosen, bool ``[vocabulary]``: special tokens are not.
        continues: Whether it goes on with the word of the token before it, likewise; None to choose each for itself.
        seed: Of the masks.
    """

    probability: float
    mask: float
    random: float
    mask_id: int
    fixed: "NDArray[np.bool_]"
    continues: "NDArray[np.bool_] | None" = None
    seed: int = 0

    def __call__(self, ids: "NDArray[np.int64]", row: int, epoch: int | None) -> "tuple[NDArray[np.int64], ...]":
        """Hides some tokens of a row.

        Args:
            ids: The row's tokens, int64 ``[tokens]``.
            row: Its number.
            epoch: In which it is read; None for held-out rows.

        Returns:
            What the model reads, and the chosen tokens where they stand with -100 elsewhere, int64 ``[tokens]`` each.
        """
        rng = np.random.default_rng([self.seed, HELD_OUT if epoch is None else HELD_OUT + 1 + epoch, row])
        drawn, how, words = rng.random(len(ids)), rng.random(len(ids)), rng.integers(len(self.fixed), size=len(ids))
        if self.continues is not None:  # a word is chosen with its first piece
            starts = np.where(self.continues[ids] & ~self.fixed[ids], -1, np.arange(len(ids)))
            drawn = drawn[np.maximum(np.maximum.accumulate(starts), 0)]
        chosen = (drawn < self.probability) & ~self.fixed[ids]
        read = np.where(chosen & (how < self.mask), self.mask_id, ids)
        read = np.where(chosen & (how >= self.mask) & (how < self.mask + self.random), words, read)
        return read, np.where(chosen, ids, IGNORED)


def fixed_tokens(tokenizer: Any) -> "NDArray[np.bool_]":
    """Returns which tokens of a tokenizer's vocabulary are special, bool ``[vocabulary]``."""
    fixed = np.zeros(len(tokenizer), bool)
    fixed[[token for token in tokenizer.all_special_ids if token is not None]] = True
    return fixed


def word_pieces(tokenizer: Any) -> "NDArray[np.bool_]":
    """Returns which tokens of a WordPiece vocabulary, written ``##ing``, go on with a word, bool ``[vocabulary]``."""
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return np.array([name is not None and len(name) > 2 and name.startswith("##") for name in names])
