"""Weights are shares of tokens, whatever the lengths of the documents."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.mix import mix

SOURCES = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=40), min_size=1, max_size=4)


def counts(mixture, source, size):
    return np.bincount(mixture.document[mixture.source == source], minlength=size)


@settings(max_examples=200, deadline=None)
@given(lengths=SOURCES, data=st.data(), budget=st.integers(60, 3000))
def test_each_source_is_within_half_a_document_of_its_target(lengths, data, budget):
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(lengths), max_size=len(lengths)))
    targets = [budget * weight / sum(weights) for weight in weights]
    # Where every share is less than a document, rounding to whole documents may leave none: the next test.
    assume(any(target >= max(source) for target, source in zip(targets, lengths, strict=True)))
    mixture = mix(lengths, weights, tokens=budget, seed=3)
    for number, (source, share) in enumerate(zip(lengths, mixture.shares, strict=True)):
        target = budget * weights[number] / sum(weights)
        assert abs(share.tokens - target) <= max(source) / 2 + 1e-6 * budget
        drawn = mixture.document[mixture.source == number]
        assert share.tokens == np.array(source)[drawn].sum()
        assert share.documents == len(drawn)


def test_a_budget_too_small_for_any_source_is_refused():
    with pytest.raises(DataError, match="gives no source half a document"):
        mix([[30], [30], [30], [30]], [1.0, 1.0, 1.0, 1.0], tokens=59, seed=0)


@settings(max_examples=100, deadline=None)
@given(lengths=SOURCES, data=st.data())
def test_without_a_budget_nothing_repeats_and_one_source_is_whole(lengths, data):
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(lengths), max_size=len(lengths)))
    mixture = mix(lengths, weights, tokens=None, seed=0)
    repeats = [counts(mixture, number, len(source)) for number, source in enumerate(lengths)]
    assert all(count.max(initial=0) <= 1 for count in repeats)
    assert any(count.min() == 1 for count in repeats)


@settings(max_examples=100, deadline=None)
@given(lengths=SOURCES)
def test_without_weights_every_document_comes_once(lengths):
    mixture = mix(lengths, None, tokens=None, seed=0)
    for number, source in enumerate(lengths):
        assert counts(mixture, number, len(source)).tolist() == [1] * len(source)


def test_a_budget_beyond_a_source_repeats_it_in_whole_passes_of_different_orders():
    mixture = mix([[10] * 20, [10] * 200], [1, 1], tokens=1000, seed=0)
    first = mixture.document[mixture.source == 0]
    assert np.bincount(first).tolist().count(3) == 10
    assert np.bincount(first).min() == 2
    assert sorted(first[:20]) == sorted(first[20:40]) == list(range(20))
    assert first[:20].tolist() != first[20:40].tolist()
    assert mixture.shares[0].epochs == 2.5
    assert np.bincount(mixture.document[mixture.source == 1]).max() == 1


def test_exact_passes_survive_floating_point():
    shares = mix([[7] * 10, [7] * 30], [0.1, 0.3], tokens=None, seed=0).shares
    assert [share.documents for share in shares] == [10, 30]


def test_every_beginning_of_the_mixture_holds_the_shares():
    rng = np.random.default_rng(0)
    lengths = [rng.integers(1, 30, 900), rng.integers(100, 300, 50)]
    mixture = mix(lengths, [0.7, 0.3], tokens=10_000, seed=1)
    sizes = np.array([lengths[s][d] for s, d in zip(mixture.source, mixture.document, strict=True)])
    first = np.cumsum(np.where(mixture.source == 0, sizes, 0))
    seen = np.cumsum(sizes)
    share = mixture.shares[0].share
    assert np.abs(first - share * seen).max() <= 300


def test_the_seed_decides_the_order_and_nothing_else_does():
    lengths = [list(range(1, 60)), list(range(1, 40))]

    def order(seed):
        mixture = mix(lengths, [1, 2], tokens=900, seed=seed)
        return list(zip(mixture.source.tolist(), mixture.document.tolist(), strict=True))

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_empty_documents_are_never_drawn():
    mixture = mix([[0, 5, 0, 5]], None, tokens=30, seed=0)
    assert set(mixture.document.tolist()) == {1, 3}


@pytest.mark.parametrize(("lengths", "tokens"), [([[5], [0]], None), ([[], [1]], None), ([[100]], 10)])
def test_a_mixture_that_cannot_be_is_an_error(lengths, tokens):
    with pytest.raises(DataError):
        mix(lengths, None, tokens=tokens, seed=0)


def test_a_temperature_flattens_the_shares():
    lengths = [[10] * 810, [10] * 90, [10] * 10]
    for temperature, powers in ((1.0, [81, 9, 1]), (2.0, [9, 3, 1]), (1e9, [1, 1, 1])):
        mixture = mix(lengths, None, tokens=6_000, seed=1, temperature=temperature)
        assert [share.target for share in mixture.shares] == pytest.approx([p / sum(powers) for p in powers])
        assert [share.tokens for share in mixture.shares] == pytest.approx(
            [6_000 * p / sum(powers) for p in powers], abs=5
        )


def test_without_a_temperature_and_a_budget_every_document_comes_once():
    mixture = mix([[7] * 30, [3] * 11], None, tokens=None, seed=1)
    assert counts(mixture, 0, 30).tolist() == [1] * 30
    assert counts(mixture, 1, 11).tolist() == [1] * 11
