"""Attention in blocks of queries is the attention of one call, over fewer keys."""

from typing import Any

import pytest
import torch
from posttrain.evals import block_attention
from posttrain.evals.block_attention import BLOCK, in_blocks

from .test_shared_context import SIZES, VOCABULARY, build


def run(model: Any, ids: torch.Tensor, mask: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(ids, attention_mask=mask).logits


def masks(model: Any, seen: torch.Tensor) -> Any:
    """Makes what is added to attention, for each kind of layer."""
    places = torch.arange(seen.shape[-1])
    near = places[:, None] - places < (getattr(model.config, "sliding_window", None) or len(places))

    def added(allowed: torch.Tensor) -> torch.Tensor:
        return torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)[:, None]

    kinds = set(getattr(model.config, "layer_types", None) or [])
    full, sliding = added(seen), added(seen & near)
    if len(kinds) > 1:
        return {"full_attention": full, "sliding_attention": sliding}
    return sliding if getattr(model.config, "sliding_window", None) else full


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "mistral"])
def test_logits_are_those_of_one_call(kind: str) -> None:
    model = build(kind)
    width = SIZES["max_position_embeddings"]
    ids = torch.randint(1, VOCABULARY, (2, width), generator=torch.Generator().manual_seed(0))
    places = torch.arange(width)
    causal = places <= places[:, None]
    packed = causal & (places // 50 == places[:, None] // 50)  # texts of 50 tokens that do not see each other
    mask = masks(model, torch.stack([causal, packed]))
    expected = run(model, ids, mask)
    with in_blocks(model):
        found = run(model, ids, mask)
    assert (found - expected).abs().max() < 1e-4
    assert model.config._attn_implementation == "sdpa"


def test_keys_that_no_query_of_a_block_sees_are_left_out(monkeypatch: Any) -> None:
    model = build("gemma3")
    width, window = SIZES["max_position_embeddings"], model.config.sliding_window
    places = torch.arange(width)
    mask = masks(model, (places <= places[:, None])[None])
    plain, keys = torch.nn.functional.scaled_dot_product_attention, []

    def counted(query: Any, key: Any, *rest: Any, **how: Any) -> Any:
        keys.append(key.shape[2])
        return plain(query, key, *rest, **how)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with in_blocks(model):
        run(model, torch.ones(1, width, dtype=torch.long), mask)
    assert keys == [BLOCK, BLOCK + window - 1] * 3 + [BLOCK, width]


def test_a_model_that_fails_has_its_own_attention_again() -> None:
    model = build("llama")
    with pytest.raises(IndexError), in_blocks(model):
        run(model, torch.full((1, 4), VOCABULARY), None)
    assert model.config._attn_implementation == "sdpa"


def test_attention_of_another_kind_is_left_alone() -> None:
    model = build("gemma2")
    with in_blocks(model):
        assert model.config._attn_implementation == "eager" != block_attention.NAME
