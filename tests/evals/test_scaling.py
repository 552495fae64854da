"""Scaling laws: planted ones come back, with intervals that hold them, and the best models are those of a search."""

import numpy as np
import pytest
from posttrain.evals.stats.scaling import ParametricLaw, fit, isoflops

# Besiroglu et al. 2024 (arXiv:2404.10102), table 1.
LAW = ParametricLaw(1.8172, 482.01, 0.3478, 2085.43, 0.3658)


def planted(sizes=6, lengths=5, noise=0.0, seed=0):
    n = np.repeat(np.geomspace(4e7, 1e10, sizes), lengths)
    d = n * np.tile(np.geomspace(3, 200, lengths), sizes)
    return n, d, LAW.loss(n, d) * np.exp(np.random.default_rng(seed).normal(0, noise, len(n)))


def test_a_law_without_noise_comes_back():
    found = fit(*planted(), draws=0)
    for name in ("E", "A", "alpha", "B", "beta", "exponent"):
        assert getattr(found.law, name) == pytest.approx(getattr(LAW, name), rel=1e-5)
    assert np.abs(found.residuals).max() < 1e-8


def test_the_fit_is_a_minimum_of_the_published_objective():
    """Equation 3 of Hoffmann et al.: no step away from the fit makes the sum of Huber losses smaller."""
    n, d, y = planted(noise=0.01)
    law = fit(n, d, y, draws=0).law

    def objective(e, a, alpha, b, beta):
        off = np.abs(np.log(y) - np.log(np.exp(e) + np.exp(a) * n**-alpha + np.exp(b) * d**-beta))
        return np.where(off <= 1e-3, off**2 / 2, 1e-3 * (off - 5e-4)).sum()

    x = np.array([np.log(law.E), np.log(law.A), law.alpha, np.log(law.B), law.beta])
    least = objective(*x)
    assert least == pytest.approx(fit(n, d, y, draws=0).objective)
    rng = np.random.default_rng(1)
    for size in (1e-2, 1e-3, 1e-4):
        assert all(objective(*(x + size * rng.normal(size=5))) > least for _ in range(200))


def test_a_wild_run_moves_the_huber_fit_little_and_the_squares_much():
    n, d, y = planted(noise=0.001)
    y[3] *= 1.5
    robust, squares = fit(n, d, y, draws=0).law, fit(n, d, y, delta=None, draws=0).law
    assert abs(robust.alpha - LAW.alpha) < 0.02
    assert abs(squares.alpha - LAW.alpha) > 5 * abs(robust.alpha - LAW.alpha)


def test_intervals_hold_what_was_planted():
    """Of 95 in a hundred; ``benchmarks/scaling.py`` counts more of them."""
    held = 0
    for seed in range(10):
        found = fit(*planted(noise=0.002, seed=seed), draws=100, seed=seed)
        for name in ("alpha", "beta", "exponent"):
            estimate = found.estimate(lambda law, name=name: getattr(law, name))
            assert estimate.low is not None
            assert estimate.high is not None
            assert estimate.high - estimate.low < 0.2
            held += estimate.low <= getattr(LAW, name) <= estimate.high
    assert held >= 25


def test_a_further_run_lies_where_it_is_expected():
    inside = 0
    for seed in range(12):
        expected = fit(*planted(noise=0.002, seed=seed), draws=100).predict(7e10, 1.4e12)
        assert expected.low is not None
        assert expected.high is not None
        measured = LAW.loss(7e10, 1.4e12) * np.exp(np.random.default_rng(1000 + seed).normal(0, 0.002))
        inside += expected.low <= measured <= expected.high
    assert inside >= 10


@pytest.mark.parametrize("flops", [1e18, 5.76e23])
def test_the_best_model_is_that_of_a_search(flops):
    size, tokens = LAW.optimum(flops)
    assert 6 * size * tokens == pytest.approx(flops)
    sizes = size * np.geomspace(0.2, 5, 10001)
    assert sizes[LAW.loss(sizes, flops / 6 / sizes).argmin()] == pytest.approx(size, rel=1e-3)


def test_serving_asks_for_a_smaller_model_of_the_same_loss():
    size, tokens = LAW.optimum(1e22)
    loss = float(LAW.loss(size, tokens))
    assert LAW.cheapest(loss, 0.0) == pytest.approx((size, tokens), rel=1e-4)
    served = 5e12
    small, long = LAW.cheapest(loss, served)
    assert small < size
    assert LAW.loss(small, long) == pytest.approx(loss)
    sizes = size * np.geomspace(0.25, 2, 20001)
    rest = loss - LAW.E - LAW.A * sizes**-LAW.alpha
    tokens_needed = (LAW.B / np.maximum(rest, 1e-9)) ** (1 / LAW.beta)
    flops = np.where(rest > 0, 6 * sizes * tokens_needed + 2 * sizes * served, np.inf)
    assert sizes[flops.argmin()] == pytest.approx(small, rel=1e-3)
    with pytest.raises(ValueError, match="lowest loss"):
        LAW.cheapest(1.8, 0.0)


def test_runs_of_equal_compute_enclose_the_best_size():
    budgets = (1e19, 1e20, 1e21)
    best = np.repeat([LAW.optimum(flops)[0] for flops in budgets], 7)
    n = best * np.tile(np.geomspace(0.3, 3, 7), 3)
    d = np.repeat(budgets, 7) / 6 / n
    found = isoflops(n, d, LAW.loss(n, d))
    assert [one.runs for one in found] == [7, 7, 7]
    assert [one.parameters for one in found] == pytest.approx([LAW.optimum(flops)[0] for flops in budgets], rel=0.1)
    small = n < 0.9 * best  # of each compute only the models that are too small: three, and with 0.95 four
    assert isoflops(n[small], d[small], LAW.loss(n[small], d[small])) == []
    edge = np.concatenate([n[small], 0.95 * np.unique(best)])
    d = np.concatenate([d[small], np.array(budgets) / 6 / (0.95 * np.unique(best))])
    assert [one.parameters for one in isoflops(edge, d, LAW.loss(edge, d))] == [None, None, None]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n, d, y: (n[:5], d[:5], y[:5]), "six runs or more"),
        (lambda n, d, y: (np.full_like(n, 1e8), d, y), "three sizes"),
        (lambda n, d, y: (n, d, -y), "losses must be above zero"),
        (lambda n, d, y: (n, d, np.full_like(y, 2.0)), "do not say how they fall"),
        (lambda n, d, y: (n, d * np.nan, y), "tokens must be above zero"),
    ],
)
def test_runs_that_determine_no_law_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        fit(*change(*planted()), draws=0)
