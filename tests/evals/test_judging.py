"""Judging saved answers, end to end, by rules: what is asked, what is kept, what is written."""

import json
import resource
from collections import Counter
from pathlib import Path

import pytest
from posttrain.chat_templates.errors import InputError
from posttrain.evals.answers import find_answers
from posttrain.evals.generations import define
from posttrain.evals.judges import Judge, JudgeSettings
from posttrain.evals.judging.questions import Pair, questions_of
from posttrain.evals.judging.run import judge, pending_judgments
from posttrain.evals.suite_files import load_suite

from .judged import add_answers, judgments, metrics, scores, write_suite

BASE = "  - {judge: rules-not-a-judge, prompts: chat, rule: 'rules.py:longer', baseline: ../runs/base, canary: false}\n"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_candidates_are_compared_with_the_baseline_once(tmp_path: Path, runs: Path):
    suite = load_suite(write_suite(tmp_path / "s", BASE))
    add_answers(runs / "base", suite, lambda prompt: "four")
    add_answers(runs / "better", suite, lambda prompt: "longer" if prompt.category == "even" else "abc")
    folders = [runs / "base", runs / "better"]
    assert pending_judgments(folders, suite) == 8
    report = judge(folders, suite)
    assert (report.exit_code, report.judged, len(report.done)) == (0, 8, 1)
    (score,) = scores(runs / "better", "chat-rules-not-a-judge")
    assert metrics(score)["win_rate"].value == 0.5
    assert score.detail is not None
    assert (score.detail["wins"], score.detail["losses"], score.detail["backend"]) == (4, 4, "rules")
    assert score.detail["leaderboard"] is False
    assert "judged by rules, not by a judge" in score.notes
    assert {j.backend for j in judgments(runs / "better")} == {"rules"}
    assert not scores(runs / "base", "chat-rules-not-a-judge")  # nobody is compared with itself

    again = judge(folders, suite)
    assert (again.judged, len(again.done), again.skipped) == (0, 0, 1)
    assert pending_judgments(folders, suite) == 0


@pytest.mark.parametrize(("vote", "rate"), [("mean", 0.75), ("majority", 1.0)])
def test_a_jury_of_named_judges_votes_as_its_entry_says(tmp_path: Path, runs: Path, vote: str, rate: float):
    jury = ", ".join(
        f"{{judge: rules-not-a-judge, rule: 'rules.py:{rule}', name: {rule}}}" for rule in ("longer", "count_good")
    )
    entry = f"{{judge: rules-not-a-judge, prompts: chat, baseline: ../runs/base, vote: {vote}, jury: [{jury}]}}"
    suite = load_suite(write_suite(tmp_path / "s", f"  - {entry}\n"))
    add_answers(runs / "base", suite, lambda prompt: "short")
    add_answers(runs / "one", suite, lambda prompt: "longer")
    judge([runs / "base", runs / "one"], suite)
    [score] = scores(runs / "one", "chat-rules-not-a-judge")
    assert metrics(score)["win_rate"].value == rate  # one member prefers it, and to the other both are alike


@pytest.mark.parametrize(("canary", "prompts"), [("true", 5), ("1", 1), ("3", 3), ("false", 0)])
def test_the_null_answer_is_judged_on_as_many_prompts_as_the_entry_says(
    tmp_path: Path, runs: Path, canary: str, prompts: int
):
    suite = load_suite(write_suite(tmp_path / "s", BASE.replace("canary: false", f"canary: {canary}")))
    add_answers(runs / "base", suite, lambda prompt: "four")
    add_answers(runs / "other", suite, lambda prompt: "longer")
    judge([runs / "base", runs / "other"], suite)
    assert len(judgments(runs / "base")) + len(judgments(runs / "other")) == 8 + prompts
    assert {j.judge_model for j in judgments(runs / "other")} == {"rules.py:longer"}  # wherever the file lies


