import math

import numpy as np
import pytest
import scipy.stats
from posttrain.evals.stats.compare import (
    Hypothesis,
    holm,
    judge,
    mcnemar,
    paired_difference,
    seeded_difference,
    smallest_difference,
    unpaired_difference,
    verdict,
    votes_for_verdict,
)
from posttrain.evals.stats.intervals import mean_estimate


def binary(both: int, first: int, second: int, neither: int) -> tuple[list[int], list[int]]:
    """Items that both, only the first, only the second, or neither solved."""
    return [1] * (both + first) + [0] * (second + neither), [1] * both + [0] * first + [1] * second + [0] * neither


@pytest.mark.parametrize(
    ("cells", "mid_p"),
    [
        # Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91 (2013), tables 1, 2 and "Results".
        ((1, 7), 0.039),
        ((6, 16), 0.035),
    ],
)
def test_mcnemar_gives_the_published_mid_p_values(cells, mid_p):
    assert round(mcnemar(*cells), 3) == mid_p


def test_mcnemar_is_symmetric_and_never_significant_without_a_difference():
    assert mcnemar(3, 9) == pytest.approx(mcnemar(9, 3))
    assert mcnemar(0, 0) == 1
    assert 0.5 < mcnemar(4, 4) <= 1


def test_a_verdict_on_right_and_wrong_never_contradicts_its_interval():
    # Of 34 items 12 against 4: McNemar's mid-p is .049, and the interval holds 0.
    assert mcnemar(12, 4) < 0.05
    for n in (12, 34, 200):
        for first in range(min(n, 30)):
            for second in range(min(first, n - first + 1)):
                found = paired_difference(*binary(0, first, second, n - first - second))
                assert (found.low > 0) == (found.p < 0.05), (n, first, second)


def test_a_paired_difference_is_the_mean_of_the_differences():
    rng = np.random.default_rng(0)
    a, b, clusters = rng.random(60), rng.random(60), np.repeat(np.arange(20), 3)
    found, mean = paired_difference(a, b, clusters), mean_estimate(a - b, clusters)
    assert (found.value, found.stderr) == pytest.approx((mean.value, mean.stderr))
    assert (found.low, found.high) == pytest.approx((mean.low, mean.high))
    swapped = paired_difference(b, a, clusters)
    assert (swapped.low, swapped.high, swapped.p) == pytest.approx((-found.high, -found.low, found.p))


def test_an_interval_leaves_out_zero_exactly_where_the_p_value_is_below_5_percent():
    rng = np.random.default_rng(0)
    for shift in np.linspace(0, 0.8, 30):
        found = paired_difference(rng.normal(shift, 1, 30), rng.normal(0, 1, 30))
        assert (found.low > 0 or found.high < 0) == (found.p < 0.05)


def test_pairing_tells_checkpoints_apart_that_their_own_errors_do_not():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=200)
    a, b = hard + rng.normal(0.15, 0.3, 200), hard + rng.normal(0, 0.3, 200)
    alone = [mean_estimate(values) for values in (a, b)]
    apart = unpaired_difference(alone[0].value, alone[0].stderr, alone[1].value, alone[1].stderr, 200)
    assert paired_difference(a, b).p < 1e-4
    assert apart.p > 0.05


def test_items_that_repeat_a_prompt_are_not_counted_as_evidence():
    rng = np.random.default_rng(3)
    a, b = (rng.random((2, 12)) < 0.5).astype(float)
    once = paired_difference(a, b)
    often = paired_difference(np.tile(a, 50), np.tile(b, 50), np.tile(np.arange(12), 50))
    assert often.high - often.low > 0.8 * (once.high - once.low)
    assert paired_difference(np.tile(a, 50), np.tile(b, 50)).p < often.p


def test_two_that_never_differ_get_an_interval_and_no_verdict():
    found = paired_difference([1, 0, 1, 1] * 10, [1, 0, 1, 1] * 10)
    assert (found.value, found.p) == (0, 1)
    assert found.low < 0 < found.high
    by_prompt = paired_difference([1, 0, 1, 1] * 10, [1, 0, 1, 1] * 10, [n // 2 for n in range(40)])
    assert by_prompt.high > found.high  # 20 prompts say less than 40 items


def test_one_cluster_or_one_item_decides_nothing():
    assert paired_difference([1.0, 1.0], [0.0, 0.0], ["same", "same"]).p == 1
    found = judge({"x": Hypothesis(paired_difference([1.0], [0.0]))})["x"]
    assert (found.difference.n, found.verdict, found.smallest) == (1, "no verdict", None)


def test_a_difference_without_spread_is_worth_its_signs():
    assert paired_difference([4.0] * 3, [3.0] * 3).p == pytest.approx(2**-3)
    many = paired_difference([4.0] * 20, [3.0] * 20)
    assert many.p < 1e-5
    assert (many.low, many.high) == (None, None)
    assert paired_difference([4.0] * 20, [4.0] * 20).p == 1
    assert unpaired_difference(1.0, 0.0, 0.0, 0.0, 5).p == 1


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([], []), ([math.nan], [1.0])])
def test_unpaired_items_are_refused(a, b):
    with pytest.raises(ValueError, match=r"needs|finite"):
        paired_difference(a, b)


