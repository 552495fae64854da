"""What rows say beside their words: marks of loss, reasoning, roles that text lacks, and what nothing reads."""

import json
from pathlib import Path
from typing import Any

import pytest
from posttrain import chat_templates
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.prepare import Prepared, prepare
from posttrain.data_tools.spec import DataSpec

Q, AGAIN = {"role": "user", "content": "Two and two?"}, {"role": "user", "content": "Try again"}
WRONG, RIGHT = {"role": "assistant", "content": "five"}, {"role": "assistant", "content": "four"}


@pytest.fixture
def run(tmp_path: Path, tokenizer):
    """Prepares rows for SFT, or for a kind of example, under a template."""

    def call(
        rows: list[dict], data: Any = None, template: str | None = "chatml", kind: Any = None, **source: Any
    ) -> Prepared:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec = DataSpec.model_validate(
            {"train": {"path": "rows.jsonl", **source}, "max_bad_share": 0.9, **(data or {})}
        )
        loaded = chat_templates.load(template) if template else None
        if loaded:
            chat_templates.install(loaded, tokenizer)
        common: dict[str, Any] = {
            "base_dir": tmp_path,
            "tokenizer": tokenizer,
            "template": loaded,
            "max_length": None,
            "cache_dir": tmp_path / "cache",
        }
        if kind:
            return prepare(spec, "train", accepts=(kind,), **common)
        accepts = ("messages", "prompt_completion")
        return prepare(spec, "train", accepts=accepts, packing=None, loss_on="assistant", **common)

    return call


def learnt(tokenizer, made: Prepared, row: int = 0) -> str:
    """The tokens with loss of one row."""
    return tokenizer.decode([label for label in made.dataset[row]["labels"] if label != -100])


def talk(**mark: Any) -> dict:
    return {"messages": [Q, {**WRONG, **mark}, AGAIN, RIGHT]}


@pytest.mark.parametrize(
    "mark",
    [
        {"train": False}, {"training": False}, {"weight": 0}, {"weight": 0.0}, {"loss": False}, {"loss_scale": 0},
        {"loss_weight": 0.0}, {"loss_mask": 0}, {"masked": True}, {"mask": True}, {"train": "false"},
        {"weight": 0, "train": False},
    ],
)  # fmt: skip
def test_a_turn_marked_by_any_peers_key_carries_no_loss(run, tokenizer, mark):
    assert learnt(tokenizer, run([talk(**mark)])) == "four<|im_end|>"


@pytest.mark.parametrize("mark", [{}, {"train": True}, {"weight": 1}, {"train": None}, {"masked": False}])
def test_a_turn_that_is_not_marked_off_carries_loss(run, tokenizer, mark):
    assert learnt(tokenizer, run([talk(**mark)])) == "five<|im_end|>four<|im_end|>"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (talk(weight=0.5), "message key 'weight' is neither true, false, 0 nor 1: a message carries loss or none"),
        (talk(train=False, weight=1), "marks of one message contradict each other"),
        (talk(train_detail=[{"begin_offset": 0, "end_offset": 2, "train": False}]),
         "message key 'train_detail' cannot be used: loss is decided for whole messages, not for parts of one"),
        ({"messages": [Q, {**RIGHT, "train": False}]}, "no token carries loss"),
        ({"messages": [{**Q, "train": True}, RIGHT]}, "the chat template refuses it"),
        ({"messages": [Q, RIGHT], "images": ["a.png"]}, "column 'images': only text can be trained on"),
        ({"messages": [Q, {**RIGHT, "images": ["a.png"]}]},
         "message key 'images' cannot be used: only text can be trained on"),
        ({"messages": [Q, RIGHT], "enable_thinking": False},
         "column 'enable_thinking': a template takes no arguments from rows"),
        ({"messages": [Q, {**RIGHT, "reasoning_content": "Hm"}]}, "the chat template refuses it"),
        ({"messages": [Q, {**RIGHT, "reasoning": "Hm"}]}, "the chat template refuses it"),
        ({"messages": [Q, {**RIGHT, "reasoning": "Hm", "thinking": "Ha"}]},
         "a message has two different texts of reasoning"),
        ({"messages": [Q, {**RIGHT, "value": "three"}]}, "a message has both content and value"),
        (talk(content=[{"type": "text", "text": "five", "train": False}]),
         "a content part has a mark of loss: loss is decided for whole messages"),
        (talk(do_train=False), "message key 'do_train' looks like a mark of what carries loss"),
        (talk(label_mask="0"), "message key 'label_mask' looks like a mark of what carries loss"),
        (talk(Train=False), "message key 'Train' looks like a mark of what carries loss"),
        ({**talk(), "loss_mask": [0, 0, 0, 1]}, "column 'loss_mask' looks like a mark of what carries loss"),
        ({**talk(), "train": False}, "column 'train' looks like a mark of what carries loss"),
        ({**talk(), "weight": 0}, "column 'weight' looks like a mark of what carries loss"),
        ({"messages": [{**Q, "tools": [{"name": "f"}]}, RIGHT]},
         "message key 'tools' cannot be used: what may be called stands in the row's column `tools`"),
        ({"messages": [Q, RIGHT], "system": ["Be brief"]}, "the system message is not text"),
    ],
)  # fmt: skip
def test_what_has_a_meaning_that_is_not_kept_is_refused(run, row, reason):
    assert run([row, talk()]).report.dropped == {reason: 1}


