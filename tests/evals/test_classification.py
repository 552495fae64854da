"""Labelled rows: a classifier's answers are counted as its own head gives them, whatever saved it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from posttrain.chat_templates.errors import PosttrainError
from posttrain.evals.errors import EvalError, SuiteError
from posttrain.evals.evaluate_metrics import compute_metrics
from posttrain.evals.labels import encode
from posttrain.evals.records import Score, ScoreStore
from posttrain.evals.score import score

from .conftest import write_rows
from .headed import headed_model, save_run

NAMES = ["fox", "numbers", "talk"]
TEXTS = ["The quick brown fox jumps over", "17, 42 and 1001", "hello goodbye thanks please", "Let me see. 4", "sorry"]
ROWS = [{"text": f"{text} {n}", "label": NAMES[(n + len(text)) % 3]} for n in range(4) for text in TEXTS]
REGRESSION, MULTI = {"problem_type": "regression"}, {"problem_type": "multi_label_classification"}
METRIC = """
import datasets
import evaluate


class Wrong(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        wrong = sum(p != r for p, r in zip(predictions, references))
        return {"error": wrong / len(references), "wrong": wrong}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "suite"
    folder.mkdir()
    write_rows(folder / "rows.jsonl", ROWS)
    path = folder / "labelled.yaml"
    path.write_text("classification:\n  - {name: topics, path: rows.jsonl}\n")
    return path


def only(report: Any, run: Path) -> tuple[Score, list[dict[str, Any]]]:
    assert [str(failure) for failure in report.failed] == []
    found = ScoreStore(run).load()[-1]
    return found, pq.read_table(run / found.samples_name).to_pylist()


def test_a_classifier_is_scored_by_its_own_answers(suite: Path, tmp_path: Path, tiny_model_dir: Path):
    from transformers import AutoTokenizer

    model = headed_model(tiny_model_dir, 3, names=NAMES)
    run = save_run(tmp_path / "topics", model, tiny_model_dir)
    found, rows = only(score([run], suite, device="cpu"), run)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_dir)
    for row, raw in zip(rows, ROWS, strict=True):
        with torch.no_grad():
            p = model(torch.tensor([tokenizer(row["text"])["input_ids"]])).logits[0].softmax(-1)
        assert raw["text"] in row["text"]
        assert row["label"] == raw["label"]
        assert row["probabilities"] == pytest.approx(p.tolist(), abs=1e-5)
        assert row["prediction"] == NAMES[int(p.argmax())]
    right = [row["label"] == row["prediction"] for row in rows]
    assert (found.metrics[0].name, found.metrics[0].value, found.metrics[0].n) == ("accuracy", np.mean(right), 20)
    assert found.detail is not None
    counts = np.array(found.detail["confusion"]["counts"])
    assert counts.sum() == 20
    assert np.trace(counts) == sum(right)
    assert counts.sum(axis=1).tolist() == [sum(r["label"] == name for r in ROWS) for name in NAMES]
    assert score([run], suite, device="cpu").skipped == 1


def test_an_adapter_checkpoint_brings_its_own_head(suite: Path, tmp_path: Path, tiny_model_dir: Path):
    from peft import LoraConfig, get_peft_model
    from posttrain.evals.models import save_head

    model = headed_model(tiny_model_dir, 3, names=NAMES)
    whole = save_run(tmp_path / "whole", model, tiny_model_dir)
    expected, _ = only(score([whole], suite, device="cpu"), whole)
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))
    run = save_run(tmp_path / "lora", adapted, tiny_model_dir)
    assert "has no class" in score([run], suite, device="cpu").failed[0].reason  # outputs without names
    save_head(run, adapted)
    from posttrain.evals.checkpoints import write_manifest

    write_manifest(run, step=1, resumable=False)
    found, _ = only(score([run], suite, device="cpu"), run)
    assert [m.value for m in found.metrics] == pytest.approx([m.value for m in expected.metrics], rel=1e-5)
    assert found.detail == expected.detail


