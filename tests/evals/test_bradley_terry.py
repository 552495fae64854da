import math
from itertools import combinations

import numpy as np
import pytest
from posttrain.evals.errors import EvalError
from posttrain.evals.stats import bradley_terry
from posttrain.evals.stats.bradley_terry import MEAN, SCALE, components, fit, posterior

# Agresti, "Categorical Data Analysis", 2nd edition (2002), table 10.10: wins of the row's team over the column's in the
# American League's Eastern Division, 1987, and table 10.11: the fitted strengths, Baltimore being 0.
TEAMS = ("Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore")
WINS = (
    (0, 7, 9, 7, 7, 9, 11),
    (6, 0, 7, 5, 11, 9, 9),
    (4, 6, 0, 7, 7, 8, 12),
    (6, 8, 6, 0, 6, 7, 10),
    (6, 2, 6, 7, 0, 7, 12),
    (4, 4, 5, 6, 6, 0, 6),
    (2, 4, 1, 3, 1, 7, 0),
)
STRENGTHS = (1.58, 1.44, 1.29, 1.25, 1.11, 0.68, 0.0)
# Citations between four journals (Stigler, Statistical Science 9 (1994)): the row is cited by the column. The fit is
# that of Turner and Firth, "Bradley-Terry models in R: the BradleyTerry2 package", Journal of Statistical Software
# 48(9) (2012), Biometrika being 0.
JOURNALS = ("Biometrika", "Comm Statist", "JASA", "JRSS-B")
CITED = ((0, 730, 498, 221), (33, 0, 68, 17), (320, 813, 0, 142), (284, 276, 325, 0))
EXPORT = (0.0, -2.94907, -0.47957, 0.26895)


def played(names, wins):
    pairs = [(a, b) for i, a in enumerate(names) for j, b in enumerate(names) for _ in range(wins[i][j])]
    return [a for a, _ in pairs], [b for _, b in pairs], [1.0] * len(pairs)


def thetas(ranking, zero):
    found = dict(zip(ranking.names, ranking.rating, strict=True))
    return {name: (rating - found[zero]) / SCALE for name, rating in found.items()}


@pytest.mark.parametrize(
    ("names", "wins", "published", "within"),
    [(TEAMS, WINS, STRENGTHS, 0.005), (JOURNALS, CITED, EXPORT, 0.0005)],
)
def test_ratings_are_those_of_the_textbook(names, wins, published, within):
    zero = names[published.index(0.0)]
    found = thetas(fit(*played(names, wins), draws=0), zero)
    for name, strength in zip(names, published, strict=True):
        assert abs(found[name] - strength) <= within


def test_two_players_differ_by_the_log_odds_on_elos_scale():
    found = fit(["new"] * 100, ["old"] * 100, [1.0] * 60 + [0.5] * 20 + [0.0] * 20, draws=0)
    assert found.names == ("new", "old")
    assert found.rating[0] - found.rating[1] == pytest.approx(400 * math.log10(70 / 30), rel=1e-4)
    assert sum(found.rating) / 2 == pytest.approx(MEAN)


def test_the_posterior_of_two_is_the_closed_form():
    wins = np.array([[0.0, 300.0], [100.0, 0.0]])
    theta, covariance = posterior(wins, wins + wins.T, 1e-6)
    assert theta[0] - theta[1] == pytest.approx(math.log(3), abs=1e-4)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert variance == pytest.approx(1 / (400 * 0.75 * 0.25), rel=1e-4)


def test_a_tie_is_half_a_win_for_each_and_a_preference_its_share_of_one():
    a, b = ["x"] * 4 + ["y"] * 4, ["y"] * 4 + ["z"] * 4
    hard = fit(a * 2, b * 2, ([1, 0] * 2 + [1, 1, 1, 0]) * 2, draws=0)
    soft = fit(a, b, [0.5] * 4 + [0.75] * 4, draws=0)
    assert thetas(hard, "x") == pytest.approx(thetas(soft, "x"), abs=1e-3)


def test_neither_order_of_rows_nor_side_of_a_player_matters():
    rng = np.random.default_rng(0)
    a, b, _ = battles(rng, 40)
    preference = rng.random(len(a))
    once = fit(a, b, preference, draws=0)
    turned = fit(b[::-1], a[::-1], 1 - preference[::-1], draws=0)
    assert thetas(once, 0) == pytest.approx(thetas(turned, 0))


