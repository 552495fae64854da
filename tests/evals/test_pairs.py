"""Preference pairs: what a reward model prefers, how sure it is, and how far chance and length get."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from posttrain.data_tools.spec import SourceSpec
from posttrain.evals.heldout import is_limited
from posttrain.evals.pairs import figures
from posttrain.evals.records import Score, ScoreStore
from posttrain.evals.score import score

from .conftest import write_rows
from .headed import headed_model, save_run

ROWS = [
    {"prompt": f"{n} and 2 make", "chosen": f" {n + 2}.", "rejected": f" a fish and {n} dogs, thanks."}
    for n in range(12)
]


def by_name(margins: Any, groups: Any = None, **kwargs: Any) -> dict[str, Any]:
    margins = np.asarray(margins, dtype=float)
    groups = np.arange(len(margins)) if groups is None else np.asarray(groups)
    return {metric.name: metric for metric in figures(margins, groups, **kwargs)[0]}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "suite"
    folder.mkdir()
    write_rows(folder / "pairs.jsonl", ROWS)
    path = folder / "pairs.yaml"
    path.write_text("pairs:\n  - {name: preferences, path: pairs.jsonl}\n")
    return path


def only(report: Any, run: Path) -> tuple[Score, list[dict[str, Any]]]:
    assert [str(failure) for failure in report.failed] == []
    found = ScoreStore(run).load()[-1]
    return found, pq.read_table(run / found.samples_name).to_pylist()


def test_a_worked_example():
    found = by_name([math.log(3), -math.log(3), 0.0, math.log(3)])
    assert found["accuracy"].value == pytest.approx(2.5 / 4)
    assert found["kappa"].value == pytest.approx(0.25)
    assert found["brier"].value == pytest.approx((2 * 0.25**2 + 0.75**2 + 0.5**2) / 4)
    assert found["nll"].value == pytest.approx((2 * -math.log(0.75) - math.log(0.25) + math.log(2)) / 4)
    assert found["margin"].value == pytest.approx(math.log(3) / 4)
    # three answers are preferred with 75%, of which two rightly; the tie is as right as it is sure
    assert found["ece"].value == pytest.approx(3 / 4 * (0.75 - 2 / 3))


def test_a_model_that_knows_nothing_scores_what_chance_does():
    found = by_name(np.zeros(9))
    assert (found["accuracy"].value, found["kappa"].value) == (0.5, 0.0)
    assert found["nll"].value == pytest.approx(math.log(2))
    assert found["brier"].value == pytest.approx(0.25)
    assert found["ece"].value == 0
    assert figures(np.zeros(9), np.arange(9))[1] == ("9 ties, counted one half each",)


def test_the_accuracys_interval_is_that_of_a_proportion():
    from posttrain.evals.stats.intervals import interval, wilson

    one = by_name([1.0] * 30 + [-1.0] * 10)["accuracy"]
    assert interval(one.value, one.stderr, one.n) == wilson(30, 40)


def test_pairs_of_one_prompt_do_not_count_as_independent():
    rng = np.random.default_rng(0)
    alone = by_name(rng.normal(0.5, 1, 50))
    copied = by_name(np.repeat(rng.normal(0.5, 1, 50), 4), np.repeat(np.arange(50), 4))
    naive = by_name(np.repeat(rng.normal(0.5, 1, 50), 4))
    assert copied["margin"].stderr == pytest.approx(alone["margin"].stderr, rel=0.3)
    assert naive["margin"].stderr < 0.7 * copied["margin"].stderr


def test_margins_of_people_are_compared_by_rank():
    margins = np.arange(20.0)
    assert by_name(margins, given=margins**3)["margin_spearman"].value == pytest.approx(1)


def test_a_reward_model_is_scored_by_its_own_rewards(suite: Path, tmp_path: Path, tiny_model_dir: Path):
    from transformers import AutoTokenizer

    model = headed_model(tiny_model_dir, 1)
    run = save_run(tmp_path / "rm", model, tiny_model_dir)
    found, rows = only(score([run], suite, device="cpu"), run)
    assert found.metrics[0].name == "accuracy"
    assert found.metrics[0].n == 12
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_dir)
    for row, raw in zip(rows, ROWS, strict=True):
        assert row["prompt"] == raw["prompt"]
        for side in ("chosen", "rejected"):
            assert row[side] == raw[side] + "<|endoftext|>"
            ids = [i for key in ("prompt", side) for i in tokenizer(raw[key])["input_ids"]] + [tokenizer.eos_token_id]
            with torch.no_grad():
                expected = model(torch.tensor([ids])).logits.item()
            assert row[f"reward_{side}"] == pytest.approx(expected, abs=1e-5)
    assert found.metrics[0].value == np.mean([row["margin"] > 0 for row in rows])
    longer = np.mean(
        [len(tokenizer(r["chosen"])["input_ids"]) > len(tokenizer(r["rejected"])["input_ids"]) for r in ROWS]
    )
    assert f"always preferring the longer answer is right on {longer:.1%} of the pairs" in found.notes


def test_a_policys_implicit_reward_departs_from_its_reference(suite: Path, tmp_path: Path, tiny_model_dir: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reference: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    torch.manual_seed(1)
    policy: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    run = save_run(tmp_path / "dpo", policy, tiny_model_dir)
    suite.write_text("pairs:\n  - {name: p, path: pairs.jsonl, reference: '@sft', beta: 0.5}\n")
    from posttrain.evals.suite_files import load_suite

    _, rows = only(score([run], load_suite(suite, {"sft": tiny_model_dir}), device="cpu"), run)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_dir)
    prompt = tokenizer(ROWS[3]["prompt"])["input_ids"]
    ids = torch.tensor([[*prompt, *tokenizer(ROWS[3]["chosen"])["input_ids"], tokenizer.eos_token_id]])

    def log_p(model: Any) -> float:
        with torch.no_grad():
            table = model(ids).logits[0].log_softmax(-1)
        return sum(table[i - 1, ids[0, i]].item() for i in range(len(prompt), ids.shape[1]))

    assert rows[3]["reward_chosen"] == pytest.approx(0.5 * (log_p(policy) - log_p(reference)), abs=1e-4)
    same = save_run(tmp_path / "sft", reference, tiny_model_dir)
    _, rows = only(score([same], load_suite(suite, {"sft": tiny_model_dir}), device="cpu"), same)
    assert {row["margin"] for row in rows} == {0.0}  # a policy that is its reference prefers nothing


def test_a_head_that_does_not_fit_is_one_clear_error(suite: Path, tmp_path: Path, tiny_model_dir: Path):
    run = save_run(tmp_path / "classifier", headed_model(tiny_model_dir, 3), tiny_model_dir)
    (failure,) = score([run], suite, device="cpu").failed
    assert "a reward model is needed, but the checkpoint's head has 3 outputs instead of one" in failure.reason
    assert failure.detail == ""
    (failure,) = score([tiny_model_dir], suite, device="cpu", output=tmp_path / "out").failed
    assert "a reward model is needed" in failure.reason
    assert "reference" in failure.reason
    (suite.parent / "text.txt").write_text("The quick brown fox.")
    suite.write_text("perplexity:\n  - {name: text, path: text.txt}\n")
    (failure,) = score([run], suite, device="cpu").failed
    assert "needs a language model" in failure.reason


def test_unusable_pairs_are_dropped_and_counted(suite: Path, tmp_path: Path, tiny_model_dir: Path):
    rows = [*ROWS, {"prompt": "a", "chosen": "same", "rejected": "same"}]
    write_rows(suite.parent / "pairs.jsonl", rows)
    run = save_run(tmp_path / "rm", headed_model(tiny_model_dir, 1), tiny_model_dir)
    assert "1 of 13 rows cannot be used" in score([run], suite, device="cpu").failed[0].reason
    suite.write_text("pairs:\n  - {name: preferences, path: pairs.jsonl, max_bad_share: 0.1, limit: 13}\n")
    found, _ = only(score([run], suite, device="cpu"), run)
    assert (found.metrics[0].n, found.limit) == (12, None)
    assert "1 rows dropped: chosen equals rejected" in found.notes


def test_the_score_belongs_to_rows_settings_and_reference(suite: Path, tmp_path: Path, tiny_model_dir: Path):
    from posttrain.evals.pairs import define
    from posttrain.evals.suite_files import load_suite

    def task_hash(entry: str) -> str:
        suite.write_text(f"pairs:\n  - {{name: p, path: pairs.jsonl{entry}}}\n")
        spec = load_suite(suite)
        return define(spec.pairs[0], spec).task_hash

    hashes = [task_hash(entry) for entry in ("", ", limit: 3", ", max_length: 64", ", metric: nll")]
    hashes += [task_hash(f", reference: {tiny_model_dir}"), task_hash(f", reference: {tiny_model_dir}, beta: 0.2")]
    write_rows(suite.parent / "pairs.jsonl", ROWS[:-1])
    assert len({*hashes, task_hash("")}) == 7


def test_a_conversations_pairs_are_rendered_by_the_checkpoints_template(
    suite: Path, tmp_path: Path, tiny_model_dir: Path
):
    from .test_score import CHATML

    talk = [{"role": "user", "content": "hello"}]
    answers = {"chosen": "goodbye", "rejected": "sorry"}
    row = {"prompt": talk, **{k: [{"role": "assistant", "content": v}] for k, v in answers.items()}}
    write_rows(suite.parent / "pairs.jsonl", [row])
    run = save_run(tmp_path / "rm", headed_model(tiny_model_dir, 1), tiny_model_dir, template=CHATML)
    found, rows = only(score([run], suite, device="cpu"), run)
    assert rows[0]["prompt"] + rows[0]["chosen"] == (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\ngoodbye<|im_end|>\n"
    )
    assert found.template_fingerprint is not None


def test_a_limit_of_all_rows_that_can_be_used_leaves_none_out(tmp_path: Path):
    rows = [{"prompt": f"q{n}", "chosen": "yes", "rejected": "no"} for n in range(3)] + [{"prompt": "q"}]
    path = str(write_rows(tmp_path / "pairs.jsonl", rows))
    sources = [SourceSpec(path=path, limit=limit) for limit in (2, 3, 4, None)]
    assert [is_limited(source, "preference") for source in sources] == [True, False, False, False]


def test_lines_of_an_older_version_still_load(tmp_path: Path):
    metric = {"name": "acc", "value": 0.5, "stderr": 0.1, "n": 9, "higher_is_better": True}
    old = {"run": "r", "run_id": "", "checkpoint": "final", "step": 1, "weights_hash": "w", "suite": "s"}
    old |= {"suite_version": "v", "task": "t", "task_hash": "h", "num_fewshot": 0, "metrics": [metric]}
    old |= {"template_fingerprint": None, "judge_version": None, "limit": None, "versions": {}, "seconds": 1.0}
    write_rows(tmp_path / "scores.jsonl", [old | {"created": "2026-01-01T00:00:00Z", "later": 1}])
    (found,) = ScoreStore(tmp_path).load()
    assert (found.notes, found.detail, found.metrics[0].low) == ((), None, None)
    ScoreStore(tmp_path).append(Score(**{**found.__dict__, "task": "u", "detail": {"confusion": None}}))
    assert json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[1])["detail"] == {"confusion": None}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"prompt": "a", "chosen": None, "rejected": "b"}, "chosen"),
        ({"prompt": "a", "chosen": "c", "rejected": " "}, "empty rejected"),
        ({"prompt": "a", "chosen": "c", "rejected": "d", "margin": math.nan}, "margin is not a number"),
    ],
)
def test_pairs_that_are_none_are_refused_by_row_before_the_model_is_loaded(
    suite: Path, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, bad: Any, says: str
):
    margin = {"margin": 1.0} if "margin" in bad else {}
    write_rows(suite.parent / "pairs.jsonl", [*({**row, **margin} for row in ROWS), bad])
    run = save_run(tmp_path / "rm", headed_model(tiny_model_dir, 1), tiny_model_dir)
    monkeypatch.setattr("posttrain.evals.loading.Loader.load", lambda *_, **__: pytest.fail("a model was loaded"))
    report = score([run], suite, device="cpu")
    assert says in report.failed[0].reason
    assert f"pairs.jsonl:{len(ROWS) + 1}" in report.failed[0].reason
    assert report.exit_code == 2
