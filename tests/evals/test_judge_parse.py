"""What a judge wrote, read: the last verdict counts, and what is none is never one."""

import math
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from posttrain.evals.judges import JudgeSettings, Labels
from posttrain.evals.judging.parse import from_labels, from_tokens, parse

PAIR = JudgeSettings()
RATING = JudgeSettings(kind="rating")
WORDS = JudgeSettings(labels=Labels(first="one", second="two", tie="equal"), pattern=r"Verdict:\s*(\w+)")


@pytest.mark.parametrize(
    ("text", "preference"),
    [
        ("[[A]]", 1.0),
        ("Better is [[B]].", 0.0),
        ("At first [[A]] seems better, but in the end:\n\n[[B]]", 0.0),  # the last match
        ("Both [[A]] and [[B]] err; hence [[C]]", 0.5),
        ("my verdict: [[b]]", 0.0),
        ("**[[A]]**", 1.0),
        ("## Verdict\n**[[ A ]]**\n", 1.0),
        ("A", 1.0),
        ("**B.**", 0.0),
        ("`c`", 0.5),
        ("<think>It could be [[B]].</think>[[A]]", 1.0),
        ("it could be [[B]]</think> [[A]]", 1.0),
    ],
)
def test_the_last_verdict_counts_however_it_is_dressed(text: str, preference: float):
    verdict = parse(text, PAIR)
    assert (verdict.status, verdict.preference) == ("judged", preference)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("Answer A is better.", "unparsed"),
        ("A or B", "unparsed"),
        ("[[D]]", "unparsed"),
        ("", "unparsed"),
        ("I'm sorry, but I cannot compare these.", "refused"),
        ("As an AI, I take no sides.", "refused"),
        ("I can\u2019t help with that.", "refused"),
        ("<think>surely [[A]]", "unparsed"),
    ],
)
def test_what_is_no_verdict_is_a_status(text: str, status: str):
    verdict = parse(text, PAIR)
    assert (verdict.status, verdict.preference) == (status, None)


def test_a_reply_that_was_cut_has_a_verdict_only_at_its_very_end():
    assert parse("I lean to [[A]], but on the other", PAIR, finish="length").status == "truncated"
    assert parse("No verdict yet", PAIR, finish="length").status == "truncated"
    assert parse("So it is **[[A]]**", PAIR, finish="length").preference == 1.0
    assert parse("", PAIR, finish="content_filter").status == "refused"


def test_labels_and_pattern_of_ones_own():
    assert parse("verdict: TWO", WORDS).preference == 0.0
    assert parse("Verdict: one or Verdict: equal", WORDS).preference == 0.5
    assert parse("Verdict: three", WORDS).status == "unparsed"
    assert parse("one is better", WORDS).status == "unparsed"


@pytest.mark.parametrize(
    ("text", "rating"), [("[[7]]", 7.0), ("so [[3]], no, [[7.5]]", 7.5), ("8", 8.0), ("[[6/10]]", 6.0)]
)
def test_a_mark_on_the_scale_is_a_rating(text: str, rating: float):
    assert parse(text, RATING).rating == rating


@pytest.mark.parametrize("text", ["[[11]]", "[[0]]", "[[-3]]", "[[4/5]]", "seven", "7 out of 10"])
def test_a_mark_off_the_scale_or_in_words_is_none(text: str):
    verdict = parse(text, RATING)
    assert (verdict.status, verdict.rating) == ("unparsed", None)


def test_a_scale_may_go_below_zero():
    scale = JudgeSettings(kind="rating", scale=(-5, 5))
    assert [parse(text, scale).rating for text in ("[[-3]]", "so [[-2.5/5]]", "-1", "[[4]]")] == [-3.0, -2.5, -1.0, 4.0]


def test_probabilities_are_those_among_the_labels():
    logs = {"A": math.log(0.3), "B": math.log(0.1), "C": math.log(0.2)}
    assert from_labels(logs, PAIR).preference == pytest.approx(0.3 / 0.6 + 0.5 * 0.2 / 0.6)
    tiny = {label: log - 2000 for label, log in logs.items()}  # labels of many tokens
    assert from_labels(tiny, PAIR).preference == pytest.approx(from_labels(logs, PAIR).preference)
    marks = {"2": math.log(0.25), "10": math.log(0.75)}
    assert from_labels(marks, RATING).rating == pytest.approx(8.0)


