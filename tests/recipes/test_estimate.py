"""What a run will need, by arithmetic on shapes, against transformers' counts and published formulas."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from posttrain.recipes import architectures, check, estimate, needs
from posttrain.recipes.architectures import Architecture
from posttrain.recipes.estimate import Machine, Setup, Size
from posttrain.recipes.load import load

ROOT = Path(__file__).parents[2]
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7, "num_attention_heads": 4}
DECODER = {**SMALL, "vocab_size": 300, "num_key_value_heads": 2, "tie_word_embeddings": True, "pad_token_id": 0}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**DECODER, "attention_bias": True, "mlp_bias": True},
    "mistral": {**DECODER, "tie_word_embeddings": False, "sliding_window": 16},
    "qwen2": DECODER,
    "qwen3": {**DECODER, "head_dim": 24},
    "gemma3_text": {**DECODER, "head_dim": 24, "sliding_window": 16},
    "modernbert": {**SMALL, "vocab_size": 300, "pad_token_id": 0, "local_attention": 16},
}


def shape_of(kind: str) -> Architecture:
    found = architectures.read({"model_type": kind, **CONFIGS[kind]})
    assert found is not None
    return found


def test_every_published_shape_has_as_many_parameters_as_its_authors_say() -> None:
    published = yaml.safe_load((ROOT / "recipes" / "architectures.yaml").read_text())
    for name, entry in published.items():
        found = architectures.read(entry["config"])
        assert found is not None, name
        assert found.parameters() == entry["parameters"], name


@pytest.mark.parametrize("kind", CONFIGS)
def test_parameters_and_windows_are_those_of_the_model_that_transformers_makes(kind: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

    shape = shape_of(kind)
    config: Any = AutoConfig.for_model(kind, **CONFIGS[kind], num_labels=3)
    language = AutoModelForMaskedLM if kind == "modernbert" else AutoModelForCausalLM
    with torch.device("meta"):
        for outputs, maker in ((None, language), (3, AutoModelForSequenceClassification)):
            model: Any = maker.from_config(config)
            assert shape.parameters(outputs) == sum(weight.numel() for weight in model.parameters())
    window = config.local_attention if kind == "modernbert" else getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or [f"{'sliding' if window else 'full'}_attention"] * 7
    assert shape.windows == tuple(window if name == "sliding_attention" else None for name in types)


def a_setup(shape: Architecture, **changed: Any) -> Setup:
    total = shape.parameters()
    size = Size(total, total, shape.table)
    setup = Setup(shape, size, Machine(), batch=1, rows_each=1, length=8, weight_bytes=4, compute_bytes=4)
    return replace(setup, **changed)


def test_zero_shards_what_its_paper_says() -> None:
    """Rajbhandari et al. 2020, section 5: 2 + 2 + 12 bytes a weight, shared by stage; 4 + 4 + 8 without."""
    setup = a_setup(shape_of("llama"), compute_bytes=2)
    weights = setup.size.total
    for stage, shards in ((1, (1, 1, 8)), (2, (1, 8, 8)), (3, (8, 8, 8))):
        parts = estimate.moments(replace(setup, machine=Machine(processes=8, zero=stage)))["update"]
        assert parts["optimizer"] == 12 * weights / shards[2]
        assert parts["gradients"] == pytest.approx(2 * weights / shards[1] + 4 * setup.architecture.table)
        gathered = 2 * (setup.architecture.table + setup.architecture.linear / 7) if stage == 3 else 0
        assert parts["weights"] == pytest.approx(2 * weights / shards[0] + gathered)
    alone = estimate.moments(replace(setup, compute_bytes=4))["update"]
    assert (alone["weights"], alone["optimizer"]) == (4 * weights, 8 * weights)


def test_compute_is_that_of_palm_with_windows() -> None:
    shape = shape_of("gemma3_text")
    n, heads = shape.linear + shape.table, 4 * 24
    full, _ = estimate.flops_per_token(a_setup(shape, length=8))
    assert full == 6 * n + 12 * 7 * heads * 8  # Chowdhery et al. 2022, appendix B: 6 N + 12 L H Q T
    long, _ = estimate.flops_per_token(a_setup(shape, length=64))
    assert long == 6 * n + 12 * heads * (6 * 16 + 1 * 64)  # one layer in six sees all
    model, again = estimate.flops_per_token(a_setup(shape_of("llama"), checkpointing=True))
    assert model / 3 == again + 2 * shape_of("llama").table  # all of the forward pass but the output layer


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    setup = a_setup(shape_of("qwen3"))
    budget = 30e6
    most = estimate.largest_batch(setup, budget)
    sizes = [sum(estimate.peak(replace(setup, batch=batch))[1].values()) for batch in (most, most + 1)]
    assert most > 1
    assert sizes[0] <= budget < sizes[1]
    assert estimate.largest_batch(setup, 1e3) == 0


def test_check_estimates_from_a_config_alone(
    make_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    config = {"model_type": "llama", **CONFIGS["llama"]}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    recipe = make_recipe(sections={"model": {"name_or_path": str(tmp_path / "model")}, "lora": {"r": 2}})
    assumed = needs.Assumptions(device="H100", processes=4, tokens=1e6, price=2.0, table=True)
    assert check.check_all([recipe], [], {}, read_data=False, assumed=assumed) == 0
    said = capsys.readouterr().out
    shape = shape_of("llama")
    assert f"{shape.parameters():,}" in said
    adapters = 7 * 2 * sum(matrix.inputs + matrix.outputs for matrix in shape.matrices.values())
    assert f"({adapters:,})" in said
    for words in ("GiB on each of 4 GPUs", "fits into 90% of H100", "at 2 an hour", "ZeRO-3", "qlora"):
        assert words in said
    assert check.check_all([recipe], [], {}, read_data=False, assumed=needs.Assumptions(device="H10")) == 2
    assert "did you mean" in capsys.readouterr().err


def test_what_is_not_known_of_a_model_is_said(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(sections={"model": {"name_or_path": "nobody/nothing"}})
    assert check.check_all([recipe], [], {}, read_data=False) == 0
    assert "nobody/nothing: there is no config.json here" in capsys.readouterr().out


def test_the_library_is_estimated_whole_without_network() -> None:
    for path in (ROOT / "recipes" / "library").rglob("*.yaml"):
        if "stage" in yaml.safe_load(path.read_text()) and "@" not in path.read_text():
            said = "\n".join(needs.lines(load(path, []), needs.Assumptions()))
            assert "memory: " in said, path
            assert "compute: " in said, path