def battles(rng, prompts: int, own: float = 1.0):
    """Five players who meet in all pairs on each prompt, each with its own luck on a prompt; a fifth are ties."""
    theta = np.array([0.9, 0.4, 0.0, -0.3, -1.0])
    one, other = (np.array(side) for side in zip(*combinations(range(5), 2), strict=True))
    skill = theta + own * rng.normal(size=(prompts, 5))
    chance = 1 / (1 + np.exp(skill[:, other] - skill[:, one]))
    outcome = np.where(rng.random(chance.shape) < 0.2, 0.5, rng.random(chance.shape) < chance)
    return np.tile(one, prompts), np.tile(other, prompts), (outcome.ravel(), np.repeat(np.arange(prompts), 10))


@pytest.mark.slow
def test_95_percent_intervals_of_ratings_cover_the_truth_93_to_97_times_in_100():
    """800 replicates of five players: a standard error of at most .8%, so the bounds are 2.6 of them away or more."""
    rng = np.random.default_rng(1)
    a, b, (outcome, _) = battles(rng, 200_000)
    truth = dict(zip(*(lambda r: (r.names, r.rating))(fit(a, b, outcome, draws=0)), strict=True))
    hits = naive = 0
    for seed in range(800):
        a, b, (outcome, prompts) = battles(rng, 50)
        found = fit(a, b, outcome, prompts, draws=500, seed=seed)
        hits += sum(
            low <= truth[name] <= high for name, low, high in zip(found.names, found.low, found.high, strict=True)
        )
        if seed < 200:
            plain = fit(a, b, outcome, draws=500, seed=seed)
            naive += sum(
                low <= truth[name] <= high for name, low, high in zip(plain.names, plain.low, plain.high, strict=True)
            )
    assert 0.93 <= hits / 4000 <= 0.97
    assert naive / 1000 < 0.90  # as if each battle were a prompt of its own


def test_equal_players_are_told_apart_no_more_often_than_any_two_named_beforehand():
    rng = np.random.default_rng(0)
    apart = 0
    for seed in range(100):
        a, b, (_, prompts) = battles(rng, 40)
        found = fit(a, b, rng.integers(0, 2, len(a)).astype(float), prompts, draws=500, seed=seed)
        apart += found.differences[found.names[:2]].p <= 0.05
    assert apart <= 12  # the first two of five by chance


def test_who_is_better_lies_significantly_above_and_ratings_lie_within_their_intervals():
    rng = np.random.default_rng(0)
    a, b, (outcome, prompts) = battles(rng, 400)
    found = fit(a, b, outcome, prompts)
    assert found.names == (0, 1, 2, 3, 4)
    assert len(found.differences) == 10
    assert found.differences[0, 4].p < found.differences[2, 3].p
    for place in range(5):
        assert found.low[place] < found.rating[place] < found.high[place]
    for (first, second), difference in found.differences.items():
        assert difference.value == pytest.approx(found.rating[first] - found.rating[second])
    assert fit(a, b, outcome, prompts) == found  # the same seed, the same ranking


def test_nothing_but_ties_supports_no_interval():
    found = fit(["a", "b", "c"] * 5, ["b", "c", "a"] * 5, [0.5] * 15)
    assert found.rating == pytest.approx((MEAN,) * 3)
    assert (found.low, found.high, found.differences) == ((None,) * 3, (None,) * 3, {})


def test_who_never_won_does_not_move_the_mean_of_the_others():
    found = fit(["x", "y", "x", "y"] * 10, ["y", "x", "null", "null"] * 10, [1, 1, 1, 1] * 10)
    assert sum(found.rating[:2]) / 2 == pytest.approx(MEAN)


def test_a_player_that_half_the_resamples_miss_has_no_interval_and_spoils_no_other():
    a, b = ["x", "y"] * 30 + ["rare", "x"], ["y", "x"] * 30 + ["x", "rare"]
    prompts = [*range(60), "one prompt", "one prompt"]
    found = fit(a, b, [1, 0.5] * 31, prompts)
    ends = {name: (low, high) for name, low, high in zip(found.names, found.low, found.high, strict=True)}
    assert ends["rare"] == (None, None)
    assert ends["x"][0] < ends["x"][1]


