"""What a model thought is never judged, and an answer that speaks of thinking is left whole."""

import time

import pytest
from posttrain.evals.thinking import TAGS, Stripped, answer_in, opened_by, strip_thinking


@pytest.mark.parametrize(
    "raw",
    [
        "<think>two and two</think>Four.",
        "<think>\ntwo\nand two\n</think>\n\nFour.",
        "  \n<thinking>hm</thinking> Four. ",
        "<|begin_of_thought|>hm<|end_of_thought|>\nFour.",
        "<THINK>hm</Think>Four.",
        "<think></think>Four.",
        "<think>a</think>\n<think>b</think>\nFour.",
        "<think>a</think> <think>b</think>Four.",
        "<think>I may write <think> inside</think>Four.",
        "the template opened it\n</think>\n\nFour.",
    ],
)
def test_only_the_answer_is_left(raw: str):
    stripped = strip_thinking(raw)
    assert (stripped.text, stripped.cut) == ("Four.", False)


@pytest.mark.parametrize("raw", ["<think>still at it", " <think>", "<think>a</think>\n<think>and again"])
def test_thoughts_that_never_end_leave_no_answer(raw: str):
    stripped = strip_thinking(raw)
    assert (stripped.text, stripped.cut) == ("", True)


def test_thoughts_that_the_prompt_opened_and_the_limit_cut_are_no_answer():
    opened = opened_by("<|im_start|>assistant\n<think>\n")
    assert opened == ("<think>", "</think>")
    assert strip_thinking("first I will", opened=opened).cut
    assert strip_thinking("first I will</think>Four.", opened=opened).text == "Four."
    assert opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n") is None


@pytest.mark.parametrize(
    "raw",
    [
        "Four. ",
        "",
        "Write `<think>` and `</think>` around thoughts.",
        "The tag <think> opens thoughts.",
        "Put <think> before your thoughts and </think> behind them.",
        "An answer.\n<think>a tag that is never closed",
        "if a </b> tag",
    ],
)
def test_an_answer_without_thoughts_is_left_as_it_is(raw: str):
    stripped = strip_thinking(raw)
    assert (stripped.text, stripped.cut) == (raw, False)


def test_a_block_in_the_middle_is_taken_out_too():
    assert strip_thinking("One.\n<think>hm</think>\nTwo.").text == "One.\n\nTwo."


def test_tags_can_be_chosen():
    raw = "<hm>x</hm>Four."
    assert strip_thinking(raw, [("<hm>", "</hm>")]).text == "Four."
    assert strip_thinking(raw).text == raw
    assert strip_thinking("<think>x</think>y", []).text == "<think>x</think>y"


@pytest.mark.parametrize(
    "unit", [*(tag + "\n" for pair in TAGS for tag in pair), "<think></think>\n", " ", "`</think>`"]
)
def test_a_megabyte_of_tags_is_read_in_no_time(unit: str):
    started = time.process_time()
    strip_thinking(unit * (1_000_000 // len(unit)))
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("raw", "prompt", "text", "cut", "thought"),
    [
        ("<think>\nfirst\n\nthen\n</think>\n\n4\n\nQuestion: 5", "", "4", False, True),
        ("first\n\nthen</think>4\n\nmore", "assistant\n<think>\n", "4", False, True),
        ("<think>first\n\nthen", "", "", True, True),
        ("4\n\nQuestion: 5", "", "4", False, False),
        ("4", "", "4", False, False),
    ],
)
def test_thoughts_are_taken_out_before_stop_strings_are_looked_for(
    raw: str, prompt: str, text: str, cut: bool, thought: bool
):
    assert answer_in(raw, prompt, ["Question:", "\n\n"]) == Stripped(text, cut, thought)
