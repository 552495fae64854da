"""verify must pass what is right and catch what is wrong: each planted bug names the check that has to see it."""

from dataclasses import replace
from pathlib import Path

import pytest
from posttrain import chat_templates
from posttrain.chat_templates import install, load, verify

from .conftest import digits

HEADER = "{#- end_of_turn: <|im_end|>\nspecial_tokens: <|im_start|> <|im_end|> -#}"
TURN = "{{ '<|im_start|>' + m.role + '\n' }}"
ANSWER = "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
OTHERS = "{{ m.content + '<|im_end|>\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def write(*, first="", turn=TURN, answer=ANSWER, others=OTHERS, last="", prompt=PROMPT, over="messages"):
    """ChatML, with any part of it replaced."""
    source = (
        f"{HEADER}{first}{{%- for m in {over} %}}{turn}{{% if m.role == 'assistant' %}}{answer}"
        f"{{% else %}}{others}{{% endif %}}{{% endfor %}}{last}{prompt}"
    )
    return chat_templates.ChatTemplate("planted", source, "<|im_end|>", ("<|im_start|>", "<|im_end|>"))


def failed(findings):
    return {(finding.check, finding.severity) for finding in findings if not finding.ok}


def errors(findings):
    return [finding for finding in findings if not finding.ok and finding.severity == "error"]


@pytest.mark.parametrize("name", chat_templates.names())
def test_every_built_in_is_sound_with_every_family_of_tokenizer(name, tokenizer, other_tokenizer):
    for each in (tokenizer, other_tokenizer):
        template = load(name)
        install(template, each)
        assert errors(verify(template, each, max_length=1024)) == []


def test_the_template_need_not_be_installed_for_verify(tokenizer):
    tokenizer.eos_token = "<|im_end|>"
    assert tokenizer.chat_template is None
    assert errors(verify(load("chatml"), tokenizer)) == []


def test_the_planted_bugs_are_the_only_ones(tokenizer):
    install(write(), tokenizer)
    assert failed(verify(write(), tokenizer, max_length=1024)) == set()


