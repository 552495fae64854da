"""Reward models: what one reads of an answer, whoever asks: judges, ``pairs``, rewards of rollouts, best-of-n.

A reward model has learnt from rows that :mod:`..data_tools.encode` made, so that is how it reads:

- Tokens are made from the text, never taken from those that a policy drew, which may part the same text otherwise.
- The whole conversation is read: the system message and earlier turns too.
- A finished answer ends as in training: with what the template writes behind the last turn (chatml: the end of turn and
  a line break), or with EOS in text without a template.
- An answer that was cut, by a limit of tokens or a server, has nothing of that.
- An answer of nothing is its end alone if it is finished, and the prompt alone if it was cut. White space alone counts
  as nothing: no row to learn from has such an answer.
- An answer that the template refuses or would shorten (text between two ends of thought, say) is read as it was
  written, behind the prompt: a policy may write anything, and what it writes must neither end a run nor hide from its
  reward. Such answers are counted, and the first is named.
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..data_tools.encode import Ids, Messages, Talk, TextEncoder
from ..data_tools.errors import RowError
from .answers import Answer
from .errors import EvalError
from .models import LoadedModel, load_model
from .sequences import shared_start

HINT = "name a model that a recipe with stage: reward has trained"


@dataclass(frozen=True)
class Completion:
    """An answer to a prompt, text or messages both, and whether it is finished or was cut."""

    prompt: str | Messages
    answer: str | Messages
    finished: bool = True


def load(source: str, *, device: str | None = None) -> LoadedModel:
    """Loads a reward model from a folder or by its Hub id.

    Args:
        source: The folder or Hub id.
        device: Where to put it; the first GPU if there is one, else the CPU.

    Raises:
        EvalError: It cannot be loaded, lacks weights, or is no sequence classifier with one output.
    """
    loaded = load_model(source, device=device)
    loaded.needs_reward_model(f"reward model {source}", HINT)
    return loaded


class RewardReader:
    """Gives answers their rewards.

    Args:
        loaded: The reward model.
        batch_size: Answers at a time; decides speed and memory, not the values.
        where: Who asks, for errors.
    """

    def __init__(self, loaded: LoadedModel, batch_size: int, where: str):
        from ..chat_templates.templates import from_tokenizer

        self.loaded, self.batch_size, self.where = loaded, batch_size, where
        self.unrendered = 0  # answers that the template refused or would have shortened
        template = from_tokenizer(loaded.tokenizer) if loaded.template_fingerprint else None
        self.encoder = TextEncoder(loaded.tokenizer, template, whole=True)

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        """Returns the reward of each answer."""
        return self.values(self.ids(completions))

    def values(self, rows: Sequence[Ids]) -> list[float]:
        """Returns the reward of each row of tokens.

        Raises:
            EvalError: A reward is not finite.
        """
        from .forward import outputs

        inputs = [{"input_ids": row} for row in rows]
        return outputs(self.loaded.model, inputs, self.batch_size, where=self.where)[:, 0].tolist() if rows else []

    def ids(self, completions: Sequence[Completion]) -> list[Ids]:
        """Returns the tokens that are read of each answer and what came before it.

        Raises:
            EvalError: There are conversations, but no template, or it refuses a prompt.
        """
        talks = [Talk(item.prompt, [item.answer if _says(item.answer) else _probe(item)]) for item in completions]
        if self.encoder.template is None and any(not isinstance(item.prompt, str) for item in completions):
            raise EvalError("has no chat template, but the prompts are conversations", where=self.where)
        rows = []
        for item, made in zip(completions, self.encoder.split(talks), strict=True):
            prompt, [answer] = self._as_written(item, made) if isinstance(made, RowError) else made
            end = len(answer) - shared_start(answer[::-1], self._end_of(isinstance(item.prompt, str))[::-1])
            said = answer[:end] if _says(item.answer) else []
            rows.append([*prompt, *said, *(answer[end:] if item.finished else [])])
        return rows

    def _as_written(self, item: Completion, refusal: RowError) -> tuple[Ids, list[Ids]]:
        """Returns the tokens of a prompt, turns before it as their policy saw them, and of an answer as it stands."""
        [made] = TextEncoder(self.loaded.tokenizer, self.encoder.template).split([Talk(item.prompt, [_probe(item)])])
        if isinstance(made, RowError):
            hint = f"prompt {str(item.prompt)[:120]}"
            raise EvalError(f"cannot read an answer: {made}", where=self.where, hint=hint)
        text = _text(item.answer)
        if not self.unrendered:
            print(f"{self.where}: an answer is read as it was written: {refusal}; {text[:80]!r}", file=sys.stderr)
        self.unrendered += 1
        return made[0], [[*self.encoder.ended([text])[0][:-1], *self._end_of(isinstance(item.prompt, str))]]

    @functools.cache  # noqa: B019  # lives as long as its model
    def _end_of(self, text: bool) -> Ids:
        """Returns the tokens behind a finished answer: what two answers have in common."""
        prompt: Any = "a" if text else [{"role": "user", "content": "a"}]
        [(_, answers)] = self.encoder.split([Talk(prompt, [_probe(Completion(prompt, ""), said) for said in "bc"])])
        one, other = answers
        return one[len(one) - shared_start(one[::-1], other[::-1]) :]


def completion_of(answer: Answer, *, templated: bool) -> Completion:
    """Returns the last answer of a conversation with all that came before it.

    Args:
        answer: The answer to judge.
        templated: Whether the reward model has a chat template; else the prompt is what was said, with blank lines
            between.
    """
    messages = [{"role": "system", "content": answer.system}] if answer.system else []
    for turn, text in zip(answer.turns, answer.texts, strict=True):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": text}]
    *before, last = messages
    if templated:
        return Completion(before, [last], answer.finished)
    return Completion("\n\n".join(message["content"] for message in before), last["content"], answer.finished)


def _says(answer: str | Messages) -> bool:
    """Says whether an answer is more than nothing."""
    return bool(_text(answer).strip())


def _text(answer: str | Messages) -> str:
    return answer if isinstance(answer, str) else answer[-1]["content"]


def _probe(item: Completion, text: str = ".") -> Any:
    """Returns an answer to stand where there is none: templates, like rows to learn from, may refuse an empty one."""
    return text if isinstance(item.prompt, str) else [{"role": "assistant", "content": text}]
