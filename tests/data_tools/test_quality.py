"""Quality: the classifier is logistic regression, its figures are of rows it never saw, its bytes the same."""

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from posttrain.data_tools import hashed_classifier, kept_texts, row_tool
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.hashed_classifier import HashedClassifier, features, fit, log_loss, roc_area
from posttrain.data_tools.ngrams import split_words
from posttrain.data_tools.quality import CLASSIFIER, Quality
from pydantic import ValidationError

from ..rows import read_rows, write_texts

COMMON = [f"word{number}" for number in range(60)]
SIGNS = {"good": ["lemma", "proof", "theorem"], "bad": ["click", "buy", "now"]}


def texts(side: str, count: int, seed: int = 0) -> list[str]:
    draw = random.Random(f"{side}{seed}")
    return [
        " ".join(draw.choices(COMMON, k=draw.randint(8, 30)) + draw.choices(SIGNS[side], k=draw.choice([0, 1, 2])))
        for _ in range(count)
    ]


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def table(folder: Path, title: str) -> list[list[Any]]:
    return next(found["rows"] for found in report(folder)["tables"] if found["title"] == title)


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, str]:
    """Good and bad rows, and a mixture of others."""
    mixed = [text for pair in zip(texts("good", 150, 1), texts("bad", 150, 1), strict=True) for text in pair]
    return {
        "good": write_texts(tmp_path / "good.jsonl", texts("good", 200)),
        "bad": write_texts(tmp_path / "bad.jsonl", texts("bad", 200)),
        "sources": write_texts(tmp_path / "mixed.jsonl", mixed),
    }


def run(rows: dict[str, str], folder: Path, **more: Any) -> list[dict[str, Any]]:
    given = {key: [path] for key, path in rows.items()}
    Quality.model_validate(given | {"l2": 1e-3} | more).run(folder)
    return read_rows(folder / "mixed.jsonl")


def test_features_are_the_distinct_words_and_pairs_of_a_text() -> None:
    found = features(["The cat, the CAT sat", "", "sat the cat the cat"]).toarray()
    assert (found[0] > 0).sum() == 3 + 3  # the, cat, sat; the cat, cat the, cat sat
    assert found[0].max() == found[0][found[0] > 0].min() == pytest.approx(1 / math.sqrt(6))
    assert not found[1].any()
    assert (found[2] > 0).sum() == 3 + 3
    one, two = features(["a b"]).toarray()[0], features(["b a"]).toarray()[0]
    assert (np.flatnonzero(one)[:, None] == np.flatnonzero(two)).sum() == 2  # words alike, pairs not


def test_weights_are_those_of_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    some = [*texts("good", 40), *texts("bad", 90)]
    is_good = np.arange(130) < 40
    matrix, l2 = features(some, 14), 1e-3
    weights, bias = fit(matrix, is_good, l2)
    stock: Any = LogisticRegression(C=1 / (l2 * 130), class_weight="balanced", tol=1e-10, max_iter=5000)
    stock.fit(matrix, is_good)
    assert weights == pytest.approx(stock.coef_[0], abs=1e-3)
    assert bias == pytest.approx(stock.intercept_[0], abs=1e-3)
    margin = np.where(is_good, 1, -1) * (matrix @ weights + bias)
    losses = np.log1p(np.exp(-margin))
    assert log_loss(matrix, is_good, weights, bias) == pytest.approx((losses[:40].mean() + losses[40:].mean()) / 2)
    # At the minimum the slope of the bias is 0: both sides are as wrong.
    wrong = 1 / (1 + np.exp(margin))
    assert wrong[:40].mean() == pytest.approx(wrong[40:].mean(), abs=1e-6)


def test_roc_area_and_interval_are_delongs() -> None:
    from sklearn.metrics import roc_auc_score

    draw = np.random.default_rng(0)
    good, bad = draw.normal(1, 1, 30).round(1), draw.normal(0, 1, 45).round(1)
    found = roc_area(good, bad)
    assert found.area == pytest.approx(roc_auc_score([1] * 30 + [0] * 45, np.concatenate([good, bad])))
    psi = (good[:, None] > bad) + 0.5 * (good[:, None] == bad)  # the kernel of DeLong et al. 1988, equation 1
    variance = psi.mean(axis=1).var(ddof=1) / 30 + psi.mean(axis=0).var(ddof=1) / 45
    half = 1.959963984540054 * math.sqrt(variance) / (found.area * (1 - found.area))
    logit = math.log(found.area / (1 - found.area))
    assert [found.low, found.high] == pytest.approx([1 / (1 + math.exp(-logit + end)) for end in (half, -half)])
    apart = roc_area(good + 100, bad)
    assert (apart.area, apart.high) == (1, 1)
    assert apart.low == pytest.approx(0.05 ** (1 / 30))
    assert roc_area(bad, good + 100).high == pytest.approx(1 - 0.05 ** (1 / 30))
    assert roc_area(np.ones(5), np.ones(5)).area == 0.5


