"""The coefficient of the KL penalty: fixed, or steered towards a target."""

from dataclasses import dataclass


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
