"""Encoders learn hidden tokens: what is refused, what is evaluated, and that something is learnt.

Accumulation, processes, kills and damage are tested beside the other stages' (``conftest.VARIANTS``).
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from posttrain.data_tools.errors import SpecError
from posttrain.data_tools.files import hash_file
from posttrain.data_tools.masking import Masking, fixed_tokens
from posttrain.data_tools.tokenizer import Tokenizer
from posttrain.evals import checkpoints
from posttrain.evals.errors import EvalError
from posttrain.evals.models import load_language_model, load_model
from posttrain.evals.parity.portrait import gather, portray
from posttrain.recipes.check import check_all
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.job import open_job
from posttrain.recipes.load import load
from posttrain.recipes.rows import prepare_rows
from posttrain.recipes.show import show_rows

from .conftest import log, losses, run

BERT = "pretrain mlm bert"


def with_eval(make_recipe: Callable[..., Path], tmp_path: Path, name: str, **trainer: Any) -> Path:
    """Writes a recipe that evaluates every four steps on ten of its own texts."""
    recipe = make_recipe(BERT, name, eval_strategy="steps", eval_steps=4, **trainer)
    held_out = tmp_path / "held.jsonl"
    held_out.write_text("".join((tmp_path / "text.jsonl").read_text().splitlines(keepends=True)[:10]))
    text = recipe.read_text().replace("data:\n", f"data:\n  eval: {{path: {held_out}, format: text}}\n")
    recipe.write_text(text)
    return recipe


def test_hidden_tokens_are_learnt_and_the_log_says_how_many_are_hidden(make_recipe: Callable[..., Path]) -> None:
    found = losses(run(make_recipe(BERT, max_steps=60, learning_rate=0.01, logging_steps=20)))
    assert found[-1] < 0.8 * found[0]
    lines = [line for line in log(run(make_recipe(BERT, "log", logging_steps=1))) if "masked_share" in line]
    assert len(lines) == 12
    assert np.mean([line["masked_share"] for line in lines]) == pytest.approx(0.15, abs=0.03)


def test_the_first_loss_is_the_mean_over_the_hidden_tokens_of_the_step(
    make_recipe: Callable[..., Path], encoder_dirs: dict[str, str], tmp_path: Path
) -> None:
    """By hand: the first step's rows, masked as seed, epoch and number say, in one plain pass each."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    options = {"max_steps": 1, "max_length": 128, "train_sampling_strategy": "sequential", "save_strategy": "no"}
    logged = losses(run(make_recipe(BERT, **options)))
    model = AutoModelForMaskedLM.from_pretrained(encoder_dirs["bert"]).train()
    tokenizer: Any = AutoTokenizer.from_pretrained(encoder_dirs["bert"])
    masking = Masking(0.15, 0.8, 0.1, tokenizer.mask_token_id, fixed_tokens(tokenizer), seed=42)
    total = count = 0.0
    prepared = prepare_rows(open_job(load(tmp_path / "run.yaml")), "train")
    assert prepared is not None
    for number in range(4):
        ids = np.array(prepared.dataset[number]["input_ids"])
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        read, labels = masking(ids, number, 0)
        with torch.no_grad():
            log_p = model(input_ids=torch.from_numpy(read[None])).logits[0].double().log_softmax(-1)
        for place in np.flatnonzero(labels != -100):
            total -= log_p[place, labels[place]].item()
            count += 1
    assert logged == [pytest.approx(total / count, abs=1e-4)]


