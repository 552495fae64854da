"""The head on a body: which modules it is made of, and how it keeps its precision beside adapters."""

from typing import TYPE_CHECKING, Any

import torch

from ..schema import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def head_modules(model: "PreTrainedModel") -> list[str]:
    """Returns the names of the modules with weights outside the body, such as ``score`` or ``classifier``."""
    return [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]


def add_adapter(model: "PreTrainedModel", recipe: Recipe, *, grown: bool) -> Any:
    """Puts adapters on the body; the head is trained in full, in float32.

    Args:
        model: With its head.
        recipe: Has a ``lora`` section.
        grown: Whether the vocabulary grew.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training

    from ..model import lora_config

    assert recipe.lora is not None, "the caller has looked"
    config = lora_config(recipe.lora, model, grown=grown)
    names = head_modules(model)
    config.modules_to_save = [*(config.modules_to_save or []), *names]
    if recipe.quantization:
        checkpointing = bool(recipe.trainer.get("gradient_checkpointing"))
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)  # type: ignore[assignment]
    adapted = get_peft_model(model, config)
    for name in names:
        getattr(adapted.get_base_model(), name).float()
    return adapted


def keep_precision(model: Any) -> None:
    """Makes the head compute in the type of its own weights, whatever comes in and whatever autocast would make of it.

    Args:
        model: A model with a head, under adapters or not.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name in head_modules(base):
        _own_type(getattr(base, name))


def _own_type(module: torch.nn.Module) -> None:
    forward = module.forward

    def run(*values: Any, **options: Any) -> Any:
        parameters = list(module.parameters())
        weight = next((parameter for parameter in parameters if parameter.requires_grad), parameters[0])
        with torch.autocast(weight.device.type, enabled=False):
            return forward(*(_cast(value, weight.dtype) for value in values), **options)

    module.forward = run


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
