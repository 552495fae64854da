"""Rows are chosen by what a model's states say of their own tokens, in turns of the queries."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.spec import SourceSpec
from posttrain.evals.forward import weighted_means
from posttrain.evals.models import load_model
from posttrain.recipes import model_rows, select_rows
from posttrain.recipes.select_rows import Select, _Choice, _Vectors
from pydantic import ValidationError

from ..conftest import TEXT
from ..rows import write_rows

WORDS = " ".join(TEXT[:3]).split()
ROWS = [{"text": " ".join(WORDS[n % 9 : n % 9 + 3 + n % 13]), "id": n} for n in range(40)]
TASKS = [[{"text": "The quick brown fox"}, {"text": "hello goodbye thanks"}], [{"text": "Numbers such as 17"}]]


def select(folder: Path, model: Path, name: str, rows: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
    """Selects among rows in float32 and returns what is written."""
    queries = [SourceSpec(path=write_rows(folder / f"task{number}.jsonl", task)) for number, task in enumerate(TASKS)]
    source = SourceSpec(path=write_rows(folder / "rows.jsonl", rows))
    given: dict[str, Any] = {"queries": queries, "count": 10, "dtype": "float32"} | more
    Select(sources=[source], model=str(model), **given).run(folder / name)
    return [json.loads(line) for line in (folder / name / "rows.jsonl").read_text().splitlines()]


def by_hand(model: Any, ids: list[int]) -> Any:
    """The mean of the last hidden states, each weighted by its place, of one row alone."""
    with torch.inference_mode():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].double().numpy()
    mean = np.average(states, axis=0, weights=np.arange(1, len(ids) + 1))
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_a_vector_is_the_weighted_mean_over_a_rows_own_tokens_whatever_is_padded_beside_it(
    instruct_model_dir: Path, size: int
) -> None:
    model = load_model(str(instruct_model_dir), device="cpu", dtype="float32").model
    rows = [[(7 * n + place) % 300 for place in range(length)] for n, length in enumerate((6, 31, 1, 17, 16, 8))]
    found = weighted_means(model, rows, size)
    for vector, row in zip(found, rows, strict=True):
        assert vector @ by_hand(model, row) == pytest.approx(1, abs=1e-5)
    assert found[0] @ weighted_means(model, [rows[0]], 1)[0] == pytest.approx(1, abs=1e-6)


def test_queries_and_tasks_take_turns_and_say_what_they_took(tmp_path: Path, instruct_model_dir: Path) -> None:
    """Against the definition, by vectors made by hand and a plain loop."""
    loaded = load_model(str(instruct_model_dir), device="cpu", dtype="float32")
    tokenizer: Any = loaded.tokenizer

    def vectors(rows: list[dict[str, Any]]) -> list[Any]:
        return [by_hand(loaded.model, [tokenizer.bos_token_id, *tokenizer(row["text"])["input_ids"]]) for row in rows]

    pool = np.array(vectors(ROWS))
    turns = [
        [(f"task{t}.jsonl:{n + 1}", query) for n, query in enumerate(vectors(task))] for t, task in enumerate(TASKS)
    ]
    expected: dict[int, tuple[str, float]] = {}
    while len(expected) < 10:
        for task in turns:
            task.append(task.pop(0))
            where, query = task[-1]
            if len(expected) < 10:
                row = max((n for n in range(len(ROWS)) if n not in expected), key=lambda n: round(pool[n] @ query, 9))
                expected[row] = (where, float(pool[row] @ query))
    kept = select(tmp_path, instruct_model_dir, "out", ROWS)
    found = {row["id"]: (row["rds_query"], row["rds"]) for row in sorted(kept, key=lambda row: row["rds_rank"])}
    assert [row["id"] for row in kept] == sorted(row["id"] for row in kept)
    assert list(found) == list(expected)
    for number, (where, similarity) in found.items():
        assert where.endswith(expected[number][0])
        assert similarity == pytest.approx(expected[number][1], abs=1e-5)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    tables = {table["title"]: table["rows"] for table in report["tables"]}
    assert [row[1:3] for row in tables["Queries"]] == [[2, 5], [1, 5]]
    [left] = report["counts"]["Left out"]
    assert left["count"] == 30


def choice_of(pool: Any, queries: Any, folder: Path, part: int = 7, values: Any = (), **spec: Any) -> _Choice:
    """Chooses among vectors that lie in files of so many rows."""
    found = []
    for name, vectors in (("queries", queries), ("pool", pool)):
        of = _Vectors()
        for at in range(0, len(vectors), part):
            np.save(folder / f"{name}-{at:04}.npy", vectors[at : at + part])
            of.paths.append(folder / f"{name}-{at:04}.npy")
        of.where = [f"{name}:{number}" for number in range(len(vectors))]
        of.tokens = [1 + number % 5 for number in range(len(vectors))]
        of.cut, of.errors, of.values = [False] * len(vectors), [None] * len(vectors), list(values)
        found.append(of)
    given: Any = SimpleNamespace(**{"by": "rds", "max_similarity": None, "count": None, "tokens": None} | spec)
    return _Choice(given, [found[0]] if len(queries) else [], [found[1]])


@pytest.mark.parametrize("count", [1, 30, 100])
def test_a_running_choice_over_parts_is_that_over_all_rows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Queries alike want the same rows, so that each runs out of those that it has ranked at first."""
    monkeypatch.setattr(select_rows, "_LEAST_RANKED", 1)
    monkeypatch.setattr(select_rows, "_AHEAD", 1)
    rng = np.random.default_rng(0)
    pool = rng.normal(size=(100, 8)).astype(np.float32)
    queries = (pool[:1] + 0.01 * rng.normal(size=(5, 8))).astype(np.float32)
    found = choice_of(pool, queries, tmp_path, count=count)
    alike, free = pool @ queries.T, set(range(100))
    expected = []
    for turn in range(count):
        row = max(sorted(free), key=lambda number: alike[number, turn % 5])
        free.remove(row)
        expected.append(row)
    assert list(found.taken) == expected
    assert found.nearest == pytest.approx(alike.max(axis=1), abs=1e-5)


