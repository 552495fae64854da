"""The figures of classifiers are those of scikit-learn, and their intervals hold what they promise."""

import math
from typing import Any

import numpy as np
import pytest
from posttrain.evals.records import Metric
from posttrain.evals.stats.bootstrap import estimate, midranks
from posttrain.evals.stats.classification import ece, measure, probabilities
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn import metrics as sklearn_metrics

sk: Any = sklearn_metrics  # its annotations are narrower than what it takes


def figures(*args: Any, **kwargs: Any) -> dict[str, Metric]:
    return {metric.name: metric for metric in measure(*args, **kwargs).metrics}


def single(rng: np.random.Generator, n: int, classes: int, skill: float = 1.0) -> tuple[Any, Any]:
    y = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + skill * np.eye(classes)[y]
    return probabilities("single_label", logits), y


@pytest.mark.parametrize("classes", [3, 6])
def test_figures_of_several_classes_are_those_of_scikit_learn(classes: int):
    p, y = single(np.random.default_rng(0), 300, classes)
    p = np.round(p, 2) / np.round(p, 2).sum(axis=1, keepdims=True)  # ties
    labels = [f"class {k}" for k in range(classes)]
    found = figures("single_label", labels, p, y, draws=0)
    predicted = p.argmax(axis=1)
    assert found["accuracy"].value == pytest.approx(sk.accuracy_score(y, predicted))
    for name, function in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        assert found[f"{name}_macro"].value == pytest.approx(function(y, predicted, average="macro", zero_division=0))
        for k, value in enumerate(function(y, predicted, average=None, zero_division=0)):
            assert found[f"{name}/class {k}"].value == pytest.approx(value)
    aucs = [sk.roc_auc_score(y == k, p[:, k]) for k in range(classes)]
    assert found["roc_auc"].value == pytest.approx(np.mean(aucs))
    assert found["mcc"].value == pytest.approx(sk.matthews_corrcoef(y, predicted))
    assert found["brier"].value == pytest.approx(sk.brier_score_loss(y, p, labels=range(classes)))
    assert next(iter(found)) == "accuracy"
    assert [name for name in found if "/" in name] == list(found)[-3 * classes :]


def test_figures_of_two_classes_are_those_of_scikit_learn():
    p, y = single(np.random.default_rng(1), 200, 2)
    found = figures("single_label_classification", ["ham", "spam"], p, y, draws=0)
    assert found["roc_auc"].value == pytest.approx(sk.roc_auc_score(y, p[:, 1]))
    assert found["brier"].value == pytest.approx(sk.brier_score_loss(y, p[:, 1]))
    assert found["f1/spam"].value == pytest.approx(sk.f1_score(y, p[:, 1] > 0.5))


def test_figures_of_several_labels_are_those_of_scikit_learn():
    rng = np.random.default_rng(2)
    y = (rng.random((250, 4)) < [0.5, 0.2, 0.7, 0.1]).astype(float)
    p = probabilities("multi_label", rng.normal(size=y.shape) + 2 * y - 1)
    found = figures("multi_label", list("abcd"), p, y, draws=0)
    chosen = p >= 0.5
    assert found["accuracy"].value == pytest.approx(sk.accuracy_score(y, chosen))
    assert found["f1_macro"].value == pytest.approx(sk.f1_score(y, chosen, average="macro"))
    assert found["f1_micro"].value == pytest.approx(sk.f1_score(y, chosen, average="micro"))
    assert found["roc_auc"].value == pytest.approx(sk.roc_auc_score(y, p, average="macro"))
    assert found["mcc"].value == pytest.approx(np.mean([sk.matthews_corrcoef(y[:, k], chosen[:, k]) for k in range(4)]))
    assert found["brier"].value == pytest.approx(np.mean([sk.brier_score_loss(y[:, k], p[:, k]) for k in range(4)]))
    assert next(iter(found)) == "f1_macro"