def test_equal_answers_are_ties_that_nobody_is_asked_about(tmp_path: Path, runs: Path):
    entry = BASE.replace("longer", "broken")  # a rule that fails whenever it is asked
    suite = load_suite(write_suite(tmp_path / "s", entry))
    add_answers(runs / "base", suite, lambda prompt: "same")
    add_answers(runs / "twin", suite, lambda prompt: "same")
    report = judge([runs / "base", runs / "twin"], suite)
    assert report.exit_code == 0
    assert {(j.status, j.preference, j.reason) for j in judgments(runs / "twin")} == {("judged", 0.5, "equal answers")}


def test_a_rule_that_fails_is_one_error_that_names_it_and_the_prompt(tmp_path: Path, runs: Path):
    suite = load_suite(write_suite(tmp_path / "s", BASE.replace("longer", "broken")))
    add_answers(runs / "base", suite, lambda prompt: "a")
    add_answers(runs / "other", suite, lambda prompt: "b")
    report = judge([runs / "base", runs / "other"], suite)
    assert report.exit_code == 1
    assert "rules.py:broken" in report.problems[0]
    assert "ZeroDivisionError" in report.problems[0]
    assert not judgments(runs / "other")


def test_one_model_alone_has_nobody_to_be_compared_with(tmp_path: Path, runs: Path):
    suite = load_suite(write_suite(tmp_path / "s", BASE.replace("baseline: ../runs/base, canary: false", "pairs: all")))
    add_answers(runs / "only", suite, lambda prompt: "a")
    report = judge([runs / "only"], suite)
    assert report.exit_code == 1
    assert "only/final: no other model has answered the same prompts; name another run" in report.problems[0]


def test_a_full_disk_loses_no_judgment_and_no_figure_rests_on_one_that_is_not_kept(tmp_path: Path, runs: Path):
    suite = load_suite(write_suite(tmp_path / "s", BASE.replace("baseline: ../runs/base, canary: false", "pairs: all")))
    for number in range(3):
        add_answers(runs / f"r{number}", suite, lambda prompt, number=number: "a" * (number + 1))
    folders = sorted(runs.iterdir())
    judge(folders[:2], suite)
    size = max(file.stat().st_size for file in runs.rglob("*") if file.is_file())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = [len(scores(folder, "chat-rules-not-a-judge")) for folder in folders]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1, limits[1]))  # the second run's file is that long: no more
    try:
        report = judge(folders, suite)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert report.exit_code == 1
    assert "judgments.jsonl: cannot append: " in report.problems[0]
    assert (report.judged, len(report.done)) == (0, 0)
    assert [len(scores(folder, "chat-rules-not-a-judge")) for folder in folders] == before
    assert judge(folders, suite).exit_code == 0
    kept = [judgment.key for folder in folders for judgment in judgments(folder)]
    assert len(kept) == len(set(kept)) == 3 * 8
    assert sum(len((folder / "judgments.jsonl").read_text().splitlines()) for folder in folders[1:]) == 24


def test_a_rule_that_is_not_there_is_found_before_anything_is_asked(tmp_path: Path, runs: Path):
    suite = load_suite(
        write_suite(tmp_path / "s", BASE + BASE.replace("longer", "missing").replace("{judge", "{name: b, judge"))
    )
    add_answers(runs / "base", suite, lambda prompt: "a")
    add_answers(runs / "other", suite, lambda prompt: "b")
    with pytest.raises(InputError, match="has no function missing"):
        judge([runs / "base", runs / "other"], suite)
    assert not judgments(runs / "other")


def test_all_pairs_are_judged_once_whichever_way_the_runs_are_given(tmp_path: Path, runs: Path):
    entry = "  - {judge: rules-not-a-judge, prompts: chat, rule: 'rules.py:longer', pairs: all, leaderboard: true}\n"
    suite = load_suite(write_suite(tmp_path / "s", entry))
    folders = [runs / name for name in "abc"]
    for length, folder in enumerate(folders, start=1):
        add_answers(folder, suite, lambda prompt, length=length: "x" * length)
    assert judge(folders, suite).judged == 3 * 8
    found = [metrics(scores(folder, "chat-rules-not-a-judge")[0])["win_rate"].value for folder in folders]
    assert found == [0.0, 0.5, 1.0]
    assert scores(folders[0], "chat-rules-not-a-judge")[0].detail["leaderboard"] is True  # type: ignore[index]
    turned = judge(folders[::-1], suite)
    assert (turned.judged, len(turned.done)) == (0, 0)
    assert len(judgments(*folders)) == 24