def unit(rows: int, seed: int = 0) -> Any:
    vectors = np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("by", "bound"), [("k_center", None), ("score_times_distance", None), ("deita", None), ("deita", 0.0)]
)
def test_a_greedy_choice_is_its_definition(tmp_path: Path, by: str, bound: float | None) -> None:
    """Against the rule in plain words, over every pair of rows."""
    pool = unit(60)
    scores = np.random.default_rng(1).permutation(60)
    expected: list[int] = []
    while len(expected) < 12:
        best, chosen = -np.inf, -1
        for row in set(range(60)) - {*expected}:
            like = max((float(pool[row] @ pool[other]) for other in expected), default=-1.0)
            if by == "deita" and like > (0.9 if bound is None else bound):
                continue
            first = float(pool[row] @ pool.mean(axis=0))
            gain = {
                "k_center": 1 - like if expected else first,
                "score_times_distance": (scores[row] + 1) / 60 * (1 - like),
                "deita": float(scores[row]),
            }[by]
            best, chosen = max((best, chosen), (gain, row))
        if chosen < 0:
            break
        expected.append(chosen)
    assert (len(expected) < 12) == (bound is not None), "a bound of 0 leaves fewer"
    found = choice_of(pool, [], tmp_path, by=by, values=scores, count=12, max_similarity=bound)
    assert list(found.taken) == expected


def test_k_centers_leave_no_row_farther_than_twice_the_best_radius(tmp_path: Path) -> None:
    """Gonzalez's bound, of Euclidean distances, with five tight groups whose best radius is known."""
    centers = np.concatenate([np.eye(4), -np.eye(4)[:1]]).astype(np.float32)
    pool = np.repeat(centers, 20, axis=0) + 0.05 * unit(100)
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    found = choice_of(pool, [], tmp_path, by="k_center", count=5)
    assert sorted(row // 20 for row in found.taken) == [0, 1, 2, 3, 4], "one of each group"


@pytest.mark.parametrize("by", ["rds", "k_center", "deita"])
def test_no_two_kept_rows_are_too_like_and_a_budget_is_in_tokens(tmp_path: Path, by: str) -> None:
    pool = np.concatenate([unit(40), unit(40)])  # every row twice
    queries = unit(3, seed=2) if by == "rds" else []
    choose = {"by": by, "values": list(range(80)), "max_similarity": 0.95}
    found = choice_of(pool, queries, tmp_path, tokens=30, **choose)
    kept = list(found.taken)
    alike = pool[kept] @ pool[kept].T - np.eye(len(kept))
    assert alike.max() <= 0.95
    spent = found.tokens[kept].sum()
    all_of_them = list(choice_of(pool, queries, tmp_path, **choose).taken)
    assert kept == all_of_them[: len(kept)]
    assert spent <= 30 < spent + found.tokens[all_of_them[len(kept)]]
    assert found.passed
    with pytest.raises(DataError, match=r"no row fits: the first choice has more than 0.5 tokens"):
        choice_of(pool, queries, tmp_path, tokens=0.5, **choose)


def test_a_column_says_which_rows_are_wanted_and_one_without_a_number_is_counted(
    tmp_path: Path, instruct_model_dir: Path
) -> None:
    rows = [row | {"score": row["id"]} for row in ROWS] + [{"text": "The lazy dog", "id": 99}]
    chosen = {"by": "score_times_distance", "column": "score", "queries": None, "count": 5}
    kept = select(tmp_path, instruct_model_dir, "out", rows, **chosen)
    first = min(kept, key=lambda row: row["score_times_distance_rank"])
    assert (first["id"], "score_times_distance" in first) == (39, False)
    assert all(-1 < row["score_times_distance"] < 1 for row in kept if row is not first)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "no score: no number in 'score'" in [one["name"] for one in report["counts"]["Left out"]]
    assert any("from one that is kept" in line for line in report["summary"])


@pytest.mark.parametrize(
    "given", [{"by": "k_center"}, {"queries": None}, {"column": "a"}, {"by": "deita", "queries": None}]
)
def test_arguments_that_do_not_belong_together_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="nothing else takes"):
        Select.model_validate({"sources": "rows.jsonl", "model": "m", "queries": "q.jsonl"} | given)


