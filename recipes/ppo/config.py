"""The settings of PPO."""

from dataclasses import dataclass

from trl.trainer.grpo_config import GRPOConfig


@dataclass
class PPOConfig(GRPOConfig):
    """Settings of PPO, beside those of TRL's generation and sampling."""