def test_held_out_loss_is_that_of_all_hidden_tokens_whatever_the_batch_and_the_same_each_time(
    make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    def evaluated(name: str, size: int) -> list[dict[str, Any]]:
        lines = log(run(with_eval(make_recipe, tmp_path, name, per_device_eval_batch_size=size, learning_rate=0.0)))
        return [line for line in lines if "eval_loss" in line]

    whole, parts = evaluated("whole", 16), evaluated("parts", 3)
    assert len(whole) == 3
    assert {line["eval_masked_tokens"] for line in [*whole, *parts]} == {whole[0]["eval_masked_tokens"]}
    for line in [*whole, *parts]:  # nothing is learnt, so every evaluation is the same
        assert line["eval_loss"] == pytest.approx(whole[0]["eval_loss"], abs=1e-5)
        assert line["eval_accuracy"] == pytest.approx(whole[0]["eval_accuracy"], abs=1e-6)


def test_a_run_that_goes_on_masks_as_one_that_was_not_killed_in_later_epochs_too(
    make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    options = {"per_device_train_batch_size": 16, "max_steps": 20, "save_steps": 5, "logging_steps": 2}
    whole = run(make_recipe(BERT, **options))
    expected, lines = hash_file(whole / "model.safetensors"), log(whole)
    assert max(line["epoch"] for line in lines) > 2
    for step in (15, 10):  # as if it had been killed on its way to the next
        shutil.rmtree(whole / f"checkpoint-{step + 5}")
    (whole / "model.safetensors").unlink()
    (whole / checkpoints.MANIFEST).unlink()
    record = json.loads((whole / "run.json").read_text())
    (whole / "run.json").write_text(json.dumps({**record, "finished": None}))
    run(make_recipe(BERT, **options))
    assert hash_file(whole / "model.safetensors") == expected
    assert log(whole) == lines


def test_the_trained_encoder_is_a_body_for_a_classifier_and_no_language_model_to_score(
    make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    trained = run(make_recipe(BERT))
    with pytest.raises(EvalError, match=r"needs a causal language model, .* masked one \(BertForMaskedLM\)"):
        load_language_model(str(trained))
    masked = load_model(str(trained), device="cpu")
    with pytest.raises(EvalError, match="a masked one"):
        portray("mine", masked, gather(masked, {}, quick=True))
    sections = {"model": {"name_or_path": str(trained)}}
    assert losses(run(make_recipe("classify", "head", sections=sections, max_steps=2)))


@pytest.mark.parametrize(
    ("stage", "changes", "what"),
    [
        ("pretrain", {"objective": "mlm"}, r"needs an encoder, and llama is a causal language model.*drop `objective`"),
        (BERT, {"objective": None}, r"bert is an encoder: .* cannot learn the next one; say `stage: pretrain` with"),
        ("pretrain mlm modernbert", {"objective": None}, r"modernbert is an encoder"),
        (
            "pretrain mlm modernbert",
            {"objective": {"name": "mlm", "whole_word": True}},
            r"no pieces that begin with ##",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_check_with_what_to_do(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str], stage: str, changes: Any, what: str
) -> None:
    recipe = make_recipe(stage, sections=changes)
    assert check_all([recipe], [], {}, read_data=True) == 2
    assert re.search(what, capsys.readouterr().err)


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_an_encoder_with_a_decoder_is_no_causal_model_of_its_decoder(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path, stage: str
) -> None:
    (tmp_path / "bart").mkdir()
    config = {"model_type": "bart", "architectures": ["BartForConditionalGeneration"]}
    (tmp_path / "bart" / "config.json").write_text(json.dumps(config))
    recipe = make_recipe(stage, sections={"model": {"name_or_path": str(tmp_path / "bart")}})
    assert check_all([recipe], [], {}, read_data=True) == 2
    assert "bart is an encoder with a decoder" in capsys.readouterr().err


def test_show_prints_the_tokens_that_the_first_epoch_hides(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    show_rows(load(make_recipe(BERT, max_length=128)), split="train", rows=2)
    carried = re.findall(r"row \d: (\d+) tokens, (\d+) carry loss", capsys.readouterr().out)
    assert len(carried) == 2
    assert all(0 <= int(hidden) < int(tokens) / 2 for tokens, hidden in carried)


def test_check_passes_what_trains_and_refuses_rows_longer_than_the_model(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    whole_words = {"objective": {"name": "mlm", "mlm_probability": 0.3, "whole_word": True}}
    assert check_all([make_recipe(BERT, sections=whole_words)], [], {}, read_data=True) == 0
    assert "objective: mlm: 30% of them, special tokens aside, are hidden" in capsys.readouterr().out
    (tmp_path / "long.jsonl").write_text(4 * (json.dumps({"text": "long " * 200}) + "\n"))
    data = {"data": {"train": {"path": "long.jsonl", "format": "text"}}}
    assert check_all([make_recipe(BERT, sections=data, max_length=129)], [], {}, read_data=True) == 2
    said = "data.train: the longest row has 129 tokens, and the model was made for 128; say trainer.max_length: 128"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "fields", "what"),
    [
        ({}, {"packing": True}, "trainer.packing: is not for the trainer section; an encoder's tokens would see"),
        (
            {"objective": {"name": "mlm", "mlm_probability": 1.5}},
            {},
            "objective.mlm_probability: should be less than 1",
        ),
        ({"objective": "clm"}, {}, "objective: must be one of 'mlm'"),
        ({"objective": {"name": "mlm", "mask_replace_prob": 0.95}}, {}, "their sum is above 1"),
        ({"lora": {"r": 4}}, {}, "trains all weights of an encoder: drop lora"),
    ],
)
def test_what_means_nothing_is_refused_when_the_recipe_is_read(
    make_recipe: Callable[..., Path], changes: Any, fields: Any, what: str
) -> None:
    with pytest.raises(SpecError) as caught:
        load(make_recipe(BERT, sections=changes, **fields))
    assert what in str(caught.value)


def test_a_tokenizer_of_ones_own_serves_if_it_was_made_with_a_mask_token(
    make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    rows = tmp_path / "words.jsonl"
    rows.write_text("".join(json.dumps({"text": f"What is {number} and {number + 1}?"}) + "\n" for number in range(50)))
    config = {"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    for name, token in (("none", None), ("masks", "[MASK]")):
        Tokenizer.model_validate({"sources": [str(rows)], "vocab_size": 300, "mask_token": token}).run(tmp_path / name)
    sections = {"model": {"config": config, "tokenizer": str(tmp_path / "masks")}}
    assert open_job(load(make_recipe(BERT, sections=sections))).tokenizer.mask_token == "[MASK]"
    sections["model"]["tokenizer"] = str(tmp_path / "none")
    with pytest.raises(RecipeError, match=r"the tokenizer of \S*/none has none; .*data tokenizer --mask-token"):
        open_job(load(make_recipe(BERT, sections=sections)))


def test_other_stages_have_no_objective(make_recipe: Callable[..., Path]) -> None:
    with pytest.raises(SpecError, match="objective: is not a section of the stage sft; stages that have it: pretrain"):
        load(make_recipe("sft", sections={"objective": "mlm"}))
