"""Every kind of adapter that peft has is trained, resumed, merged where it can be, scored, or refused with a reason."""

import importlib
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from posttrain.chat_templates.errors import InputError
from posttrain.data_tools.errors import SpecError
from posttrain.data_tools.files import hash_file
from posttrain.evals.models import load_model
from posttrain.recipes import architectures, needs
from posttrain.recipes.adapter_types import TYPES
from posttrain.recipes.check import check_all
from posttrain.recipes.decisions import decide, trainer_config
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.estimate import Machine
from posttrain.recipes.load import load
from posttrain.recipes.merge import merge_to

from .conftest import ABSENT, figures, run

Make = Callable[..., Path]
# What fits a model of two layers that is 32 wide, where a type's own defaults do not.
OPTIONS: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 6, "target_r": 2, "tinit": 1},
    "adaption_prompt": {"adapter_layers": 2, "adapter_len": 4},
    "c3a": {"block_size": 8},
    "cartridge": {"num_virtual_tokens": 4},
    "fourierft": {"n_frequency": 50},
    "ia3": {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "miss": {"r": 8},
    "p_tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "prefix_tuning": {"num_virtual_tokens": 4},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "psoft": {"r": 4},
    "road": {"group_size": 16},
    "shira": {"r": 4},
    "trainable_tokens": {"token_indices": [1, 2, 3, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30]},
    "vblora": {"vector_length": 8, "num_vectors": 16, "topk": 2},
    "waveft": {"n_frequency": 50},
    "ln_tuning": {"target_modules": ["input_layernorm", "post_attention_layernorm"]},
}
QUICK = ("adalora", "ia3", "p_tuning", "prefix_tuning")
TRAINED = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name, kind in TYPES.items()
    if not kind.refused
]


def options_of(name: str) -> dict[str, Any]:
    own = "target_modules" in TYPES[name].fields and name not in ("adaption_prompt", "trainable_tokens")
    return {**({"target_modules": ["q_proj", "v_proj"]} if own else {}), **OPTIONS.get(name, {})}


