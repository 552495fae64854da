"""A budget of judgments goes where it narrows ratings most."""

import numpy as np
from posttrain.evals.judging.budget import matrices, next_pair, spanning


def test_a_ring_connects_all_with_each_player_in_two_pairs():
    for players in (2, 3, 7):
        pairs = spanning(players, seed=1)
        assert len(set(pairs)) == len(pairs) == (players if players > 2 else 1)
        assert {player for pair in pairs for player in pair} == set(range(players))
        assert all(i > j for i, j in pairs)
    assert spanning(7, seed=1) == spanning(7, seed=1)
    assert spanning(1, seed=1) == []


def test_the_least_known_pair_is_next_and_a_clear_one_waits():
    names = ["a", "b", "c"]
    fought = [("a", "b", 0.5)] * 50 + [("b", "c", 0.5)] * 5 + [("a", "c", 0.5)] * 50
    room = [("a", "b", 9), ("b", "c", 9), ("a", "c", 9)]
    assert next_pair(*matrices(names, fought, room)) == (2, 1)
    clear = [("a", "b", 1.0)] * 20 + [("b", "c", 0.5)] * 20 + [("a", "c", 1.0)] * 20
    assert next_pair(*matrices(names, clear, room)) in {(1, 0), (2, 0)}  # how far ahead a is, is what is not known
    assert next_pair(*matrices(names, fought, [])) is None


def test_choosing_narrows_the_widest_interval_more_than_taking_turns():
    """Ten players of different strength; the mean variance of the differences after the same number of battles."""
    rng = np.random.default_rng(0)
    players, battles, batch = 10, 1200, 10
    truth = np.linspace(-2, 2, players)
    pairs = [(i, j) for i in range(players) for j in range(i)]

    def spend(choose: bool) -> float:
        wins, counts = np.zeros((players, players)), np.zeros((players, players))
        for number in range(battles // batch):
            left = np.ones((players, players))
            i, j = next_pair(wins, counts, left) if choose and number >= players else pairs[number % len(pairs)]  # type: ignore[misc]
            won = rng.binomial(batch, 1 / (1 + np.exp(truth[j] - truth[i])))
            wins[i, j] += won
            wins[j, i] += batch - won
            counts[i, j] += batch
            counts[j, i] += batch
        p = 1 / (1 + np.exp(truth[None, :] - truth[:, None]))
        information = counts * p * (1 - p)
        covariance = np.linalg.pinv(np.diag(information.sum(1)) - information)
        diagonal = np.diag(covariance)
        return float(np.max(diagonal[:, None] + diagonal[None, :] - 2 * covariance))

    assert np.mean([spend(True) for _ in range(3)]) < np.mean([spend(False) for _ in range(3)])
