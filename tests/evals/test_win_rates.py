import math
from dataclasses import replace

import numpy as np
import pytest
from posttrain.evals.judging.judgments import Battle
from posttrain.evals.stats.win_rates import (
    all_rates,
    at_equal_length,
    counts,
    fit,
    length_controlled,
    pool_difficulty,
    rates,
    win_rate,
)


def battle(
    prompt: int, preference: float | None, lengths: tuple[int, int] = (100, 100), candidate: str = "new"
) -> Battle:
    return Battle(
        judge="rules",
        judge_version="1",
        task="chat",
        prompt_key=f"key {prompt}",
        prompt_id=str(prompt),
        category=None,
        sample=0,
        candidate=candidate,
        opponent="old",
        candidate_length=lengths[0],
        opponent_length=lengths[1],
        preference=preference,
        flipped=None,
        judged=int(preference is not None),
        asked=1,
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def judged(rng, n: int, *, length: float = 1.0, level: float = 0.3, samples: int = 1, own: float = 0.0):
    """Votes of a judge who likes long answers: preferences, differences of length, prompts."""
    prompts = np.repeat(np.arange(n), samples)
    delta = rng.normal(100, 300, n * samples)
    logit = length * np.tanh(delta / delta.std(ddof=1)) + level + own * rng.normal(size=n)[prompts]
    return (rng.random(len(prompts)) < sigmoid(logit)).astype(float), delta, prompts


def test_a_win_rate_has_alpaca_evals_standard_error_and_counts():
    preferences = [1.0, 0.9, 0.5, 0.2, 0.0]
    found, count = win_rate(preferences), counts(preferences)
    assert found.value == pytest.approx(0.52)
    assert found.stderr == pytest.approx(np.std(preferences, ddof=1) / math.sqrt(5))
    assert (count.wins, count.losses, count.draws, count.total) == (2, 2, 1, 5)
    assert 0 < found.low < found.value < found.high < 1


@pytest.mark.parametrize("values", [[], [1.2], [math.nan], [-0.1, 0.5]])
def test_preferences_outside_their_range_are_refused(values):
    for function in (win_rate, counts):
        with pytest.raises(ValueError, match="preference"):
            function(values)


@pytest.mark.parametrize("level", [0.0, 2.2])
@pytest.mark.parametrize("samples", [1, 4])
def test_95_percent_intervals_of_win_rates_cover_the_truth_93_to_97_times_in_100(level, samples):
    """2,000 replicates: if the coverage is 95%, the bounds are four standard errors of the simulation away."""
    rng = np.random.default_rng([round(level), samples])
    own = 1.5 if samples > 1 else 0.0
    truth = judged(rng, 400_000, level=level, length=0, own=own)[0].mean()
    hits = naive = 0
    for _ in range(2000):
        preferences, _, prompts = judged(rng, 60, level=level, length=0, samples=samples, own=own)
        found, plain = win_rate(preferences, prompts), win_rate(preferences)
        hits += found.low <= truth <= found.high
        naive += plain.low <= truth <= plain.high
    assert 0.93 <= hits / 2000 <= 0.97
    assert samples == 1 or naive / 2000 < 0.93


def test_the_regression_finds_the_optimum_that_liblinear_stops_near():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    features = np.stack([rng.normal(size=300), rng.normal(size=300), np.ones(300)], axis=1)
    labels, weights = rng.random(300), rng.random(300) + 0.1
    twice = np.concatenate([features, features])
    for strength in (0.01, 0.1, 2.0, 1e4):
        model = LogisticRegression(
            l1_ratio=1, solver="liblinear", C=strength, fit_intercept=False, tol=1e-10, max_iter=10_000
        )
        model.fit(twice, [1] * 300 + [0] * 300, sample_weight=np.r_[labels * weights, (1 - labels) * weights])
        found = fit(features, labels, weights[None], strength, np.zeros((1, 3)))
        assert found[0] == pytest.approx(model.coef_[0], abs=1e-4)


def test_a_batch_of_fits_is_the_fits_one_by_one_even_where_every_label_is_the_same():
    rng = np.random.default_rng(0)
    features = np.stack([rng.normal(size=40), np.ones(40)], axis=1)
    labels = np.ones(40)
    weights = rng.integers(0, 3, (7, 40)).astype(float)
    together = fit(features, labels, weights, 100.0, np.zeros((7, 2)))
    for row, found in zip(weights, together, strict=True):
        assert fit(features, labels, row[None], 100.0, np.ones((1, 2)))[0] == pytest.approx(found, abs=1e-6)
    assert np.isfinite(together).all()
    assert (at_equal_length(together[:, 1:], features[:, 1:], weights) > 0.95).all()


def test_length_control_takes_out_what_length_alone_won():
    """The judge prefers the longer answer and nothing else; the candidate writes longer ones."""
    rng = np.random.default_rng(0)
    preferences, delta, prompts = judged(rng, 4000, length=2.0, level=0.0)
    raw, controlled = win_rate(preferences, prompts), length_controlled(preferences, delta, clusters=prompts, draws=500)
    assert raw.low > 0.55
    assert controlled.low < 0.5 < controlled.high
    assert controlled.stderr > raw.stderr  # predicting off the mean length costs something


def test_length_control_changes_nothing_where_all_answers_are_equally_long():
    preferences = [1.0] * 70 + [0.0] * 30
    found = length_controlled(preferences, [0] * 100, draws=500)
    assert found.value == pytest.approx(0.7, abs=1e-3)
    assert found.stderr == pytest.approx(win_rate(preferences).stderr, rel=0.15)


def test_length_control_does_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    preferences, delta, prompts = judged(rng, 80, samples=2)
    battles = [
        battle(int(key), float(value), (1000 + round(more), 1000))
        for key, value, more in zip(prompts, preferences, delta, strict=True)
    ]
    once, again = rates(battles, draws=500), rates(battles[::2] + battles[1::2], draws=500)
    assert once.raw == again.raw
    assert once.controlled.value == pytest.approx(again.controlled.value)
    assert once.raw.clusters == once.controlled.clusters == 80


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.slow
def test_95_percent_intervals_at_equal_length_cover_the_truth_93_to_97_times_in_100(samples):
    """400 replicates: a standard error of 1.1%, so the bounds are those and one standard error more."""
    rng = np.random.default_rng(samples)
    own = 1.0 if samples > 1 else 0.0
    preferences, delta, _ = judged(rng, 300_000, own=own)
    truth = length_controlled(preferences, delta, draws=0).value
    hits = 0
    for seed in range(400):
        preferences, delta, prompts = judged(rng, 50, samples=samples, own=own)
        found = length_controlled(preferences, delta, clusters=prompts, draws=500, seed=seed)
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_battles_without_a_verdict_count_in_the_scale_of_lengths_and_in_the_mean():
    rng = np.random.default_rng(3)
    n = 400
    preferences, delta, prompts = judged(rng, n)
    hard = rng.normal(size=n)
    preferences = np.where(rng.random(n) < sigmoid(2 * hard), preferences, 0.0)
    unread = (hard > 0.5) & (rng.random(n) < 0.6)  # the judge could not read many of the prompts that are easy to win
    seen = np.where(unread, np.nan, preferences)
    found = length_controlled(seen, delta, hard, prompts, draws=500)
    features = np.stack([np.tanh(delta / delta.std(ddof=1)), hard, np.ones(n)], axis=1)  # as AlpacaEval does
    weights, start = np.ones((1, int((~unread).sum()))), np.zeros((1, 3))
    fitted = fit(features[~unread], preferences[~unread], weights, 1e4, start)
    assert found.value == pytest.approx(sigmoid(features[:, 1:] @ fitted[0, 1:]).mean(), abs=1e-9)
    assert found.n == int((~unread).sum())
    assert found.low is not None
    assert found.low < found.value
    left_out = length_controlled(preferences[~unread], delta[~unread], hard[~unread], prompts[~unread], draws=0)
    assert found.value - left_out.value > 0.02
    battles = [battle(i, None if unread[i] else float(preferences[i]), (int(delta[i]) + 9999, 9999)) for i in range(n)]
    summed = rates(battles, {f"key {i}": float(hard[i]) for i in range(n)}, draws=0)
    assert summed is not None
    assert summed.controlled is not None
    assert summed.controlled.value == pytest.approx(found.value, abs=1e-3)  # lengths are whole numbers there
    with pytest.raises(ValueError, match="one preference or more"):
        length_controlled([np.nan, np.nan], [1, 2])


def test_pooled_difficulty_mends_what_easy_prompts_feign():
    """Prompts on which the opponent is brief are easy to win: without difficulty, length looks better than it is."""
    rng = np.random.default_rng(0)
    n, battles = 800, []
    easy = rng.normal(size=n)
    for name in ("new", "a", "b", "c", "d"):
        brief = (400 * easy + rng.normal(200, 300, n)).round()
        votes = rng.random(n) < sigmoid(1.5 * easy)  # length has no say at all
        for prompt in range(n):
            battles.append(battle(prompt, float(votes[prompt]), (2000 + int(brief[prompt]), 2000), name))
    alone = rates([one for one in battles if one.candidate == "new"], draws=0).controlled.value
    pooled = all_rates(battles, draws=0)
    assert set(pooled) == {"new", "a", "b", "c", "d"}
    assert abs(pooled["new"].controlled.value - 0.5) < 0.7 * abs(alone - 0.5)


def test_difficulty_comes_from_the_others_and_says_nothing_where_they_never_vary():
    found = pool_difficulty([{"p": 1.0, "q": 0.0}, {"p": 0.9, "q": 0.1, "r": 0.5}])
    assert found["p"] > found["r"] > found["q"]
    assert pool_difficulty([{"p": 1.0, "q": 1.0}]) == pool_difficulty([]) == {}


def test_battles_without_a_verdict_are_counted_and_bound_the_win_rate():
    battles = [battle(n, 1.0) for n in range(30)] + [battle(n, 0.0) for n in range(30, 60)]
    found = rates([*battles, *(battle(n, None) for n in range(60, 80))], draws=0)
    assert (found.raw.value, found.missing, found.counts.total) == (0.5, 20, 60)
    assert (found.worst, found.best) == (30 / 80, 50 / 80)
    assert rates([battle(0, None)]) is None


def test_no_figure_at_equal_length_where_the_battles_cannot_tell_it():
    few = rates([battle(n, n % 2, (100 + n, 110)) for n in range(20)], draws=0)
    assert few.controlled is None
    assert "too few" in few.note
    longer = rates([battle(n, n % 2, (200 + n, 100)) for n in range(60)], draws=0)
    assert longer.controlled is None
    assert "60 of 60 answers are longer" in longer.note
    assert rates([battle(n, n % 2, (100 + n, 130)) for n in range(60)], draws=0).note is None
    follows = [battle(n, float(n > 30), (100 + n, 130)) for n in range(60)]
    for taken, side in (
        (follows, "longer"),
        ([replace(one, preference=1 - one.preference) for one in follows], "shorter"),
    ):
        found = rates(taken, draws=0)
        assert found.controlled is None
        assert f"the {side} answer won every time" in found.note


def test_winning_everything_gives_a_figure_near_one_and_no_crash():
    found = rates([battle(n, 1.0, (100 + n % 7, 103)) for n in range(50)], draws=500)
    assert found.raw.high == 1
    assert found.raw.low > 0.9
    assert found.controlled.value > 0.99
