"""A chat template is written as Ollama's, and proved to make the same prompts, or refused."""

from typing import Any

import pytest
from posttrain.chat_templates import TemplateError, from_tokenizer, install, load, names
from posttrain.chat_templates.go_template import quote, render_go
from posttrain.chat_templates.ollama import compare_prompts, write_go_template
from posttrain.chat_templates.templates import ChatTemplate

from ..conftest import build_tokenizer

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "user", "content": "there"},
    {"role": "assistant", "content": "Ahoy"},
]


@pytest.fixture
def tokenizer() -> Any:
    return build_tokenizer(["<pad>", "<s>", "</s>"], bos_token="<s>", eos_token="</s>", pad_token="<pad>")


# What Go 1.19's text/template makes of each, given Ollama's data for TALK.
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ .System }}|{{ len .Messages }}", "Be kind.|3"),
        ("a {{- /* none */ -}} b{{- 7 }} c", "ab7 c"),
        ("{{ range .Messages }}{{ .Role }} {{ end }}", "system user assistant "),
        ("{{ range $i, $m := .Messages }}{{ if $i }},{{ end }}{{ $m.Content }}{{ end }}", "Be kind.,Hi\n\nthere,Ahoy"),
        ("{{ range $i, $_ := .Messages }}{{ len (slice $.Messages $i) }}{{ end }}", "321"),
        ('{{ if eq (index .Messages 0).Role "user" "system" }}x{{ else }}y{{ end }}', "x"),
        ("{{ if .Tools }}a{{ else if not .System }}b{{ else if and .System 0 }}c{{ else }}d{{ end }}", "d"),
        ('{{ $x := "a" }}{{ range .Messages }}{{ $x = .Role }}{{ end }}{{ $x }}', "assistant"),
        ('{{ $x := "a" }}{{ if true }}{{ $x := "b" }}{{ $x }}{{ end }}{{ $x }}', "ba"),
        ('{{ "q\\"\\n{{ }}" }}{{ `r\\n` }}', 'q"\n{{ }}r\\n'),
        ("{{ .Nothing }}{{ or .Nothing 3 }}{{ true }}", "<no value>3true"),
        ('{{ range .Tools }}x{{ else }}none{{ end }}{{- "" -}} \n end', "noneend"),
    ],
)
def test_go_is_rendered_as_go_renders_it(source: str, expected: str) -> None:
    assert render_go(source, TALK) == expected


@pytest.mark.parametrize(
    "source",
    ["{{ if .System }}", "{{ end }}", "{{ .System | json }}", "{{ printf .System }}", "{{ with .System }}{{ end }}",
     "{{ .System", "{{ $x }}", "{{ .Messages }}", "{{ index .Messages 9 }}", "{{ range .System }}{{ end }}",
     "{{ range .Messages }}{{ .Rôle }}{{ end }}", "{{ }}", "{{ (len .System }}", '{{ eq .System 3 }}', '{{ "\\q" }}'],
)  # fmt: skip
def test_what_is_not_read_of_go_is_refused(source: str) -> None:
    with pytest.raises(TemplateError):
        render_go(source, TALK)


def test_a_quoted_text_is_that_text() -> None:
    text = 'a "b" \\ {{ c }}\n\t`d`\r'
    assert render_go(f"{{{{ {quote(text)} }}}}", TALK) == text


@pytest.mark.parametrize("name", names())
def test_each_built_in_template_is_written_and_proved(tokenizer: Any, name: str) -> None:
    template = load(name)
    install(template, tokenizer)
    source, left = write_go_template(template, tokenizer, None)
    thoughts = {"thoughts in earlier answers"} if name == "qwen3" else set()
    assert thoughts <= {difference.probe for difference in left} <= {"white space", "two questions in a row", *thoughts}
    spoilt = source.replace("{{ .Content }}", "{{ .Content }} ", 1)
    assert any(d.required for d in compare_prompts(spoilt, template, tokenizer, None))
    if "bos_token" in template.code:
        bare, _ = write_go_template(template, tokenizer, "<s>")
        assert "<s>" in source
        assert "<s>" not in bare
    else:
        with pytest.raises(TemplateError, match="put before every prompt"):
            write_go_template(template, tokenizer, "<s>")


def test_a_default_system_message_and_braces_are_kept(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% if messages[0].role != 'system' %}{{ '{{ be }} {' }}{% endif %}"
        "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '{' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    source, _ = write_go_template(from_tokenizer(tokenizer), tokenizer, None)
    question = [{"role": "user", "content": "Hi"}]
    assert render_go(source, question) == "{{ be }} {<user>Hi{<assistant>"
    assert render_go(source, [{"role": "system", "content": "S"}, *question]) == "<system>S{<user>Hi{<assistant>"


def test_it_is_said_where_thoughts_would_stay_in_earlier_answers(tokenizer: Any) -> None:
    said = "{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
    source = f"{{% for m in messages %}}{{{{ '<' + m.role + '>' }}}}{said}</s>{{% endfor %}}<assistant>"
    _, left = write_go_template(ChatTemplate("thinking", source), tokenizer, None)
    [found] = [difference for difference in left if difference.probe == "thoughts in earlier answers"]
    assert "<think>" not in found.expected
    assert "<think>" in str(found.found)


def test_a_template_that_writes_the_day_is_not_frozen_on_that_of_the_export(tokenizer: Any) -> None:
    source = "{{ %s }}{%% for m in messages %%}<{{ m.role }}>{{ m.content }}</s>{%% endfor %%}<assistant>"
    with pytest.raises(TemplateError, match="it writes the date, which would stay that of the export"):
        write_go_template(ChatTemplate("dated", source % "strftime_now('%d %b %Y')"), tokenizer, None)
    assert "26 Jul 2024" in write_go_template(ChatTemplate("fixed", source % "'26 Jul 2024'"), tokenizer, None)[0]


@pytest.mark.parametrize(
    "body",
    [
        "{{ m.content | upper }}",
        "{{ m.role ~ ' ' ~ m.content | length ~ m.content }}",
        "{{ m.content }}{% if loop.index0 > 1 %} (turn {{ loop.index }}){% endif %}",
    ],
)
def test_a_template_that_cannot_be_written_is_refused_by_the_probe_that_differs(tokenizer: Any, body: str) -> None:
    source = f"{{% for m in messages %}}{body}<end>{{% endfor %}}{{% if add_generation_prompt %}}>{{% endif %}}"
    with pytest.raises(TemplateError, match=r"cannot be written as Ollama's: (probe '|its turns)"):
        write_go_template(ChatTemplate("odd", source), tokenizer, None)
