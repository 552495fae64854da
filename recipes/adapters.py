"""Adapters and heads: which weights they train, in which type, and what of them is saved."""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..evals.checkpoints import find_model
from .adapter_types import STATE, TYPES
from .errors import RecipeError
from .job import Job
from .model import Head, head_modules, load_model, unread_modules
from .schema import AdapterSpec
from .trainer_fields import fields_of

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from transformers import PreTrainedModel

_NO_STEPS_YET = 1 << 30  # what AdaLoRA's schedule is laid out for until the trainer has counted its steps


def adapter_config(job: Job, model: "PreTrainedModel") -> "PeftConfig | None":
    """Builds the adapter's configuration; None if the recipe has none.

    It names the commit of a base from the Hub, which whoever puts the adapter on its base needs: peft names none, and
    a branch moves.

    A token that the chat template added has an embedding that no pretraining has seen, and adapters on the linear
    layers would leave it as it is. So its rows of the embeddings are trained, and nothing else of them: the whole
    tables may be most of a small model. Where weights are sharded, the output layer has a bias, or the kind of adapter
    knows of no rows, the embeddings are trained in full. A pad token is never read, so it is not trained.

    Args:
        job: With the recipe's section.
        model: The model it will be put on.

    Raises:
        RecipeError: An adapter on the output layer, whose weight the losses read without calling the layer; one that
            cannot train the embeddings of new tokens, or to go on from that was made before they were.
    """
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    spec = job.loaded.recipe.adapts
    if spec is None:
        return None
    task = "CAUSAL_LM" if model.can_generate() else "SEQ_CLS"
    base = job.loaded.recipe.model
    revision = find_model(str(base.name_or_path or ""), base.revision).revision
    if spec.name_or_path:
        config = PeftConfig.from_pretrained(spec.name_or_path)
        config.revision = revision
        config.inference_mode = False
        _refuse_untrained_tokens(job, config, model)
        return config
    kind, options = spec.kind, _options(spec, job)
    tables, tied, biased = _embeddings(model)
    saved = [*(options.get("modules_to_save") or []), *([] if model.can_generate() else head_modules(model))]
    grown: list[str] = []  # whose new rows are trained by themselves; of tied tables the first stands for both
    if job.new_tokens:
        _refuse_new_tokens(job, spec)
        grown = _frozen_tables(tables, saved, tied)
    if grown and (biased or _is_sharded() or "trainable_token_indices" not in kind.fields):
        saved, grown = [*saved, *grown], []
    if grown:
        given = options.get("trainable_token_indices") or {}
        given = given if isinstance(given, dict) else {tables[0]: given}
        rows = {name: [*dict.fromkeys([*(given.get(name) or ()), *job.new_tokens])] for name in grown}
        options["trainable_token_indices"] = {**given, **rows}
    if saved:
        options["modules_to_save"] = saved
    if "ensure_weight_tying" in kind.fields:
        options["ensure_weight_tying"] = tied and bool(_named(tables, saved))
    if "exclude_modules" in kind.fields and (unread := unread_modules(model)):
        options.setdefault("exclude_modules", rf"({'|'.join(map(re.escape, unread))})\..*")
    config = PEFT_TYPE_TO_CONFIG_MAPPING[spec.type.upper()](task_type=task, revision=revision, **options)  # type: ignore[index]
    if not kind.virtual:
        _refuse_adapted_output(config, tables if tied else tables[1:], tied, job)
    return config


def _options(spec: AdapterSpec, job: Job) -> dict[str, Any]:
    """Returns the fields of the adapter's configuration, mappings made into the classes that they stand for."""
    import importlib

    options = spec.options
    for name, field in fields_of(spec.kind.config).items():
        if field.nested and isinstance(options.get(name), dict):
            package, file, kind = field.nested.split(":")
            module = importlib.import_module(f"{package}.{file.removesuffix('.py').replace('/', '.')}")
            options[name] = getattr(module, kind)(**options[name])
    if "total_step" in spec.kind.fields:
        options["total_step"] = _NO_STEPS_YET
    if "tokenizer_name_or_path" in spec.kind.fields:
        model = job.loaded.recipe.model
        options.setdefault("tokenizer_name_or_path", model.tokenizer or model.name_or_path)
    return options


def _refuse_new_tokens(job: Job, spec: AdapterSpec) -> None:
    """Refuses new tokens where their embeddings would stay as no training has left them."""
    if spec.kind.virtual or "modules_to_save" not in spec.kind.fields:
        names = " ".join(job.tokenizer.convert_ids_to_tokens(list(job.new_tokens[:4])))
        raise RecipeError(
            f"adapter.type: {spec.type} trains no embeddings, and the model has yet to learn {names}",
            hint="name a model.chat_template whose tokens the model knows, or train with lora",
        )


