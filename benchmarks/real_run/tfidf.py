"""TF-IDF with a linear model on the rows that classify.yaml trains on: the baseline to beat.

    python benchmarks/real_run/tfidf.py rows      # writes runs/real_run/classification/<set>/{train,test}.jsonl
    posttrain run benchmarks/real_run/classify.yaml
    python benchmarks/real_run/tfidf.py fit       # fits the baseline and measures it on the test rows
    python benchmarks/real_run/tfidf.py table     # prints it beside the runs' scores

Words and pairs of words, sublinear term frequencies, logistic regression or, for numbers, ridge regression; the
strength of the penalty is chosen by five-fold cross-validation on the training rows. Figures and their intervals are
those of `posttrain score`.
"""

import argparse
import csv
import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path("../shared/data/classification")
ROWS = Path("runs/real_run/classification")
RUNS = Path("runs/real_run/classify")
MODELS = ("decoder", "encoder")
SETS = ("sms_spam", "trec", "ag_news", "banking77", "stsb")
Row = dict[str, Any]
_STRENGTHS: Any = [1.0, 10.0, 100.0]
_NEW: dict[str, Any] = {
    "l1_ratios": (0,),
    "use_legacy_attributes": False,
}  # what scikit-learn 1.10 will take for granted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rows", "fit", "table"])
    {"rows": write_rows, "fit": fit, "table": print_table}[parser.parse_args().what]()


