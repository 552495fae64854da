"""Loading a critic from what the recipe names."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...evals.models import differing_tokens
from ..errors import RecipeError
from ..model import Head, load_model, load_tokenizer, pretrained
from ..schema import CriticSpec, Recipe
from .critic import Critic, SharedCritic

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_HEAD = Head(labels=("value",), problem="regression")


def load_critic(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase", policy: "PreTrainedModel") -> nn.Module:
    """Builds the critic: a copy of the policy or the named model, trained in full, or a head on the policy's backbone.

    A head that the named model does not have starts at zero, so that the first values are 0 and say nothing; that of a
    reward model is kept, since what an answer is worth at its end is a good start for what it is worth before
    (Ouyang et al. 2022, arXiv:2203.02155, appendix C.4).

    Raises:
        RecipeError: The model cannot be loaded, or its tokens are not the policy's.
    """
    spec = recipe.critic or CriticSpec()
    if spec.shared:
        return SharedCritic(policy)
    source = recipe.model
    if spec.name_or_path is not None:
        named = {"name_or_path": spec.name_or_path, "config": None, "tokenizer": None, "revision": None, "layers": None}
        source = source.model_copy(update=named)
        theirs: Any = load_tokenizer(source)
        if theirs.get_vocab().keys() & set(differing_tokens(tokenizer, theirs)):
            raise RecipeError(
                f"critic: {spec.name_or_path} has another vocabulary than the policy, whose tokens it must read",
                hint="name a model with the policy's tokenizer, or say critic.shared: true",
            )
    body = recipe.model_copy(update={"model": source, "lora": None, "quantization": None})
    with _no_report_of_heads():
        model = load_model(body, tokenizer, _HEAD)
    critic = Critic(model)
    if not _has_trained_head(source, model):
        _zero(critic.head.weight)
    return critic


def _has_trained_head(source: Any, model: "PreTrainedModel") -> bool:
    """Says whether the head came with the weights: of what was saved as a sequence classifier."""
    if source.name_or_path is None:
        return False
    saved = pretrained(source).config()
    return any(name == type(model).__name__ for name in saved.architectures or ()) and saved.num_labels == 1


@contextmanager
def _no_report_of_heads() -> Iterator[None]:
    """Silences transformers' report that a language model has no head for values: it is not news here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _zero(weight: Any) -> None:
    """Sets a weight to zero, also where DeepSpeed's ZeRO-3 has divided it among the processes."""
    if hasattr(weight, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters(weight, modifier_rank=0):
            torch.nn.init.zeros_(weight)
    else:
        torch.nn.init.zeros_(weight)
