"""A judge in this process: a language model, by the exact probabilities of its labels or by what it writes."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...data_tools.generate import ends_of
from ..forward import next_logs
from ..judges import Judge
from .parse import Verdict, from_labels, labels_of, parse
from .prompt import JudgePrompt, Rendered
from .questions import Question

if TYPE_CHECKING:
    from ..models import LoadedModel

_PART = 8  # batches between two looks at the disk: what a kill loses at most


class ModelJudge:
    """Asks a language model, loaded when the first question comes.

    Args:
        judge: Who is asked.
        device: Where the model runs; the first GPU if there is one.
    """

    def __init__(self, judge: Judge, device: str | None = None):
        self.judge, self.device = judge, device
        self._loaded: LoadedModel | None = None
        self._encoder: Any = None

    def ask(self, questions: Sequence[Question], by: str, take: Callable[[Question, Verdict], None]) -> None:
        """Asks questions in parts, the longest prompts of a part first.

        Raises:
            EvalError: The model cannot be loaded.
            DataError: Its template does not take the prompt.
        """
        prompt = JudgePrompt(self.judge, by)
        size = self.judge.settings.batch_size * _PART
        for at in range(0, len(questions), size):
            part = questions[at : at + size]
            rendered = [prompt.render(question.first, question.second) for question in part]
            ids = self._ids(rendered)
            started = time.perf_counter()
            verdicts = self._labelled(ids) if by == "logprobs" else self._written(ids, [q.repeat for q in part])
            seconds = (time.perf_counter() - started) / len(part)
            for question, item, verdict in zip(part, rendered, verdicts, strict=True):
                take(question, replace(verdict, seconds=seconds, cut=item.cut))

    @property
    def loaded(self) -> "LoadedModel":
        """Returns the model."""
        if self._loaded is None:
            from ...data_tools.encode import TextEncoder
            from ..models import load_model

            self._loaded = load_model(self.judge.settings.model, device=self.device)
            self._loaded.needs_language_model(f"judge {self.judge.name}")
            self._encoder = TextEncoder.of(self._loaded.tokenizer)
        return self._loaded

    def _ids(self, rendered: Sequence[Rendered]) -> list[list[int]]:
        """Returns the tokens of prompts."""
        talks: list[Any] = [item.messages for item in rendered]
        if self.loaded.template_fingerprint is None:
            talks = ["".join(f"{message['content']}\n\n" for message in messages) for messages in talks]
        return self._encoder.prompts(talks, where=f"judge {self.judge.name}")

    def _limit(self) -> int:
        from ..models import model_length

        return model_length(self.loaded.model)

    def _labelled(self, prompts: Sequence[list[int]]) -> list[Verdict]:
        """Reads the probabilities of the labels."""
        settings, limit = self.judge.settings, self._limit()
        names = labels_of(settings)
        labels = [self.loaded.tokenizer(name, add_special_tokens=False)["input_ids"] for name in names]
        room = limit - max(map(len, labels))  # type: ignore[arg-type]
        fitting = [number for number, ids in enumerate(prompts) if len(ids) <= room]
        found = label_logs(self.loaded, [prompts[number] for number in fitting], labels, settings.batch_size)
        verdicts: list[Verdict] = [_too_long(len(ids), limit) for ids in prompts]
        for number, logs in zip(fitting, found, strict=True):
            verdict = from_labels(dict(zip(names, logs, strict=True)), settings)
            verdicts[number] = replace(verdict, prompt_tokens=len(prompts[number]), completion_tokens=0)
        return verdicts

    def _written(self, prompts: Sequence[list[int]], repeats: Sequence[int]) -> list[Verdict]:
        """Lets the model write."""
        from ...data_tools.generate import Sampling, generate

        settings, limit = self.judge.settings, self._limit()
        sampling = Sampling(
            settings.max_tokens, settings.temperature, seed=settings.seed, batch_size=settings.batch_size
        )
        fitting = [n for n, ids in enumerate(prompts) if len(ids) + settings.max_tokens <= limit]
        fitting.sort(key=lambda number: -len(prompts[number]))
        verdicts: list[Verdict] = [_too_long(len(ids), limit - settings.max_tokens) for ids in prompts]
        given = generate(
            self.loaded.model,
            self.loaded.tokenizer,
            [prompts[number] for number in fitting],
            sampling,
            key=[str(repeats[number]) for number in fitting],
        )
        for number, reply in zip(fitting, given, strict=True):
            tokens = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
            verdicts[number] = replace(parse(reply.text, settings, finish=reply.finish), **tokens)
        return verdicts


def _too_long(tokens: int, limit: int) -> Verdict:
    return Verdict("truncated", reason=f"the prompt has {tokens} tokens, and the judge takes {limit}")


def label_logs(
    loaded: "LoadedModel", prompts: Sequence[list[int]], labels: Sequence[Sequence[int]], batch_size: int
) -> list[list[float]]:
    """Returns the log-probability of each label as the continuation of each prompt, ``[prompts][labels]``, in nats.

    Labels of one token take one forward pass of the prompt. Where one label begins another (``1`` and ``10``), each
    also has to be followed by the end of the answer.
    """
    parts = [tuple(label) for label in labels]
    ended = any(a != b and b[: len(a)] == a for a in parts for b in parts)
    ends = sorted(ends_of(loaded.model, loaded.tokenizer)) if ended else []
    reach = 1 if ended else 0  # whether what follows the whole label is read too
    prefixes = sorted({part[:k] for part in parts for k in range(len(part) + reach)})
    rows = [[*prompt, *prefix] for prompt in prompts for prefix in prefixes]
    needed = [sorted({part[len(p)] for part in parts if part[: len(p)] == p and len(part) > len(p)}) for p in prefixes]
    wanted = [[*tokens, *ends] for tokens in needed] * len(prompts)
    logs = next_logs(loaded.model, rows, wanted, batch_size)
    found = []
    for number in range(len(prompts)):
        by_prefix = dict(zip(prefixes, logs[number * len(prefixes) : (number + 1) * len(prefixes)], strict=True))
        found.append([_log_of(part, by_prefix, ends) for part in parts])
    return found


def _log_of(part: tuple[int, ...], by_prefix: dict[tuple[int, ...], dict[int, float]], ends: Sequence[int]) -> float:
    total = sum(by_prefix[part[:k]][part[k]] for k in range(len(part)))
    if ends:
        total += math.log(max(sum(math.exp(by_prefix[part][end]) for end in ends), 1e-300))
    return total
