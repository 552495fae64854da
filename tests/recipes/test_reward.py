"""A reward model prefers what it was taught to, scores the end of an answer, and loads like any classifier."""

import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from posttrain.data_tools.errors import DataError
from posttrain.recipes.check import check_all
from posttrain.recipes.load import load
from posttrain.recipes.train import train

from .preference import built, close, first_batch, logged, loss_of, run

Make = Callable[..., Path]
LORA = {"lora": {"r": 4, "alpha": 8}}


def pair(number: int, **more: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"What is {number}?"}]
    right, wrong = ([{"role": "assistant", "content": text}] for text in (f"It is {number}.", "No idea"))
    return {"prompt": prompt, "chosen": right, "rejected": wrong, **more}


def section(tmp_path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"train": {"path": str(path), "format": "preference"}, "max_bad_share": 0.9}


@pytest.fixture
def zero_head(tiny_model_dir: Path, tmp_path: Path) -> dict[str, Any]:
    """A model section whose reward is 0 for everything."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model: Any = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    torch.nn.init.zeros_(model.score.weight)
    model.save_pretrained(tmp_path / "zero")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "zero")
    return {"model": {"name_or_path": str(tmp_path / "zero"), "chat_template": "chatml"}}


def test_the_loss_at_equal_rewards_is_ln_2(make_recipe: Make, zero_head: dict[str, Any]) -> None:
    run_dir = run(make_recipe("reward", sections=zero_head, max_steps=2, save_strategy="no"))
    assert close(logged(run_dir)[0], math.log(2))


def test_a_margin_is_taken_off_the_difference(make_recipe: Make, zero_head: dict[str, Any], tmp_path: Path) -> None:
    rows = [pair(number, margin=float(number % 3)) for number in range(12)]
    trainer = built(make_recipe("reward", sections={**zero_head, "data": section(tmp_path, rows)}))
    batch = first_batch(trainer)
    expected = torch.nn.functional.softplus(batch["margin"]).mean().item()
    assert len(set(batch["margin"].tolist())) > 1
    assert close(loss_of(trainer, batch), expected)


def test_centring_adds_the_squared_sum_of_both_rewards(make_recipe: Make) -> None:
    plain = built(make_recipe("reward"))
    centred = built(make_recipe("reward", center_rewards_coefficient=0.5))
    batch = first_batch(plain)
    with torch.no_grad():
        chosen, rejected = plain.model(**batch).logits.squeeze(-1).chunk(2)
    expected = loss_of(plain, batch) + 0.5 * ((chosen + rejected) ** 2).mean().item()
    assert loss_of(centred, batch) == pytest.approx(expected, abs=1e-6)


def test_it_learns_to_prefer_and_reloads_to_the_same_rewards(make_recipe: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    recipe = make_recipe("reward", learning_rate=0.01, max_steps=30, save_strategy="no")
    run_dir = run(recipe)
    assert logged(run_dir, "accuracy")[-1] == 1.0
    tokenizer = AutoTokenizer.from_pretrained(run_dir)
    model = AutoModelForSequenceClassification.from_pretrained(run_dir)
    assert model.config.num_labels == 1
    assert model.config.id2label == {0: "reward"}
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    trainer = built(recipe)
    trainer.model.load_state_dict(model.state_dict())
    batch = first_batch(trainer)
    with torch.no_grad():
        expected = trainer.model(**batch).logits
        torch.testing.assert_close(model(**batch).logits, expected)
        last = batch["attention_mask"].sum(1) - 1
        read = [tokenizer.decode(batch["input_ids"][row, : last[row] + 1]) for row in range(8)]
        assert all(text.rstrip().endswith("<|im_end|>") for text in read), (
            "the reward is read where the answer has ended"
        )
        alone = [model(batch["input_ids"][row, : last[row] + 1][None]).logits[0, 0] for row in range(8)]
    torch.testing.assert_close(torch.stack(alone)[:, None], expected, atol=1e-5, rtol=1e-5)


def test_a_tokenizer_whose_pad_is_its_end_gets_another(make_recipe: Make, tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "same")
    AutoModelForCausalLM.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "same")
    sections = {"model": {"name_or_path": str(tmp_path / "same"), "chat_template": "chatml"}}
    run_dir = run(make_recipe("reward", sections=sections, max_steps=1, save_strategy="no"))
    saved = AutoTokenizer.from_pretrained(run_dir)
    config = AutoModelForSequenceClassification.from_pretrained(run_dir).config
    assert saved.pad_token_id not in (saved.eos_token_id, saved.convert_tokens_to_ids("<|im_end|>"))
    assert config.pad_token_id == saved.pad_token_id


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_head_beside_adapters_is_trained_whole_in_float32(
    make_recipe: Make, tiny_model_dir: Path, quantization: str | None
) -> None:
    if quantization:
        pytest.importorskip("bitsandbytes")
    model = {"name_or_path": str(tiny_model_dir), "chat_template": "chatml", "dtype": "bfloat16"}
    sections = {**LORA, "model": model, **({"quantization": quantization} if quantization else {})}
    trainer = built(make_recipe("reward", sections=sections, max_steps=2, save_strategy="no"))
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    heads = [weight for name, weight in trained.items() if ".score." in name]
    assert [weight.shape for weight in heads] == [(1, 32)]
    assert heads[0].dtype == torch.float32
    assert all("lora_" in name or ".score." in name for name in trained)
    assert trainer.model.get_base_model().model.embed_tokens.weight.dtype == torch.bfloat16
    before = heads[0].detach().clone()
    trainer.train()
    assert not torch.equal(heads[0], before)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_adapter_and_head_are_merged_into_a_plain_reward_model(
    make_recipe: Make, tiny_model_dir: Path, quantization: str | None
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    if quantization:
        pytest.importorskip("bitsandbytes")
    sections = {**LORA, **({"quantization": quantization} if quantization else {})}
    run_dir = run(make_recipe("reward", sections=sections, learning_rate=0.02, save_strategy="no"))
    ids = torch.arange(5, 25)[None]
    plain: Any = AutoModelForSequenceClassification
    base = plain.from_pretrained(tiny_model_dir, num_labels=1)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, str(run_dir / "adapter"))(ids).logits
        final = plain.from_pretrained(run_dir)(ids).logits
    torch.testing.assert_close(final, expected, atol=1e-5, rtol=1e-5)
    assert logged(run_dir)[-1] < logged(run_dir)[0] - 0.1


def test_a_head_of_another_number_of_outputs_starts_afresh(
    make_recipe: Make, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=3).save_pretrained(tmp_path / "three")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "three")
    sections = {"model": {"name_or_path": str(tmp_path / "three"), "chat_template": "chatml"}}
    trainer = built(make_recipe("reward", sections=sections))
    assert trainer.model.score.weight.shape == (1, 32)
    assert trainer.model.config.id2label == {0: "reward"}


STAGES = ["reward", "dpo", "orpo", "kto"]


@pytest.mark.parametrize("stage", STAGES)
def test_held_out_rows_are_evaluated_on_the_way(make_recipe: Make, tmp_path: Path, stage: str) -> None:
    rows = section(tmp_path, [pair(number) for number in range(18)])["train"]
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no"}
    run_dir = run(make_recipe(stage, sections={"data": {"train": rows, "eval": rows}}, **options))
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    found = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert len(found) == 2
    assert found[1] < found[0]


@pytest.mark.parametrize("stage", STAGES)
def test_bad_rows_are_counted_by_reason(make_recipe: Make, tmp_path: Path, stage: str) -> None:
    empty = [{"role": "assistant", "content": ""}]
    bad = [{**pair(1), "chosen": pair(1)["rejected"]}, {**pair(2), "rejected": empty}, {"prompt": "Why?"}]
    data = section(tmp_path, [*(pair(number) for number in range(20)), *bad])
    recipe = make_recipe(stage, sections={"data": data}, max_steps=1, save_strategy="no", per_device_train_batch_size=2)
    record = json.loads((run(recipe) / "run.json").read_text())
    source = record["data"]["train"]["sources"][0]
    assert source["rows"] - sum(source["dropped"].values()) >= 20
    reasons = " / ".join(source["dropped"])
    assert "chosen equals rejected" in reasons
    assert "empty" in reasons
    assert "missing" in reasons


@pytest.mark.parametrize("stage", STAGES)
def test_data_without_a_column_is_one_clear_error(make_recipe: Make, tmp_path: Path, stage: str) -> None:
    data = section(tmp_path, [{"prompt": "Why?", "chosen": "Because."}] * 5)
    with pytest.raises(DataError, match="rejected"):
        train(load(make_recipe(stage, sections={"data": data})))


@pytest.mark.parametrize("stage", ["reward", "classify"])
def test_check_says_nothing_of_the_model_that_stands_in(
    make_recipe: Make, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its weights are made anew, which is news to nobody."""
    assert check_all([make_recipe(stage)], [], {}, read_data=True) == 0
    assert "LOAD REPORT" not in caplog.text


def test_trl_still_calls_what_is_overridden() -> None:
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.kto_trainer import KTOTrainer
    from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

    for trainer in (RewardTrainer, DPOTrainer, KTOTrainer):
        prepare = inspect.signature(trainer._prepare_dataset)
        assert list(prepare.parameters) == ["self", "dataset", "processing_class", "args", "dataset_name"]
    assert list(inspect.signature(DataCollatorForPreference.torch_call).parameters) == ["self", "examples"]
    collator = DataCollatorForPreference(pad_token_id=0)
    batch = collator([{"chosen_ids": [1, 2], "rejected_ids": [3], "margin": 1.0}])
    assert set(batch) == {"input_ids", "attention_mask", "margin"}
