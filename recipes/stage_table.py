"""What must be known of each stage before anything heavy is imported; ``stages/`` builds their trainers."""

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ..data_tools.spec import Kind

_SFT_CONFIG = "trl:trainer/sft_config.py:SFTConfig"

# Trainer keys that posttrain sets from elsewhere: one way to say a thing.
_OWNED = {
    "output_dir": "say output_dir at the top level of the recipe",
    "resume_from_checkpoint": "a run resumes by itself from its newest whole checkpoint",
    "overwrite_output_dir": "use --force",
    "remove_unused_columns": "the data section prepares the columns",
    "do_train": "posttrain train trains",
    "do_eval": "say trainer.eval_strategy, and on what in data.eval",
    "do_predict": "use posttrain score",
    "local_rank": "the launcher sets it",
    **dict.fromkeys(("fsdp", "fsdp_config"), "launch with an accelerate config, such as --accelerate fsdp2"),
    "deepspeed": "launch with an accelerate config, such as --accelerate zero2",
}
_OWNED_TRL = {
    **_OWNED,
    "model_init_kwargs": "say it in the model section",
    "trust_remote_code": "say model.trust_remote_code",
}
_UNSMOOTHED = {**_OWNED_TRL, "label_smoothing_factor": "the stage's loss is of no labels that could be smoothed"}
_OWNED_REWARD = {
    **_UNSMOOTHED,
    "chat_template_path": "say model.chat_template",
    "eos_token": "the chat template sets it",
    "pad_token": "the chat template sets it",
}
_OWNED_SFT = {
    **{key: where for key, where in _OWNED_REWARD.items() if key != "label_smoothing_factor"},
    "dataset_text_field": "map columns in the data section",
    "dataset_kwargs": "the data section prepares the rows",
    "truncation_mode": "say data.too_long",
    "padding_free": "packed rows are flattened only where a varlen attention kernel is installed",
    "eval_packing": "evaluation rows are packed as training rows are",
}
_OWNED_DPO = {**_UNSMOOTHED, "truncation_mode": "say data.too_long", "pad_token": "the chat template sets it"}
_OWNED_ORPO = {
    **_UNSMOOTHED,
    "is_encoder_decoder": "only decoder models are trained here",
    "generate_during_eval": "use posttrain score",
    "padding_value": "the chat template sets it",
    "max_completion_length": "only encoder-decoder models cut answers apart; say max_length",
}
_OWNED_RL = {
    **_UNSMOOTHED,
    "reward_weights": "say weight beside each of the rewards",
    "chat_template_kwargs": "write it into the template that model.chat_template names",
}
_ONE_COMPLETION = "PPO samples one completion a prompt; the critic is its baseline"
_OFF_POLICY = "PPO compares probabilities of the policy itself, so it samples from it uncut; temperature may be set"
_GRPO_LOSS = "belongs to GRPO's losses; PPO's is clipped by cliprange"
_OWNED_PPO = {
    **_OWNED_RL,
    "beta": "say kl_coef",
    "epsilon": "say cliprange",
    "num_generations": _ONE_COMPLETION,
    "num_generations_eval": _ONE_COMPLETION,
    "scale_rewards": "groups have no part in PPO; say whiten_advantages",
    "multi_objective_aggregation": "PPO adds the rewards up by their weights",
    "mask_truncated_completions": "say missing_eos_penalty",
    "max_tool_calling_iterations": "PPO calls no tools",
    **dict.fromkeys(("top_p", "top_k", "min_p", "repetition_penalty"), _OFF_POLICY),
    **dict.fromkeys(("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"), "PPO's reference stays"),
    **dict.fromkeys(
        (
            *("loss_type", "epsilon_high", "delta", "importance_sampling_level", "off_policy_mask_threshold"),
            *("sapo_temperature_neg", "sapo_temperature_pos", "use_bias_correction_kl", "top_entropy_quantile"),
            *("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
        ),
        _GRPO_LOSS,
    ),
    **dict.fromkeys(
        (
            *("use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta"),
            "entropy_target",
        ),
        "PPO's entropy_coef is fixed",
    ),
}
_OWNED_ON_POLICY = {
    **_UNSMOOTHED,
    "teacher_model_name_or_path": "say teacher.name_or_path",
    "teacher_model_revision": "say teacher.revision",
    "teacher_model_init_kwargs": "say it in the teacher section",
}


@dataclass(frozen=True)
class Stage:
    """What must be known of a stage before anything heavy is imported.

    Attributes:
        family: The module of ``stages/`` that builds it.
        config: The trainer's configuration class, as ``trainer_fields.fields_of`` takes it.
        accepts: The kinds of rows it trains on.
        defaults: Trainer fields that differ from the configuration class's own defaults.
        owned: Trainer fields that the recipe must say elsewhere, with where.
        sections: Top-level sections of a recipe that only some stages have, and this one may have.
        required: Those of them that it must have.
        headed: Whether it trains a classification head, which its family's ``head(job, data)`` describes, instead of
            a language model.
    """

    family: Literal["text", "masked", "preference", "sampling", "classify"]
    config: str
    accepts: "tuple[Kind, ...]"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    owned: Mapping[str, str] = field(default_factory=lambda: _OWNED_TRL)
    sections: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    headed: bool = False

    def module(self) -> ModuleType:
        """Imports the family's module."""
        return importlib.import_module(f".stages.{self.family}", __package__)

    def config_class(self) -> Any:
        """Imports the configuration class."""
        package, file, name = self.config.split(":")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")
            module = importlib.import_module(f"{package}.{file.removesuffix('.py').replace('/', '.')}")
        return getattr(module, name)


_ALL_LOSS = "pretraining puts loss on every token"
_RL_SECTIONS = frozenset({"rewards", "gold"})
_ROLLOUT_SECTIONS = frozenset({"tools", "environment", "rollout_func"})  # TRL 1.16 has them in GRPO alone

STAGES: Mapping[str, Stage] = {
    "pretrain": Stage(
        family="text",
        config=_SFT_CONFIG,
        accepts=("text",),
        defaults={"packing": True, "packing_strategy": "bfd_split"},
        owned={**_OWNED_SFT, "assistant_only_loss": _ALL_LOSS, "completion_only_loss": _ALL_LOSS},
        sections=frozenset({"objective"}),
    ),
    "sft": Stage(
        family="text",
        config=_SFT_CONFIG,
        accepts=("messages", "prompt_completion"),
        defaults={"assistant_only_loss": True, "completion_only_loss": True},
        owned=_OWNED_SFT,
    ),
    "reward": Stage(
        family="preference",
        config="trl:trainer/reward_config.py:RewardConfig",
        accepts=("preference",),
        owned=_OWNED_REWARD,
        headed=True,
    ),
    "dpo": Stage(
        family="preference", config="trl:trainer/dpo_config.py:DPOConfig", accepts=("preference",), owned=_OWNED_DPO
    ),
    "kto": Stage(
        family="preference",
        config="trl:trainer/kto_config.py:KTOConfig",
        accepts=("unpaired", "preference"),
        owned=_UNSMOOTHED,
    ),
    "orpo": Stage(
        family="preference",
        config="trl:experimental/orpo/orpo_config.py:ORPOConfig",
        accepts=("preference",),
        owned=_OWNED_ORPO,
    ),
    "grpo": Stage(
        family="sampling",
        config="trl:trainer/grpo_config.py:GRPOConfig",
        accepts=("prompt",),
        owned=_OWNED_RL,
        sections=_RL_SECTIONS | _ROLLOUT_SECTIONS,
        required=frozenset({"rewards"}),
    ),
    "rloo": Stage(
        family="sampling",
        config="trl:trainer/rloo_config.py:RLOOConfig",
        accepts=("prompt",),
        owned=_OWNED_RL,
        sections=_RL_SECTIONS,
        required=frozenset({"rewards"}),
    ),
    "ppo": Stage(
        family="sampling",
        config="posttrain.recipes:ppo/config.py:PPOConfig",
        accepts=("prompt",),
        owned=_OWNED_PPO,
        sections=_RL_SECTIONS | {"critic"},
        required=frozenset({"rewards"}),
    ),
    "classify": Stage(
        family="classify",
        config="posttrain.recipes:classification/trainer.py:ClassifyConfig",
        accepts=("classification",),
        owned=_OWNED,
        sections=frozenset({"classify", "teacher"}),
        headed=True,
    ),
    "distill": Stage(
        family="text",
        config="posttrain.recipes:distillation/trainer.py:DistillConfig",
        accepts=("messages", "prompt_completion", "text"),
        defaults={"assistant_only_loss": True, "completion_only_loss": True},
        owned=_OWNED_SFT,
        sections=frozenset({"teacher"}),
        required=frozenset({"teacher"}),
    ),
    "distill_on_policy": Stage(
        family="sampling",
        config="trl:trainer/distillation_config.py:DistillationConfig",
        accepts=("prompt",),
        owned=_OWNED_ON_POLICY,
        sections=frozenset({"teacher"}),
        required=frozenset({"teacher"}),
    ),
}
STAGE_SECTIONS = frozenset({"teacher", "critic", "classify", "objective"}) | _RL_SECTIONS | _ROLLOUT_SECTIONS

_NO_PACKING = "an encoder's tokens would see the other documents of a packed row; texts of like lengths share a batch"
_MASKED = Stage(
    family="masked",
    config="posttrain.recipes:trainers/masked.py:MaskedConfig",
    accepts=("text",),
    owned={
        **_OWNED,
        **dict.fromkeys(("packing", "packing_strategy", "padding_free", "eval_packing"), _NO_PACKING),
        **dict.fromkeys(("assistant_only_loss", "completion_only_loss"), "masked tokens carry loss, and no others"),
        "label_smoothing_factor": "the loss of masked tokens is not smoothed",
    },
    sections=frozenset({"objective"}),
)


def stage_of(recipe: Mapping[str, Any]) -> Stage | None:
    """Returns what must be known of the stage of a recipe, given its values; None if there is no such stage.

    What `pretrain` is depends on what it learns.
    """
    if recipe.get("stage") == "pretrain" and recipe.get("objective") is not None:
        return _MASKED
    return STAGES.get(str(recipe.get("stage")))
