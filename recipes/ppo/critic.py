"""PPO's value function: a model of its own, or a head on the policy's backbone; attached to the policy as one module.

As a submodule of the policy it is trained, sharded and stepped with it by any launcher: one engine, one optimizer. The
forward pass gives the policy's log-probabilities and the critic's values together, because DDP and DeepSpeed expect one
forward a backward.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

from ...evals.models import differing_tokens, quiet_reports
from ..errors import RecipeError
from ..model import Head, load_model, load_tokenizer, pretrained
from ..schema import CriticSpec, Recipe
from ..trainers.sampling import count_positions_from_mask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = "critic"
_WEIGHTS = "model.safetensors"
_HEAD = Head(labels=("value",), problem="regression")


@dataclass
class PolicyValueOutput(FusedCausalLMOutput):
    """What TRL's fused head returns, and the values.

    DDP finds outputs by the fields that a class declares, and ``values`` is a method of every ModelOutput.

    Attributes:
        state_values: V of the state after each token, [batch, length].
    """

    state_values: torch.Tensor | None = None


class Critic(nn.Module):
    """A model with one output at each token.

    Args:
        model: A sequence-classification model with one output.

    Raises:
        RecipeError: Its head is not a single linear layer over the hidden states.
    """

    shared = False

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        head = getattr(model, "score", None)
        if not isinstance(head, nn.Linear):
            kind = type(model).__name__
            raise RecipeError(f"critic: {kind} has no linear layer `score` over each token", hint="name a decoder")
        self.model = model
        count_positions_from_mask(model.base_model)  # prompts are padded on the left

    @property
    def head(self) -> nn.Linear:
        """The layer that gives the value."""
        return self.model.score  # type: ignore[return-value]

    def forward(self, hidden: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns V after each token, float32, [batch, length].

        Args:
            hidden: The policy's last hidden states, unused here.
            ids: The tokens that the policy reads, [batch, length].
            mask: 0 at padding, [batch, length].
        """
        own = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return _value(self.head, own)

    def save(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Writes a sequence-classification model with one output, which ``from_pretrained`` reads."""
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
        self.model.save_pretrained(folder, state_dict=state)

    def load(self, folder: Path) -> None:
        """Reads what ``save`` wrote."""
        state = {}
        for path in folder.glob("*.safetensors"):  # several, if it is large
            state |= load_file(path)
        self.model.load_state_dict(state, strict=False)  # tied weights are saved once


class SharedCritic(nn.Module):
    """A linear head on the policy's last hidden states.

    Args:
        policy: The language model, for the width, type and device of its hidden states.
    """

    shared = True

    def __init__(self, policy: PreTrainedModel):
        super().__init__()
        self.score = nn.Linear(policy.config.get_text_config().hidden_size, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, hidden: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns V after each token, float32, [batch, length]."""
        return _value(self.score, hidden)

    def save(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Writes the head alone: the backbone is the policy's."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / _WEIGHTS)

    def load(self, folder: Path) -> None:
        """Reads what ``save`` wrote."""
        self.load_state_dict(load_file(folder / _WEIGHTS))


def _value(head: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """Applies the head outside autocast: the three digits of bfloat16 are too few for what is compared with returns."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.to(head.weight.dtype)).squeeze(-1).float()


@contextmanager
def detached(policy: Any) -> Iterator[Any]:
    """Takes the critic off for a while, for what is to see a plain language model; gives the critic."""
    critic = policy.critic
    del policy.critic
    try:
        yield critic
    finally:
        policy.critic = critic


def attach(policy: Any, critic: nn.Module) -> None:
    """Makes a critic part of a language model that has TRL's fused head, in place.

    ``policy(..., fused_lm_head=True, with_values=True)`` then returns a ``PolicyValueOutput``; every other call is as
    before.
    """
    policy.critic = critic
    plain = policy.forward

    @functools.wraps(type(policy).forward)  # `generate` reads the signature
    def forward(self: Any, *args: Any, with_values: bool = False, **kwargs: Any) -> Any:
        if not with_values:
            return plain(*args, **kwargs)
        seen: list[torch.Tensor] = []
        hook = self.base_model.register_forward_hook(lambda _, __, output: seen.append(output.last_hidden_state))
        try:
            output = plain(*args, **kwargs)
        finally:
            hook.remove()
        return PolicyValueOutput(
            **output, state_values=self.critic(seen[-1], kwargs["input_ids"], kwargs["attention_mask"])
        )

    policy.forward = MethodType(forward, policy)


def load_critic(
    recipe: Recipe, tokenizer: "PreTrainedTokenizerBase", policy: PreTrainedModel, *, empty: bool = False
) -> nn.Module:
    """Builds the critic: a copy of the policy or the named model, trained in full, or a head on the policy's backbone.

    The copy is of ``recipe.model``, without the adapter that the policy trains or goes on from. A head that the model
    does not have starts at zero, so that the first values are 0 and say nothing; that of a reward model is kept, since
    what an answer is worth at its end is a good start for what it is worth before (Ouyang et al. 2022,
    arXiv:2203.02155, appendix C.4).

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
    body = recipe.model_copy(update={"model": source, "lora": None, "adapter": None, "quantization": None})
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


def _has_trained_head(source: Any, model: PreTrainedModel) -> bool:
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
