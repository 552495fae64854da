"""Settings that make no sense for PPO are refused, with what to say instead."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from posttrain.chat_templates.errors import InputError, PosttrainError
from posttrain.recipes.decisions import trainer_config
from posttrain.recipes.load import load


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"num_generations": 4}, "PPO samples one completion a prompt"),
        ({"beta": 0.1}, "say kl_coef"),
        ({"epsilon": 0.1}, "say cliprange"),
        ({"scale_rewards": "batch"}, "say whiten_advantages"),
        ({"loss_type": "dapo"}, "belongs to GRPO's losses"),
        ({"top_p": 0.9}, "samples from it uncut"),
        ({"top_k": 50}, "samples from it uncut"),
        ({"repetition_penalty": 1.1}, "samples from it uncut"),
        ({"mask_truncated_completions": True}, "say missing_eos_penalty"),
        ({"sync_ref_model": True}, "PPO's reference stays"),
        ({"use_adaptive_entropy": True}, "entropy_coef is fixed"),
        ({"reward_weights": [1.0]}, "say weight beside each of the rewards"),
        ({"kl_coeff": 0.1}, "did you mean 'kl_coef'"),
    ],
)
def test_a_field_of_grpo_that_has_no_part_in_ppo_is_refused(
    make_recipe: Callable[..., Path], trainer: dict[str, Any], message: str
) -> None:
    with pytest.raises(PosttrainError, match=message):
        load(make_recipe("ppo", **trainer))


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"kl_estimator": "k3"}, "kl_estimator k3 is refused: only k1 .* training with it collapses"),
        ({"generation_kwargs": {"top_p": 0.5}}, "generation_kwargs.top_p would sample from another distribution"),
        ({"lam": 1.5}, r"lam: must be in \[0, 1\], not 1.5"),
        ({"cliprange": 0.0}, r"cliprange: must be in \(0, "),
        ({"missing_eos_penalty": -1.0}, r"missing_eos_penalty: must be in \[0, "),
        ({"kl_target": 6.0, "kl_coef": 0.0}, "kl_target multiplies kl_coef, which is 0"),
        ({"per_device_train_batch_size": 1}, "at least 2 prompts in a generation batch"),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 3}, "must be a multiple of"),
    ],
)
def test_a_value_that_cannot_work_is_refused(
    make_recipe: Callable[..., Path], trainer: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        trainer_config(load(make_recipe("ppo", **trainer)))


def test_minibatches_and_generations_are_counted_in_prompts(make_recipe: Callable[..., Path]) -> None:
    args: Any = trainer_config(
        load(make_recipe("ppo", per_device_train_batch_size=3, gradient_accumulation_steps=2, steps_per_generation=4))
    )
    assert (args.generation_batch_size, args.steps_per_generation, args.num_generations) == (12, 4, 1)


def test_a_ppo_recipe_without_rewards_is_refused(make_recipe: Callable[..., Path]) -> None:
    with pytest.raises(PosttrainError, match="needs the section rewards"):
        load(make_recipe("ppo", sections={"rewards": []}))
