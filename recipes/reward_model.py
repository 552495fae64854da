"""Reward models that read what the policy wrote as ``reward`` runs read their answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .. import chat_templates
from ..data_tools.example_encoder import ExampleEncoder
from ..evals.models import Pretrained
from .errors import RecipeError, RunError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RewardModel:
    """A sequence-classification model with one output, and how its input is made from the policy's samples.

    If it shares the policy's tokenizer and template it reads the very tokens that were sampled; otherwise the text is
    rendered anew with its own. What a template writes after the end of a turn (chatml: a line break) follows it here
    as in training, since the score is read at the last token; an answer that was cut has no end.

    Every process holds a whole copy: each scores its own rows, and a model of the ``reward`` stage is rarely the
    largest in the run. It is loaded outside DeepSpeed's ZeRO-3, which would leave each process a shard that only the
    training engine can gather.

    Args:
        name_or_path: The model, with its tokenizer beside it.
        policy_tokenizer: What the completions were sampled with.
        device: Where it runs.
        batch_size: Rows scored at once.

    Raises:
        RecipeError: It cannot be loaded, or is not a sequence classifier with one output.
    """

    def __init__(self, name_or_path: str, policy_tokenizer: "PreTrainedTokenizerBase", device: Any, batch_size: int):
        self.where = f"reward model {name_or_path}"
        self.model, self.tokenizer = load_reward_model(name_or_path)
        self.model.to(device)
        self.pad_id = self.model.config.get_text_config().pad_token_id
        self.batch_size = batch_size if self.pad_id is not None else 1  # without a pad token it cannot find the end
        self.same_ids = _same_ids(self.tokenizer, policy_tokenizer)
        self.policy_ends = _end_ids(policy_tokenizer)
        self.ends = _end_ids(self.tokenizer)
        template = chat_templates.from_tokenizer(self.tokenizer) if self.tokenizer.chat_template else None
        self.encoder = ExampleEncoder(self.tokenizer, template, "unpaired")
        self.after_end = self._after_end() if template else []

    def score(self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]]) -> list[float]:
        """Returns the model's output for each completion, in order.

        Args:
            prompts: Text or messages.
            completions: The same, decoded, without special tokens.
            completion_ids: The policy's tokens, the end token included if there is one.
        """
        import torch

        rows = self.encode(prompts, completions, completion_ids)
        scores: list[float] = []
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            width = max(map(len, batch))
            fill = self.pad_id if self.pad_id is not None else 0
            ids = torch.tensor([row + [fill] * (width - len(row)) for row in batch], device=self.model.device)
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=self.model.device)
            with torch.inference_mode():
                scores += self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        return scores

    def encode(
        self, prompts: list[Any], completions: list[Any], completion_ids: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        """Returns the tokens that the model reads for each row: prompt, answer, and its end if the policy wrote one.

        Raises:
            RunError: The prompts are conversations and the model has no chat template, or one does not render.
        """
        if isinstance(prompts[0], list) and self.encoder.template is None:
            raise RunError("has no chat template, but the prompts are conversations", where=self.where)
        rows = []
        rendered = self._rendered(prompts, [_not_empty(completion) for completion in completions])
        for (prompt, answer), completion, ids in zip(rendered, completions, completion_ids, strict=True):
            ended = bool(ids) and ids[-1] in self.policy_ends
            end = _last_of(self.ends, answer)
            if self.same_ids:
                answer = [*ids, *(self.after_end if ended else [])]
            else:
                answer = [*(answer[:end] if _is_text(completion) else []), *(answer[end:] if ended else [])]
            rows.append([*prompt, *answer])
        return rows

    def _rendered(self, prompts: list[Any], completions: list[Any]) -> list[tuple[list[int], list[int]]]:
        """Returns the tokens of prompts and of answers that end, as the model was trained on them."""
        rows = [
            {"prompt": prompt, "completion": completion, "label": True}
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        batch = self.encoder(rows)
        for row, error in batch.dropped.items():
            raise RunError(
                f"cannot read row {row}: {error}", where=self.where, hint=f"prompt {str(prompts[row])[:120]}"
            )
        flat, at, parts = batch.ids.tolist(), 0, []
        for prompt, answer in batch.lengths.tolist():
            parts.append((flat[at : at + prompt], flat[at + prompt : at + prompt + answer]))
            at += prompt + answer
        return parts

    def _after_end(self) -> list[int]:
        """Returns the tokens that the template writes after the end of the last turn."""
        turns = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
        [(_, answer)] = self._rendered([turns[0]], [turns[1]])
        return answer[_last_of(self.ends, answer) + 1 :]


def load_reward_model(name_or_path: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Loads a reward model, frozen and in evaluation mode, with its tokenizer.

    Raises:
        RecipeError: It cannot be loaded, or is not a sequence classifier with one output.
    """
    hint = "name a model that a recipe with stage: reward has trained"
    source = Pretrained(name_or_path, what="the reward model", hint=hint, error=RecipeError)
    with outside_zero3():
        config = source.config()
        kinds = config.architectures or []
        found = None if config.num_labels == 1 else f"has {config.num_labels} outputs instead of one"
        if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
            found = f"is not a sequence classifier but {', '.join(kinds) or 'a model without a head'}"
        if found:
            raise RecipeError(found, where=f"reward model {name_or_path}", hint=hint)
        model, tokenizer = source.weights(headed=True, whole=True), source.tokenizer()
    text = model.config.get_text_config()
    if text.pad_token_id is None:
        text.pad_token_id = tokenizer.pad_token_id
    return model.eval().requires_grad_(False), tokenizer


@contextmanager
def outside_zero3() -> Iterator[None]:
    """Loads models whole on every process, also under DeepSpeed's ZeRO-3."""
    from transformers.integrations import deepspeed

    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def _same_ids(mine: "PreTrainedTokenizerBase", policy: "PreTrainedTokenizerBase") -> bool:
    """Says whether two tokenizers give the same ids to the same text and render the same conversations."""
    return mine.get_vocab() == policy.get_vocab() and mine.chat_template == policy.chat_template  # type: ignore[operator]


def _end_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Returns the ids that end an answer: eos, and the template's end of turn if that is another token."""
    ends: list[Any] = [tokenizer.eos_token_id]
    if tokenizer.chat_template:
        ends.append(tokenizer.convert_tokens_to_ids(chat_templates.from_tokenizer(tokenizer).end_of_turn or ""))
    return {end for end in ends if isinstance(end, int)}


def _is_text(completion: Any) -> bool:
    """Says whether an answer, text or messages, is more than nothing."""
    return bool((completion if isinstance(completion, str) else completion[-1]["content"]).strip())


def _not_empty(completion: Any) -> Any:
    """Returns an answer that can be rendered: a policy may say nothing, but no row that a model is trained on does."""
    if _is_text(completion):
        return completion
    return "." if isinstance(completion, str) else [*completion[:-1], {**completion[-1], "content": "."}]


def _last_of(ends: set[int], ids: list[int]) -> int:
    """Returns the place of the last end token; the number of tokens if there is none."""
    return next((place for place in reversed(range(len(ids))) if ids[place] in ends), len(ids))
