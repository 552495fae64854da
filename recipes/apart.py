"""Whether a model keeps the documents of a packed row apart: found by looking, since no list of models stays true.

From positions that restart, transformers makes masks for those models alone that hand it their positions, and a
convolution or a recurrence reads on over every border without a word.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..data_tools.collate import PackedRowCollator
from .model import VARLEN, layers_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_BEFORE, _ANOTHER, _DOCUMENT = list(range(3, 10)), list(range(10, 17)), list(range(4, 10))  # token ids
_KINDS = 4
_LARGE = 2**28  # numbers: 1 GiB in float32
_MOVED = 0.02  # of the largest number: rounding moves less, 1e-6 in float32; a document that is seen 0.1 and more


def reads_flat_rows(model: "PreTrainedModel") -> bool:
    """Tells whether a model's attention is a varlen kernel, for which a packed batch becomes one flat row."""
    return (getattr(model.config, "_attn_implementation", None) or "").startswith(VARLEN)


def keeps_documents_apart(model: "PreTrainedModel", *, flat: bool) -> bool | None:
    """Tells whether a document's hidden states stay as they are when the one before it in its row is another.

    Looks at the first layer of each kind with made-up weights of the model's own shapes, so a model without numbers
    will do. Kernels are looked at where they run, on an accelerator.

    Args:
        model: A language model, on any device.
        flat: Whether batches are flat rows.

    Returns:
        None where that cannot be seen: there is no accelerator, or such layers cannot be built or run.
    """
    import torch

    kernels = flat or reads_flat_rows(model)
    device = torch.accelerator.current_accelerator(check_available=True) if kernels else torch.device("cpu")
    kinds = _kinds(model.config)
    for layers in (kinds, range(max(kinds) + 2)):  # some architectures know their layers by places that they must keep
        with contextlib.suppress(Exception):  # as many kinds as there are models
            if device is not None:
                with torch.device(device), torch.no_grad():
                    few = _with_layers(model, layers, torch.bfloat16 if kernels else torch.float32)
                    return _unmoved(few, PackedRowCollator(0, flatten=flat), device)
    return None


def _unmoved(model: Any, collate: PackedRowCollator, device: Any) -> bool:
    """Compares the first token of a document, which whatever leaks reaches, behind one document and another."""
    states = []
    for before in (_BEFORE, _ANOTHER):
        ids = before + _DOCUMENT
        row = {"input_ids": ids, "labels": ids, "seq_lengths": [len(before), len(_DOCUMENT)]}
        batch: Any = collate([row, row])  # of one row alone flash attention would read restarting positions
        inputs = {key: value.to(device) if hasattr(value, "to") else value for key, value in batch.items()}
        del inputs["labels"]
        states.append(model.base_model(**inputs, use_cache=False)[0][0, len(before)].float())
    moved = float((states[0] - states[1]).abs().max() / states[0].abs().max())
    if math.isnan(moved):
        raise FloatingPointError("made-up weights made no numbers")
    return moved <= _MOVED


def _with_layers(model: Any, layers: Sequence[int], dtype: Any) -> Any:
    """Builds a model of some layers; the weights of a matrix share the numbers of a sum of its sides."""
    import torch
    from accelerate import init_empty_weights

    options = {"experts_implementation": "eager"} if model._can_set_experts_implementation() else {}
    if not options and any(weight.ndim > 2 and weight.numel() > _LARGE for weight in model.parameters()):
        raise MemoryError("all experts are multiplied with at once, in a copy")
    attention = getattr(model.config, "_attn_implementation", None)
    config = layers_config(model.config, layers)
    with init_empty_weights(include_buffers=False):  # a buffer may be a mask
        few = type(model)._from_config(config, dtype=dtype, attn_implementation=attention, **options)
    drawn = torch.Generator(torch.get_default_device()).manual_seed(0)
    for module in few.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                numbers = torch.randn(sum(weight.shape) + 1, generator=drawn, dtype=weight.dtype)
                numbers /= weight.shape[-1] ** 0.5 if weight.ndim > 1 else 1
                values = numbers.as_strided(weight.shape, (1,) * weight.ndim)  # nothing of the model's size is held
                module._parameters[name] = torch.nn.Parameter(values, requires_grad=False)
    return few.eval()


def _kinds(config: "PretrainedConfig") -> list[int]:
    """Returns the first layer of each of the first few kinds, by the lists that say something of each layer."""
    text: Any = config.get_text_config()
    count = getattr(text, "num_hidden_layers", 1)
    lists = [value for value in vars(text).values() if isinstance(value, list) and len(value) == count]
    lists = [value for value in lists if value != list(range(count))]  # the numbers of all layers name no kind
    first: dict[str, int] = {}
    for layer in range(count):
        first.setdefault(str([value[layer] for value in lists]), layer)
    return list(first.values())[:_KINDS]
