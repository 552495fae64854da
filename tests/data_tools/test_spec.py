"""A recipe's data section says what it means, or what is wrong with it."""

from pathlib import Path

import pytest
from posttrain.data_tools.errors import SpecError
from posttrain.data_tools.spec import DataSpec, SourceSpec
from posttrain.data_tools.specfile import load_document, validate
from pydantic import ValidationError

QA = [{"role": "user", "content": "{{ q }}"}, {"role": "assistant", "content": "{{ a }}"}]


def test_one_source_or_a_list_is_always_a_list():
    one = DataSpec.model_validate({"train": {"path": "a.jsonl"}, "eval": {"path": "b.jsonl"}})
    many = DataSpec.model_validate({"train": [{"path": "a.jsonl"}], "eval": [{"path": "b.jsonl"}]})
    assert one == many
    assert [source.path for source in one.train] == ["a.jsonl"]


def test_a_weight_means_mixing_by_weights():
    sources = [{"path": "a"}, {"path": "b"}]
    assert DataSpec.model_validate({"train": sources}).mix == "concat"
    assert DataSpec.model_validate({"train": [{**sources[0], "weight": 0.7}, sources[1]]}).mix == "weights"
    assert DataSpec.model_validate({"train": [SourceSpec(path="a", weight=2.0)]}).mix == "weights"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"format": "alpaca", "messages": QA}, "`format: alpaca` reads fixed columns"),
        ({"format": "text", "system": "Be kind."}, "`format: text` reads fixed columns"),
        ({"text": "{{ a }}", "chosen": "{{ b }}"}, "make no one kind of row"),
        ({"messages": QA, "prompt": "{{ a }}"}, "make no one kind of row"),
        ({"chosen": "{{ a }}", "rejected": "{{ b }}"}, "make no one kind of row"),
        ({"text": "{{ a"}, "not a valid template: unexpected end of template"),
        ({"text": "{% if %}"}, "not a valid template"),
        ({"text": "{{ a | nosuch }}"}, "not a valid template: No filter named 'nosuch'"),
        ({"messages": []}, "at least 1 item"),
        ({"messages": [{"role": "user"}]}, "needs `content` or `tool_calls`"),
        ({"weight": 0}, "greater than 0"),
        ({"weight": float("inf")}, "finite"),
        ({"limit": 0}, "greater than 0"),
        ({"columns": {"a": "x", "b": "x"}}, "two columns cannot both become 'x'"),
        ({"format": "alpca"}, "'alpaca'"),
        ({"path": ""}, "at least 1 character"),
        ({"limt": 3}, "Extra inputs"),
    ],
)
def test_a_wrong_source_says_what_is_wrong(source: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        SourceSpec.model_validate({"path": "a.jsonl", **source})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": []}, "at least 1 item"),
        ({"train": {"path": "a", "weight": 2.0}, "mix": "concat"}, "`weight` would do nothing"),
        ({"train": {"path": "a", "weight": 2.0}, "temperature": 2.0}, "so do weights; remove one"),
        ({"train": {"path": "a"}, "temperature": 0.5}, "greater than or equal to 1"),
        ({"train": {"path": "a"}, "eval": {"path": "a", "weight": 2.0}}, "does nothing on an evaluation source"),
        ({"train": {"path": "a"}, "max_bad_share": 1.5}, "less than or equal to 1"),
        ({"train": {"path": "a"}, "seed": "1"}, "valid integer"),
    ],
)
def test_a_wrong_section_says_what_is_wrong(data: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        DataSpec.model_validate(data)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"messages": QA}, "messages"),
        ({"messages": QA, "system": "x"}, "messages"),
        ({"text": "x"}, "text"),
        ({"text": "x", "label": "y"}, "classification"),
        ({"text": "x", "text_pair": "z", "label": "y"}, "classification"),
        ({"prompt": "x", "completion": "y"}, "prompt_completion"),
        ({"prompt": "x", "completion": "y", "label": "z"}, "unpaired"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, "preference"),
        ({"prompt": "x", "chosen": "y", "rejected": "z", "margin": "m"}, "preference"),
        ({"prompt": "x"}, "prompt"),
        ({"prompt": "x", "system": "s"}, "prompt"),
        ({}, None),
        ({"format": "alpaca", "system": "x"}, None),
    ],
)
def test_the_keys_of_a_mapping_tell_its_kind(keys: dict, kind: str | None):
    assert SourceSpec.model_validate({"path": "a", **keys}).mapping_kind == kind


def test_problems_of_a_recipe_carry_line_and_path(tmp_path: Path):
    path = tmp_path / "data.yaml"
    path.write_text("""\
train:
  - path: a.jsonl
    messages:
      - {role: user, content: "{{ q }"}
  - path: b.jsonl
    colums: {0: text}
eval:
  path: c.jsonl
  limit: ten
""")
    with pytest.raises(SpecError) as caught:
        validate(DataSpec, load_document(path))
    problems = [problem.removeprefix(f"{path}:") for problem in caught.value.problems]
    assert len(problems) == 3
    assert problems[0].startswith("4: train[0].messages[0].content: not a valid template")
    assert problems[1] == "6: train[1].colums: unknown key; did you mean 'columns'?"
    assert problems[2].startswith("9: eval.limit: ")


def test_an_editor_is_told_that_one_source_or_a_list_will_do():
    schema = DataSpec.model_json_schema()["properties"]["train"]
    assert {"$ref": "#/$defs/SourceSpec"} in schema["anyOf"]
