"""Adapters train, resume and end as a plain model that needs no adapter library."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from posttrain.data_tools.files import hash_file
from posttrain.evals import checkpoints
from posttrain.evals.models import Pretrained
from posttrain.recipes.job import open_job
from posttrain.recipes.load import load
from posttrain.recipes.model import load_model
from posttrain.recipes.train import train

from .conftest import losses
from .preference import built
from .test_resume import WEIGHTS, undo_end


def adapted(recipe: Path, **sections: object) -> Path:
    """Adds sections to a recipe and trains it."""
    value = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump({**value, "lora": {"r": 4, "alpha": 8}, **sections}))
    loaded = load(recipe)
    train(loaded)
    return Path(loaded.recipe.output_dir)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_the_final_model_is_the_base_with_the_adapter_merged(
    make_recipe: Callable[..., Path], tiny_model_dir: Path, quantization: str | None
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if quantization:
        pytest.importorskip("bitsandbytes")
    run_dir = adapted(make_recipe(learning_rate=0.02), **({"quantization": quantization} if quantization else {}))
    curve = losses(run_dir)
    assert curve[-1] < curve[0] - 0.1
    assert not (run_dir / "adapter_config.json").exists()
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        untouched = base(ids).logits
        expected = PeftModel.from_pretrained(base, str(run_dir / "adapter"))(ids).logits
        final = AutoModelForCausalLM.from_pretrained(run_dir, dtype=torch.float32)(ids).logits
    assert (expected - untouched).abs().max() > 0.01
    torch.testing.assert_close(final, expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_run_resumes_to_the_same_weights(make_recipe: Callable[..., Path]) -> None:
    run_dir = adapted(make_recipe())
    expected = hash_file(run_dir / WEIGHTS)
    undo_end(run_dir)
    (run_dir / "checkpoint-12" / "optimizer.pt").unlink()
    adapted(make_recipe())
    assert hash_file(run_dir / WEIGHTS) == expected
    assert checkpoints.verify(run_dir) == []
    assert checkpoints.verify(run_dir / "adapter") == []


def test_tokens_that_the_template_adds_are_trained_with_the_adapter(
    make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = {
        "name_or_path": yaml.safe_load(make_recipe().read_text())["model"]["name_or_path"],
        "chat_template": "llama3",
    }
    run_dir = adapted(make_recipe(learning_rate=0.02), model=model)
    start = adapted(make_recipe(name="start", learning_rate=0.0), model=model)
    tokenizer = AutoTokenizer.from_pretrained(run_dir)
    added = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (run_dir, start)]
    rows = [model.state_dict()["model.embed_tokens.weight"] for model in models]
    assert len(tokenizer) <= len(rows[0])
    assert not torch.equal(rows[0][added], rows[1][added])
    for folder in (run_dir, start):
        assert AutoModelForCausalLM.from_pretrained(folder).config.tie_word_embeddings


def test_a_merge_that_is_not_the_adapter_fails_loudly_and_loses_nothing(
    make_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from posttrain.evals.parity import read_comparisons
    from posttrain.recipes import adapters
    from posttrain.recipes.errors import RunError
    from posttrain.recipes.rundir import is_finished

    recipe = make_recipe(learning_rate=0.02)
    run_dir = recipe.parent / "run"

    def forgets(job: Any, adapter: Path, head: Any = None) -> Any:
        return adapters.load_model(job.loaded.recipe, job.tokenizer, head)

    with monkeypatch.context() as patch:
        patch.setattr(adapters, "merge_adapter", forgets)
        with pytest.raises(RunError, match="not the adapter on its base"):
            adapted(recipe)
    assert "a stale adapter" in capsys.readouterr().err
    assert not is_finished(run_dir)
    assert (run_dir / "adapter" / "adapter_model.safetensors").exists()
    adapted(recipe)  # goes on from the last checkpoint, and merges once more
    assert is_finished(run_dir)
    (kept,) = read_comparisons(run_dir)
    assert kept.passed
    assert not kept.stale
    assert kept.check("the trainer's own log-probabilities")
    assert "is the adapter on its base" in capsys.readouterr().out


def test_a_trainer_of_mixed_precision_ends_with_a_merge_that_is_its_adapter(make_recipe: Callable[..., Path]) -> None:
    """Its passes are rounded to 16 bits while its weights have 32, and no run may end for that."""
    recipe = load(make_recipe("orpo", sections={"lora": {"r": 4}}, max_steps=3, bf16=True, learning_rate=0.003))
    train(recipe)
    kept = (Path(recipe.recipe.output_dir) / "parity.json").read_text()
    assert '"differs"' not in kept
    assert "the trainer's own log-probabilities" in kept


@pytest.mark.parametrize(
    "adapter",
    [
        None,
        {"type": "lora", "r": 4, "target_modules": "all-linear"},
        {"type": "ia3", "target_modules": ["v_proj"], "feedforward_modules": []},
    ],
)
def test_of_a_model_that_sees_pictures_what_reads_text_is_trained(
    make_recipe: Callable[..., Path], tmp_path: Path, tiny_model_dir: Path, adapter: dict[str, Any] | None
) -> None:
    """Weights without a gradient end data-parallel training; ``all-linear`` would put adapters on the vision tower."""
    from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    text = {**shape, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(tokenizer)}
    vision = {**shape, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_id=1)  # type: ignore[arg-type]
    base = tmp_path / "seeing"
    Gemma3ForConditionalGeneration(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    sections: dict[str, Any] = {"model": {"name_or_path": str(base), "chat_template": "chatml"}}
    trainer = built(make_recipe(sections=sections | ({"adapter": adapter} if adapter else {})))
    trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader()))).backward()
    trained = {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert trained
    assert [name for name, gradient in trained.items() if gradient is None] == []
    assert [name for name in trained if "vision_tower" in name or "projector" in name] == []


def test_mxfp4_weights_are_trained_as_the_numbers_that_they_hold(
    make_recipe: Callable[..., Path], tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU with the kernels, as which this one is given out, they would stay packed, and take no gradient."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer, GptOssConfig, GptOssForCausalLM
    from transformers.quantizers import quantizer_mxfp4

    base, tokenizer = tmp_path / "packed", AutoTokenizer.from_pretrained(tiny_model_dir)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = GptOssConfig(**shape, **heads, vocab_size=len(tokenizer), dtype="bfloat16")  # type: ignore[arg-type]
    GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(base)  # type: ignore[arg-type]
    tokenizer.save_pretrained(base)
    tensors = load_file(base / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inner, outer = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.full((experts, outer, inner // 32, 16), 0x22, dtype=torch.uint8)  # all 1.0
        tensors[f"{name}_scales"] = torch.full((experts, outer, inner // 32), 127 - 3, dtype=torch.uint8)  # of 2 ** -3
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    values = json.loads((base / "config.json").read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    (base / "config.json").write_text(json.dumps(values))
    monkeypatch.setattr(quantizer_mxfp4.Mxfp4HfQuantizer, "validate_environment", lambda *_, **__: None)
    monkeypatch.setattr(quantizer_mxfp4, "get_current_accelerator", lambda: torch.device("cuda"))
    sections = {"model": {"name_or_path": str(base), "chat_template": "chatml"}, "lora": {"r": 4}}
    job = open_job(load(make_recipe(sections=sections)))
    model: Any = load_model(job.loaded.recipe, job.tokenizer)
    assert model.model.layers[0].mlp.experts.down_proj.unique().tolist() == [2**-3]
    model.save_pretrained(tmp_path / "whole")
    whole: Any = Pretrained(str(tmp_path / "whole")).weights()
    assert torch.equal(whole.model.layers[0].mlp.experts.down_proj, model.model.layers[0].mlp.experts.down_proj)
