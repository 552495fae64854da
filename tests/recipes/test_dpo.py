"""DPO starts where its losses say, its reference is what the policy was, and a resume changes nothing."""

import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from posttrain.chat_templates.errors import InputError
from posttrain.data_tools.files import hash_file
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.load import load
from posttrain.recipes.stage_table import STAGES
from posttrain.recipes.train import train
from posttrain.recipes.trainer_fields import fields_of

from .preference import built, close, first_batch, logged, loss_of, resumed, run

Make = Callable[..., Path]
LORA = {"lora": {"r": 4, "alpha": 8}}
PISSA = {"adapter": {"type": "lora", "init_lora_weights": "pissa"}}
BETA, EPSILON, LN2 = 0.2, 0.1, math.log(2)

# What each loss is where the policy is its reference, so that every log-ratio is 0.
AT_REFERENCE = {
    "sigmoid": LN2,
    "sigmoid_norm": LN2,
    "hinge": 1.0,
    "ipo": 1 / (4 * BETA**2),
    "exo_pair": -LN2 - 0.5 * (math.log(1 - EPSILON) + math.log(EPSILON)),
    "nca_pair": 2 * LN2,
    "robust": LN2,
    "bco_pair": 2 * LN2,
    "sppo_hard": 2 * (0.5 / BETA) ** 2,
    "aot": LN2,
    "aot_unpaired": LN2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.5 * LN2 + 0.5,
}


def model_with(template: str, recipe: Path) -> dict[str, Any]:
    """Returns a model section with another template; llama3's tokens are new to the tiny tokenizer."""
    folder = yaml.safe_load(recipe.read_text())["model"]["name_or_path"]
    return {"model": {"name_or_path": folder, "chat_template": template}}


def test_the_first_logged_loss_is_ln_2(make_recipe: Make) -> None:
    run_dir = run(make_recipe("dpo", max_steps=3, save_strategy="no"))
    assert close(logged(run_dir)[0], LN2)
    assert logged(run_dir)[-1] < LN2 - 1e-3


def test_so_it_is_with_tokens_that_the_template_adds(make_recipe: Make) -> None:
    sections = model_with("llama3", make_recipe("dpo"))
    run_dir = run(make_recipe("dpo", sections=sections, max_steps=1, save_strategy="no"))
    assert close(logged(run_dir)[0], LN2)


@pytest.mark.parametrize("loss", AT_REFERENCE)
def test_each_loss_has_its_known_value_at_the_reference(make_recipe: Make, loss: str) -> None:
    smoothing = EPSILON if loss in ("exo_pair", "robust") else 0.0
    trainer = built(make_recipe("dpo", loss_type=loss, beta=BETA, label_smoothing=smoothing))
    assert loss_of(trainer) == pytest.approx(AT_REFERENCE[loss], rel=1e-6)


def test_the_sft_term_is_the_likelihood_of_the_chosen_answers(make_recipe: Make) -> None:
    trainer = built(make_recipe("dpo", loss_type="sft"))
    batch = first_batch(trainer)
    chosen = {name: value.chunk(2)[0] for name, value in batch.items()}
    with torch.no_grad():
        logits = trainer.model(input_ids=chosen["input_ids"], attention_mask=chosen["attention_mask"]).logits
    labels = chosen["input_ids"].masked_fill(chosen["completion_mask"] == 0, -100)[:, 1:]
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten()).item()
    assert loss_of(trainer, batch) == pytest.approx(expected, abs=1e-5)


def test_a_weighted_list_is_the_weighted_sum(make_recipe: Make) -> None:
    trainer = built(make_recipe("dpo", loss_type=["sigmoid", "hinge"], loss_weights=[2.0, 0.5]))
    assert close(loss_of(trainer), 2 * LN2 + 0.5)


def test_the_sft_term_does_not_depend_on_how_a_step_is_cut(make_recipe: Make) -> None:
    options = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 2.0], "max_steps": 3, "save_strategy": "no"}
    large = run(make_recipe("dpo", "large", per_device_train_batch_size=4, **options))
    small = run(make_recipe("dpo", "small", per_device_train_batch_size=1, gradient_accumulation_steps=4, **options))
    for name in ("loss", "grad_norm"):
        assert logged(small, name) == pytest.approx(logged(large, name), rel=1e-4)


