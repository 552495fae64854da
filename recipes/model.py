"""From a recipe's ``model``, ``quantization`` and adapter sections to a tokenizer, a model and an adapter."""

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import chat_templates
from ..chat_templates.errors import did_you_mean, first_line
from ..evals.models import ModelKind, Pretrained, apply_adapter, auto_class, kind_of, make_room
from . import mup
from .errors import RecipeError
from .schema import ModelSpec, Recipe, TeacherSpec

if TYPE_CHECKING:
    from transformers import (
        BitsAndBytesConfig,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

    from ..chat_templates import ChatTemplate


VARLEN = ("flash_attention", "kernels-community")
"""How the names of attention kernels begin that keep the documents of one flat row apart."""


@dataclass(frozen=True)
class Head:
    """A sequence-classification head.

    Attributes:
        labels: The names of its outputs, in their order.
        problem: What its loss is, in transformers' words.
        pooling: ``cls`` or ``mean`` for encoders that offer both; None for the model's own way.
    """

    labels: tuple[str, ...]
    problem: Literal["single_label_classification", "multi_label_classification", "regression"]
    pooling: Literal["cls", "mean"] | None = None


def load_tokenizer(spec: ModelSpec) -> "PreTrainedTokenizerBase":
    """Loads the tokenizer named by the recipe, or the one beside the model.

    Raises:
        RecipeError: It cannot be found or read.
    """
    source = pretrained(spec)
    if spec.tokenizer:
        source = replace(source, name=spec.tokenizer, revision=None)
    return replace(source, what="the tokenizer of").tokenizer()


def pretrained(spec: ModelSpec | TeacherSpec) -> Pretrained:
    """Returns what a section of a recipe names, to be loaded."""
    teacher = isinstance(spec, TeacherSpec)
    return Pretrained(
        str(spec.name_or_path),
        spec.revision,
        spec.trust_remote_code,
        what="the teacher" if teacher else "the model",
        hint="check teacher.name_or_path" if teacher else "check model.name_or_path",
        error=RecipeError,
    )


def choose_template(spec: ModelSpec, tokenizer: "PreTrainedTokenizerBase") -> "ChatTemplate | None":
    """Returns the recipe's chat template, else the tokenizer's own, else None."""
    if spec.chat_template is not None:
        return chat_templates.load(spec.chat_template)
    return chat_templates.from_tokenizer(tokenizer) if tokenizer.chat_template else None


def load_model(
    recipe: Recipe, tokenizer: "PreTrainedTokenizerBase", head: Head | None = None, *, empty: bool = False
) -> "PreTrainedModel":
    """Loads or creates the model that a recipe trains, made to agree with its tokenizer.

    Without a head it is a language model: a causal one, or a masked one if that is the recipe's objective. With one,
    its body is the named model's and so is its head, if the named model has a head of as many outputs; otherwise the
    head starts at random.

    With ``dtype: auto`` a model that is trained whole is held in float32, since AdamW's updates are smaller than
    bfloat16 can add to a weight near 1; ``trainer.bf16`` still computes in bfloat16. Under adapters the base stays as
    it was saved; what is trained beside it is held in float32 (see ``adapters.settle``).

    Args:
        recipe: The recipe.
        tokenizer: Its tokenizer.
        head: The head, if any.
        empty: Whether to load all but the weights' numbers, to see whether the rest would do.

    Raises:
        RecipeError: The model cannot be found, is saved quantized, or its configuration does not fit.
    """
    import torch

    spec = recipe.model
    dtype = spec.dtype if spec.dtype != "auto" or recipe.adapts else "float32"
    options: dict[str, Any] = {"attn_implementation": spec.attn_implementation} if spec.attn_implementation else {}
    if spec.config is not None:
        with torch.device("meta") if empty else contextlib.nullcontext():
            model = _new_model(recipe, tokenizer, dtype, options, head)
    else:
        if recipe.quantization and spec.layers:
            raise RecipeError(
                "model.layers copies weights, which quantization has packed",
                hint="drop quantization, or train the student once without it and go on from that run",
            )
        if recipe.quantization and not empty:
            options["quantization_config"] = quantization_config(recipe)
            options["quantization_config"].llm_int8_skip_modules = _head_modules(spec, head)
        model = _trained_model(recipe, dtype, options | rope_fields(spec), head, empty=empty)
    if recipe.quantization:
        keep_linear4bit_unpacked(model)
    agree(model, tokenizer)
    if spec.use_kernels and not empty:
        model.eval()  # so that the trainer's `train()` looks for kernels again, for the device the model is on by then
        model.set_use_kernels(True)
    return model


def _kind(recipe: Recipe, head: Head | None, config: "PretrainedConfig") -> ModelKind:
    """Returns the kind of model that a recipe trains; refuses a configuration that is no such language model.

    transformers loads an encoder as a causal model without a word, BERT for one, and every token then sees the next;
    and of an encoder with a decoder, BART for one, the decoder alone.
    """
    if head is not None:
        return "classifier"
    if getattr(config, "is_encoder_decoder", False):
        what = f"{config.model_type} is an encoder with a decoder, and only models of one of the two learn tokens here"
        raise RecipeError(what, hint="name a causal language model")
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    text: Any = config.get_text_config()
    masks = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    named = kind_of(getattr(config, "architectures", None)) == "masked"
    decodes = getattr(text, "is_decoder", False)
    is_encoder = masks and (not causal or named or not (config.architectures or decodes))
    if recipe.objective and not is_encoder:
        what = f"objective: mlm needs an encoder, and {config.model_type} is a causal language model"
        hint = "drop `objective` to train it on the next token, or name an encoder, such as answerdotai/ModernBERT-base"
        raise RecipeError(what, hint=hint)
    if is_encoder and not recipe.objective:
        what = f"{config.model_type} is an encoder: its tokens see those behind them, so it cannot learn the next one"
        raise RecipeError(what, hint="say `stage: pretrain` with `objective: mlm`, or name a causal language model")
    return "masked" if recipe.objective else "causal"


def check_objective(recipe: Recipe) -> None:
    """Refuses a model that cannot learn what the recipe wants of it, before anything of it is used.

    Raises:
        RecipeError: An encoder is to learn the next token, a causal language model hidden ones, or an encoder with a
            decoder either.
    """
    from transformers import AutoConfig

    spec = recipe.model
    if spec.config is None:
        _kind(recipe, None, pretrained(spec).config())
        return
    with contextlib.suppress(ValueError):  # a model type that does not exist is told with the rest of `model.config`
        _kind(recipe, None, AutoConfig.for_model(spec.config["model_type"]))


def _trained_model(
    recipe: Recipe, dtype: str, options: dict[str, Any], head: Head | None, *, empty: bool
) -> "PreTrainedModel":
    """Loads a model, or a student of some of its layers."""
    import torch

    spec, headed = recipe.model, head is not None  # a head of another number of outputs starts afresh
    config = pretrained(spec).config()
    kind, unpacked = _kind(recipe, head, config), _unpacked(recipe, config)
    options |= {} if empty else unpacked
    with whole_weights() if spec.layers else contextlib.nullcontext():
        model = pretrained(spec).weights(
            kind=kind, new_head=headed, dtype=dtype, empty=empty, **options, **head_options(head)
        )
        with torch.device("meta") if empty else contextlib.nullcontext():
            return keep_layers(model, spec.layers) if spec.layers else model


def _unpacked(recipe: Recipe, config: "PretrainedConfig") -> dict[str, Any]:
    """Returns the options with which MXFP4 weights (gpt-oss) are loaded whole; refuses others that are saved quantized.

    What MXFP4 holds, bfloat16 holds exactly. Where a GPU has the kernels, transformers would leave it packed, and no
    gradient passes through those.
    """
    saved: Any = getattr(config, "quantization_config", None)
    if saved is None:
        return {}
    method = saved.get("quant_method", "bitsandbytes")
    if method == "mxfp4" and not recipe.quantization:
        from transformers.utils.quantization_config import Mxfp4Config

        return {"quantization_config": Mxfp4Config(dequantize=True)}
    what = (
        f"the weights of {recipe.model.name_or_path} are saved quantized ({method}), neither to be trained nor merged"
    )
    way = "drop quantization" if method == "mxfp4" else "say quantization: nf4"
    raise RecipeError(what, hint=f"name its 16-bit base in model.name_or_path, and {way}")


def rope_fields(spec: ModelSpec) -> dict[str, Any]:
    """Returns the fields of the configuration with which a model reads longer contexts; none if the recipe says none.

    The model is then made for ``factor`` times its tokens, but with ``dynamic``, which scales no context that the model
    was made for. Where layers with a sliding window have parameters of their own (Gemma 3), those of full attention are
    scaled alone: the others see no further than their window.

    Raises:
        RecipeError: The model has no rotary positions, or transformers does not know them as given.
    """
    if spec.rope_parameters is None:
        return {}
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config: Any = pretrained(spec).config()
    own: Any = getattr(config, "rope_parameters", None)
    length: Any = getattr(config, "max_position_embeddings", None)
    if not own or not length:
        what = f"model.rope_parameters: {config.model_type} has no rotary positions at the top of its configuration"
        raise RecipeError(what, hint="drop it")
    by_layer = all(isinstance(value, dict) for value in own.values())
    given = spec.rope_parameters
    if by_layer and not given.keys() & own.keys():
        given = {"full_attention": given}
    merged = {name: {**own[name], **given.get(name, {})} for name in own} if by_layer else {**own, **given}
    for part in merged.values() if by_layer else [merged]:
        kind = str(part.get("rope_type"))
        if kind not in ("default", *ROPE_INIT_FUNCTIONS):
            hint = did_you_mean(kind, ROPE_INIT_FUNCTIONS) or f"one of {', '.join(ROPE_INIT_FUNCTIONS)}"
            raise RecipeError(f"model.rope_parameters: there is no rope_type '{kind}'", hint=hint)
        if kind in ("llama3", "yarn", "longrope"):
            part.setdefault("original_max_position_embeddings", length)
    scaled: Any = merged.get("full_attention", merged) if by_layer else merged
    times = scaled.get("factor", 1) if scaled["rope_type"] != "dynamic" else 1
    fields = {
        "rope_parameters": merged,
        "max_position_embeddings": round(scaled.get("original_max_position_embeddings", length) * times),
    }
    try:
        pretrained(spec).config(**fields).validate_rope()
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"model.rope_parameters: {first_line(error)}") from error
    return fields


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


