"""Tokens are hidden in the shares that the paper names, anew in each epoch, and the same after a kill."""

from typing import Any

import numpy as np
import pytest
import torch
from posttrain.data_tools.masking import IGNORED, Masking, fixed_tokens, word_pieces

from ..encoders import wordpiece_tokenizer

SIZE = 400
FIXED = np.arange(SIZE) < 5
MASK = 4
BERT = Masking(0.15, 0.8, 0.1, MASK, FIXED)
MASKS_ALONE = Masking(0.3, 1.0, 0.0, MASK, FIXED)


def ids_of(tokens: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(SIZE, size=tokens)


def shares(ids: Any, read: Any, labels: Any) -> dict[str, tuple[int, int]]:
    """What became of tokens: counts, each of how many."""
    chosen = labels != IGNORED
    masked = read[chosen] == MASK
    changed = (read[chosen] != ids[chosen]) & ~masked
    return {
        "chosen": (int(chosen.sum()), int((~FIXED[ids]).sum())),
        "masked": (int(masked.sum()), int(chosen.sum())),
        "random": (int(changed.sum()), int(chosen.sum())),
    }


def assert_share(found: tuple[int, int], expected: float) -> None:
    """Holds a count to a binomial share by four and a half standard deviations: one in 150,000 such tests fails."""
    count, of = found
    assert abs(count - of * expected) <= 4.5 * max(1.0, (of * expected * (1 - expected)) ** 0.5), (found, expected)


@pytest.mark.parametrize("masking", [BERT, MASKS_ALONE], ids=["bert", "masks alone"])
def test_shares_are_those_of_the_definition_and_of_transformers_collator(masking: Masking) -> None:
    """Of a random token one in 400 is the token itself and one the mask, so .1 - .1/400 differ from both."""
    from transformers import DataCollatorForLanguageModeling

    ids = ids_of(200_000)
    tokenizer = wordpiece_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(SIZE - len(tokenizer))])
    assert len(tokenizer) == SIZE
    assert (fixed_tokens(tokenizer)[:SIZE] == FIXED).all()
    collator = DataCollatorForLanguageModeling(
        tokenizer,
        mlm_probability=masking.probability,
        mask_replace_prob=masking.mask,
        random_replace_prob=masking.random,
        seed=0,
    )
    theirs: Any = collator.torch_mask_tokens(torch.from_numpy(ids[None].copy()), torch.from_numpy(FIXED[ids][None]))
    for read, labels in (masking(ids, 0, 0), [one[0].numpy() for one in theirs]):
        found = shares(ids, read, labels)
        assert_share(found["chosen"], masking.probability)
        assert_share(found["masked"], masking.mask + masking.random / SIZE)
        assert_share(found["random"], masking.random * (SIZE - 2) / SIZE)
        assert (labels[labels != IGNORED] == ids[labels != IGNORED]).all()
        assert (read[labels == IGNORED] == ids[labels == IGNORED]).all()
        assert not FIXED[ids[labels != IGNORED]].any()


def test_random_tokens_are_drawn_from_the_whole_vocabulary_alike() -> None:
    masking = Masking(0.5, 0.0, 1.0, MASK, FIXED)
    read, labels = masking(np.full(400_000, 7), 0, 0)
    counts = np.bincount(read[labels != IGNORED], minlength=SIZE)
    expected = counts.sum() / SIZE
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - (SIZE - 1)) < 4.5 * (2 * (SIZE - 1)) ** 0.5


def test_a_mask_depends_on_seed_epoch_and_row_and_on_nothing_else() -> None:
    ids = ids_of(200)

    def labels(row: int = 3, epoch: int | None = 1, seed: int = 0) -> list[int]:
        np.random.seed(row)  # what the process has drawn before is of no account
        return Masking(0.3, 0.8, 0.1, MASK, FIXED, seed=seed)(ids, row, epoch)[1].tolist()

    assert labels() == labels()
    others = [labels(), labels(row=4), labels(epoch=2), labels(epoch=None), labels(seed=1)]
    assert len({tuple(one) for one in others}) == 5


def test_whole_words_are_chosen_whole_with_the_same_share_of_tokens() -> None:
    tokenizer = wordpiece_tokenizer()
    continues = word_pieces(tokenizer)
    assert continues.any()
    assert not continues[fixed_tokens(tokenizer)].any()
    ids = np.array(tokenizer("hello numbers emoji question answer quick brown foxes " * 4000)["input_ids"])
    masking = Masking(0.15, 1.0, 0.0, MASK, fixed_tokens(tokenizer), continues)
    chosen = masking(ids, 0, 0)[1] != IGNORED
    pieces = continues[ids]
    assert pieces.sum() > 1000
    assert (chosen[pieces] == chosen[np.flatnonzero(pieces) - 1]).all()
    share = chosen.sum() / (~fixed_tokens(tokenizer)[ids]).sum()
    assert share == pytest.approx(0.15, abs=0.01)
    assert not chosen[[0, -1]].any()
