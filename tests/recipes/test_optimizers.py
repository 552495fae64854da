"""Muon moves the matrices of hidden linear layers, as torch's own does, and resumes to the same bits."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from posttrain.recipes.check import check_all
from posttrain.recipes.decisions import check_engine, check_packages, trainer_config
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.load import load
from posttrain.recipes.needs import Assumptions
from posttrain.recipes.optimizers import MuonWithAdamW, hidden_matrices, muon_options
from posttrain.recipes.train import train
from transformers.training_args import OptimizerNames

from . import warm
from .conftest import for_cpus, losses, needs_deepspeed
from .test_resume import resume_before_last_save

NARROW: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def llama(kind: str, **options: Any) -> Any:
    import transformers

    config = transformers.LlamaConfig(**NARROW, num_hidden_layers=1, num_key_value_heads=1, **options)
    return getattr(transformers, kind)(config)


def bert() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(**NARROW, num_hidden_layers=1))


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2))


def with_lora() -> Any:
    from peft import LoraConfig, get_peft_model

    model = llama("LlamaForSequenceClassification", num_labels=3, pad_token_id=0)
    config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], modules_to_save=["score"], task_type="SEQ_CLS")
    return get_peft_model(model, config)


LINEAR = {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
ROUTES: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "untied": (lambda: llama("LlamaForCausalLM"), {f"model.layers.0.{name}" for name in LINEAR}),
    "tied": (
        lambda: llama("LlamaForCausalLM", tie_word_embeddings=True),
        {f"model.layers.0.{name}" for name in LINEAR},
    ),
    "classifier": (
        lambda: llama("LlamaForSequenceClassification", num_labels=3),
        {f"model.layers.0.{name}" for name in LINEAR},
    ),
    "gpt2, whose layers are transposed and whose tables are called wte and wpe": (
        gpt2,
        {f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")},
    ),
    "adapters": (
        with_lora,
        {f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.default" for side in "AB"},
    ),
}


@pytest.mark.parametrize("which", ROUTES)
def test_matrices_are_known_by_their_module_and_not_by_name_or_shape(which: str) -> None:
    model, expected = ROUTES[which][0](), ROUTES[which][1]
    matrices = {id(weight) for weight in hidden_matrices(model)}
    found = {name for name, weight in model.named_parameters() if weight.requires_grad and id(weight) in matrices}
    assert found == {f"{name}.weight" for name in expected}


def test_a_masked_models_head_has_a_hidden_layer_and_its_decoder_is_none() -> None:
    model = bert()
    matrices = {id(weight) for weight in hidden_matrices(model)}
    found = {name for name, weight in model.named_parameters() if id(weight) in matrices}
    assert "cls.predictions.transform.dense.weight" in found
    assert not {name for name in found if "embeddings" in name or "decoder" in name}


def test_it_moves_each_weight_as_the_two_algorithms_alone_do() -> None:
    torch.manual_seed(0)
    start = {"matrix": torch.randn(6, 4), "vector": torch.randn(5)}
    gradients = [{name: torch.randn_like(weight) for name, weight in start.items()} for _ in range(4)]
    mine = {name: torch.nn.Parameter(weight.clone()) for name, weight in start.items()}
    theirs = {name: torch.nn.Parameter(weight.clone()) for name, weight in start.items()}
    muon = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    adamw = {"lr": 0.02, "weight_decay": 0.0}
    both = MuonWithAdamW([{"params": [mine["matrix"]], **muon}], [{"params": [mine["vector"]], **adamw}])
    alone = [torch.optim.Muon([theirs["matrix"]], **muon), torch.optim.AdamW([theirs["vector"]], **adamw)]  # type: ignore[arg-type]
    for step, gradient in enumerate(gradients):
        for weights in (mine, theirs):
            for name, weight in weights.items():
                weight.grad = gradient[name].clone()
        if step == 2:  # a load replaces groups and state, which both algorithms must then see
            saved = both.state_dict()
            both = MuonWithAdamW([{"params": [mine["matrix"]], **muon}], [{"params": [mine["vector"]], **adamw}])
            both.load_state_dict(saved)
        for group in [*both.param_groups, *(group for each in alone for group in each.param_groups)]:
            group["lr"] = 0.02 / (step + 1)
        for optimizer in (both, *alone):
            optimizer.step()
    assert all(torch.equal(mine[name], theirs[name]) for name in start)


def test_a_step_is_as_large_as_one_of_adamw() -> None:
    # Liu et al. 2025 (arXiv:2502.16982), section 2.2: AdamW's updates have a root mean square of .2 to .4 of the rate
    torch.manual_seed(0)
    for rows, columns in ((32, 32), (16, 96), (96, 16)):
        weight = torch.nn.Parameter(torch.zeros(rows, columns))
        weight.grad = torch.randn(rows, columns)
        options = {"params": [weight], "lr": 1.0, "weight_decay": 0.0, **muon_options(None)}
        MuonWithAdamW([options], [{"params": [torch.nn.Parameter(torch.zeros(1))]}]).step()
        assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


def test_a_schedule_may_end_at_a_rate(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    ending = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.0003}}
    train(load(make_recipe(optim="muon", weight_decay=0.1, max_steps=2, save_steps=2, **ending)))
    saved = torch.load(tmp_path / "run" / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert [group["lr"] for group in saved["param_groups"]] == pytest.approx([0.0003] * 3)


def test_a_run_says_what_it_moves_how_and_resumes_to_the_same_bits(
    make_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(optim="muon", weight_decay=0.1, max_steps=6, optim_args="momentum=0.9, ns_steps=4")
    run_dir = tmp_path / "run"
    train(load(recipe))
    # seven matrices in each of two layers; the tied table, two norms a layer and the last
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("optimizer:"))
    assert said.startswith("optimizer: Muon moves 14 tensors (18,432 parameters), AdamW 6 tensors")
    saved = torch.load(run_dir / "checkpoint-4" / "optimizer.pt", weights_only=True)
    groups = {(group["algorithm"], group["weight_decay"]): group for group in saved["param_groups"]}
    assert groups.keys() == {("muon", 0.1), ("adamw", 0.1), ("adamw", 0.0)}
    muon = groups["muon", 0.1]
    assert (muon["momentum"], muon["ns_steps"], muon["adjust_lr_fn"]) == (0.9, 4, "match_rms_adamw")
    assert {"momentum_buffer"} == saved["state"][muon["params"][0]].keys()
    assert {"step", "exp_avg", "exp_avg_sq"} == saved["state"][groups["adamw", 0.0]["params"][0]].keys()
    resume_before_last_save(recipe, run_dir)


def test_a_critic_has_its_own_rate_under_muon(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    fields = {"max_steps": 2, "save_steps": 2, "per_device_train_batch_size": 2}
    train(load(make_recipe("ppo", optim="muon", critic_learning_rate=1e-4, lr_scheduler_type="constant", **fields)))
    saved = torch.load(tmp_path / "run" / "checkpoint-2" / "optimizer.pt", weights_only=True)
    rates = {(group["algorithm"], group.get("critic", False)): group["lr"] for group in saved["param_groups"]}
    assert rates == {("muon", False): 0.003, ("adamw", False): 0.003, ("muon", True): 1e-4, ("adamw", True): 1e-4}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optim_args": "momentun=0.9"}, "did you mean 'momentum'"),
        ({"optim_args": "adjust_lr_fn=moonlight"}, "cannot be 'moonlight'"),
        ({"optim_args": "ns_steps=many"}, "cannot be 'many'"),
    ],
)
def test_options_that_muon_has_not_are_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        muon_options(fields["optim_args"])


@pytest.mark.parametrize("optim", ["galore_adamw", "apollo_adamw"])
def test_options_that_an_optimizer_of_projected_gradients_has_not_are_refused(
    make_recipe: Callable[..., Path], optim: str
) -> None:
    pytest.importorskip(f"{optim.partition('_')[0]}_torch")
    fields = {"optim": optim, "optim_target_modules": "all-linear"}
    trainer_config(load(make_recipe(**fields, optim_args="rank=4, scale=0.0123, update_proj_gap=2")))
    with pytest.raises(RecipeError, match=f"{optim} reads no option 'rnak'") as error:
        trainer_config(load(make_recipe(**fields, optim_args="rank=4,rnak=4")))
    assert error.value.hint is None  # of fields that it does not read either


def test_what_a_schedule_free_run_saves_is_what_it_evaluates(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Its model is the mean of its iterates, which it swaps in to evaluate: to save, too, and to go on after a kill."""
    pytest.importorskip("schedulefree")
    rows = {"path": str(make_recipe().parent / "messages.jsonl"), "format": "messages"}
    fields: dict[str, Any] = {"optim": "schedule_free_adamw", "max_steps": 4, "save_steps": 2, "learning_rate": 0.05}
    evaluated = make_recipe(
        name="evaluated",
        sections={"data": {"train": rows, "eval": rows}},
        eval_strategy="steps",
        eval_steps=2,
        **fields,
    )
    plain = make_recipe(name="plain", **fields)
    for recipe in (evaluated, plain):
        train(load(recipe))
    for place in ("checkpoint-2", ""):
        found = [(tmp_path / name / place / "model.safetensors").read_bytes() for name in ("evaluated", "plain")]
        assert found[0] == found[1], place
    resume_before_last_save(plain, tmp_path / "plain")


