"""Rooms of the museum: files, rows, templates and tokenizers."""

import json
from pathlib import Path
from typing import Any

import pytest
from posttrain import chat_templates
from posttrain.data_tools.errors import SpecError
from posttrain.data_tools.sources import read_rows
from posttrain.data_tools.spec import SourceSpec
from posttrain.data_tools.specfile import load_document, raise_if_problems

from ..conftest import TEXT, build_tokenizer

CHAT = [{"role": "user", "content": "What does <|im_end|> mean?"}, {"role": "assistant", "content": "The end."}]


def rows_of(path: Path) -> list[dict]:
    return [row.values for row in read_rows(SourceSpec(path=path.name), path.parent)]


def test_a_learning_rate_that_is_a_text(tmp_path: Path) -> None:
    """PyYAML reads `1e-5` as a text and `no` as false.

    It keeps to YAML 1.1, where a float needs a point and a signed exponent. A recipe that says `learning_rate: 1e-5`
    fails late, or trains at another rate where the value is only compared.

    Source: yaml/pyyaml#173, 2018-06-19. Stock: PyYAML 6.
    """
    import yaml

    file = tmp_path / "recipe.yaml"
    file.write_text("learning_rate: 1e-5\nanswer: no\n")
    assert yaml.safe_load(file.read_text()) == {"learning_rate": "1e-5", "answer": False}
    assert load_document(file).value == {"learning_rate": 1e-5, "answer": "no"}


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    """PyYAML lets the last of two equal keys win, without a word.

    Source: yaml/pyyaml#165, 2018-05-10. Stock: PyYAML 6.
    """
    import yaml

    file = tmp_path / "recipe.yaml"
    file.write_text("max_steps: 1000\nseed: 1\nmax_steps: 10\n")
    assert yaml.safe_load(file.read_text())["max_steps"] == 10
    with pytest.raises(SpecError, match=r"recipe.yaml:3: .*max_steps"):
        raise_if_problems(load_document(file))


def test_a_column_that_begins_late(tmp_path: Path) -> None:
    """polars infers the columns of JSON lines from the first hundred: a key that comes later is left out.

    Source: measured 2026-11-28. Stock: polars 2.1.
    """
    polars = pytest.importorskip("polars")
    file = tmp_path / "rows.jsonl"
    lines = [{"text": f"row {number}"} | ({"label": "late"} if number >= 150 else {}) for number in range(200)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert polars.read_ndjson(file).columns == ["text"]
    assert [row.get("label") for row in rows_of(file)] == [None] * 150 + ["late"] * 50


def test_a_line_that_ends_inside_a_text(tmp_path: Path) -> None:
    """`str.splitlines` ends a line at U+2028, U+0085 and form feeds too, so that rows of JSON lines fall apart.

    datatrove's C4 and Gopher filters count lines that way.

    Source: measured 2026-11-28. Stock: Python 3.11, datatrove 0.10.
    """
    texts = ["one\u2028line", "another\u0085line", "a third\x0c"]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    assert len(file.read_text(encoding="utf-8").splitlines()) > 3
    assert [row["text"] for row in rows_of(file)] == texts


def test_arguments_that_a_tool_never_had(tmp_path: Path) -> None:
    """Rows of a `datasets` table share one structure: each tool call gets the arguments of all others, as null.

    A model then learns to write them.

    Source: axolotl-ai-cloud/axolotl#2909, 2025-07-12. Stock: datasets 5.2.
    """
    from datasets import Dataset

    rows = [{"arguments": {"city": "Paris"}}, {"arguments": {"theta": 1.5}}]
    assert Dataset.from_list(rows)[0] == {"arguments": {"city": "Paris", "theta": None}}
    file = tmp_path / "calls.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rows_of(file) == rows


def test_a_user_who_ends_his_own_turn() -> None:
    """`apply_chat_template` makes a control token of `<|im_end|>` wherever a user writes it.

    Source: huggingface/transformers#29279, open, confirmed 2026-09-07. Stock: transformers 5.23.
    """
    tokenizer = build_tokenizer()
    template = chat_templates.load("chatml")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.chat_template = template.source
    stock = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=False)
    assert list(stock).count(end) == 3
    (ours,) = chat_templates.encode(template, tokenizer, [{"messages": CHAT}])
    assert list(ours.input_ids).count(end) == 2
    assert "What does <|im_end|> mean?" in tokenizer.decode(ours.input_ids)


