"""The log says what each group of weights has in the norm of the gradient, and how many tokens were trained on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from posttrain.recipes import meter
from posttrain.recipes.load import load
from posttrain.recipes.meter import tokens_of
from posttrain.recipes.optimizers import trained_groups
from posttrain.recipes.train import train

from .conftest import log
from .test_optimizers import bert, gpt2

LAYERS = ["attention", "embeddings", "mlp", "norm"]


@pytest.mark.parametrize(
    ("stage", "sections", "options", "groups"),
    [
        ("sft", {}, {"max_grad_norm": 0.1}, LAYERS),
        ("sft", {}, {"max_grad_norm": 0, "gradient_accumulation_steps": 2}, LAYERS),
        ("sft", {"lora": {"r": 4, "modules_to_save": ["embed_tokens"]}}, {}, ["adapter", "embeddings"]),
        ("dpo", {"adapter": {"type": "prefix_tuning", "num_virtual_tokens": 2}}, {}, ["adapter"]),
        ("sft", {"adapter": {"type": "adaption_prompt", "adapter_len": 2, "adapter_layers": 1}}, {}, ["adapter"]),
        ("classify", {}, {}, ["attention", "embeddings", "head", "mlp", "norm"]),
        ("ppo", {}, {}, ["attention", "embeddings", "head", "mlp", "norm"]),
    ],
)
def test_the_groups_make_up_the_norm_before_clipping(
    make_recipe: Callable[..., Path], stage: str, sections: Any, options: dict[str, Any], groups: list[str]
) -> None:
    options = {"max_steps": 3, "logging_steps": 2, "save_strategy": "no", **options}
    recipe = make_recipe(stage, sections=sections, **options)
    train(load(recipe))
    lines = [line for line in log(recipe.parent / "run") if "loss" in line]
    for line in lines:
        found = {key.removeprefix("grad_norm/"): value for key, value in line.items() if key.startswith("grad_norm/")}
        assert sorted(found) == groups
        assert sum(norm**2 for norm in found.values()) ** 0.5 == pytest.approx(line["grad_norm"], rel=1e-4)
        assert min(found.values()) > 0
    assert len(lines) == 1


@pytest.mark.parametrize("stage", ["grpo", "ppo", "distill_on_policy"])
def test_sampled_tokens_count_each_time_they_are_learnt_from(
    make_recipe: Callable[..., Path], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    def tokens(batch: dict[str, Any]) -> Any:
        counted.append(int(tokens_of(batch)))
        return batch["completion_ids"].new_tensor(counted[-1])

    monkeypatch.setattr(meter, "tokens_of", tokens)
    iterations = {} if stage == "distill_on_policy" else {"num_iterations": 2}
    recipe = make_recipe(stage, max_steps=2, logging_steps=1, save_strategy="no", **iterations)
    train(load(recipe))
    lines = [json.loads(line) for line in (recipe.parent / "run" / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert len(lines) == 2
    assert all(line["tokens_per_second"] > 0 for line in lines)
    if iterations:  # both steps are on one generation
        assert sum(counted[: len(counted) // 2]) == sum(counted) / 2 > 0


def test_mismatched_answers_of_kto_are_read_and_not_trained_on() -> None:
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    rows = [{"prompt_ids": [1, 2, 3], "completion_ids": [4] * n, "KL_completion_ids": [5] * 9} for n in (1, 4)]
    batch = DataCollatorForUnpairedPreference(pad_token_id=0)([{**row, "label": True} for row in rows])
    assert int(tokens_of(batch)) == (3 + 1) + (3 + 4)


def test_weights_are_grouped_by_their_modules_whatever_they_are_called() -> None:
    for model in (bert(), gpt2()):
        groups = {kind: {id(weight) for weight in weights} for kind, weights in trained_groups(model).items()}
        assert sum(map(len, groups.values())) == len(list(model.parameters()))
        for name, weight in model.named_parameters():
            kind = next(kind for kind, weights in groups.items() if id(weight) in weights)
            for words, expected in ((("ln_", "LayerNorm"), "norm"), (("wte", "wpe", "_embeddings."), "embeddings")):
                if any(word in name for word in words):
                    assert kind == expected, name
            assert (kind == "attention") == (("attn." in name or "attention." in name) and "LayerNorm" not in name), (
                name
            )
        assert groups["mlp"]
