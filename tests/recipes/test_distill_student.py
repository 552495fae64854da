"""A student made of some of its teacher's layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.load import load
from posttrain.recipes.model import keep_layers, layers_config
from posttrain.recipes.train import train

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 4},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4},
    "modernbert": {"local_attention": 4},
}


def model(family: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    shared = {key: value for key, value in SMALL.items() if family != "gpt2" or key not in ("hidden_size",)}
    config = AutoConfig.for_model(family, **{**shared, **FAMILIES[family]})
    torch.manual_seed(0)
    kind = AutoModelForSequenceClassification if family == "modernbert" else AutoModelForCausalLM
    return kind.from_config(config).eval()


def logits(of: Any) -> torch.Tensor:
    with torch.no_grad():
        options = {} if of.config.model_type == "modernbert" else {"use_cache": False}
        return of.eval()(input_ids=torch.arange(3, 27).reshape(2, 12), **options).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_with_all_layers_it_is_the_teacher(family: str) -> None:
    teacher = model(family)
    torch.testing.assert_close(logits(keep_layers(teacher, [0, 1, 2, 3])), logits(teacher), rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2", "gemma3_text", "modernbert"])
def test_with_some_layers_it_is_the_teacher_without_the_others(family: str) -> None:
    from torch import nn

    teacher = model(family)
    kept = [0, 3] if family == "modernbert" else [1, 3]  # the first layer of a ModernBERT has no norm
    student = keep_layers(teacher, kept)
    assert student.config.num_hidden_layers == 2
    stack = next(m for m in teacher.modules() if isinstance(m, nn.ModuleList) and len(m) == 4)
    types = getattr(teacher.config, "layer_types", None)
    # The teacher's own forward, over a list that has lost two layers; its configuration says which kinds are left.
    for number in sorted({0, 1, 2, 3} - set(kept), reverse=True):
        del stack[number]
    teacher.config.num_hidden_layers = 2
    if types:
        teacher.config.layer_types = [types[number] for number in kept]
        assert student.config.layer_types == teacher.config.layer_types
    torch.testing.assert_close(logits(student), logits(teacher), rtol=0, atol=0)


def test_it_shares_no_memory_with_the_teacher_and_generates() -> None:
    teacher = model("llama")
    student = keep_layers(teacher, [2, 0])
    teacher.model.layers[0].mlp.up_proj.weight.data.zero_()
    assert student.model.layers[1].mlp.up_proj.weight.abs().sum() > 0
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1]
    ids = torch.arange(3, 9)[None]
    cached, uncached = (
        student.generate(ids, max_new_tokens=6, do_sample=False, use_cache=use) for use in (True, False)
    )
    assert torch.equal(cached, uncached)


def test_a_layer_that_does_not_exist_is_one_clear_error() -> None:
    with pytest.raises(RecipeError, match="names layer 4, but the model has 4, counted from 0 to 3"):
        layers_config(model("llama").config, [0, 4])


def test_layers_that_cannot_change_places_are_one_clear_error() -> None:
    with pytest.raises(RecipeError, match=r"cannot put layers \[1, 3\] of a modernbert model"):
        keep_layers(model("modernbert"), [1, 3])


def test_a_recipe_trains_a_student_of_half_the_layers(
    make_recipe: Callable[..., Path], tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from posttrain.recipes import check
    from transformers import AutoModelForCausalLM

    sections = {"model": {"name_or_path": str(tiny_model_dir), "chat_template": "chatml", "layers": [1]}}
    recipe = make_recipe("distill", sections=sections, max_steps=2)
    assert check.check_all([recipe], [], {}, read_data=True) == 0
    train(load(recipe))
    run_dir = Path(load(recipe).recipe.output_dir)
    student: Any = AutoModelForCausalLM.from_pretrained(run_dir)
    assert len(student.model.layers) == 1
    total = sum(parameter.numel() for parameter in student.parameters())
    assert f"model: {total / 1e3:.3g} k parameters" in capsys.readouterr().out
    lora = make_recipe("distill", "adapted", sections={**sections, "lora": {"r": 2}}, max_steps=2)
    train(load(lora))
    assert "was not compared with the adapter: " in capsys.readouterr().out
    merged: Any = AutoModelForCausalLM.from_pretrained(Path(load(lora).recipe.output_dir))
    assert len(merged.model.layers) == 1


def test_layers_of_a_quantized_model_are_refused(make_recipe: Callable[..., Path], tiny_model_dir: Path) -> None:
    sections = {
        "model": {"name_or_path": str(tiny_model_dir), "chat_template": "chatml", "layers": [1]},
        "lora": {"r": 2},
        "quantization": "nf4",
    }
    with pytest.raises(RecipeError, match=r"model\.layers copies weights, which quantization has packed"):
        train(load(make_recipe("distill", sections=sections)))
