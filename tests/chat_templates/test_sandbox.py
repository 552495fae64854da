"""No template hangs, fills the memory or ends in a traceback: each that does not end is one error."""

import time

import pytest
from posttrain import chat_templates
from posttrain.chat_templates import render, sandbox
from posttrain.chat_templates.errors import InputError
from posttrain.data_tools.errors import DataError, RowError
from posttrain.data_tools.mapping import compile_template

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
    "{{ 'x' * 10000000000 }}",
    "{{ [0] * 10000000000 }}",
    "{{ 9 ** 9999999999 }}",
    "{% set ns = namespace(x='xx') %}{% for a in range(90) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for a in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "{{ 'x'.ljust(10000000000) }}",
    "{{ 'x' | center(10000000000) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '{:10000000000}'.format(1) }}",
    "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
]


@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_that_does_not_end_is_one_error(source, tokenizer, tmp_path, monkeypatch):
    for name, limit in (("MOST_STEPS", 2_000), ("MOST_CHARACTERS", 1 << 20), ("MOST_PARTS", 3_000)):
        monkeypatch.setattr(sandbox, name, limit)  # which is reached sooner, and in the same way
    path = tmp_path / "endless.jinja"
    path.write_text(source)
    began = time.monotonic()
    with pytest.raises(InputError, match="does not come to an end"):
        render(chat_templates.load(path), TALK, tokenizer=tokenizer)
    with pytest.raises(DataError, match="the mapping does not come to an end"):
        compile_template(source)({"text": "hi"})
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "source", ["{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ range(10000000000) }}", "{{ 1 // 0 }}"]
)
def test_other_failures_are_errors_too(source, tokenizer, tmp_path):
    path = tmp_path / "failing.jinja"
    path.write_text(source)
    with pytest.raises(InputError):
        render(chat_templates.load(path), TALK, tokenizer=tokenizer)
    with pytest.raises(RowError):
        compile_template(source)({"text": "hi"})


def test_a_tokenizers_own_rendering_is_bounded_too_and_starts_afresh_each_time(tokenizer, tmp_path):
    path = tmp_path / "long.jinja"
    path.write_text("{% for a in range(30000) %}{% endfor %}{{ messages | length }}")
    template = chat_templates.load(path)
    for _ in range(5):
        assert render(template, TALK, tokenizer=tokenizer).text == "2"
        assert tokenizer.apply_chat_template(TALK, chat_template=template.source, tokenize=False) == "2"


def test_numbers_and_long_texts_of_rows_are_no_giants():
    row = {"when": 1_700_000_000_000, "url": "a%2012345678 {12345678}", "text": "long " * 200_000}
    assert compile_template("{{ when }} {{ url.split(' ')[0] | trim }}")(row) == "1700000000000 a%2012345678"
    assert len(compile_template("Say: {{ text | replace('o', '00') }}")(row)) == 5 + 6 * 200_000


def test_a_key_of_a_message_is_read_by_its_name_unless_objects_have_a_method_of_it(tokenizer, tmp_path):
    path = tmp_path / "names.jinja"
    path.write_text("{{ messages[0].content }} {{ messages[0].get('role') }} {{ messages[0].mood }}")
    talk = [{"role": "user", "content": "hi", "get": "nothing"}]
    assert render(chat_templates.load(path), talk, tokenizer=tokenizer).text == "hi user "