def head_modules(model: "PreTrainedModel") -> list[str]:
    """Returns the names of the modules with weights outside the body, such as ``score`` or ``classifier``."""
    return [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]


def unread_modules(model: "PreTrainedModel") -> list[str]:
    """Returns the names of the modules that no text reaches, such as a vision tower and its projector.

    They get no gradient: DistributedDataParallel stops at the second step of a model that has such weights to train,
    weight decay of some optimizers would shrink them, and adapters on them would stay as they began.
    """
    if model.config.get_text_config() is model.config:
        return []
    heads = [getattr(model, name) for name in head_modules(model)]
    read = {weight for module in (model.get_decoder(), *heads) for weight in module.parameters()}
    names: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in names)
        if not inside and any(True for _ in module.parameters()) and read.isdisjoint(module.parameters()):
            names.append(name)
    return names


def _head_modules(spec: ModelSpec, head: Head | None) -> list[str] | None:
    """Names the modules of a head, which are not to be quantized; transformers by itself spares no head with a bias."""
    import torch

    if head is None:
        return None
    with whole_weights(), torch.device("meta"):  # ZeRO-3 would divide weights that are not there
        config = pretrained(spec).config()
        model = auto_class("classifier").from_config(config, trust_remote_code=spec.trust_remote_code)
    return head_modules(model)


