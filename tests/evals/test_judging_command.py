"""``posttrain score`` answers, judges what was answered, and does neither twice."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from posttrain.evals.answers import read_answers, to_parquet
from posttrain.evals.judging.run import judge
from posttrain.evals.records import ScoreStore
from posttrain.evals.suite_files import load_suite
from posttrain.recipes.scoring import score_models

from .judged import add_answers, judgments, metrics, scores, write_suite

ENTRY = "  - {judge: rules-not-a-judge, prompts: chat, rule: 'rules.py:longer', baseline: '@first/checkpoint-1'}\n"


def test_checkpoints_are_answered_and_judged_by_one_command(
    tmp_path: Path, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    runs = [make_run((1, 2), name="first"), make_run((3,), name="second")]
    suite = write_suite(tmp_path / "s", ENTRY, prompts=6)
    text = suite.read_text().replace("path: chat.jsonl}", "path: chat.jsonl, max_new_tokens: 6}")
    suite.write_text("batch_size: 8\n" + text)
    references = {"first": runs[0], "second": runs[1]}

    def run() -> int:
        return score_models(
            [str(run) for run in runs],
            suite=str(suite),
            watch=False,
            final_only=False,
            output=None,
            references=references,
        )

    assert run() == 0
    first = capsys.readouterr().out
    assert "2 scores written" in first
    found = {(s.run, s.checkpoint): metrics(s)["win_rate"] for r in runs for s in scores(r, "chat-rules-not-a-judge")}
    assert set(found) == {("first", "checkpoint-2"), ("second", "checkpoint-3")}  # nobody is compared with itself
    assert all(metric.n == 6 for metric in found.values())
    canary = [j for j in judgments(*runs) if j.candidate == "null"]
    assert len(canary) == 5
    assert {j.opponent_name for j in canary} == {"first/checkpoint-1"}
    before = [(run / name).read_bytes() for run in runs for name in ("scores.jsonl", "judgments.jsonl")]
    assert run() == 0
    assert "0 judgments made" in capsys.readouterr().out
    assert before == [(run / name).read_bytes() for run in runs for name in ("scores.jsonl", "judgments.jsonl")]


def test_runs_that_were_made_of_different_steps_are_compared_with_each_other(
    tmp_path: Path, make_run: Callable[..., Path]
):
    runs = [make_run((1,), name="first"), make_run((2,), name="second")]
    for run in runs:
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(record | {"references": {"init": f"/models/{run.name}"}}))
    suite = write_suite(tmp_path / "s", ENTRY.replace("baseline: '@first/checkpoint-1'", "pairs: all"), prompts=4)
    suite.write_text(suite.read_text().replace("path: chat.jsonl}", "path: chat.jsonl, max_new_tokens: 6}"))
    code = score_models(
        [str(run) for run in runs], suite=str(suite), watch=False, final_only=False, output=None, references={}
    )
    assert code == 0
    assert [len(scores(run, "chat-rules-not-a-judge")) for run in runs] == [1, 1]


def test_answers_made_anew_under_another_template_are_judged_and_scored_anew(tmp_path: Path):
    judges = ENTRY.replace("baseline: '@first/checkpoint-1'", "baseline: ../runs/base, canary: false")
    suite = load_suite(write_suite(tmp_path / "s", judges, prompts=4))
    runs = [tmp_path / "runs" / name for name in ("base", "one")]
    add_answers(runs[0], suite, lambda prompt: "four")
    add_answers(runs[1], suite, lambda prompt: "longer")
    judge(runs, suite)
    for anew, said in (("one", "x"), ("base", "")):  # a candidate's answers, then those of whom it is compared with
        run = tmp_path / "runs" / anew
        (told,) = [score for score in ScoreStore(run).load() if score.task == "chat"]
        answers = read_answers(run / told.samples_name)
        ScoreStore(run).append(replace(told, template_fingerprint="another"))
        (run / told.samples_name).write_bytes(to_parquet([replace(one, texts=(said,)) for one in answers]))
        assert judge(runs, suite).exit_code == 0
    found = [(metrics(s)["win_rate"].value, s.template_fingerprint) for s in scores(runs[1], "chat-rules-not-a-judge")]
    assert found == [(1.0, None), (0.0, "another"), (1.0, "another")]


def test_what_cannot_be_judged_is_said_and_fails_the_command(
    tmp_path: Path, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    run = make_run((1,), name="only")
    other = make_run((2,), name="unscored")
    suite = write_suite(tmp_path / "s", ENTRY.replace("@first/checkpoint-1", str(other)), prompts=2)
    suite.write_text(suite.read_text().replace("path: chat.jsonl}", "path: chat.jsonl, max_new_tokens: 4}"))
    code = score_models([str(run)], suite=str(suite), watch=False, final_only=False, output=None, references={})
    assert code == 1
    said = capsys.readouterr().err
    assert f"not judged: chat-rules-not-a-judge: baseline {other}: no answers to `chat`" in said
    assert [s.task for s in ScoreStore(run).load()] == ["chat"]  # the answers are kept
    assert json.loads((run / "scores.jsonl").read_text().splitlines()[0])["detail"]["kind"] == "answers"
