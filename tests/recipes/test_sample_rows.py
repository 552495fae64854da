"""Rows are sampled by tokens: at random, by length, by a column, and by DSIR as its paper defines it."""

import itertools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from posttrain.chat_templates.errors import PosttrainError
from posttrain.recipes import sample_rows
from posttrain.recipes.sample_rows import Sample
from pydantic import ValidationError

from ..rows import read_rows, write_rows

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
ROWS = [{"text": " ".join(WORDS[: 1 + n % 10]), "id": n, "score": (7 * n) % 100} for n in range(100)]
TARGET = [{"text": "nine ten"}, {"text": "eight nine ten"}]


def sample(
    folder: Path, name: str = "out", rows: list[dict[str, Any]] = ROWS, tokens: float = 100, **given: Any
) -> list[dict[str, Any]]:
    tool = Sample.model_validate(given | {"sources": write_rows(folder / "rows.jsonl", rows), "tokens": tokens})
    tool.run(folder / name)
    return [json.loads(line) for line in (folder / name / "rows.jsonl").read_text().splitlines()]


def words(rows: list[dict[str, Any]]) -> int:
    return sum(len(row["text"].split()) for row in rows)


@pytest.mark.parametrize("by", ["random", "longest", "shortest"])
def test_no_more_than_the_budget_is_kept_and_no_row_more_would_fit(tmp_path: Path, by: str) -> None:
    kept = sample(tmp_path, by=by, tokens=120)
    assert 110 < words(kept) <= 120
    assert [row["id"] for row in kept] == sorted(row["id"] for row in kept), "in the order of the rows"
    lengths = [len(row["text"].split()) for row in kept]
    assert {"longest": min(lengths) >= 9, "shortest": max(lengths) <= 5}.get(by, True)


def test_a_seed_draws_the_same_rows_and_another_others(tmp_path: Path) -> None:
    one, again, other = (sample(tmp_path, f"out{n}", tokens=120, seed=seed) for n, seed in enumerate((1, 1, 2)))
    assert one == again != other


def test_every_row_is_as_likely(tmp_path: Path) -> None:
    rows = [{"text": "three words each", "id": n} for n in range(8)]
    drawn = [sample(tmp_path, f"out{seed}", rows, 6, seed=seed) for seed in range(60)]
    counts = Counter(row["id"] for rows in drawn for row in rows)
    assert min(counts[n] for n in range(8)) >= 4, "of 15 expected"


@pytest.mark.parametrize(("lowest", "expected"), [(False, range(90, 100)), (True, range(10))])
def test_a_column_of_scores_says_which(tmp_path: Path, lowest: bool, expected: range) -> None:
    rows = [{"text": "three words each", "score": (7 * n) % 100} for n in range(100)]
    kept = sample(tmp_path, rows=rows, tokens=30, by="column", column="score", lowest=lowest)
    assert sorted(row["score"] for row in kept) == list(expected)


def test_a_table_of_text_spells_its_numbers_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,score\n" + "".join(f"three words each,{n}.5\n" for n in range(9)) + "three words each,no\n")
    Sample.model_validate({"sources": str(path), "tokens": 6, "by": "column", "column": "score"}).run(tmp_path / "out")
    assert [row["score"] for row in read_rows(tmp_path / "out" / "a.jsonl")] == ["7.5", "8.5"]


def test_dsir_is_the_sum_of_the_logs_of_shares_of_hashed_words_and_pairs(tmp_path: Path) -> None:
    """Against the paper's definition (equation 1 and section 3) in plain words, without buckets that collide."""

    def grams(text: str) -> list[str]:
        pieces = text.split()
        return [*pieces, *(f"{a} {b}" for a, b in itertools.pairwise(pieces))]

    def shares(rows: list[dict[str, Any]]) -> dict[str, float]:
        counts = Counter(gram for row in rows for gram in grams(row["text"]))
        return {gram: count / counts.total() for gram, count in counts.items()}

    tool = Sample.model_validate(
        {
            "sources": write_rows(tmp_path / "rows.jsonl", ROWS),
            "target": write_rows(tmp_path / "target.jsonl", TARGET),
            "by": "dsir_mean",
            "tokens": 10,
        }
    )
    pool = tool._read()
    target, raw = shares(TARGET), shares(ROWS)
    for row, score in zip(ROWS, pool.scores, strict=True):
        logs = [math.log(target.get(gram, 0) + 1e-8) - math.log(raw[gram] + 1e-8) for gram in grams(row["text"])]
        assert score == pytest.approx(sum(logs) / len(logs))
    total = sample_rows._importance(ROWS[9]["text"], tool._ratios(), mean=False)
    assert total == pytest.approx(pool.scores[9] * 19)


def test_dsir_draws_with_gumbel_noise(tmp_path: Path) -> None:
    """Of rows of equal weight each seed draws others, as sampling without replacement does."""
    rows = [{"text": "the same words", "id": n} for n in range(30)]
    target = write_rows(tmp_path / "target.jsonl", TARGET)
    one, other = (sample(tmp_path, f"out{n}", rows, 15, by="dsir", target=target, seed=n) for n in (1, 2))
    assert one != other


def test_matched_lengths_are_those_of_all_rows(tmp_path: Path) -> None:
    rows = [row | {"score": len(row["text"].split())} for row in ROWS * 10]
    longest = sample(tmp_path, "long", rows, 1500, by="column", column="score")
    matched = sample(tmp_path, "matched", rows, 1500, by="column", column="score", match_length=True)
    mean = words(rows) / len(rows)
    assert words(longest) / len(longest) > 1.5 * mean
    assert words(matched) / len(matched) == pytest.approx(mean, rel=0.1)


def test_the_page_says_how_much_of_a_score_is_length(tmp_path: Path) -> None:
    rows = [row | {"score": len(row["text"].split())} for row in ROWS]
    sample(tmp_path, rows=rows, by="column", column="score", tokens=100)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (table,) = [one for one in report["tables"] if "beside all" in one["title"]]
    assert "with length is 1.00" in table["note"]
    beside = {row[0]: row for row in table["rows"]}
    assert beside["kept"][3] > beside["all"][3]
    assert beside["kept"][1:] == beside["longest"][1:], "a score that is length chooses what length does"
    drawn = sample(tmp_path, "drawn", by="random", tokens=beside["kept"][2])
    assert beside["random"][1:3] == [len(drawn), words(drawn)]


@pytest.mark.parametrize(
    "given",
    [{"column": "a"}, {"by": "dsir"}, {"by": "column"}, {"lowest": True}, {"target": "rows.jsonl"}, {"tokens": 0}],
)
def test_arguments_that_do_not_belong_together_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Sample.model_validate({"sources": "rows.jsonl", "tokens": 5} | given)


def test_a_column_without_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PosttrainError, match="has no numbers in a column 'nothing'"):
        sample(tmp_path, by="column", column="nothing", tokens=5)


def test_a_row_without_a_number_is_counted(tmp_path: Path) -> None:
    kept = sample(tmp_path, rows=[{"text": "no number here"}, *ROWS[:20]], by="column", column="score", tokens=1e6)
    assert len(kept) == 20
    assert "no number in 'score'" in (tmp_path / "out" / "report.json").read_text()


@pytest.mark.parametrize("given", [{"by": "longest", "tokens": 3}, {"match_length": True, "tokens": 5}])
def test_a_budget_that_no_row_fits_into_is_refused(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(PosttrainError, match="no row fits"):
        sample(tmp_path, **given)
