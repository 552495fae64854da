"""Answers of a model in this process, in batches: the same text whatever else is in the batch.

Every draw comes from the prompt's own stream of random numbers, seeded by what is asked. So a sampled answer depends
neither on the batch that it was drawn in nor on what an earlier call has drawn, up to rounding in the model itself.
Nothing but the temperature and the mass of the nucleus shapes the distribution: penalties that a checkpoint's
``generation_config.json`` may hold are left aside.
"""

import functools
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import PosttrainError, first_line
from .endpoint import Reply
from .errors import DataError
from .files import hash_json

if TYPE_CHECKING:
    import torch

VLLM_BATCH = 256  # prompts handed over at a time at least


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_new_tokens: Tokens of an answer at most.
        temperature: 0 is greedy.
        top_p: The mass of the likeliest tokens that are drawn from.
        seed: Of the draws.
        batch_size: Prompts at a time; decides speed and memory, not the answers.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 16


def room(model: Any) -> int | None:
    """Returns how many tokens a model of transformers or vLLM takes, prompt and answer together; None if unknown."""
    engine = getattr(model, "llm_engine", None)
    return places(model)[0] if engine is None else engine.model_config.max_model_len


def places(model: Any) -> tuple[int | None, bool]:
    """Returns how many tokens a model of transformers was made for, and whether each of its places has an embedding.

    The number is None where the configuration does not say. Without such embeddings a model reads on beyond it, where
    it has learnt nothing; with them it cannot.
    """
    from torch import nn

    config = model.config.get_text_config()
    stated = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "n_ctx"))
    most = next((length for length in stated if isinstance(length, int) and length > 0), None)
    tables = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    for table in tables[1:]:
        if most and most <= table.num_embeddings <= most + 2:  # two of OPT's are of padding, as are RoBERTa's first
            return most - (0 if table.padding_idx is None else table.padding_idx + 1), True
    return most, False


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    keys: Sequence[str],
    *,
    streamer: Any = None,
    kept: Collection[str] = (),
) -> Iterator[Reply]:
    """Generates an answer to each prompt, in their order, a batch at a time.

    Batches are cut from the prompts as they come: longest first shows at once whether memory is enough, and pads
    least.

    Args:
        model: A causal language model of transformers, on its device, or of :func:`load_vllm`, which draws from the
            same distribution, but otherwise.
        tokenizer: Its tokenizer.
        prompts: Token ids, ``[prompts][tokens]``, of any lengths that leave room for an answer.
        sampling: How answers are drawn.
        keys: What each prompt's draws depend on besides the prompt and the seed, such as the number of the sample.
            Equal prompts under equal keys get equal answers.
        streamer: A streamer of transformers, which gets each token as it is drawn; it takes one prompt only.
        kept: As of :func:`decode_answer`.

    Yields:
        The answers, as soon as their batch is done.
    """
    asked = zip(keys, map(list, prompts), strict=True)
    seeds = [seed_of(sampling.seed, key, prompt) for key, prompt in asked]
    answer: Any = functools.partial(_with_transformers, streamer=streamer, kept=kept)
    size = sampling.batch_size
    if hasattr(model, "llm_engine"):
        answer, size = functools.partial(_with_vllm, kept=kept), max(size, VLLM_BATCH)
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        begun = time.perf_counter()
        answers = answer(model, tokenizer, batch, sampling, seeds[start : start + size])
        seconds = (time.perf_counter() - begun) / len(batch)
        for prompt, (text, ended, tokens) in zip(batch, answers, strict=True):
            yield Reply("", text, "stop" if ended else "length", len(prompt), tokens, seconds=seconds)


def seed_of(seed: int, key: str, prompt: Sequence[int]) -> int:
    """Returns the seed of a prompt's own stream of random numbers, from that of all draws and the prompt's key."""
    return int(hash_json([seed, key, list(prompt)]), 16) % 2**31


def _with_transformers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    streamer: Any,
    kept: Collection[str],
) -> list[tuple[str, bool, int]]:
    """Returns the text of each answer, whether the model ended it, and its number of tokens."""
    drawn = draw(model, tokenizer, prompts, sampling, seeds, streamer)
    texts = [decode_answer(tokenizer, ids[: len(ids) - ended], kept) for ids, ended in drawn]
    return [(text, ended, len(ids)) for text, (ids, ended) in zip(texts, drawn, strict=True)]


def decode_answer(tokenizer: Any, ids: Sequence[int], kept: Collection[str]) -> str:
    """Returns the text of an answer without special tokens.

    Args:
        tokenizer: The model's.
        ids: The answer's tokens.
        kept: Special tokens that stay: some tokenizers have the tags around thoughts as such.
    """
    tags = {number: text for text in kept if (number := _special_id(tokenizer, text)) is not None}
    parts, start = [], 0
    for place, token in enumerate(ids):
        if token in tags:
            parts += [tokenizer.decode(ids[start:place], skip_special_tokens=True), tags[token]]
            start = place + 1
    return "".join([*parts, tokenizer.decode(ids[start:], skip_special_tokens=True)])


def _special_id(tokenizer: Any, text: str) -> int | None:
    """Returns the number of a special token; None of what is no token or no special one."""
    number = tokenizer.convert_tokens_to_ids(text)
    is_token = number is not None and tokenizer.convert_ids_to_tokens(number) == text
    return number if is_token and not tokenizer.decode([number], skip_special_tokens=True) else None


