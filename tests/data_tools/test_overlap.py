"""Each paper's rule on texts whose overlap is known by counting, and what an index that is not exact would miss."""

from collections.abc import Callable

import numpy as np
import pytest
from posttrain.data_tools.ngrams import split_words, words_in
from posttrain.data_tools.overlap import RULES, SHORTEST, Item, ItemMatch, Overlap, Rule, text_of, usual_n


def words(first: int, last: int) -> str:
    """Returns the words w<first> to w<last - 1>."""
    return " ".join(f"w{number}" for number in range(first, last))


def other(count: int, name: str = "x") -> str:
    return " ".join(f"{name}{number}" for number in range(count))


def overlap_of(rule: Rule, *texts: str) -> Overlap:
    return Overlap(rule, [Item(str(number), text) for number, text in enumerate(texts)])


def seen(rule: str, item: str, *rows: str) -> bool:
    overlap = overlap_of(RULES[rule], item, words(500, 600))
    overlap.look(split_words(rows))
    assert not overlap.seen()[1]
    return bool(overlap.seen()[0])


@pytest.mark.parametrize(
    ("rule", "rows", "expected"),
    [
        ("gpt3", [words(10, 23)], True),  # one 13-gram
        ("gpt3", [words(10, 22)], False),
        ("palm", [words(0, 30)], False),  # 23 of 33 8-grams are .697
        ("palm", [words(0, 31)], True),  # 24 are .727
        ("palm", [words(0, 20), words(13, 40)], True),  # several rows together
        ("llama3", [words(0, 10), words(20, 30)], True),  # 20 of 40 words
        ("llama3", [words(0, 10), words(20, 29)], False),
        ("tulu3", [words(0, 20)], False),  # half is not more than half
        ("tulu3", [words(0, 21)], True),
        ("tulu3", [words(0, 20), words(20, 40)], False),  # no single row
        ("llama2", [words(0, 32)], True),  # 32 of 40 are .8
        ("llama2", [words(0, 31)], False),
        ("llama2", [words(0, 10), words(10, 20), words(20, 30), words(30, 40)], False),  # none longer than ten
    ],
)
def test_a_rule_counts_as_its_paper_says(rule: str, rows: list[str], expected: bool) -> None:
    assert seen(rule, words(0, 40), *(f"{other(5)} {row} {other(7, 'y')}" for row in rows)) is expected


@pytest.mark.parametrize(
    ("changed", "expected"),
    [((12, 15, 20, 25), True), ((12, 15, 20, 25, 31), False), ((5,), True), ((39,), True), ((3, 9, 16), False)],
)
def test_llama2_forgives_four_words_after_the_first_ones(changed: tuple[int, ...], expected: bool) -> None:
    row = [f"other{number}" if number in changed else f"w{number}" for number in range(40)]
    assert seen("llama2", words(0, 40), " ".join(row)) is expected


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize(
    "written", [lambda t: t, str.upper, lambda t: t.replace(" ", "\n"), lambda t: f"“{t}”, he said"]
)
def test_case_line_breaks_and_marks_hide_nothing(rule: str, written: Callable[[str], str]) -> None:
    assert seen(rule, words(0, 40), f"{other(30)}: {written(words(0, 40))}. {other(30, 'y')}")


def test_numbers_are_words() -> None:
    item = "Ann has 3 apples and buys 4 more for 5 dollars each so she pays"
    assert not seen("gpt3", item, item.replace("4", "6"))
    assert seen("gpt3", item, item)


@pytest.mark.parametrize("rule", list(RULES))
def test_a_short_item_is_found_as_a_whole_with_its_answer(rule: str) -> None:
    overlap = Overlap(RULES[rule], [Item("a", "What is 28 + 6?", "34"), Item("b", "Say hello", "hello")])
    assert overlap.short.tolist() == [True, True]
    assert overlap.lost.tolist() == [False, True]  # too little to tell it from any other text
    rows = [
        "What is 28 + 6?\nIt is 35, or so I think, or 34.",  # its answer does not come soon
        "Question: what is 28 + 6?\nThe answer is: 34.",
        "what is 28 + 61? 34",
        "Say hello hello",
    ]
    assert [(match.row, match.item) for match in overlap.look(split_words(rows))] == [(1, 0)]
    assert overlap.seen().tolist() == [True, False]
    assert overlap.evidence()[0].span == "what is 28 6 34"


def test_the_evidence_is_the_longest_run_of_the_row_that_holds_most() -> None:
    overlap = overlap_of(RULES["gpt3"], words(0, 40))
    assert not overlap.look(split_words([other(20)] * 100))
    made = overlap.look(
        split_words([words(0, 13), f"{words(2, 16)} and {words(20, 38)} and {words(0, 13)}", words(0, 9)])
    )
    assert [(match.row, match.item) for match in made] == [(100, 0), (101, 0)]
    # 13 words make one 13-gram, those from the 2nd to the 16th two, those to the 38th six; the first is there as well.
    assert overlap.evidence()[0] == ItemMatch(101, 0, 9 / 28, words(20, 38), True)