_SHARDS = {"sections": {"adapter": {"type": "adalora"}}}, "adalora weighs and masks whole matrices between steps"


def test_a_schedule_free_optimizer_is_refused_where_its_weights_cannot_be_swapped(
    make_recipe: Callable[..., Path],
) -> None:
    loaded = load(make_recipe(optim="schedule_free_sgd"))
    check_engine(loaded, None)
    with pytest.raises(RecipeError, match="swaps weights in"):
        check_engine(loaded, "DeepSpeed")


@pytest.mark.parametrize(("config", "engine"), [("zero1", "DeepSpeed"), ("zero3", "DeepSpeed"), ("fsdp2", "FSDP")])
@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        ({"optim": "muon"}, "muon orthogonalises whole matrices"),
        ({"optim": "galore_adamw"}, "galore_adamw projects whole matrices"),
        _SHARDS,
    ],
)
def test_what_needs_whole_matrices_is_refused_where_they_are_sharded(
    make_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    config: str,
    engine: str,
    recipe: Any,
    what: str,
) -> None:
    path = make_recipe(**recipe)
    assert check_all([path], [], {}, read_data=False, assumed=Assumptions(accelerate=config)) == 2
    said = capsys.readouterr().err
    assert what in said
    assert engine in said
    assert check_all([path], [], {}, read_data=False, assumed=Assumptions(accelerate="ddp")) == 0


