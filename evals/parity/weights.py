"""Weights of two forms compared number by number, and what explains a difference between them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..loading import layout_of, tensors_of
from .compare import ParityCheck

if TYPE_CHECKING:
    import torch

_BLOCK = 64  # weights that share a scale in 4-bit formats: QLoRA's NF4 (arXiv:2305.14314); GGUF's have 32
_FOUR_BITS = 16  # levels
_BLOCKS = 64  # blocks of a tensor that are looked at
_WITNESSES = 4  # adapted layers whose base weights are kept, to see what was quantised


def stored(folder: Path) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Yields the tensors of a model folder one by one, as they are stored."""
    return tensors_of(sorted(folder.glob("model*.safetensors")))


def type_of(folder: Path) -> str | None:
    """Returns the coarsest floating type in which a folder holds its weights; None if they cannot be read here."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float32"}
    found = {names.get(kind) for kind, _ in layout_of(folder.glob("model*.safetensors")).values()}
    return next((name for name in ("bfloat16", "float16", "float32") if name in found), None)


@dataclass(frozen=True)
class Merged:
    """An adapter merged into its base in memory.

    Attributes:
        weights: All weights, by name.
        changed: The names of those that the adapter changes.
        before: What some of these were without it.
        tables: The names of the embeddings.
        drawn: Their rows that neither base nor adapter holds: a pad token's, drawn at random and never read.
    """

    weights: dict[str, "torch.Tensor"]
    changed: set[str]
    before: dict[str, "torch.Tensor"]
    tables: set[str]
    drawn: list[int]


def merge(model: Any, rows_of_base: int | None) -> Merged:
    """Merges an adapter into its base in memory.

    Args:
        model: A peft model.
        rows_of_base: How many tokens the base has embeddings for, before it was given more.
    """
    base = model.get_base_model()
    adapted = {name: weight for name, weight in base.named_parameters() if name.endswith(".base_layer.weight")}
    plain = {name: name.replace(".base_layer.", ".") for name in adapted}
    before = {plain[name]: adapted[name].detach().clone() for name in sorted(adapted)[:_WITNESSES]}
    config = next(iter(model.peft_config.values()))
    rows = getattr(config, "trainable_token_indices", None) or {}
    rows = rows if isinstance(rows, dict) else {"embed_tokens": rows}
    layers = [base.get_input_embeddings(), base.get_output_embeddings() if base.can_generate() else None]
    tables = {f"{name}.weight" for name, module in base.named_modules() if any(module is layer for layer in layers)}
    whole = {*(getattr(config, "modules_to_save", None) or ())}
    changed = {name for name, _ in base.named_parameters() if any(f".{part}." in f".{name}" for part in whole)}
    changed |= set(plain.values()) | (tables if rows else set())
    trained = {row for places in rows.values() for row in places}
    size = layers[0].weight.shape[0]
    drawn = [] if changed & tables and not rows else sorted(set(range(rows_of_base or size, size)) - trained)
    return Merged(dict(model.merge_and_unload().state_dict()), changed, before, tables, drawn)


def compare_weights(
    expected: Mapping[str, "torch.Tensor"],
    found: Callable[[], Iterator[tuple[str, "torch.Tensor"]]],
    merged: Merged | None = None,
    rounded_to: str | None = None,
) -> ParityCheck:
    """Compares weights with what they should be, up to the rounding of the type that they are stored in.

    A weight may differ by twice the spacing of its type at its own size and at the mean size of its tensor: peft rounds
    what an adapter adds, and then the sum.

    Args:
        expected: What they should be, by name.
        found: Yields the weights with their names.
        merged: How an adapter made what is expected; None where there is none.
        rounded_to: The coarsest type that the weights have been through, where it is not the one that they are in.
    """
    import torch

    through = 0.0 if rounded_to is None else torch.finfo(getattr(torch, rounded_to)).eps

    wrong: dict[str, float] = {}
    count, largest, rounded = 0, 0.0, False
    coarse: list[bool] = []
    for name, tensor in found():
        should = expected.get(name)
        if should is None or should.shape != tensor.shape or not tensor.is_floating_point():
            continue
        count += 1
        should, own = should.detach().float().cpu(), tensor.detach().float().cpu()
        gap = (own - should).abs()
        if merged is not None and name in merged.tables:
            gap[merged.drawn] = 0
        spacing = max(torch.finfo(tensor.dtype).eps, through, 1e-6)
        over = gap > 2 * spacing * (should.abs() + should.abs().mean())
        largest, rounded = max(largest, float(gap.max())), rounded or bool(gap.max() > 0)
        if bool(over.any()) or not bool(torch.isfinite(gap).all()):
            wrong[name] = float(gap.max())
            if own.ndim == 2:
                base = merged.before.get(name) if merged is not None else None
                kinds = [own] if base is None else [own, own - (should - base.float().cpu())]
                coarse.append(any(_has_few_levels(kind) for kind in kinds))
    if not count:
        return ParityCheck("weights", "not compared", "no tensor of the two has the same name and shape")
    if not wrong:
        what = f"{count} tensors" + (", up to the rounding of their type" if rounded else "")
        return ParityCheck("weights", "close" if rounded else "same", what, largest)
    worst = max(wrong, key=lambda name: wrong[name])
    cause = _cause(set(wrong), None if merged is None else merged.changed, coarse)
    return ParityCheck("weights", "differs", f"{len(wrong)} of {count} tensors, most in {worst}", largest, cause)


def _has_few_levels(weight: "torch.Tensor") -> bool:
    """Says whether the blocks of a matrix hold no more values than four bits can tell apart."""
    flat = weight.reshape(-1)
    blocks = flat[: len(flat) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)[:: max(1, len(flat) // _BLOCK // _BLOCKS)]
    if not len(blocks):
        return False
    ordered = blocks.sort(dim=-1).values
    steps = ordered.diff(dim=-1) > 0.01 * ordered.abs().amax(dim=-1, keepdim=True)  # rounding is no level
    return float((steps.sum(-1) + 1).float().quantile(0.9)) <= _FOUR_BITS


def _cause(wrong: set[str], changed: set[str] | None, coarse: list[bool]) -> str:
    if coarse and sum(coarse) >= len(coarse) / 2:
        return "quantised weights: their blocks hold sixteen values at most, as 4-bit formats do"
    if changed is None:
        return "other weights"
    if wrong <= changed:
        return "a stale adapter: only what the adapter changes differs, so another state of it was merged"
    return "another base: weights differ that the adapter does not touch"
