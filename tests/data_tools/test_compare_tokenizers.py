"""A comparison of tokenizers counts what each makes of the rows, and names what each loses."""

import json

import pytest
from posttrain.data_tools import row_tool
from posttrain.data_tools.compare_tokenizers import Named, probe_bytes
from posttrain.recipes.tokenizer_tools import CompareTokenizers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

ROWS = [
    {"text": "The quick brown fox jumps.", "lang": "en"},
    {"text": "Numbers such as 17 and 42.", "lang": "en"},
    {"text": "漢字 und 🙂 <|im_end|>", "lang": "de"},
]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def lossy(tmp_path):
    """A tokenizer of words in small letters, of which it knows a few."""
    words = ["[UNK]", "the", "quick", "brown", "fox", "jumps", "."]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path / "lossy")
    return tmp_path / "lossy"


def compare(rows, tokenizers, folder, **options):
    said = CompareTokenizers(sources=[str(rows)], tokenizers=[str(path) for path in tokenizers], **options).run(folder)
    report = json.loads((folder / "report.json").read_text())
    return said, {table["title"]: table["rows"] for table in report["tables"]}, report["counts"]


def test_tokens_are_counted_by_source_and_group_and_text_is_never_a_control_token(
    rows, tiny_model_dir, lossy, tmp_path
):
    said, tables, _ = compare(rows, [tiny_model_dir, lossy], tmp_path / "out", by="lang")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    ids = [tokenizer(row["text"].replace("<|im_end|>", "")).input_ids for row in ROWS]
    spelt = len(tokenizer("<").input_ids + tokenizer("|").input_ids + tokenizer("im").input_ids)
    size = sum(len(row["text"].encode()) for row in ROWS)
    ((source, count, first, second),) = tables["Tokens"]
    assert (source, count) == (str(rows), size)
    assert int(first) >= sum(map(len, ids)) + spelt  # <|im_end|> would be one token
    assert second.startswith("1")
    assert "Tokens\n" in said
    assert f"{first} " in said or f"{first}\n" in said
    by_language = {row[0]: row[1:] for row in tables["Bytes per token, by lang"]}
    english = sum(len(row["text"]) for row in ROWS[:2])
    assert by_language["en"][:2] == [english, f"{english / sum(map(len, ids[:2])):.2f}"]
    words = {row[0]: row[1] for row in tables["Tokens per word, by lang"]}
    assert words == {"en": 11, "de": 4}


def test_what_is_lost_is_named_with_its_place(rows, tiny_model_dir, lossy, tmp_path):
    _, tables, counts = compare(rows, [tiny_model_dir, lossy], tmp_path / "out")
    found = {entry["name"]: entry for entry in counts["Texts that do not come back"]}
    assert {name: entry["count"] for name, entry in found.items()} == {
        "lossy: characters change": 1,
        "lossy: unknown tokens": 2,
    }
    assert (
        "at character 0: 'The quick brown fox ' became 'the"
        in found["lossy: characters change"]["examples"][0]["detail"]
    )
    whole = {row[0]: row[1:] for row in tables["Does a text come back from its tokens?"]}
    assert whole["the rows"] == ["all 3", "3 of 3 do not"]
    assert whole["the bytes of UTF-8"][0] == "all 243"
    assert whole["the bytes of UTF-8"][1].startswith("not 00, 01")
    assert whole["emoji of several characters"] == ["yes", "no: unknown tokens"]


def test_the_share_of_the_vocabulary_is_of_all_blocks(rows, tiny_model_dir, lossy, tmp_path, monkeypatch):
    _, tables, _ = compare(rows, [tiny_model_dir, lossy], tmp_path / "one")
    monkeypatch.setattr(row_tool, "BLOCK_ROWS", 1)
    _, blocks, _ = compare(rows, [tiny_model_dir, lossy], tmp_path / "two")
    assert blocks["Vocabulary"] == tables["Vocabulary"]
    seen = {
        token for one in (ROWS[0], ROWS[1]) for token in AutoTokenizer.from_pretrained(lossy)(one["text"]).input_ids
    }
    assert tables["Vocabulary"][1][1:5] == ["WordLevel", 7, len(seen), f"{100 * len(seen) / 7:.1f}%"]


def test_numbers_show_how_they_are_cut(rows, tiny_model_dir, tmp_path):
    _, tables, _ = compare(rows, [tiny_model_dir], tmp_path / "out")
    (cut,) = tables["Numbers"]
    assert cut[1] == "1 (100%)"
    assert cut[3].startswith("1+1+1 (")
    probes = {row[0]: row[1] for row in tables["Numbers, code and other writing"]}
    assert probes["emoji"] == "6: 👍[3] · 🏽[3]"
    assert probes["a number"].replace(" · ", "").endswith(": 1234567")


def test_the_probes_have_every_byte_that_utf_8_can_have():
    assert sorted(probe_bytes()) == [*range(0xC0), *range(0xC2, 0xF5)]
    assert all(byte in character.encode() for byte, character in probe_bytes().items())


@pytest.mark.parametrize(
    ("back", "cause"),
    [
        ("e\u0301 fi", "characters become their NFKD form"),
        ("É ﬁ".lower(), "capital letters are lost"),
        ("É  ﬁ", "white space changes"),
        ("E ﬁ", "characters change"),
    ],
)
def test_each_way_to_lose_has_its_name(tokenizer, monkeypatch, back, cause):
    one = Named("t", tokenizer)
    text = "é ﬁ" if "NFKD" in cause else "É ﬁ"
    monkeypatch.setattr(one, "decode", lambda ids: back)
    found = one.loss(text, [1])
    assert found is not None
    assert found[0] == cause
