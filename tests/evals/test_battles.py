"""Single judgments make battles: a verdict that turns with the order is no verdict."""

from typing import Any

import pytest
from posttrain.evals.judging.judgments import Battle, battles

from .judged_fixtures import answer, judgment

ONE, TWO, THREE = (
    ("w1", "a/final", answer(0, "one")),
    ("w2", "b/final", answer(0, "two")),
    ("w3", "c/final", answer(0, "two")),
)


def battle(*preferences: float | None, orders: str = "both", **fields: Any) -> Battle:
    """Returns the battle of judgments, in the two orders by turns unless told that there is one."""
    names = ["candidate-first", "candidate-second"] if orders == "both" else ["candidate-first"]
    told = [
        judgment(
            ONE,
            TWO,
            order=names[number % len(names)],
            repeat=number // len(names),
            preference=value,
            status="unparsed" if value is None else "judged",
            **fields,
        )
        for number, value in enumerate(preferences)
    ]
    [found] = battles(told)
    return found


@pytest.mark.parametrize(
    ("told", "preference", "flipped"),
    [
        ((1.0, 1.0), 1.0, False),
        ((1.0, 0.0), 0.5, True),
        ((1.0, 0.5), 0.5, False),  # one order sees a tie: the judge is not sure, and half a win is nobody's verdict
        ((0.5, 0.5), 0.5, False),
        ((0.9, 0.3), 0.6, True),  # probabilities are averaged: they say how sure the judge is
        ((0.9, 0.7), 0.8, False),
        ((1.0, None), None, None),  # the order that would have told is missing
        ((None, None), None, None),
    ],
)
def test_both_orders_make_one_verdict(told: tuple[float | None, ...], preference: float | None, flipped: bool | None):
    found = battle(*told)
    assert found.preference == (None if preference is None else pytest.approx(preference))
    assert found.flipped is flipped
    assert found.asked == 2
    assert found.judged == sum(value is not None for value in told)


def test_one_order_is_taken_as_it_is():
    found = battle(1.0, orders="one")
    assert (found.preference, found.flipped) == (1.0, None)


def test_repeats_are_averaged_within_their_order():
    assert battle(1.0, 0.0, 1.0, 1.0).preference == pytest.approx(0.75)  # (1 + 1)/2 and (0 + 1)/2
    assert battle(1.0, 1.0, None, 1.0).preference == 1.0  # a repeat that failed leaves the others


def test_two_opponents_with_the_same_answer_are_two_battles():
    found = battles([judgment(ONE, TWO), judgment(ONE, THREE)])
    assert {item.opponent for item in found} == {"w2", "w3"}
    assert judgment(ONE, TWO).key != judgment(ONE, THREE).key


def test_two_samples_with_the_same_answer_both_count():
    assert len(battles([judgment(ONE, TWO, sample=sample) for sample in (0, 1)])) == 2


def test_ratings_are_no_battles():
    assert battles([judgment(ONE, None, order="alone", preference=None, rating=7.0)]) == []