def test_holm_gives_the_adjusted_values_of_a_worked_example():
    # Holm 1979 as computed by hand: sorted .01 x 4, .03 x 3, .04 x 2 (raised to .09), .05 x 1 (raised).
    assert holm([0.04, 0.01, 0.05, 0.03]) == pytest.approx([0.09, 0.04, 0.09, 0.09])
    assert holm([]) == []
    assert holm([0.7, 0.9]) == [1.0, 1.0]


def test_the_smallest_difference_is_2_8_standard_errors_and_more_with_few_clusters():
    # z(.975) + z(.8) = 1.959964 + 0.841621
    assert smallest_difference(0.01) == pytest.approx(0.02801585, rel=1e-6)
    assert smallest_difference(0.01, df=9) > smallest_difference(0.01, df=99) > smallest_difference(0.01)


def test_a_sample_shows_its_smallest_difference_four_times_in_five():
    rng = np.random.default_rng(0)
    stderr = 1 / math.sqrt(50)
    truth = smallest_difference(stderr, df=49)
    shown = sum(paired_difference(rng.normal(truth, 1, 50), np.zeros(50)).p < 0.05 for _ in range(2000))
    assert 0.77 <= shown / 2000 <= 0.83  # three standard errors of the simulation


def test_a_verdict_knows_which_way_is_up():
    assert verdict(0.1, 0.05) == "better"
    assert verdict(0.1, 0.05, higher_is_better=False) == "worse"
    assert verdict(-0.1, 0.001) == "worse"
    assert verdict(-0.1, 0.051) == verdict(0.1, math.nan) == "no verdict"


def against(base, others, clusters=None):
    """Judges some checkpoints against one as a family."""
    return judge({n: Hypothesis(paired_difference(other, base, clusters)) for n, other in enumerate(others)})


def test_checkpoints_are_judged_as_one_family():
    rng = np.random.default_rng(0)
    base = rng.normal(size=100)
    noise = rng.normal(0, 0.5, (2, 100))
    found = against(base, [base + 0.3 + noise[0], base + noise[1], base - 0.5])
    assert [comparison.verdict for comparison in found.values()] == ["better", "no verdict", "worse"]
    assert found[0].p_adjusted == pytest.approx(2 * found[0].difference.p)  # second of three
    assert found[1].smallest > smallest_difference(found[1].difference.stderr)


def test_a_wider_family_can_only_take_verdicts_away():
    rng = np.random.default_rng(0)
    base = rng.normal(size=80)
    found = against(base, [base + rng.normal(0.05 * n, 1, 80) for n in range(8)])
    alone = [judge({0: Hypothesis(comparison.difference)})[0] for comparison in found.values()]
    assert sum(each.verdict == "better" for each in alone) > sum(each.verdict == "better" for each in found.values())
    assert all(one.p_adjusted <= all_.p_adjusted for one, all_ in zip(alone, found.values(), strict=True))


def leaderboard(rng, kind: str):
    """Ten checkpoints that are equally good, on items of unequal difficulty, 120 in all."""
    prompts = np.arange(120) if kind == "binary" else np.repeat(np.arange(40), 3)
    hard = rng.normal(size=prompts[-1] + 1)[prompts]
    taste = rng.normal(size=(10, prompts[-1] + 1))[:, prompts]  # what a checkpoint has for a prompt, in all its items
    skill = hard + 0.7 * taste + rng.normal(size=(10, 120))
    return (skill > 0 if kind != "graded prompts" else skill).astype(float), prompts


