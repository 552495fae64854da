"""A student made of some of its teacher's layers."""

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def layers_config(config: "PretrainedConfig", layers: Sequence[int]) -> "PretrainedConfig":
    """Describes a model with some of the layers of another, in the order given.

    Lists that say something of each layer, such as ``layer_types``, keep the entries of those layers.

    Raises:
        RecipeError: A layer does not exist.
    """
    new = copy.deepcopy(config)
    text: Any = new.get_text_config()
    count = text.num_hidden_layers
    beyond = [layer for layer in layers if layer >= count]
    if beyond:
        raise RecipeError(
            f"model.layers names layer {beyond[0]}, but the model has {count}, counted from 0 to {count - 1}",
            hint=f"for every second one: {list(range(0, count, 2))}",
        )
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == count and ("layer" in name or "block" in name):
            setattr(text, name, [value[layer] for layer in layers])
    text.num_hidden_layers = len(layers)
    return new


def keep_layers(model: "PreTrainedModel", layers: Sequence[int]) -> "PreTrainedModel":
    """Builds a model of some of another's layers; embeddings, final norm and head are copied too.

    With every layer in order it computes what the original does. It is built anew, and not by deleting layers, because
    attention layers know their number and find their place in a cache by it.

    Raises:
        RecipeError: A layer does not exist, or the architecture is not one stack of layers.
    """
    stack = _stack(model)
    config = layers_config(model.config, layers)
    student = type(model)._from_config(
        config, dtype=model.dtype, attn_implementation=getattr(model.config, "_attn_implementation", None)
    )
    pattern = re.compile(rf"{re.escape(stack)}\.(\d+)\.(.+)")
    state: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        match = pattern.fullmatch(name)
        if match is None:
            state[name] = tensor
            continue
        state |= {f"{stack}.{new}.{match[2]}": tensor for new, old in enumerate(layers) if old == int(match[1])}
    try:
        student.load_state_dict(state)
    except RuntimeError as error:
        raise RecipeError(
            f"model.layers cannot put layers {list(layers)} of a {model.config.model_type} model in the places 0 to "
            f"{len(layers) - 1}: its layers differ in their weights by their place",
            hint="keep the first layer, and where kinds of layers alternate, their order",
        ) from error
    if model.can_generate():
        student.generation_config = model.generation_config
    return student


def _stack(model: "PreTrainedModel") -> str:
    """Returns the name of the one list of layers of a model."""
    from torch import nn

    count = model.config.get_text_config().num_hidden_layers
    names = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    outer = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    if len(outer) != 1:
        raise RecipeError(f"model.layers cannot tell which are the layers of a {model.config.model_type} model")
    return outer[0]


@contextlib.contextmanager
def whole_weights() -> Iterator[None]:
    """Loads models whole inside the block, although ZeRO-3 would load every process a shard of each weight."""
    from transformers.integrations import deepspeed

    reference: Any = deepspeed._hf_deepspeed_config_weak_ref
    config = reference() if reference is not None else None
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)
