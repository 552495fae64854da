import copy
import os
import subprocess
import sys

import pytest
from posttrain import chat_templates
from posttrain.chat_templates.templates import FOLDER, parse_header


def test_the_templates_that_the_readme_promises_are_there():
    promised = {"alpaca", "chatml", "gemma", "hermes-tools", "llama3", "mistral", "phi", "qwen3", "vicuna", "zephyr"}
    assert promised <= set(chat_templates.names())


@pytest.mark.parametrize("name", chat_templates.names())
def test_each_built_in_says_what_it_reproduces_and_marks_generation(name):
    template = chat_templates.load(name)
    assert template.name == name
    assert template.reproduces
    assert template.marks_generation


def test_a_misspelt_name_is_answered_with_the_right_one():
    with pytest.raises(chat_templates.TemplateError, match=r"no chat template named 'chatm'.*did you mean 'chatml'\?"):
        chat_templates.load("chatm")


def test_a_file_loads_by_path_under_its_stem(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text((FOLDER / "chatml.jinja").read_text())
    template = chat_templates.load(path)
    assert (template.name, template.end_of_turn) == ("mine", "<|im_end|>")


def test_a_misspelt_header_key_is_an_error_but_an_ordinary_comment_is_not():
    with pytest.raises(chat_templates.TemplateError, match="did you mean 'special_tokens'"):
        parse_header("{#- end_of_turn: x\nspecial_token: y -#}", "here")
    assert parse_header("{# Licence: MIT #}{{ messages }}", "here") == {}


def test_the_template_survives_saving_the_tokenizer(tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    template = chat_templates.load("phi")
    chat_templates.install(template, tokenizer)
    tokenizer.save_pretrained(tmp_path)
    reloaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    again = chat_templates.from_tokenizer(reloaded)
    assert (again.source, again.end_of_turn, again.special_tokens) == (
        template.source,
        template.end_of_turn,
        template.special_tokens,
    )
    assert chat_templates.fingerprint(again, reloaded) == chat_templates.fingerprint(template, tokenizer)


def test_the_end_of_turn_of_a_template_without_header_is_seen_in_its_output(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>\n' }}{% endfor %}"
    assert chat_templates.from_tokenizer(tokenizer).end_of_turn == "<|im_end|>"
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    assert chat_templates.from_tokenizer(tokenizer).end_of_turn is None


def test_a_tokenizer_without_template_is_refused_with_the_names_to_choose_from(tokenizer):
    with pytest.raises(chat_templates.TemplateError, match="chatml"):
        chat_templates.from_tokenizer(tokenizer)


@pytest.mark.parametrize("name", chat_templates.names())
def test_install_makes_the_end_of_turn_eos_and_pad_another(name, other_tokenizer):
    before = len(other_tokenizer)
    template = chat_templates.load(name)
    added = chat_templates.install(template, other_tokenizer)
    assert len(other_tokenizer) == before + len(added)
    assert other_tokenizer.eos_token == (template.end_of_turn or other_tokenizer.eos_token)
    assert other_tokenizer.pad_token_id not in (None, other_tokenizer.eos_token_id)
    assert other_tokenizer.chat_template == template.source
    for token in template.special_tokens:
        assert other_tokenizer.encode(f"a{token}b", add_special_tokens=False).count(
            other_tokenizer.convert_tokens_to_ids(token)
        )
    assert chat_templates.install(template, other_tokenizer) == []  # twice is once


def test_install_adds_nothing_that_is_there(tokenizer):
    assert chat_templates.install(chat_templates.load("chatml"), tokenizer) == []
    assert tokenizer.pad_token == "<|pad|>"


def test_install_needs_an_end_of_turn(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(chat_templates.TemplateError, match="the tokenizer has none"):
        chat_templates.install(chat_templates.load("zephyr"), tokenizer)


def test_the_fingerprint_changes_with_what_the_model_sees_only(tokenizer):
    template = chat_templates.load("chatml")
    chat_templates.install(template, tokenizer)
    original = chat_templates.fingerprint(template, tokenizer)

    unrelated = copy.deepcopy(tokenizer)
    unrelated.padding_side, unrelated.truncation_side, unrelated.model_max_length = "left", "left", 7
    unrelated(["a", "a b"], padding=True, truncation=True, max_length=2)
    assert chat_templates.fingerprint(template, unrelated) == original

    other_eos = copy.deepcopy(tokenizer)
    other_eos.eos_token = "<|endoftext|>"
    assert chat_templates.fingerprint(template, other_eos) != original
    assert chat_templates.fingerprint(chat_templates.load("zephyr"), tokenizer) != original


def test_the_fingerprint_sees_the_ids_of_special_tokens(tokenizer):
    template = chat_templates.load("phi")
    shifted = copy.deepcopy(tokenizer)
    shifted.add_tokens(["a new word"])
    chat_templates.install(template, tokenizer)
    chat_templates.install(template, shifted)
    assert chat_templates.fingerprint(template, tokenizer) != chat_templates.fingerprint(template, shifted)


def test_the_fingerprint_is_the_same_in_every_process(tokenizer, tmp_path):
    template = chat_templates.load("phi")
    chat_templates.install(template, tokenizer)
    tokenizer.save_pretrained(tmp_path)
    program = (
        "import sys; from transformers import PreTrainedTokenizerFast; from posttrain import chat_templates as c;"
        "print(c.fingerprint(c.load('phi'), PreTrainedTokenizerFast.from_pretrained(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == chat_templates.fingerprint(template, tokenizer)


def test_importing_the_room_does_not_import_transformers():
    program = "import sys, posttrain.chat_templates; print('transformers' in sys.modules or 'jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("template", ["chatml", "zephyr", None])
def test_padding_takes_a_special_token_that_nothing_uses(template):
    from ..conftest import build_tokenizer

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|user|>", "<repo_name>", "<|system|>"]
    tokenizer = build_tokenizer(specials, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>")
    tokenizer.add_special_tokens({"unk_token": "<|endoftext|>"})
    before = len(tokenizer)
    if template == "zephyr":  # it makes <|system|> and <|user|> of the role's name
        chat_templates.install(chat_templates.load(template), tokenizer)
        assert tokenizer.pad_token == "<repo_name>"
    elif template:
        assert chat_templates.install(chat_templates.load(template), tokenizer) == []
    else:
        assert chat_templates.ensure_pad(tokenizer) == []
    assert tokenizer.pad_token in ("<repo_name>", "<|system|>", "<|user|>")
    assert len(tokenizer) <= before + (template == "zephyr")


def test_padding_is_no_token_that_the_template_writes(tokenizer):
    tokenizer.pad_token = "<|im_start|>"
    chat_templates.install(chat_templates.load("chatml"), tokenizer)
    assert tokenizer.pad_token == "<|pad|>"
