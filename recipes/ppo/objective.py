"""From scores and log-probabilities to rewards, advantages, returns and losses: plain functions of tensors.

Shapes: B completions of at most T tokens. ``mask`` is 1 at the tokens of a completion, its end token included, and 0 at
the padding to their right. Sums over several processes are made by ``total``, which adds a tensor up over all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
    # The count of tokens reaches its total at the last one and keeps it in the padding, which the mask leaves out.
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
        inside = mask[:, t]  # zero in the padding, so that each row begins anew at its own last token
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
    # The small number keeps a batch without any variance, such as one of equal rewards, at zero.
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def explained_variance(
    values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, total: Total = alone
) -> torch.Tensor:
    """Returns 1 - Var(return - value) / Var(return): 1 for a perfect critic, 0 for a constant one, a scalar."""
    _, unexplained = masked_moments(returns - values, mask, total)
    _, variance = masked_moments(returns, mask, total)
    return torch.where(variance > 0, 1 - unexplained / variance.clamp(min=1e-12), torch.zeros_like(variance))


def clipped_policy_loss(
    new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, *, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Is Schulman et al. 2017 (arXiv:1707.06347), eq 7: -min(r A, clip(r, 1 - eps, 1 + eps) A), r = pi_new / pi_old.

    Args:
        new: Log-probabilities of the sampled tokens under the policy, with gradient, [B, T].
        old: The same when they were sampled, [B, T].
        advantages: [B, T].
        cliprange: Epsilon.

    Returns:
        The loss, and whether the clipped term was the smaller one, so that no gradient flows; both [B, T].
    """
    ratio = torch.exp(new - old)
    plain, clipped = ratio * advantages, ratio.clamp(1 - cliprange, 1 + cliprange) * advantages
    # The minimum is a bound from below: a step is never rewarded for going further than the clip, yet always pays for
    # having gone too far the wrong way.
    return -torch.minimum(plain, clipped), clipped < plain


def clipped_value_loss(
    new: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, *, cliprange: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Is the squared error of Schulman et al. 2017, eq 9, halved, and clipped like the policy's.

    The larger of (V - R)^2 / 2 and (clip(V, V_old - eps, V_old + eps) - R)^2 / 2. The clipping is that of OpenAI's
    baselines (Engstrom et al. 2020, arXiv:2005.12729, section 3), not of the paper.

    Args:
        new: Values of the states before each token, with gradient, [B, T].
        old: The same when the tokens were sampled, [B, T].
        returns: [B, T].
        cliprange: Epsilon; None for the plain squared error.

    Returns:
        The loss, and whether the clipped term was the larger one, so that no gradient flows; both [B, T].
    """
    plain = 0.5 * (new - returns) ** 2
    if cliprange is None:
        return plain, torch.zeros_like(plain, dtype=torch.bool)
    clipped = 0.5 * (old + (new - old).clamp(-cliprange, cliprange) - returns) ** 2
    return torch.maximum(plain, clipped), clipped > plain


def approximate_kl(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Estimates KL(old || new) at each sampled token by k3 = (r - 1) - log r >= 0, [B, T]; for the log only.

    (Schulman 2020, "Approximating KL divergence".) It says how far the policy has moved from the one that sampled.
    """
    difference = new - old
    return torch.exp(difference) - 1 - difference


@dataclass
class KLCoefficient:
    """Beta of Ziegler et al. 2019 (arXiv:1909.08593), eq 2, adapted as in their section 2.2 if there is a target.

    e = clip((KL - target) / target, -0.2, 0.2) and beta <- beta (1 + K e) with K = completions / horizon.
    In their code (lm-human-preferences, AdaptiveKLController) a batch of 1,024 and a horizon of 10,000 give the K of
    0.1 that the paper states.

    Attributes:
        value: Beta.
        target: Nats per completion, or None for a fixed beta.
        horizon: Completions.
    """

    value: float
    target: float | None = None
    horizon: int = 10000

    def update(self, kl: float, completions: int) -> None:
        """Takes the mean KL of a generation batch, in nats per completion; the new value holds for the next one."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.value *= 1 + error * completions / self.horizon
