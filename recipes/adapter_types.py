"""What must be known of each of peft's kinds of adapters before anything heavy is imported.

The table is over peft's own mapping of types, and a test fails when that has a type which the table does not know. An
adapter's fields are those of peft's own configuration class, checked as ``trainer:`` is, and never redeclared.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..chat_templates.errors import did_you_mean
from .trainer_fields import checkpointing_field, fields_of, problems

STATE = "adapter_state.safetensors"
"""Beside an adapter whose own file is for use alone: what its training goes on from."""
MOVES_BASE = ("pissa", "olora", "loftq")
"""How the starts of LoRA begin that take out of the base what they put into the adapter: switching the adapter off does
not give the base back."""
_BEFORE = "its virtual tokens stand before a text, and not in the weights"
_NO_HEAD = "it neither trains nor saves one"
_PADDING = "peft gives the model embeddings without their tokens, and the head then reads the padding behind a text"
_BY_TASK = "learns by tasks, and rows do not say of which task they are"
# Fields that posttrain sets from elsewhere, or that mean nothing here.
_DATA_PASS = "needs a pass over the data before the training, which is not made here"
_OWNED: Mapping[str, str] = {
    "peft_type": "say type",
    "task_type": "the stage says it",
    "base_model_name_or_path": "say model.name_or_path",
    "revision": "say model.revision",
    "inference_mode": "an adapter in a recipe is trained",
    **dict.fromkeys(("auto_mapping", "peft_version", "runtime_config"), "peft writes it"),
    **dict.fromkeys(("megatron_config", "megatron_core"), "Megatron's models are not trained here"),
    **dict.fromkeys(("corda_config", "eva_config", "lora_ga_config"), _DATA_PASS),
    "arrow_config": "it routes among adapters that are trained already",
    "total_step": "it is the number of the trainer's steps",
    "use_asa": "a checkpoint would not hold what its allocator goes on from; adalora's is kept",
}
# By a key and a pattern of its values: what is wrong with these, and a hint.
_OWNED_WORDS: Mapping[tuple[str, str], tuple[str, str | None]] = {
    ("init_lora_weights", "eva"): (_DATA_PASS, None),
    ("init_lora_weights", "corda"): (_DATA_PASS, None),
    ("init_lora_weights", r"pissa_niter_\d+"): (
        "draws its start, which peft does again, and otherwise, each time the adapter is loaded",
        "say pissa",
    ),
}
# What users call a kind or a start of LoRA, which are fields of it or of the recipe.
_LORA = {
    "dora": "use_dora: true",
    "rslora": "use_rslora: true",
    "rs_lora": "use_rslora: true",
    "qlora": "quantization: nf4 beside the adapter section",
    **{start: f"init_lora_weights: {start}" for start in ("pissa", "olora")},
    "loftq": "init_lora_weights: loftq, loftq_config: {loftq_bits: 4, loftq_iter: 1}, on a CUDA GPU",
}


@dataclass(frozen=True)
class AdapterType:
    """A kind of adapter.

    Attributes:
        config: Its configuration class, as ``trainer_fields.fields_of`` takes it.
        refused: Why it is not trained here, if it is not.
        virtual: Whether it puts learned tokens before a text (prompt learning): peft then drops the positions that
            keep packed documents apart, and the losses here that read hidden states would leave the tokens out.
        cached: Whether these stand in the cache of keys and values, which activation checkpointing knows nothing of.
        apart: Why it cannot be made one with the weights of its base, if it cannot.
        headless: Why no classification head is trained with it, if none is.
        quantizes: Whether it leaves quantized weights alone or reads them through what peft has for that: others take
            the packed bytes for numbers, most with an error, some without.
        forgets: Whether its file is for use alone, so that a checkpoint needs more to go on from.
    """

    config: str
    refused: str | None = None
    virtual: bool = False
    cached: bool = False
    apart: str | None = None
    headless: str | None = None
    quantizes: bool = False
    forgets: bool = False

    @property
    def fields(self) -> frozenset[str]:
        """The names of its fields."""
        return frozenset(fields_of(self.config))


def _type(folder: str, name: str, **options: Any) -> AdapterType:
    return AdapterType(f"peft:tuners/{folder}/config.py:{name}", **options)


def _virtual(folder: str, name: str, **options: Any) -> AdapterType:
    return _type(folder, name, virtual=True, quantizes=True, apart=_BEFORE, **options)


TYPES: Mapping[str, AdapterType] = {
    "adalora": _type("adalora", "AdaLoraConfig", quantizes=True, forgets=True),
    "adamss": _type("adamss", "AdamssConfig"),
    "adaption_prompt": _type(
        "adaption_prompt",
        "AdaptionPromptConfig",
        apart="it adds to what attention gives, not to weights",
        quantizes=True,
        headless=_NO_HEAD,
    ),
    "beft": _type("beft", "BeftConfig", apart="it trains biases, and most bases have none to add them to"),
    "boft": _type("boft", "BOFTConfig"),
    "c3a": _type("c3a", "C3AConfig"),
    "cartridge": _virtual("cartridge", "CartridgeConfig", cached=True),
    "cpt": _virtual("cpt", "CPTConfig", refused="its loss needs all logits, which TRL's trainers never make"),
    "deft": _type("deft", "DeftConfig"),
    "delora": _type("delora", "DeloraConfig"),
    "fourierft": _type("fourierft", "FourierFTConfig"),
    "frod": _type("frod", "FrodConfig"),
    "glora": _type("glora", "GloraConfig"),
    "gralora": _type("gralora", "GraloraConfig"),
    "hira": _type("hira", "HiraConfig", quantizes=True),
    "hra": _type("hra", "HRAConfig"),
    "ia3": _type("ia3", "IA3Config", quantizes=True),
    "lily": _type(
        "lily",
        "LilyConfig",
        refused="its layers average over all tokens of a batch, those to come and other rows' too, so a token would "
        "see the one that it is to predict",
    ),
    "ln_tuning": _type("ln_tuning", "LNTuningConfig", quantizes=True, headless="merging leaves it in peft's wrapper"),
    "loha": _type("loha", "LoHaConfig"),
    "lokr": _type("lokr", "LoKrConfig"),
    "lora": _type("lora", "LoraConfig", quantizes=True),
    "miss": _type("miss", "MissConfig"),
    "multitask_prompt_tuning": _virtual("multitask_prompt_tuning", "MultitaskPromptTuningConfig", refused=_BY_TASK),
    "oft": _type("oft", "OFTConfig"),
    "osf": _type("osf", "OSFConfig"),
    "p_tuning": _virtual("p_tuning", "PromptEncoderConfig", forgets=True, headless=_PADDING),
    "peanut": _type("peanut", "PeanutConfig"),
    "poly": _type("poly", "PolyConfig", refused=_BY_TASK),
    "prefix_tuning": _virtual("prefix_tuning", "PrefixTuningConfig", cached=True, forgets=True),
    "prompt_tuning": _virtual("prompt_tuning", "PromptTuningConfig", headless=_PADDING),
    "psoft": _type("psoft", "PsoftConfig"),
    "pvera": _type("pvera", "PveraConfig", quantizes=True),
    "randlora": _type("randlora", "RandLoraConfig", quantizes=True),
    "road": _type("road", "RoadConfig", quantizes=True),
    "shadow": _type("shadow", "ShadowConfig", refused="peft's own forward pass of it fails in training"),
    "shira": _type("shira", "ShiraConfig"),
    "supertuning": _type("supertuning", "SupertuningConfig"),
    "tinylora": _type("tinylora", "TinyLoraConfig"),
    "trainable_tokens": _type("trainable_tokens", "TrainableTokensConfig", quantizes=True, headless=_NO_HEAD),
    "unilora": _type("unilora", "UniLoraConfig"),
    "vblora": _type("vblora", "VBLoRAConfig"),
    "vera": _type("vera", "VeraConfig"),
    "waveft": _type("waveft", "WaveFTConfig"),
    "xlora": _type("xlora", "XLoraConfig", refused="it mixes adapters that are trained already, each in its folder"),
}


_PAST_THE_ADAPTER = "its loss reads hidden states past the adapter's own forward pass, without the virtual tokens"
_OF_HIDDEN_STATES = dict.fromkeys(("ppo", "distill", "distill_on_policy"), _PAST_THE_ADAPTER)
_OTHERS = "lora, ia3 or another that changes layers does"


def adapter_problems(
    section: Mapping[str, Any], recipe: Mapping[str, Any], *, headed: bool
) -> Iterator[tuple[str, str, str | None]]:
    """Yields what is wrong with a recipe's ``adapter:`` section.

    Args:
        section: The section.
        recipe: The whole recipe, as plain values.
        headed: Whether the stage trains a classification head.

    Yields:
        The key, what is wrong, and a hint.
    """
    name, stage, trainer = section.get("type"), recipe["stage"], recipe["trainer"]
    if not isinstance(name, str) or name not in TYPES:
        word = str(name).lower()
        hint = f"say type: lora and {_LORA[word]}" if word in _LORA else did_you_mean(word, TYPES)
        hint = hint or f"one of {', '.join(TYPES)}"
        yield "type", "this key is required" if name is None else f"there is no type {name!r}", hint
        return
    kind = TYPES[name]
    if kind.refused:
        yield "type", f"{name} is not trained here: {kind.refused}", None
        return
    fields = fields_of(kind.config)
    if kind.virtual and stage in _OF_HIDDEN_STATES:
        yield "type", f"{name} does not go with the stage {stage}: {_OF_HIDDEN_STATES[stage]}", _OTHERS
    if kind.virtual and not kind.cached and stage == "orpo":
        what = f"{name} does not go with the stage orpo, whose loss takes as many logits as a row has tokens"
        yield "type", what, "prefix_tuning does"
    if kind.headless and headed:
        yield "type", f"{name} does not go with the stage {stage}, which trains a head: {kind.headless}", _OTHERS
    if recipe.get("quantization") and not kind.quantizes:
        able = ", ".join(other for other, its in TYPES.items() if its.quantizes and not its.refused)
        yield "type", f"{name} cannot read weights that quantization has packed", f"these can: {able}"
    if kind.virtual and trainer.get("packing"):
        what = f"{name} does not go with trainer.packing: its documents would see each other, as peft drops positions"
        yield "type", what, "say trainer.packing: false"
    checkpointing = checkpointing_field(trainer)
    if kind.cached and checkpointing and trainer[checkpointing]:
        what = f"{name} does not go with trainer.{checkpointing}: recomputed layers would not find its tokens"
        yield "type", what, "drop one of the two"
    values = {key: value for key, value in section.items() if key != "type"}
    for key in sorted(values.keys() & _OWNED.keys() & fields.keys()):
        yield key, "is not for this section", _OWNED[key]
    rest = {key: value for key, value in values.items() if key not in _OWNED}
    known = {key: field for key, field in fields.items() if key not in _OWNED}
    for key, what, hint in problems(rest, known):
        yield key, what, f"known keys: {', '.join(sorted(known))}" if key not in known and hint is None else hint
    for (key, pattern), (why, hint) in _OWNED_WORDS.items():
        if re.fullmatch(pattern, str(values.get(key))):
            yield key, f"{values[key]} {why}", hint