def test_a_pool_of_fewer_rows_than_asked_for_is_kept_whole_and_that_is_said(
    tmp_path: Path, instruct_model_dir: Path
) -> None:
    kept = select(tmp_path, instruct_model_dir, "out", [*ROWS[:5], {"text": ""}], count=50)
    assert len(kept) == 5
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert any("fewer rows than the 50 asked for" in line for line in report["summary"])
    assert report["counts"]["Left out"][0]["name"] == "no score: empty text"


def test_as_many_tokens_at_random_and_by_length_stand_beside_the_choice_and_are_written_if_asked_for(
    tmp_path: Path, instruct_model_dir: Path
) -> None:
    def written(name: str) -> dict[str, list[int]]:
        files = {by: tmp_path / name / by / "rows.jsonl" for by in ("random", "longest")}
        return {by: [json.loads(line)["id"] for line in path.read_text().splitlines()] for by, path in files.items()}

    rows = [*ROWS[:20], {"text": ""}, *ROWS[20:]]
    kept = {row["id"] for row in select(tmp_path, instruct_model_dir, "a", rows, baselines="random,longest", seed=1)}
    select(tmp_path, instruct_model_dir, "b", rows, baselines="random,longest", seed=2)
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    (table,) = [one for one in report["tables"] if "baselines" in one["title"]]
    beside = {row[0]: dict(zip(table["header"], row, strict=True)) for row in table["rows"]}
    assert list(beside) == ["all", "kept", "random", "longest", "shortest"]
    assert (beside["all"]["count"], beside["kept"]["count"]) == (40, 10)
    found = written("a")
    for by, ids in found.items():
        assert len(ids) == beside[by]["count"]
        assert beside[by]["shared"] == f"{10 * len(kept & {*ids}):.1f}%"
    assert all(row["tokens"] <= beside["kept"]["tokens"] for name, row in beside.items() if name != "all")
    lengths = [beside[by]["tokens a row"] for by in ("shortest", "random", "longest")]
    assert lengths == sorted(lengths)
    assert min(n % 13 for n in found["longest"]) >= max(n % 13 for n in {*range(40)} - {*found["longest"]})
    assert found["random"] != written("b")["random"]
    assert found["longest"] == written("b")["longest"]
    with pytest.raises(DataError, match=r"earlier call that this one would not write over: random/"):
        select(tmp_path, instruct_model_dir, "a", rows, baselines="longest")
    with pytest.raises(DataError, match="no row fits: the first of `longest` has more than"):
        select(tmp_path, instruct_model_dir, "c", [*ROWS, {"text": " ".join(WORDS * 9)}], count=1, baselines="longest")


def test_long_rows_are_cut_and_counted_and_a_query_among_the_rows_is_told(
    tmp_path: Path, instruct_model_dir: Path
) -> None:
    rows = [TASKS[0][0], {"text": " ".join(WORDS * 3)}]
    select(tmp_path, instruct_model_dir, "out", rows, max_length=16)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(one["name"], one["count"]) for one in report["counts"]["Changed"]] == [("read up to 16 tokens", 1)]
    assert any("1 rows say what a query says" in line for line in report["summary"])


def test_what_cannot_be_selected_is_said(tmp_path: Path, instruct_model_dir: Path) -> None:
    with pytest.raises(DataError, match="has a column rds already"):
        select(tmp_path, instruct_model_dir, "a", [{"text": "The lazy dog", "rds": 0.5}])
    empty = SourceSpec(path=write_rows(tmp_path / "empty.jsonl", [{"text": ""}]))
    with pytest.raises(DataError, match="holds no row that could be a query"):
        select(tmp_path, instruct_model_dir, "b", ROWS, queries=[empty])


def test_a_killed_call_embeds_nothing_twice(
    tmp_path: Path, instruct_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_rows, "CHUNK_ROWS", 8)
    whole = select(tmp_path, instruct_model_dir, "whole", ROWS)
    plain, seen = select_rows._Embedder._embed, []

    def counted(model: Any, rows: Any, read: Any) -> Any:
        seen.append(len(rows))
        if len(seen) == 5:
            raise KeyboardInterrupt
        return plain(model, rows, read)

    monkeypatch.setattr(select_rows._Embedder, "_embed", counted)
    with pytest.raises(KeyboardInterrupt):
        select(tmp_path, instruct_model_dir, "out", ROWS)
    assert select(tmp_path, instruct_model_dir, "out", ROWS) == whole
    assert seen == [2, 1, 8, 8, 8, 8, 8, 8]
    for name in ("rows.jsonl", "report.json", "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
