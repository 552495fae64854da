"""On-policy distillation: the teacher corrects what the student itself writes."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.load import load
from posttrain.recipes.train import train


def run(recipe: Path) -> list[dict[str, Any]]:
    """Trains a recipe and returns what it logged of each step."""
    loaded = load(recipe)
    train(loaded)
    lines = (Path(loaded.recipe.output_dir) / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(
    make_recipe: Callable[..., Path], tiny_model_dir: Path, beta: float
) -> None:
    sections = {"teacher": {"name_or_path": str(tiny_model_dir)}}
    logged = run(make_recipe("distill_on_policy", sections=sections, beta=beta, max_steps=2))
    assert [line["loss"] for line in logged] == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.slow
def test_it_comes_closer_to_the_teacher_on_its_own_answers(make_recipe: Callable[..., Path]) -> None:
    logged = run(
        make_recipe(
            "distill_on_policy",
            beta=1.0,
            learning_rate=0.003,
            max_steps=100,
            per_device_train_batch_size=16,
            save_strategy="no",
        )
    )
    assert logged[-1]["loss"] < 0.8 * logged[0]["loss"]


def test_adapters_learn_from_the_teacher_too(make_recipe: Callable[..., Path], other_model_dir: Path) -> None:
    sections = {"teacher": {"name_or_path": str(other_model_dir)}, "lora": {"r": 4}}
    logged = run(make_recipe("distill_on_policy", sections=sections, max_steps=2))
    assert logged[0]["grad_norm"] > 0


def test_answers_that_are_made_before_training_are_refused(
    make_recipe: Callable[..., Path], tiny_model_dir: Path
) -> None:
    sections = {"teacher": {"name_or_path": str(tiny_model_dir), "top_k": 4}}
    with pytest.raises(RecipeError, match="top_k is made before training"):
        run(make_recipe("distill_on_policy", sections=sections))


def test_the_private_names_of_trl_are_as_they_were() -> None:
    from trl.trainer.distillation_trainer import DistillationTrainer

    parameters = {
        "_tokenize_prompts": ["self", "prompts"],
        "_generate_single_turn": ["self", "prompt_ids", "images", "multimodal_fields", "has_tool_images"],
        "_get_train_sampler": ["self", "dataset"],
        "_get_eval_sampler": ["self", "eval_dataset"],
        "_save_checkpoint": ["self", "model", "trial"],
        "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    }
    for name, expected in parameters.items():
        assert list(inspect.signature(getattr(DistillationTrainer, name)).parameters) == expected, name
    source = inspect.getsource(DistillationTrainer)
    assert "self._step % generate_every == 0 or self._buffered_inputs is None" in source
    assert "self.generation_config = GenerationConfig(" in source