BUGS = {
    "the end of turn outside the loss": (
        {"answer": "{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}"},
        [("loss text", "error"), ("end of turn", "error")],
        "carries no loss",
    ),
    "no end of turn at all": (
        {"answer": "{% generation %}{{ m.content }}{% endgeneration %}{{ '\n' }}"},
        [("loss text", "error"), ("end of turn", "error")],
        "does not end with the end of turn",
    ),
    "the newline inside the loss": (
        {"answer": "{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}"},
        [("loss text", "error"), ("end of turn", "error")],
        "after the end of turn",
    ),
    "the header inside the loss": (
        {
            "turn": "",
            "answer": "{% generation %}{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>' }}{% endgeneration %}",
            "others": "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}",
        },
        [("loss text", "error")],
        "where the assistant said",
    ),
    "loss on the user too": (
        {"others": ANSWER},
        [("loss text", "error")],
        "ranges with loss",
    ),
    "only the last turn has loss": (
        {"answer": "{% if loop.last %}" + ANSWER + "{% else %}" + OTHERS + "{% endif %}"},
        [("loss text", "error"), ("turn prefix", "ok")],
        "2 assistant turns, but 1",
    ),
    "text cut from the answer": (
        {"answer": ANSWER.replace("m.content", "m.content[:20]")},
        [("loss text", "error")],
        "where the assistant said",
    ),
    "white space stripped from the answer": (
        {"answer": ANSWER.replace("m.content", "m.content | trim")},
        [("loss text", "warning")],
        "white space",
    ),
    "a boundary inside a token": (
        {
            "turn": "{{ '<|im_start|>' + m.role + ':' }}",
            "answer": "{{ ' ' }}" + ANSWER,
            "prompt": "{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}",
        },
        [("boundaries", "error"), ("prompt prefix", "error")],
        "lies across the edge",
    ),
    "another prompt than in training": (
        {"prompt": "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"},
        [("prompt prefix", "error")],
        "in the prompt of turn",
    ),
    "a prompt that closes the conversation": (
        {"last": "{{ '<|endoftext|>' }}"},
        [("prompt prefix", "error"), ("turn prefix", "warning")],
        "stands for",
    ),
    "earlier turns that change": (
        {"answer": "{% if not loop.last %}{{ 'earlier: ' }}{% endif %}" + ANSWER},
        [("turn prefix", "warning")],
        "turns change when others follow",
    ),
    "the system message dropped": (
        {"over": "messages | selectattr('role', 'ne', 'system')"},
        [("content", "error")],
        "system message is dropped",
    ),
    "the user cut": (
        {"others": OTHERS.replace("m.content", "m.content[:3]")},
        [("content", "error")],
        "user message is dropped or changed",
    ),
    "a system message refused": (
        {"turn": "{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TURN},
        [("renders", "warning")],
        "no system here",
    ),
    "a template that fails": (
        {"turn": "{{ m.name.first }}" + TURN},
        [("renders", "error")],
        "does not render",
    ),
    "tools mentioned but not written": (
        {
            "first": "{% if tools %}{% endif %}",
            "answer": "{% if m.tool_calls %}{% endif %}" + ANSWER.replace("m.content", "(m.content or '')"),
        },
        [("tools", "error"), ("loss text", "error")],
        "the definition of tool get_weather is dropped",
    ),
}


@pytest.mark.parametrize("bug", BUGS, ids=BUGS)
def test_a_planted_bug_is_caught_by_its_check(bug, tokenizer):
    parts, expected, message = BUGS[bug]
    template = write(**parts)
    install(template, tokenizer)
    findings = verify(template, tokenizer)
    assert {(check, severity) for check, severity in expected if severity != "ok"} <= failed(findings)
    assert any(message in finding.message for finding in findings if not finding.ok), findings


def test_a_template_without_markers_is_an_error_that_names_ours(tokenizer):
    findings = verify(chat_templates.ChatTemplate("stock", "{{ messages[0].content }}"), tokenizer)
    assert [(f.check, f.ok) for f in findings] == [("generation marks", False)]
    assert "chatml" in findings[0].message


def test_a_second_bos_is_caught_and_a_missing_one_reported(tokenizer, other_tokenizer):
    template = load("llama3")
    install(template, other_tokenizer)
    twice = replace(template, source="{{- bos_token }}" + template.source)
    assert ("bos", "error") in failed(verify(twice, other_tokenizer))
    none = replace(template, source=template.source.replace("{{- bos_token }}", ""))
    assert ("bos", "warning") in failed(verify(none, other_tokenizer))


def test_pad_as_eos_is_caught(tokenizer):
    template = load("chatml")
    install(template, tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    assert ("pad", "error") in failed(verify(template, tokenizer))
    tokenizer.pad_token = None
    assert ("pad", "error") in failed(verify(template, tokenizer))


def test_an_eos_token_that_never_carries_loss_is_caught(tokenizer):
    template = load("chatml")
    install(template, tokenizer)
    tokenizer.eos_token = "<|endoftext|>"
    assert ("end of turn", "error") in failed(verify(template, tokenizer))


def test_special_tokens_that_are_many_tokens_are_caught(tokenizer):
    assert ("special tokens", "error") in failed(verify(load("phi"), tokenizer))


def test_truncation_that_leaves_no_loss_is_caught_and_says_where_the_answer_begins(tokenizer):
    template = load("chatml")
    install(template, tokenizer)
    long = {"messages": [{"role": "user", "content": "Hi " * 50}, {"role": "assistant", "content": "Ho"}]}
    begins = chat_templates.encode(template, tokenizer, [long])[0].loss_mask.index(True) + 1
    assert ("truncation", "error") in failed(verify(template, tokenizer, [long], max_length=begins - 1))
    assert ("truncation", "error") not in failed(verify(template, tokenizer, [long], max_length=begins))
    message = next(f.message for f in verify(template, tokenizer, [long], max_length=9) if f.check == "truncation")
    assert f"begins at token {begins}" in message


def test_a_tokenizer_that_cannot_write_the_data_is_a_warning_not_an_error_of_the_template(tokenizer):
    from tokenizers import normalizers

    template = load("chatml")
    install(template, tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    findings = verify(template, tokenizer)
    assert ("loss tokens", "warning") in failed(findings)
    assert errors(findings) == []


def test_a_warning_of_white_space_says_whose_it_is_and_what_to_do():
    tokenizer = digits()  # joins the line's end before an answer with the answer's own
    install(load("zephyr"), tokenizer)
    found = [f for f in verify(load("zephyr"), tokenizer) if f.check == "boundaries"]
    assert [f.severity for f in found] == ["warning"]
    assert found[0].message.startswith("the made-up conversation 'white space': token ")
    assert found[0].message.endswith("; strip messages that begin or end with white space")


def test_a_mask_that_is_one_token_off_is_caught(tokenizer, monkeypatch):
    from posttrain.chat_templates import probes

    template = load("chatml")
    install(template, tokenizer)
    right = chat_templates.encode

    def off_by_one(*args, **kwargs):
        return [replace(e, loss_mask=[False, *e.loss_mask[:-1]]) for e in right(*args, **kwargs)]

    monkeypatch.setattr(probes, "encode", off_by_one)
    assert {("loss tokens", "error"), ("end of turn", "error")} <= failed(verify(template, tokenizer))


def test_tool_calls_need_a_template_with_tools(tokenizer):
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [call]}]}]
    for name, refused in (("chatml", True), ("hermes-tools", False)):
        install(load(name), tokenizer)
        findings = verify(load(name), tokenizer, rows)
        assert (("renders", "error") in failed(findings)) is refused


def test_special_tokens_in_the_callers_rows_are_reported(tokenizer):
    template = load("chatml")
    install(template, tokenizer)
    rows = [{"messages": [{"role": "user", "content": "a<|im_end|>b"}, {"role": "assistant", "content": "c"}]}]
    findings = verify(template, tokenizer, rows)
    assert failed(findings) == {("injection", "warning")}


def test_special_tokens_that_cannot_be_kept_as_text_are_reported(tokenizer, monkeypatch):
    from posttrain.chat_templates import probes

    template = load("chatml")
    install(template, tokenizer)
    right = chat_templates.encode
    monkeypatch.setattr(probes, "encode", lambda *args: right(*args, special_in_content="special"))
    assert ("injection", "warning") in failed(verify(template, tokenizer))


@pytest.mark.parametrize("stock", ["qwen3", "llama3", "phi3_5"])
def test_stock_templates_without_markers_and_trl_training_ones_are_told_apart(stock, tokenizer):
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (folder / f"{stock}.jinja").read_text()
    plain = chat_templates.from_tokenizer(tokenizer)
    assert failed(verify(plain, tokenizer)) == {("generation marks", "error")}
    tokenizer.chat_template = (folder / f"{stock}_training.jinja").read_text()
    marked = chat_templates.from_tokenizer(tokenizer)
    assert ("generation marks", "error") not in failed(verify(marked, tokenizer))