@pytest.mark.slow
@needs_deepspeed
def test_under_deepspeed_a_run_ends_before_it_begins(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    done = warm.run_two("train", make_recipe(optim="muon"), config=for_cpus("zero1", tmp_path))
    assert done.returncode == 2, done.stderr
    assert "DeepSpeed cuts them into shards" in done.stderr
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    train(load(make_recipe("sft", "one", optim="muon", max_steps=4)))
    two = warm.run_two("train", make_recipe("sft", "two", optim="muon", max_steps=4, per_device_train_batch_size=2))
    assert two.returncode == 0, two.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


# What a name needs beside its package: the layers whose gradients are projected.
_NEEDS = {"galore": {"optim_target_modules": "all-linear"}, "apollo": {"optim_target_modules": "all-linear"}}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(str(name.value) for name in OptimizerNames), "muon"])
def test_every_optimizer_trains_and_resumes_or_says_what_it_lacks(
    make_recipe: Callable[..., Path], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = next((fields for word, fields in _NEEDS.items() if word in name), {})
    recipe = make_recipe(optim=name, max_steps=2, save_steps=1, logging_steps=1, **fields)
    loaded = load(recipe)
    try:
        check_packages(loaded)
    except RecipeError as error:
        if "runs on CUDA alone" in str(error):
            assert not torch.cuda.is_available()
            return
        if "could not go on" in str(error):
            assert name.endswith("layerwise") or name == "grokadamw"
            return
        package = str(error.hint).removeprefix("pip install ")
        assert importlib.util.find_spec(package.replace("-", "_")) is None
        return
    train(loaded)
    assert len(losses(tmp_path / "run")) == 2
    capsys.readouterr()
    resume_before_last_save(recipe, tmp_path / "run")
    assert "resuming from" in capsys.readouterr().out  # and not from the first step, which gives the same bits
