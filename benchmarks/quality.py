"""How well `data quality` tells labelled rows apart, beside fastText and scikit-learn; what it makes of named groups.

    python benchmarks/quality.py DATA

DATA: a folder with classification/ (sst2, movie_reviews, sms_spam), sft/alpaca, text/c4_wiki_demo, benchmarks/ (bold,
toxigen_prompts) and preference/hh_rlhf_harmless. The peers are trained on the rows that the tool was trained on, and
the areas are of those that it held out. fastText is run where it can be imported (``pip install --no-deps --target
PEERS fasttext-numpy2-wheel pybind11``, ``PYTHONPATH=PEERS``), with word pairs, 25 epochs and a learning rate of .5.
"""

import gzip
import importlib
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from posttrain.data_tools.hashed_classifier import HashedClassifier, roc_area
from posttrain.data_tools.ngrams import split_words
from posttrain.data_tools.quality import CLASSIFIER, Quality
from posttrain.data_tools.sources import read_rows
from posttrain.data_tools.spec import SourceSpec
from posttrain.data_tools.word_list import WordList
from scipy.stats import binomtest

Scores = Callable[[Sequence[str]], Any]


def rows(path: Path, **more: Any) -> Iterator[dict[str, Any]]:
    return (row.values for row in read_rows(SourceSpec(path=str(path), **more), Path()) if row.problem is None)


def answers(talk: str) -> str:
    return talk.rpartition("\n\nAssistant:")[2].strip()


def questions(talk: str) -> list[str]:
    return [part.strip() for part in re.findall(r"\n\nHuman:(.*?)(?=\n\n(?:Assistant|Human):|\Z)", talk, re.DOTALL)]