def _refuse_untrained_tokens(job: Job, config: "PeftConfig", model: "PreTrainedModel") -> None:
    """Refuses to go on from an adapter that trains no rows for new tokens."""
    tables, tied, _ = _embeddings(model)
    given = getattr(config, "trainable_token_indices", None) or {}
    given = given if isinstance(given, dict) else {tables[0]: given}
    tokens = set[int]()
    for table in _frozen_tables(tables, getattr(config, "modules_to_save", None) or [], tied):
        tokens |= {*job.new_tokens}.difference(*(rows for name, rows in given.items() if table.endswith(name)))
    if tokens:
        names = " ".join(job.tokenizer.convert_ids_to_tokens(sorted(tokens)[:4]))
        hint = "merge the first run and train a fresh adapter"
        hint += ", or drop model.chat_template" if job.loaded.recipe.model.chat_template else ""
        raise RecipeError(f"adapter.name_or_path: it trains no rows for {names}", hint=hint)


def _embeddings(model: "PreTrainedModel") -> tuple[list[str], bool, bool]:
    """Returns the names of the input embeddings and the output layer, whether they are one, and if that has a bias."""
    output: Any = model.get_output_embeddings() if model.can_generate() else None
    modules = {module: name for name, module in model.named_modules()}
    tables = [modules[layer] for layer in (model.get_input_embeddings(), output) if layer is not None]
    tied = output is not None and bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    return tables, tied, getattr(output, "bias", None) is not None


def _named(tables: list[str], modules: list[str]) -> list[str]:
    """Returns those of the tables that ``modules_to_save`` names, by the ends of their names, as peft does."""
    return [name for name in tables if any(name.endswith(module) for module in modules)]


def _frozen_tables(tables: list[str], saved: list[str], tied: bool) -> list[str]:
    """Returns the tables that ``modules_to_save`` leaves frozen; of tied ones the first stands for both."""
    whole = _named(tables, saved)
    return ([] if whole else tables[:1]) if tied else [name for name in tables if name not in whole]


def _refuse_adapted_output(config: Any, names: list[str], tied: bool, job: Job) -> None:
    """Refuses adapters on the output layer, and on the input embeddings where the two are one."""
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND

    targets = config.target_modules
    if config.peft_type == "TRAINABLE_TOKENS":
        targets = targets or ["embed_tokens"]  # which peft says later
    if targets in (None, INCLUDE_LINEAR_LAYERS_SHORTHAND):
        return  # peft leaves the output layer out
    aimed = SimpleNamespace(**vars(config) | {"target_modules": targets})
    found = [name for name in names if check_target_module_exists(aimed, name)]
    if found:
        shared, section = ", which it shares with the input embeddings," if tied else "", job.loaded.recipe.section
        raise RecipeError(
            f"{section}.target_modules puts an adapter on {found[0]}: the loss reads the output layer's weight{shared} "
            "and never calls the layer, so the adapter would not be trained",
            where=str(job.loaded.path),
            hint=f"leave it out, or train it in full with {section}.modules_to_save: [{found[0].split('.')[-1]}]",
        )


def _is_sharded() -> bool:
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
    from transformers.integrations.fsdp import is_fsdp_enabled

    return is_deepspeed_zero3_enabled() or is_fsdp_enabled()


def add_adapter(job: Job, model: "PreTrainedModel") -> Any:
    """Puts the recipe's adapters, if it has any, on a model whose trainer does not do so itself."""
    from peft import get_peft_model, prepare_model_for_kbit_training

    config = adapter_config(job, model)
    if config is None:
        return model
    if job.loaded.recipe.quantization:
        on = job.loaded.checkpointing
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=on)  # type: ignore[assignment]
    return get_peft_model(model, config)


def settle(model: Any) -> None:
    """Decides, once a trainer has been built around a model, in which type its weights are trained and what is saved.

    All that is trained beside a frozen base is held in float32: adapters, rows of new tokens, modules trained in full,
    heads. AdamW's updates are smaller than bfloat16 can add to a weight near 1, which is why mixed-precision training
    keeps a float32 copy (Micikevicius et al. 2018, arXiv:1710.03740, section 3.1); peft, which loads a checkpoint's
    adapters in float32, does too. TRL casts them to bfloat16 where the base is quantized, so that a resumed run would
    go on in another type than it began. A model that is trained whole is held in ``model.dtype``. Under ZeRO-3,
    DeepSpeed keeps the float32 copy.

    Modules trained in full take what a base in 16 bits gives them and give it what it takes; a head computes in its own
    type, whatever autocast would make of it. Adapter files hold what was trained and nothing else: peft would add the
    embeddings of a vocabulary that grew. Only tied tables that are trained in full stand there under both their names:
    peft loads no file that lacks either, and safetensors lets no two names share their numbers.

    What no text reaches, such as a vision tower, stays as it is.

    Args:
        model: A model or a peft model, changed in place.
    """
    adapted = hasattr(model, "peft_config")
    base = model.get_base_model() if adapted else model
    heads = [] if base.can_generate() else [getattr(base, name) for name in head_modules(base)]
    for name in unread_modules(base):
        base.get_submodule(name).requires_grad_(False)
    if adapted:
        _settle_adapters(model, base, heads)
    for head in heads:
        _own_type(head)