def new_config(spec: ModelSpec, tokenizer: Any) -> "PretrainedConfig":
    """Builds the configuration of a new model; its vocabulary and special ids are the tokenizer's.

    Raises:
        RecipeError: The model type does not exist, has no such field, or the vocabulary is too small.
    """
    assert spec.config is not None, "the caller has a model.config"
    values = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **spec.config,
    }
    config = _config_of(values)
    if values["vocab_size"] < len(tokenizer):
        raise RecipeError(
            f"model.config.vocab_size is {values['vocab_size']}, but the tokenizer has {len(tokenizer)} tokens"
        )
    return config


def _config_of(values: dict[str, Any]) -> "PretrainedConfig":
    """Makes the configuration of the ``model_type`` that is among the values, refusing fields that it has not."""
    from transformers import AutoConfig

    values = dict(values)
    model_type = values.pop("model_type")
    try:
        known = AutoConfig.for_model(model_type)
        unknown = sorted(key for key in values if not hasattr(known, key))
        if unknown:
            raise ValueError(f"{model_type} has no {', '.join(unknown)}")
        return AutoConfig.for_model(model_type, **values)
    except (ValueError, TypeError, KeyError) as error:
        hint = "see the model type's configuration class in transformers"
        raise RecipeError(f"model.config does not make a model: {error}", hint=hint) from error


