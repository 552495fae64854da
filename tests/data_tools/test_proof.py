"""The loss mask is proved on what is trained: the template's text, and rows of the data as they are prepared."""

import json
from pathlib import Path

import pytest
from posttrain import chat_templates
from posttrain.chat_templates.templates import from_tokenizer
from posttrain.data_tools.proof import Proof, prove_mask
from posttrain.data_tools.spec import DataSpec

CHATML = (Path(chat_templates.__file__).parent / "chatml.jinja").read_text()
PUBLISHED = (  # as SmolLM2 and Qwen2.5 have it: no marks, a default system message
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a \"kind\" helper<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
Q, A = {"role": "user", "content": "Two and two?"}, {"role": "assistant", "content": "four"}
S = {"role": "system", "content": "Be brief."}


@pytest.fixture
def prove(tmp_path: Path, tokenizer):
    def call(source: str, row: dict, **options) -> Proof:
        path = tmp_path / "own.jinja"
        path.write_text(source)
        template = chat_templates.load(path)
        chat_templates.install(template, tokenizer)
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
        return prove_mask(
            DataSpec.model_validate({"train": {"path": "rows.jsonl", **options}}),
            base_dir=tmp_path,
            tokenizer=tokenizer,
            template=template,
            accepts=("messages", "prompt_completion"),
            max_length=None,
        )

    return call


def test_a_mask_that_is_right_on_probes_and_wrong_on_the_data_fails(prove):
    source = CHATML.replace(
        "{%- if message.role == 'assistant' %}", "{%- if message.role == 'assistant' and not odd %}"
    )
    source = source.replace("{%- for", "{%- set odd = 'Odd' in messages[0].content %}\n{%- for", 1)
    assert prove(source, {"messages": [Q, A]}).failed == prove(CHATML, {"messages": [Q, A]}).failed
    odd = {"messages": [{**Q, "content": "Odd?"}, A]}
    assert any("rows.jsonl:1: 1 assistant turns, but 0 ranges" in one.message for one in prove(source, odd).failed)


def test_the_proof_is_on_turns_that_text_becomes_and_on_marked_rows(prove):
    assert "probes and on 1 rows" in prove(CHATML, {"prompt": "Two?", "completion": "four"}).summary
    assert "take no turns" in prove(CHATML, {"prompt": "Two?", "completion": "four"}, raw=True).summary
    marked = prove(CHATML, {"messages": [Q, {**A, "train": False}, Q, A]})
    assert not [finding for finding in marked.failed if finding.severity == "error"]


def test_marks_are_only_asked_for_where_turns_need_them(prove):
    unmarked = "{#-\nend_of_turn: <|im_end|>\n-#}\n" + PUBLISHED
    assert not prove(unmarked, {"prompt": "Two?", "completion": "four"}).failed
    assert not prove(unmarked, {"prompt": "Two?", "completion": "four"}, raw=True).failed
    assert [finding.check for finding in prove(unmarked, {"messages": [Q, A]}).failed] == ["generation marks"]


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (("{%- if message.role == 'assistant' %}", "{%- if message.role != 'user' %}"), "took the system turn"),
        (("+ '<|im_end|>' }}\n        {%- endgeneration %}", "}}{%- endgeneration %}{{ '<|im_end|>' }}"),
         "move {% endgeneration %} behind it"),
        (("    {{- '<|im_start|>' + message.role + '\\n' }}\n    {%- if message.role == 'assistant' %}\n"
          "        {%- generation %}",
          "    {%- if message.role != 'assistant' %}{{- '<|im_start|>' + message.role + '\\n' }}{%- endif %}\n"
          "    {%- if message.role == 'assistant' %}\n        {%- generation %}{{- '<|im_start|>assistant\\n' }}"),
         "move {% generation %} behind"),
    ],
)  # fmt: skip
def test_a_finding_says_what_to_do(prove, change, remedy):
    source = CHATML.replace(*change)
    assert source != CHATML
    failed = prove(source, {"messages": [S, Q, A]}).failed
    assert any(remedy in finding.message for finding in failed), failed


def test_a_models_own_template_gets_the_marks_of_the_one_it_equals_and_renders_as_before(tokenizer):
    tokenizer.chat_template, tokenizer.eos_token = PUBLISHED, "<|im_end|>"
    own = from_tokenizer(tokenizer)
    found = chat_templates.recognise(own, tokenizer)
    assert found is not None
    assert found.marks_generation
    assert found.name == "chatml, recognised in the model's own with its default system message"
    chat_templates.install(found, tokenizer)
    assert not [one for one in chat_templates.verify(found, tokenizer) if not one.ok and one.severity == "error"]
    for talk in ([Q, A], [S, Q, A], [Q, A, Q, A], [Q]):
        for open_ended in (False, True):
            texts = [
                tokenizer.apply_chat_template(
                    talk, chat_template=source, tokenize=False, add_generation_prompt=open_ended
                )
                for source in (PUBLISHED, found.source)
            ]
            assert texts[0] == texts[1]


@pytest.mark.parametrize(("old", "new"), [("'\n' + message['content']", "': ' + message['content']"),
                                          ("message['content'] +", "message['content'] | upper +")])  # fmt: skip
def test_a_template_that_differs_is_not_recognised(tokenizer, old, new):
    tokenizer.chat_template, tokenizer.eos_token = PUBLISHED.replace(old, new), "<|im_end|>"
    assert chat_templates.recognise(from_tokenizer(tokenizer), tokenizer) is None
