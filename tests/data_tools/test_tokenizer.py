"""A trained tokenizer loses no text, keeps its promises on special tokens, and is the same every time."""

import json
import random
import re
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


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def trained(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("tokenizer")
    return train(TEXTS, folder, vocab_size=288, model=request.param), folder


def test_auto_tokenizer_loads_it_with_the_specials_first(trained):
    loaded = AutoTokenizer.from_pretrained(trained[1])
    assert loaded.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert (loaded.pad_token, loaded.eos_token) == ("<|pad|>", "<|endoftext|>")
    assert len(loaded) <= 288
    assert loaded("<|im_start|>fox<|im_end|>")["input_ids"][0] == 2
    assert loaded.decode(loaded("fox<|im_end|>")["input_ids"], skip_special_tokens=True) == "fox"


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_a_mask_token_is_one_of_the_special_tokens_or_put_behind_them(tmp_path, model):
    loaded = train(TEXTS, tmp_path / "more", vocab_size=288, model=model, mask_token="[MASK]")
    assert (loaded.mask_token, loaded.mask_token_id) == ("[MASK]", 4)
    assert len(loaded) <= 288
    assert loaded("fox[MASK]")["input_ids"][-1] == 4
    again = train(TEXTS, tmp_path / "again", vocab_size=288, model=model, mask_token="<|im_end|>")
    assert (again.mask_token_id, len(SPECIAL_TOKENS)) == (3, 4)
    assert train(TEXTS, tmp_path / "none", vocab_size=288, model=model).mask_token is None


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_survives(trained, text):
    assert trained[0].decode(trained[0](text)["input_ids"]) == text


def test_each_of_the_256_bytes_is_a_token_and_odd_characters_come_back(trained):
    tokenizer = trained[0]
    alphabet = {byte: character for character, byte in bytes_of_characters().items()}
    ids = tokenizer.convert_tokens_to_ids([alphabet[byte] for byte in range(256)])
    assert None not in ids
    assert len(set(ids)) == 256
    odd = [
        "".join(map(chr, range(256))),
        "\u2028\u0085\x0c\x1e",
        "e\u0301 \ufb01 \u00a0\ufeff\u200d",
        "👍🏽👩‍👩‍👧",
        "\U0010ffff",
    ]
    for text in odd:
        found = tokenizer(text)["input_ids"]
        assert tokenizer.decode(found) == text
        assert tokenizer.decode([ids[byte] for byte in text.encode()]) == text


def test_a_special_token_written_out_is_text_for_the_model_beneath(tmp_path):
    tokenizer = train(["hello there"] * 40, tmp_path, model="unigram", special_tokens=[*SPECIAL_TOKENS, "hello"])
    assert [piece.id for piece in tokenizer.backend_tokenizer.model.tokenize("hello")] != [4]


def bytes_of_characters():
    """The byte that each character of a byte-level alphabet stands for, as GPT-2 has it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


def test_it_compresses_what_it_was_trained_on(trained):
    assert len(trained[0](TEXTS[0])["input_ids"]) < 0.6 * len(TEXTS[0])


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_the_order_of_the_rows_changes_no_byte(tmp_path, model):
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefgh", k=8)) for _ in range(400)]  # every word once: all counts are ties
    texts = [" ".join(words[start : start + 5]) for start in range(0, len(words), 5)] * 2
    train(texts, tmp_path / "one", vocab_size=420, model=model)
    train(texts[::-1], tmp_path / "two", vocab_size=420, model=model)
    assert (tmp_path / "one" / "tokenizer.json").read_bytes() == (tmp_path / "two" / "tokenizer.json").read_bytes()


def test_a_cap_of_bytes_takes_a_share_of_each_source_and_says_so(tmp_path):
    for name in ("one", "two"):
        rows = "".join(json.dumps({"text": f"{name} {number:04}"}) + "\n" for number in range(500))
        (tmp_path / f"{name}.jsonl").write_text(rows)
    tool = Tokenizer(sources=[str(tmp_path / f"{name}.jsonl") for name in ("one", "two")], max_bytes=2000)
    said = tool.run(tmp_path / "out")
    found = re.search(r"from ([\d,]+) bytes \((.*)% of the texts\)", said)
    assert found is not None
    used, share = found.groups()
    assert 1500 < int(used.replace(",", "")) < 2500
    assert 15 < float(share) < 28
    assert {"one", "two"} <= AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab().keys()
    with pytest.raises(DataError, match="no text fits into max_bytes: 1"):
        tool.model_copy(update={"max_bytes": 1}).run(tmp_path / "out")


def test_a_word_without_end_is_cut_for_training_and_whole_afterwards(tmp_path):
    tokenizer = train(["x" * 10_000] * 3, tmp_path, vocab_size=1000)
    assert max(map(len, tokenizer.get_vocab())) == 64
    assert tokenizer.decode(tokenizer("x" * 1000 + "y")["input_ids"]) == "x" * 1000 + "y"


@pytest.mark.parametrize(("split_digits", "expected"), [(True, 5), (False, 2)])
def test_digits_are_single_tokens_or_groups_of_three(tmp_path, split_digits, expected):
    tokenizer = train(["12345 " * 50], tmp_path, vocab_size=300, split_digits=split_digits)
    assert len(tokenizer("12345")["input_ids"]) == expected


def test_another_process_trains_the_same_bytes(trained, tmp_path):
    model = type(trained[0].backend_tokenizer.model).__name__.lower()
    command = [
        "data",
        "tokenizer",
        trained[1].with_suffix(".jsonl"),
        "--vocab-size",
        "288",
        "--model",
        model,
        "-o",
        tmp_path,
    ]
    subprocess.run([sys.executable, "-m", "posttrain.recipes.cli", *command], check=True)
    names = sorted(path.name for path in trained[1].iterdir())
    assert "tokenizer.json" in names
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (trained[1] / name).read_bytes()


def test_it_reads_the_texts_of_every_kind_of_row(tmp_path):
    call = {"type": "function", "function": {"name": "zeta", "arguments": {"eta": 1}}}
    called = {"role": "assistant", "reasoning_content": "theta", "tool_calls": [call]}
    rows = {
        "a.jsonl": {"text": "alpha"},
        "b.jsonl": {"prompt": "beta", "completion": "gamma"},
        "c.jsonl": {"messages": [{"role": "user", "content": "delta"}, {"role": "assistant", "content": "epsilon"}]},
        "d.jsonl": {"messages": [{"role": "user", "content": "delta"}, called]},
    }
    for name, row in rows.items():
        (tmp_path / name).write_text((json.dumps(row) + "\n") * 40)
    Tokenizer(sources=[str(tmp_path / name) for name in rows], vocab_size=400).run(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    words = {"alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"}
    assert words <= tokenizer.get_vocab().keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 259}, "vocab_size: 259 is too small; 256 bytes and 4 special tokens need at least 260"),
        ({"model": "unigram", "min_frequency": 3}, "min_frequency: is a setting of bpe"),
        ({"pad_token": "<|endoftext|>"}, "pad_token: is also the eos_token"),
        ({"eos_token": "</s>"}, "eos_token: '</s>' is not among special_tokens"),
        ({"special_tokens": ["<|pad|>", "<|endoftext|>", "<|pad|>"]}, "stands twice"),
        ({"mask_token": "<|pad|>"}, "mask_token: is also the pad_token"),
        ({"mask_token": "[MASK]", "vocab_size": 260}, "256 bytes and 5 special tokens need at least 261"),
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
