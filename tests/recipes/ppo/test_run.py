"""PPO from a recipe to its checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from posttrain.data_tools.files import hash_file
from posttrain.evals import checkpoints
from posttrain.recipes.errors import RecipeError

from ..conftest import run
from ..test_resume import WEIGHTS, undo_end

FUNCTIONS = Path(__file__).parents[1] / "reward_functions.py"
SHARE = {"function": f"{FUNCTIONS}:share_of_low_ids", "name": "share"}
LENGTH = {"function": f"{FUNCTIONS}:length"}
SHORT = {"max_steps": 2, "save_strategy": "no"}

Maker = Callable[..., Path]


def log(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def curve(run_dir: Path, *names: str) -> list[list[Any]]:
    return [[line[name] for line in log(run_dir) if name in line] for name in names]


def critic_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "critic" / WEIGHTS)


def scorer(folder: Path, base: Path) -> Path:
    """Saves a reward model with random weights in its head, as a `reward` run would."""
    from posttrain import chat_templates
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    chat_templates.install(chat_templates.load("chatml"), tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


def with_eval(recipe: Path) -> Path:
    """Lets a recipe evaluate on rows of its training file."""
    import yaml

    value = yaml.safe_load(recipe.read_text())
    value["data"]["eval"] = {**value["data"]["train"], "limit": 8}
    recipe.write_text(yaml.safe_dump(value))
    return recipe


def test_everything_is_logged_in_training_and_in_evaluation_and_gold_is_not_trained_on(make_recipe: Maker) -> None:
    sections = {"rewards": [{**SHARE, "weight": 2.0}], "gold": LENGTH}
    evaluation = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}
    recipe = make_recipe("ppo", sections=sections, max_steps=4, save_strategy="no", **evaluation)
    run_dir = run(with_eval(recipe))
    names = ["reward", "rewards/share/mean", "rewards/gold/mean", "kl", "kl_coef", "missing_eos", "explained_variance"]
    names += ["value_loss", "policy_loss", "clip_ratio/policy", "clip_ratio/value", "entropy", "approx_kl"]
    names += ["completions/mean_length"]
    lines = log(run_dir)
    first = next(line for line in lines if "loss" in line)
    assert set(names) <= first.keys()
    evaluated = [line for line in lines if "eval_reward" in line]
    assert len(evaluated) == 3
    assert {f"eval_{name}" for name in names} <= evaluated[0].keys()
    assert first["reward"] == pytest.approx(2 * first["rewards/share/mean"])  # gold weighs nothing
    assert first["rewards/gold/mean"] == pytest.approx(first["completions/mean_length"])
    assert first["kl"] == 0  # the policy is still its reference
    assert first["clip_ratio/policy"] == 0
    assert first["approx_kl"] == 0


def test_an_evaluation_draws_with_the_same_numbers_each_time(make_recipe: Maker) -> None:
    recipe = make_recipe("ppo", max_steps=4, save_strategy="no", learning_rate=0.0, eval_strategy="steps", eval_steps=2)
    [rewards] = curve(run(with_eval(recipe)), "eval_reward")
    assert len(set(rewards)) == 1


def test_the_policy_is_a_plain_model_and_the_critic_another_beside_it(make_recipe: Maker) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    run_dir = run(make_recipe("ppo"))
    for folder in (run_dir, run_dir / "checkpoint-4"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        policy = loaded[1]
        critic, valued = AutoModelForSequenceClassification.from_pretrained(folder / "critic", output_loading_info=True)
        for info in (policy, valued):
            assert not info["missing_keys"]
            assert not info["unexpected_keys"]
        assert critic.config.num_labels == 1
        manifest = checkpoints.read_manifest(folder)
        assert manifest is not None
        assert f"critic/{WEIGHTS}" in manifest.files
    start, end = critic_of(run_dir / "checkpoint-4"), critic_of(run_dir)
    assert any(not torch.equal(start[name], end[name]) for name in end)


@pytest.mark.parametrize("shared", [False, True])
def test_policy_critic_coefficient_and_generation_go_on_after_a_resume(make_recipe: Maker, shared: bool) -> None:
    trainer = {
        "steps_per_generation": 2,  # two minibatches, twice: a save at step 6 lies within a generation
        "max_steps": 10,
        "save_steps": 6,
        "kl_target": 0.1,
        "kl_horizon": 20,
        "critic_learning_rate": 0.01,
    }
    sections = {"critic": {"shared": True}} if shared else {}
    recipe = make_recipe("ppo", sections=sections, **trainer)
    run_dir = run(recipe)
    names = ("loss", "reward", "kl", "kl_coef", "value_loss", "explained_variance")
    expected, weights, critic = curve(run_dir, *names), hash_file(run_dir / WEIGHTS), critic_of(run_dir)
    assert len(set(expected[3])) > 1
    undo_end(run_dir)
    (run_dir / "checkpoint-10" / "optimizer.pt").unlink()
    run(recipe)
    assert curve(run_dir, *names) == expected
    assert hash_file(run_dir / WEIGHTS) == weights
    resumed = critic_of(run_dir)
    assert all(torch.equal(resumed[name], critic[name]) for name in critic)


def test_a_critic_from_a_reward_model_keeps_its_head_and_a_fresh_one_says_nothing(
    make_recipe: Maker, tmp_path: Path, tiny_model_dir: Path
) -> None:
    from safetensors.torch import load_file

    named = scorer(tmp_path / "scorer", tiny_model_dir)
    sections = {"critic": {"name_or_path": str(named)}}
    frozen = {**SHORT, "learning_rate": 0.0}
    run_dir = run(make_recipe("ppo", "named", sections=sections, **frozen))
    assert torch.equal(critic_of(run_dir)["score.weight"], load_file(named / WEIGHTS)["score.weight"])
    assert log(run_dir)[0]["value"] != 0
    fresh = run(make_recipe("ppo", "fresh", **frozen))
    assert critic_of(fresh)["score.weight"].abs().sum() == 0
    assert log(fresh)[0]["value"] == 0


def test_a_critic_that_reads_other_tokens_is_refused(make_recipe: Maker, tmp_path: Path, tiny_model_dir: Path) -> None:
    import shutil

    from transformers import AutoTokenizer

    shutil.copytree(tiny_model_dir, tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.add_tokens(["<strange>"])
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(RecipeError, match=r"critic: .*other has another vocabulary than the policy"):
        run(make_recipe("ppo", sections={"critic": {"name_or_path": str(tmp_path / "other")}}))


def test_the_critic_has_a_learning_rate_of_its_own(make_recipe: Maker) -> None:
    start = run(make_recipe("ppo", "start", **SHORT, learning_rate=0.0))
    still = run(make_recipe("ppo", "still", **SHORT, learning_rate=0.0, critic_learning_rate=0.01))
    assert hash_file(still / WEIGHTS) == hash_file(start / WEIGHTS)
    before, after = critic_of(start), critic_of(still)
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_with_adapters_the_reference_is_the_policy_without_them(make_recipe: Maker, tiny_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    sections = {"lora": {"r": 4, "alpha": 8}, "critic": {"shared": True}}
    run_dir = run(make_recipe("ppo", sections=sections, learning_rate=0.02, save_steps=8))
    [kl] = curve(run_dir, "kl")
    assert kl[0] == 0
    assert kl[-1] != 0
    final = AutoModelForCausalLM.from_pretrained(run_dir).state_dict()
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir).state_dict()
    assert final.keys() == base.keys()
    assert any(not torch.equal(final[name], base[name]) for name in base)
    assert list(critic_of(run_dir)) == ["score.weight"]
    expected = hash_file(run_dir / WEIGHTS)
    undo_end(run_dir)
    (run_dir / "checkpoint-12" / "optimizer.pt").unlink()
    run(make_recipe("ppo", sections=sections, learning_rate=0.02, save_steps=8))
    assert hash_file(run_dir / WEIGHTS) == expected


def test_a_missing_end_costs_what_the_recipe_says(make_recipe: Maker) -> None:
    """With gamma and lambda 1 and values of 0, the mean advantage is the mean return over tokens."""
    trainer = {**SHORT, "lam": 1.0, "kl_coef": 0.0, "max_completion_length": 2}
    plain = log(run(make_recipe("ppo", "plain", **trainer)))[0]
    docked = log(run(make_recipe("ppo", "docked", **trainer, missing_eos_penalty=3.0)))[0]
    assert plain["missing_eos"] == docked["missing_eos"] == 1.0
    assert docked["reward"] == plain["reward"]  # what is logged is what the rewards say
    assert docked["advantage"] == pytest.approx(plain["advantage"] - 3.0, abs=1e-5)


def test_a_token_of_the_template_that_ends_a_turn_is_an_end(make_recipe: Maker, tmp_path: Path, tokenizer: Any) -> None:
    """A policy that always ends at once: nothing is missing, though the text shows no end."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
    )
    model: Any = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.norm.weight.fill_(1.0)
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("<|im_end|>")] = 10.0
    model.save_pretrained(tmp_path / "ends")
    tokenizer.save_pretrained(tmp_path / "ends")
    sections = {
        "model": {"name_or_path": str(tmp_path / "ends"), "chat_template": "chatml"},
        "rewards": [LENGTH],
    }
    first = log(run(make_recipe("ppo", sections=sections, **SHORT)))[0]
    assert first["missing_eos"] == 0
    assert first["reward"] == 1


