"""Loading a critic from what the recipe names."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...evals.models import differing_tokens, quiet_reports
from ..errors import RecipeError
from ..model import Head, load_model, load_tokenizer, pretrained
from ..schema import CriticSpec, Recipe
from .critic import Critic, SharedCritic

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_HEAD = Head(labels=("value",), problem="regression")


def load_critic(
    recipe: Recipe, tokenizer: "PreTrainedTokenizerBase", policy: "PreTrainedModel", *, empty: bool = False
) -> nn.Module:
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
    try:
        with quiet_reports():  # a language model has no head for values
            model = load_model(body, tokenizer, _HEAD, empty=empty)
    except RecipeError as error:
        if spec.name_or_path is None:
            raise
        raise RecipeError(f"critic: {error.what}", hint="check critic.name_or_path") from error
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


def _zero(weight: Any) -> None:
    """Sets a weight to zero, also where DeepSpeed's ZeRO-3 has divided it among the processes."""
    if hasattr(weight, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters(weight, modifier_rank=0):
            torch.nn.init.zeros_(weight)
    else:
        torch.nn.init.zeros_(weight)
