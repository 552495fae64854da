"""Attention of long rows on a CPU: blocks of queries, each over the keys that some of them see.

Under a mask that is given, torch's attention on a CPU multiplies each query with all keys and leaves out what is not
seen afterwards: half of the work under a causal mask, more where layers have a window. Here a block of queries goes to
the same function with the keys from the first that it sees to its own last, so the sums are those of one call.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

BLOCK = 128  # queries: with 64 or 256 SmolLM2 and Gemma 3 take as long for rows of 700 and 1,400 tokens
NAME = "sdpa_in_blocks"


@contextlib.contextmanager
def in_blocks(model: Any) -> Iterator[None]:
    """Has a causal model compute its attention so, if it stands on a CPU and computes it by `sdpa`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = model.config.get_text_config()
    before = config._attn_implementation
    if before != "sdpa" or model.device.type != "cpu":
        yield
        return
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attention(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple["torch.Tensor", None]:
    """Computes attention as transformers' own function for `sdpa` does, ``[rows, tokens, heads, size of a head]``."""
    import torch
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    width = query.shape[2]
    if attention_mask is None or width <= BLOCK or any(others.get(name) is not None for name in _UNKNOWN):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    parts = []
    for start in range(0, width, BLOCK):
        queries = slice(start, start + BLOCK)
        end = key.shape[2] - width + min(start + BLOCK, width)  # no token sees a later one
        mask = attention_mask[:, :, queries, :end]
        first = _first_seen(mask)
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                query[:, :, queries],
                key[:, :, first:end],
                value[:, :, first:end],
                attn_mask=mask[..., first:],
                dropout_p=dropout,
                scale=scaling,
            )
        )
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def _first_seen(mask: "torch.Tensor") -> int:
    """Returns the first key that any of the queries sees, of a mask ``[rows, 1 or heads, queries, keys]``."""
    import torch

    least = torch.finfo(mask.dtype).min if mask.is_floating_point() else False
    if (mask[:, :, 0, 0] > least).any():  # without a window it is the very first
        return 0
    return int((mask > least).flatten(0, 2).any(0).nonzero()[0])


_UNKNOWN = ("position_bias", "softcap", "cache")  # of a layer, which transformers' function knows how to take
