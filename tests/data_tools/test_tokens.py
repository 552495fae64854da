"""Rows become the tokens and the loss that their kind promises."""

import os

import numpy as np
import pytest
from posttrain import chat_templates
from posttrain.chat_templates.errors import InputError, PosttrainError
from posttrain.data_tools.encode import _plain_ids
from posttrain.data_tools.examples import Encoder, encode_batches

CHAT = [
    {"role": "user", "content": "Is it?"},
    {"role": "assistant", "content": "It is."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Quite sure."},
]


@pytest.fixture
def template():
    return chat_templates.load("chatml")


def documents(batch):
    """Splits a batch into (ids, loss) of each row."""
    ends = np.cumsum(batch.lengths.ravel())[:-1]
    return list(zip(np.split(batch.ids, ends), np.split(batch.loss, ends), strict=True))


def learnt(tokenizer, document):
    ids, loss = document
    return tokenizer.decode(ids[loss == 1])


def with_bos(tokenizer):
    """Makes the tokenizer put a BOS before and an EOS behind a text, as some do."""
    from tokenizers import processors

    bos, eos = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|endoftext|>"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|endoftext|>", special_tokens=[("<|im_start|>", bos), ("<|endoftext|>", eos)]
    )
    tokenizer.bos_token = "<|im_start|>"
    return tokenizer