def test_several_labels_and_numbers_are_scored_by_what_the_head_says(suite: Path, tmp_path: Path, tiny_model_dir: Path):
    many = [{**row, "label": [row["label"], "rare"] if n % 3 else []} for n, row in enumerate(ROWS)]
    write_rows(suite.parent / "rows.jsonl", many)
    model = headed_model(tiny_model_dir, 4, names=[*NAMES, "rare"], problem_type="multi_label_classification")
    run = save_run(tmp_path / "many", model, tiny_model_dir)
    found, rows = only(score([run], suite, device="cpu"), run)
    assert found.metrics[0].name == "f1_macro"
    assert json.loads(rows[0]["label"]) == []
    assert found.detail is None
    write_rows(suite.parent / "rows.jsonl", [{**row, "label": n / 7} for n, row in enumerate(ROWS)])
    run = save_run(tmp_path / "number", headed_model(tiny_model_dir, 1), tiny_model_dir)
    found, rows = only(score([run], suite, device="cpu"), run)
    expected = np.corrcoef([row["label"] for row in rows], [row["prediction"] for row in rows])[0, 1]
    assert (found.metrics[0].name, found.metrics[0].value) == ("pearson", pytest.approx(expected))


def test_a_language_model_is_no_classifier(suite: Path, tmp_path: Path, tiny_model_dir: Path):
    (failure,) = score([tiny_model_dir], suite, device="cpu", output=tmp_path / "out").failed
    assert "needs a classifier, but the checkpoint is a language model" in failure.reason
    assert failure.detail == ""


def test_a_label_that_the_head_does_not_know_is_named(suite: Path, tmp_path: Path, tiny_model_dir: Path):
    write_rows(suite.parent / "rows.jsonl", [*ROWS, {"text": "a", "label": "numbres"}])
    run = save_run(tmp_path / "topics", headed_model(tiny_model_dir, 3, names=NAMES), tiny_model_dir)
    (failure,) = score([run], suite, device="cpu").failed
    assert "no class 'numbres' (1 rows)" in failure.reason
    assert "numbers" in failure.reason


@pytest.mark.parametrize(
    ("rows", "says", "head"),
    [
        ([*ROWS, {"text": "a", "label": "foxx"}], "no class 'foxx' (1 rows) at suite/rows.jsonl:21; did you mean", {}),
        ([*ROWS * 5, {"text": "a", "label": None}], "'label' is null (1, as in suite/rows.jsonl:101)", {}),
        ([*ROWS * 5, {"text": "a"}], "missing column 'label' (1, as in suite/rows.jsonl:101:", {}),
        ([*ROWS * 5, {"text": "a", "label": math.nan}], "(1, as in suite/rows.jsonl:101: nan)", {}),
        ([*ROWS, {"text": "a", "label": 7}], "no class '7' (1 rows) at suite/rows.jsonl:21", {}),
        (
            [{"text": "a", "label": n} for n in (0, 2, 3, -1, 3)],
            "'3' (2 rows) at suite/rows.jsonl:3, '-1' (1 rows)",
            {},
        ),
        ([{"text": "a", "label": ["fox"]}], "suite/rows.jsonl:1: a row has the list ['fox']", {}),
        (
            [{"text": "a", "label": 1.5}, {"text": "b", "label": math.inf}],
            "suite/rows.jsonl:2: the label inf",
            REGRESSION,
        ),
        (
            [{"text": "a", "label": 1.5}, {"text": "b", "label": "high"}],
            "suite/rows.jsonl:2: the label 'high'",
            REGRESSION,
        ),
        ([{"text": "a", "label": True}], "suite/rows.jsonl:1: the label True", REGRESSION),
        ([{"text": "a", "label": [0, 1, 0]}], "suite/rows.jsonl:1: a row names a class twice: [0, 1, 0]", MULTI),
        (
            [{"text": "a", "label": ["fox"]}, {"text": "b", "label": [None]}],
            "(1, as in suite/rows.jsonl:2: None)",
            MULTI,
        ),
    ],
)
def test_a_label_that_cannot_be_right_is_refused_by_row_before_the_model_is_loaded(
    suite: Path, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, rows: Any, says: str, head: Any
):
    write_rows(suite.parent / "rows.jsonl", rows)
    names = None if head == REGRESSION else NAMES
    run = save_run(
        tmp_path / "run", headed_model(tiny_model_dir, 3 if names else 1, names=names, **head), tiny_model_dir
    )
    monkeypatch.setattr("posttrain.evals.loading.Loader.load", lambda *_, **__: pytest.fail("a model was loaded"))
    report = score([run], suite, device="cpu")
    assert says in report.failed[0].reason.replace(f"{tmp_path}/", "")
    assert (len(report.failed), report.exit_code) == (1, 2)


def test_a_zero_and_a_one_are_no_names_of_two_classes():
    with pytest.raises(EvalError, match="both classes or one"):
        encode([[1, 0], [0, 1]], ["NEGATIVE", "POSITIVE"], "multi_label", "t")
    assert encode([[1, 0]], ["0", "1"], "multi_label", "t").tolist() == [[1, 1]]