@pytest.mark.parametrize("kind", ["binary", "binary prompts", "graded prompts"])
def test_without_a_true_difference_better_appears_on_at_most_5_percent_of_leaderboards(kind):
    """1,000 leaderboards of ten checkpoints.

    Holm's family is two-sided, so any verdict is due on at most 5% and "better" on about half of those. The bound on
    "better" is 50 with no allowance for the simulation, five of whose standard errors lie in between; any verdict may
    appear on 5% and three standard errors.
    """
    rng = np.random.default_rng(7)
    better = verdicts = naive = 0
    for _ in range(1000):
        scores, prompts = leaderboard(rng, kind)
        found = against(scores[0], scores[1:], None if kind == "binary" else prompts)
        said = {comparison.verdict for comparison in found.values()}
        better += "better" in said
        verdicts += len(said) > 1 or said != {"no verdict"}
        naive += any(c.difference.p < 0.05 and c.difference.value > 0 for c in found.values())
    assert better <= 50
    assert verdicts <= 71
    assert naive > 100  # what the leaderboard would claim without Holm


def test_a_true_difference_is_found():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        scores, prompts = leaderboard(rng, "graded prompts")
        scores[4] += 1.0
        found += against(scores[0], scores[1:], prompts)[3].verdict == "better"
    assert found / 200 > 0.8


@pytest.mark.parametrize("kind", ["binary", "binary prompts", "graded prompts"])
def test_95_percent_intervals_of_differences_cover_the_truth_93_to_97_times_in_100(kind):
    """3,000 replicates: if the coverage is 95%, the bounds are five standard errors of the simulation away."""
    rng = np.random.default_rng(11)
    hits = naive = 0
    for _ in range(3000):
        scores, prompts = leaderboard(rng, kind)
        found = paired_difference(scores[0], scores[1], None if kind == "binary" else prompts)
        hits += found.low <= 0 <= found.high
        plain = paired_difference(scores[0], scores[1])
        naive += plain.low <= 0 <= plain.high
    assert 0.93 <= hits / 3000 <= 0.97
    assert kind == "binary" or naive / 3000 < 0.93


@pytest.mark.parametrize(("share", "n"), [(0.6, 194), (0.7, 47)])
def test_so_many_votes_show_four_times_of_five_who_wins(share: float, n: int):
    from scipy.stats import binomtest

    assert votes_for_verdict(share) == n
    won = np.random.default_rng(0).binomial(n, share, 2000)
    shown = {wins: float(binomtest(int(wins), n).pvalue) <= 0.05 for wins in set(won.tolist())}
    assert 0.75 < sum(shown[wins] for wins in won.tolist()) / 2000 < 0.83
    assert votes_for_verdict(share, 10) > 1.5 * n


def seeded(seeds, n, spread, seed):
    by_seed, by_item, rest = spread
    rng = np.random.default_rng(seed)
    parts = (rng.normal(0, by_seed, (seeds, 1)), rng.normal(0, by_item, (1, n)), rng.normal(0, rest, (seeds, n)))
    return sum(parts)


@pytest.mark.parametrize("spread", [(1, 1, 1), (0, 1, 0), (0.3, 1, 1), (0.15, 1, 0)])
def test_ways_to_train_that_are_equal_are_seldom_told_apart(spread):
    """At most 5% of 600; 46 or more of them would come once in a thousand times."""
    found = [seeded_difference(seeded(3, 50, spread, seed), np.zeros((3, 50))) for seed in range(600)]
    assert 0 < sum(one.p <= 0.05 for one in found) < 46


def test_items_alone_vary_as_in_a_paired_comparison():
    """From seeds that all say the same, the interval is that of the items."""
    row = np.random.default_rng(0).normal(0.1, 1, 200)
    found = seeded_difference(np.stack([row] * 4), np.zeros((4, 200)))
    paired = paired_difference(row, np.zeros(200))
    assert (found.value, found.low, found.p) == pytest.approx((paired.value, paired.low, paired.p), rel=1e-6)


def test_seeds_alone_vary_as_in_a_t_test():
    """On items that all say the same, the interval is that of the seeds."""
    by_seed = np.array([0.3, 0.5, 0.1, 0.4])
    found = seeded_difference(np.repeat(by_seed[:, None], 30, axis=1), np.zeros((4, 30)))
    assert found.p == pytest.approx(scipy.stats.ttest_1samp(by_seed, 0).pvalue, rel=1e-6)
    assert (found.low, found.high) == pytest.approx(tuple(scipy.stats.ttest_1samp(by_seed, 0).confidence_interval()))


def test_two_seeds_are_no_verdict():
    found = seeded_difference(
        np.full((2, 50), 1.0) + np.random.default_rng(0).normal(0, 0.01, (2, 50)), np.zeros((2, 50))
    )
    assert found.value == pytest.approx(1, abs=0.01)
    assert (found.p, found.low, found.test) == (1.0, None, "none")


def test_seeds_of_other_items_are_refused():
    with pytest.raises(ValueError, match="each seed"):
        seeded_difference(np.zeros((3, 5)), np.zeros((3, 4)))
