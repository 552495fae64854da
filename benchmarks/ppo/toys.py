"""Tiny models, prompts and rewards whose optimum is known, for the benchmarks beside this file.

The vocabulary is a word a token. The model is a two-layer Llama with random weights, or, for `uniform`, one whose
output layer is zero, so that its first policy, the reference, gives every token the same probability everywhere.
"""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = [f"w{number}" for number in range(14)]
PAD, EOS = "<pad>", "<eos>"
SPECIAL = 2  # the ids of PAD and EOS come before those of the words
LENGTH = 6
TARGET = WORDS[3]


def share_of_target(completion_ids: list[list[int]], target_id: list[int], **columns: Any) -> list[float]:
    """The share of LENGTH places that hold the target token; the optimum is 1."""
    return [ids.count(target) / LENGTH for ids, target in zip(completion_ids, target_id, strict=True)]


def first_is_asked(completion_ids: list[list[int]], asked_id: list[int], **columns: Any) -> list[float]:
    """A contextual bandit: 1 if the first token is the one that the prompt names; the optimum is 1."""
    return [float(bool(ids) and ids[0] == asked) for ids, asked in zip(completion_ids, asked_id, strict=True)]


def successor(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """As `ascending`, but the first word follows the last, so that every beginning can be completed."""
    size = len(WORDS)
    words = [[token - SPECIAL for token in ids if token >= SPECIAL] for ids in completion_ids]
    return [sum(b == (a + 1) % size for a, b in itertools.pairwise(ids)) / (LENGTH - 1) for ids in words]


def ascending(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """The share of the LENGTH - 1 steps at which the token's number grows by one; the optimum is 1.

    A trap: an answer that begins one word too late earns .8, and no single other token improves it.
    """
    return [sum(b == a + 1 for a, b in itertools.pairwise(ids)) / (LENGTH - 1) for ids in completion_ids]


def build_tokenizer(folder: Path) -> Any:
    """Saves a tokenizer of one token a word and returns it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate([PAD, EOS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)
    fast.save_pretrained(folder)
    return fast


def build_model(folder: Path, seed: int, *, uniform: bool = False) -> None:
    """Saves the model and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        initializer_range=0.06,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    if uniform:
        torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(folder)


def write_prompts(path: Path, tokenizer: Any, rows: int = 512) -> None:
    """Writes prompts of one word, with the columns that the rewards read."""
    target = tokenizer.convert_tokens_to_ids(TARGET)
    with path.open("w") as file:
        for number in range(rows):
            word = WORDS[number % len(WORDS)]
            asked = tokenizer.convert_tokens_to_ids(word)
            file.write(json.dumps({"prompt": word, "target_id": target, "asked_id": asked}) + "\n")


@dataclass(frozen=True)
class Optimum:
    """The policy that maximises E[r] - beta KL(policy || reference).

    Attributes:
        reward: E[r] under it.
        kl: KL(policy || reference) of whole answers, nats.
        objective: reward - beta * kl.
    """

    reward: float
    kl: float
    objective: float


def optimum(beta: float, *, tokens: int, hits: float = 1 / LENGTH, length: int = LENGTH) -> Optimum:
    """Solves `share_of_target` for a uniform reference exactly, by backward and forward recursion.

    The optimal policy is pi*(y|x) = pi_ref(y|x) exp(r(x,y)/beta) / Z(x) (Rafailov et al. 2023, arXiv:2305.18290,
    equation 4). For a reward that adds up over tokens, its soft value obeys
    V_t = beta log sum_a pi_ref(a) exp((r(a) + V_{t+1})/beta), where EOS ends the answer with V = 0.

    Args:
        beta: Weight of the KL.
        tokens: Size of the vocabulary: one target, one EOS, the rest worth nothing.
        hits: Reward of each target token.
        length: Tokens of an answer at most.
    """
    value = [0.0] * (length + 1)
    probability = []
    for step in range(length - 1, -1, -1):
        after = value[step + 1] / beta
        weights = (math.exp(hits / beta + after), 1.0, (tokens - 2) * math.exp(after))  # target, EOS, any other
        total = sum(weights)
        value[step] = beta * math.log(total / tokens)
        probability.insert(0, tuple(weight / total for weight in weights))
    alive, reward, kl = 1.0, 0.0, 0.0
    for target, end, other in probability:
        reward += alive * target * hits
        kl += alive * (target * math.log(target * tokens) + end * math.log(end * tokens))
        kl += alive * other * math.log(other * tokens / (tokens - 2))
        alive *= 1 - end
    return Optimum(reward, kl, reward - beta * kl)
