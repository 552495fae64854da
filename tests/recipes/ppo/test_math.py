"""The terms of PPO against closed forms and sums by hand."""

import math

import pytest
import torch
from posttrain.recipes.ppo import objective

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])


def test_the_reward_of_a_completion_is_its_score_less_beta_times_the_log_ratio() -> None:
    policy = torch.tensor([[-1.0, -2.0, -0.5, -9.0], [-1.0, -1.0, -1.0, -1.0]])
    reference = torch.tensor([[-1.5, -1.0, -1.5, -4.0], [-1.0, -1.0, -1.0, -2.0]])
    kl = objective.k1(policy, reference, MASK)
    assert kl.sum(dim=1).tolist() == [0.5 - 1.0 + 1.0, 1.0]  # what lies in the padding does not count
    rewards = objective.shaped_rewards(torch.tensor([3.0, -2.0]), kl, 0.1, MASK)
    expected = torch.tensor([[-0.05, 0.1, 3.0 - 0.1, 0.0], [0.0, 0.0, 0.0, -2.0 - 0.1]])
    torch.testing.assert_close(rewards, expected)


def test_gae_is_the_example_worked_by_hand_in_its_docstring() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 8.0, 0.0]]), torch.tensor([[2.0, 4.0, 4.0, 77.0]])
    advantages, returns = objective.gae(rewards, values, MASK[:1], gamma=0.5, lam=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[-0.25, -1.0, 4.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[1.75, 3.0, 8.0, 0.0]]))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_gae_at_its_ends_is_the_residual_and_the_return_less_the_value(gamma: float) -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 4) * MASK, torch.randn(2, 4)
    following = torch.cat([(values * MASK)[:, 1:], torch.zeros(2, 1)], dim=1)
    residual, _ = objective.gae(rewards, values, MASK, gamma=gamma, lam=0.0)
    torch.testing.assert_close(residual, (rewards + gamma * following - values) * MASK)
    monte_carlo, returns = objective.gae(rewards, values, MASK, gamma=gamma, lam=1.0)
    sums = torch.tensor([[sum(gamma ** (k - t) * r[k] for k in range(t, 4)) for t in range(4)] for r in rewards])
    torch.testing.assert_close(returns, sums * MASK)
    torch.testing.assert_close(monte_carlo, (sums - values) * MASK)


def test_whitened_advantages_have_mean_0_and_variance_1_over_tokens_and_padding_stays_0() -> None:
    torch.manual_seed(0)
    white = objective.whiten(torch.randn(2, 4) * 3 + 5, MASK)
    tokens = white[MASK.bool()]
    assert tokens.mean().item() == pytest.approx(0, abs=1e-6)
    assert tokens.var(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert white[0, 3] == 0


def test_whitening_over_two_processes_is_whitening_over_one() -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 4) * 3 + 5
    halves = [(values[:1], MASK[:1]), (values[1:], MASK[1:])]
    # Each process sees its own part of every sum; a stage's sums are added before any goes on.
    sums, means = [objective.masked_moments(*half) for half in halves], []
    count = torch.tensor([3.0, 4.0])
    means = (torch.stack([mean for mean, _ in sums]) * count).sum() / count.sum()
    totals = [torch.stack([means * count.sum(), count.sum()]), (((values - means) * MASK) ** 2).sum()]
    found = []
    for half in halves:
        answers = iter(totals)
        found.append(objective.whiten(*half, lambda local, answers=answers: next(answers)))
    torch.testing.assert_close(torch.cat(found), objective.whiten(values, MASK))


def test_explained_variance_is_1_for_a_perfect_critic_and_0_for_a_constant_one() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0, 9.0], [4.0, 5.0, 6.0, 7.0]])
    assert objective.explained_variance(returns, returns, MASK).item() == 1
    assert objective.explained_variance(torch.full((2, 4), 3.0), returns, MASK).item() == pytest.approx(0, abs=1e-6)
    assert objective.explained_variance(returns, torch.ones(2, 4), MASK).item() == 0  # nothing to explain


