"""KTO begins at one half and sees a whole step's divergence; ORPO is its formula."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from posttrain.chat_templates.errors import InputError
from posttrain.data_tools.errors import DataError
from posttrain.recipes.load import load
from posttrain.recipes.train import train

from .preference import built, close, first_batch, logged, loss_of, resumed, run

Make = Callable[..., Path]
LORA = {"lora": {"r": 4, "alpha": 8}}


def unpaired(tmp_path: Path, labels: list[bool]) -> dict[str, Any]:
    path = tmp_path / "labels.jsonl"
    rows = [{"prompt": f"What is {n}?", "completion": f" It is {n}.", "label": label} for n, label in enumerate(labels)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"data": {"train": {"path": str(path), "format": "unpaired"}}}


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("sections", [{}, LORA])
def test_kto_begins_at_one_half(make_recipe: Make, loss: str, sections: dict[str, Any]) -> None:
    run_dir = run(make_recipe("kto", sections=sections, loss_type=loss, max_steps=4, save_strategy="no"))
    assert close(logged(run_dir)[0], 0.5)
    assert logged(run_dir)[-1] < 0.5 - 1e-4


def test_weights_of_wanted_and_unwanted_answers_scale_their_losses(make_recipe: Make, tmp_path: Path) -> None:
    sections = unpaired(tmp_path, [True, False, False, False] * 6)
    trainer = built(make_recipe("kto", sections=sections, desirable_weight=3.0, undesirable_weight=0.5))
    batch = first_batch(trainer, 8)
    wanted = batch["label"].float().mean().item()
    assert close(loss_of(trainer, batch), 0.5 * (3.0 * wanted + 0.5 * (1 - wanted)))


def test_every_step_pairs_its_prompts_with_its_own_answers_moved_on_by_one(make_recipe: Make) -> None:
    trainer = built(make_recipe("kto", per_device_train_batch_size=2, gradient_accumulation_steps=3))
    rows = trainer.train_dataset.to_list()
    assert [row["prompt_ids"] for row in rows] != sorted(row["prompt_ids"] for row in rows)
    for start in range(0, 78, 6):
        step = rows[start : start + 6]
        answers = [row["completion_ids"] for row in step]
        assert [row["KL_completion_ids"] for row in step] == answers[-1:] + answers[:-1]


def test_the_divergence_of_a_step_is_trls_where_the_step_is_one_batch(make_recipe: Make) -> None:
    trainer = built(make_recipe("kto", learning_rate=0.02, max_steps=2, save_strategy="no"))
    trainer.train()
    found = []
    for start in range(0, 40, 4):
        batch = trainer.data_collator([trainer.train_dataset[number] for number in range(start, start + 4)])
        (prepared,), _ = trainer.get_batch_samples(iter([dict(batch)]), 1, trainer.args.device)
        found.append(float(prepared["step_kl"]))
        assert loss_of(trainer, prepared) == pytest.approx(loss_of(trainer, batch), abs=1e-6)
    assert max(found) > 1e-2, "where it is negative it counts as 0, which shows nothing"


@pytest.mark.parametrize("sections", [{}, LORA])
def test_a_reference_computed_beforehand_gives_the_same_losses(make_recipe: Make, sections: dict[str, Any]) -> None:
    options = {"sections": sections, "max_steps": 5, "save_strategy": "no"}
    live = run(make_recipe("kto", "live", **options))
    cached = run(make_recipe("kto", "cached", precompute_ref_log_probs=True, **options))
    assert logged(cached) == pytest.approx(logged(live), abs=1e-5)


def test_a_reference_that_moves_is_restored_on_resume(make_recipe: Make) -> None:
    options = {"sync_ref_model": True, "ref_model_sync_steps": 3}
    whole = run(make_recipe("kto", "whole", **options))
    assert logged(resumed(make_recipe("kto", "again", **options))) == logged(whole)


def test_pairs_become_one_wanted_and_one_unwanted_answer(make_recipe: Make, tmp_path: Path) -> None:
    make_recipe("dpo", "pairs")
    data = {"train": {"path": str(tmp_path / "preference.jsonl"), "format": "preference"}}
    trainer = built(make_recipe("kto", sections={"data": data}))
    assert sorted(trainer.train_dataset["label"]) == [False] * 80 + [True] * 80


@pytest.mark.parametrize("label", [True, False])
def test_answers_of_one_label_only_are_refused(make_recipe: Make, tmp_path: Path, label: bool) -> None:
    with pytest.raises(DataError, match=f"all 12 training rows have the label {str(label).lower()}"):
        train(load(make_recipe("kto", sections=unpaired(tmp_path, [label] * 12))))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"loss_type": "kot"}, "did you mean 'kto'"),
        ({"per_device_train_batch_size": 1}, "batch size must be > 1"),
        ({"train_sampling_strategy": "random"}, "sequential"),
    ],
)
def test_what_kto_cannot_train_with_is_refused(make_recipe: Make, option: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(load(make_recipe("kto", **option)))


def test_orpo_is_likelihood_plus_odds_ratio(make_recipe: Make) -> None:
    trainer = built(make_recipe("orpo", beta=0.3))
    batch = first_batch(trainer)
    likelihood, odds = [], []
    with torch.no_grad():
        for row in range(4):
            log_odds = []
            for side in ("chosen", "rejected"):
                ids = batch[f"{side}_input_ids"][row][batch[f"{side}_attention_mask"][row].bool()]
                answer = batch[f"{side}_labels"][row][: len(ids)][1:] != -100
                logps = trainer.model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
                mean = logps[answer].mean()  # equation 3: log P(y|x) is the mean over the answer's tokens
                log_odds.append(mean - torch.log1p(-mean.exp()))  # equation 4
                if side == "chosen":
                    likelihood.append(-logps)
            odds.append(-torch.nn.functional.logsigmoid(log_odds[0] - log_odds[1]))  # equation 7
    expected = (torch.cat(likelihood).mean() + 0.3 * torch.stack(odds).mean()).item()
    assert loss_of(trainer, batch) == pytest.approx(expected, abs=1e-5)


def test_orpo_learns_to_prefer(make_recipe: Make) -> None:
    run_dir = run(make_recipe("orpo", learning_rate=0.01, max_steps=20, save_strategy="no"))
    assert logged(run_dir, "rewards/accuracies")[-1] == 1.0
    assert logged(run_dir)[-1] < logged(run_dir)[0]


def test_trl_still_calls_what_is_overridden() -> None:
    from posttrain.recipes.trainers.orpo import ORPOTrainer
    from trl.trainer.kto_trainer import KTOTrainer

    assert list(inspect.signature(KTOTrainer._compute_kl_logps).parameters) == ["self", "model", "batch"]
    source = inspect.getsource(KTOTrainer._compute_loss)
    policy, reference = source.index("self._compute_kl_logps(model, batch)"), source.index("ref_KL_logps = self._")
    assert policy < reference, "what compute_loss hands out is asked for in this order"
    assert "kl = (KL_logps - ref_KL_logps).mean().detach()" in source
    forward = inspect.signature(ORPOTrainer.concatenated_forward)
    assert list(forward.parameters) == ["self", "model", "batch"]