def test_rows_are_scored_and_the_best_stay(rows: dict[str, str], tmp_path: Path) -> None:
    scored = run(rows, tmp_path / "all")
    assert len(scored) == 300
    scores = np.array([row["quality"] for row in scored])
    found = report(tmp_path / "all")
    assert roc_area(scores[0::2], scores[1::2]).area == pytest.approx(found["roc_area"]["area"], abs=0.08)
    assert found["roc_area"]["area"] > 0.75
    words = {row[0] for row in table(tmp_path / "all", "What speaks for good and bad")}
    assert words >= set(SIGNS["good"])
    kept = run(rows, tmp_path / "kept", keep={"min_quantile": 0.9})
    least = np.sort(scores)[270]
    assert kept == [row for row in scored if row["quality"] >= least]
    found = report(tmp_path / "kept")
    assert found["bounds"] == [least, None]
    assert f"kept: quality at least {least:.6g}, as have" in " ".join(found["summary"])
    assert [entry["count"] for entry in found["counts"]["Around the threshold"]] == [10, 10]
    assert sum(entry["count"] for entry in found["counts"]["Left out"]) == 300 - len(kept)


def test_figures_are_of_rows_that_it_was_not_trained_on(rows: dict[str, str], tmp_path: Path) -> None:
    run(rows, tmp_path / "out", sources=[rows["good"], rows["sources"]], held_out=0.3)
    classifier, more = HashedClassifier.load(tmp_path / "out" / CLASSIFIER)
    good = split_words(texts("good", 200)).wholes
    trained = np.isin(good, classifier.known)
    assert 0 < (~trained).sum() < 100
    held = classifier.scores([text for text, seen in zip(texts("good", 200), trained, strict=True) if not seen])
    assert sorted(held) == sorted(more["held_scores"][more["held_is_good"]])
    assert f"{trained.sum()} of 500 rows were trained on" in " ".join(report(tmp_path / "out")["summary"])


def test_texts_that_stand_again_or_on_both_sides_do_not_count(rows: dict[str, str], tmp_path: Path) -> None:
    both = ["this row stands on both sides", "..."]
    good = write_texts(tmp_path / "g.jsonl", [*texts("good", 100), *texts("good", 30), *both])
    bad = write_texts(
        tmp_path / "b.jsonl", [*both, *[text.upper() + "!" for text in texts("bad", 100)], *texts("bad", 100)]
    )
    run(rows | {"good": good, "bad": bad}, tmp_path / "out", max_rows=90)
    known = table(tmp_path / "out", "Rows that the classifier knows")
    assert [row[:6] for row in known] == [["good", 132, 1, 30, 1, 10], ["bad", 202, 1, 100, 1, 10]]
    assert [row[6] + row[7] for row in known] == [90, 90]


def test_the_outcome_depends_neither_on_the_order_of_rows_nor_on_a_kill(
    rows: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_tool, "BLOCK_ROWS", 100)
    more = {"keep": {"min_quantile": 0.5}}
    run(rows, tmp_path / "whole", **more)
    for number in (1, 2, 2, 2, 2, 2):  # each call goes on where the one before it was killed
        calls = itertools.count(1)
        written = row_tool.write_atomic

        def dies(path: Path, content: Any, at: int = number, calls: Any = calls, written: Any = written) -> None:
            if next(calls) == at:
                raise KeyboardInterrupt
            written(path, content)

        with monkeypatch.context() as patch:
            for module in (kept_texts, row_tool, hashed_classifier):
                patch.setattr(module, "write_atomic", dies)
            with pytest.raises(KeyboardInterrupt):
                run(rows, tmp_path / "killed", **more)
        assert not (tmp_path / "killed" / "mixed.jsonl").exists()
    run(rows, tmp_path / "killed", **more)
    for name in ("mixed.jsonl", "report.json", "report.html", CLASSIFIER):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    turned = {side: write_texts(tmp_path / f"r{side}.jsonl", texts(side, 200)[::-1]) for side in ("good", "bad")}
    assert run(rows | turned, tmp_path / "turned", **more) == read_rows(tmp_path / "whole" / "mixed.jsonl")


def test_a_classifier_scores_further_rows_as_it_did(rows: dict[str, str], tmp_path: Path) -> None:
    first = run(rows, tmp_path / "first")
    Quality.model_validate({"sources": [rows["sources"]], "classifier": str(tmp_path / "first")}).run(tmp_path / "out")
    assert read_rows(tmp_path / "out" / "mixed.jsonl") == first
    assert report(tmp_path / "out")["roc_area"] == report(tmp_path / "first")["roc_area"]
    assert not (tmp_path / "out" / CLASSIFIER).exists()


@pytest.mark.parametrize("version", [None, 1])
def test_a_classifier_of_other_words_is_refused(tmp_path: Path, version: int | None) -> None:
    path = tmp_path / CLASSIFIER
    HashedClassifier(np.zeros(4, np.float32), 0.0, np.zeros(0, np.uint64)).save(path)
    with np.load(path) as loaded:
        arrays: dict[str, Any] = dict(loaded)
    assert arrays.pop("words_version") > 1
    if version is not None:
        arrays["words_version"] = np.array(version)
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=r"took other signs for words.*train it again"):
        HashedClassifier.load(path)


