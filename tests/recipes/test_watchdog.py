"""The watchdog: planted faults are caught and named, healthy runs left alone, and going back gives the same bits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from posttrain.data_tools.errors import SpecError
from posttrain.evals import checkpoints
from posttrain.recipes import faults
from posttrain.recipes.classification.trainer import ClassifyTrainer
from posttrain.recipes.decisions import check_engine, decide, trainer_config
from posttrain.recipes.errors import RecipeError, RunError
from posttrain.recipes.faults import Detector
from posttrain.recipes.load import load
from posttrain.recipes.ppo.trainer import PPOTrainer
from posttrain.recipes.train import train
from posttrain.recipes.trainers.preference import PreparedDPOTrainer
from posttrain.recipes.trainers.sampling import RowSamplingGRPOTrainer
from posttrain.recipes.trainers.text import PackedRowSFTTrainer
from transformers import Trainer

from . import warm
from .conftest import STAGE_RECIPES, for_cpus, log, losses, needs_deepspeed

Make = Callable[..., Path]
STEP = 25

# What becomes of the loss of a step, in value and in gradient.
LOSSES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nan": lambda loss: loss * torch.nan,
    "infinite": lambda loss: loss * torch.inf,
    "spike": lambda loss: loss + 5,
    "large gradient": lambda loss: loss + 1000 * (loss - loss.detach()),
    "gradient of nan": lambda loss: loss + (loss - loss.detach()).sqrt(),
}
NAMES = {
    "nan": "loss not finite",
    "infinite": "loss not finite",
    "spike": "loss spike",
    "large gradient": "exploding gradient",
    "gradient of nan": "gradient not finite",
    "masked": "no supervised token",
    "rewards": "reward collapse",
    "weights": "KL blow-up",
}


def planted(monkeypatch: pytest.MonkeyPatch, fault: str, step: int = STEP, trainer: Any = PackedRowSFTTrainer) -> None:
    """Makes a step of any run go wrong."""
    compute, take = trainer.compute_loss, trainer.get_batch_samples
    rewards, sampled = RowSamplingGRPOTrainer._calculate_rewards, RowSamplingGRPOTrainer.training_step

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss: Any = compute(self, *args, **kwargs)
        return LOSSES[fault](loss) if self.model.training and self.state.global_step + 1 == step else loss

    def get_batch_samples(self: Any, *args: Any, **kwargs: Any) -> Any:
        batches, items = take(self, *args, **kwargs)
        if self.state.global_step + 1 == step:
            for batch in batches:
                batch["labels"].fill_(-100)
        return batches, items

    def calculate_rewards(self: Any, *args: Any, **kwargs: Any) -> Any:
        return rewards(self, *args, **kwargs) - 5.0 * (self.state.global_step + 1 >= step)

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == step:
            with torch.no_grad():
                for weight in self.model.parameters():
                    weight.mul_(8)
        return sampled(self, *args, **kwargs)

    if fault in LOSSES:
        monkeypatch.setattr(trainer, "compute_loss", compute_loss)
    elif fault == "masked":
        monkeypatch.setattr(PackedRowSFTTrainer, "get_batch_samples", get_batch_samples)
    elif fault == "rewards":
        monkeypatch.setattr(RowSamplingGRPOTrainer, "_calculate_rewards", calculate_rewards)
    else:
        monkeypatch.setattr(RowSamplingGRPOTrainer, "training_step", training_step)


def events(recipe: Path) -> list[dict[str, Any]]:
    return faults.read(Path(yaml.safe_load(recipe.read_text())["output_dir"]))


_ALIKE = ("infinite", "gradient of nan")  # found as "nan" is


@pytest.mark.parametrize("fault", [pytest.param(name, marks=[pytest.mark.slow] * (name in _ALIKE)) for name in NAMES])
def test_a_planted_fault_is_caught_at_its_step(make_recipe: Make, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    planted(monkeypatch, fault)
    stage = "grpo" if fault in ("rewards", "weights") else "sft"
    small = {"max_completion_length": 4} if stage == "grpo" else {}
    options = {"max_steps": 30, "save_strategy": "no", "per_device_train_batch_size": 2, **small}
    recipe = make_recipe(stage, sections={"watchdog": "stop"}, **options)
    with pytest.raises(RunError, match=f"step {STEP}: ") as raised:
        train(load(recipe))
    (event,) = events(recipe)
    assert (event["step"], event["fault"], event["did"]) == (STEP, NAMES[fault], "stop")
    assert raised.value.hint == event["hint"]  # what to do


def test_by_default_a_fault_is_told_and_the_run_goes_on(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(monkeypatch, "spike")
    recipe = make_recipe(max_steps=28, save_strategy="no", learning_rate=1e-4)
    train(load(recipe))
    assert "watchdog: step 25: the loss is" in capsys.readouterr().out
    assert [event["did"] for event in events(recipe)] == ["warn"]
    assert len(log(recipe.parent / "run")) == 29


def test_a_run_that_goes_back_is_one_that_never_took_the_step(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, "nan")
    options = {"max_steps": 30, "save_steps": 10, "logging_steps": 3}

    def recipe_of(name: str) -> Path:
        return make_recipe(name=name, sections={"watchdog": "rewind"}, **options)

    recipe = recipe_of("back")
    train(load(recipe))
    back = recipe.parent / "back"
    assert [(event["step"], event["did"]) for event in events(recipe)] == [(STEP, "rewind")]
    lines = log(back)
    assert [line["step"] for line in lines if "skipped_steps" in line] == [27]
    assert all(isinstance(line["loss"], float) for line in lines if "loss" in line)

    with monkeypatch.context() as patch:  # one that knows it from the start
        patch.setattr(faults, "skipped_steps", lambda _: [STEP])
        train(load(recipe_of("told")))
    assert checkpoints.weights_hash(recipe.parent / "told") == checkpoints.weights_hash(back)
    assert log(recipe.parent / "told") == lines

    killed = recipe_of("killed")
    end = Trainer._maybe_log_save_evaluate

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> None:
        end(self, *args, **kwargs)
        if self.state.global_step == 27:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_maybe_log_save_evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(load(killed))
    train(load(killed))
    assert checkpoints.weights_hash(recipe.parent / "killed") == checkpoints.weights_hash(back)
    assert log(recipe.parent / "killed") == lines


TRAINERS = {"dpo": PreparedDPOTrainer, "classify": ClassifyTrainer, "ppo": PPOTrainer}


@pytest.mark.parametrize(
    "stage", [name if name == "dpo" else pytest.param(name, marks=pytest.mark.slow) for name in TRAINERS]
)
def test_any_stage_that_goes_back_is_one_that_never_took_the_step(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    planted(monkeypatch, "nan", 7, TRAINERS[stage])
    recipe = make_recipe(stage, "back", sections={"watchdog": "rewind"})
    train(load(recipe))
    assert [(event["step"], event["did"]) for event in events(recipe)] == [(7, "rewind")]
    with monkeypatch.context() as patch:  # one that knows it from the start
        patch.setattr(faults, "skipped_steps", lambda _: [7])
        train(load(make_recipe(stage, "told", sections={"watchdog": "rewind"})))
    back, told = recipe.parent / "back", recipe.parent / "told"
    assert checkpoints.weights_hash(told) == checkpoints.weights_hash(back)
    assert log(told) == log(back)


def swapped(recipe: Path) -> Path:
    """Makes a recipe's rows, of a preference, come in order, and turns round one of those of a step."""
    values = yaml.safe_load(recipe.read_text())
    rows = [json.loads(line) for line in Path(values["data"]["train"]["path"]).read_text().splitlines()]
    rows = [dict(rows[number % 8]) for number in range(120)]
    wrong = rows[4 * (STEP - 1)]  # in the batch of the first process alone
    wrong |= {"chosen": wrong["rejected"], "rejected": wrong["chosen"]}
    path = recipe.with_suffix(".rows.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values["data"] = {"train": {"path": str(path), "format": "preference"}, "order": "given"}
    recipe.write_text(yaml.safe_dump(values))
    return recipe


@pytest.mark.slow
def test_two_processes_find_a_fault_of_one_and_go_back_together(make_recipe: Make) -> None:
    options = {"max_steps": 28, "save_steps": 10}

    def recipe_of(name: str, rows: int) -> Path:
        sections = {"watchdog": "rewind"}
        return swapped(make_recipe("reward", name, sections, per_device_train_batch_size=rows, **options))

    one, two = recipe_of("one", 4), recipe_of("two", 2)
    train(load(one))
    done = warm.run_two("train", two)
    assert done.returncode == 0, done.stderr
    assert [(event["step"], event["fault"], event["did"]) for event in events(two)] == [(STEP, "loss spike", "rewind")]
    assert [(event["step"], event["did"]) for event in events(one)] == [(STEP, "rewind")]
    lines = log(two.parent / "two")
    assert [line["step"] for line in lines if "skipped_steps" in line] == [STEP]
    assert losses(two.parent / "two") == pytest.approx(losses(two.parent / "one"), abs=1e-4)


@pytest.mark.slow
@needs_deepspeed
def test_a_fault_ends_all_processes_of_zero(make_recipe: Make, tmp_path: Path) -> None:
    sections, options = {"watchdog": "stop"}, {"max_steps": 28, "save_strategy": "no"}
    recipe = swapped(make_recipe("reward", sections=sections, per_device_train_batch_size=2, **options))
    done = warm.run_two("train", recipe, config=for_cpus("zero3", tmp_path))
    assert done.returncode == 1, done.stderr
    assert f"watchdog: step {STEP}: the loss is" in done.stderr
    assert [(event["step"], event["fault"], event["did"]) for event in events(recipe)] == [(STEP, "loss spike", "stop")]
    assert "no norms of the gradient by group" in done.stdout


def test_a_run_that_goes_back_too_often_stops(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "MOST_REWINDS", 1)
    compute = PackedRowSFTTrainer.compute_loss
    monkeypatch.setattr(
        PackedRowSFTTrainer, "compute_loss", lambda self, *args, **kwargs: compute(self, *args, **kwargs) * torch.nan
    )
    recipe = make_recipe(sections={"watchdog": "rewind"}, max_steps=3)
    with pytest.raises(RunError, match=r"step 2: the loss is nan.*went back 1 time"):
        train(load(recipe))


def test_a_step_that_cannot_be_skipped_is_refused(make_recipe: Make) -> None:
    loaded = load(make_recipe(sections={"watchdog": "rewind"}))
    args = trainer_config(loaded)
    args.fp16 = True
    with pytest.raises(RecipeError, match="watchdog: rewind skips updates, which fp16 cannot"):
        decide(loaded, args)
    with pytest.raises(RecipeError, match="watchdog: rewind skips updates, which DeepSpeed cannot"):
        check_engine(loaded, "DeepSpeed")
    with pytest.raises(SpecError, match="watchdog"):
        load(make_recipe(sections={"watchdog": "bark"}))


def test_noise_and_a_falling_loss_are_no_faults() -> None:
    generator = torch.Generator().manual_seed(0)
    detector = Detector(clip=1.0)
    for step in range(1, 2000):
        noise, factor = torch.randn(2, generator=generator).tolist()
        loss = 1 + 5 * 0.99**step + 0.15 * noise
        assert detector.step(step, loss, 2.0 ** (1 + factor), 100) == []


def test_a_clipped_gradient_s_norm_may_vary_below_the_clip() -> None:
    detector = Detector(clip=1.0)
    assert not any(detector.step(step, 1.0, 1e-6, 1) for step in range(1, 30))
    assert detector.step(30, 1.0, 0.9, 1) == []
    assert detector.step(31, 1.0, 1.1, 1)[0].name == "exploding gradient"


def test_what_is_compared_is_kept_in_checkpoints(make_recipe: Make) -> None:
    train(load(make_recipe(save_steps=12)))
    kept = json.loads(next(Path(make_recipe().parent).glob("run/checkpoint-12/watchdog.json")).read_text())
    assert len(kept["history"]["loss"]) == 12


def test_the_private_name_that_is_read_still_exists() -> None:
    assert callable(Trainer._get_grad_norm)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20, 40))  # none of which chose a limit; of 0 to 19, two of kto did
def test_healthy_runs_are_left_alone(make_recipe: Make, seed: int) -> None:
    stages = [stage for stage in STAGE_RECIPES if stage != "distill_on_policy"]
    stage = stages[seed % len(stages)]
    rate = 1e-3 if stage in ("ppo", "grpo", "rloo") else 3e-3
    options = {"max_steps": 60, "save_strategy": "no", "learning_rate": rate, "seed": seed}
    recipe = make_recipe(stage, sections={"watchdog": "stop"}, **options)
    train(load(recipe))
    assert events(recipe) == []