def mup_base(spec: ModelSpec, tokenizer: Any) -> "PretrainedConfig":
    """Builds the configuration of the narrow model that ``model.mup_base`` describes.

    Raises:
        RecipeError: As :func:`new_config`.
    """
    return new_config(spec.model_copy(update={"config": {**(spec.config or {}), **(spec.mup_base or {})}}), tokenizer)


def check_mup_base(spec: ModelSpec) -> None:
    """Refuses a base that the model is not a wider one of, by the two configurations alone: no tokenizer is read.

    Raises:
        RecipeError: As :func:`new_config` and :func:`mup.scales`.
    """
    import torch

    wide, base = (_config_of({**(spec.config or {}), **more}) for more in ({}, spec.mup_base or {}))
    with torch.device("meta"):
        model = auto_class("causal").from_config(wide)
    mup.scales(model, base)


def load_reference(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase", seed: int) -> "PreTrainedModel":
    """Loads once more what the policy starts from, tokens that the template added included.

    TRL would load it by its name alone: without its revision, its added tokens or its choice of layers. An adapter that
    the policy goes on from is merged into it.

    Raises:
        RecipeError: That adapter cannot be merged.
    """
    from transformers import set_seed

    set_seed(seed)  # new weights are drawn as the policy's were
    model: Any = load_model(recipe, tokenizer)
    if (start := recipe.adapts) is None or start.name_or_path is None:
        return model
    why = start.kind.apart or (recipe.quantization and "merging into quantized weights would lose digits")
    if why:
        what = f"adapter.name_or_path: the reference is the policy as it starts, adapter merged: {why}"
        raise RecipeError(what, hint="train a fresh adapter, or merge the first run's and go on from that model")
    return apply_adapter(model, Path(start.name_or_path)).merge_and_unload()


def head_options(head: Head | None) -> dict[str, Any]:
    """Returns the configuration's fields that describe a head, for ``from_pretrained``."""
    if head is None:
        return {}
    names = dict(enumerate(head.labels))
    fields = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    pooling = {"classifier_pooling": head.pooling} if head.pooling else {}
    return {"num_labels": len(names), "problem_type": head.problem, **fields, **pooling}


def _new_model(
    recipe: Recipe, tokenizer: Any, dtype: str, options: dict[str, Any], head: Head | None
) -> "PreTrainedModel":
    """Creates a model with random weights."""
    import torch

    weights = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    config = new_config(recipe.model, tokenizer)
    for name, value in head_options(head).items():
        setattr(config, name, value)
    model = auto_class(_kind(recipe, head, config)).from_config(config, dtype=weights, **options)
    if recipe.model.mup_base:
        mup.initialise(model, mup_base(recipe.model, tokenizer))
    return model


def agree(model: "PreTrainedModel", tokenizer: Any) -> None:
    """Gives the model room for the tokenizer's tokens and its special ids; generation stops at either end token."""
    make_room(model, tokenizer)
    config: Any = model.config.get_text_config()
    config.pad_token_id = tokenizer.pad_token_id
    if not model.can_generate():
        config.eos_token_id = tokenizer.eos_token_id
        return
    ends = model.generation_config.eos_token_id  # type: ignore[union-attr]
    ends = ends if isinstance(ends, list) else [ends] if ends is not None else []
    config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id  # type: ignore[union-attr]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *(e for e in ends if e != tokenizer.eos_token_id)]  # type: ignore[union-attr]


def quantization_config(recipe: Recipe) -> "BitsAndBytesConfig":
    """Returns the bitsandbytes settings of QLoRA (Dettmers et al. 2023, arXiv:2305.14314, section 3)."""
    import torch
    from transformers import BitsAndBytesConfig

    if recipe.quantization is None or recipe.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.float32 if recipe.trainer.get("bf16") is False or not torch.cuda.is_available() else torch.bfloat16
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=recipe.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def keep_linear4bit_unpacked(model: "PreTrainedModel") -> None:
    """Stops bitsandbytes from repacking 4-bit weights for AVX-512 at the first evaluation.

    The repacked layer no longer passes gradients through the base, and a merge of it is wrong, both silently
    (seen with bitsandbytes 0.50.2 on CPUs with avx512_bf16).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
