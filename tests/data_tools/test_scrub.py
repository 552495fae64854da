"""Scrubbing: what is found is what checks out, the rest stays to the byte, and a second pass changes nothing."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from posttrain.chat_templates.errors import PosttrainError
from posttrain.data_tools.personal_data import IBAN_LENGTHS, NATIONAL, luhn
from posttrain.data_tools.scrub import PLACEHOLDER, Scrub, scrub_text, shape
from posttrain.data_tools.specfile import Document, validate
from pydantic import ValidationError
from stdnum import numdb

ALL = ["key", "email", "iban", "card", "national", "phone", "ip"]


def tool(**more: Any) -> Scrub:
    return Scrub.model_validate({"sources": [{"path": "a.jsonl"}], **more})


def scrubbed(text: str, **more: Any) -> str:
    made = tool(**more)
    return scrub_text(text, made.finders(), made._placeholder)[0]


FOUND = [
    ("write to jo.o+x@mail.uni-ulm.de.", "write to <EMAIL>."),
    ("(müller@büro.de, жанна@почта.рф)", "(<EMAIL>, <EMAIL>)"),
    ("- ann@corp.io\n-bob@corp.io", "- <EMAIL>\n-<EMAIL>"),
    (
        "他是ann@corp.io。邮箱ann@corp.io，地址8.8.4.4。密钥AKIAIOSFODNN7EXAMPLE。",
        "他是<EMAIL>。邮箱<EMAIL>，地址<IP>。密钥<KEY>。",
    ),
    ("card 4111 1111 1111 1111, 378282246310005", "card <CARD>, <CARD>"),
    ("5555-5555-5555-4444", "<CARD>"),
    ("4111 1111 1111 1111 123, 4111111111111111 12/27", "<CARD> 123, <CARD> 12/27"),
    ("IBAN DE89 3704 0044 0532 0130 00 at", "IBAN <IBAN> at"),
    ("gb29nwbk60161331926819;", "<IBAN>;"),
    ("call +1 (650) 253-0000 or +1 (650) 053-0000", "call <PHONE> or +1 (650) 053-0000"),
    ("from 8.8.4.4 and 93.184.216.34:80", "from <IP> and <IP>:80"),
    ("8.8.4.4:53, 8.8.8.0/24", "<IP>:53, <IP>/24"),
    ("DNS servers 8.8.8.8, 8.8.4.4; remote_addr='1.2.3.4'", "DNS servers <IP>, <IP>; remote_addr='<IP>'"),
    ("at 2a00:1450:4001:81b::200e", "at <IP>"),
    ("AKIAIOSFODNN7EXAMPLE", "<KEY>"),
    (f"ghp_{'a1B2' * 9}", "<KEY>"),
    ("sk-proj-Ab3dEf6hIj9kLm2nOp5q", "<KEY>"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVPmB92K27uhbUJU1p1r", "<KEY>"),
    ('api_key = "9fK2xQ7vLw3Zp8Rt"', 'api_key = "<KEY>"'),
    ("postgres://app:hunter22@db.corp.io/x", "postgres://app:<KEY>@db.corp.io/x"),
    ("https://a:b@host.com/ ann@corp.io", "https://a:<KEY>@host.com/ <EMAIL>"),
    (
        f"-----BEGIN RSA PRIVATE KEY-----\n{'MIIEpAIB' * 8}\n{'Ab3/' * 16}\nq9==\n-----END RSA PRIVATE KEY-----\nok",
        "<KEY>\nok",
    ),
]


@pytest.mark.parametrize(("text", "expected"), FOUND)
def test_what_is_found(text: str, expected: str) -> None:
    assert scrubbed(text) == expected


KEPT = [
    'password: hunter2; {"version": "4.0.0.3", "lib": "4.0.0.3"} (2.6.18.6) [2.6.18.6] ~=1.4.5.0, 3.3.0.1: release',
    "https://user:password@host.com/",
    "version 10.0.19.41, v1.2.3.4, Chrome/120.0.0.0, section 3.2.1.4",
    "192.168.0.1 127.0.0.1 10.1.2.3 203.0.113.9 2001:db8::1 fe80::1 std::vector a[1::2] x[2000::3] 12:34:56",
    "ISBN 978-0-306-40615-7, 2024-11-29T10:15:00Z, 550e8400-e29b-41d4-a716-446655440000",
    "commit 4b825dc642cb6eb9a060e54bf8d69288fbee4904 aa:bb:cc:dd:ee:ff",
    "y = W@self.x.mean + a@b.T; @property.setter; icon@2x.png; git@github.com:a/b",
    "ann@example.com",
    "4111 1111 1111 1112, 0.4111111111111111, 4111111111111111111111, 1234 5678 9012 3456",
    "DE88 3704 0044 0532 0130 00",
    "1998 1999 2000 2001 2002 2003 4111 1111 1111 1111 2004",
    "1 2 3 4 5 6 7 8 9 10 11 12 13\n3.14159265358979 1,234,567,890 2^31 = 2147483648 x+15551234567",
    "token = tokenizer.encode(text); secret: str; password = get_password(user_1)",
    "max_token: max_new_tokens_1_for_answers, sk-fading-circle-container",
    "-----BEGIN PRIVATE KEY----- is how such a file begins",
]


@pytest.mark.parametrize("text", KEPT)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert scrubbed(text) == text


def test_phones_without_a_plus_need_a_region() -> None:
    text = "Call (650) 253-0000, or 6502530000. Table: 6502530000 (650253001)"
    assert scrubbed(text) == text
    assert scrubbed(text, regions="us").startswith("Call <PHONE>, or <PHONE>.")
    assert scrubbed("(650-253-0000)", regions="gb,us") == "(<PHONE>)"
    sums = "4000/2000 = 2, 60000 - 10800 = 49200, 3000-1200, 0.304120 0.282791"
    assert scrubbed(sums, regions="BR,IN,DE") == sums
    with pytest.raises(PosttrainError, match="no region 'XX'"):
        scrubbed(text, regions=["XX"])


def test_a_placeholder_is_no_word_for_what_follows() -> None:
    assert scrubbed("call 650-253-0000; 6502530001 rows", regions="US") == "call <PHONE>; <PHONE> rows"
    text = "<PHONE> 6502530000, <IP> 1.2.3.4"
    assert scrubbed(text, regions="US") == text


def test_national_numbers_need_check_digits_and_a_word() -> None:
    more = {"kinds": ["national"], "countries": ["NL", "PL"]}
    assert scrubbed("BSN: 111222333, PESEL 44051401359", **more) == "BSN: <NATIONAL>, PESEL <NATIONAL>"
    text = "111222333 44051401359, then, much later in it, comes BSN 111222334"
    assert scrubbed(text, **more) == text
    with pytest.raises(ValidationError, match="no national number with check digits is known of 'US'"):
        tool(kinds=["national"], countries=["US"])
    with pytest.raises(ValidationError, match="go together"):
        tool(kinds=["national"])


def test_every_national_format_is_there_and_checks() -> None:
    made = tool(kinds=["national"], countries=list(NATIONAL))
    assert len(made.finders()) == len(NATIONAL)


def test_pseudonyms_are_one_for_one_address_and_seed() -> None:
    more = {"replace": "pseudonym", "seed": "k"}
    first, second, other = scrubbed("Ann@Corp.io ann@corp.io bob@corp.io", **more).split()
    assert first == second != other
    assert PLACEHOLDER.fullmatch(first)
    assert scrubbed("ann@corp.io", replace="pseudonym", seed="l") != first
    card = scrubbed("4111111111111111 4111-1111-1111-1111", **more).split()
    assert card[0] == card[1]
    with pytest.raises(ValidationError, match="need a `seed`"):
        tool(replace="pseudonym")


PIECES = (
    [text for text, _ in FOUND] + KEPT + [" ", "\n", "a", "1", "-", "+", "<EMAIL>", "<KEY_0a1b2c3d>", "é", "\u2028"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=8))
def test_a_second_pass_changes_nothing_and_the_rest_stays(pieces: list[str]) -> None:
    text = "".join(pieces)
    made = tool(kinds=ALL, countries=["NL", "ES"], regions=["US"], reserved=True)
    once, found = scrub_text(text, made.finders(), made._placeholder)
    assert scrub_text(once, made.finders(), made._placeholder) == (once, [])
    # what stands between the placeholders stands in the text, in its order
    place = 0
    for piece in PLACEHOLDER.split(once):
        place = text.index(piece, place) + len(piece)
    assert bool(found) == (once != text)


@pytest.mark.parametrize(
    "unit",
    ["a", "a.", "a@", "a-", "1", "1 ", "1.", "+1", ":", "1:", "sk-", "eyJ", "eyJ.", "://a:", "token=", "token: a1",
     "-----BEGIN RSA PRIVATE KEY-----\n", "-----BEGIN PRIVATE KEY-----" + "A" * 20, "a@b.", "DE00 ", "4111 ", "(",
     "\\n", "+1 650 253 0000 ", "(650) 253-0000 ", "BSN 1", "é", "１"],
)  # fmt: skip
def test_hostile_texts_take_under_a_second(unit: str) -> None:
    text = (unit * (100_000 // len(unit) + 1))[:100_000]
    made = tool(kinds=ALL, countries=["NL"], regions=["US"])
    finders = made.finders()
    begun = time.process_time()
    scrub_text(text, finders, made._placeholder)
    assert time.process_time() - begun < 1


def run(folder: Path, rows: list[Any], **more: Any) -> tuple[list[Any], dict[str, Any], str]:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Scrub.model_validate({"sources": [{"path": str(path)}], **more}).run(folder / "out")
    lines = (folder / "out" / "a.jsonl").read_text().splitlines()
    report = (folder / "out" / "report.json").read_text()
    return [json.loads(line) for line in lines], json.loads(report), report + (folder / "out/report.html").read_text()


def test_messages_are_scrubbed_and_the_report_tells_no_secret(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "I am ann@corp.io, 4111111111111111"}, {"role": "assistant", "content": "Hi"}]
    rows = [{"messages": talk, "id": 7, "tags": None}, {"messages": talk[1:], "id": 8, "tags": ["ann@corp.io"]}]
    more = {"replace": "pseudonym", "seed": "very secret"}
    written, report, whole = run(tmp_path, rows, **more)
    said = written[0]["messages"][0]["content"]
    assert re.fullmatch(r"I am <EMAIL_\w{8}>, <CARD_\w{8}>", said)
    assert written[0]["messages"][1:] == talk[1:]
    assert (written[0]["id"], written[0]["tags"]) == (7, None)
    assert written[1]["tags"] == [said.split()[2].rstrip(",")]
    assert {entry["name"]: entry["count"] for entry in report["counts"]["Changed"]} == {"email": 2, "card": 1}
    assert "aaa@aaaa.aa" in whole
    assert not any(secret in whole for secret in ("ann@corp.io", "4111111", "very secret"))


def test_rows_can_be_dropped_and_columns_chosen(tmp_path: Path) -> None:
    rows = [{"text": "ann@corp.io", "by": "x"}, {"text": "none", "by": "bob@corp.io"}]
    written, report, whole = run(tmp_path, rows, columns="text", replace="drop")
    assert written == rows[1:]
    [gone] = report["counts"]["Left out"]
    assert (gone["name"], gone["count"]) == ("holds a find: email", 1)
    assert "ann@corp.io" not in whole


def test_another_seed_does_the_work_again(tmp_path: Path) -> None:
    first = tool(replace="pseudonym", seed="a")
    assert first.identity() != tool(replace="pseudonym", seed="b").identity()
    assert "seed" not in first.model_dump()


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(PosttrainError, match="kinds"):
        validate(Scrub, Document(Path("x"), {"sources": ["a.jsonl"], "kinds": "emails"}))


def test_lengths_of_ibans_are_the_registrys() -> None:
    """python-stdnum's copy of it, by the structure of each country's account numbers."""
    registry = numdb.get("iban")
    for country, length in IBAN_LENGTHS.items():
        structure = registry.info(country)[0][1].get("bban", "")
        if structure:
            assert 4 + sum(map(int, re.findall(r"(\d+)!", structure))) == length, country


def test_closed_forms() -> None:
    assert luhn("79927398713")
    assert not luhn("79927398710")
    assert shape("Ann7@x.io") == "Aaa0@a.aa"
    assert "x" * 30 not in shape("x" * 99)


WORDS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "ann", "lee", "bob", "met", "and", "left", "the", "house", "."]
TAGS = {"ann": 1, "lee": 2, "bob": 1}


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads twelve tokens at once and knows Ann Lee and Bob, whatever stands around them."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

    names = {0: "O", 1: "B-PER", 2: "I-PER"}
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=12,
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    torch.manual_seed(0)
    model: Any = BertForTokenClassification(config).eval()
    with torch.no_grad():
        layer = model.bert.encoder.layer[0]
        for part in (layer.attention.output.dense, layer.output.dense, model.bert.embeddings.position_embeddings):
            part.weight.zero_()  # so that a token's last state is its own
        states = model.bert(torch.arange(len(WORDS))[:, None]).last_hidden_state[:, 0]
        wanted = torch.nn.functional.one_hot(torch.tensor([TAGS.get(word, 0) for word in WORDS]), 3).float() * 20
        model.classifier.weight.copy_(torch.linalg.lstsq(states, wanted).solution.T)
        model.classifier.bias.zero_()
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    folder = tmp_path_factory.mktemp("tagger")
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def test_names_of_people_go_as_a_model_finds_them_however_long_the_text(tagger: Path) -> None:
    given = {"kinds": ["email", "person"], "ner": str(tagger)}
    assert scrubbed("Ann Lee met Bob.\nann@corp.io left.", **given) == "<PERSON> met <PERSON>.\n<EMAIL> left."
    long = " ".join(["the house and"] * 20)
    assert scrubbed(f"{long} Ann  Lee {long} Bob", **given) == f"{long} <PERSON> {long} <PERSON>"
    one, other = scrubbed("Ann Lee met ANN  LEE", replace="pseudonym", seed="s", **given).split(" met ")
    assert one == other != "<PERSON>"


def test_a_model_whose_first_places_are_of_padding_reads_long_texts_too(tagger: Path, tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaForTokenClassification

    config = RobertaConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
        pad_token_id=WORDS.index("[PAD]"),
        id2label={0: "O", 1: "B-PER"},
        label2id={"O": 0, "B-PER": 1},
    )
    RobertaForTokenClassification(config).save_pretrained(tmp_path)
    for file in tagger.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    [find] = tool(kinds=["person"], ner=str(tmp_path)).finders()
    assert all(found.kind == "person" for found in find("ann met the house " * 20))


def test_a_model_that_finds_no_names_is_refused(tagger: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="`person` among `kinds` and `ner`, a model, go together"):
        tool(kinds=["person"])
    with pytest.raises(PosttrainError, match=r"ner .*nowhere: cannot be loaded"):
        tool(kinds=["person"], ner=str(tmp_path / "nowhere")).finders()
    config = json.loads((tagger / "config.json").read_text())
    config |= {"id2label": {"0": "O", "1": "B-LOC", "2": "I-LOC"}, "label2id": {"O": 0, "B-LOC": 1, "I-LOC": 2}}
    for file in tagger.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PosttrainError, match="none of its labels means a person: LOC, O"):
        tool(kinds=["person"], ner=str(tmp_path)).finders()
