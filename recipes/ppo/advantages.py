"""From scores and log-probabilities to rewards, advantages and returns: plain functions of tensors.

Shapes: B completions of at most T tokens. ``mask`` is 1 at the tokens of a completion, its end token included, and 0 at
the padding to their right. Sums over several processes are made by ``total``, which adds a tensor up over all of them.
"""

from collections.abc import Callable

import torch

Total = Callable[[torch.Tensor], torch.Tensor]


def alone(local: torch.Tensor) -> torch.Tensor:
    """Is the ``total`` of a single process."""
    return local


def k1(policy: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns log pi(a|s) - log rho(a|s) of each sampled token, [B, T], 0 outside the completion.

    Its sum over a completion is an unbiased estimate of KL(pi || rho) of whole answers (Ziegler et al. 2019,
    arXiv:1909.08593, eq 2; named k1 in Schulman 2020, "Approximating KL divergence"). It may be negative.
    """
    return (policy - reference) * mask


def shaped_rewards(scores: torch.Tensor, kl: torch.Tensor, kl_coef: float, mask: torch.Tensor) -> torch.Tensor:
    """Returns the reward of each token, [B, T]: -beta k1 everywhere, and the score at a completion's last token.

    Their sum over a completion is Ziegler et al. 2019, eq 2: R = r - beta log(pi / rho).

    Args:
        scores: What the reward terms say of whole completions, [B].
        kl: ``k1`` of each token, [B, T].
        kl_coef: Beta.
        mask: [B, T].
    """
    last = mask.cumsum(dim=1) == mask.sum(dim=1, keepdim=True)
    return -kl_coef * kl * mask + scores.unsqueeze(1) * (last & mask.bool())


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimates advantages by Schulman et al. 2015 (arXiv:1506.02438), eq 16, and from them returns.

    The residual of token t is delta_t = r_t + gamma V(s_{t+1}) - V(s_t), with V = 0 after the last token; the
    advantage is A_t = delta_t + gamma lambda A_{t+1}; the return, which the critic learns, is A_t + V(s_t).

    By hand, for one completion of three tokens with gamma 0.5, lambda 0.5, rewards 0, 0, 8 and values 2, 4, 4:
    delta = (0 + 0.5 x 4 - 2, 0 + 0.5 x 4 - 4, 8 - 4) = (0, -2, 4); from the end A_3 = 4,
    A_2 = -2 + 0.25 x 4 = -1, A_1 = 0 + 0.25 x (-1) = -0.25; returns (1.75, 3, 8).

    Args:
        rewards: Of each token, [B, T].
        values: V of the state before each token, [B, T].
        mask: [B, T].
        gamma: The discount.
        lam: Lambda; 0 is the one-step residual, 1 the return less the value.

    Returns:
        Advantages and returns, both [B, T], 0 outside the completion.
    """
    following = torch.zeros_like(rewards[:, 0])  # V of the next state; 0 after the last token
    advantage = torch.zeros_like(following)
    advantages = torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        inside = mask[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        advantage = (delta + gamma * lam * advantage) * inside
        following = values[:, t] * inside
        advantages[:, t] = advantage
    return advantages, (advantages + values) * mask


def masked_moments(values: torch.Tensor, mask: torch.Tensor, total: Total = alone) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and variance over the tokens of all completions on all processes, both scalars."""
    weights = mask.to(values.dtype)
    sums = total(torch.stack([(values * weights).sum(), weights.sum()]))
    count = sums[1].clamp(min=1.0)
    mean = sums[0] / count
    # Around the mean rather than from the sum of squares, which cancels digits.
    return mean, total((((values - mean) * weights) ** 2).sum()) / count


def whiten(values: torch.Tensor, mask: torch.Tensor, total: Total = alone) -> torch.Tensor:
    """Returns values of mean 0 and variance 1 over all tokens on all processes, 0 outside the completions, [B, T].

    Normalised advantages are the practice of PPO rather than of its paper (Andrychowicz et al. 2020,
    arXiv:2006.05990); over all processes, so that their number does not change what is learnt.
    """
    mean, variance = masked_moments(values, mask, total)
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def explained_variance(
    values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, total: Total = alone
) -> torch.Tensor:
    """Returns 1 - Var(return - value) / Var(return): 1 for a perfect critic, 0 for a constant one, a scalar."""
    _, unexplained = masked_moments(returns - values, mask, total)
    _, variance = masked_moments(returns, mask, total)
    return torch.where(variance > 0, 1 - unexplained / variance.clamp(min=1e-12), torch.zeros_like(variance))
