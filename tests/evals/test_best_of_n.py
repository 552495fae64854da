"""Best-of-n: the closed form is the mean over all subsets, and a killed call draws no answer twice."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from posttrain.data_tools.generate import Sampling
from posttrain.data_tools.spec import SourceSpec
from posttrain.evals import best_of_n
from posttrain.evals.best_of_n import FILE, SAMPLES, best_of, kl, points, read_prompts, run
from posttrain.evals.errors import EvalError
from posttrain.evals.models import load_model

from .conftest import write_rows


def brute_force(proxy: Any, values: Any, k: int) -> float:
    """The mean over subsets of the mean over those that the proxy likes best."""
    found = []
    for subset in itertools.combinations(range(len(proxy)), k):
        top = max(proxy[i] for i in subset)
        found.append(np.mean([values[i] for i in subset if proxy[i] == top]))
    return float(np.mean(found))


@pytest.mark.parametrize("ties", [False, True])
def test_the_estimate_is_the_mean_over_all_subsets(ties: bool):
    rng = np.random.default_rng(0)
    proxy = rng.integers(0, 3, (4, 7)).astype(float) if ties else rng.normal(size=(4, 7))
    gold = rng.normal(size=(4, 7))
    for k in range(1, 8):
        for values in (proxy, gold):
            expected = [brute_force(p, v, k) for p, v in zip(proxy, values, strict=True)]
            np.testing.assert_allclose(best_of(proxy, values, k), expected)


def test_one_answer_is_the_mean_and_all_answers_the_best():
    proxy = np.array([[1.0, 3.0, 2.0]])
    gold = np.array([[0.5, -1.0, 0.25]])
    assert best_of(proxy, gold, 1)[0] == pytest.approx(gold.mean())
    assert (best_of(proxy, proxy, 3)[0], best_of(proxy, gold, 3)[0]) == (3.0, -1.0)
    with pytest.raises(ValueError, match="best of 4 of 3"):
        best_of(proxy, gold, 4)


def test_the_divergence_is_that_of_the_best_of_continuous_rewards():
    assert kl(1) == 0
    assert kl(4) == pytest.approx(math.log(4) - 3 / 4)
    # the density of the best of k at the quantile u is k u^(k-1)
    u = (np.arange(200_000) + 0.5) / 200_000
    density = 4 * u**3
    assert np.mean(density * np.log(density)) == pytest.approx(kl(4), abs=1e-4)


def test_more_answers_help_the_reward_that_chooses():
    rng = np.random.default_rng(1)
    proxy = rng.normal(size=(200, 12))
    gold = proxy + rng.normal(size=(200, 12))
    curve = points(proxy, gold)
    assert [point["n"] for point in curve] == [1, 2, 4, 8, 12]
    assert all(a["reward"] < b["reward"] for a, b in itertools.pairwise(curve))
    # the mean of the best of 8 standard normal draws is 1.4236 (Harter 1961, table 1)
    assert curve[3]["reward"] == pytest.approx(1.4236, abs=4 * curve[3]["reward_stderr"])
    assert curve[3]["gold"] == pytest.approx(1.4236, abs=4 * curve[3]["gold_stderr"])
    assert points(proxy, None)[0]["gold"] is None


def length(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(text if isinstance(text, str) else text[0]["content"])) for text in completions]


def letters(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [float(text.count(wanted)) for text, wanted in zip(completions, answer, strict=True)]


def call(folder: Path, model_dir: Path, rows: list[dict[str, Any]], **kwargs: Any) -> dict[str, Any]:
    loaded = load_model(str(model_dir), device="cpu")
    how = Sampling(6, temperature=1.0, batch_size=8)
    run(folder, loaded, rows, 4, how, **({"reward": length, "gold": letters, "names": {"policy": "p"}} | kwargs))
    return json.loads((folder / FILE).read_text())


@pytest.fixture
def rows(tmp_path: Path, tiny_model_dir: Path) -> list[dict[str, Any]]:
    prompts = ["hello", "Numbers such as", "The quick brown fox", "hello"]
    path = write_rows(tmp_path / "prompts.jsonl", [{"prompt": p, "answer": "e"} for p in prompts])
    loaded = load_model(str(tiny_model_dir), device="cpu")
    return read_prompts(SourceSpec(path=str(path), format="prompt"), loaded, 3)


def test_answers_are_drawn_scored_and_kept(tmp_path: Path, tiny_model_dir: Path, rows: list[dict[str, Any]]):
    found = call(tmp_path / "out", tiny_model_dir, rows)
    table = pq.read_table(tmp_path / "out" / SAMPLES).to_pylist()
    assert len(table) == 12
    assert found["policy"] == "p"
    assert [row["reward"] for row in table] == [len(row["answer"]) for row in table]
    assert [row["gold"] for row in table] == [row["answer"].count("e") for row in table]
    assert found["points"][0]["reward"] == pytest.approx(np.mean([row["reward"] for row in table]))
    assert found["points"][0]["prompts"] == 3
    assert len({row["answer"] for row in table}) > 6
    assert all(row["tokens"] <= 6 for row in table)


def test_a_killed_call_goes_on_with_the_same_answers(
    tmp_path: Path, tiny_model_dir: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    whole = call(tmp_path / "whole", tiny_model_dir, rows)
    draw, calls = best_of_n.draw, []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(*args, **kwargs)

    monkeypatch.setattr(best_of_n, "draw", dying)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "killed", tiny_model_dir, rows)
    assert call(tmp_path / "killed", tiny_model_dir, rows) == whole
    assert len(calls) == 4  # three batches, of which the second was begun twice
    same = [pq.read_table(tmp_path / name / SAMPLES).to_pylist() for name in ("whole", "killed")]
    assert same[0] == same[1]


def test_a_reward_that_is_no_number_is_one_clear_error(
    tmp_path: Path, tiny_model_dir: Path, rows: list[dict[str, Any]]
):
    with pytest.raises(EvalError, match="one finite number"):
        call(tmp_path / "out", tiny_model_dir, rows, reward=lambda completions, **_: [math.nan] * len(completions))