def test_text_prompts_and_their_columns_reach_the_reward(make_recipe: Maker, tmp_path: Path) -> None:
    rows = tmp_path / "text.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n} and", "answer": f"{n}"}) + "\n" for n in range(16)))
    (tmp_path / "mine.py").write_text(
        "def mine(prompts, completions, answer):\n"
        "    assert all(isinstance(text, str) for text in completions)\n"
        "    return [float(prompt == f'{value} and') for prompt, value in zip(prompts, answer)]\n"
    )
    sections = {
        "data": {"train": {"path": str(rows), "format": "prompt", "raw": True}},
        "rewards": [{"function": "mine.py:mine"}],
    }
    assert log(run(make_recipe("ppo", sections=sections, **SHORT)))[0]["reward"] == 1


@pytest.mark.parametrize("stage", ["ppo", "grpo", "rloo"])
def test_a_reward_model_and_a_function_are_added_by_their_weights(
    make_recipe: Maker, tmp_path: Path, tiny_model_dir: Path, stage: str
) -> None:
    named = scorer(tmp_path / "scorer", tiny_model_dir)
    rewards = [{"model": str(named), "weight": 0.5}, SHARE]
    first = log(run(make_recipe(stage, sections={"rewards": rewards, "gold": LENGTH}, **SHORT)))[0]
    assert first["rewards/scorer/mean"] != 0
    assert first["reward"] == pytest.approx(0.5 * first["rewards/scorer/mean"] + first["rewards/share/mean"], abs=1e-5)
    assert first["rewards/gold/mean"] > 0


@pytest.mark.slow
def test_it_learns(make_recipe: Maker) -> None:
    """The share of half of the vocabulary rises from about a half, within 25 x 32 completions."""
    run_dir = run(
        make_recipe(
            "ppo",
            per_device_train_batch_size=32,
            max_steps=100,
            num_iterations=4,
            save_strategy="no",
            learning_rate=0.003,
            lr_scheduler_type="constant",
            kl_coef=0.0,
        )
    )
    [rewards] = curve(run_dir, "reward")
    assert rewards[0] < 0.65
    assert sum(rewards[-3:]) / 3 > 0.75


def test_gradient_checkpointing_changes_no_loss(make_recipe: Maker) -> None:
    plain = curve(run(make_recipe("ppo", "plain", **SHORT)), "loss", "grad_norm")
    saving = curve(run(make_recipe("ppo", "saving", **SHORT, gradient_checkpointing=True)), "loss", "grad_norm")
    for one, other in zip(plain, saving, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)
