"""The score file: nothing lost, nothing double, whatever happened to its last line."""

import dataclasses
import json
from pathlib import Path

import pytest
from posttrain.chat_templates.errors import PosttrainError
from posttrain.evals.answers import read_answers
from posttrain.evals.judging.judgments import JudgmentStore
from posttrain.evals.records import Metric, Score, ScoreStore

from .judged_fixtures import answer, judgment, save_judgments


def make(task: str = "t", **changes) -> Score:
    score = Score(
        run="r",
        run_id="0" * 16,
        checkpoint="checkpoint-1",
        step=1,
        weights_hash="f" * 64,
        suite="s",
        suite_version="1" * 16,
        task=task,
        task_hash="2" * 16,
        num_fewshot=0,
        metrics=(Metric("acc", 0.5, 0.05, 100, True), Metric("acc_norm", 1 / 3, None, 100, True)),
        template_fingerprint=None,
        judge_version=None,
        limit=None,
        versions={"torch": "2"},
        seconds=1.0,
        created="2026-11-21T00:00:00+00:00",
    )
    return dataclasses.replace(score, **changes)


def test_what_is_written_is_what_is_read(tmp_path: Path):
    store = ScoreStore(tmp_path / "run")
    scores = [make("a"), make("b", template_fingerprint="abc", step=None)]
    assert all(store.append(score) for score in scores)
    assert store.load() == scores


def test_the_same_key_is_written_once(tmp_path: Path):
    store = ScoreStore(tmp_path)
    assert store.append(make())
    assert not store.append(make(checkpoint="final", seconds=2.0))
    assert [score.checkpoint for score in store.load()] == ["checkpoint-1"]


@pytest.mark.parametrize("field", ["weights_hash", "task", "task_hash", "template_fingerprint"])
def test_other_weights_tasks_or_templates_are_other_scores(tmp_path: Path, field: str):
    store = ScoreStore(tmp_path)
    store.append(make())
    assert store.append(make(**{field: "other"}))
    assert len(store.load()) == 2


def test_a_torn_last_line_is_dropped_and_then_overwritten(tmp_path: Path):
    store = ScoreStore(tmp_path)
    store.append(make("a"))
    whole = store.path.read_bytes()
    store.path.write_bytes(whole + whole[: len(whole) // 2])
    assert [score.task for score in store.load()] == ["a"]
    store.append(make("b"))
    assert [score.task for score in store.load()] == ["a", "b"]
    assert all(json.loads(line) for line in store.path.read_text().splitlines())


def test_a_line_doubled_by_hand_counts_once(tmp_path: Path):
    store = ScoreStore(tmp_path)
    store.append(make())
    store.path.write_bytes(store.path.read_bytes() * 2)
    assert len(store.load()) == 1


def test_a_spoilt_line_within_the_file_is_an_error_with_its_place(tmp_path: Path):
    store = ScoreStore(tmp_path)
    store.append(make("a"))
    store.path.write_text('{"run": "r"}\n' + store.path.read_text())
    with pytest.raises(PosttrainError, match=r"scores\.jsonl:1"):
        store.load()


@pytest.mark.parametrize(
    "line",
    ["", "null", "[1]", "{", "\0\0", '{"task": ["a"]}', '{"metrics": 5}', '{"metrics": ["acc"]}', '{"detail": 1}'],
)
def test_whatever_a_whole_line_holds_that_is_no_score_is_named(tmp_path: Path, line: str):
    store = ScoreStore(tmp_path)
    store.append(make("a"))
    sound = json.loads(store.path.read_text())
    spoilt = json.dumps(sound | json.loads(line)) if line.endswith("}") else line
    store.path.write_text(spoilt + "\n" + store.path.read_text())
    with pytest.raises(PosttrainError, match=r"scores\.jsonl:1") as caught:
        store.load()
    assert "remove that line" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\0" * 100, b'{"a": 1}\n'])
def test_answers_that_were_torn_are_named(tmp_path: Path, content: bytes):
    (tmp_path / "answers.parquet").write_bytes(content)
    with pytest.raises(PosttrainError, match=r"answers\.parquet.*cannot be read"):
        read_answers(tmp_path / "answers.parquet")


def test_a_line_of_an_older_version_gives_way_to_one_that_names_the_model(tmp_path: Path):
    store = ScoreStore(tmp_path)
    store.append(make("a"))
    store.append(make("b"))
    assert store.append(make("a", model_hash="m" * 64))
    assert [(score.task, score.model[0]) for score in store.load()] == [("b", "f"), ("a", "m")]


def test_keys_that_a_later_version_adds_are_left_aside(tmp_path: Path):
    store = ScoreStore(tmp_path)
    store.append(make())
    record = json.loads(store.path.read_text()) | {"new": 1}
    store.path.write_text(json.dumps(record) + "\n")
    assert store.load() == [make()]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"preference": "1.0"}, "preference"),
        ({"preference": 1.5}, "preference"),
        ({"preference": float("nan")}, "preference"),
        ({"preference": None}, "neither preference nor rating"),
        ({"preference": None, "rating": float("inf")}, "rating"),
        ({"status": "won"}, "status"),
        ({"order": "both"}, "order"),
        ({"candidate": 7}, "candidate"),
        ({"sample": "0"}, "sample"),
        ({"reason": None}, "reason"),
    ],
)
def test_a_line_that_is_no_judgment_is_named_and_never_a_verdict(tmp_path: Path, fields: dict[str, object], says: str):
    good = judgment(("w", "run/final", answer(0, "one")), ("v", "other/final", answer(0, "two")))
    save_judgments(tmp_path, [good, dataclasses.replace(good, **fields)])
    with pytest.raises(PosttrainError, match=rf"judgments.jsonl:2: not a judgment: .*{says}"):
        JudgmentStore(tmp_path).load()
