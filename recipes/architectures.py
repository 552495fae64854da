"""What a model is made of, read from its config.json alone: parameters, shapes of matrices, windows of attention."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from .load import Loaded

_PUBLISHED = Path(__file__).parent / "architectures.yaml"
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "modernbert", "gpt2")
_TIED = ("gemma3_text", "modernbert", "gpt2")  # whose output layer is the embeddings, unless config.json says otherwise
_GPT2 = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}

Reads = Literal["attention", "attention output", "mlp", "mlp output"]


@dataclass(frozen=True)
class Matrix:
    """A linear layer of each of a model's layers.

    Attributes:
        inputs: Its columns.
        outputs: Its rows.
        reads: What it is applied to; those that read the same share one input.
        bias: Whether it has one.
    """

    inputs: int
    outputs: int
    reads: Reads
    bias: bool

    @property
    def size(self) -> int:
        """Weights, bias included."""
        return self.outputs * (self.inputs + self.bias)


@dataclass(frozen=True)
class Architecture:
    """A stack of equal transformer layers.

    Attributes:
        model_type: As transformers calls it.
        vocab: Rows of the embeddings.
        hidden: Width of the residual stream.
        intermediate: Width inside the feed-forward block, which is gated but in GPT-2.
        heads: Of queries.
        kv_heads: Of keys and values.
        head_dim: Width of a head.
        windows: Of each layer, how many tokens a token sees at most; None for all.
        matrices: The linear layers of one layer by their names in it.
        norms: Norms over the residual stream or what is added to it, in one layer.
        qk_norm: Whether queries and keys are normed.
        trained_norms: Weights of the norms of all layers and of the last one.
        tied: Whether the output layer is the embeddings.
        dtype: What its weights are saved in.
        is_encoder: Whether a token sees those behind it.
        positions: Places that have an embedding of their own, in GPT-2.
        dropout: Whether training drops numbers, as GPT-2's unless its config.json says otherwise.
        unread: Parameters that no text reaches, and no text trains: a vision tower's and its projector's.
        source: Where the shapes are from, in words; empty if from the model's own config.json.
    """

    model_type: str
    vocab: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    matrices: Mapping[str, Matrix]
    norms: int
    qk_norm: bool
    trained_norms: int
    tied: bool
    dtype: str
    is_encoder: bool
    positions: int
    dropout: bool
    unread: int
    source: str = ""

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.windows)

    @property
    def table(self) -> int:
        """Weights of the embeddings."""
        return self.vocab * self.hidden

    @cached_property
    def linear(self) -> int:
        """Weights of the linear layers of all layers."""
        return self.layers * sum(matrix.size for matrix in self.matrices.values())

    @property
    def body(self) -> int:
        """Parameters without any output layer or head."""
        return self.unread + self.table + self.positions * self.hidden + self.linear + self.trained_norms

    def parameters(self, outputs: int | None = None) -> int:
        """Counts all parameters, tied ones once.

        Args:
            outputs: Of a classification head; None for a language model.
        """
        # ModernBERT's head is a matrix and a norm before the last layer, which has a bias.
        head = self.hidden * (self.hidden + 1) if self.is_encoder else 0
        if outputs is not None:
            return self.body + head + outputs * (self.hidden + self.is_encoder)
        return self.body + head + (self.vocab if self.is_encoder else 0) + (0 if self.tied else self.table)


def read(config: Mapping[str, Any]) -> Architecture | None:
    """Reads a config.json; None for an architecture whose layers are not known here.

    Raises:
        KeyError: It lacks a size.
    """
    kind = config["model_type"]
    if kind not in _FAMILIES:
        return None
    is_encoder, gemma, gpt2 = kind == "modernbert", kind == "gemma3_text", kind == "gpt2"
    if gpt2:
        config = {_GPT2.get(key, key): value for key, value in config.items()}
        config["intermediate_size"] = config.get("n_inner") or 4 * config["hidden_size"]
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    inner, heads = config["intermediate_size"], config["num_attention_heads"]
    keys = heads if is_encoder else config.get("num_key_value_heads") or heads
    width = config.get("head_dim") or (256 if gemma else hidden // heads)
    biased, mlp_biased = config.get("attention_bias", False), config.get("mlp_bias", False)
    query, key = heads * width, keys * width
    if is_encoder:
        matrices = {
            "attn.Wqkv": Matrix(hidden, query + 2 * key, "attention", biased),
            "attn.Wo": Matrix(query, hidden, "attention output", biased),
            "mlp.Wi": Matrix(hidden, 2 * inner, "mlp", mlp_biased),
            "mlp.Wo": Matrix(inner, hidden, "mlp output", mlp_biased),
        }
    elif gpt2:
        matrices = {
            "attn.c_attn": Matrix(hidden, 3 * hidden, "attention", True),
            "attn.c_proj": Matrix(hidden, hidden, "attention output", True),
            "mlp.c_fc": Matrix(hidden, inner, "mlp", True),
            "mlp.c_proj": Matrix(inner, hidden, "mlp output", True),
        }
    else:
        biased_qkv = biased or kind == "qwen2"
        matrices = {
            "self_attn.q_proj": Matrix(hidden, query, "attention", biased_qkv),
            "self_attn.k_proj": Matrix(hidden, key, "attention", biased_qkv),
            "self_attn.v_proj": Matrix(hidden, key, "attention", biased_qkv),
            "self_attn.o_proj": Matrix(query, hidden, "attention output", biased),
            "mlp.gate_proj": Matrix(hidden, inner, "mlp", mlp_biased),
            "mlp.up_proj": Matrix(hidden, inner, "mlp", mlp_biased),
            "mlp.down_proj": Matrix(inner, hidden, "mlp output", mlp_biased),
        }
    norms, qk_norm = 4 if gemma else 2, kind in ("qwen3", "gemma3_text")
    weights = (layers * (norms * hidden + 2 * width * qk_norm) + hidden) * (1 + gpt2)  # whose norms have biases
    return Architecture(
        model_type=kind,
        vocab=config["vocab_size"],
        hidden=hidden,
        intermediate=inner,
        heads=heads,
        kv_heads=keys,
        head_dim=width,
        windows=_windows(kind, config, layers),
        matrices=matrices,
        norms=norms,
        qk_norm=qk_norm,
        trained_norms=weights,  # ModernBERT has one after its embeddings in the place of the first layer's first
        tied=config.get("tie_word_embeddings", kind in _TIED),
        dtype=config.get("dtype") or config.get("torch_dtype") or "float32",
        is_encoder=is_encoder,
        positions=config.get("n_positions", 1024) if gpt2 else 0,
        dropout=gpt2 and any(config.get(f"{place}_pdrop", 0.1) for place in ("attn", "resid", "embd")),
        unread=_sight(vision, hidden) if (vision := config.get("vision_config")) else 0,
    )


def _sight(config: Mapping[str, Any], hidden: int) -> int:
    """Counts Gemma 3's SigLIP tower, which has biases everywhere, and the projector to the language model's width."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    patches = (config["image_size"] // config["patch_size"]) ** 2
    embeddings = (3 * config["patch_size"] ** 2 + 1 + patches) * width
    layer = 4 * width * (width + 1) + inner * (2 * width + 1) + width + 4 * width
    return embeddings + config["num_hidden_layers"] * layer + 2 * width + width * (hidden + 1)