def plain(rule: Rule, item: str, rows: list[str]) -> tuple[bool, list[bool]]:
    """Says by loops whether an item is seen in all rows, and which single row has enough of it; without skips."""
    mine = words_in(item)
    units = len(mine) if rule.of == "words" else len(mine) - rule.n + 1  # type: ignore[operator]
    held: list[set[int]] = []
    for row in map(words_in, rows):
        grams = {tuple(row[i : i + rule.n]) for i in range(len(row))}  # type: ignore[operator]
        found = {i for i in range(len(mine) - rule.n + 1) if tuple(mine[i : i + rule.n]) in grams}  # type: ignore[operator]
        held.append({i + k for i in found for k in range(rule.n)} if rule.of == "words" else found)  # type: ignore[operator]

    def enough(some: set[int]) -> bool:
        least = rule.share * units
        return bool(some) and (len(some) > least if rule.strictly else len(some) >= least)

    alone = [enough(some) for some in held]
    return any(alone) if rule.one_row else enough(set().union(*held)), alone


@pytest.mark.parametrize("rule", [*(Rule("few", 3, of, 0.7, one, one) for of in ("words", "ngrams") for one in (0, 1))])
def test_all_rows_at_once_or_a_few_at_a_time_are_what_plain_loops_find(rule: Rule) -> None:
    draw = np.random.default_rng(0)
    items = [" ".join(f"v{word}" for word in draw.integers(0, 4, draw.integers(5, 30))) for _ in range(30)]
    rows = [" ".join(f"v{word}" for word in draw.integers(0, 4, draw.integers(0, 40))) for _ in range(60)]
    whole, parts = overlap_of(rule, *items), overlap_of(rule, *items)
    one = whole.look(split_words(rows))
    several = [match for begin in range(0, 60, 7) for match in parts.look(split_words(rows[begin : begin + 7]))]
    assert one == several
    assert (whole.seen() == parts.seen()).all()
    assert whole.evidence() == parts.evidence()
    expected = [plain(rule, item, rows) for item in items]
    assert whole.seen().tolist() == [seen for seen, _ in expected]
    alone = {(row, item) for item, (_, found) in enumerate(expected) for row, is_so in enumerate(found) if is_so}
    assert {(match.row, match.item) for match in one} == alone
    assert 0 < len(alone) < 1800


def test_a_benchmarks_n_is_the_5th_percentile_of_its_lengths_within_8_and_13() -> None:
    lengths = [[10] * 3 + [40] * 17, [3] * 20, [99] * 20]
    items = [[Item("x", words(0, length - 2), "the answer") for length in some] for some in lengths]
    assert [usual_n(some) for some in items] == [10, 8, 13]


def test_a_question_is_looked_for_alone_where_it_is_long_enough_and_else_with_its_answer() -> None:
    items = [Item("a", words(0, 20), words(100, 150)), Item("b", words(200, 206), words(300, 306))]
    overlap = Overlap(RULES["tulu3"], items)
    overlap.look(split_words([words(0, 20), words(200, 206), f"{words(100, 150)} {words(300, 306)}"]))
    assert overlap.seen().tolist() == [True, False]
    overlap.look(split_words([f"{words(200, 206)}\n{words(300, 306)}"]))
    assert overlap.seen().tolist() == [True, True]


@pytest.mark.parametrize("rule", list(RULES))
def test_an_answer_may_stand_apart_from_a_question_that_is_too_short_alone(rule: str) -> None:
    overlap = Overlap(RULES[rule], [Item("a", words(0, 7), words(100, 107))])
    found = overlap.look(
        split_words([f"user\n{words(0, 7)}\nassistant\n{words(100, 107)}", words(0, 7), words(100, 107)])
    )
    assert [(match.row, match.share) for match in found] == [(0, 1.0)]
    assert overlap.seen().all()


def test_no_items_and_no_rows_are_no_trouble() -> None:
    overlap = Overlap(RULES["gpt3"], [])
    assert overlap.look(split_words(["a b c"])) == []
    assert overlap.look(split_words([])) == []
    assert overlap.seen().tolist() == []


def test_the_text_of_a_row_is_all_that_it_holds_in_order() -> None:
    row = {
        "id": 3,
        "messages": [{"role": "user", "content": "Why?"}, {"content": None}],
        "ok": True,
        "more": ["b", 1.5],
    }
    assert text_of(row).split("\n") == ["3", "user", "Why?", "b", "1.5"]


def test_short_questions_of_any_length_are_found_as_a_loop_finds_them() -> None:
    draw = np.random.default_rng(1)
    lists = [[f"v{word}" for word in draw.integers(0, 3, length)] for length in draw.integers(1, 12, 40)]
    items = [Item(str(number), " ".join(found), "so it is") for number, found in enumerate(lists)]
    rows = [[f"v{word}" for word in draw.integers(0, 3, draw.integers(0, 12))] + ["so", "it", "is"] for _ in range(80)]
    overlap = Overlap(RULES["gpt3"], items, 13)
    found = {(match.row, match.item) for match in overlap.look(split_words([" ".join(row) for row in rows]))}
    expected = {
        (there, number)
        for there, row in enumerate(rows)
        for number, mine in enumerate(lists)
        if len(mine) + 3 >= SHORTEST
        and any(
            row[at : at + len(mine)] == mine and len(row) - at - len(mine) <= 3 + 4
            for at in range(len(row) - 2 - len(mine))
        )
    }
    assert found == expected
    assert 20 < len(found) < 3000