def _with_vllm(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    kept: Collection[str],
) -> list[tuple[str, bool, int]]:
    """Returns the same from vLLM, which makes its own batches."""
    from vllm import SamplingParams  # type: ignore[import-not-found]

    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    common: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p, "stop_token_ids": ends}
    if any(_special_id(tokenizer, text) is not None for text in kept):
        common["skip_special_tokens"] = False
    settings = [SamplingParams(max_tokens=sampling.max_new_tokens, seed=seed, **common) for seed in seeds]
    done = model.generate([{"prompt_token_ids": list(ids)} for ids in prompts], settings, use_tqdm=False)
    best = [output.outputs[0] for output in done]
    return [(one.text, one.finish_reason != "length", len(one.token_ids)) for one in best]


def draw(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    streamer: Any = None,
) -> list[tuple[list[int], bool]]:
    """Draws the answers to one batch of prompts, padded on the left, where the attention mask hides the padding.

    Args:
        model: As for :func:`generate`.
        tokenizer: As for :func:`generate`.
        prompts: Token ids, ``[batch][tokens]``.
        sampling: How answers are drawn; ``seed`` and ``batch_size`` are not read.
        seeds: One for each prompt.
        streamer: As for :func:`generate`.

    Returns:
        For each prompt the tokens of its answer, the one that ends it included, and whether there is such a one.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    ends = ends_of(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    config = GenerationConfig(
        do_sample=False,  # the draw is a processor of ours, so that each row has random numbers of its own
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        num_return_sequences=1,
        return_dict_in_generate=False,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
        bos_token_id=model.generation_config.bos_token_id,
    )
    finite = FiniteLogits()
    processors = LogitsProcessorList([finite, *([Draw(sampling, seeds)] if sampling.temperature > 0 else [])])
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=processors,
            streamer=streamer,
        )
    finite.check()
    answers = []
    for row in output[:, width:].tolist():
        end = next((place for place, token in enumerate(row) if token in ends), None)
        answers.append((row, False) if end is None else (row[: end + 1], True))
    return answers


def ends_of(model: Any, tokenizer: Any) -> set[int]:
    """Returns the tokens that end an answer: those of the model's generation config and the tokenizer's own."""
    known = model.generation_config.eos_token_id
    return {*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id} - {None}


class FiniteLogits:
    """A logits processor that changes nothing, and remembers on the model's device whether a logit was not a number.

    The likeliest token of such logits is the first of the vocabulary: a broken model would write it without a word.
    """

    def __init__(self) -> None:
        self._broken: torch.Tensor | None = None

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        """Takes scores ``[rows, vocabulary]``, and returns them."""
        broken = scores.isnan().any()
        self._broken = broken if self._broken is None else self._broken | broken
        return scores

    def check(self) -> None:
        """Raises a PosttrainError if one was not."""
        if self._broken is not None and bool(self._broken):
            raise PosttrainError("the model's logits are not numbers", hint="do the weights hold NaN?")


class Draw:
    """A logits processor that leaves each row one token, drawn by inverting the distribution function.

    The smallest set of likeliest tokens that holds ``top_p`` of the mass is drawn from (Holtzman et al. 2020,
    arXiv:1904.09751, section 3.1).

    Args:
        sampling: How tokens are drawn.
        seeds: One for each row.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int]):
        import torch

        self.temperature, self.top_p, self.step = sampling.temperature, sampling.top_p, 0
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.uniform = torch.stack([torch.rand(sampling.max_new_tokens, generator=stream) for stream in streams])

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        """Takes and returns scores ``[rows, vocabulary]``; all but those of the drawn tokens become -inf."""
        import torch

        chances = (scores.float() / self.temperature).softmax(dim=-1)
        order = None
        if self.top_p < 1:
            chances, order = chances.sort(dim=-1, descending=True, stable=True)
            chances = chances.where(chances.cumsum(dim=-1) - chances < self.top_p, 0)
        exact = torch.float32 if scores.device.type == "mps" else torch.float64
        mass = chances.to(exact).cumsum(dim=-1)
        target = self.uniform[:, self.step, None].to(mass) * mass[:, -1:]
        last = (chances > 0).long().cumsum(dim=-1).argmax(dim=-1, keepdim=True)  # rounding may reach the very end
        drawn = (mass <= target).sum(dim=-1, keepdim=True).minimum(last)
        if order is not None:
            drawn = order.gather(-1, drawn)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)


def load_vllm(name: str, **options: Any) -> Any:
    """Loads a model into vLLM, for :func:`generate`.

    Args:
        name: A folder or Hub id.
        **options: Further arguments of ``vllm.LLM``, such as ``gpu_memory_utilization`` or ``max_model_len``.

    Raises:
        DataError: vLLM is not installed, or cannot load the model.
    """
    try:
        from vllm import LLM  # type: ignore[import-not-found]
    except ImportError as error:
        raise DataError("vLLM is not installed", hint="pip install vllm, or use transformers") from error
    try:
        return LLM(model=name, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"vLLM cannot load {name}: {first_line(error)}", hint="check `model`") from error
