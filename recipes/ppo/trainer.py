"""Proximal policy optimisation of language models on TRL's GRPOTrainer.

Schulman et al. 2017 (arXiv:1707.06347), as Ziegler et al. 2019 (arXiv:1909.08593) bring it to language models.
GRPOTrainer samples, scores, buffers and logs; PPO differs in what becomes of the scores and in the loss. In the order
of a generation batch:

1. sample one completion a prompt, and score it by the recipe's reward terms (TRL);
2. log-probabilities of policy and reference and the critic's values, at every token of the completions;
3. r_t = -beta k1_t, plus the score at the last token (Ziegler et al. 2019, eq 2);
4. advantages by GAE and returns (Schulman et al. 2015, eq 16);
5. advantages whitened over all processes;
6. `num_iterations` passes over the minibatches with the clipped losses (Schulman et al. 2017, eq 7 and 9);
7. beta adapted to the measured KL, if there is a target (Ziegler et al. 2019, section 2.2).

TRL's and transformers' private names used here, which `tests/recipes/ppo/test_hooks.py` holds to their signatures:
`_calculate_rewards`, `_compute_loss`, `_generate_and_score_completions`, `_generate_single_turn`,
`_get_per_token_logps_and_entropies`, `_load_from_checkpoint`, `_load_optimizer_and_scheduler`, `_metrics`, `_save`,
`_save_checkpoint`, `_step`.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from torch import nn
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import disable_dropout_in_model, use_adapter

from ..errors import RunError
from ..trainers.sampling import RowSamplingGRPOTrainer, base_model
from . import objective
from .config import PPOConfig
from .critic import FOLDER, attach, detached

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = dict[str, Any]


class PPOTrainer(RowSamplingGRPOTrainer):
    """Trains a policy against rewards, with a critic as the baseline.

    Args:
        model: The policy, a causal language model, with adapters or not.
        critic: A ``Critic`` or ``SharedCritic``; it becomes a submodule of the policy.
        reference: What the KL is measured to: the policy as it was. None where the policy's adapters
            are switched off to be the reference.
        args: The settings.
        **rest: As for TRL's GRPOTrainer: ``reward_funcs``, ``train_dataset`` with a column ``prompt``, ….
    """

    _tag_names = ["trl", "ppo"]  # noqa: RUF012 - TRL's own attribute
    _name = "PPO"
    _paper = {"title": "Proximal Policy Optimization Algorithms", "id": "1707.06347"}  # noqa: RUF012
    args: PPOConfig

    def __init__(
        self, model: Any, *, critic: nn.Module, reference: "PreTrainedModel | None", args: PPOConfig, **rest: Any
    ):
        super().__init__(model, reference=reference, args=args, **rest)
        if args.disable_dropout:
            disable_dropout_in_model(critic)
        policy = base_model(self)
        if not self.is_deepspeed_enabled:  # which places what it shards
            critic.to(self.accelerator.device)
        attach(policy, critic)
        self.kl_coef = objective.KLCoefficient(args.kl_coef, args.kl_target, args.kl_horizon)
        self._scores: torch.Tensor | None = None

    # --- Sampling: from prompts to advantages ---

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """Leaves out TRL's own pass for the old log-probabilities: they come together with the values."""
        # vLLM samples with other kernels, and TRL needs that pass to correct for them.
        return super()._get_per_token_logps_and_entropies(*args, **kwargs) if self.use_vllm else (None, None, None)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        """Hides the critic from vLLM, which is given every weight of the policy by its name."""
        with detached(base_model(self)) if self.use_vllm else nullcontext():
            return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        """Keeps the weighted sum of the terms of this process's rows, [B]."""
        terms = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        first = self.accelerator.process_index * len(prompts)
        if terms.isnan().all(dim=1).any():
            hint = "give a term that applies to every row, such as a reward model; GRPO and RLOO leave such answers out"
            raise RunError("no reward applies to an answer (all are None), and PPO learns from each", hint=hint)
        scores = (terms * self.reward_weights.to(terms.device)).nansum(dim=1)
        self._scores = scores[first : first + len(prompts)]
        return terms

    def _generate_and_score_completions(self, inputs: list[Batch]) -> Batch:
        """Samples and scores as TRL does, then turns scores into advantages and returns."""
        batch = super()._generate_and_score_completions(inputs)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode].pop("frac_reward_zero_std", None)  # of groups, which PPO has none of
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        with torch.no_grad(), disable_gradient_checkpointing(self.model, checkpointing):
            outputs = [self._forward(self.model, part, with_values=True) for part in self._chunks(batch)]
            policy, values = (torch.cat([output[place] for output in outputs]) for place in (0, 2))
            reference = self._reference_log_probs(batch)
        mask = _mask(batch)
        kl = objective.k1(policy, reference, mask)
        ended = self._ended(batch)
        scores = self._scores
        assert scores is not None, "_calculate_rewards has run"
        if self.args.missing_eos_penalty is not None:
            scores = scores - self.args.missing_eos_penalty * (~ended)
        rewards = objective.shaped_rewards(scores, kl, self.kl_coef.value, mask)
        advantages, returns = objective.gae(rewards, values, mask, gamma=self.args.gamma, lam=self.args.lam)
        rows = self._sum_over_processes(torch.stack([kl.sum(), (~ended).sum().float(), scores.new_tensor(len(scores))]))
        self._log_values(
            mode,
            kl=rows[0] / rows[2],
            kl_coef=self.kl_coef.value,
            missing_eos=rows[1] / rows[2],
            explained_variance=objective.explained_variance(values, returns, mask, self._sum_over_processes),
            value=objective.masked_moments(values, mask, self._sum_over_processes)[0],
            advantage=objective.masked_moments(advantages, mask, self._sum_over_processes)[0],
        )
        if mode == "train":
            self.kl_coef.update(float(rows[0] / rows[2]), int(rows[2]))
        if self.args.whiten_advantages:
            advantages = objective.whiten(advantages, mask, self._sum_over_processes)
        batch |= {"old_per_token_logps": policy, "old_values": values, "returns": returns, "advantages": advantages}
        return batch

    def _sum_over_processes(self, local: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(local, reduction="sum")  # type: ignore[return-value]

    def _log_values(self, mode: str, **values: Any) -> None:
        for name, value in values.items():
            self._metrics[mode][name].append(float(value))

    def _ended(self, batch: Batch) -> torch.Tensor:
        """Says of each completion whether its last token is an end token, [B]; by ids, since text does not show it."""
        ids, mask = batch["completion_ids"], batch["completion_mask"]
        last = ids.gather(1, (mask.sum(dim=1, keepdim=True) - 1).clamp(min=0)).squeeze(1)
        return torch.isin(last, torch.tensor(self.eos_token_ids, device=ids.device))

    def _reference_log_probs(self, batch: Batch) -> torch.Tensor:
        """Returns the reference's log-probabilities of the sampled tokens, [B, T]."""
        if self.ref_model is not None:
            return torch.cat([self._forward(self.ref_model, part)[0] for part in self._chunks(batch)])
        assert is_peft_model(self.model), "a policy without adapters has a reference model"
        policy: Any = self.accelerator.unwrap_model(self.model)
        with use_adapter(policy, adapter_name=None):
            return torch.cat([self._forward(self.model, part)[0] for part in self._chunks(batch)])

    def _chunks(self, batch: Batch) -> list[Batch]:
        """Cuts a generation batch into pieces of the size that fits into memory in training."""
        training = self.model.training
        size = self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        rows = len(batch["prompt_ids"])
        return [{name: batch[name][start : start + size] for name in names} for start in range(0, rows, size)]

    def _forward(self, model: Any, batch: Batch, *, with_values: bool = False) -> tuple[Any, Any, Any, Any]:
        """Runs the policy or the reference over prompts and completions."""
        # Gives of each token of the completions, [B, T]: its log-probability, the entropy of the distribution it was
        # drawn from and the value of the state before it; and the auxiliary loss of a mixture of experts.
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        length = batch["completion_ids"].shape[1]
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :-length] = -100
        extra = {"with_values": True} if with_values else {}
        if with_values and self.aux_loss_enabled:
            extra["output_router_logits"] = True
        with self.accelerator.autocast():
            output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True, **extra)
        entropy = None if output.entropy is None else output.entropy[:, -length:]
        # The value before the first token of the completion stands at the last token of the prompt.
        values = output.state_values[:, -length - 1 : -1] if with_values else None
        return output.log_probs[:, -length:], entropy, values, output.aux_loss

    # --- Learning: from a minibatch to its loss ---

    def _compute_loss(self, model: Any, inputs: Batch) -> torch.Tensor:
        """Is Schulman et al. 2017, eq 9, negated: policy loss + c1 value loss - c2 entropy, a mean over tokens."""
        new, entropy, values, aux_loss = self._forward(model, inputs, with_values=True)
        mask = _mask(inputs)
        old = inputs["old_per_token_logps"]
        policy_loss, policy_clipped = objective.clipped_policy_loss(
            new, old, inputs["advantages"], cliprange=self.args.cliprange
        )
        if "importance_sampling_ratio" in inputs:  # vLLM's probabilities differ from the policy's by rounding
            policy_loss = policy_loss * inputs["importance_sampling_ratio"]
        value_loss, value_clipped = objective.clipped_value_loss(
            values, inputs["old_values"], inputs["returns"], cliprange=self.args.cliprange_value
        )
        per_token = policy_loss + self.args.vf_coef * value_loss
        if self.args.entropy_coef:
            per_token = per_token - self.args.entropy_coef * entropy
        mode = "train" if self.model.training else "eval"
        steps = accumulated = 1
        if mode == "train":
            steps, accumulated = self.args.steps_per_generation or 1, self.current_gradient_accumulation_steps
        tokens = inputs["num_items_in_batch"].clamp(min=1.0)  # of the generation batch, all processes together
        # A mean over all tokens of the optimizer's step, wherever they are: each small batch is divided by its share of
        # the tokens of the generation batch, so that accumulation and processes do not change what is learnt. The
        # processes' gradients are averaged, those of an optimizer's step added up.
        loss = (per_token * mask).sum() / (tokens / self.accelerator.num_processes * accumulated / steps)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * aux_loss / accumulated
        logged = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "clip_ratio/policy": policy_clipped,
            "clip_ratio/value": value_clipped,
            "approx_kl": objective.approximate_kl(new, old),
        }
        sums = self._sum_over_processes(torch.stack([(value.detach() * mask).sum() for value in logged.values()]))
        means = sums * steps / tokens  # their mean over minibatches is the mean over tokens
        self._log_values(mode, **dict(zip(logged, means.tolist(), strict=True)))
        return loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Gives the critic's parameters groups of their own, with their own learning rate."""
        optimizer = super().create_optimizer(model)
        rate = self.args.critic_learning_rate
        if rate is None or any(group.get("critic") for group in optimizer.param_groups):
            return optimizer
        critic = {id(parameter) for parameter in base_model(self).critic.parameters()}
        for group in list(optimizer.param_groups):
            theirs = [parameter for parameter in group["params"] if id(parameter) in critic]
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in critic]
            if theirs:
                optimizer.add_param_group({**group, "params": theirs, "lr": rate, "critic": True})
        return optimizer

    # --- Saving and resuming ---

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Writes the policy as if it had no critic, and the critic into a folder of its own beside it."""
        folder = Path(output_dir or str(self.args.output_dir))
        critic = base_model(self).critic
        prefix = next(name for name, module in self.model.named_modules() if module is critic) + "."
        state = critic.state_dict()
        if state_dict is not None:  # gathered from all processes
            state = {name.removeprefix(prefix): t for name, t in state_dict.items() if name.startswith(prefix)}
            state_dict = {name: tensor for name, tensor in state_dict.items() if not name.startswith(prefix)}
        with detached(base_model(self)):
            super()._save(str(folder), state_dict=state_dict)
        if self.args.should_save:
            # The final adapter lies in a folder of its own inside the run's, where the merged policy will be.
            beside = folder.parent if folder.name == "adapter" else folder
            critic.save(beside / FOLDER, state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Reads policy and critic; under DeepSpeed its engine does."""
        with detached(base_model(self)) as critic:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        critic.load(Path(resume_from_checkpoint) / FOLDER)

    def _load_best_model(self) -> None:
        """Reads policy and critic of the best checkpoint; the engines of DeepSpeed and FSDP read both at once."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _more_state(self) -> dict[str, Any]:
        return {"kl_coef": self.kl_coef.value}

    def _take_back(self, state: dict[str, Any]) -> None:
        self.kl_coef.value = state.get("kl_coef", self.kl_coef.value)


def _mask(batch: Batch) -> torch.Tensor:
    """Returns 1 at the tokens that the policy wrote, [B, T]."""
    return batch["completion_mask"] * batch["tool_mask"] if "tool_mask" in batch else batch["completion_mask"]
