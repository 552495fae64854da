"""What a run will need, before it is started: parameters, memory, compute. Arithmetic on shapes alone, no model loaded.

The memory of a training step is the largest of a few moments, each a sum of parts: when the loss is computed all
activations are there, and no gradients yet but those of the output layer; when the backward pass ends, all gradients.
What a layer keeps for its backward pass follows from its operations: each counts what autograd saves for it once.
``benchmarks/estimate_memory.md`` holds these figures against measured ones.
"""

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .architectures import Architecture, Matrix, Reads
from .errors import RecipeError
from .load import Loaded

if TYPE_CHECKING:
    from ..data_tools.prepare import Prepared
    from .job import Job
    from .model import Head

GIB = 2**30
# The tiles in which TRL's fused output layer computes log-probabilities (`trl.kernels.chunked_logprob`).
_TILE_TOKENS, _TILE_VOCAB = 4096, 32768
# Without Triton, its backward pass holds so many float32 tiles: logits, scaled, at temperature, log p, p, gradient, and
# two of the product that is added to it.
_TILES_WITHOUT_TRITON = 8
# NF4 and FP4 with double quantization take 4.127 bits a weight (Dettmers et al. 2023, arXiv:2305.14314, section 3).
QUANTIZED_BITS = {"nf4": 4.127, "fp4": 4.127, "int8": 8.0}
# Numbers that an optimizer keeps of a weight, by words in its name; AdamW's two moments otherwise.
_STATES = {"ademamix": 3, "lion": 1, "adafactor": 0, "schedule_free_sgd": 1, "sgd": 0, "lomo": 0}
_STATES |= {"rmsprop": 1, "adagrad": 1}
# Their bytes, by words in its name: bitsandbytes and torchao do not ask what the weights are in, all others do. Blocks
# of 256 share a float32 scale; tensors below 4,096 numbers, which are few, stay in float32.
_STATE_BYTES = {"8bit": 1 + 4 / 256, "4bit": 0.5 + 4 / 256, "32bit": 4, "bnb": 4, "ademamix": 4}
# Copies of the largest tensor that an optimizer makes as it updates it; the fused AdamW, the default, makes none.
_UPDATE_COPIES = {"adafactor": 2}  # its squared gradient or its negative step, beside the step


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model.

    Attributes:
        total: All of the model's own, tied ones once; adapters are not among them.
        trainable: Those that receive gradients, adapters or all; 0 where that is up to the numbers of the base's
            weights.
        embeddings: Those of the input and output embeddings, which quantization leaves alone.
        new_tokens: Of the trainable ones, those of rows for tokens that the chat template added.
    """

    total: int
    trainable: int
    embeddings: int = 0
    new_tokens: int = 0


@dataclass(frozen=True)
class Machine:
    """What a run is launched on.

    Attributes:
        gpu: Whether it computes in bfloat16 unless told otherwise, and has Triton; else it is a CPU in float32.
        processes: How many train together.
        zero: DeepSpeed's ZeRO stage, 1 to 3; 0 without.
        fsdp: Whether weights are sharded by FSDP.
        offload_optimizer: Whether the optimizer's state lies in the host's memory.
        offload_weights: Whether the weights do, but those in use.
    """

    gpu: bool = True
    processes: int = 1
    zero: int = 0
    fsdp: bool = False
    offload_optimizer: bool = False
    offload_weights: bool = False

    @property
    def engine(self) -> str | None:
        """What cuts weights or what belongs to them into shards."""
        return "DeepSpeed" if self.zero else "FSDP" if self.fsdp else None


@dataclass(frozen=True)
class Setup:
    """A training step.

    Attributes:
        architecture: The model's.
        size: Its parameters.
        machine: Where it runs.
        batch: Examples of a batch on one process.
        rows_each: Rows of an example: two for the two answers of a pair.
        length: Tokens of a row.
        weight_bytes: Of a weight of the base, where it is not quantized.
        compute_bytes: Of a number that matrices are multiplied with.
        mixed: Whether these are made of others at each use (mixed precision), not what weights are held in.
        bits: Of a quantized weight; 0 if none is.
        ranks: Of the adapters on matrices of a layer, by the matrices' names; None where all weights are trained.
        tables: Which of the `input` and `output` tables are trained whole beside the adapters.
        optimizer: Its name in transformers.
        optim_args: Its options, as ``trainer.optim_args`` has them.
        projected: Matrices of a layer, and the output layer, whose gradients GaLore and APOLLO project.
        accumulates: Whether gradients of earlier batches of the step are there.
        checkpointing: Whether only the inputs of layers are kept, and all else computed again.
        attention: `sdpa`, `eager` or `flash`.
        masked: Whether attention needs a mask, as packed rows and padding do.
        loss: How logits are computed: `fused` (TRL's tiles), `full`, `masked` (of an encoder),
            `chunked` or `head` (a few numbers a row).
        chunk: Tokens whose logits are there at the same time, for `chunked`.
        share: Of tokens that carry loss, for `masked`.
        others: Bytes of what else is there, by name: reference, teacher, reward models.
        critic: The step of a second model that is trained beside it, as PPO's value function.
        turns: Batches for which completions are generated at the same time; 0 where none are.
        passes: Forward passes a token beside the trained one's, in units of the model.
        readers: Frozen models of shapes of their own, by name.
    """

    architecture: Architecture
    size: ModelSize
    machine: Machine
    batch: int
    rows_each: int
    length: int
    weight_bytes: int
    compute_bytes: int
    mixed: bool = False
    bits: float = 0
    ranks: Mapping[str, int] | None = None
    tables: frozenset[str] = frozenset()
    optimizer: str = "adamw_torch_fused"
    optim_args: Mapping[str, str] = field(default_factory=dict)
    projected: frozenset[str] = frozenset()
    accumulates: bool = False
    checkpointing: bool = False
    attention: str = "sdpa"
    masked: bool = False
    loss: str = "fused"
    chunk: int = 0
    share: float = 0
    others: Mapping[str, float] = field(default_factory=dict)
    critic: "Setup | None" = None
    turns: int = 0
    passes: float = 0
    readers: "Mapping[str, Reader]" = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Of a batch on one process."""
        return self.batch * self.rows_each * self.length

    @property
    def casts(self) -> bool:
        """Whether autocast makes 16-bit copies; DeepSpeed holds all weights in 16 bits instead."""
        return self.mixed and not self.machine.zero

    def of_critic(self) -> "Setup | None":
        """Returns the critic's step on the same rows and machine."""
        return self.critic and replace(self.critic, batch=self.batch, length=self.length, machine=self.machine)


@dataclass(frozen=True)
class Reader:
    """A model that learns nothing and reads what another is trained on: a teacher, a reward model.

    Attributes:
        architecture: Its shape.
        headed: Whether a head stands in the place of its output layer.
        passes: How often it reads each trained token.
    """

    architecture: Architecture
    headed: bool
    passes: float


def size_of(loaded: Loaded, architecture: Architecture, outputs: int | None) -> ModelSize:
    """Counts the parameters that a recipe trains; tokens that its template may add are left out.

    Args:
        loaded: The recipe.
        architecture: Its model's.
        outputs: Of a classification head.
    """
    total = architecture.parameters(outputs)
    tables = architecture.table * (1 if architecture.tied or outputs is not None else 2)
    ranks = adapted(loaded, architecture)
    if ranks is None:
        return ModelSize(total, total - architecture.unread, tables)
    spec = loaded.recipe.adapts
    assert spec is not None, "there are ranks"
    trained = total - architecture.body if outputs is not None else 0
    if spec.type != "lora":  # virtual tokens: an embedding of each, or the keys and values of each in every layer
        keys = 2 * architecture.layers * architecture.kv_heads * architecture.head_dim
        width = {"prompt_tuning": architecture.hidden, "prefix_tuning": keys}.get(spec.type)
        if width is None or spec.options.get("prefix_projection"):
            return ModelSize(total, 0, tables)
        return ModelSize(total, trained + width * spec.options.get("num_virtual_tokens", 0), tables)
    trained += architecture.table * len(saved_tables(loaded, architecture))
    for name, rank in ranks.items():
        matrix = architecture.matrices[name]
        trained += architecture.layers * (
            rank * (matrix.inputs + matrix.outputs) + (matrix.outputs if spec.options.get("use_dora") else 0)
        )
    return ModelSize(total, trained, tables)


def adapted(loaded: Loaded, architecture: Architecture) -> dict[str, int] | None:
    """Returns the ranks of the adapters on a layer's matrices; None if all weights are trained.

    Of kinds other than LoRA it knows none: what most of them train is counted once the model is built.
    """
    spec = loaded.recipe.adapts
    if spec is None:
        return None
    if spec.type != "lora":
        return {}
    by_default = ["c_attn"] if architecture.model_type == "gpt2" else ["q_proj", "v_proj"]  # which is what peft takes
    wanted = spec.options.get("target_modules") or by_default

    def has(name: str) -> bool:
        if isinstance(wanted, str):
            return wanted == "all-linear" or re.fullmatch(wanted, f"model.layers.0.{name}") is not None
        return any(f".{name}".endswith(f".{ending}") for ending in wanted)

    return {name: spec.options.get("r", 8) for name in architecture.matrices if has(name)}


def saved_tables(loaded: Loaded, architecture: Architecture) -> frozenset[str]:
    """Returns which tables are trained whole beside adapters: `input`, `output`; of tied ones `output` is both."""
    options = loaded.recipe.adapts.options if loaded.recipe.adapts else {}
    saved = {str(name).rpartition(".")[2] for name in options.get("modules_to_save") or ()}
    sides = {"embed_tokens": "input", "wte": "input", "lm_head": "output"}
    return frozenset("output" if architecture.tied else sides[name] for name in saved & sides.keys())


def projected(loaded: Loaded, architecture: Architecture) -> frozenset[str]:
    """Returns the names of the matrices that ``optim_target_modules`` names, as transformers reads it.

    Raises:
        RecipeError: It has what is no regular expression.
    """
    wanted = loaded.option("optim_target_modules") or ()

    def has(name: str) -> bool:
        if isinstance(wanted, str):
            return wanted.replace("_", "-") == "all-linear" or re.fullmatch(wanted, name) is not None
        return any(each in name or re.fullmatch(each, name) for each in wanted)

    places = {f"model.layers.0.{name}": name for name in architecture.matrices}
    places |= {} if architecture.tied else {"lm_head": "lm_head"}
    try:
        return frozenset(name for place, name in places.items() if has(place))
    except re.error as error:
        raise RecipeError(f"trainer.optim_target_modules: no regular expression: {error}") from error


# --- Memory ---


def moments(setup: Setup) -> dict[str, dict[str, float]]:
    """Returns the bytes on one device by part, at each moment of a step that may be its peak."""
    # peft trains rows of new tokens by way of a copy of their table, whose gradient is as large as the table.
    table, grown = setup.architecture.table, setup.ranks is not None and setup.size.new_tokens > 0
    head = 4.0 * table if (setup.ranks is None or grown) and setup.loss != "head" else 0.0
    # Tied embeddings receive two gradients: while the second one is made, the first one stands beside it.
    tied = 4.0 * table if grown else head if setup.architecture.tied else 0.0
    base = {"weights": _weights(setup), **_states(setup), **setup.others}
    gradients = _gradients(setup)
    earlier = gradients if setup.accumulates else 0.0
    matrices = max(matrix.size for matrix in setup.architecture.matrices.values())
    largest = 4.0 * (max(table, matrices) if setup.ranks is None else 0)
    kept, layer = activations(setup)
    kept += _stream_bytes(setup) * table if grown and head else 0.0
    found = {
        "loss": {**base, "gradients": earlier + head, "activations": kept, "logits": _logits(setup)},
        "backward pass": {**base, "gradients": earlier + head, "activations": kept + layer},
        "end of the backward pass": {**base, "gradients": gradients + tied},
        "update": {**base, "gradients": gradients, "temporaries": _UPDATE_COPIES.get(setup.optimizer, 0) * largest},
    }
    critic = setup.of_critic()
    if critic:
        for moment, parts in moments(critic).items():
            found[moment]["critic"] = sum(parts.values())
    if setup.turns:
        rows = setup.turns * setup.batch
        logits = 8.0 * rows * setup.architecture.vocab  # of one token of each, and a copy in float32
        found["sampling"] = {**base, "cache": rows * _cache_bytes(setup), "logits": logits}
        if critic:
            found["sampling"]["critic"] = _weights(critic) + sum(_states(critic).values())
    return found


def peak(setup: Setup) -> tuple[str, dict[str, float]]:
    """Returns the moment at which a step needs most memory on one device, and the bytes by part then."""
    found = moments(setup)
    name = max(found, key=lambda moment: sum(found[moment].values()))
    return name, {part: size for part, size in found[name].items() if size}


def host_bytes(setup: Setup) -> float:
    """Returns what offloading puts in the host's memory, for one process."""
    machine = setup.machine
    states = _state_bytes(setup) / machine.processes if machine.offload_optimizer else 0.0
    weights = setup.compute_bytes * setup.size.total / machine.processes if machine.offload_weights else 0.0
    return states + weights


def _weight_bytes(setup: Setup) -> int:
    """Returns the bytes of a trained weight: ZeRO trains in the compute type, and keeps float32 ones as state."""
    if setup.machine.zero:
        return setup.compute_bytes
    return 4 if setup.ranks is not None else setup.weight_bytes


def _weights(setup: Setup) -> float:
    """Returns the bytes of all weights of the trained model, and of the copies that mixed precision makes of them."""
    size, machine, architecture = setup.size, setup.machine, setup.architecture
    shards = machine.processes if machine.zero == 3 or machine.fsdp else 1
    width = _stream_bytes(setup)
    if setup.ranks is None:
        held = float(width) * size.total
    else:
        layers = (size.total - size.embeddings) * (setup.bits / 8 or width)
        held = layers + float(size.embeddings * width + size.trainable * _weight_bytes(setup))
        if setup.bits:  # one matrix at a time is computed with whole
            held += shards * setup.compute_bytes * max(matrix.size for matrix in architecture.matrices.values())
    # Autocast keeps 16-bit copies of float32 matrices for the backward pass; of checkpointed layers, one at a time.
    if setup.casts and width > setup.compute_bytes and not setup.bits:
        cast = architecture.linear if not setup.checkpointing else architecture.linear // architecture.layers
        held += setup.compute_bytes * cast * shards
    if shards == 1:
        return held
    gathered = setup.compute_bytes * (architecture.table + architecture.linear // architecture.layers)
    return (0.0 if machine.offload_weights else held / shards) + gathered


def _gradients(setup: Setup) -> float:
    """Returns the bytes of all gradients."""
    machine = setup.machine
    held = float(_weight_bytes(setup)) * setup.size.trainable
    if machine.zero >= 2 or machine.fsdp:
        return held / machine.processes
    return held * (2 if machine.processes > 1 and not machine.zero else 1)  # DDP sends copies of them


def _states(setup: Setup) -> dict[str, float]:
    """Returns the bytes of the optimizer's state on one device: under ZeRO and FSDP a share for each process."""
    machine = setup.machine
    if machine.offload_optimizer:
        return {}
    return {"optimizer": _state_bytes(setup) / (machine.processes if machine.zero or machine.fsdp else 1)}


def _state_bytes(setup: Setup) -> float:
    """Returns the bytes of the whole state, under ZeRO with the float32 weights that it moves.

    Of a matrix of n x m whose gradients are projected to rank r, moments are those of r max(n, m) numbers, beside the
    projection's r min(n, m) (Zhao et al. 2024, arXiv:2403.03507, table 1).
    """
    name, options, trained = setup.optimizer, setup.optim_args, setup.size.trainable
    width = 4 if setup.machine.zero else _weight_bytes(setup)
    each = next((size for word, size in _STATE_BYTES.items() if word in name), width)
    numbers = next((count for word, count in _STATES.items() if word in name), 2)
    if name in ("sgd", "rmsprop"):
        numbers += ("momentum" in options) + ("centered" in options)
    if name == "stable_adamw" and width == 2:
        numbers += 1  # what rounding took from the weights (Kahan)
    kept = each * numbers * trained
    if each == _STATE_BYTES["8bit"] and not name.startswith(("adamw_torch", "galore")) and not setup.machine.zero:
        kept += (4 - each) * numbers * _embeddings(setup)  # for which transformers asks bitsandbytes for 32 bits
    if name == "muon":  # one moment for matrices of hidden layers, AdamW's two for all else
        kept -= each * (trained if setup.ranks is not None else setup.architecture.linear)
    if setup.ranks is None and name.startswith(("galore", "apollo")):
        for longer, shorter, rank in _projections(setup):
            kept += each * numbers * longer * (rank - shorter) + width * rank * shorter
    return kept + (4.0 * trained if setup.machine.zero else 0.0)


def _embeddings(setup: Setup) -> int:
    """Returns the trained weights of embeddings, a tied output layer among them."""
    architecture = setup.architecture
    if setup.ranks is not None:
        return architecture.table if setup.tables and (architecture.tied or "input" in setup.tables) else 0
    return architecture.table + architecture.positions * architecture.hidden


def _projections(setup: Setup) -> Iterator[tuple[int, int, int]]:
    """Yields of each matrix whose gradients are projected the longer side, the shorter one and the rank."""
    architecture, said = setup.architecture, setup.optim_args.get("rank", "")
    most = int(said) if said.isdecimal() else 128
    sides = {name: (matrix.inputs, matrix.outputs) for name, matrix in architecture.matrices.items()}
    for name in setup.projected:
        shorter, longer = sorted(sides.get(name, (architecture.vocab, architecture.hidden)))
        for _ in range(architecture.layers if name in sides else setup.loss != "head"):
            yield longer, shorter, min(most, shorter)


def activations(setup: Setup) -> tuple[float, float]:
    """Returns the bytes that the forward pass leaves for the backward pass, and what the backward of a layer adds."""
    architecture, tokens = setup.architecture, setup.tokens
    hidden, stream = architecture.hidden, _stream_bytes(setup)
    layers = [tokens * _layer_bytes(setup, window) for window in architecture.windows]
    # the last norm and its result, of which the loss reads a copy without the last token of each row
    end = tokens * hidden * (_norm_bytes(setup, stream) + stream * (2 if setup.loss == "fused" else 1))
    if architecture.is_encoder:
        end += tokens * hidden * stream  # the norm of the embeddings
    if architecture.dropout:
        end += tokens * hidden * _dropped_bytes(setup)
    inside = tokens * setup.compute_bytes * (2 * architecture.intermediate + 2 * hidden)
    if setup.attention == "eager":
        inside += 2 * 4 * tokens * architecture.heads * setup.length
    if not setup.checkpointing:
        return sum(layers) + end, inside
    return len(layers) * tokens * hidden * stream + end, max(layers) + inside


def _stream_bytes(setup: Setup) -> int:
    """Returns the bytes of a weight of the base, which a number of the residual stream has too, autocast or not."""
    return setup.compute_bytes if setup.machine.zero else setup.weight_bytes


def _norm_bytes(setup: Setup, given: int) -> int:
    """Returns the bytes that a norm saves of each number: its input in float32 and, for its weight, the normed one."""
    if setup.architecture.is_encoder or setup.architecture.model_type == "gpt2":
        return given  # LayerNorm takes 16-bit numbers as they are, and computes the normed one again
    normed = 4 if setup.architecture.model_type == "gemma3_text" else given
    return 4 + (normed if setup.ranks is None else 0)


def _dropped_bytes(setup: Setup) -> int:
    """Returns the bytes that dropout saves of each number: on a CPU a factor, on a GPU whether it stays."""
    return 1 if setup.machine.gpu else _stream_bytes(setup)


def _layer_bytes(setup: Setup, window: int | None) -> float:
    """Returns the bytes that a layer saves of each token."""
    architecture, width = setup.architecture, setup.compute_bytes
    query, key = architecture.heads * architecture.head_dim, architecture.kv_heads * architecture.head_dim
    masked = setup.attention == "sdpa" and (setup.masked or (window is not None and window < setup.length))
    found = float(architecture.norms * architecture.hidden * _norm_bytes(setup, _stream_bytes(setup)))
    if architecture.qk_norm:
        found += (query + key) * _norm_bytes(setup, width)
    # query, key, value and result; keys and values of each query where the kernel cannot share them
    shared = setup.attention != "eager" and not masked
    found += width * (2 * query + 2 * (key if shared else query))
    if masked:
        found += setup.length * width
    if architecture.is_encoder and setup.attention == "sdpa":
        found += width * 2 * query  # values are a view of what one matrix gives for all three
    if setup.attention == "eager":
        found += architecture.heads * setup.length * (4 + (width if width < 4 else 0))
    # gate, its activation, up; or of GPT-2's GELU x, x / 2, tanh and 1 + tanh
    found += width * (4 if architecture.model_type == "gpt2" else 3) * architecture.intermediate
    if architecture.dropout:
        found += 2 * architecture.hidden * _dropped_bytes(setup)
        if not setup.machine.gpu:  # no kernel of the CPU drops: three matrices of attention are kept
            found += 3 * architecture.heads * setup.length * width
    readers: dict[Reads, list[tuple[Matrix, int]]] = {}
    for name, matrix in architecture.matrices.items():
        rank = 0 if setup.ranks is None else setup.ranks.get(name, 0)
        if setup.ranks is None or rank:
            readers.setdefault(matrix.reads, []).append((matrix, rank))
    return found + sum(_input_bytes(setup, reads, matrices) for reads, matrices in readers.items())


def _input_bytes(setup: Setup, reads: Reads, matrices: list[tuple[Matrix, int]]) -> float:
    """Returns the bytes of what matrices save of their one input, and adapters of what stands between their two."""
    inputs, width, stream = matrices[0][0].inputs, setup.compute_bytes, _stream_bytes(setup)
    given = stream if reads in ("attention", "mlp") else width  # norms give what the stream has
    wanted = width if setup.ranks is None or setup.casts else _weight_bytes(setup)
    between = wanted * sum(rank for _, rank in matrices)
    if wanted != given or (setup.ranks is not None and setup.casts):  # each of them makes a copy in its own type
        return wanted * inputs * len(matrices) + between
    return (0 if reads == "attention output" else wanted * inputs) + between  # attention has saved its result


def _logits(setup: Setup) -> float:
    """Returns the bytes with which the loss is computed from the last hidden states."""
    vocab, tokens, width = setup.architecture.vocab, setup.tokens, setup.compute_bytes
    tile = min(tokens, _TILE_TOKENS) * min(vocab, _TILE_VOCAB)
    if setup.loss == "fused":
        states = 4.0 * tokens * setup.architecture.hidden  # their gradient
        if setup.machine.gpu:
            return states + width * (tile + min(vocab, _TILE_VOCAB) * setup.architecture.hidden)
        return states + 4.0 * _TILES_WITHOUT_TRITON * tile
    if setup.loss == "chunked":  # logits, log-probabilities and their gradients, of student and teacher
        return 4.0 * 6 * min(tokens, setup.chunk) * vocab
    if setup.loss == "full":
        return 4.0 * 4 * tokens * vocab
    if setup.loss == "masked":
        return (width * 2 + 4.0 * 3 * setup.share) * tokens * vocab
    return 0.0


def _cache_bytes(setup: Setup) -> float:
    """Returns the bytes of the keys and values of a row that is generated."""
    architecture = setup.architecture
    seen = sum(min(window or setup.length, setup.length) for window in architecture.windows)
    return 2.0 * setup.weight_bytes * seen * architecture.kv_heads * architecture.head_dim


def largest_batch(setup: Setup, budget: float) -> int:
    """Returns the most examples a batch of which fits into so many bytes; 0 if not even one does."""

    def fits(batch: int) -> bool:
        return sum(peak(replace(setup, batch=batch))[1].values()) <= budget

    most, step = 0, 2**16
    while step:  # memory grows with the batch, so the number is found bit by bit
        if fits(most + step):
            most += step
        step //= 2
    return most


# --- Compute ---


def flops_per_token(setup: Setup) -> tuple[float, float]:
    """Returns the floating-point operations of a trained token: of the model, and of recomputing checkpointed layers.

    Forward, a weight takes two and attention 4 heads x width x context; backward twice that: 6 N + 12 L H Q T
    (Chowdhery et al. 2022, arXiv:2204.02311, appendix B; 6 N is Kaplan et al. 2020, arXiv:2001.08361, section 2.1).
    As there, the causal mask saves nothing, and N has no embeddings but those of the output layer; a layer with a
    sliding window has no more context than that. A frozen base needs no gradients of its weights: 4 N, and 6 for each
    weight of the adapters; an output layer that is trained beside them has 4 of its 6 there, and embeddings multiply
    nothing. A model that only reads takes its own forward pass, 2 N and attention.
    """
    architecture = setup.architecture
    forward, attention = _forward(architecture, setup.length, headed=setup.loss == "head")
    if setup.ranks is None:
        model = 3 * (forward + attention)
    else:
        adapters = max(0, setup.size.trainable - len(setup.tables) * architecture.table)
        output = architecture.table if "output" in setup.tables and setup.loss != "head" else 0
        model = 2 * forward + 3 * attention + 6.0 * adapters + 2.0 * output
    model += setup.passes * (forward + attention)
    for reader in setup.readers.values():
        model += reader.passes * sum(_forward(reader.architecture, setup.length, headed=reader.headed))
    again = 2.0 * architecture.linear + attention if setup.checkpointing else 0.0
    if critic := setup.of_critic():
        its_model, its_again = flops_per_token(critic)
        return model + its_model, again + its_again
    return model, again


def _forward(architecture: Architecture, length: int, *, headed: bool) -> tuple[float, float]:
    """Returns the operations of a token's forward pass in rows of a length: by weights, and by attention."""
    context = sum(min(window or length, length) for window in architecture.windows)
    weights = architecture.linear + (0 if headed else architecture.table)
    return 2.0 * weights, 4.0 * architecture.heads * architecture.head_dim * context


# --- With models at hand ---


def steps_per_epoch(job: "Job", train: "Prepared", processes: int) -> int:
    """Counts the steps in which each training row comes once; a prompt once for each answer and pass over answers."""
    batch = job.option("per_device_train_batch_size") * job.option("gradient_accumulation_steps") * processes
    sampled = train.report.sources[0].kind == "prompt"
    times = (job.option("num_generations") or 1) * (job.option("num_iterations") or 1) if sampled else 1
    return max(1, -(-train.report.rows * times // batch))


def run_steps(job: "Job", train: "Prepared", processes: int) -> int:
    """Counts the steps of a run: what the recipe says, or so many epochs."""
    most = job.option("max_steps")
    return most if most > 0 else math.ceil(steps_per_epoch(job, train, processes) * job.option("num_train_epochs"))


def stored_parameters(folder: Path) -> int | None:
    """Counts the parameters of a saved model from the headers of its safetensors files; None if there are none.

    A header is eight bytes of length and then JSON with every tensor's shape, so no weight is read.
    """
    total = 0
    files = sorted(folder.glob("model*.safetensors")) if folder.is_dir() else []
    for file in files:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total if files else None


def model_size(job: "Job", model: Any, head: "Head | None") -> ModelSize:
    """Counts the parameters of a model that was loaded empty, which then carries the recipe's adapters."""
    import torch

    from .adapters import adapter_config
    from .model import unread_modules

    with torch.device("meta"):
        unread = sum(
            weight.numel() for name in unread_modules(model) for weight in model.get_submodule(name).parameters()
        )
        total = sum(parameter.numel() for parameter in model.parameters())
        layers = (model.get_input_embeddings(), *([] if head else [model.get_output_embeddings()]))
        tables = {layer.weight for layer in layers}
        embeddings = sum(table.numel() for table in tables)
        config = adapter_config(job, model)
        if config is None:
            return ModelSize(total, total - unread, embeddings)
        from peft import get_peft_model

        try:
            adapted = get_peft_model(model, config).named_parameters()
        except (NotImplementedError, RuntimeError):  # it is laid out by the numbers of the base's weights
            return ModelSize(total, 0, embeddings)
        trained = {name: weight.numel() for name, weight in adapted if weight.requires_grad}
        rows = sum(size for name, size in trained.items() if "trainable_tokens" in name)
        return ModelSize(total, sum(trained.values()), embeddings, rows)
