"""Tiny models and tokenizers built in code: no test needs the network or a GPU."""

import gc
import os
import signal
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXT = [
    "The quick brown fox jumps over the lazy dog.",
    "Numbers such as 17, 42 and 1001 are split into digits; so is 3.14159.",
    "user assistant system tool question answer hello goodbye thanks please sorry",
    "<think>Let me see. Two and two make four.</think> The answer is 4.",
    'A call: {"name": "get_weather", "arguments": {"city": "Paris"}}',
    "Ünïcödé, 漢字 and emoji 🙂 fall back to bytes.",
]
INSTRUCT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job that a shell starts in the background ignores Ctrl-C

_frozen = [0]  # modules that were there when the collector last set aside what there was


def pytest_runtest_logfinish() -> None:
    """Takes what libraries have made at their import out of later collections, of which accelerate asks for one a run.

    Looking through torch, transformers and TRL in vain takes a third of such a run's time.
    """
    if len(sys.modules) > _frozen[0] + 100:
        gc.collect()
        gc.freeze()
        _frozen[0] = len(sys.modules)


def build_tokenizer(specials: Sequence[str] = SPECIALS, **named: str) -> "PreTrainedTokenizerFast":
    """Trains a byte-level BPE of about 500 tokens on a few sentences; ``named`` are its eos, pad and so on."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    names = named or {"pad_token": "<|pad|>", "eos_token": "<|endoftext|>"}
    others = [token for token in specials if token not in names.values()]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=others, **names)


@pytest.fixture
def tokenizer() -> "PreTrainedTokenizerFast":
    """A fresh tokenizer, free to be changed by the test."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights and its tokenizer, saved as a Hub repository would be. Do not change it."""
    return save_model(tmp_path_factory.mktemp("tiny-llama"), build_tokenizer())


@pytest.fixture(scope="session")
def instruct_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in bfloat16 as instruction-tuned models are published. Do not change it.

    Its pad token is its eos token, special tokens stand by that nothing uses, its embeddings are tied, and its own
    template has no generation marks and a default system message (SmolLM2's).
    """
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<empty_output>"]
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    tokenizer = build_tokenizer(specials, **named, unk_token="<|endoftext|>")
    tokenizer.chat_template = INSTRUCT_TEMPLATE
    return save_model(tmp_path_factory.mktemp("tiny-instruct"), tokenizer, "bfloat16")


@pytest.fixture(scope="session")
def exact_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in float32, whose answers do not depend on what is asked beside. Do not change it."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = INSTRUCT_TEMPLATE
    return save_model(tmp_path_factory.mktemp("tiny-exact"), tokenizer)


def save_model(folder: Path, tokenizer: Any, dtype: str = "float32") -> Path:
    """Saves a two-layer Llama with random weights for a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