def test_long_rows_are_cut_and_counted(suite: Path, tmp_path: Path, tiny_model_dir: Path):
    suite.write_text("classification:\n  - {name: topics, path: rows.jsonl, max_length: 3}\n")
    run = save_run(tmp_path / "topics", headed_model(tiny_model_dir, 3, names=NAMES), tiny_model_dir)
    found, _ = only(score([run], suite, device="cpu"), run)
    assert found.metrics[0].n == 20
    assert any("cut to the model's length" in note for note in found.notes)


def test_nan_in_the_weights_is_an_error_not_a_score(suite: Path, tmp_path: Path, tiny_model_dir: Path):
    model = headed_model(tiny_model_dir, 3, names=NAMES)
    torch.nn.init.constant_(model.score.weight, math.nan)
    run = save_run(tmp_path / "topics", model, tiny_model_dir)
    assert "not finite" in score([run], suite, device="cpu").failed[0].reason


def test_names_and_numbers_of_classes_find_their_output():
    assert encode(["b", "a"], ["a", "b"], "single_label", "t").tolist() == [1, 0]
    assert encode([2, 1.0, "2"], ["1", "2"], "single_label", "t").tolist() == [1, 0, 1]  # names, not places
    assert encode([1, 0], ["NEGATIVE", "POSITIVE"], "single_label", "t").tolist() == [1, 0]  # places: no such names
    assert encode([["b"], [], ["b", "a"]], ["a", "b"], "multi_label", "t").tolist() == [[0, 1], [0, 0], [1, 1]]
    assert encode(["1.5", 2], [], "regression", "t").tolist() == [1.5, 2.0]
    bad: list[tuple[Any, str, Any]] = [
        ([0, 1, 2], "has no class '2'", "single_label"),
        (["x"], "has no class 'x'", "single_label"),
        ([["1"]], "gives one class", "single_label"),
        ([["1", 1]], "twice", "multi_label"),
        (["high"], "not a number", "regression"),
        ([math.inf], "not a number", "regression"),
    ]
    for labels, reason, problem in bad:
        with pytest.raises(EvalError, match=reason):
            encode(labels, ["0", "1"], problem, "t")


def test_a_metric_script_of_the_evaluate_library_needs_no_network(suite: Path, tmp_path: Path, tiny_model_dir: Path):
    pytest.importorskip("evaluate")
    (suite.parent / "wrong.py").write_text(METRIC)
    suite.write_text("classification:\n  - {name: topics, path: rows.jsonl, metrics: [wrong.py]}\n")
    run = save_run(tmp_path / "topics", headed_model(tiny_model_dir, 3, names=NAMES), tiny_model_dir)
    found, _ = only(score([run], suite, device="cpu"), run)
    by_name = {metric.name: metric for metric in found.metrics}
    assert by_name["wrong:error"].value == pytest.approx(1 - by_name["accuracy"].value)
    assert not by_name["wrong:error"].higher_is_better
    (suite.parent / "wrong.py").write_text(METRIC.replace("wrong /", "1 - wrong /"))
    assert len(score([run], suite, device="cpu").done) == 1  # another script is another measurement


def test_a_metric_that_is_not_here_is_one_clear_error(tmp_path: Path):
    pytest.importorskip("evaluate")
    with pytest.raises(SuiteError, match="cannot load the metric"):
        compute_metrics(["no_such_metric"], np.array([1]), np.array([1]))
    broken = tmp_path / "broken.py"
    broken.write_text("raise ValueError('no')\n")
    with pytest.raises(PosttrainError, match="no"):
        compute_metrics([str(broken)], np.array([1]), np.array([1]))


def test_a_suite_that_cannot_be_read_says_where(suite: Path):
    from posttrain.data_tools.errors import SpecError
    from posttrain.evals.suite_files import load_suite

    suite.write_text(
        "classification:\n"
        "  - {name: topics, path: missing.jsonl}\n"
        "  - {name: topics, path: rows.jsonl, metrics: [none.py]}\n"
        "pairs:\n"
        "  - {name: p, path: rows.jsonl, reference: ./none}\n"
    )
    with pytest.raises(SpecError) as error:
        load_suite(suite)
    for what in ("missing.jsonl", "none.py", "no folder ./none", "'topics' stands twice"):
        assert what in str(error.value)
    suite.write_text("classification:\n  - {name: topics, path: rows.jsonl, weight: 2.0}\n")
    with pytest.raises(SpecError, match="weight"):
        load_suite(suite)
