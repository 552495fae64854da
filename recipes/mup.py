"""muP: the learning rate and initial scale that suit a narrow model suit a wide one of the same shape.

The maximal update parametrisation of Yang et al. 2022 (arXiv:2203.03466), by initial weights and groups of the
optimizer alone, so that the model is one of stock transformers. With m the width over that of the base, for AdamW:

==================================  ==================  =============  ============
weights                             initial deviation   learning rate  weight decay
==================================  ==================  =============  ============
of layers, both sides of which grow sigma / sqrt(m)     eta / m        lambda m
of a head of its own (table 3)      sigma / m           eta / m        lambda m
embeddings, norms, biases           sigma               eta            lambda
==================================  ==================  =============  ============

A head that is tied to the embeddings has their row, and its logits are divided by m (table 8), which needs a model
with such a divisor, as Granite is. AdamW takes off learning rate times weight decay, and m lambda holds that product.
Attention is scaled by 1 / sqrt(d) in stock models, and by 1 / d in muP (definition 4.1), which are the same while the
size d of a head is; so it must not grow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..data_tools.progress import Say
from .errors import RecipeError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, Trainer

TYPES = ("granite", "llama", "mistral", "qwen2", "qwen3")
"""Models whose passes have no factor of the width beside their matrices, as Gemma's embeddings have."""
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
_KEY = "model.mup_base"


@dataclass(frozen=True)
class WeightScale:
    """The factors of one weight.

    Attributes:
        init: Of the standard deviation that it starts with.
        rate: Of its learning rate; its weight decay is divided by it.
    """

    init: float = 1.0
    rate: float = 1.0


def scales(model: "PreTrainedModel", base: "PretrainedConfig") -> dict[str, WeightScale]:
    """Returns the factors of every weight, by its name; how much wider it is follows from the base's own shapes.

    Args:
        model: The model, on any device.
        base: The configuration of the narrow model.

    Raises:
        RecipeError: The two differ in more than width, in the size of a head, or a matrix grows on one side alone.
    """
    import torch
    from torch import nn

    _check_base(model.config, base)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in type(model)(base).named_parameters()}
    layers = {id(part.weight) for part in model.modules() if isinstance(part, nn.Linear)}
    head: Any = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight  # type: ignore[union-attr]
    found = {}
    for name, weight in model.named_parameters():
        if len(shapes.get(name, ())) != weight.dim():
            raise RecipeError(f"{_KEY}: the base has no {name}; only widths may differ", hint="drop the other fields")
        wider = [size / narrow for size, narrow in zip(weight.shape, shapes[name], strict=True)]
        found[name] = WeightScale()
        if weight is head.weight:
            if wider[0] != 1:
                raise RecipeError(f"{_KEY}: the vocabulary is no width", hint="drop vocab_size")
            found[name] = WeightScale() if tied else WeightScale(1 / wider[1], 1 / wider[1])
        elif id(weight) in layers:
            if (wider[0] == 1) != (wider[1] == 1):
                what = f"{_KEY}: {name} is {tuple(shapes[name])} in the base and {tuple(weight.shape)} here"
                hint = "both sides must grow: name intermediate_size, num_attention_heads and num_key_value_heads too"
                raise RecipeError(what, hint=hint)
            found[name] = WeightScale(wider[1] ** -0.5, 1 / wider[1])
    return found


def _check_base(config: Any, base: Any) -> None:
    """Refuses models for which the table of this module is not all there is to muP."""
    if config.model_type not in TYPES:
        what = f"{_KEY}: muP is known here for {', '.join(TYPES)}, and not for {config.model_type}"
        raise RecipeError(what, hint="take one of them, or drop it")
    if config.tie_word_embeddings and not hasattr(config, "logits_scaling"):
        what = (
            f"{_KEY}: a head that is tied to the embeddings needs logits divided by the width, and {config.model_type}"
        )
        raise RecipeError(f"{what} does not divide them", hint="say tie_word_embeddings: false, or model_type: granite")
    sizes = [getattr(one, "head_dim", None) or one.hidden_size // one.num_attention_heads for one in (base, config)]
    if sizes[0] != sizes[1]:
        what = f"{_KEY}: a head is {sizes[0]} wide in the base and {sizes[1]} here, and muP holds for equal heads"
        raise RecipeError(what, hint="widen by more heads: name num_attention_heads, and num_key_value_heads, too")


def initialise(model: "PreTrainedModel", base: "PretrainedConfig") -> None:
    """Scales fresh weights, and the logits of a tied head, in place.

    Args:
        model: A model with weights as its class draws them, of deviation ``initializer_range``.
        base: The configuration of the narrow model.

    Raises:
        RecipeError: As :func:`scales`.
    """
    import torch

    factors = scales(model, base)
    config: Any = model.config
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(factors[name].init)
    if config.tie_word_embeddings:
        config.logits_scaling *= config.hidden_size / base.hidden_size  # type: ignore[attr-defined]


def groups(
    model: "nn.Module", factors: Mapping[str, WeightScale], rate: float, decay: float, decayed: set[str]
) -> list[dict[str, Any]]:
    """Returns groups of an AdamW's parameters; those of the full rate come first, whose rate is what a trainer logs.

    Args:
        model: What is trained.
        factors: As from :func:`scales`.
        rate: The learning rate of the base.
        decay: Its weight decay.
        decayed: The names of the weights that decay.
    """
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            found.setdefault((factors[name].rate, name in decayed), []).append(weight)
    return [
        {"params": found[factor, decays], "lr": rate * factor, "weight_decay": decay / factor if decays else 0.0}
        for factor, decays in sorted(found, reverse=True)
    ]


def use_mup(trainer: "Trainer", base: "PretrainedConfig", say: Say) -> None:
    """Makes a trainer's AdamW move each weight by its own rate; schedules multiply them all alike.

    Args:
        trainer: Any trainer whose optimizer is not made yet, of a model that :func:`initialise` has scaled.
        base: The configuration of the narrow model.
        say: Told the groups.
    """
    args, whole = trainer.args, trainer.model
    factors = scales(whole, base)  # type: ignore[arg-type]
    kind, options = trainer.get_optimizer_cls_and_kwargs(args, whole)  # type: ignore[arg-type]

    def create(model: "nn.Module") -> Any:
        decayed = set(trainer.get_decay_parameter_names(model))
        made = groups(model, factors, args.learning_rate, args.weight_decay, decayed)
        rates = {f"{group['lr']:.3g}": 0 for group in made}
        for group in made:
            rates[f"{group['lr']:.3g}"] += len(group["params"])
        counts = ", ".join(f"{count} tensors at {rate}" for rate, count in rates.items())
        say(f"optimizer: muP from a width of {base.hidden_size}: {counts}")  # type: ignore[attr-defined]
        return kind(made, **options)

    trainer.optimizer_cls_and_kwargs = (lambda: create, {})  # type: ignore[assignment]


def check_optimizer(optim: str) -> None:
    """Refuses optimizers whose rule muP's table does not have.

    Args:
        optim: The optimizer's name in the recipe.

    Raises:
        RecipeError: It is one of them.
    """
    if optim not in OPTIMIZERS:
        what = f"{_KEY}: trainer.optim is {optim}, and the learning rates are known for AdamW"
        raise RecipeError(what, hint=f"say {' or '.join(OPTIMIZERS)}, or drop one of the two")