def test_figures_of_a_regression_are_those_of_scipy():
    rng = np.random.default_rng(3)
    y = np.round(rng.normal(size=120), 1)
    p = np.round(y + rng.normal(size=120), 1)
    found = figures("regression", [], p, y, draws=0)
    assert found["pearson"].value == pytest.approx(pearsonr(p, y)[0])
    assert found["spearman"].value == pytest.approx(spearmanr(p, y)[0])
    assert found["mse"].value == pytest.approx(sk.mean_squared_error(y, p))
    assert not found["mse"].higher_is_better


def test_a_worked_example():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    y = np.array([0, 0, 1, 1])
    found = figures("single_label", ["no", "yes"], p, y, draws=0)
    assert found["accuracy"].value == 3 / 4
    assert found["precision/no"].value == pytest.approx(2 / 3)
    assert found["recall/yes"].value == 1 / 2
    assert found["f1/yes"].value == pytest.approx(2 / 3)
    assert found["roc_auc"].value == 3 / 4  # of four pairs, only (0.4, 0.3) is the wrong way round
    assert found["brier"].value == pytest.approx((0.01 + 0.16 + 0.04 + 0.49) / 4)
    assert found["mcc"].value == pytest.approx(2 / math.sqrt(12))
    # each confidence has a bin of its own: 0.9 and 0.8 and 0.6 are right, 0.7 is wrong
    assert found["ece"].value == pytest.approx((0.1 + 0.4 + 0.2 + 0.7) / 4)


def test_midranks_of_a_resample_are_the_ranks_of_its_rows():
    rng = np.random.default_rng(4)
    values = rng.integers(0, 6, 20).astype(float)
    drawn = rng.integers(0, 20, 20)
    weights = np.bincount(drawn, minlength=20)[None].astype(float)
    ranks = midranks(values)(weights)[0]
    np.testing.assert_allclose(ranks[drawn], rankdata(values[drawn]))


def test_a_replicate_is_the_figure_of_the_drawn_rows():
    p, y = single(np.random.default_rng(5), 40, 3)
    drawn = np.random.default_rng(6).integers(0, 40, 40)
    seen: dict[str, float] = {}

    def spy(weights: Any) -> Any:
        return {"n": weights.sum(axis=1)}

    assert estimate(spy, 40, seed=0, draws=50)["n"].stderr is None  # every resample has as many rows: no spread
    for metric in measure("single_label", list("abc"), p[drawn], y[drawn], draws=0).metrics:
        seen[metric.name] = metric.value
    from posttrain.evals.stats import classification as classification_figures

    weights = np.bincount(drawn, minlength=40)[None].astype(float)
    truth, chosen = np.eye(3)[y], np.eye(3)[p.argmax(axis=1)]
    assert classification_figures._mcc(weights, truth, chosen)[0] == pytest.approx(seen["mcc"])
    assert classification_figures._aucs(p, truth)(weights)[0].mean() == pytest.approx(seen["roc_auc"])
    assert classification_figures._class_figures(truth, chosen)(weights)["f1"][0].mean() == pytest.approx(
        seen["f1_macro"]
    )


def test_a_class_without_rows_is_named_and_never_counted():
    p, y = single(np.random.default_rng(7), 60, 3)
    y = y % 2  # no row of the third class
    result = measure("single_label", ["a", "b", "c"], p, y, draws=100)
    found = {metric.name: metric for metric in result.metrics}
    assert "recall/c" not in found
    assert "f1/c" not in found
    assert found["recall_macro"].value == pytest.approx((found["recall/a"].value + found["recall/b"].value) / 2)
    assert any("no row of 'c'" in note for note in result.notes)
    assert all(math.isfinite(metric.value) for metric in result.metrics)