def sets(data: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Returns by name good and bad texts."""
    labels = {"0": "text", "1": "label"}
    sst = [
        row
        for part in ("train", "dev", "test")
        for row in rows(data / f"classification/sst2/{part}.tsv", columns=labels)
    ]
    sms = list(rows(data / "classification/sms_spam/sms.tsv", columns={"0": "label", "1": "text"}))
    movie = list(rows(data / "classification/movie_reviews/movie_reviews_400x2.jsonl.gz"))
    talks = list(rows(data / "preference/hh_rlhf_harmless/harmless_base_test_first1812.jsonl.gz"))
    alpaca = list(rows(data / "sft/alpaca/alpaca_5000.json.gz"))
    web = [row["text"] for row in rows(data / "text/c4_wiki_demo/c4_demo.jsonl")]
    paragraphs = [part for text in web for part in text.split("\n") if len(part.split()) > 20]
    long_answers = [row["output"] for row in alpaca if len(row["output"].split()) > 20]
    return {
        "SST-2: positive, negative sentences": (_labelled(sst, "1"), _labelled(sst, "0")),
        "movie reviews: positive, negative": (_labelled(movie, "pos"), _labelled(movie, "neg")),
        "SMS: wanted, spam": (_labelled(sms, "ham"), _labelled(sms, "spam")),
        "Alpaca's answers, C4's paragraphs": (long_answers, paragraphs),
        "hh-rlhf: chosen, rejected answers": (
            [answers(row["chosen"]) for row in talks],
            [answers(row["rejected"]) for row in talks],
        ),
        "Alpaca's instructions, hh-rlhf's red team": (
            [row["instruction"] for row in alpaca],
            [text for row in talks for text in questions(row["chosen"])],
        ),
    }


def _labelled(some: Sequence[dict[str, Any]], label: str) -> list[str]:
    return [str(row["text"]) for row in some if str(row["label"]) == label]


def write(path: Path, texts: Sequence[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def train(folder: Path, good: Sequence[str], bad: Sequence[str]) -> tuple[HashedClassifier, dict[str, Any], float]:
    """Runs the tool on a handful of rows; returns its classifier, its report, and CPU seconds."""
    given = {"good": [write(folder / "good.jsonl", good)], "bad": [write(folder / "bad.jsonl", bad)]}
    start = time.process_time()
    tool = Quality.model_validate({"sources": [write(folder / "rows.jsonl", good[:50])], "terms": "identity", **given})
    tool.run(folder / "out")
    spent = time.process_time() - start
    classifier, _ = HashedClassifier.load(folder / "out" / CLASSIFIER)
    return classifier, json.loads((folder / "out" / "report.json").read_text()), spent


def fasttext(texts: Sequence[str], is_good: Any) -> Scores:
    package = importlib.import_module("fasttext")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        for text, good in zip(texts, is_good, strict=True):
            file.write(f"__label__{'good' if good else 'bad'} {' '.join(text.lower().split())}\n")
        file.flush()
        model = package.train_supervised(file.name, wordNgrams=2, epoch=25, lr=0.5, thread=1, verbose=0)

    def scores(some: Sequence[str]) -> Any:
        labels, chances = model.predict([" ".join(text.lower().split()) for text in some])
        return np.array(
            [c[0] if label[0] == "__label__good" else 1 - c[0] for label, c in zip(labels, chances, strict=True)]
        )

    return scores


def tfidf(texts: Sequence[str], is_good: Any) -> Scores:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegressionCV

    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    matrix: Any = vectors.fit_transform(texts)
    model: Any = LogisticRegressionCV(Cs=[0.1, 1, 10, 100], class_weight="balanced", cv=5, scoring="neg_log_loss")
    model.fit(matrix, is_good)
    return lambda some: model.decision_function(vectors.transform(some))


def compare(name: str, good: Sequence[str], bad: Sequence[str]) -> tuple[HashedClassifier, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        classifier, report, spent = train(Path(folder), good, bad)
    texts = list(dict.fromkeys([*good, *bad]))
    in_both = set(good) & set(bad)
    texts = [text for text in texts if text not in in_both and text.strip()]
    is_good = np.isin(np.arange(len(texts)), [n for n, text in enumerate(texts) if text in set(good)])
    known = np.isin(split_words(texts).wholes, classifier.known)
    held = [text for text, seen in zip(texts, known, strict=True) if not seen]
    start = time.process_time()
    for _ in range(3):
        classifier.scores(held)
    rate = 3 * len(held) / (time.process_time() - start)
    cells = [str(roc_area(*_parted(classifier.scores(held), is_good[~known])))]
    for make in (fasttext, tfidf):
        try:
            scores = make([text for text, seen in zip(texts, known, strict=True) if seen], is_good[known])
        except ImportError as error:
            cells.append(f"not here: {error.name}")
            continue
        cells.append(f"{roc_area(*_parted(scores(held), is_good[~known])).area:.3f}")
    said = next(line for line in report["summary"] if line.startswith("ROC")).rpartition(" ")[2]
    print(f"| {name} | {known.sum():,} | {len(held):,} | {' | '.join(cells)} | {said} | {spent:.1f} | {rate:,.0f} |")
    return classifier, report


def _parted(scores: Any, is_good: Any) -> tuple[Any, Any]:
    return scores[is_good], scores[~is_good]


def share(part: int, whole: int) -> str:
    ends = binomtest(part, whole).proportion_ci(method="wilson")
    return f"{100 * part / whole:.1f} ({100 * ends.low:.1f} to {100 * ends.high:.1f})"


def sentences(path: Path) -> list[str]:
    """Returns the distinct sentences of ToxiGen's prompts, which are arrangements of few."""
    found: dict[str, None] = {}
    with gzip.open(path, "rt") as lines:
        for line in lines:
            found |= dict.fromkeys(part.strip(" -\n") for part in line.replace("\\n", "\n").split("\n"))
    return [text for text in found if text]


def groups(data: Path) -> dict[str, list[str]]:
    """Returns by group texts in which nobody is spoken of badly: beginnings of Wikipedia's sentences."""
    found = {}
    for kind in ("profession", "gender", "race", "religious_ideology"):
        for group, people in json.loads((data / f"benchmarks/bold/{kind}_prompt.json").read_text()).items():
            if kind != "profession" or len(found) < 3:
                found[f"{kind}: {group}"] = [text for some in people.values() for text in some]
    return found


def by_term(report: dict[str, Any]) -> None:
    """Prints what the report says of the last classifier's terms that ten good rows hold."""
    [found] = [table for table in report["tables"] if table["title"] == "By term"]
    print("\n|", " | ".join(found["header"]), "|\n|---|---|---|---|---|---|")
    for row in found["rows"]:
        if row[1] >= 10:
            print("|", " | ".join(map(str, row)), "|")


def main() -> None:
    data = Path(sys.argv[1])
    made = sets(data)
    print(
        "| good and bad rows | trained on | held out | `data quality` | fastText | TF-IDF | by length | training, s "
        "| rows/s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (good, bad) in made.items():
        classifier, report = compare(name, good, bad)
    by_term(report)
    toxic, neutral = (
        sentences(data / f"benchmarks/toxigen_prompts/{kind}_asian_1k.txt.gz") for kind in ("hate", "neutral")
    )
    print(f"\nToxiGen: {len(toxic)} hateful and {len(neutral)} neutral sentences about Asians in 1,000 prompts each\n")
    print("| neutral texts | rows | below .5, % (95%) | with swear words, % |\n|---|---|---|---|")
    swear = WordList.read("profanity")
    for group, texts in {**groups(data), "ToxiGen, neutral": neutral, "ToxiGen, hateful": toxic}.items():
        below = int((classifier.scores(texts) < 0.5).sum())
        count = len(set(swear.find(texts)[0]))
        print(f"| {group} | {len(texts)} | {share(below, len(texts))} | {share(count, len(texts))} |")
    print("\n| texts | rows | with swear words, % (95%) | rows/s |\n|---|---|---|---|")
    for name, sides in made.items():
        for side, texts in zip(("good", "bad"), sides, strict=True):
            start = time.process_time()
            count = len(set(swear.find(texts)[0]))
            rate = len(texts) / (time.process_time() - start)
            print(f"| {name}, {side} | {len(texts)} | {share(count, len(texts))} | {rate:,.0f} |")


if __name__ == "__main__":
    main()