def write_rows() -> None:
    """Writes train and test rows; sets without an official split are shuffled and cut with a fixed seed."""
    for name in SETS:
        parts = globals()[f"read_{name}"]()
        parts["dev"] = parts["train"][-len(parts["train"]) // 5 :]  # to choose hyperparameters by; part of train
        for split, rows in parts.items():
            path = ROWS / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print(name, {split: len(rows) for split, rows in parts.items()})


def read_sms_spam() -> dict[str, list[Row]]:
    """SMS Spam Collection; no official split, one row in five is for the test."""
    lines = (DATA / "sms_spam/sms.tsv").read_text().splitlines()
    rows = [{"text": text, "label": label} for label, text in (line.split("\t", 1) for line in lines)]
    return cut(rows, test=len(rows) // 5)


def read_trec() -> dict[str, list[Row]]:
    """TREC questions, the six coarse classes, official split."""

    def rows(split: str) -> Iterator[Row]:
        for line in (DATA / f"trec/{split}.txt").read_text().splitlines():
            label, text = line.split(" ", 1)
            yield {"text": text, "label": label.split(":")[0]}

    return {split: list(rows(split)) for split in ("train", "test")}


def read_ag_news() -> dict[str, list[Row]]:
    """AG News: the pack has the official test rows only, so these are cut: 4,000 to train on, 2,000 to test."""
    names = (DATA / "ag_news/classes.txt").read_text().split()
    with (DATA / "ag_news/test.csv").open(newline="") as handle:
        rows = [{"text": f"{title} {body}", "label": names[int(n) - 1]} for n, title, body in csv.reader(handle)]
    return cut(rows, test=2000, train=4000)


def read_banking77() -> dict[str, list[Row]]:
    """Banking77, official split."""

    def rows(split: str) -> list[Row]:
        with (DATA / f"banking77/{split}.csv").open(newline="") as handle:
            return [{"text": row["text"].strip(), "label": row["category"]} for row in csv.DictReader(handle)]

    return {split: rows(split) for split in ("train", "test")}


def read_stsb() -> dict[str, list[Row]]:
    """STS-B, pairs of sentences with a similarity from 0 to 5, official train and test."""

    def rows(split: str) -> list[Row]:
        with (DATA / f"stsb_en/stsb-en-{split}.csv").open(newline="") as handle:
            return [{"text": a, "text_pair": b, "label": float(score)} for a, b, score in csv.reader(handle)]

    return {split: rows(split) for split in ("train", "test")}


def cut(rows: list[Row], *, test: int, train: int | None = None) -> dict[str, list[Row]]:
    """Shuffles rows with seed 0; the first are for the test."""
    rows = random.Random(0).sample(rows, len(rows))
    return {"test": rows[:test], "train": rows[test : None if train is None else test + train]}


def read_back(name: str, split: str) -> list[Row]:
    return [json.loads(line) for line in (ROWS / name / f"{split}.jsonl").read_text().splitlines()]


def fit() -> None:
    """Fits and measures the baseline of each set."""
    for name in SETS:
        started = time.process_time()
        metrics = baseline(name)
        (ROWS / name / "baseline.json").write_text(json.dumps([asdict(metric) for metric in metrics]))
        print(f"{name}: {metrics[0].name} {shown(metrics[0])}, {time.process_time() - started:.0f} CPU s", flush=True)


def baseline(name: str) -> list[Any]:
    """Fits the baseline on the training rows and returns its figures on the test rows."""
    from posttrain.evals.stats.classification import measure

    train, test = read_back(name, "train"), read_back(name, "test")
    if name == "stsb":
        predicted = ridge(train, test)
        return measure("regression", ("score",), predicted, np.array([row["label"] for row in test])).metrics
    labels, predicted = logistic(train, test)
    number = {label: index for index, label in enumerate(labels)}
    return measure("single_label", labels, predicted, np.array([number[row["label"]] for row in test])).metrics


def logistic(train: list[Row], test: list[Row]) -> tuple[list[str], np.ndarray]:
    """Returns the classes and the probabilities ``[rows, classes]``."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import StratifiedKFold

    texts = vectorizer()
    x = texts.fit_transform([row["text"] for row in train])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    model: Any = LogisticRegressionCV(Cs=_STRENGTHS, cv=folds, max_iter=300, scoring="accuracy", **_NEW)
    model.fit(x, [row["label"] for row in train])
    return [str(label) for label in model.classes_], model.predict_proba(texts.transform([row["text"] for row in test]))


def ridge(train: list[Row], test: list[Row]) -> np.ndarray:
    """Returns numbers ``[rows]``, from what the two texts share, where they differ, and the cosine between them."""
    from scipy import sparse
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, KFold

    texts = vectorizer().fit([row[side] for row in train for side in ("text", "text_pair")])

    def features(rows: list[Row]) -> Any:
        a, b = (texts.transform([row[side] for row in rows]) for side in ("text", "text_pair"))
        both = a.multiply(b)
        return sparse.hstack([both, abs(a - b), sparse.csr_matrix(both.sum(axis=1)) * 5]).tocsr()

    folds = KFold(5, shuffle=True, random_state=0)
    model = GridSearchCV(Ridge(), {"alpha": [0.1, 0.3, 1.0, 3.0, 10.0]}, cv=folds)
    return model.fit(features(train), [row["label"] for row in train]).predict(features(test))


def vectorizer() -> Any:
    """Words of any length and pairs of them, as Unicode has words, and marks such as ? and !."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")


def print_table() -> None:
    """Prints one line a set: the baseline beside each run that has been scored, with 95% intervals."""
    from posttrain.evals.records import Metric, ScoreStore

    print("| set | figure | TF-IDF, linear | " + " | ".join(MODELS) + " |")
    print("|---|---|---" + "|---" * len(MODELS) + "|")
    for name in SETS:
        fitted = [Metric(**fields) for fields in json.loads((ROWS / name / "baseline.json").read_text())]
        metrics = {"TF-IDF": {metric.name: metric for metric in fitted}}
        for model in MODELS:
            folder = RUNS / f"{model}-{name}"
            scores = ScoreStore(folder).load() if folder.is_dir() else []
            metrics[model] = {metric.name: metric for metric in scores[-1].metrics} if scores else {}
        for figure in ("pearson", "spearman", "mse") if name == "stsb" else ("accuracy", "f1_macro", "ece"):
            cells = [shown(found.get(figure)) for found in metrics.values()]
            print(f"| {name} | {figure} | {' | '.join(cells)} |")


def shown(metric: Any) -> str:
    """Formats a figure with its interval."""
    from posttrain.evals.stats.intervals import interval, scale_of

    if metric is None:
        return "-"
    given = (metric.low, metric.high, "")
    found = interval(metric.value, metric.stderr, metric.n, scale_of(metric.name), given)
    low, high = (found.low, found.high) if found else (float("nan"), float("nan"))
    return re.sub(r"\b0\.", ".", f"{metric.value:.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