def test_spellings_of_a_label_are_added_and_other_words_are_not_labels():
    tokens = {"A": math.log(0.2), " A": math.log(0.2), "B": math.log(0.2), "Answer": math.log(0.2), "a": math.log(0.1)}
    assert from_tokens(tokens, PAIR).preference == pytest.approx(2 / 3)
    assert from_tokens({"A": 0.0, "B": -9999.0}, PAIR).preference == 1.0  # what servers say of a chance of nothing
    verdict = from_tokens({"The": math.log(0.8), "A": math.log(0.1)}, PAIR)
    assert (verdict.status, verdict.preference) == ("unparsed", None)


# --- other spellings ---

HIDDEN = "\u200b\u200d\u2060\ufeff\u00ad\u202e\ufe0f\u034f\u0000"
WIDE = {c: c + 0xFEE0 for c in range(0x21, 0x7F)}


def hidden(text: str, at: int) -> str:
    """Puts a character that nobody sees after each of the text's."""
    return "".join(c + HIDDEN[(at + i) % len(HIDDEN)] for i, c in enumerate(text))


OUTER: list[Callable[[str], str]] = [
    lambda t: t,
    lambda t: f"**{t}**",
    lambda t: f"$${t}$$",
    lambda t: f"`{t}`.",
    lambda t: f'"{t}"!',
    lambda t: f"<b>{t}</b>",
    lambda t: f"# Verdict\n\n{t}\n",
    lambda t: f"\u3010{t[1:-1]}\u3011",
    lambda t: t.replace("[", "\\[").replace("]", "\\]"),
    lambda t: t.replace("[", "&#91;").replace("]", "&rsqb;"),
    lambda t: t.replace("[[", "\u27e6").replace("]]", "\u27e7"),
    lambda t: t.replace("[[", "[ [").replace("]]", "]\u00a0]"),
    lambda t: t.replace("[[", r"\boxed{").replace("]]", "}"),
    lambda t: t.translate(WIDE),
    lambda t: hidden(t, 0),
    lambda t: hidden(t, 5),
]
INNER: list[Callable[[str], str]] = [
    lambda t: t,
    str.lower,
    lambda t: f" {t} ",
    lambda t: f"\u00a0{t}\u2003",
    lambda t: f"**{t}**",
    lambda t: f"\u201c{t}\u201d",
    lambda t: rf"\text{{{t}}}",
    lambda t: f"Answer: {t}",
    lambda t: f"my final verdict is {t}.",
    lambda t: f"<strong>{t}</strong>",
]
UNITS: list[Callable[[str], str]] = [
    *INNER,
    lambda t: f"{t}/10",
    lambda t: f"{t} out of 10",
    lambda t: f"{t} points",
    lambda t: f"{t}\u5206",
    lambda t: t.replace(".", ","),
]


@settings(deadline=None)
@given(st.sampled_from("ABC"), st.sampled_from("ABC"), st.sampled_from(INNER), st.sampled_from(OUTER))
def test_no_decoration_changes_a_verdict(label: str, earlier: str, inner: Callable[[str], str], outer):
    text = f"At first I took it for [[{earlier}]].\n\n{outer(f'[[{inner(label)}]]')}"
    assert parse(text, PAIR).preference == {"A": 1.0, "B": 0.0, "C": 0.5}[label]
    assert parse(f"At first [[{earlier}]], finally [[{inner(label)}]]", PAIR).status == "judged"


@settings(deadline=None)
@given(st.integers(10, 100), st.integers(1, 10), st.sampled_from(UNITS), st.sampled_from(OUTER))
def test_no_decoration_or_unit_changes_a_mark(tenths: int, earlier: int, inner: Callable[[str], str], outer):
    text = f"At first I took it for [[{earlier}]].\n\n{outer(f'[[{inner(str(tenths / 10))}]]')}"
    assert parse(text, RATING).rating == tenths / 10


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30))
@example("D")
@example("")
@example("A or B")
@example("A]")
@example("\u0410")  # a Cyrillic letter that looks like A
@example("not B")
@example("~~B~~")
def test_an_earlier_verdict_never_stands_in_for_a_later_one(words: str):
    alone = parse(f"[[{words}]]", PAIR)
    after = parse(f"At first [[A]].\n\n[[{words}]]", PAIR)
    assert (after.status, after.preference) in {(alone.status, alone.preference), ("unparsed", None)}