def test_one_class_only_leaves_out_what_has_no_value_and_says_so():
    p, _ = single(np.random.default_rng(8), 30, 2)
    result = measure("single_label", ["a", "b"], p, np.zeros(30, dtype=int), draws=100)
    assert not {"roc_auc", "mcc"} & {metric.name for metric in result.metrics}
    assert any("roc_auc, mcc" in note for note in result.notes)
    constant = measure("regression", [], np.ones(9), np.arange(9.0), draws=100)
    assert [metric.name for metric in constant.metrics] == ["mse"]
    assert any("pearson" in note for note in constant.notes)


def test_a_class_never_predicted_has_no_precision_of_its_own():
    p = np.array([[0.9, 0.1, 0.0]] * 3 + [[0.2, 0.7, 0.1]] * 3)
    result = measure("single_label", ["a", "b", "c"], p, np.array([0, 0, 0, 1, 1, 2]), draws=0)
    found = {metric.name: metric for metric in result.metrics}
    assert "precision/c" not in found
    assert found["precision_macro"].value == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert any("never predicted" in note and "'c'" in note for note in result.notes)


def test_the_confusion_matrix_has_the_true_class_in_rows():
    p = np.eye(3)[[0, 1, 1, 2]]
    result = measure("single_label", ["a", "b", "c"], p, np.array([0, 0, 1, 2]), draws=0)
    assert result.confusion == {"labels": ["a", "b", "c"], "counts": [[1, 1, 0], [0, 1, 0], [0, 0, 1]]}


def test_a_calibrated_model_has_almost_no_calibration_error():
    rng = np.random.default_rng(9)
    confidence = rng.uniform(0.5, 1.0, 200_000)
    right = (rng.random(200_000) < confidence).astype(float)
    ones = np.ones((1, 200_000))
    assert ece(confidence, right)(ones)[0] < 0.005
    assert ece(confidence, (rng.random(200_000) < confidence - 0.2).astype(float))(ones)[0] == pytest.approx(
        0.2, abs=0.01
    )


@pytest.mark.parametrize(
    ("name", "problem"), [("f1_macro", "single"), ("roc_auc", "single"), ("pearson", "regression")]
)
def test_intervals_hold_the_truth_as_often_as_they_say(name: str, problem: str):
    rng = np.random.default_rng(10)

    def draw(n: int) -> tuple[str, Any, Any]:
        if problem == "single":
            return ("single_label", *single(rng, n, 3, skill=1.5))
        y = rng.normal(size=n)
        return ("regression", y + rng.normal(size=n), y)

    kind, p, y = draw(100_000)
    truth = figures(kind, list("abc"), p, y, draws=0)[name].value
    held = 0
    for _ in range(120):
        kind, p, y = draw(100)
        one = figures(kind, list("abc"), p, y, draws=500)[name]
        assert one.low is not None
        assert one.high is not None
        held += one.low <= truth <= one.high
    assert 0.88 <= held / 120 <= 0.99  # 95%, give or take what 120 draws and a bootstrap of 100 rows allow


def test_the_standard_error_is_the_spread_over_fresh_rows():
    rng = np.random.default_rng(11)
    found = [figures("single_label", list("abc"), *single(rng, 150, 3), draws=200)["mcc"] for _ in range(150)]
    spread = np.std([metric.value for metric in found])
    assert np.mean([metric.stderr for metric in found]) == pytest.approx(spread, rel=0.2)


def test_clusters_that_are_copies_count_once():
    values = np.random.default_rng(12).normal(size=50)
    copies = np.repeat(values, 4)
    groups = np.repeat(np.arange(50), 4)
    by_row = estimate(lambda w: {"m": w @ values / w.sum(axis=1)}, 50, seed=0)["m"].stderr
    by_group = estimate(lambda w: {"m": w @ copies / w.sum(axis=1)}, 200, seed=0, groups=groups)["m"].stderr
    assert by_row is not None
    assert by_group == pytest.approx(by_row, rel=1e-6)


def test_the_same_seed_gives_the_same_figures():
    p, y = single(np.random.default_rng(13), 80, 4)
    assert measure("single_label", list("abcd"), p, y, seed=3) == measure("single_label", list("abcd"), p, y, seed=3)