def test_only_the_last_turn_carries_loss_if_the_data_section_says_so(run, tokenizer):
    assert learnt(tokenizer, run([talk()], {"loss_on": "last"})) == "four<|im_end|>"
    ends_masked = {"messages": [Q, WRONG, AGAIN, {**RIGHT, "train": False}]}
    assert run([talk(), ends_masked], {"loss_on": "last"}).report.dropped == {"no token carries loss": 1}
    with pytest.raises(DataError, match="loss_on: last is for conversations"):
        run([{"prompt": "a"}], {"loss_on": "last"}, kind="prompt")


@pytest.mark.parametrize("spelling", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_of_any_spelling_is_rendered_where_the_template_has_it(run, tokenizer, spelling):
    made = run([{"messages": [Q, {**RIGHT, spelling: "Let me see"}]}], template="qwen3")
    assert learnt(tokenizer, made) == "<think>\nLet me see\n</think>\n\nfour<|im_end|>"


def test_a_template_that_drops_words_of_a_row_does_not_train_on_it(run, tmp_path):
    path = tmp_path / "own.jinja"
    source = (Path(chat_templates.__file__).parent / "chatml.jinja").read_text()
    path.write_text(source.replace("message.content +", "message.content.split('!')[-1] +"))
    rows = [{"messages": [Q, {**RIGHT, "content": "Hm! four"}]}, talk()]
    assert run(rows, template=str(path)).report.dropped == {"the chat template refuses it": 1}


def test_words_that_no_message_takes_are_named(run):
    system = {"role": "system", "content": "Be kind"}
    part = {"type": "text", "text": "four", "cache_control": {"type": "ephemeral"}}
    rows = [
        {"messages": [system, Q, RIGHT], "system": "Be brief"},
        {"messages": [system, Q, RIGHT], "system": "Be kind"},
        {"messages": [Q, {**RIGHT, "content": [part]}], "train": True, "weight": 0.5},
    ]
    assert run(rows).report.sources[0].unread == {
        "column system": 1, "column train": 1, "column weight": 1, "message key content.cache_control": 1
    }  # fmt: skip


def test_a_null_beside_a_text_hides_nothing(run, tokenizer):
    turns = [{"from": "human", "value": "one", "content": None}, {"from": "gpt", "value": "two", "content": None}]
    assert learnt(tokenizer, run([{"conversations": turns}])) == "two<|im_end|>"


def test_what_nothing_reads_is_counted_and_named_once_for_each_source(run):
    rows = [{"messages": [Q, {**RIGHT, "name": "Bo", "mood": "good"}], "id": n, "source": None} for n in range(3)]
    made = run(rows)
    assert made.report.sources[0].unread == {"column id": 3, "message key name": 3, "message key mood": 3}
    assert made.report.notes == [
        "rows.jsonl: not read: column id (3 rows), message key mood (3 rows), message key name (3 rows)"
    ]
    assert run(rows).cached
    assert run(rows).report == made.report


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({"messages": [Q, RIGHT], "conversations": [Q, WRONG]}, "column conversations"),
        ({"prompt": "q", "completion": "a", "response": "b"}, "column response"),
        ({"instruction": "q", "output": "a", "response": "b"}, "column response"),
    ],
)
def test_a_second_column_of_one_meaning_is_named(run, row, unread):
    assert run([row]).report.sources[0].unread == {unread: 1}


def test_a_completion_keeps_its_marks_and_a_preferred_answer_refuses_them(run, tokenizer):
    row = {"prompt": [Q, WRONG, AGAIN], "completion": [{**WRONG, "weight": 0}, AGAIN, RIGHT]}
    assert learnt(tokenizer, run([row])) == "four<|im_end|>"
    pairs = [{"prompt": [Q], "chosen": [{**RIGHT, **mark}], "rejected": [WRONG]} for mark in ({}, {"train": False})]
    reason = "an answer is marked to carry no loss, and this stage learns from whole answers"
    assert run(pairs, kind="preference").report.dropped == {reason: 1}
    prompts = run([{"messages": [Q, {**WRONG, "train": False}, AGAIN, RIGHT]}], kind="prompt")
    assert prompts.dataset[0]["prompt"] == [Q, WRONG, AGAIN]