def _settle_adapters(model: Any, base: Any, heads: list[Any]) -> None:
    import torch
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    for weight in model.parameters():
        if weight.requires_grad and not hasattr(weight, "ds_id"):
            weight.data = weight.data.to(torch.float32)
    output = base.get_output_embeddings() if base.can_generate() else None
    for wrapper in base.modules():
        if isinstance(wrapper, TrainableTokensWrapper):
            wrapper.register_parameter("bias", None)  # TRL asks the output layer for it; `adapter_config` made sure
        if isinstance(wrapper, ModulesToSaveWrapper) and not any(wrapper is head for head in heads):
            frozen = next(wrapper.original_module.parameters()).dtype
            for module in wrapper.modules_to_save.values():
                _own_type(module, autocast=True, gives=None if wrapper is output else frozen)
    for config in model.peft_config.values():  # peft saves sets of names as they come, in another order each time
        for name, value in vars(config).items():
            if isinstance(value, set):
                setattr(config, name, sorted(value))
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)
    kind = next(iter(model.peft_config.values())).peft_type.value.lower()
    if kind == "adaption_prompt":  # peft holds the base's forward pass as it was before a trainer put its own in place
        model.base_model.forward = base.forward
    if TYPES[kind].forgets:
        model.save_pretrained = functools.partial(_save, model, model.save_pretrained)
        model.load_adapter = functools.partial(_load, model, model.load_adapter)


# --- What an adapter's own file forgets ---
#
# P-tuning and prefix tuning with a projection keep the virtual tokens that their networks made, and AdaLoRA the ranks
# that are left of its matrices. A run that went on from there would go another way (P-tuning, with peft 0.21), or fail.


def _save(model: Any, save: Callable[..., Any], folder: str, **options: Any) -> None:
    """Saves an adapter as peft does, and beside it all that is trained with what allocates ranks."""
    from safetensors.torch import save_file

    save(folder, **options)
    tensors = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    config, allocator = next(iter(model.peft_config.values())), allocator_of(model)
    if allocator is not None:
        for group in _IMPORTANCE:
            tensors |= {f"{group}/{name}": value for name, value in getattr(allocator, group).items()}
    pattern = json.dumps(config.rank_pattern if allocator is not None else None)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    save_file(tensors, Path(folder) / STATE, {"format": "pt", "rank_pattern": pattern})


def _load(model: Any, load: Callable[..., Any], folder: str, *arguments: Any, **options: Any) -> Any:
    """Takes up what ``_save`` has kept; without it, what peft loads."""
    import torch
    from safetensors import safe_open

    path = Path(folder) / STATE
    if not path.is_file():
        return load(folder, *arguments, **options)
    places, allocator = dict(model.named_parameters()), allocator_of(model)
    with safe_open(path, "pt") as kept, torch.no_grad():
        for name in kept.keys():  # noqa: SIM118  # not a dict
            group, _, rest = name.partition("/")
            tensor = kept.get_tensor(name)
            if rest:
                getattr(allocator, group)[rest] = tensor.to(model.device)
            else:
                places[name].copy_(tensor)
        if allocator is not None:
            next(iter(model.peft_config.values())).rank_pattern = json.loads(kept.metadata()["rank_pattern"])
    return None


_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def allocator_of(model: Any) -> Any:
    """Returns what shares out AdaLoRA's ranks; None for other adapters."""
    return getattr(getattr(model, "base_model", None), "rankallocator", None)


def _own_type(module: Any, *, autocast: bool = False, gives: "torch.dtype | None" = None) -> None:
    """Makes a module compute in the type of its own weights, or in autocast's, and give its result in another."""
    import torch

    forward = module.forward

    def run(*values: Any, **options: Any) -> Any:
        parameters = list(module.parameters())
        weight = next((parameter for parameter in parameters if parameter.requires_grad), parameters[0])
        device = weight.device.type
        with torch.autocast(device, enabled=autocast and torch.is_autocast_enabled(device)):
            result = forward(*(_cast(value, weight.dtype) for value in values), **options)
        return _cast(result, gives)

    module.forward = run


def _cast(value: Any, dtype: "torch.dtype | None") -> Any:
    import torch

    floats = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if floats and dtype is not None else value


def merge_adapter(job: Job, adapter: Path, head: Head | None = None) -> "PreTrainedModel":
    """Loads the base anew in 16 or 32 bits and merges an adapter into it; merging into 4-bit weights would be lossy."""
    from peft import PeftModel
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # only this process loads the base: under ZeRO-3 it would wait for the others' shards
    base = load_model(job.loaded.recipe.model_copy(update={"quantization": None}), job.tokenizer, head)
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()  # type: ignore[operator]
