"""What a run will need, before it is started: parameters, memory, compute."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .schema import Recipe

if TYPE_CHECKING:
    from ..data_tools.prepare import Prepared
    from .job import Job
    from .model import Head

GIB = 2**30


@dataclass(frozen=True)
class Size:
    """Parameters of a model.

    Attributes:
        total: All of them, tied ones once.
        trainable: Those that receive gradients.
        embeddings: Those of the input and output embeddings, which quantization leaves alone.
        new_tokens: Of the trainable ones, those of rows for tokens that the chat template added.
    """

    total: int
    trainable: int
    embeddings: int = 0
    new_tokens: int = 0


def steps_per_epoch(job: "Job", train: "Prepared", *, processes: int = 1) -> int:
    """Counts the steps in which each training row comes once; a prompt once for each answer and pass over answers."""
    batch = job.option("per_device_train_batch_size") * job.option("gradient_accumulation_steps") * processes
    sampled = train.report.sources[0].kind == "prompt"
    times = (job.option("num_generations") or 1) * (job.option("num_iterations") or 1) if sampled else 1
    return max(1, -(-train.report.rows * times // batch))


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


def model_size(job: "Job", model: Any, head: "Head | None" = None) -> Size:
    """Counts the parameters of a model that was loaded empty, which then carries the recipe's adapters."""
    import torch

    from .adapters import lora_config

    with torch.device("meta"):
        total = sum(parameter.numel() for parameter in model.parameters())
        layers = (model.get_input_embeddings(), *([] if head else [model.get_output_embeddings()]))
        tables = {layer.weight for layer in layers}
        embeddings = sum(table.numel() for table in tables)
        config = lora_config(job, model)
        if config is None:
            return Size(total, total, embeddings)
        from peft import get_peft_model

        adapted = get_peft_model(model, config).named_parameters()
        trained = {name: weight.numel() for name, weight in adapted if weight.requires_grad}
        rows = sum(size for name, size in trained.items() if "trainable_tokens" in name)
        return Size(total, sum(trained.values()), embeddings, rows)


def state_bytes(recipe: Recipe, size: Size) -> int:
    """Returns the bytes of weights, gradients and AdamW's two moments on one device, before any sharding.

    Trained weights cost 16 bytes each: 4 for the float32 weight, 4 for its gradient, 8 for the moments (Rajbhandari
    et al. 2020, arXiv:1910.02054, section 3.1, where the float32 copy stands beside a 16-bit one). Frozen ones cost
    what they are stored in. NF4 with double quantization takes 4.127 bits (Dettmers et al. 2023, arXiv:2305.14314,
    section 3).
    """
    if recipe.lora is None:
        return size.trainable * 16
    plain = 32.0 if recipe.model.dtype == "float32" else 16.0
    layers = {"nf4": 4.127, "fp4": 4.127, "int8": 8.0}.get(recipe.quantization or "", plain)
    frozen = (size.total - size.embeddings) * layers + size.embeddings * plain
    return int(frozen / 8 + size.trainable * 16)


def training_flops(recipe: Recipe, size: Size, tokens: int) -> float:
    """Returns the floating-point operations of training on a number of tokens, attention scores left out.

    6 N D: two for each weight and token forward, four backward (Kaplan et al. 2020, arXiv:2001.08361, section 2.1).
    With a frozen base, the backward pass needs no weight gradients for it: 4 N D, and 6 for the adapters.
    """
    if recipe.lora:
        return (4.0 * size.total + 6.0 * size.trainable) * tokens
    return 6.0 * size.total * tokens