@pytest.mark.parametrize(
    ("text", "preference"),
    [
        ("[[A]]. \n[[A>>B]]", 1.0),
        ("[[A]]. [[B &gt; A]]", 0.0),
        ("[[B]]. [[A<<B]]", 0.0),
        ("[[A]]. [[A=B]]", 0.5),
        ("[[A]]. [[tie]]", 0.5),
        ("[[B]]. [[Assistant A is better]]", 1.0),
        ("[[B]] and again: [[B]]", 0.0),
        ("[[A]] and [[B]] are close, but on balance: [[B]]", 0.0),
        ("[[A]] or [[B]]? [[A]]", 1.0),
    ],
)
def test_scales_and_words_within_the_brackets_are_read(text: str, preference: float):
    assert parse(text, PAIR).preference == preference


@pytest.mark.parametrize(
    "text",
    [
        "[[A]] is better than [[B]].",
        "I choose [[A]]; [[B]] is worse",
        "It is not [[A]].",
        "I would never choose [[B]]",
        "I don't think it is [[A]]",
        "rather than [[A]]",
        "[[A]] is not the winner.",
        "[[B]] is worse",
        "[[A]]. ~~[[B]]~~",
        "It isn't **[[B]]**",
        "[[A]], not [[B]].",
        "[[A]] beats [[B]]",
        "[[B]] loses to [[A]], I think",
        "[[A]] vs. [[B]]",
        "[[A]] is better\nthan [[B]].",
        "[[B]]. Final: [[A]",
        "[[B]]. Final: [A]]",
        "[[B]]. Final: [[A",
        "[[B]]. Final: [A]",
        "[[B]]. Final verdict: **A**",
        "[[B]]. [[Loser: B]]",
        "[[A]] is fine. [[A|B]]",
    ],
)
def test_two_verdicts_in_a_sentence_or_a_torn_last_one_are_none(text: str):
    verdict = parse(text, PAIR)
    assert (verdict.status, verdict.preference) == ("unparsed", None)


@pytest.mark.parametrize(
    "mark", ["1,000", "8\u00b2", "8\u00bd", "8-9", ">8", "8%", "4/5", "11", "eight", "8 million", "1 0", ".5"]
)
def test_a_mark_that_may_be_two_numbers_or_is_off_the_scale_is_none(mark: str):
    assert parse(f"At first [[3]].\n[[{mark}]]", RATING).status == "unparsed"


def test_a_thousand_is_read_where_it_alone_is_on_the_scale():
    assert parse("[[1,500]]", JudgeSettings(kind="rating", scale=(100, 2000))).rating == 1500.0
    assert parse("[[1,500]]", JudgeSettings(kind="rating", scale=(0, 2000))).status == "unparsed"
    assert parse("[[80%]]", JudgeSettings(kind="rating", scale=(0, 100))).rating == 80.0


@pytest.mark.parametrize(
    "labels",
    [
        ("A.", "B.", "Neither!"),
        ("A+", "A-", "A"),
        ("(a)", "(b)", "(c)"),
        ("\uff21", "\uff22", "\uff23"),
        ("yes?", "no?", "-"),
    ],
)
def test_labels_may_end_in_punctuation(labels: tuple[str, str, str]):
    own = JudgeSettings(labels=Labels(first=labels[0], second=labels[1], tie=labels[2]))
    for label, preference in zip(labels, (1.0, 0.0, 0.5), strict=True):
        assert parse(f"[[{labels[0]}]] it was.\n[[{label}]]", own).preference == preference
        assert parse(f"**[[ {label.lower()} ]]**", own).preference == preference
        assert parse(label, own).preference == preference


def test_labels_that_read_alike_are_refused():
    with pytest.raises(ValueError, match="must differ"):
        Labels(first="A", second="\uff41")


def test_a_pattern_of_ones_own_is_not_fooled_by_emphasis_or_a_torn_mark():
    assert parse("Verdict: **two**", WORDS).preference == 0.0
    assert parse("Verdict: one. Then again, Verdict: **two**", WORDS).preference != 1.0
    brackets = JudgeSettings(pattern=r"\[\[([ABC])\]\]")
    assert parse("[[A]] at first. [[\u200bB]]", brackets).preference == 0.0
    assert parse("[[A]] at first. [[D]]", brackets).status == "unparsed"


def test_a_long_hostile_reply_is_read_in_time():
    for unit in ("[", "[*", "*", "\\", '"', " ", "\n", r"\boxed{", "[[A]] x "):
        parse("[[A]] [ answer is " + unit * 20_000, PAIR)
