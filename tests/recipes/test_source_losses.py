"""The log has the loss of each source: a mean over its tokens, however a step is cut into batches and processes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from posttrain.data_tools.collate import TOKEN_SOURCES, PackedRowCollator, SourceCollator, padded_collator
from posttrain.recipes.decisions import decide, trainer_config
from posttrain.recipes.load import load
from posttrain.recipes.train import build, train

from . import warm
from .conftest import log

Make = Callable[..., Path]
KEYS = ["loss/first", "loss/second"]


def two_sources(path: Path) -> Path:
    """Splits the rows of a recipe into two sources of a mixture."""
    recipe = yaml.safe_load(path.read_text())
    rows = Path(recipe["data"]["train"]["path"]).read_text().splitlines(keepends=True)
    sources = []
    for name, mine in (("first", rows[::3]), ("second", rows[1::3] + rows[2::3])):
        file = path.parent / f"{name}.jsonl"
        file.write_text("".join(mine))
        sources.append({"path": str(file), "name": name})
    recipe["data"]["train"] = sources
    path.write_text(yaml.safe_dump(recipe))
    return path


ROW_STAGES = [
    ("reward", {"center_rewards_coefficient": 0.1}),
    ("dpo", {}),
    ("dpo", {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.5], "use_weighting": False}),
    ("kto", {"desirable_weight": 1.5}),
    ("orpo", {}),
    ("classify", {"train_sampling_strategy": "random"}),
]


@pytest.mark.parametrize(("stage", "options"), ROW_STAGES)
def test_the_losses_of_rows_sources_make_up_the_loss(make_recipe: Make, stage: str, options: dict[str, Any]) -> None:
    options |= {"max_steps": 2, "logging_steps": 2, "save_strategy": "no"}
    recipe = two_sources(make_recipe(stage, "whole", **options))
    (line,) = logged(recipe)
    record = json.loads((recipe.parent / "whole" / "run.json").read_text())["trained"]
    counts = [source["rows"] for source in record]
    assert sum(counts) == 8
    assert min(counts) > 0
    losses = [line[key] for key in KEYS]
    assert np.average(losses, weights=counts) == pytest.approx(line["loss"], rel=1e-4)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, **options}
    (parts,) = logged(two_sources(make_recipe(stage, "parts", **small)))
    assert losses == pytest.approx([parts[key] for key in KEYS], rel=1e-4)


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_stages_that_sample_log_the_reward_of_each_source(make_recipe: Make, stage: str) -> None:
    (line,) = logged(two_sources(make_recipe(stage, max_steps=1, save_strategy="no")))
    rewards = [line["reward/first"], line["reward/second"]]
    assert min(rewards) < line["reward"] < max(rewards)


def logged(recipe: Path) -> list[dict[str, Any]]:
    train(load(recipe))
    return [line for line in log(Path(yaml.safe_load(recipe.read_text())["output_dir"])) if "loss" in line]


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        pytest.param("sft", {}, marks=pytest.mark.slow),
        ("sft", {"packing": True}),
        pytest.param("pretrain", {"packing": True, "packing_strategy": "wrapped"}, marks=pytest.mark.slow),
        ("distill", {"alpha": 1.0, "chunk": 16}),
        ("pretrain mlm bert", {"max_steps": 1}),
    ],
)
def test_the_losses_of_sources_make_up_the_loss(make_recipe: Make, stage: str, options: dict[str, Any]) -> None:
    options = {"max_steps": 2, "save_strategy": "no", **options}
    whole = logged(two_sources(make_recipe(stage, "whole", **options)))
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, **options}
    parts = logged(two_sources(make_recipe(stage, "parts", **small)))
    for line, other in zip(whole, parts, strict=True):
        losses = [line[key] for key in KEYS]
        assert losses == pytest.approx([other[key] for key in KEYS], rel=1e-4)
        assert min(losses) < line["loss"] < max(losses)


def test_the_losses_of_sources_are_those_that_the_model_has_on_their_tokens(make_recipe: Make) -> None:
    path = two_sources(make_recipe("pretrain", max_steps=1, max_length=48, save_strategy="no"))
    loaded = load(path, ["data.order=length"])
    trainer: Any = build(decide(loaded, trainer_config(loaded)))
    sums = np.zeros((2, 2))
    model = trainer.model.eval()
    for number in range(4):
        row, start = trainer.train_dataset[number], 0
        # each piece by itself, without packing
        for source, length in zip(row["sources"], row["source_lengths"], strict=True):
            ids = torch.tensor([row["input_ids"][start : start + length]])
            start += length
            with torch.no_grad():
                losses = -model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
            sums[source] += losses.sum().item(), len(losses)
    model.train()
    trainer.train()
    line = next(line for line in trainer.state.log_history if "loss" in line)
    assert [line[key] for key in KEYS] == pytest.approx((sums[:, 0] / sums[:, 1]).tolist(), rel=1e-4)
    assert trainer.sources.counts() == sums[:, 1].tolist()


def test_run_json_says_how_much_was_learnt_from_each_source(make_recipe: Make) -> None:
    path = two_sources(make_recipe("sft", max_steps=-1, num_train_epochs=2, logging_steps=7))
    train(load(path))
    record = json.loads((path.parent / "run" / "run.json").read_text())
    tokens = [source["loss_tokens"] for source in record["data"]["train"]["sources"]]
    assert record["trained"] == [
        {"name": name, "loss_tokens": 2 * count, "epochs": 2.0}
        for name, count in zip(("first", "second"), tokens, strict=True)
    ]


def test_a_resumed_run_logs_the_same_losses_of_sources(make_recipe: Make) -> None:
    path = two_sources(make_recipe("sft", logging_steps=3))
    run_dir = path.parent / "run"
    whole = logged(path)
    trained = json.loads((run_dir / "run.json").read_text())["trained"]
    for part in ("model.safetensors", "run.json", "checkpoint-12"):
        where = run_dir / part
        if part == "run.json":
            where.write_text(json.dumps({**json.loads(where.read_text()), "finished": None, "trained": None}))
        else:
            shutil.rmtree(where) if where.is_dir() else where.unlink()
    assert logged(path) == whole
    assert json.loads((run_dir / "run.json").read_text())["trained"] == trained


def test_a_token_s_source_is_found_in_batches_of_every_shape() -> None:
    rows = [
        {"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4], "sources": [1, 0], "source_lengths": [3, 1]},
        {"input_ids": [5, 6], "labels": [5, 6], "sources": [2], "source_lengths": [2]},
    ]
    padded = SourceCollator(padded_collator(0, pad_to_multiple_of=5))(rows)
    assert padded[TOKEN_SOURCES].tolist() == [[1, 1, 1, 0, 0], [2, 2, 0, 0, 0]]
    packed = [{**row, "seq_lengths": row["source_lengths"]} for row in rows]
    assert SourceCollator(PackedRowCollator(0))(packed)[TOKEN_SOURCES].tolist() == [[1, 1, 1, 0], [2, 2, 0, 0]]
    flat = SourceCollator(PackedRowCollator(0, flatten=True))(packed)
    assert flat["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert flat[TOKEN_SOURCES].tolist() == [[1, 1, 1, 0, 2, 2]]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "distill", "dpo", "classify"])
def test_two_processes_log_the_losses_of_sources_of_one(make_recipe: Make, tmp_path: Path, stage: str) -> None:
    one = logged(two_sources(make_recipe(stage, "one", max_steps=4, logging_steps=2)))
    recipe = two_sources(make_recipe(stage, "two", max_steps=4, logging_steps=2, per_device_train_batch_size=2))
    result = warm.run_two("train", recipe)
    assert result.returncode == 0, result.stderr
    two = [line for line in log(tmp_path / "two") if "loss" in line]
    assert [[line[key] for key in KEYS] for line in two] == [
        pytest.approx([line[key] for key in KEYS], abs=1e-4) for line in one
    ]
    for key in ("grad_norm/attention", "grad_norm/norm"):  # of gradients that are those of all processes
        assert [line[key] for line in two] == pytest.approx([line[key] for line in one], rel=1e-3)
    records = [json.loads((tmp_path / name / "run.json").read_text())["trained"] for name in ("one", "two")]
    assert records[0] == records[1]