def test_with_zero_advantage_the_policy_has_zero_gradient() -> None:
    new = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    loss, _ = objective.clipped_policy_loss(new, torch.tensor([[-1.5, -2.0, -1.0]]), torch.zeros(1, 3), cliprange=0.2)
    loss.sum().backward()
    assert loss.tolist() == [[0, 0, 0]]
    assert new.grad is not None
    assert new.grad.tolist() == [[0, 0, 0]]


def test_where_policy_and_old_policy_agree_the_gradient_is_that_of_reinforce() -> None:
    new = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    loss, clipped = objective.clipped_policy_loss(new, new.detach(), torch.tensor([[2.0, -3.0]]), cliprange=0.2)
    loss.sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == [[-2.0, 3.0]]
    assert not clipped.any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.5, 1.0, -1.2, 0.0),  # good, and already more likely by more than the range: no more of it
        (1.5, -1.0, 1.5, 1.5),  # bad, and more likely: back
        (0.5, 1.0, -0.5, -0.5),  # good, and less likely: back
        (0.5, -1.0, 0.8, 0.0),  # bad, and already less likely by more than the range
        (1.1, 1.0, -1.1, -1.1),
    ],
)
def test_the_policy_loss_is_clipped_on_the_side_that_gains(
    ratio: float, advantage: float, loss: float, slope: float
) -> None:
    new = torch.tensor([[math.log(ratio)]], requires_grad=True)
    found, clipped = objective.clipped_policy_loss(new, torch.zeros(1, 1), torch.tensor([[advantage]]), cliprange=0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(slope)
    assert clipped.item() is (slope == 0.0)


@pytest.mark.parametrize(
    ("new", "cliprange", "loss", "slope"),
    [
        (0.1, 0.2, 0.5 * 0.9**2, -0.9),  # within the range: the squared error, halved
        (0.5, 0.2, 0.5 * 0.8**2, 0.0),  # moved too far towards the return: as if it had moved by the range
        (-0.5, 0.2, 0.5 * 1.5**2, -1.5),  # moved away: the squared error pulls back
        (0.5, None, 0.5 * 0.5**2, -0.5),
    ],
)
def test_the_value_loss_is_clipped_around_the_old_value(
    new: float, cliprange: float | None, loss: float, slope: float
) -> None:
    value = torch.tensor([[new]], requires_grad=True)
    found, clipped = objective.clipped_value_loss(value, torch.zeros(1, 1), torch.ones(1, 1), cliprange=cliprange)
    found.sum().backward()
    assert found.item() == pytest.approx(loss)
    assert value.grad is not None
    assert value.grad.item() == pytest.approx(slope)
    assert clipped.item() is (slope == 0.0)


def test_the_approximate_kl_is_the_kl_on_average() -> None:
    torch.manual_seed(0)
    old, new = torch.randn(6).log_softmax(0), torch.randn(6).log_softmax(0)
    expected = (old.exp() * objective.approximate_kl(new, old)).sum()
    torch.testing.assert_close(expected, (old.exp() * (old - new)).sum())
    assert (objective.approximate_kl(new, old) >= 0).all()


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.1),
        (6.6, 0.1 * (1 + 0.1 * 0.1024)),  # 10% above the target
        (60.0, 0.1 * (1 + 0.2 * 0.1024)),  # the error is cut at a fifth
        (0.0, 0.1 * (1 - 0.2 * 0.1024)),
    ],
)
def test_an_adaptive_coefficient_follows_ziegler_2019(kl: float, expected: float) -> None:
    coefficient = objective.KLCoefficient(0.1, target=6.0, horizon=10000)
    coefficient.update(kl, 1024)
    assert coefficient.value == pytest.approx(expected)


def test_a_fixed_coefficient_stays() -> None:
    coefficient = objective.KLCoefficient(0.1)
    coefficient.update(100.0, 1024)
    assert coefficient.value == 0.1