@pytest.fixture
def base_dir(name: str, tiny_model_dir: Path, tmp_path: Path) -> Path:
    """The tiny model; with an output layer of its own where tied embeddings are refused."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if name != "trainable_tokens":
        return tiny_model_dir
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, tie_word_embeddings=False)
    torch.nn.init.normal_(model.lm_head.weight, std=0.02)
    model.save_pretrained(tmp_path / "untied")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "untied")
    return tmp_path / "untied"


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits.float()[:, -ids.shape[1] :]


@pytest.mark.parametrize("name", TRAINED)
def test_a_kind_of_adapter_trains_resumes_merges_and_is_stock_pefts(
    name: str, make_recipe: Make, base_dir: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    kind = TYPES[name]
    model = {"name_or_path": str(base_dir), "chat_template": "chatml"}
    sections = {"model": model, "adapter": {"type": name, **options_of(name)}}
    recipe = make_recipe("sft", sections=sections, learning_rate=0.05, max_steps=4, save_steps=2)
    assert check_all([recipe], [], {}, read_data=True) == 0
    run_dir = run(recipe)
    final = run_dir if kind.apart else run_dir / "adapter"
    ids = torch.arange(5, 25)[None]
    base = AutoModelForCausalLM.from_pretrained(base_dir).eval()
    plain = logits(base, ids)
    ours = logits(load_model(str(final), device="cpu").model, ids)
    assert ours.shape == plain.shape
    assert (ours - plain).abs().max() > 1e-3
    changed = ids.clone()
    changed[0, -1] = 40
    again = logits(load_model(str(final), device="cpu").model, changed)
    torch.testing.assert_close(again[:, :-1], ours[:, :-1], atol=1e-5, rtol=0)
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_dir), str(final)).eval()
    torch.testing.assert_close(logits(stock, ids), ours, atol=0, rtol=0)
    if kind.apart:
        with pytest.raises(InputError, match="cannot be merged"):
            merge_to(str(run_dir), tmp_path / "merged")
    else:
        whole = logits(AutoModelForCausalLM.from_pretrained(run_dir).eval(), ids)
        torch.testing.assert_close(whole, ours, atol=1e-4, rtol=0)
    expected, log = hash_file(final / "adapter_model.safetensors"), figures(run_dir)
    undo_end(run_dir, final)
    run(recipe)
    assert figures(run_dir) == log
    assert hash_file(final / "adapter_model.safetensors") == expected


@pytest.mark.parametrize(
    ("stage", "section", "said"),
    [
        ("sft", {"type": "prefixtuning"}, "did you mean 'prefix_tuning'"),
        ("sft", {"type": "dora", "r": 8}, "there is no type 'dora'; say type: lora and use_dora: true"),
        ("sft", {"type": "QLoRA"}, "say type: lora and quantization: nf4 beside the adapter section"),
        ("sft", {"type": "ia3", "r": 8}, "adapter.r: unknown key; known keys: exclude_modules, fan_in_fan_out, feed"),
        ("sft", {"r": 4}, "adapter.type: this key is required"),
        ("sft", {"type": "lora", "alpha": 4}, "adapter.alpha: unknown key; did you mean 'lora_alpha'"),
        ("sft", {"type": "lora", "r": "four"}, "adapter.r: must be int"),
        ("sft", {"type": "lora", "bias": "some"}, "adapter.bias: has no value 'some'"),
        ("sft", {"type": "lora", "init_lora_weights": "pissa_niter_few"}, "adapter.init_lora_weights: has no value"),
        ("sft", {"type": "lora", "init_lora_weights": "eva"}, "needs a pass over the data"),
        ("sft", {"type": "lora", "init_lora_weights": "pissa_niter_4"}, "draws its start, which peft does again"),
        ("sft", {"type": "lora", "loftq_config": {"loftq_bit": 4}}, "adapter.loftq_config: loftq_bit: unknown key"),
        ("sft", {"type": "lora", "task_type": "CAUSAL_LM"}, "adapter.task_type: is not for this section"),
        ("sft", {"type": "adalora", "total_step": 9}, "it is the number of the trainer's steps"),
        ("reward", {"type": "prompt_tuning", "num_virtual_tokens": 4}, "which trains a head"),
        ("classify", {"type": "adaption_prompt"}, "neither trains nor saves one"),
        ("distill", {"type": "prefix_tuning", "num_virtual_tokens": 4}, "past the adapter's own forward pass"),
        ("orpo", {"type": "p_tuning", "num_virtual_tokens": 4}, "as many logits as a row has tokens"),
        ("ppo", {"type": "p_tuning", "num_virtual_tokens": 4}, "past the adapter's own forward pass"),
        ("pretrain", {"type": "prompt_tuning", "num_virtual_tokens": 4}, "its documents would see each other"),
        *(("sft", {"type": name}, str(kind.refused)) for name, kind in TYPES.items() if kind.refused),
    ],
)
def test_what_an_adapter_cannot_do_is_refused_at_its_line(
    stage: str, section: dict[str, Any], said: str, make_recipe: Make
) -> None:
    recipe = make_recipe(stage, sections={"adapter": section})
    lines = recipe.read_text().splitlines()
    with pytest.raises(SpecError) as caught:
        load(recipe)
    (problem,) = caught.value.problems
    assert said in problem
    key = re.search(r"adapter\.(\w+)", problem)
    assert key is not None
    place = lines.index("adapter:") + 1
    near = [place + n for n, line in enumerate(lines[place:], 1) if line.startswith(f"  {key[1]}:")][:1]
    assert problem.startswith(f"{recipe}:{near[0] if near else place}: ")


def test_activation_checkpointing_with_tokens_in_a_cache_is_refused_and_else_turned_off(make_recipe: Make) -> None:
    section = {"adapter": {"type": "prefix_tuning", "num_virtual_tokens": 4}}
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        with pytest.raises(SpecError, match=rf"does not go with trainer\.{name}"):
            load(make_recipe("sft", sections=section, **{"gradient_checkpointing": ABSENT, name: True}))
    assert not _recomputes(make_recipe("sft", sections=section, gradient_checkpointing=ABSENT))


def test_a_step_is_estimated_as_it_is_trained_by_either_name_of_activation_checkpointing(make_recipe: Make) -> None:
    new, old = "activation_checkpointing", "gradient_checkpointing"
    assert _recomputes(make_recipe("sft", **{old: ABSENT}))  # TRL's own default
    assert not _recomputes(make_recipe("sft", **{old: False}))
    assert not _recomputes(make_recipe("sft", **{old: ABSENT, new: False}))
    assert _recomputes(make_recipe("sft", **{old: True, new: True}))
    assert not _recomputes(make_recipe("classify", **{old: ABSENT}))
    with pytest.raises(SpecError, match=rf"trainer\.{old}: is the old name of trainer\.{new}, which says otherwise"):
        load(make_recipe("sft", **{old: False, new: True}))


def _recomputes(recipe: Path) -> bool:
    """Says whether training recomputes activations, which the estimate and the recipe itself are to say as well."""
    loaded = load(recipe)
    shape = architectures.find(loaded, {})
    assert isinstance(shape, architectures.Architecture)
    args = trainer_config(loaded)
    on = args.gradient_checkpointing
    assert (args.activation_checkpointing, loaded.checkpointing) == (on, on)
    assert needs.setup_of(loaded, shape, Machine(gpu=False)).checkpointing == on
    return on


def test_only_kinds_that_can_read_quantized_weights_are_put_on_them(make_recipe: Make) -> None:
    with pytest.raises(SpecError, match="loha cannot read weights that quantization has packed; these can: adalora, "):
        load(make_recipe(sections={"adapter": {"type": "loha"}, "quantization": "nf4"}))


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_an_evaluation_in_the_middle_changes_nothing_on_quantized_weights(
    quantization: str, make_recipe: Make, tiny_model_dir: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    rows = make_recipe().parent / "messages.jsonl"
    source = {"path": str(rows), "format": "messages"}
    sections = {"lora": {"r": 4}, "quantization": quantization}
    found = []
    for name, more in (("with", {"eval_strategy": "steps", "eval_steps": 1}), ("without", {})):
        data = {"train": source, **({"eval": source} if more else {})}
        recipe = make_recipe(
            name=name, sections={**sections, "data": data}, learning_rate=0.02, max_steps=3, save_steps=3, **more
        )
        run_dir = run(recipe)
        found.append((figures(run_dir), hash_file(run_dir / "adapter" / "adapter_model.safetensors")))
    assert len(found[0][0]) == 3
    assert found[0] == found[1]


QUANTIZED = [
    pytest.param(name, quantization, marks=pytest.mark.slow)
    for name, kind in TYPES.items()
    if kind.quantizes and not kind.refused and name != "trainable_tokens"
    for quantization in ("nf4", "int8")
]


@pytest.mark.parametrize(("name", "quantization"), QUANTIZED)
def test_a_kind_of_adapter_trains_and_resumes_on_quantized_weights(
    name: str, quantization: str, make_recipe: Make
) -> None:
    pytest.importorskip("bitsandbytes")
    sections = {"adapter": {"type": name, **options_of(name)}, "quantization": quantization}
    recipe = make_recipe("sft", sections=sections, learning_rate=0.02, max_steps=4, save_steps=2)
    run_dir = run(recipe)
    final = run_dir if TYPES[name].apart else run_dir / "adapter"
    log, expected = figures(run_dir), hash_file(final / "adapter_model.safetensors")
    assert log[-1][1] != log[0][1]
    assert all(norm > 0 for _, _, norm in log)
    undo_end(run_dir, final)
    run(recipe)
    assert figures(run_dir) == log
    assert hash_file(final / "adapter_model.safetensors") == expected


def test_adaloras_ranks_are_shared_out_down_to_their_budget(make_recipe: Make) -> None:
    options = {"init_r": 6, "target_r": 2, "tinit": 1, "tfinal": 1, "target_modules": ["q_proj", "v_proj"]}
    recipe = make_recipe(sections={"adapter": {"type": "adalora", **options}}, max_steps=6, save_steps=6)
    config = json.loads((run(recipe) / "adapter" / "adapter_config.json").read_text())
    assert config["total_step"] == 6
    assert sum(sum(kept) for kept in config["rank_pattern"].values()) == 2 * 4  # of 6 x 4 at the start


@pytest.mark.parametrize(("last", "length"), [(1, {"max_steps": 6}), (15, {"max_steps": -1, "num_train_epochs": 1})])
def test_a_run_too_short_for_its_schedule_of_ranks_is_refused(make_recipe: Make, last: int, length: Any) -> None:
    loaded = load(make_recipe(sections={"adapter": {"type": "adalora", "tinit": 5, "tfinal": last}}, **length))
    with pytest.raises(RecipeError, match=f"adapter.tinit is 5 and adapter.tfinal {last}, and the run has .* steps"):
        decide(loaded, trainer_config(loaded))


@pytest.mark.parametrize("name", ["lora", "p_tuning"])
def test_a_run_goes_on_from_the_adapter_of_another(name: str, make_recipe: Make) -> None:
    section = {"type": name, **options_of(name)}
    first = run(make_recipe(name="first", sections={"adapter": section}, learning_rate=0.05, max_steps=4))
    start = {"adapter": {"name_or_path": str(first)}}
    second = run(make_recipe(name="second", sections=start, learning_rate=0.0, max_steps=1, save_steps=1))
    ids = torch.arange(5, 25)[None]
    ended, began = (load_model(str(place), device="cpu").model for place in (first, second))
    torch.testing.assert_close(logits(began, ids), logits(ended, ids), atol=1e-6, rtol=0)
    with pytest.raises(SpecError, match="is said by the adapter that name_or_path names"):
        load(make_recipe(sections={"adapter": {"name_or_path": str(first), "r": 4}}))
    with pytest.raises(SpecError, match="there is no adapter in"):
        load(make_recipe(sections={"adapter": {"name_or_path": str(first.parent)}}))


def test_what_a_policy_started_from_is_its_reference_with_its_adapter(make_recipe: Make) -> None:
    """A first loss of DPO is log 2 where policy and reference are one."""
    options = {"type": "lora", **options_of("lora")}
    first = run(make_recipe(name="first", sections={"adapter": options}, learning_rate=0.05, max_steps=4))
    start = {"adapter": {"name_or_path": str(first)}}
    for before in (False, True):
        fields = {"precompute_ref_log_probs": before, "max_steps": 1, "save_steps": 1}
        found = figures(run(make_recipe("dpo", f"before {before}", sections=start, **fields)))
        assert found[0][1] == pytest.approx(math.log(2), abs=1e-4), before


def test_an_adapter_goes_on_upon_what_it_was_trained_on(
    make_recipe: Make, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Wherever that lies; upon the model that it is merged into already it would be added once more."""
    base, elsewhere = (shutil.copytree(tiny_model_dir, tmp_path / name) for name in ("base", "elsewhere"))

    def recipe_on(model: Path, name: str, adapter: dict[str, Any]) -> Path:
        named = {"name_or_path": str(model), "chat_template": "chatml"}
        return make_recipe(name=name, sections={"model": named, "adapter": adapter}, max_steps=1, save_steps=1)

    def decide_on(model: Path) -> None:
        loaded = load(recipe_on(model, "second", {"name_or_path": str(first)}))
        decide(loaded, trainer_config(loaded))

    first = run(recipe_on(base, "first", {"type": "lora", **options_of("lora")}))
    for why in (f"the weights of {first} are others", f"{first} is not what its manifest knows as that"):
        decide_on(elsewhere)
        with pytest.raises(RecipeError, match=f"it names {base} as its base, and {why}"):
            decide_on(first)
        if base.exists():
            shutil.rmtree(base)