def test_the_strength_is_chosen_on_training_rows_that_are_left_out(rows: dict[str, str], tmp_path: Path) -> None:
    run(rows, tmp_path / "out", l2=None)
    [note] = [one["note"] for one in report(tmp_path / "out")["tables"] if one["title"].startswith("Rows that the")]
    losses = {
        float(part.split()[0]): float(part.split()[1]) for part in note.rstrip(".").split("left out: ")[1].split(", ")
    }
    assert len(losses) == 4
    assert f"l2 is {min(losses, key=lambda l2: losses[l2]):g};" in note


def test_what_cannot_be_done_is_said(rows: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="needs `good` and `bad` rows to learn from, `labelled`"):
        Quality.model_validate({"sources": [rows["sources"]], "good": [rows["good"]]})
    with pytest.raises(ValidationError, match="stands in place of"):
        Quality.model_validate({"sources": [rows["sources"]], "good": [rows["good"]], "classifier": "x"})
    few = write_texts(tmp_path / "few.jsonl", texts("good", 12))
    with pytest.raises(DataError, match=r"good: 12 different rows with words are too few: 10 must be held out"):
        run(rows | {"good": few}, tmp_path / "out")
    with pytest.raises(DataError, match=r"good: 200 of its different rows stand on the other side too.*; 0 different"):
        run(rows | {"good": rows["bad"]}, tmp_path / "out")
    for content in (b"", b"no", b"PK\x03\x04" + b"\0" * 40):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"x\.npz: is no classifier"):
            Quality.model_validate({"sources": [rows["sources"]], "classifier": str(tmp_path / "x.npz")}).run(
                tmp_path / "o"
            )
    with pytest.raises(DataError, match="there is no classifier"):
        Quality.model_validate({"sources": [rows["sources"]], "classifier": str(tmp_path)}).run(tmp_path / "o")
    with pytest.raises(DataError, match=r"mixed\.jsonl:1: has a column text already.*`column`"):
        run(rows, tmp_path / "out", column="text")


def test_good_rows_that_hold_a_term_are_counted_apart(rows: dict[str, str], tmp_path: Path) -> None:
    """Where bad rows name a group, good rows that name it go too, and the report says so."""
    bad = write_texts(
        tmp_path / "b.jsonl", [f"{text} asian" if n % 2 else text for n, text in enumerate(texts("bad", 300))]
    )
    good = write_texts(
        tmp_path / "g.jsonl", [f"{text} Asian" if n % 9 == 0 else text for n, text in enumerate(texts("good", 300))]
    )
    run(rows | {"good": good, "bad": bad}, tmp_path / "out", terms="identity")
    found = {row[0]: row[1:] for row in table(tmp_path / "out", "By term")}
    assert list(found) == ["none of them", "any of them", "asian"]
    assert found["asian"] == found["any of them"]
    count, gone, share, bad_count, _ = found["asian"]
    assert share.startswith(f"{100 * gone / count:.1f}% (")
    assert count + found["none of them"][0] == table(tmp_path / "out", "Rows that the classifier knows")[0][7]
    assert gone / count > 2 * found["none of them"][1] / found["none of them"][0]
    assert bad_count > 10
    (tmp_path / "words.txt").write_text("lemma\n")
    run(rows, tmp_path / "own", terms=str(tmp_path / "words.txt"))
    assert [row[0] for row in table(tmp_path / "own", "By term")] == ["none of them", "any of them", "lemma"]


def test_labelled_rows_are_good_and_bad_rows(rows: dict[str, str], tmp_path: Path) -> None:
    apart = run(rows, tmp_path / "apart")
    sides = [(text, label) for side, label in (("good", "1"), ("bad", "0")) for text in texts(side, 200)]
    random.Random(0).shuffle(sides)
    path = tmp_path / "labelled.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in sides))
    given = {"sources": [rows["sources"]], "labelled": [str(path)], "l2": 1e-3}
    Quality.model_validate(given | {"good_labels": 1}).run(tmp_path / "out")
    assert read_rows(tmp_path / "out" / "mixed.jsonl") == apart
    with pytest.raises(ValidationError, match="`labelled` rows need `good_labels`"):
        Quality.model_validate(given)
    with pytest.raises(DataError, match="good_labels: no row has the label 'yes'; labels: 0, 1"):
        Quality.model_validate(given | {"good_labels": "1,yes"}).run(tmp_path / "none")
    path.write_text(path.read_text().replace("\t1\n", "\tneutral\n", 5))
    with pytest.raises(DataError, match="no row has the label 'netural'; did you mean 'neutral'"):
        Quality.model_validate(given | {"good_labels": ["1", "netural"]}).run(tmp_path / "none")