@pytest.mark.parametrize("template", ["chatml", "llama3"])
def test_the_policy_without_its_adapter_is_the_reference(make_recipe: Make, template: str) -> None:
    sections = {**LORA, **model_with(template, make_recipe("dpo"))}
    trainer = built(make_recipe("dpo", sections=sections, max_steps=4, learning_rate=0.02, save_strategy="no"))
    assert trainer.ref_model is None
    batch = first_batch(trainer)
    explicit = built(make_recipe("dpo", "explicit", sections={"model": sections["model"]})).ref_model
    trainer.train()
    expected = torch.cat(trainer.compute_ref_log_probs(explicit, batch))
    reference = torch.cat(trainer.compute_ref_log_probs(trainer.model, batch))
    torch.testing.assert_close(reference, expected, atol=1e-4, rtol=1e-5)
    with torch.no_grad():
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        policy = trainer.model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs.sum(1)
    assert (policy - expected).abs().min() > 1e-3


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_the_reference_is_whole_where_the_adapter_starts_with_a_part_of_it(make_recipe: Make, start: str) -> None:
    trainer = built(make_recipe("dpo", sections={"adapter": {"type": "lora", "init_lora_weights": start}}))
    assert close(loss_of(trainer), LN2)


@pytest.mark.parametrize("sections", [{}, LORA])
def test_a_reference_computed_beforehand_gives_the_same_losses(make_recipe: Make, sections: dict[str, Any]) -> None:
    options = {"sections": sections, "max_steps": 5, "save_strategy": "no"}
    live = run(make_recipe("dpo", "live", **options))
    cached = run(make_recipe("dpo", "cached", precompute_ref_log_probs=True, **options))
    assert logged(cached) == pytest.approx(logged(live), abs=1e-5)


def test_a_reference_that_moves_is_restored_on_resume(make_recipe: Make) -> None:
    options = {"sync_ref_model": True, "ref_model_sync_steps": 3, "ref_model_mixup_alpha": 0.5}
    fixed = run(make_recipe("dpo", "fixed"))
    whole = run(make_recipe("dpo", "whole", **options))
    again = resumed(make_recipe("dpo", "again", **options))
    assert logged(whole)[:3] == logged(fixed)[:3]
    assert abs(logged(whole)[3] - logged(fixed)[3]) > 1e-6
    assert logged(again) == logged(whole)
    assert hash_file(again / "model.safetensors") == hash_file(whole / "model.safetensors")


@pytest.mark.parametrize("stage", ["dpo", "kto"])
@pytest.mark.parametrize(("sections", "option"), [(LORA, {}), (PISSA, {}), ({}, {"precompute_ref_log_probs": True})])
def test_a_reference_that_cannot_move_is_refused(
    make_recipe: Make, stage: str, sections: dict[str, Any], option: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match=r"trainer\.sync_ref_model .*drop one of the two"):
        train(load(make_recipe(stage, sections=sections, sync_ref_model=True, **option)))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"loss_type": "sigmiod"}, "did you mean 'sigmoid'"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "same length"),
        ({"f_divergence_type": "jensen"}, "f_divergence_type: has no value 'jensen'"),
        ({"loss_type": "aot", "use_weighting": True}, "drop one of the two"),
        ({"loss_type": "exo_pair"}, "[Ll]abel smoothing must be greater"),
    ],
)
def test_a_wrong_loss_is_refused_before_the_first_step(make_recipe: Make, option: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(load(make_recipe("dpo", **option)))


def test_the_losses_are_those_that_trl_knows() -> None:
    from trl.trainer.dpo_trainer import DPOTrainer

    fields = fields_of(STAGES["dpo"].config)
    losses = set(fields["loss_type"].choices)
    source = inspect.getsource(DPOTrainer._compute_loss)
    assert set(re.findall(r'loss_type == "(\w+)"', source)) == losses
    assert set(re.findall(r'f_divergence_type == "(\w+)"', source)) == set(fields["f_divergence_type"].choices)
    assert set(AT_REFERENCE) == losses - {"sft"}
    assert list(inspect.signature(DPOTrainer.get_batch_samples).parameters)[1:] == [
        "epoch_iterator",
        "num_batches",
        "device",
    ]
