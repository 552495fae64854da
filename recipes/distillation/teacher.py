"""The teacher: what it must share with its student, how it is loaded, and how its logits are made."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...data_tools.collate import ROW_LENGTHS, TOKEN_SOURCES
from ...evals.models import differing_tokens, make_room
from ..errors import RecipeError
from ..model import pretrained

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ..job import Job
    from ..schema import TeacherSpec

_HINT = (
    "to learn from a teacher of another vocabulary, let it write answers (`posttrain data answers`) and train on them "
    "with the stage sft, or see trl.experimental.gold"
)


def check_teacher(job: "Job") -> None:
    """Refuses a teacher that the student cannot learn from, before any weights are loaded.

    Token by token, both must mean the same by a token's number; rows of the output layer beyond the tokenizer's tokens,
    to which many models pad it, may differ.

    Raises:
        RecipeError: Another vocabulary, or something that the recipe asks for and this teacher cannot give.
    """
    recipe = job.loaded.recipe
    spec = recipe.teacher
    assert spec is not None, "the stage requires a teacher"
    config = pretrained(spec).config()
    check_vocabulary(spec, config, job.tokenizer)
    if recipe.stage != "distill":
        if spec.top_k is not None:
            raise RecipeError(
                "teacher.top_k is made before training, but the texts of distill_on_policy are written during it",
                where=str(job.loaded.path),
                hint="drop it, or use the stage distill",
            )
        return
    if job.option("hidden_cosine") and spec.top_k is not None:
        raise RecipeError(
            "trainer.hidden_cosine compares hidden states, and teacher.top_k keeps none of them",
            where=str(job.loaded.path),
            hint="drop one of the two",
        )
    size = config.get_text_config().vocab_size
    if spec.top_k is not None and spec.top_k > size:
        raise RecipeError(f"teacher.top_k is {spec.top_k}, but there are {size} tokens", where=str(job.loaded.path))


def check_vocabulary(spec: "TeacherSpec", config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuses a teacher to which the ids of the student's tokenizer mean something else.

    Raises:
        RecipeError: With the tokens that differ.
    """
    where = f"teacher {spec.name_or_path}"
    theirs: Any = None
    with contextlib.suppress(RecipeError):  # there may be none beside it
        theirs = pretrained(spec).tokenizer()
    rows = config.get_text_config().vocab_size
    if theirs is not None and (differ := differing_tokens(tokenizer, theirs)):
        raise RecipeError(
            f"its vocabulary is not the student's: {len(theirs)} tokens and {len(tokenizer)}, of which {len(differ)} "
            f"have another id or none, such as {differ[0]!r}",
            where=where,
            hint=_HINT,
        )
    read = len(tokenizer) - (tokenizer.pad_token_id == len(tokenizer) - 1)
    if rows < read:
        raise RecipeError(f"it knows {rows} tokens, the student's tokenizer {read}", where=where, hint=_HINT)


def load_teacher(
    spec: "TeacherSpec", tokenizer: "PreTrainedTokenizerBase", *, empty: bool = False
) -> "PreTrainedModel":
    """Loads a teacher in its own type, frozen and without dropout; under ZeRO-3 each process loads its shard.

    It has room for the student's padding, which may be a token that it does not know.

    Raises:
        RecipeError: It cannot be found or is no language model.
    """
    model = pretrained(spec).weights(kind="causal", dtype=spec.dtype, attn=spec.attn_implementation, empty=empty)
    make_room(model, tokenizer)
    return model.eval().requires_grad_(False)


def check_hidden(student: "PreTrainedModel", teacher: "PreTrainedModel") -> None:
    """Refuses to compare hidden states of different sizes.

    Raises:
        RecipeError: They are.
    """
    sizes = [model.config.get_text_config().hidden_size for model in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise RecipeError(
            f"trainer.hidden_cosine compares hidden states, but the student's have {sizes[0]} numbers and the "
            f"teacher's {sizes[1]}",
            hint="drop it, or make the student of the teacher's layers (model.layers)",
        )


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Returns what of a batch a model reads: no labels, sources of tokens, lengths of rows, answers of teachers."""
    others = ("labels", TOKEN_SOURCES, ROW_LENGTHS)
    return {key: value for key, value in batch.items() if key not in others and not key.startswith("teacher_")}


def last_hidden(model: "PreTrainedModel", inputs: dict[str, Any]) -> "torch.Tensor":
    """Runs a language model without its output layer.

    Without a cache: with one, transformers would let packed documents see each other.

    Args:
        model: The model, unwrapped.
        inputs: ``input_ids`` [B, L], and ``attention_mask``, ``position_ids`` or what a varlen kernel takes.

    Returns:
        What the output layer reads [B, L, H].
    """
    return model.base_model(**inputs, use_cache=False).last_hidden_state


def logits_head(model: "PreTrainedModel") -> "Callable[[torch.Tensor], torch.Tensor]":
    """Returns what makes logits of last hidden states: the output layer, and what some architectures do after it.

    The layer is called as a module, so that adapters, sharding and quantization see the call.
    """
    config = model.config.get_text_config()
    scale = _logit_scale(config)
    cap = getattr(config, "final_logit_softcapping", None)

    def logits(hidden: "torch.Tensor") -> "torch.Tensor":
        layer: Any = model.get_output_embeddings()
        values = layer(hidden)
        if scale is not None:
            values = values * scale
        return cap * (values / cap).tanh() if cap is not None else values

    return logits


def _logit_scale(config: Any) -> float | None:
    """Returns what an architecture multiplies its logits by (Cohere, Falcon-H1) or divides them by (Granite)."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return None
    return scaling if config.model_type == "hyperclovax" else 1 / scaling
