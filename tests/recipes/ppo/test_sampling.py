"""Tokens are drawn from the policy's distribution, and the draw does not depend on how rows are divided."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from posttrain.recipes.trainers.sampling import EpochSampler, RowSampler, count_positions_from_mask, uniform_numbers


def config(**options: Any) -> Any:
    return SimpleNamespace(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None, **options})


def drawn(scores: torch.Tensor, rows: int, **options: Any) -> torch.Tensor:
    """Returns how often each token is drawn."""
    numbers = uniform_numbers((0, 0, 0), 0, rows, 1)
    out = RowSampler(numbers, 3, config(**options))(torch.zeros(rows, 3), scores.expand(rows, -1).clone())
    assert (out.exp().sum(dim=1) == 1).all()
    return out.exp().mean(dim=0)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_each_token_is_drawn_as_often_as_its_probability_says(temperature: float) -> None:
    scores = torch.tensor([0.0, 1.0, -1.0, 2.0, -torch.inf])
    probability = (scores / temperature).softmax(dim=0)
    rows = 4000
    error = (drawn(scores, rows, temperature=temperature) - probability).abs()
    assert (error <= 4 * (probability * (1 - probability) / rows).sqrt()).all()


def test_tokens_that_top_k_cuts_off_are_never_drawn() -> None:
    found = drawn(torch.tensor([0.0, 1.0, -1.0, 2.0]), 500, top_k=2)
    assert found[[0, 2]].tolist() == [0, 0]
    assert (found[[1, 3]] > 0).all()


def test_rows_draw_the_same_numbers_on_one_process_and_on_two() -> None:
    whole = uniform_numbers((1, 0, 7), 0, 6, 4)
    parts = [uniform_numbers((1, 0, 7), first, 3, 4) for first in (0, 3)]
    assert torch.equal(torch.cat(parts), whole)
    assert len(whole.unique()) == whole.numel()
    assert not torch.equal(uniform_numbers((1, 0, 8), 0, 6, 4), whole)  # another generation
    assert not torch.equal(uniform_numbers((1, 1, 7), 0, 6, 4), whole)  # an evaluation


def test_an_epochs_order_depends_on_the_seed_and_the_epoch_alone() -> None:
    def order(*epochs: int) -> list[int]:
        sampler = EpochSampler(list(range(12)), mini_repeat_count=1, batch_size=4, seed=3)
        found: list[int] = []
        for epoch in epochs:
            sampler.set_epoch(epoch)
            found = list(sampler)
        return found

    assert order(0, 1, 2) == order(2)
    assert order(1) != order(2)
    assert sorted(order(1)) == list(range(12))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_padding_on_the_left_changes_no_log_probability(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 40}
    if kind == "llama":
        size |= {"intermediate_size": 16, "num_key_value_heads": 2}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **size)).eval()
    add_fused_lm_head(model)
    count_positions_from_mask(model)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    padded = torch.tensor([[0, 0, 0, 5, 6, 7, 8, 9]])
    plain, left = (
        model(input_ids=row, attention_mask=(row > 0).long(), labels=row, fused_lm_head=True).log_probs[:, -4:]
        for row in (ids, padded)
    )
    torch.testing.assert_close(left, plain)
