"""A model that is made to read longer contexts computes what transformers computes for the same configuration."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.load import load
from posttrain.recipes.model import load_model
from posttrain.recipes.train import train

SCALES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}


def recipe_of(make_recipe: Callable[..., Path], model: Path, rope: dict[str, Any], **trainer: Any) -> Any:
    section = {"name_or_path": str(model), "chat_template": "chatml", "rope_parameters": rope}
    return load(make_recipe(sections={"model": section}, **trainer))


@pytest.mark.parametrize("scale", SCALES)
def test_at_twice_the_length_the_logits_are_those_of_transformers(
    make_recipe: Callable[..., Path], tiny_model_dir: Path, scale: str
) -> None:
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model = load_model(recipe_of(make_recipe, tiny_model_dir, SCALES[scale]).recipe, tokenizer).eval()
    config: Any = AutoConfig.from_pretrained(tiny_model_dir)
    made_for = config.max_position_embeddings
    rope = {**config.rope_parameters, **SCALES[scale]}
    if scale in ("yarn", "llama3"):
        rope["original_max_position_embeddings"] = made_for
    config.rope_parameters = rope
    config.max_position_embeddings = made_for * (1 if scale == "dynamic" else 2)
    stock = LlamaForCausalLM.from_pretrained(tiny_model_dir, config=config).eval()
    plain = LlamaForCausalLM.from_pretrained(tiny_model_dir).eval()
    ids = torch.arange(2 * made_for)[None] % 300
    with torch.no_grad():
        ours, theirs, unscaled = (one(input_ids=ids).logits for one in (model, stock, plain))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert (ours - unscaled)[:, made_for:].abs().max() > 1e-3
    assert model.config.max_position_embeddings == config.max_position_embeddings


def test_a_run_saves_what_it_was_trained_with(
    make_recipe: Callable[..., Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    train(recipe_of(make_recipe, tiny_model_dir, SCALES["yarn"], max_steps=2, save_strategy="no"))
    config: Any = AutoConfig.from_pretrained(tmp_path / "run")
    assert config.rope_parameters["rope_type"] == "yarn"
    assert config.rope_parameters["original_max_position_embeddings"] == 256
    assert config.max_position_embeddings == 512


def test_layers_with_a_sliding_window_keep_their_own(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from ..conftest import build_tokenizer

    tokenizer = build_tokenizer()
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        sliding_window=16,
    )
    folder = tmp_path / "gemma"
    Gemma3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model: Any = load_model(recipe_of(make_recipe, folder, SCALES["linear"]).recipe, tokenizer)
    own: Any = config.rope_parameters
    assert model.config.rope_parameters["full_attention"] == {**own["full_attention"], **SCALES["linear"]}
    assert model.config.rope_parameters["sliding_attention"] == own["sliding_attention"]
    assert (model.config.sliding_window, model.config.max_position_embeddings) == (16, 128)


@pytest.mark.parametrize(
    ("rope", "message"),
    [({"rope_type": "yarm", "factor": 2.0}, "did you mean 'yarn'"), ({"rope_type": "linear"}, "factor")],
)
def test_what_transformers_does_not_know_is_refused(
    make_recipe: Callable[..., Path], tiny_model_dir: Path, rope: dict[str, Any], message: str
) -> None:
    from transformers import AutoTokenizer

    recipe = recipe_of(make_recipe, tiny_model_dir, rope).recipe
    with pytest.raises(RecipeError, match=message):
        load_model(recipe, AutoTokenizer.from_pretrained(tiny_model_dir), empty=True)


def test_an_adapter_would_not_keep_it(make_recipe: Callable[..., Path], tiny_model_dir: Path) -> None:
    model = {"name_or_path": str(tiny_model_dir), "rope_parameters": SCALES["yarn"]}
    with pytest.raises(Exception, match=r"an adapter does not keep model\.rope_parameters"):
        load(make_recipe(sections={"model": model, "lora": {"r": 2}}))