def test_the_null_answer_is_judged_once_beside_the_baseline_and_loses(tmp_path: Path, runs: Path):
    entry = BASE.replace("longer", "count_good").replace("canary: false", "canary: 3")
    suite = load_suite(write_suite(tmp_path / "s", entry))
    add_answers(runs / "base", suite, lambda prompt: "a good answer")
    for name in ("one", "two"):
        add_answers(runs / name, suite, lambda prompt, name=name: f"{name}, good good")
    judge([runs / "base", runs / "one"], suite)
    judge([runs / "base", runs / "one", runs / "two"], suite)
    null = [j for j in judgments(runs / "base") if j.candidate == "null"]
    assert len(null) == 3
    assert {j.preference for j in null} == {0.0}
    assert not scores(runs / "base", "chat-rules-not-a-judge")


def test_a_baseline_without_answers_is_said_so_and_can_be_scored_later(tmp_path: Path, runs: Path):
    suite = load_suite(write_suite(tmp_path / "s", BASE))
    add_answers(runs / "one", suite, lambda prompt: "x")
    report = judge([runs / "one"], suite)
    assert report.exit_code == 1
    assert "baseline" in report.problems[0]
    assert pending_judgments([runs / "one"], suite) > 0
    add_answers(runs / "base", suite, lambda prompt: "xx")
    assert judge([runs / "one"], suite).exit_code == 0


def test_a_file_of_outputs_is_a_baseline_joined_by_prompt(tmp_path: Path, runs: Path):
    entry = BASE.replace("../runs/base", "outputs.json").replace("canary: false", "canary: 2")
    folder = tmp_path / "s"
    folder.mkdir()
    rows = [{"instruction": f"Question {n}?", "output": "four", "generator": "GPT-x"} for n in reversed(range(6))]
    (folder / "outputs.json").write_text(json.dumps([*rows, {"instruction": "Another?", "output": "?"}]))
    suite = load_suite(write_suite(folder, entry))
    add_answers(runs / "one", suite, lambda prompt: "longer" if prompt.id == "p1" else "x")
    assert judge([runs / "one"], suite).exit_code == 0
    (score,) = scores(runs / "one", "chat-rules-not-a-judge")
    assert metrics(score)["win_rate"].value == pytest.approx(1 / 6)
    assert any("2 of 8 prompts" in note for note in score.notes)
    pairs = [j for j in judgments(runs / "one") if j.candidate != "null"]
    assert {j.opponent_name for j in pairs} == {"GPT-x/outputs.json"}
    assert len(judgments(runs / "one")) == 6 + 2  # the null answer's lie here too


def test_a_budget_connects_everybody_and_is_not_exceeded(tmp_path: Path, runs: Path):
    entry = "  - {judge: rules-not-a-judge, prompts: chat, rule: 'rules.py:longer', pairs: {budget: 60}}\n"
    suite = load_suite(write_suite(tmp_path / "s", entry, prompts=30))
    folders = [runs / name for name in "abcde"]
    for number, folder in enumerate(folders):
        add_answers(folder, suite, lambda prompt, n=number: "x" * (1 + (n + int(prompt.id[1:])) % 7))
    assert pending_judgments(folders, suite) == 60
    report = judge(folders, suite)
    assert (report.judged, report.exit_code, len(report.done)) == (60, 0, 5)
    said = judgments(*folders)
    reached = {said[0].candidate}
    for _ in range(5):
        reached |= {
            side for j in said if {j.candidate, j.opponent} & reached for side in (j.candidate, j.opponent or "")
        }
    assert len(reached) == 5
    assert judge(folders, suite).judged == 0
    assert pending_judgments(folders, suite) == 0


