"""muP: each weight starts and moves by the table of Yang et al. 2022, and what it learns does not depend on width."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from posttrain.recipes.check import check_all
from posttrain.recipes.coordinates import ShortRun, _loss, slope
from posttrain.recipes.decisions import check_engine, decide, trainer_config
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.load import load
from posttrain.recipes.mup import TYPES, WeightScale, check_optimizer, groups, initialise, scales
from posttrain.recipes.tools import run_command
from posttrain.recipes.train import train
from transformers import AutoConfig, AutoModelForCausalLM, get_scheduler
from transformers.trainer_utils import SchedulerType

from .test_resume import WEIGHTS, resume_before_last_save

BASE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
SIGMA = 0.1


def config(model_type: str = "llama", times: int = 1, **changes: Any) -> Any:
    wide = {name: times * size for name, size in BASE.items()}
    fixed = {"vocab_size": 50, "num_hidden_layers": 2, "initializer_range": SIGMA, "head_dim": 16, "pad_token_id": None}
    return AutoConfig.for_model(model_type, **{**fixed, **wide, "tie_word_embeddings": False, **changes})


def model(model_type: str = "llama", times: int = 1, **changes: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(model_type, times, **changes))


def table(name: str, times: int) -> WeightScale:
    """The table, told by names."""
    if "lm_head" in name:
        return WeightScale(1 / times, 1 / times)
    return WeightScale(times**-0.5, 1 / times) if "_proj.weight" in name else WeightScale(1, 1)


@pytest.mark.parametrize("model_type", TYPES)
def test_every_weight_starts_and_moves_by_the_table(model_type: str) -> None:
    wide, base = model(model_type, 4), config(model_type)
    found = scales(wide, base)
    assert found == {name: table(name, 4) for name, _ in wide.named_parameters()}
    initialise(wide, base)
    for name, weight in wide.named_parameters():
        if weight.dim() == 2:
            assert weight.std().item() == pytest.approx(SIGMA * found[name].init, rel=0.15), name
    names = {id(weight): name for name, weight in wide.named_parameters()}
    made = groups(wide, found, rate=0.01, decay=0.2, decayed={"lm_head.weight", "model.layers.0.mlp.up_proj.weight"})
    assert made[0]["lr"] == 0.01  # what the log of a run shows
    for group in made:
        assert group["weight_decay"] * group["lr"] in (0, pytest.approx(0.002))  # what AdamW takes off in a step
        assert {group["lr"] / 0.01} == {found[names[id(weight)]].rate for weight in group["params"]}
    assert sorted(names) == sorted(id(weight) for group in made for weight in group["params"])


def test_a_tied_head_has_its_logits_divided_by_the_width_and_moves_as_embeddings() -> None:
    tied = {"tie_word_embeddings": True, "logits_scaling": 2.0}
    wide, base = model("granite", 4, **tied), config("granite", **tied)
    initialise(wide, base)
    assert wide.config.logits_scaling == 8
    assert scales(wide, base)["model.embed_tokens.weight"] == WeightScale(1, 1)
    assert config("granite", 4, **tied).logits_scaling == 2  # the recipe's, of the base


def added(times: int, change: Callable[[str, WeightScale], WeightScale]) -> float:
    """What the updates of the last layer's down_proj add to its output, after some steps with changed factors."""
    wide, base = model("llama", times), config()
    factors = scales(wide, base)
    initialise(wide, base)
    made = groups(wide, {name: change(name, one) for name, one in factors.items()}, 0.01, 0, set())
    optimizer = torch.optim.AdamW(made)
    tokens = torch.randint(50, (8, 16), generator=torch.Generator().manual_seed(1))
    matrix, inputs = wide.model.layers[-1].mlp.down_proj, []
    first = matrix.weight.detach().clone()
    matrix.register_forward_hook(lambda module, given, output: inputs.append(given[0].detach()))
    for _ in range(5):
        wide(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (inputs[-1] @ (matrix.weight.detach() - first).T).abs().mean().item()


def test_a_wrong_exponent_shows_in_what_is_learnt() -> None:
    def over_widths(change: Callable[[str, WeightScale], WeightScale]) -> float:
        return slope([1, 4, 8], [added(times, change) for times in (1, 4, 8)])

    def unscaled(name: str, one: WeightScale) -> WeightScale:
        return WeightScale(one.init, 1.0) if "_proj" in name else one

    def twice(name: str, one: WeightScale) -> WeightScale:
        return WeightScale(one.init, one.rate**2) if "_proj" in name else one

    assert abs(over_widths(lambda name, one: one)) < 0.35
    assert over_widths(unscaled) > 0.8
    assert over_widths(twice) < -0.8


def recipe_of(
    make_recipe: Callable[..., Path], model_dir: Path, times: int = 2, name: str = "run", **fields: Any
) -> Path:
    shape = {key: times * size for key, size in BASE.items()}
    new = {
        "model_type": "llama",
        "initializer_range": SIGMA,
        "num_hidden_layers": 2,
        "tie_word_embeddings": False,
        "head_dim": 16,
        **shape,
    }
    section = {"config": new, "mup_base": BASE, "tokenizer": str(model_dir)}
    return make_recipe("pretrain", name, sections={"model": section}, **{"optim": "adamw_torch", **fields})


def test_at_the_base_it_is_the_standard_parametrisation(
    make_recipe: Callable[..., Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    train(load(recipe_of(make_recipe, tiny_model_dir, 1, "mup", weight_decay=0.1, max_steps=4)))
    plain = recipe_of(make_recipe, tiny_model_dir, 1, "plain", weight_decay=0.1, max_steps=4)
    train(load(plain, ["model.mup_base=null"]))
    assert (tmp_path / "mup" / WEIGHTS).read_bytes() == (tmp_path / "plain" / WEIGHTS).read_bytes()


def test_a_run_keeps_its_rates_and_resumes_to_the_same_bits(
    make_recipe: Callable[..., Path], tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(make_recipe, tiny_model_dir, weight_decay=0.1, max_steps=6, lr_scheduler_type="cosine")
    train(load(recipe))
    assert "optimizer: muP from a width of 32: 6 tensors at 0.003, 15 tensors at 0.0015" in capsys.readouterr().out
    run_dir = tmp_path / "run"
    saved = torch.load(run_dir / "checkpoint-4" / "optimizer.pt", weights_only=True)["param_groups"]
    assert {(group["lr"] / saved[0]["lr"], group["weight_decay"]) for group in saved} == {(1, 0.1), (1, 0), (0.5, 0.2)}
    assert saved[0]["lr"] < 0.003  # it has fallen, and all rates alike
    resume_before_last_save(recipe, run_dir)


@pytest.mark.parametrize("name", [str(name.value) for name in SchedulerType])
def test_a_schedule_keeps_the_ratio_of_the_rates(name: str) -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": weights[:1], "lr": 0.01}, {"params": weights[1:], "lr": 0.0025}], lr=0.01)
    more = {
        "cosine_with_min_lr": {"min_lr": 0.001},
        "cosine_warmup_with_min_lr": {"min_lr": 0.001},
        "warmup_stable_decay": {"num_decay_steps": 4},
    }
    scheduler: Any = get_scheduler(name, optimizer, 2, 12, more.get(name))
    rates = []
    for step in range(12):
        optimizer.step()
        scheduler.step(*([1.0 + step] if name in ("reduce_lr_on_plateau", "greedy") else []))
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert all(one == pytest.approx(4 * other) for one, other in rates)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 4, "head_dim": None}, "a head is 8 wide in the base and 16 here"),
        ({"num_key_value_heads": 2}, r"k_proj.weight is \(32, 32\) in the base and \(32, 64\) here"),
        ({"intermediate_size": 128}, r"gate_proj.weight is .* both sides must grow"),
        ({"num_hidden_layers": 1}, "the base has no model.layers.1"),
        ({"vocab_size": 25}, "the vocabulary is no width"),
    ],
)
def test_a_base_that_differs_in_more_than_width_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        scales(model("llama", 2), config("llama", **changes))