def test_who_never_lost_has_no_upper_end_and_moves_nobody_else():
    rng = np.random.default_rng(0)
    a, b, (outcome, prompts) = battles(rng, 50)
    names = np.array(["a", "b", "c", "d", "e"])
    more = [*names[a], *["star"] * 100], [*names[b], *["a", "e"] * 50]
    alone = fit(names[a].tolist(), names[b].tolist(), outcome, prompts)
    found = fit(*more, [*outcome, *[1.0] * 100], [*prompts, *np.arange(100) // 2])
    assert found.names[0] == "star"
    assert found.high[0] is None
    assert found.rating[1] < found.low[0] < found.rating[0]
    assert not any("star" in pair for pair in found.differences)  # resamples of it know no spread
    assert any("star won every battle" in notice for notice in found.notices)
    assert dict(zip(found.names, found.rating, strict=True))["c"] == pytest.approx(
        dict(zip(alone.names, alone.rating, strict=True))["c"], abs=0.5
    )


def test_three_wins_say_less_than_thirty_and_thirty_of_three_prompts_no_more_than_three():
    prompts = ["same"] * 10 + ["another"] * 10 + ["third"] * 10
    few, many = fit(["x"] * 3, ["y"] * 3, [1] * 3), fit(["x"] * 30, ["y"] * 30, [1] * 30)
    repeated = fit(["x"] * 30, ["y"] * 30, [1] * 30, prompts)
    assert (many.low[1], many.high[0]) == (None, None)
    reach = [found.low[0] - found.rating[1] for found in (few, repeated, many)]  # what the winner lies above at least
    assert reach[0] == pytest.approx(reach[1], abs=1)
    assert reach[1] < 0 < reach[2]


def test_the_end_of_who_never_lost_is_the_exact_binomial_one():
    found = fit(["x"] * 30 + ["y"] * 10 + ["z"] * 10, ["y"] * 30 + ["z"] * 10 + ["y"] * 10, [1] * 30 + [1, 0] * 10)
    rating = dict(zip(found.names, found.rating, strict=True))
    # Clopper and Pearson: 30 of 30 has a probability of 2.5% at .025^(1/30).
    share = 0.025 ** (1 / 30)
    assert (found.low[0] - rating["y"]) / SCALE == pytest.approx(math.log(share / (1 - share)), abs=1e-6)


def test_a_gap_that_nobody_crossed_is_told():
    inside = [("a", "b", 1), ("b", "a", 1), ("c", "d", 1), ("d", "c", 1)] * 10
    rows = [*inside, ("a", "c", 1), ("b", "d", 1)]
    found = fit(*(list(column) for column in zip(*rows, strict=True)), draws=0)
    assert any("one side won every battle" in notice for notice in found.notices)
    whole = [*rows, ("c", "a", 1)]
    assert fit(*(list(column) for column in zip(*whole, strict=True)), draws=0).notices == ()


def test_players_that_never_met_are_an_error_that_names_them():
    a, b = ["a", "b", "c"], ["b", "a", "d"]
    with pytest.raises(EvalError, match=r"2 groups of players never met.*a, b; c, d"):
        fit(a, b, [1, 1, 1])
    assert components(a, b) == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    ("a", "b", "preference", "clusters"),
    [
        ([], [], [], None),
        (["a"], ["b"], [1.5], None),
        (["a"], ["b"], [math.nan], None),
        (["a"], ["a"], [1.0], None),
        (["a"], ["b", "c"], [1.0], None),
        (["a"], ["b"], [1.0], [1, 2]),
    ],
)
def test_battles_that_are_none_are_refused(a, b, preference, clusters):
    with pytest.raises(ValueError, match=r"battle|preference|itself|labels"):
        fit(a, b, preference, clusters)


def test_one_prompt_gives_ratings_without_intervals():
    found = fit(["a", "b", "a"], ["b", "a", "b"], [1, 1, 1], ["same"] * 3)
    assert found.low == found.high == (None, None)
    assert found.differences == {}


def test_merging_clusters_of_one_battle_changes_no_distribution(monkeypatch):
    rng = np.random.default_rng(0)
    a, b, (outcome, _) = battles(rng, 300)
    single = np.arange(len(a))
    single[:40] = 0  # a few battles share a prompt, which must survive
    plain = fit(a, b, outcome, single, draws=4000)
    monkeypatch.setattr(bradley_terry, "_MANY", 100)
    merged = fit(a, b, outcome, single, draws=4000, seed=1)
    monkeypatch.setattr(bradley_terry, "_DENSE", 0)
    sparse = fit(a, b, outcome, single, draws=4000, seed=2)
    for other in (merged, sparse):
        assert other.rating == pytest.approx(plain.rating)
        assert other.low == pytest.approx(plain.low, abs=1.5)
        assert other.high == pytest.approx(plain.high, abs=1.5)