def test_a_beginning_that_comes_twice() -> None:
    """A template that writes the BOS and a tokenizer that adds one make two, where rendering and tokenising are apart.

    Source: OpenRLHF/OpenRLHF#393, 2024-07-30; huggingface/open-r1#462; EleutherAI/lm-evaluation-harness#3333. Stock:
    transformers 5.23.
    """
    from tokenizers import processors

    tokenizer = build_tokenizer(["<|pad|>", "<|endoftext|>", "<s>"], pad_token="<|pad|>", bos_token="<s>")
    bos = tokenizer.bos_token_id
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    source = "{{ bos_token }}{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    tokenizer.chat_template = source
    text: Any = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert tokenizer(text)["input_ids"][:2] == [bos, bos]
    template = chat_templates.ChatTemplate("own", source)
    (ours,) = chat_templates.encode(template, tokenizer, [{"messages": [{"role": "user", "content": "Hello"}]}])
    assert list(ours.input_ids).count(bos) == 1


def test_tokens_that_make_texts_longer() -> None:
    """`add_tokens` cuts a text at the new token before anything else, so that what stood across its ends costs more.

    On SmolLM2's tokenizer two pieces that it had already took 200 kB of English from 48,487 to 55,615 tokens.

    Source: measured 2026-11-28. Stock: transformers 5.23, tokenizers 0.23.
    """
    from posttrain.data_tools.extend_tokenizer import count_words, extend, read_backend

    tokenizer = build_tokenizer()
    text = " ".join(TEXT)
    before = len(tokenizer(text)["input_ids"])
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    extension = extend(content, count_words(read_backend(content), [text] * 4), 20, 2)
    ours = read_backend(extension.content)
    tokenizer.add_tokens(["o", "e"])
    assert len(tokenizer(text)["input_ids"]) > before
    assert len(ours.encode(text, add_special_tokens=False).ids) < before


def test_a_tokenizer_that_forgets_bytes(tmp_path: Path) -> None:
    """A byte-level tokenizer trained without the alphabet of all bytes loses what its texts did not hold.

    Source: measured 2026-11-28. Stock: tokenizers 0.23.
    """
    from posttrain.data_tools.tokenizer import Tokenizer as TokenizerTool
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    stock = Tokenizer(models.BPE())
    stock.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    stock.decoder = decoders.ByteLevel()
    stock.train_from_iterator(["plain words only"] * 9, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    assert stock.decode(stock.encode("fine 👍").ids) != "fine 👍"
    (tmp_path / "rows.jsonl").write_text('{"text": "plain words only"}\n' * 9)
    TokenizerTool.model_validate({"sources": str(tmp_path / "rows.jsonl"), "vocab_size": 300}).run(tmp_path)
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert ours.decode(ours.encode("fine 👍").ids) == "fine 👍"


def test_two_sums_that_are_one_text() -> None:
    """datatrove's near-duplicates read every number as 0: two problems that differ in their numbers are one.

    Source: datatrove's `TextNormConfig(norm_numbers=True)`, read and run 2026-11-28. Stock: datatrove 0.10.
    """
    text_utils = pytest.importorskip("datatrove.utils.text")
    from posttrain.data_tools.ngrams import words_in

    one, other = "Anna has 17 apples and buys 25.", "Anna has 31 apples and buys 46."
    assert text_utils.simplify_text(one) == text_utils.simplify_text(other)
    assert words_in(one) != words_in(other)
