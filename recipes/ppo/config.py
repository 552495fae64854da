"""The settings of PPO."""

import os
from dataclasses import dataclass

from trl.trainer.grpo_config import GRPOConfig

# Keys of generation_kwargs that would make the sampled distribution another than the policy's own.
_TRUNCATING = (
    "do_sample",
    "num_beams",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "top_h",
    "repetition_penalty",
    "no_repeat_ngram_size",
)


@dataclass
class PPOConfig(GRPOConfig):
    """Settings of PPO, beside those that it shares with TRL's GRPOConfig.

    Shared are all of transformers' training arguments and what concerns generation: ``max_completion_length``,
    ``temperature`` (of the policy, in sampling and in the loss alike), ``use_vllm`` and its kin. One generation
    batch is ``per_device_train_batch_size x steps_per_generation x processes`` prompts, one completion each; it is
    cut into ``steps_per_generation / gradient_accumulation_steps`` minibatches and learnt from ``num_iterations``
    times (the epochs of Schulman et al. 2017, algorithm 1).
    """

    num_generations: int | None = 1
    """Completions of a prompt; PPO's baseline is the critic, so one is enough."""
    beta: float = 0.0
    """Unused: TRL's coefficient of the KL in GRPO's loss. PPO's stands in the reward, as `kl_coef`."""
    num_iterations: int = 4
    """How often each generation batch is learnt from (Schulman et al. 2017, arXiv:1707.06347, algorithm 1: K)."""
    disable_dropout: bool = True
    """Dropout would make the ratio of new and old probabilities differ from 1 before any step was taken."""
    kl_coef: float = 0.05
    """Beta in r = score - beta KL(policy || reference) (Ziegler et al. 2019, arXiv:1909.08593, eq 2); the first value
    where it adapts."""
    kl_estimator: str = "k1"
    """The estimator of the KL in the reward; only k1, log policy - log reference, has the right gradient there."""
    kl_target: float | None = None
    """Nats per completion that an adaptive `kl_coef` steers towards (Ziegler et al. 2019, section 2.2); fixed if not
    given."""
    kl_horizon: int = 10000
    """Completions over which an adaptive `kl_coef` changes by about a fifth at most; K is batch / horizon."""
    gamma: float = 1.0
    """The discount of rewards to come (Schulman et al. 2015, arXiv:1506.02438)."""
    lam: float = 0.95
    """Lambda of generalised advantage estimation (Schulman et al. 2015, eq 16)."""
    cliprange: float = 0.2
    """Epsilon of the clipped policy loss (Schulman et al. 2017, eq 7)."""
    cliprange_value: float | None = 0.2
    """How far a value may move from the old one before its loss is clipped; no clipping if null."""
    vf_coef: float = 0.1
    """The weight of the value loss (Schulman et al. 2017, eq 9: c1)."""
    whiten_advantages: bool = True
    """Shift and scale advantages to mean 0 and variance 1 over the tokens of a generation batch, all processes
    together."""
    missing_eos_penalty: float | None = None
    """Subtracted from the score of a completion that does not end with an end token, decided on token ids."""
    critic_learning_rate: float | None = None
    """The critic's learning rate; that of the policy if not given."""

    def __post_init__(self):
        """Checks what only PPO restricts.

        Raises:
            ValueError: Settings do not go together, or make sampling differ from the policy.
        """
        if self.kl_estimator != "k1":
            raise ValueError(
                f"kl_estimator {self.kl_estimator} is refused: only k1 (log policy - log reference) may stand in the "
                "reward. k3 is a good estimate of the KL, but the expected gradient of a policy that is paid -k3 is "
                "not that of the KL, and training with it collapses"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target multiplies kl_coef, which is 0 and would stay so: give a kl_coef above 0")
        found = sorted(set(self.generation_kwargs or ()) & set(_TRUNCATING))
        if found:
            raise ValueError(
                f"generation_kwargs.{found[0]} would sample from another distribution than the policy whose "
                "probabilities PPO compares; drop it"
            )
        # GRPOConfig wants groups of two or more that fill the generation batch; PPO has no groups.
        given = self.generation_batch_size
        steps = self.steps_per_generation or self.gradient_accumulation_steps
        batch = given or self.per_device_train_batch_size * steps * int(os.environ.get("WORLD_SIZE", "1"))
        if batch < 2:
            raise ValueError(
                "PPO needs at least 2 prompts in a generation batch: raise per_device_train_batch_size or "
                "steps_per_generation"
            )
        self.num_generations, self.num_generations_eval = batch, 1
        super().__post_init__()
        self.num_generations = 1
        assert self.steps_per_generation is not None, "GRPOConfig has set it"
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation ({self.steps_per_generation}) must be a multiple of "
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}): their ratio is the number of "
                "minibatches"
            )