STAGES_OF = [
    *((stage, "prefix_tuning") for stage in ("pretrain", "dpo", "kto", "orpo", "grpo", "rloo", "reward", "classify")),
    *((stage, "p_tuning") for stage in ("pretrain", "dpo", "kto", "grpo", "rloo")),
    *((stage, "ia3") for stage in ("pretrain", "reward", "classify", "grpo", "ppo", "distill", "distill_on_policy")),
    *((stage, "adalora") for stage in ("dpo", "reward", "grpo", "ppo", "distill")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "name"), STAGES_OF)
def test_a_kind_of_adapter_trains_and_resumes_on_other_stages(stage: str, name: str, make_recipe: Make) -> None:
    sections = {"adapter": {"type": name, **options_of(name)}}
    more = {"packing": False, "max_length": 256} if stage == "pretrain" else {}
    recipe = make_recipe(stage, sections=sections, learning_rate=0.05, max_steps=4, save_steps=2, **more)
    run_dir = run(recipe)
    final = run_dir if TYPES[name].apart else run_dir / "adapter"
    log, expected = figures(run_dir), hash_file(final / "adapter_model.safetensors")
    load_model(str(final), device="cpu")
    undo_end(run_dir, final)
    run(recipe)
    assert figures(run_dir) == log
    assert hash_file(final / "adapter_model.safetensors") == expected


