"""Reward models that score what a policy wrote."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from .. import chat_templates
from ..evals import reward
from ..evals.errors import EvalError
from .distillation.student import whole_weights
from .errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RewardModel:
    """A sequence-classification model with one output; what it reads of an answer is :mod:`..evals.reward`'s to say.

    Every process holds a whole copy: each scores its own rows, and a model of the ``reward`` stage is rarely the
    largest in the run. It is loaded outside DeepSpeed's ZeRO-3, which would leave each process a shard that only the
    training engine can gather.

    Args:
        name_or_path: The model, with its tokenizer beside it.
        policy_tokenizer: What the completions were sampled with.
        device: Where it runs; on ``meta`` it can read but not score.
        batch_size: Rows scored at once.
        ends: Tokens that end an answer, beside those of the policy's tokenizer and template.

    Raises:
        RecipeError: It cannot be loaded, or is not a sequence classifier with one output.
    """

    def __init__(
        self,
        name_or_path: str,
        policy_tokenizer: "PreTrainedTokenizerBase",
        device: Any,
        batch_size: int,
        ends: Collection[int] = (),
    ):
        where = f"reward model {name_or_path}"
        self.policy_ends = {*_end_ids(policy_tokenizer), *ends}
        with whole_weights():
            try:
                loaded = reward.load(name_or_path, device=str(device))
            except EvalError as error:
                raise RecipeError(error.what, where=where, hint=error.hint or reward.HINT) from error
        self.reader = reward.RewardReader(loaded, batch_size, where)

    def score(self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]]) -> list[float]:
        """Returns the model's output for each completion, in order.

        Args:
            prompts: Text or messages.
            completions: The same, decoded, without special tokens.
            completion_ids: The policy's tokens, the end token included if there is one.
        """
        return self.reader(self.completions(prompts, completions, completion_ids))

    def completions(
        self, prompts: list[Any], completions: list[Any], completion_ids: Sequence[Sequence[int]]
    ) -> list[reward.Completion]:
        """Returns the answers as the model reads them: finished are those that the policy ended."""
        return [
            reward.Completion(prompt, answer, bool(ids) and ids[-1] in self.policy_ends)
            for prompt, answer, ids in zip(prompts, completions, completion_ids, strict=True)
        ]


def _end_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Returns the ids that end an answer: eos, and the template's end of turn if that is another token."""
    ends: list[Any] = [tokenizer.eos_token_id]
    if tokenizer.chat_template:
        ends.append(tokenizer.convert_tokens_to_ids(chat_templates.from_tokenizer(tokenizer).end_of_turn or ""))
    return {end for end in ends if isinstance(end, int)}