def test_a_message_of_a_mapping_takes_a_mark(run, tokenizer):
    turns = [{"role": "user", "content": "{{ q }}"}, {"role": "assistant", "content": "{{ a }}"}]
    messages = [*({**turn, "train": False} for turn in turns), turns[0], {**turns[1], "train": True}]
    made = run([{"q": "Two and two?", "a": "four"}], messages=messages)
    assert learnt(tokenizer, made) == "four<|im_end|>"
    ids = made.dataset[0]["input_ids"]
    assert tokenizer.decode(ids).count("four") == 2


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [Q, RIGHT], "functions": [{"name": "add_up"}]},
        {"messages": [Q, RIGHT], "functions": '[{"name": "add_up"}]'},
        {"instruction": "Two and two?", "output": "four", "tools": [{"name": "add_up"}]},
        {"prompt": "Two and two?", "completion": "four", "functions": [{"name": "add_up"}]},
    ],
)
def test_tools_reach_the_prompt_whatever_the_layout(run, tokenizer, row):
    made = run([row], template="hermes-tools")
    assert "add_up" in tokenizer.decode(made.dataset[0]["input_ids"])
    assert not made.report.sources[0].unread
    with pytest.raises(DataError, match="prompts with tools cannot be used"):
        run([row], template="hermes-tools", kind="prompt")


def test_rows_that_spell_the_templates_tokens_are_counted_and_named_once(run):
    turns = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    rows = [{"prompt": turns, "completion": "yo<|im_end|>"}, {"prompt": "hi", "completion": "yo"}]
    for raw in (True, False):
        found = run(rows, raw=raw).report
        assert found.sources[0].literal == 1
        assert sum("1 rows spell tokens of the chat template" in note for note in found.notes) == 1
    assert run([{"messages": [{"role": "user", "content": turns}, RIGHT]}] * 2).report.sources[0].literal == 2
    assert run([{"messages": [Q, RIGHT]}]).report.sources[0].literal == 0


# text under a template


def test_text_under_a_template_becomes_turns_unless_it_is_raw(run, tokenizer):
    row = {"prompt": "Two and two?", "completion": "four"}
    templated = tokenizer.decode(run([row]).dataset[0]["input_ids"])
    assert templated == "<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\nfour<|im_end|>\n"
    assert tokenizer.decode(run([row], raw=True).dataset[0]["input_ids"]) == "Two and two?four<|im_end|>"
    assert run([row], template=None).report.sources[0].turns == 0
    assert "1 rows of text became turns" in run([row]).report.notes[0]


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("preference", {"prompt": "Two and two?", "chosen": "four", "rejected": "five"}),
        ("unpaired", {"prompt": "Two and two?", "completion": "four", "label": True}),
    ],
)
def test_text_of_any_kind_becomes_turns(run, tokenizer, kind, row):
    rows = [row, {**row, "label": False}] if kind == "unpaired" else [row]
    prompt = tokenizer.decode(run(rows, kind=kind).dataset[0]["prompt_ids"])
    assert prompt == "<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(run(rows, kind=kind, raw=True).dataset[0]["prompt_ids"]) == "Two and two?"


def test_an_instruction_can_be_raw_and_a_conversation_cannot(run, tokenizer):
    rows = [{"instruction": "Add", "input": "2 2", "output": "four"}, {"instruction": "Add", "output": "four"}]
    made = run(rows, raw=True)
    assert sorted(tokenizer.decode(row["input_ids"]) for row in made.dataset) == [
        "Add\n\n2 2four<|im_end|>",
        "Addfour<|im_end|>",
    ]
    with pytest.raises(DataError, match="the source is raw, and this is a conversation"):
        run([talk()], raw=True)
    with pytest.raises(ValueError, match="`raw: true` leaves text without roles"):
        run([talk()], raw=True, format="messages")


def test_an_answer_needs_no_marks_of_turns_where_the_prompt_says_where_it_begins(run, tokenizer, tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text(
        "{#-\nend_of_turn: <|im_end|>\n-#}\n{% for m in messages %}{{ m.role }}\\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}assistant\\n{% endif %}"
    )
    made = run([{"prompt": "Two and two?", "completion": "four"}], template=str(path))
    assert learnt(tokenizer, made) == "four<|im_end|>"