def _windows(kind: str, config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """Returns how many tokens each layer sees."""
    if kind == "modernbert":
        every, window = config.get("global_attn_every_n_layers", 3), config.get("local_attention", 128)
        sliding = [number % every != 0 for number in range(layers)]
    else:
        window = config.get("sliding_window")
        every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
        sliding = [kind == "mistral" or (kind == "gemma3_text" and (n + 1) % every != 0) for n in range(layers)]
    types: Sequence[str] | None = config.get("layer_types")
    if types:
        sliding = [name == "sliding_attention" for name in types]
    return tuple(window if slides else None for slides in sliding)


# What earlier steps of a pipeline will have written, by their folders: a model's shape, the tokens of a tokenizer.
Made = Mapping[str, Architecture | int]


def find(loaded: Loaded, made: Made) -> Architecture | str:
    """Returns what the recipe's model is made of, or why that is not known."""
    spec = loaded.recipe.model
    if spec.config is not None:
        return _new(spec.config, str(spec.tokenizer), made)
    found = named(str(spec.name_or_path), made, spec.revision)
    if isinstance(found, str) or spec.layers is None:
        return found
    if max(spec.layers) >= found.layers:
        return f"model.layers names layer {max(spec.layers)} of {found.layers}"
    per_layer = (found.trained_norms - found.hidden) // found.layers
    windows = tuple(found.windows[layer] for layer in spec.layers)
    return replace(found, windows=windows, trained_norms=per_layer * len(windows) + found.hidden)


def named(name: str, made: Made, revision: str | None = None) -> Architecture | str:
    """Returns what a model is made of, given its folder or its name on the Hub, or why that is not known."""
    from huggingface_hub import try_to_load_from_cache

    written = made.get(name)
    if isinstance(written, Architecture):
        return written
    source, file = "", Path(name) / "config.json"
    if not file.parent.is_dir():
        cached = None if Path(name).is_absolute() else try_to_load_from_cache(name, "config.json", revision=revision)
        file = Path(cached) if isinstance(cached, str) else file
    if file.is_file():
        config = json.loads(file.read_text())
    else:
        published = yaml.safe_load(_PUBLISHED.read_text()).get(name)
        if published is None:
            return f"there is no config.json of {name} here"
        config, source = published["config"], f"its published shape; there is no config.json of {name} here"
    try:
        return replace(_read({**config, **config.get("text_config", {})}), source=source)
    except ValueError as error:
        return f"{name}: {error}"


def _new(config: Mapping[str, Any], tokenizer: str, made: Made) -> Architecture | str:
    """Reads `model.config`, whose vocabulary is the tokenizer's unless it says so."""
    values = dict(config)
    if "vocab_size" not in values:
        file, tokens = Path(tokenizer) / "tokenizer.json", made.get(tokenizer)
        if file.is_file():
            from tokenizers import Tokenizer

            tokens = Tokenizer.from_file(str(file)).get_vocab_size()
        if not isinstance(tokens, int):
            return f"the vocabulary is that of the tokenizer {tokenizer}, which is not here"
        values["vocab_size"] = tokens
    try:
        return _read(values)
    except ValueError as error:
        return f"model.config: {error}"


def _read(config: Mapping[str, Any]) -> Architecture:
    """Reads a config.json; a ValueError says why its architecture is not known."""
    try:
        found = read(config)
    except KeyError as error:
        raise ValueError(f"it does not say {error.args[0]}") from error
    if found is None:
        raise ValueError(f"the layers of a {config['model_type']} are not known to `check`")
    return found