def test_lora_is_the_short_form_of_an_adapter(make_recipe: Make) -> None:
    short = {"r": 4, "alpha": 8, "dropout": 0.1, "use_dora": True, "target_modules": ["q_proj"]}
    long = {"type": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "use_dora": True}
    long |= {"target_modules": ["q_proj"], "modules_to_save": [], "use_rslora": False}
    made = [load(make_recipe(sections=sections)).recipe for sections in ({"lora": short}, {"adapter": long})]
    assert made[0].adapts == made[1].adapts
    with pytest.raises(SpecError, match="drop one of the two"):
        load(make_recipe(sections={"lora": short, "adapter": long}))


def undo_end(run_dir: Path, final: Path) -> None:
    """Puts a finished run back to its checkpoint of step 2."""
    (final / "adapter_model.safetensors").unlink()
    (run_dir / "manifest.json").unlink()
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps({**record, "finished": None}))
    shutil.rmtree(run_dir / "checkpoint-4")


def test_the_table_knows_every_type_of_peft_by_its_own_class() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {}
    for name, kind in TYPES.items():
        _, file, cls = kind.config.split(":")
        module = importlib.import_module(f"peft.{file.removesuffix('.py').replace('/', '.')}")
        known[name.upper()] = getattr(module, cls)
    assert known == {kind.value: cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
