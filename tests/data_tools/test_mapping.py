"""A mapping in the recipe turns any row into an example, or says why it cannot."""

from typing import Any

import pytest
from posttrain.data_tools.errors import DataError, RowError
from posttrain.data_tools.formats import compile_mapping
from posttrain.data_tools.mapping import compile_template
from posttrain.data_tools.spec import SourceSpec

ROW = {"question": "2+2?", "answer": "4", "stars": 3, "tags": ["a"], "none": None, "#1 String": "x", "who": "assistant"}


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ question }}", "2+2?"),
        (" {{ stars }} ", 3),
        ("{{ stars - 1 }}", 2),
        ("{{- stars > 2 -}}", True),
        ("{{ tags }}", ["a"]),
        ("{{ none }}", None),
        ("Q: {{ question }}", "Q: 2+2?"),
        ("{{ question }}{{ answer }}", "2+2?4"),
        ("{{ row['#1 String'] }}", "x"),
        ("{{ 'a' if stars > 2 else 'b' }}", "a"),
        ("{{ absent | default('d') }}", "d"),
        ("plain", "plain"),
        ("ends with a line\n", "ends with a line\n"),
        ("{% if stars > 2 %}good{% endif %}", "good"),
        ("{{ '{{ question }}' }}", "{{ question }}"),
        (" {{ question }}", " 2+2?"),
        ("\n{{ question ~ answer }} \n", "\n2+2?4 "),
        ("  {{- question }}\n", "2+2?"),
        ("A: {{ none }}", "A: "),
        (" {{ none }}", None),
        ("{{ none | trim }}", ""),
        ("{{ question | replace('?', none) }}", "2+2"),
        ("{{ question ~ '\n' ~ none }}", "2+2?\n"),
        ("{{ none | default('d', true) }}", "d"),
        ("{{ [question, none, stars] | join('\n') }}", "2+2?\n\n3"),
        ("{{ [{'a': 'x'}, {'a': none}] | join('-', 'a') }}", "x-"),
        ("{{ none | join(none) }}", ""),
        ("{{ '%s|%s' | format(stars, none) }}{{ '%(a)s' | format(a=none) }}", "3|"),
        ("{{ none | center(3) }}{{ none | urlencode }}{{ none | urlize }}", "   "),
        ("{{ none | safe }}.{{ none | e }}{{ none | escape }}{{ none | forceescape }}", "."),
        ("{% if none is none %}{{ stars }}{% endif %}", "3"),
    ],
)
def test_a_lone_expression_keeps_its_type_and_other_templates_are_text(template: str, value: Any):
    got = compile_template(template)(ROW)
    assert got == value
    assert type(got) is type(value)


def test_text_of_a_row_is_never_run_as_a_template():
    assert compile_template("{{ q }}!")({"q": "{{ 7 * 7 }} {% raw %}"}) == "{{ 7 * 7 }} {% raw %}!"


@pytest.mark.parametrize("template", ["{{ questoin }}", "Q: {{ questoin }}", "{{ questoin | upper }}"])
def test_a_missing_column_names_those_that_are_there(template: str):
    with pytest.raises(RowError) as caught:
        compile_template(template)(ROW)
    assert caught.value.reason == "missing column 'questoin'"
    assert "question, answer" in caught.value.detail
    assert "did you mean 'question'?" in caught.value.detail


def test_a_row_of_many_columns_makes_a_short_message():
    with pytest.raises(RowError) as caught:
        compile_template("{{ x }}")({f"column {n}": n for n in range(1000)})
    assert caught.value.detail.endswith("and 980 more")


@pytest.mark.parametrize("template", ["{{ question / 2 }}", "{{ 1 / 0 }}", "{{ tags[0].x.y }}", "{{ none.x }} "])
def test_an_expression_that_fails_is_a_reason(template: str):
    with pytest.raises(RowError, match="the mapping fails"):
        compile_template(template)(ROW)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ question.__class__ }} ",
        "{{ tags.append(1) }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ '{0.__class__}'.format(1).upper() }}",
        "{{ range(10 ** 9) }}",
    ],
)
def test_the_sandbox_holds(template: str):
    row = {**ROW, "tags": ["a"]}
    try:
        value = compile_template(template)(row)
    except (DataError, RowError):
        value = None
    assert value is None
    assert row["tags"] == ["a"]


def source(**keys: Any) -> SourceSpec:
    return SourceSpec.model_validate({"path": "x.jsonl", **keys})


def test_roles_may_be_templates():
    run = compile_mapping(source(messages=[{"role": "{{ who }}", "content": "{{ answer }}"}]))
    assert run(ROW) == {"messages": [{"role": "assistant", "content": "4"}]}


def test_a_message_that_renders_empty_is_named():
    run = compile_mapping(source(messages=[{"role": "user", "content": "{{ none }}"}]))
    with pytest.raises(RowError, match=r"message 0 \(user\) renders empty"):
        run(ROW)


def test_a_list_is_not_printed_into_a_message():
    run = compile_mapping(source(messages=[{"role": "user", "content": "{{ tags }}"}]))
    with pytest.raises(RowError, match="the content of message 0 is a list, not text"):
        run(ROW)


def test_numbers_are_written_as_text_in_messages_and_kept_as_labels():
    assert compile_mapping(source(messages=[{"role": "user", "content": "{{ stars }}"}]))(ROW)["messages"][0] == {
        "role": "user",
        "content": "3",
    }
    assert compile_mapping(source(text="{{ question }}", label="{{ stars }}"))(ROW)["label"] == 3


def test_space_around_an_expression_stays_in_a_text_whatever_a_row_has_there():
    run = compile_mapping(source(text=" {{ x }}", label=" {{ x }}"))
    assert run({"x": 72}) == {"text": " 72", "label": 72}
    assert run({"x": "72"})["text"] == " 72"
    run = compile_mapping(source(messages=[{"role": "user", "content": "\n{{ x }} "}]))
    assert run({"x": 7.5})["messages"][0]["content"] == "\n7.5 "


def test_tool_calls_come_as_lists_or_json():
    calls = [{"name": "f", "arguments": {"x": 1}}]
    run = compile_mapping(source(messages=[{"role": "assistant", "tool_calls": "{{ calls }}"}]))
    assert run({"calls": calls})["messages"][0]["tool_calls"] == calls
    with pytest.raises(RowError, match="renders empty"):
        run({"calls": []})
