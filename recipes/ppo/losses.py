"""The losses of PPO at each token. Shapes as in ``advantages``; nothing is averaged here."""

import torch


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
