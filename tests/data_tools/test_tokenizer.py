"""A trained tokenizer loses no text, keeps its promises on special tokens, and is the same every time."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.tokenizer import SPECIAL_TOKENS, Tokenizer
from pydantic import ValidationError
from transformers import AutoTokenizer

TEXTS = [f"{a} {b} {i}: the {b} of {a} is 12345 + {i * 7}\n" for i, a in enumerate(["fox", "dog", "cat", "bird"] * 20)
         for b in ["name", "colour", "answer"]]  # fmt: skip


def train(texts, folder, **options):
    rows = folder.with_suffix(".jsonl")
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    Tokenizer(sources=[str(rows)], **options).run(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return train(TEXTS, folder, vocab_size=288), folder


def test_auto_tokenizer_loads_it_with_the_specials_first(trained):
    loaded = AutoTokenizer.from_pretrained(trained[1])
    assert loaded.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert (loaded.pad_token, loaded.eos_token) == ("<|pad|>", "<|endoftext|>")
    assert len(loaded) == 288
    assert loaded("<|im_start|>fox<|im_end|>")["input_ids"][0] == 2
    assert loaded.decode(loaded("fox<|im_end|>")["input_ids"], skip_special_tokens=True) == "fox"


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_survives(trained, text):
    assert trained[0].decode(trained[0](text)["input_ids"]) == text


def test_it_compresses_what_it_was_trained_on(trained):
    assert len(trained[0](TEXTS[0])["input_ids"]) < 0.6 * len(TEXTS[0])


@pytest.mark.parametrize(("split_digits", "expected"), [(True, 5), (False, 2)])
def test_digits_are_single_tokens_or_groups_of_three(tmp_path, split_digits, expected):
    tokenizer = train(["12345 " * 50], tmp_path, vocab_size=300, split_digits=split_digits)
    assert len(tokenizer("12345")["input_ids"]) == expected


def test_another_process_trains_the_same_bytes(trained, tmp_path):
    command = ["data", "tokenizer", trained[1].with_suffix(".jsonl"), "--vocab-size", "288", "-o", tmp_path]
    subprocess.run([sys.executable, "-m", "posttrain.recipes.cli", *command], check=True)
    names = sorted(path.name for path in trained[1].iterdir())
    assert "tokenizer.json" in names
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (trained[1] / name).read_bytes()


def test_it_reads_the_texts_of_every_kind_of_row(tmp_path):
    rows = {
        "a.jsonl": {"text": "alpha"},
        "b.jsonl": {"prompt": "beta", "completion": "gamma"},
        "c.jsonl": {"messages": [{"role": "user", "content": "delta"}, {"role": "assistant", "content": "epsilon"}]},
    }
    for name, row in rows.items():
        (tmp_path / name).write_text((json.dumps(row) + "\n") * 40)
    Tokenizer(sources=[str(tmp_path / name) for name in rows], vocab_size=400).run(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert {"alpha", "beta", "gamma", "delta", "epsilon"} <= tokenizer.get_vocab().keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 259}, "vocab_size: 259 is too small; 256 bytes and 4 special tokens need at least 260"),
        ({"pad_token": "<|endoftext|>"}, "pad_token: is also the eos_token"),
        ({"eos_token": "</s>"}, "eos_token: '</s>' is not among special_tokens"),
        ({"special_tokens": ["<|pad|>", "<|endoftext|>", "<|pad|>"]}, "stands twice"),
    ],
)
def test_a_tokenizer_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValidationError) as caught:
        Tokenizer(**{"sources": ["text.jsonl"]} | changes)
    assert message in str(caught.value)


def test_no_text_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no usable row: empty text"):
        train([""], tmp_path / "out", vocab_size=300, max_bad_share=1.0)
    assert not (tmp_path / "out").exists()
