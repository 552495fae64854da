"""The private names of TRL and transformers that the trainers build on are as they were when this was written."""

import inspect
from typing import Any

import pytest
from transformers import Trainer
from trl.models.utils import disable_gradient_checkpointing, prepare_deepspeed, prepare_fsdp
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.utils import FusedCausalLMOutput, RepeatSampler, add_fused_lm_head, use_adapter

SIGNATURES: list[tuple[Any, str, list[str]]] = [
    (GRPOTrainer, "_calculate_rewards", ["inputs", "prompts", "completions", "completion_ids_list"]),
    (GRPOTrainer, "_compute_loss", ["model", "inputs"]),
    (GRPOTrainer, "_generate_and_score_completions", ["inputs"]),
    (
        GRPOTrainer,
        "_generate_single_turn",
        ["prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
    ),
    (GRPOTrainer, "_get_train_sampler", ["dataset"]),
    (GRPOTrainer, "_get_eval_sampler", ["eval_dataset"]),
    (GRPOTrainer, "_tokenize_prompts", ["prompts"]),
    (GRPOTrainer, "_save_checkpoint", ["model", "trial"]),
    (GRPOTrainer, "_load_optimizer_and_scheduler", ["checkpoint"]),
    (RLOOTrainer, "_generate_single_turn", ["prompt_ids", "images", "multimodal_fields"]),
    (RLOOTrainer, "_get_train_sampler", ["dataset"]),
    (RLOOTrainer, "_get_eval_sampler", ["eval_dataset"]),
    (RLOOTrainer, "_tokenize_prompts", ["prompts"]),
    (RLOOTrainer, "_save_checkpoint", ["model", "trial"]),
    (Trainer, "_load_optimizer_and_scheduler", ["checkpoint"]),
    (Trainer, "_load_from_checkpoint", ["resume_from_checkpoint", "model"]),
    (Trainer, "_save", ["output_dir", "state_dict"]),
    (Trainer, "create_optimizer", ["model"]),
    (Trainer, "_get_output_dir", ["trial"]),
]


@pytest.mark.parametrize(("owner", "name", "expected"), SIGNATURES, ids=lambda value: getattr(value, "__name__", None))
def test_an_overridden_method_takes_what_it_took(owner: Any, name: str, expected: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters)[1:] == expected


def test_the_forward_for_log_probabilities_starts_with_the_model() -> None:
    names = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert names[:7] == [
        "self",
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
    ]


@pytest.mark.parametrize("trainer", [GRPOTrainer, RLOOTrainer])
def test_the_attributes_that_are_read_and_set_still_exist(trainer: Any) -> None:
    source = inspect.getsource(trainer)
    for line in (
        "self._step = 0",
        "self._step += 1",
        "self._buffered_inputs = None",
        "self._metrics = {",
        "if self._step % generate_every == 0 or self._buffered_inputs is None:",
        "generate_every = self.args.steps_per_generation * self.num_iterations",
        "self.beta = args.beta",
        "if self.beta == 0.0:",
        "self.eos_token_ids = ",
        "self.generation_config = GenerationConfig(",
        "unwrapped_model.generate(",
        "prompt_ids, images, multimodal_fields = self._tokenize_prompts(prompts)",
    ):
        assert line in source, line
    assert "repeat_count=self.num_iterations * self.args.steps_per_generation" in source


def test_the_helpers_take_what_they_took() -> None:
    assert list(inspect.signature(add_fused_lm_head).parameters) == [
        "model",
        "temperature",
        "cast_lm_head_to_fp32",
        "outputs",
    ]
    assert list(inspect.signature(use_adapter).parameters) == ["model", "adapter_name"]
    assert list(inspect.signature(prepare_deepspeed).parameters) == ["model", "accelerator"]
    assert list(inspect.signature(prepare_fsdp).parameters) == ["model", "accelerator"]
    assert next(iter(inspect.signature(disable_gradient_checkpointing).parameters)) == "model"
    assert list(inspect.signature(RepeatSampler).parameters) == [
        "data_source",
        "mini_repeat_count",
        "batch_size",
        "repeat_count",
        "shuffle",
        "seed",
    ]
    assert {"log_probs", "entropy", "aux_loss"} <= set(FusedCausalLMOutput.__dataclass_fields__)


def test_the_versions_that_this_holds_for_are_pinned() -> None:
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    [trl] = [line for line in project["dependencies"] if line.startswith("trl")]
    assert "<" in trl or "==" in trl or "~=" in trl
