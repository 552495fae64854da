"""Answers of a model in this process, in batches: the same text whatever else is in the batch.

Every draw comes from the prompt's own stream of random numbers, seeded by what is asked. So a sampled answer depends
neither on the batch that it was drawn in nor on what an earlier call has drawn, up to rounding in the model itself.
Nothing but the temperature and the mass of the nucleus shapes the distribution: penalties that a checkpoint's
``generation_config.json`` may hold are left aside.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import first_line
from .endpoint import Reply
from .errors import DataError
from .files import hash_json

if TYPE_CHECKING:
    import torch

_VLLM_CHUNK = 256


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
    if engine is not None:
        return engine.model_config.max_model_len
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    key: str | Sequence[str] = "",
) -> Iterator[Reply]:
    """Generates an answer to each prompt, in their order, a batch at a time.

    Batches are cut from the prompts as they come: longest first shows at once whether memory is enough, and pads
    least.

    Args:
        model: A causal language model of transformers, on its device.
        tokenizer: Its tokenizer.
        prompts: Token ids, ``[prompts][tokens]``, of any lengths that leave room for an answer.
        sampling: How answers are drawn.
        key: What the draws depend on besides the prompt and the seed: one for all prompts, or one for each, such as
            the number of the sample. Equal prompts under equal keys get equal answers.

    Yields:
        The answers, as soon as their batch is done.
    """
    seeds = _seeds(prompts, sampling, key)
    for start in range(0, len(prompts), sampling.batch_size):
        batch = prompts[start : start + sampling.batch_size]
        begun = time.perf_counter()
        drawn = draw(model, tokenizer, batch, sampling, seeds[start : start + sampling.batch_size])
        seconds = (time.perf_counter() - begun) / len(batch)
        for prompt, (ids, ended) in zip(batch, drawn, strict=True):
            text = tokenizer.decode(ids[: len(ids) - ended], skip_special_tokens=True)
            yield Reply("", text, "stop" if ended else "length", len(prompt), len(ids), seconds=seconds)


def _seeds(prompts: Sequence[Sequence[int]], sampling: Sampling, key: str | Sequence[str]) -> list[int]:
    keys = [key] * len(prompts) if isinstance(key, str) else list(key)
    return [
        int(hash_json([sampling.seed, k, list(prompt)]), 16) % 2**31 for k, prompt in zip(keys, prompts, strict=True)
    ]


def draw(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
) -> list[tuple[list[int], bool]]:
    """Draws the answers to one batch of prompts, padded on the left, where the attention mask hides the padding.

    Args:
        model: As for :func:`generate`.
        tokenizer: As for :func:`generate`.
        prompts: Token ids, ``[batch][tokens]``.
        sampling: How answers are drawn; ``seed`` and ``batch_size`` are not read.
        seeds: One for each prompt.

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
    processors = LogitsProcessorList([_Draw(sampling, seeds)] if sampling.temperature > 0 else [])
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=processors
        )
    return [_cut(row, ends) for row in output[:, width:].tolist()]


def ends_of(model: Any, tokenizer: Any) -> set[int]:
    """Returns the tokens that end an answer: those of the model's generation config and the tokenizer's own."""
    known = model.generation_config.eos_token_id
    return {*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id} - {None}


def _cut(row: list[int], ends: set[int]) -> tuple[list[int], bool]:
    end = next((place for place, token in enumerate(row) if token in ends), None)
    return (row, False) if end is None else (row[: end + 1], True)


class _Draw:
    """A logits processor that leaves each row one token, drawn by inverting the distribution function.

    The smallest set of likeliest tokens that holds ``top_p`` of the mass is drawn from (Holtzman et al. 2020,
    arXiv:1904.09751, section 3.1).
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
    """Loads a model into vLLM, for :func:`generate_vllm`.

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


def generate_vllm(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    key: str | Sequence[str] = "",
) -> Iterator[Reply]:
    """Generates as :func:`generate` does, by vLLM: the same distribution, but other draws of it.

    Args:
        model: The engine of :func:`load_vllm`.
        tokenizer: The model's tokenizer.
        prompts: Token ids.
        sampling: How answers are drawn; vLLM makes its own batches, so of ``batch_size`` and 256 the greater number
            of prompts is handed over at a time.
        key: As for :func:`generate`.

    Yields:
        The answers, in the order of the prompts.

    Raises:
        DataError: vLLM is not installed.
    """
    try:
        from vllm import SamplingParams  # type: ignore[import-not-found]
    except ImportError as error:
        raise DataError("vLLM is not installed", hint="pip install vllm, or use transformers") from error
    seeds = _seeds(prompts, sampling, key)
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    size = max(sampling.batch_size, _VLLM_CHUNK)
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        settings = [
            SamplingParams(
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=seed,
                stop_token_ids=ends,
            )
            for seed in seeds[start : start + size]
        ]
        begun = time.perf_counter()
        done = model.generate([{"prompt_token_ids": list(ids)} for ids in batch], settings, use_tqdm=False)
        seconds = (time.perf_counter() - begun) / len(batch)
        for prompt, output in zip(batch, done, strict=True):
            best = output.outputs[0]
            finish = "length" if best.finish_reason == "length" else "stop"
            yield Reply("", best.text, finish, len(prompt), len(best.token_ids), seconds=seconds)