@pytest.mark.parametrize("way", [1, -1])
def test_a_budget_is_spent_alike_whatever_was_judged_of_another_prompt_set(tmp_path: Path, runs: Path, way: int):
    rule = "judge: rules-not-a-judge, rule: 'rules.py:longer'"
    whole = load_suite(write_suite(tmp_path / "s", f"  - {{{rule}, prompts: chat, pairs: all}}\n"))
    one = write_suite(tmp_path / "t", f"  - {{{rule}, prompts: more, pairs: {{budget: 42}}}}\n", prompts=30)
    one.write_text(one.read_text().replace("name: chat", "name: more"))
    one = load_suite(one)
    asked = []
    for before in (False, True):
        folders = [runs / str(before) / name for name in "abcdefg"]
        for number, folder in enumerate(folders):
            add_answers(folder, one, lambda prompt, n=number: "x" * (1 + (n + int(prompt.id[1:])) % 7))
            if before:
                add_answers(folder, whole, lambda prompt, n=number: "y" * n)
        if before:
            judge(folders[::way], whole)  # every pair, each named as here or the other way round
        assert judge(folders, one).judged == 42
        said = [j for j in judgments(*folders) if j.task == "more"]
        asked.append(Counter((j.candidate_name, j.opponent_name, j.prompt_id) for j in said))
    assert asked[0] == asked[1]


def test_runs_of_the_same_name_keep_their_judgments_apart(tmp_path: Path, runs: Path):
    suite = load_suite(write_suite(tmp_path / "s", BASE))
    add_answers(runs / "base", suite, lambda prompt: "four")
    twins = [runs / "x" / "same", runs / "y" / "same"]
    for number, twin in enumerate(twins):
        checkpoint = f"checkpoint-{number}"  # other weights
        add_answers(twin, suite, lambda prompt, n=number: "longer" if n else "a", checkpoint=checkpoint)
    judge([runs / "base", *twins], suite)
    assert [metrics(scores(twin, "chat-rules-not-a-judge")[0])["win_rate"].value for twin in twins] == [0.0, 1.0]


def test_a_torn_last_line_is_judged_again_and_nothing_else(tmp_path: Path, runs: Path):
    suite = load_suite(write_suite(tmp_path / "s", BASE))
    add_answers(runs / "base", suite, lambda prompt: "four")
    add_answers(runs / "one", suite, lambda prompt: prompt.id * 2)
    judge([runs / "one"], suite)
    path = runs / "one" / "judgments.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    (runs / "one" / "scores.jsonl").write_text((runs / "one" / "scores.jsonl").read_text().splitlines()[0] + "\n")
    report = judge([runs / "one"], suite)
    assert (report.judged, len(report.done)) == (1, 1)
    assert len(judgments(runs / "one")) == 8


def test_hostile_answers_are_kept_as_they_are_and_judged(tmp_path: Path, runs: Path):
    hostile = {
        "p0": "",
        "p1": "nul \x00 esc \x1b[2J bidi \u202e",
        "p2": "x" * 1_000_000,
        "p3": "<script>alert(1)</script>",
    }
    suite = load_suite(write_suite(tmp_path / "s", BASE, prompts=4))
    add_answers(runs / "base", suite, lambda prompt: "four")
    add_answers(runs / "one", suite, lambda prompt: hostile[prompt.id])
    assert judge([runs / "one"], suite).exit_code == 0
    said = {j.prompt_id: j for j in judgments(runs / "one")}
    assert {name: j.preference for name, j in said.items()} == {"p0": 0.0, "p1": 1.0, "p2": 1.0, "p3": 1.0}
    assert {name: j.candidate_length for name, j in said.items()} == {name: len(text) for name, text in hostile.items()}


def test_with_one_order_each_side_comes_first_about_as_often(tmp_path: Path, runs: Path):
    suite = load_suite(write_suite(tmp_path / "s", BASE, prompts=200))
    for name in ("base", "one"):
        add_answers(runs / name, suite, lambda prompt: "x")
    base, one = find_answers([runs / "base", runs / "one"], "chat", define(suite.prompts[0], suite).task_hash)
    biased = Judge("j", JudgeSettings(orders="one"), "", "")
    orders = [question.order for question in questions_of(biased, Pair(one, base, runs))]
    assert 70 < Counter(orders)["candidate-first"] < 130
    turned = [question.order for question in questions_of(biased, Pair(base, one, runs))]
    assert all(a != b for a, b in zip(orders, turned, strict=True))  # the same side comes first, whoever is called what