def test_models_whose_passes_have_factors_of_their_own_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"tied to the embeddings .* and llama does not divide them; say tie_word"):
        scales(model("llama", 2, tie_word_embeddings=True), config("llama", tie_word_embeddings=True))
    with pytest.raises(RecipeError, match="and not for gemma3_text"):
        scales(model("gemma3_text"), config("gemma3_text"))


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ("muon", "trainer.optim is muon, and the learning rates are known for AdamW"),
        ("adafactor", "trainer.optim is adafactor"),
        ("sgd", "say adamw_torch or adamw_torch_fused"),
    ],
)
def test_optimizers_that_the_table_does_not_hold_for_are_refused(optim: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_optimizer(optim)


@pytest.mark.parametrize("engine", ["DeepSpeed", "FSDP"])
def test_engines_that_cut_weights_are_refused(
    make_recipe: Callable[..., Path], tiny_model_dir: Path, engine: str
) -> None:
    loaded = load(recipe_of(make_recipe, tiny_model_dir))
    check_engine(loaded, None)
    with pytest.raises(RecipeError, match=f"{engine} may cut them"):
        check_engine(loaded, engine)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name_or_path": "some/model", "mup_base": {"hidden_size": 8}}, "a trained one .* has started"),
        (
            {"config": {"model_type": "llama"}, "tokenizer": "t", "mup_base": {"num_attention_heads": 2}},
            "needs hidden_size",
        ),
        ({"config": {"model_type": "llama"}, "tokenizer": "t", "mup_base": {}}, "at least 1"),
    ],
)
def test_a_recipe_names_the_base(make_recipe: Callable[..., Path], model: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        load(make_recipe("pretrain", sections={"model": model}))


@pytest.mark.parametrize(
    ("changes", "base", "message"),
    [
        ({}, {"hidden_size": 32, "intermediate_size": 64}, "a head is 8 wide in the base and 16 here"),
        ({}, {**BASE, "num_key_value_heads": 2}, "both sides must grow"),
        ({"tie_word_embeddings": True}, BASE, "llama does not divide them"),
    ],
)
def test_check_refuses_a_wrong_base_without_data_or_tokenizer(
    make_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    base: dict[str, int],
    message: str,
) -> None:
    wide = {"model_type": "llama", **{name: 2 * size for name, size in BASE.items()}, "num_hidden_layers": 2}
    good = {"config": wide, "tokenizer": "org/absent", "mup_base": BASE}
    assert check_all([make_recipe("pretrain", sections={"model": good})], [], {}, read_data=False) == 0
    wrong = {**good, "config": wide | changes, "mup_base": base}
    assert check_all([make_recipe("pretrain", sections={"model": wrong})], [], {}, read_data=False) == 2
    assert message in capsys.readouterr().err


def test_check_refuses_another_optimizer_without_data_or_tokenizer(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"config": {"model_type": "llama", **BASE}, "tokenizer": "org/absent", "mup_base": BASE}
    recipe = make_recipe("pretrain", sections={"model": model}, optim="adafactor")
    assert check_all([recipe], [], {}, read_data=False) == 2
    assert "the learning rates are known for AdamW" in capsys.readouterr().err


def test_the_tool_tells_mup_from_the_standard_parametrisation(
    make_recipe: Callable[..., Path], tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(make_recipe, tiny_model_dir, learning_rate=0.01, warmup_steps=1)
    arguments = [
        "--widths",
        "[1, 4]",
        "--seeds",
        "[1]",
        "--steps",
        "10",
        "--rates",
        "[1e-3, 1e-2]",
        "--sweep-steps",
        "3",
    ]
    with pytest.raises(SystemExit):
        run_command("mup", "--recipe", str(recipe), *arguments, "-o", str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "muP: what is computed does not depend on the width" in said
    assert "standard: what is computed depends on the width" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [table["title"] for table in report["tables"]] == ["Coordinate check", "Learning rates"]
    # the base is the base: at its width both are one model, and so are their losses
    losses = [row[2] for row in report["tables"][1]["rows"]]
    assert losses[:2] == losses[2:]


@pytest.mark.parametrize("watchdog", ["warn", "rewind"])
def test_a_rate_that_diverges_ends_no_sweep(
    make_recipe: Callable[..., Path], tiny_model_dir: Path, watchdog: str
) -> None:
    loaded = load(recipe_of(make_recipe, tiny_model_dir))
    loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"watchdog": watchdog}))
    ready = decide(loaded, trainer_config(loaded))
    assert _loss(ready, ShortRun(mup=False, times=1, seed=1, rate=1e30), 3) == math.inf
    assert _loss(ready, ShortRun(mup=False, times=1, seed=1, rate=1e-3), 3) < math.inf


def test_the_tool_needs_a_base(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no model\.mup_base"):
        run_command("mup", "--recipe", str(make_recipe("pretrain")), "-o", str(tmp_path / "out"))
