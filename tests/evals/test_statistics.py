import math
import random

import numpy as np
import pytest
from posttrain.evals.records import Metric
from posttrain.evals.stats.bootstrap import kappa
from posttrain.evals.stats.intervals import (
    Interval,
    binary_successes,
    clustered_stderr,
    interval,
    mean_estimate,
    normal,
    overlap,
    scale_of,
    spelt,
    t_quantile,
    wilson,
)
from scipy.special import ndtr


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (score, no continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    found = wilson(successes, n)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_wilson_covers_the_truth_about_95_times_in_100_where_wald_does_not():
    rng = random.Random(0)
    truth, n, trials = 0.04, 50, 4000
    hits = wald = 0
    for _ in range(trials):
        successes = sum(rng.random() < truth for _ in range(n))
        found = wilson(successes, n)
        share = successes / n
        half = 1.96 * math.sqrt(share * (1 - share) / n)
        hits += found.low <= truth <= found.high
        wald += share - half <= truth <= share + half
    assert 0.93 <= hits / trials <= 0.985
    assert wald / trials < 0.90


def test_wilson_stays_inside_and_keeps_a_width_at_the_ends():
    none, every = wilson(0, 10), wilson(10, 10)
    assert none.low == 0
    assert none.high > 0.2
    assert every.high == 1
    assert every.low < 0.8


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


@pytest.mark.parametrize("ddof", [0, 1])
def test_shares_of_zeros_and_ones_are_recognised_with_either_divisor(ddof):
    share, n = 37 / 120, 120
    stderr = math.sqrt(share * (1 - share) / (n - ddof))
    assert binary_successes(share, stderr, n) == 37
    found = interval(share, stderr, n)
    assert found is not None
    assert found.method == "wilson"


def test_a_mean_of_graded_items_is_not_taken_for_a_share():
    values = [0.0, 0.5, 1.0, 0.5] * 25  # the mean names a whole count, the spread gives it away
    mean = sum(values) / len(values)
    stderr = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    assert mean * len(values) == round(mean * len(values))
    assert binary_successes(mean, stderr, len(values)) is None
    assert interval(mean, stderr, len(values)) == normal(mean, stderr, t_quantile(0.975, 99))


@pytest.mark.parametrize(
    ("value", "stderr", "n"),
    [(0.5, None, 10), (None, 0.1, 10), (math.nan, 0.1, 10), (0.5, math.nan, 10), (0.5, -0.1, 10), (3.2, 0.0, 1)],
)
def test_no_interval_is_invented(value, stderr, n):
    assert interval(value, stderr, n) is None


def ends(metric: str, value: float, stderr: float, n: int, **detail) -> tuple[float, float] | None:
    found = interval(value, stderr, n, scale_of(metric, detail))
    return (found.low, found.high) if found else None


MARKS = {"scale": [1, 10], "bounds": {"low": 1, "high": 10}}


@pytest.mark.parametrize(
    ("metric", "value", "stderr", "n", "low", "high"),
    [
        ("word_perplexity", 25.0, 22.0, 100, 1, math.inf),
        ("perplexity", 3.0, 2.9, 8, 1, math.inf),
        ("bits_per_byte", 0.02, 0.02, 30, 0, math.inf),
        ("nll", 0.01, 0.02, 30, 0, math.inf),
        ("accuracy", 0.98, 0.013, 30, 0, 1),
        ("acc_norm,none", 0.99, 0.02, 30, 0, 1),
        ("prompt_level_strict_acc,none", 0.98, 0.03, 30, 0, 1),
        ("f1/rare class", 0.03, 0.03, 30, 0, 1),
        ("ece", 0.01, 0.02, 200, 0, 1),
        ("win_rate", 0.99, 0.02, 30, 0, 1),
        ("mcc", 0.97, 0.05, 30, -1, 1),
        ("kappa", -0.98, 0.05, 30, -1, 1),
        ("margin_spearman", 0.99, 0.05, 30, -1, 1),
        ("bleu", 99.0, 3.0, 30, 0, 100),
        ("brier", 0.01, 0.02, 30, 0, 2),
        ("rating", 9.8, 0.3, 20, 1, 10),
        ("rating", 7.5, 0.5, 2, 1, 10),
    ],
)
def test_no_interval_leaves_the_scale_of_its_metric(metric, value, stderr, n, low, high):
    found = ends(metric, value, stderr, n, **(MARKS if metric == "rating" else {}))
    assert found is not None
    assert low <= found[0] < value < found[1] <= high


def test_figures_without_bounds_keep_the_interval_of_a_mean():
    for metric in ("rating", "reward", "margin", "somebodys_metric"):
        low, high = ends(metric, 0.2, 0.3, 1000) or (0, 0)
        assert (low, high) == pytest.approx((0.2 - 1.9623 * 0.3, 0.2 + 1.9623 * 0.3), abs=1e-4)


@pytest.mark.parametrize(
    ("metric", "value", "n", "found"),
    [
        ("acc", 0.0, 20, (0.0, 0.1611)),
        ("exact_match,strict", 1.0, 20, (0.8389, 1.0)),
        ("rating", 7.0, 2, (7 - 6 * 0.7764, 7 + 3 * 0.7764)),  # 1 - sqrt(.05) = .7764
        ("rating", 10.0, 20, (10 - 9 * 0.1391, 10.0)),
        ("perplexity", 1.0, 20, None),
        ("mcc", 0.0, 20, None),
        ("reward", 0.0, 20, None),
        ("bits_per_byte", 1.2, 4, None),
        ("acc", 1.0, 1, None),
    ],
)
def test_items_without_spread_get_what_they_support(metric, value, n, found):
    seen = ends(metric, value, 0.0, n, **(MARKS if metric == "rating" else {}))
    assert seen == (None if found is None else pytest.approx(found, abs=1e-3))


def test_ends_that_a_record_gives_stand_inside_the_scale_and_are_made_anew_where_they_have_no_width():
    assert interval(0.9, 0.1, 30, scale_of("f1"), (0.7, 0.95, "bootstrap")) == Interval(0.7, 0.95, "bootstrap")
    old = interval(7.0, 0.0, 2, scale_of("rating", MARKS), (7.0, 7.0, "over prompts"))
    assert old is not None
    assert old.method == "constant"
    outside = interval(20.0, 9.0, 50, scale_of("perplexity"), (-15.0, 55.0, "bootstrap"))
    assert outside is not None
    assert (outside.method, outside.low > 1) == ("log", True)


def test_two_equal_marks_are_as_uncertain_where_they_are_scored_as_on_the_board():
    found = mean_estimate([7.0, 7.0], ["a", "b"], scale=(1, 10))
    assert (found.low, found.high) == pytest.approx(ends("rating", 7.0, 0.0, 2, **MARKS))
    apart = mean_estimate([6.0, 8.0, 9.0], scale=(1, 10))
    assert (apart.low, apart.high) == pytest.approx(ends("rating", apart.value, apart.stderr or 0, 3, **MARKS))
    assert mean_estimate([1.0, 1.0, 1.0], scale=(1, 10)).low == 1.0  # the least mark, and no share of right answers


def test_a_terminal_shows_the_boards_interval():
    assert spelt(Metric("acc", 0.0, 0.0, 20, True)) == "acc 0 [0, 0.1611]"
    assert spelt(Metric("perplexity", 12.5, None, 4, False)) == "perplexity 12.5 (no interval)"
    assert spelt(Metric("rating", 7.0, 0.0, 2, True, 7.0, 7.0), MARKS) == "rating 7 [2.342, 9.329]"


@pytest.mark.parametrize("n", [3, 8, 30])
@pytest.mark.parametrize("marks", [[0.02, 0.05, 0.13, 0.3, 0.5], [0.9, 0.05, 0.03, 0.01, 0.01], [0.5, 0, 0, 0, 0.5]])
def test_intervals_of_marks_cover_the_mean_with_few_answers_too(n, marks):
    """4,000 samples: three standard errors of the simulation are 1%; with three answers of a rare kind, 90% is due."""
    rng = np.random.default_rng(n)
    values, truth = np.arange(1, 6.0), float(np.arange(1, 6) @ marks)
    hits = naive = 0
    for sample in rng.choice(values, (4000, n), p=marks):
        found = mean_estimate(sample, scale=(1, 5))
        hits += found.low - 1e-9 <= truth <= found.high + 1e-9
        half = 1.96 * sample.std(ddof=1) / math.sqrt(n)
        naive += abs(sample.mean() - truth) <= half
    assert hits / 4000 >= 0.93
    assert naive <= hits


@pytest.mark.parametrize("n", [10, 40])
def test_intervals_of_perplexity_cover_the_truth(n):
    """Documents' log-losses with a long tail; the mean of 2,000 samples of each size."""
    rng = np.random.default_rng(n)
    hits = plain = 0
    for nats in rng.gamma(4.0, 0.75, (2000, n)):  # mean 3
        value, error = math.exp(nats.mean()), math.exp(nats.mean()) * nats.std(ddof=1) / math.sqrt(n)
        low, high = ends("perplexity", value, error, n) or (0, 0)
        hits += low <= math.exp(3) <= high
        plain += value - 1.96 * error <= math.exp(3) <= value + 1.96 * error
    assert 0.93 <= hits / 2000 <= 0.97
    assert plain < hits


def test_normal_is_196_standard_errors_and_may_pass_one():
    found = normal(0.98, 0.02)
    assert found.low == pytest.approx(0.98 - 1.96 * 0.02, abs=1e-6)
    assert found.high > 1


def test_overlap_counts_a_shared_end():
    assert overlap(Interval(0, 1, "normal"), Interval(1, 2, "normal"))
    assert not overlap(Interval(0, 1, "normal"), Interval(1.01, 2, "normal"))


def test_a_mean_of_single_items_has_the_ordinary_standard_error_and_students_interval():
    found = mean_estimate([2.0, 4.0, 4.0, 6.0])
    assert found.value == 4
    assert found.stderr == pytest.approx(math.sqrt(8 / 3 / 4))
    assert found.high == pytest.approx(4 + 3.182446 * found.stderr)  # t with 3 degrees of freedom
    assert (found.n, found.clusters) == (4, 4)


def test_the_clustered_error_is_millers_formula_up_to_its_finite_sample_factor():
    rng = np.random.default_rng(0)
    clusters, size = 12, 5
    values = rng.normal(size=clusters * size) + np.repeat(rng.normal(size=clusters), size)
    labels = np.repeat(np.arange(clusters), size)
    residuals = values - values.mean()
    pairs = sum(residuals[i] * residuals[j] for i in range(60) for j in range(60) if labels[i] == labels[j])
    # Miller 2024, section 2.2: the variance of single items plus the cross products within clusters, over n^2.
    miller = pairs / 60**2
    assert mean_estimate(values, labels).stderr == pytest.approx(math.sqrt(miller * clusters / (clusters - 1)))


def test_degrees_of_freedom_are_clusters_less_one_where_clusters_are_alike_and_fewer_where_not():
    values = np.random.default_rng(0).normal(size=40)
    even, df = clustered_stderr(values, np.repeat(np.arange(8), 5), 8)
    assert even is not None
    assert df == pytest.approx(7)
    _, uneven = clustered_stderr(values, np.r_[np.zeros(26, int), np.repeat(np.arange(1, 8), 2)], 8)
    assert uneven < 3


def test_repeating_every_item_changes_nothing_if_repeats_are_clusters():
    values = [0.1, 0.9, 0.4, 0.7, 0.2]
    once, often = mean_estimate(values), mean_estimate(values * 6, list(range(5)) * 6)
    assert often.stderr == pytest.approx(once.stderr)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    assert mean_estimate(values * 6).stderr < 0.5 * once.stderr


def test_shares_keep_inside_their_range_and_have_a_width_at_its_ends():
    assert mean_estimate([1.0] * 20).low == wilson(20, 20).low
    clustered = mean_estimate([1.0] * 40, [n // 2 for n in range(40)])
    assert clustered.high == 1
    assert clustered.low < wilson(20, 20).low  # 20 prompts, not 40 items; Student's t, not the normal
    soft = mean_estimate([0.98, 0.99, 1.0, 0.97] * 5, unit=True)
    assert soft.low > 0.9
    assert soft.high < 1
    assert mean_estimate([0.98, 0.99, 1.0, 0.2] * 5).high > mean_estimate([0.98, 0.99, 1.0, 0.2] * 5, unit=True).high


def test_one_cluster_supports_no_interval():
    found = mean_estimate([0.2, 0.4, 0.9], ["same"] * 3)
    assert (found.stderr, found.low, found.high) == (None, None, None)
    assert (mean_estimate([1.0]).low, mean_estimate([1.0]).high) == (None, None)
    assert interval(1.0, 0.0, 1, scale_of("win_rate"), (0.2, 1.0, "over prompts")) is None


@pytest.mark.parametrize(("values", "clusters"), [([], None), ([1.0, math.nan], None), ([1.0, 2.0], ["a"])])
def test_a_mean_refuses_what_it_cannot_use(values, clusters):
    with pytest.raises(ValueError, match=r"needs|labels"):
        mean_estimate(values, clusters)


@pytest.mark.parametrize("kind", ["graded", "share of 0.5", "share of 0.9", "preference"])
@pytest.mark.parametrize("clustered", [False, True])
def test_95_percent_intervals_of_means_cover_the_truth_93_to_97_times_in_100(kind, clustered):
    """2,000 replicates: if the coverage is 95%, the bounds are four standard errors of the simulation away."""
    rng = np.random.default_rng([ord(kind[-1]), clustered])
    hits, naive, truth = 0, 0, {"graded": 0.0, "share of 0.9": 0.9}.get(kind, 0.5)
    for _ in range(2000):
        labels = np.repeat(np.arange(40), rng.integers(1, 6, 40)) if clustered else np.arange(60)
        shared = rng.normal(size=labels[-1] + 1)[labels]
        latent = math.sqrt(0.5) * (shared + rng.normal(size=len(labels)))
        values = {
            "graded": latent,
            "preference": ndtr(latent),
            "share of 0.5": latent < 0,
            "share of 0.9": latent < 1.2815515655,
        }[kind].astype(float)
        found = mean_estimate(values, labels if clustered else None, unit=kind != "graded")
        hits += found.low <= truth <= found.high
        plain = mean_estimate(values, unit=kind != "graded")
        naive += plain.low <= truth <= plain.high
    assert 0.93 <= hits / 2000 <= 0.97
    assert (naive / 2000 < 0.90) == clustered


def test_cohens_kappa_is_that_of_the_textbook():
    # Cohen 1960, table 1: proportions of 200 items by two judges in three categories; p_o .70, p_c .41, kappa .49.
    table = {("A", "A"): 88, ("A", "B"): 14, ("A", "C"): 18, ("B", "A"): 10, ("B", "B"): 40, ("B", "C"): 10}
    table |= {("C", "A"): 2, ("C", "B"): 6, ("C", "C"): 12}
    pairs = [pair for pair, times in table.items() for _ in range(times)]
    found = kappa([a for a, _ in pairs], [b for _, b in pairs])
    assert found.agreement.value == pytest.approx(0.70)
    assert found.chance == pytest.approx(0.41)
    assert found.kappa == pytest.approx((0.70 - 0.41) / 0.59)
    assert found.low < found.kappa < found.high


def test_kappa_is_one_in_full_agreement_and_undefined_where_nobody_ever_differs():
    full = kappa(["win", "tie", "loss"] * 10, ["win", "tie", "loss"] * 10)
    assert full.kappa == 1
    never = kappa(["win"] * 20, ["win"] * 20)
    assert (never.kappa, never.low, never.agreement.value) == (None, None, 1)


@pytest.mark.parametrize("repeats", [1, 4])
def test_intervals_of_kappa_cover_the_truth_with_items_that_repeat_a_prompt(repeats):
    """600 replicates at 95%: a standard error of .9%, so three of them beyond 93 and 97."""
    rng = np.random.default_rng(repeats)
    hits = 0
    for seed in range(600):
        prompt = np.repeat(np.arange(60), repeats)
        truth = rng.integers(0, 2, 60)[prompt]
        # Whether the second rater is right hangs on the prompt: 80% of prompts are easy to agree on.
        agrees = (rng.random(60) < 0.8)[prompt]
        second = np.where(agrees, truth, 1 - truth)
        found = kappa(truth.tolist(), second.tolist(), prompt, draws=500, seed=seed)
        hits += found.low <= 0.6 <= found.high
    assert 0.92 <= hits / 600 <= 0.98
