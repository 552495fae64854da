"""Weights are shares of tokens, whatever the lengths of the documents."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.mix import MixSchedule, Phase, as_given, mix, sort_by

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


WEIGHTS = st.lists(st.floats(0.05, 10), min_size=3, max_size=3).map(tuple)
PHASES = st.lists(st.builds(Phase, st.floats(0.05, 5), WEIGHTS, WEIGHTS), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(phases=PHASES, budget=st.integers(2_000, 20_000))
def test_the_tokens_of_each_phase_and_source_are_those_asked_for_to_one_document(phases, budget):
    rng = np.random.default_rng(budget)
    lengths = [rng.integers(1, 40, 300), rng.integers(20, 90, 60), rng.integers(1, 9, 500)]
    mixture = mix(lengths, None, tokens=budget, seed=1, phases=phases)
    parts = sum(phase.share for phase in phases)
    sizes = np.array([lengths[s][d] for s, d in zip(mixture.source, mixture.document, strict=True)])
    bounds = [*mixture.begins(), len(sizes)]
    for phase, found, begin, end in zip(phases, mixture.phases, bounds, bounds[1:], strict=False):
        assert found.documents == end - begin
        assert found.tokens == sizes[begin:end].sum()
        for number, longest in enumerate(map(max, lengths)):
            # a share that goes evenly from one to another is their mean
            mean = (phase.start[number] / sum(phase.start) + phase.end[number] / sum(phase.end)) / 2
            given_here = sizes[begin:end][mixture.source[begin:end] == number].sum()
            assert found.target[number] == pytest.approx(mean)
            assert found.share[number] * found.tokens == pytest.approx(given_here)
            # half a document at either end, and half of one by which the whole source is off
            assert abs(given_here - budget * phase.share / parts * mean) <= 1.5 * longest + 1e-6 * budget


def test_a_share_that_changes_evenly_is_met_at_every_token():
    lengths = [[5] * 2000, [5] * 2000]
    phases = [Phase(1, (1.0, 0.0), (0.0, 1.0))]
    mixture = mix(lengths, None, tokens=10_000, seed=0, phases=phases)
    gone = np.arange(1, 2001) / 2000
    given_by_first = np.cumsum(mixture.source == 0) / 2000
    # the integral of 1 - t, up to one document
    assert np.abs(given_by_first - (gone - gone**2 / 2)).max() <= 1.5 / 2000


def test_a_schedule_inverts_what_it_gives():
    schedule = MixSchedule([Phase(3, (1, 3), (1, 3)), Phase(1, (4, 0), (0, 4)), Phase(2, (1, 0), (1, 1))])
    gone = np.linspace(0.01, 0.99, 99)
    first = np.piecewise(
        gone,
        [gone < 1 / 2, (gone >= 1 / 2) & (gone < 2 / 3), gone >= 2 / 3],
        [
            lambda t: t / 4,
            lambda t: 1 / 8 + (t - 1 / 2) - 3 * (t - 1 / 2) ** 2,
            lambda t: 1 / 8 + 1 / 12 + (t - 2 / 3) - 0.75 * (t - 2 / 3) ** 2,
        ],
    )
    total = 1 / 8 + 1 / 12 + 1 / 4
    assert schedule.proportions == pytest.approx([total, 1 - total])
    assert schedule.places(0, first / total) == pytest.approx(gone)
    assert schedule.places(1, (gone - first) / (1 - total)) == pytest.approx(gone)


def test_one_phase_is_a_mixture_by_weights():
    lengths = [[3, 4, 5] * 50, [7, 1] * 80]
    plain = mix(lengths, [0.25, 0.75], tokens=400, seed=4)
    phased = mix(lengths, None, tokens=400, seed=4, phases=[Phase(1, (1, 3), (1, 3))])
    assert phased.source.tolist() == plain.source.tolist()
    assert phased.document.tolist() == plain.document.tolist()
    assert phased.shares == plain.shares


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), budget=st.integers(100, 5_000))
def test_weighted_rows_come_as_often_as_their_weights_say_and_fill_the_budget(seed, budget):
    rng = np.random.default_rng(seed)
    lengths, weights = rng.integers(1, 30, 80), rng.choice([0.0, 0.3, 1.0, 2.5], 80)
    mixture = mix([lengths], None, tokens=budget, seed=seed, row_weights=[weights])
    times = counts(mixture, 0, 80)
    means = weights * budget / (lengths @ weights)
    assert abs(int(times @ lengths) - budget) <= lengths.max()
    assert not times[weights == 0].any()
    assert (np.floor(means + 1e-9) <= times).all()
    assert (times <= np.floor(means + 1e-9) + 1).all()


def test_the_mean_number_of_times_is_the_weight():
    weights = np.tile([0.1, 0.4, 0.9, 1.7, 3.0], 8)
    lengths = np.random.default_rng(0).integers(5, 15, 40)
    drawn = [counts(mix([lengths], None, tokens=None, seed=s, row_weights=[weights]), 0, 40) for s in range(400)]
    found = np.mean(drawn, axis=0).reshape(8, 5).mean(axis=0)  # 3,200 draws of each weight: 3 sd are below .03
    assert found == pytest.approx([0.1, 0.4, 0.9, 1.7, 3.0], abs=0.03)


def test_copies_of_a_weighted_row_lie_apart():
    mixture = mix([[10] * 50], None, tokens=None, seed=0, row_weights=[np.full(50, 4.0)])
    for quarter in mixture.document.reshape(4, 50):
        assert np.unique(quarter).size > 30  # of 50 draws with returning, 32 would differ
    first = np.array([np.flatnonzero(mixture.document == number).tolist() for number in range(50)]) // 50
    assert np.abs(first - [0, 1, 2, 3]).max() <= 1


def test_as_given_is_source_by_source_and_pass_by_pass():
    mixture = as_given(mix([[5] * 4, [5] * 40], [1, 1], tokens=100, seed=0))
    assert mixture.source.tolist() == [0] * 10 + [1] * 10
    first = mixture.document[:10].tolist()
    assert first[:8] == [0, 1, 2, 3] * 2
    assert first[8:] == sorted(first[8:])
    assert mixture.document[10:].tolist() == sorted(mixture.document[10:].tolist())


def test_sorting_leaves_equals_where_they_were_and_nothing_out():
    mixture = mix([[1] * 30, [1] * 30], None, tokens=None, seed=0)
    values = [np.arange(30) % 3, np.arange(30) % 2]
    for descending in (False, True):
        found = sort_by(mixture, values, descending=descending)
        keys = [values[s][d] for s, d in zip(found.source, found.document, strict=True)]
        assert keys == sorted(keys, reverse=descending)
        pairs = list(zip(found.source.tolist(), found.document.tolist(), strict=True))
        before = list(zip(mixture.source.tolist(), mixture.document.tolist(), strict=True))
        assert sorted(pairs) == sorted(before)
        largest = [pair for pair in pairs if values[pair[0]][pair[1]] == 1]
        assert largest == [pair for pair in before if values[pair[0]][pair[1]] == 1]
