"""A model's answers on many rows are those on each row alone, in the order of the rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from posttrain.evals import forward
from posttrain.evals.errors import EvalError
from posttrain.evals.forward import outputs, token_sums, weighted_means
from posttrain.evals.models import load_model

from .headed import headed_model

ROWS = [[(7 * n + place) % 300 for place in range(length)] for n, length in enumerate((5, 31, 2, 17, 31, 8))]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: Any, tiny_model_dir: Path) -> Any:
    if request.param == "llama":
        return load_model(str(tiny_model_dir), device="cpu").model
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=64, n_embd=16, n_layer=2, n_head=2)).eval()


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("most", [None, 300 * 40])
def test_sums_are_those_of_a_whole_pass_over_each_row(model: Any, size: int, most: int | None, monkeypatch: Any):
    if most:
        monkeypatch.setattr(forward, "_LOGITS", most)
    first = [1, 4, 1, 16, 30, 3]
    nll, entropy = token_sums(model, ROWS, first, size)
    for number, (row, start) in enumerate(zip(ROWS, first, strict=True)):
        with torch.inference_mode():
            log_p = model(torch.tensor([row])).logits[0, start - 1 : -1].double().log_softmax(-1)
        assert nll[number] == pytest.approx(
            -log_p.gather(-1, torch.tensor(row[start:])[:, None]).sum().item(), abs=1e-4
        )
        assert entropy[number] == pytest.approx(-(log_p.exp() * log_p).sum().item(), abs=1e-4)


def test_logits_that_are_not_read_are_not_computed(model: Any, monkeypatch: Any):
    seen: list[int] = []
    plain = type(model).forward

    def count(self: Any, *args: Any, **options: Any) -> Any:
        found = plain(self, *args, **options)
        seen.append(found.logits.shape[0] * found.logits.shape[1])
        return found

    count.__signature__ = __import__("inspect").signature(plain)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(model), "forward", count)
    token_sums(model, [ROWS[1], ROWS[4]], [30, 30], 2)
    monkeypatch.setattr(forward, "_LOGITS", model.config.vocab_size * 31)
    token_sums(model, [ROWS[1], ROWS[4]], [1, 1], 2)
    assert seen == [4, 31, 31]


@pytest.mark.parametrize(
    "passes", [lambda m: token_sums(m, ROWS, [1] * len(ROWS), 2), lambda m: weighted_means(m, ROWS, 2)]
)
def test_numbers_that_are_none_are_an_error(tiny_model_dir: Path, passes: Any):
    model = load_model(str(tiny_model_dir), device="cpu").model
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(EvalError, match="not finite; do the weights hold NaN"):
        passes(model)


@pytest.mark.parametrize("size", [1, 4])
def test_heads_do_not_see_the_padding(tiny_model_dir: Path, size: int):
    model = headed_model(tiny_model_dir, 3)
    found = outputs(model, [{"input_ids": row} for row in ROWS], size, where="task")
    with torch.inference_mode():
        alone = [model(torch.tensor([row])).logits[0] for row in ROWS]
    np.testing.assert_allclose(found, torch.stack(alone), atol=1e-5)
    model.config.pad_token_id = None  # it cannot tell where a padded row ends
    np.testing.assert_allclose(
        outputs(model, [{"input_ids": row} for row in ROWS], size, where="task"), found, atol=1e-5
    )
    torch.nn.init.constant_(model.score.weight, float("nan"))
    with pytest.raises(EvalError, match="task: the outputs are not finite"):
        outputs(model, [{"input_ids": row} for row in ROWS], size, where="task")