def metaspace():
    """A tokenizer in the manner of SentencePiece, which puts a space before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "</s>", "▁", "\n", *"abcdefghijklmnopqrstuvwxyz:4", "▁a", "▁4", "▁b", "no", "yes", "▁yes"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "4"), ("▁", "b"), ("n", "o"), ("y", "e"), ("ye", "s"), ("▁", "yes")]
    vocab["ye"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def test_text_is_its_tokens_and_one_eos_all_with_loss(tokenizer):
    batch = Encoder(tokenizer)([{"text": "The fox."}, {"text": "The dog.<|endoftext|>"}])
    for text, (ids, loss) in zip(["The fox.", "The dog."], documents(batch), strict=True):
        assert ids.tolist() == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert loss.all()


@pytest.mark.parametrize("text", ["The fox.", "<|im_start|>The fox.", "The fox.<|endoftext|>"])
def test_bos_and_eos_come_once_whoever_adds_them(tokenizer, text):
    (ids, _) = documents(Encoder(with_bos(tokenizer))([{"text": text}]))[0]
    assert tokenizer.decode(ids) == "<|im_start|>The fox.<|endoftext|>"


def test_a_tokenizer_set_to_truncate_and_pad_does_neither(tokenizer):
    text = "The quick brown fox jumps over the lazy dog."
    expected = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    batch = Encoder(tokenizer)([{"text": text}])
    assert batch.ids.tolist() == expected


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("make", ["bytes", "metaspace"])
def test_ids_are_those_of_a_written_and_read_copy_of_the_tokenizer(tokenizer, make, as_text):
    from tokenizers import AddedToken, Tokenizer, normalizers

    fast = metaspace() if make == "metaspace" else tokenizer
    fast.backend_tokenizer.normalizer = normalizers.Lowercase()
    for token in (
        AddedToken("<think>"),
        AddedToken("Shout", normalized=True, single_word=True),
        AddedToken("<|new|>", special=True, lstrip=True),
        AddedToken("<Odd>", special=True, rstrip=True),
        AddedToken("<tool>"),
    ):
        add = fast.backend_tokenizer.add_special_tokens if token.special else fast.backend_tokenizer.add_tokens
        add([token])
    fast.backend_tokenizer.enable_truncation(4)
    fast.backend_tokenizer.enable_padding(length=64)
    state = fast.backend_tokenizer.to_str()
    copy = Tokenizer.from_str(state)
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = as_text
    added = [token.content for token in fast.added_tokens_decoder.values()]
    texts = ["", "a", " a b ", "SHOUT it, shouts", *added, *(f"a {text}  b{text}c" for text in added), *added]
    expected = [made.ids for made in copy.encode_batch(texts, add_special_tokens=False)]
    assert _plain_ids(fast, as_text=as_text)(texts) == expected
    assert fast.backend_tokenizer.to_str() == state
    assert not fast.backend_tokenizer.encode_special_tokens


@pytest.mark.parametrize(("loss_on", "expected"), [
    ("assistant", "It is.<|im_end|>Quite sure.<|im_end|>"),
    ("completion", "Quite sure.<|im_end|>"),
])  # fmt: skip
def test_the_loss_of_a_conversation(tokenizer, template, loss_on, expected):
    batch = Encoder(tokenizer, template, loss_on)([{"messages": CHAT, "tools": None}])
    assert learnt(tokenizer, documents(batch)[0]).replace("\n", "") == expected


def test_loss_on_all_of_a_conversation(tokenizer, template):
    batch = Encoder(tokenizer, template, "all")([{"messages": CHAT, "tools": None}])
    assert batch.loss.all()
    encoded = chat_templates.encode(template, tokenizer, [{"messages": CHAT, "tools": None}])[0]
    assert batch.ids.tolist() == encoded.input_ids


def test_a_conversational_completion_carries_loss_and_the_prompt_none(tokenizer, template):
    batch = Encoder(tokenizer, template)([{"prompt": CHAT[:3], "completion": CHAT[3:], "tools": None}])
    assert learnt(tokenizer, documents(batch)[0]).replace("\n", "") == "Quite sure.<|im_end|>"
    assert batch.ids.tolist() == Encoder(tokenizer, template)([{"messages": CHAT, "tools": None}]).ids.tolist()


@pytest.mark.parametrize(
    ("prompt", "completion"), [("Q: the lazy", " dog."), ("answ", "er"), ("a \n", "b"), ("", "fox")]
)
def test_no_token_lies_across_prompt_and_completion(tokenizer, prompt, completion):
    ids, loss = documents(Encoder(tokenizer)([{"prompt": prompt, "completion": completion}]))[0]
    begin = int(np.flatnonzero(loss)[0])
    assert ids[:begin].tolist() == tokenizer(prompt)["input_ids"]  # what the model is given when it generates
    assert tokenizer.decode(ids[begin:]) == completion + "<|endoftext|>"
    assert loss[begin:].all()


def test_loss_on_all_covers_the_prompt(tokenizer):
    assert Encoder(tokenizer, None, "all")([{"prompt": "a b", "completion": " c"}]).loss.all()


@pytest.mark.parametrize(
    ("prompt", "completion"), [("ab:", "yes"), ("ab:\n", "4"), ("ab", "no"), ("ab", "\n4"), ("ab:", " yes")]
)
def test_a_completion_gets_no_space_that_the_text_does_not_have(prompt, completion):
    tokenizer = metaspace()
    assert tokenizer.decode(tokenizer("x")["input_ids"] + tokenizer("y")["input_ids"]) != "xy"  # the trap is there
    ids = Encoder(tokenizer)([{"prompt": prompt, "completion": completion}]).ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == prompt + completion + "</s>"


def test_rows_that_teach_nothing_are_dropped_by_name_and_the_rest_stay_in_order(tokenizer, template):
    rows = [
        {"text": ""},
        {"text": "fox"},
        {"messages": CHAT[:1], "tools": None},
        {"prompt": "a", "completion": ""},
        {"messages": CHAT[:2], "tools": None},
        {"text": "<|endoftext|>"},
        {"text": "dog"},
    ]
    batch = Encoder(tokenizer, template)(rows)
    assert {number: error.reason for number, error in batch.dropped.items()} == {
        0: "empty", 2: "no token carries loss", 3: "empty", 5: "no token carries loss",
    }  # fmt: skip
    texts = [tokenizer.decode(ids) for ids, _ in documents(batch)]
    assert [texts[0], texts[2]] == ["fox<|endoftext|>", "dog<|endoftext|>"]
    assert "It is." in texts[1]


def test_a_conversation_that_the_template_refuses_costs_only_itself(tokenizer):
    template = chat_templates.load("chatml")
    bad = {"messages": [{"role": "tool", "content": "3"}], "tools": None}
    good = {"messages": CHAT, "tools": None}
    batch = Encoder(tokenizer, template)([good, bad, good, bad, bad, good])
    assert sorted(batch.dropped) == [1, 3, 4]
    assert {error.reason for error in batch.dropped.values()} == {"the chat template refuses it"}
    assert len(batch.lengths) == 3


def test_conversations_need_a_template(tokenizer):
    with pytest.raises(InputError, match="no chat template"):
        Encoder(tokenizer)([{"messages": CHAT, "tools": None}])


def test_text_needs_an_eos(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="eos_token"):
        Encoder(tokenizer)([{"text": "fox"}])


def test_a_kind_without_tokens_is_a_programming_error(tokenizer):
    with pytest.raises(ValueError, match="no kind of row"):
        Encoder(tokenizer)([{"chosen": "a", "rejected": "b"}])


@pytest.mark.slow
def test_processes_give_the_batches_of_one_process_in_order(tokenizer, template):
    rows = [[{"text": f"fox {number} " * (number % 7 + 1)}, {"messages": CHAT, "tools": None}, {"text": ""}]
            for number in range(9)]  # fmt: skip
    encoder = Encoder(tokenizer, template)
    one = list(encode_batches(encoder, rows))
    two = list(encode_batches(encoder, rows, num_proc=2))
    assert len(one) == len(two) == 9
    for left, right in zip(one, two, strict=True):
        assert left.ids.tolist() == right.ids.tolist()
        assert left.loss.tolist() == right.loss.tolist()
        assert [e.reason for e in left.dropped.values()] == [e.reason for e in right.dropped.values()]


class Deadly:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (3,)


@pytest.mark.slow
def test_a_process_that_dies_is_one_clear_error():
    rows = [[{"text": "fox " * 50_000}]] * 4
    with pytest.raises(PosttrainError, match="a tokenising process died"):
        list(encode_batches(Encoder(Deadly()), rows, num_proc=2))


@pytest.mark.slow
def test_an_error_in_a_process_is_the_error_of_the_call(tokenizer):
    with pytest.raises(InputError, match="no chat template"):
        list(encode_batches(Encoder(tokenizer), [[{"messages": CHAT, "tools": None}]], num_proc=2))
