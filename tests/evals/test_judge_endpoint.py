"""A judge behind a server that fails as servers do: judged once or listed, paid once, never beyond the budget."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from posttrain.chat_templates.errors import InputError
from posttrain.evals.judges import JudgeSettings, JudgingSpec, load_judges
from posttrain.evals.judging import backends
from posttrain.evals.judging.backends import open_judges
from posttrain.evals.judging.judgments import battles
from posttrain.evals.judging.parse import Verdict
from posttrain.evals.judging.run import judge, pending_judgments
from posttrain.evals.spec import SuiteSpec
from posttrain.evals.suite_files import load_suite

from ..fault_server import FaultServer, each, sometimes
from .judged import add_answers, judgments, metrics, scores, write_suite

LOST = ("truncated", "malformed", "no_choices", "no_choice", "null")
FAULTS = ("429:0.01", "500", "503:0.01", "cut", *LOST, "empty", "refusal", "filter", "length", "thought")


def reply(messages: list[dict[str, str]]) -> str:
    """Prefers the answer that says good, wherever it stands."""
    text = messages[-1]["content"]
    first, second = text.index("[[begin answer A"), text.index("[[begin answer B")
    good = text.find("good")
    return "Thinking of [[C]]... My verdict: [[" + ("C" if good < 0 else "A" if first < good < second else "B") + "]]"


def entry(url: str, extra: str = "") -> str:
    return (
        f"  - {{judge: pairwise, prompts: chat, baseline: ../runs/base, canary: false, model: m, base_url: '{url}',\n"
        f"     answer_by: text, concurrency: 4, timeout: 1, retries: 3{extra}}}\n"
    )


def prepare(
    tmp_path: Path, judges: str, *, prompts: int = 8, runs: tuple[str, ...] = ("one",)
) -> tuple[list[Path], SuiteSpec]:
    suite = load_suite(write_suite(tmp_path / "s", judges, prompts=prompts))
    folders = [tmp_path / "runs" / name for name in ("base", *runs)]
    add_answers(folders[0], suite, lambda prompt: "plain")
    for folder in folders[1:]:
        add_answers(folder, suite, lambda prompt, f=folder: f"{f.name} is {'good' if prompt.id != 'p1' else 'bad'}")
    return folders, suite


def test_both_orders_are_asked_and_kept_with_what_they_cost(tmp_path: Path):
    with FaultServer(reply=reply) as server:
        folders, suite = prepare(tmp_path, entry(server.url, ", prices: {input: 1.0, output: 2.0}"))
        assert pending_judgments(folders, suite) == 16
        report = judge(folders, suite)
        assert (report.exit_code, report.judged) == (0, 16)
        assert sum(server.paid.values()) == 16
    said = judgments(folders[1])
    assert Counter(j.order for j in said) == {"candidate-first": 8, "candidate-second": 8}
    (score,) = scores(folders[1], "chat-pairwise")
    assert metrics(score)["win_rate"].value == pytest.approx(7.5 / 8)
    assert score.detail is not None
    assert score.detail["flip_rate"] == 0.0
    assert score.detail["cost"] == pytest.approx(sum(j.cost or 0 for j in said))
    assert score.judge_version == said[0].judge_version


def test_faults_leave_every_pair_judged_once_or_listed_and_nothing_paid_twice(tmp_path: Path):
    with FaultServer(sometimes(0.4, *FAULTS), reply=reply) as server:
        folders, suite = prepare(tmp_path, entry(server.url), prompts=40)
        judge(folders, suite)
        said = judgments(folders[1])
        assert len(said) == 80
        assert len({j.key for j in said}) == 80
        statuses = Counter(j.status for j in said)
        assert statuses["judged"] > 40
        assert statuses["refused"] > 0
        assert all(j.reason for j in said)
        assert all((j.preference is None) == (j.status != "judged") for j in said)
        assert set(server.paid.values()) == {1}
        server.plan = each()
        report = judge(folders, suite)  # what was answered, however badly, is not asked again
        assert set(server.paid.values()) == {1}
    assert report.exit_code == 0
    (score,) = scores(folders[1], "chat-pairwise")
    assert score.detail is not None
    bounds, rate = score.detail["bounds"], metrics(score)["win_rate"]
    assert bounds["low"] < rate.value <= bounds["high"]
    assert rate.n + score.detail["missing"] == 40
    assert any("refusals" in note for note in score.notes)


@pytest.mark.parametrize("fault", LOST)
def test_a_body_that_is_no_completion_is_never_a_verdict(tmp_path: Path, fault: str):
    def plan(body: dict[str, Any], times: int) -> str | None:
        return fault if "Question 3?" in body["messages"][-1]["content"] else None

    with FaultServer(plan, reply=reply) as server:
        folders, suite = prepare(tmp_path, entry(server.url).replace("retries: 3", "retries: 0"))
        report = judge(folders, suite)
        assert (report.exit_code, len(report.problems)) == (1, 1)
        assert "judge again to try them again" in report.problems[0]
        assert Counter(j.status for j in judgments(folders[1])) == {"judged": 14, "failed": 2}
        assert not scores(folders[1], "chat-pairwise")
        server.plan = each()
        assert judge(folders, suite).exit_code == 0
    assert {j.status for j in judgments(folders[1])} == {"judged"}


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_a_question_that_the_server_never_takes_is_a_status_and_the_rest_is_scored(tmp_path: Path, status: str):
    def plan(body: dict[str, Any], times: int) -> str | None:
        return status if "Question 3?" in body["messages"][-1]["content"] else None

    with FaultServer(plan, reply=reply) as server:
        folders, suite = prepare(tmp_path, entry(server.url))
        report = judge(folders, suite)
        assert (report.exit_code, report.judged, len(server.requests)) == (0, 14, 16)
        assert pending_judgments(folders, suite) == 0
        judge(folders, suite)
        assert len(server.requests) == 16, "it is not asked again"
    assert Counter(j.status for j in judgments(folders[1])) == {"judged": 14, "rejected": 2}
    (score,) = scores(folders[1], "chat-pairwise")
    assert score.detail is not None
    assert metrics(score)["win_rate"].n == 7
    assert (score.detail["missing"], score.detail["statuses"]["rejected"]) == (1, 2)
    assert score.detail["bounds"]["low"] < metrics(score)["win_rate"].value < score.detail["bounds"]["high"]
    assert "2 questions that the server rejected" in score.notes


def test_a_server_that_rejects_too_much_gives_no_score_and_may_be_mended(tmp_path: Path):
    def plan(body: dict[str, Any], times: int) -> str | None:
        asked = body["messages"][-1]["content"]
        return "400" if "two is" in asked and any(f"Question {n}?" in asked for n in range(3)) else None

    with FaultServer(plan, reply=reply) as server:
        folders, suite = prepare(tmp_path, entry(server.url), runs=("one", "two"))
        report = judge(folders, suite)
        assert report.exit_code == 1
        assert "two/final: the server rejected 6 of 16 questions: the request failed" in report.problems[0]
        assert "max_rejected_share" in report.problems[0]
        assert scores(folders[1], "chat-pairwise"), "the other candidate does not suffer from it"
        assert not scores(folders[2], "chat-pairwise")
        assert pending_judgments(folders, suite) > 0
        lenient = load_suite(write_suite(tmp_path / "s", entry(server.url, ", max_rejected_share: 0.5")))
        asked = len(server.requests)
        assert judge(folders, lenient).exit_code == 0
        assert len(server.requests) == asked
        assert metrics(scores(folders[2], "chat-pairwise")[0])["win_rate"].n == 5


def test_a_wrong_key_is_one_problem_and_judges_nothing(tmp_path: Path):
    with FaultServer(lambda body, times: "401", reply=reply) as server:
        folders, suite = prepare(tmp_path, entry(server.url))
        report = judge(folders, suite)
        assert (report.exit_code, len(report.problems)) == (1, 1)
        assert "planted 401" in report.problems[0]
        assert judgments(folders[1]) == []


def test_a_server_that_is_down_leaves_the_entry_to_be_taken_up_again(tmp_path: Path):
    with FaultServer(lambda body, times: "500", reply=reply) as server:
        folders, suite = prepare(tmp_path, entry(server.url, ", name: x").replace("retries: 3", "retries: 0"))
        report = judge(folders, suite)
        assert report.exit_code == 1
        assert not scores(folders[1], "x")
        assert pending_judgments(folders, suite) == 16
        server.plan = each()
        assert judge(folders, suite).exit_code == 0
        assert len(judgments(folders[1])) == 16
        assert scores(folders[1], "x")


def test_a_server_that_cannot_be_probed_is_one_problem(tmp_path: Path):
    judges = (
        entry("http://127.0.0.1:9/v1").replace("answer_by: text", "answer_by: auto").replace("retries: 3", "retries: 0")
    )
    folders, suite = prepare(tmp_path, judges)
    report = judge(folders, suite)
    assert (report.exit_code, len(report.problems)) == (1, 1)
    assert "cannot tell whether the endpoint gives log-probabilities" in report.problems[0]
    assert pending_judgments(folders, suite) == 16


def test_the_budget_holds_over_runs_and_calls_and_what_is_left_is_listed(tmp_path: Path):
    with FaultServer(reply=reply) as server:
        folders, suite = prepare(
            tmp_path, entry(server.url, ", max_tokens: 20, budget: {tokens: 9000}"), runs=("one", "two", "three")
        )
        for _ in range(2):
            report = judge(folders, suite)
            assert report.exit_code == 1
            assert any("budget" in problem for problem in report.problems)
            assert 4000 < server.tokens <= 9000
        lines = (folders[3] / "judgments.jsonl").read_text().splitlines()
        assert len(lines) == len({json.loads(line)["prompt_id"] + json.loads(line)["order"] for line in lines})


def test_log_probabilities_are_used_where_the_server_gives_them(tmp_path: Path):
    def logs(messages: list[dict[str, str]]) -> dict[str, float]:
        return (
            {"A": -0.6931, " B": -1.3863, "B": -1.3863}
            if "label" in messages[-1]["content"]
            else {"yes": -0.1, "no": -3}
        )

    with FaultServer(reply=lambda messages: "A", logprobs=logs) as server:
        folders, suite = prepare(tmp_path, entry(server.url).replace("answer_by: text", "answer_by: auto"))
        judge(folders, suite)
        asked = len(server.requests)
        assert asked == 17  # the probe once
        assert pending_judgments(folders, suite) == 0
        judge(folders, suite)
        assert len(server.requests) == asked
    assert {round(j.preference or 0, 3) for j in judgments(folders[1])} == {0.5}
    assert metrics(scores(folders[1], "chat-pairwise")[0])["win_rate"].value == pytest.approx(0.5)


def test_a_server_without_log_probabilities_is_read_by_its_text(tmp_path: Path):
    with FaultServer(reply=lambda m: reply(m) if "[[begin" in m[-1]["content"] else "yes") as server:
        folders, suite = prepare(tmp_path, entry(server.url).replace("answer_by: text", "answer_by: auto"))
        assert judge(folders, suite).exit_code == 0
    assert {j.status for j in judgments(folders[1])} == {"judged"}


def test_a_better_pattern_costs_nothing(tmp_path: Path):
    with FaultServer(reply=lambda messages: "I say <B>") as server:
        folders, suite = prepare(tmp_path, entry(server.url))
        judge(folders, suite)
        assert {j.status for j in judgments(folders[1])} == {"unparsed"}
        asked = len(server.requests)
        suite = load_suite(write_suite(tmp_path / "s", entry(server.url, ", pattern: '<([ABC])>'")))
        assert judge(folders, suite).exit_code == 0
        assert len(server.requests) == asked
    assert Counter(j.status for j in judgments(folders[1])) == {"unparsed": 16, "judged": 16}


def test_another_parser_reads_what_was_paid_for_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def old(text: str, settings: JudgeSettings, *, finish: str | None = "stop") -> Verdict:
        return Verdict("judged", 1.0, reason=text)

    with FaultServer(reply=lambda messages: "At first [[A]], finally [[\u200bB]]") as server:
        folders, suite = prepare(tmp_path, entry(server.url))
        with monkeypatch.context() as patch:
            patch.setattr(backends, "parse", old)
            patch.setattr(backends, "PARSER", 0)
            judge(folders, suite)
        asked = len(server.requests)
        assert pending_judgments(folders, suite) > 0
        assert judge(folders, suite).exit_code == 0
        assert len(server.requests) == asked
    old_one, new_one = scores(folders[1], "chat-pairwise")
    assert old_one.judge_version != new_one.judge_version
    said = [j for j in judgments(folders[1]) if j.judge_version == new_one.judge_version]
    assert {(j.order, j.preference) for j in said} == {("candidate-first", 0.0), ("candidate-second", 1.0)}


def test_a_jury_keeps_each_members_judgments_and_joins_their_verdicts(tmp_path: Path):
    with FaultServer(reply=lambda m: "[[A]]") as first, FaultServer(reply=reply) as second:
        jury = f", jury: [{{name: sure, base_url: '{first.url}'}}, {{name: fair, base_url: '{second.url}'}}]"
        folders, suite = prepare(tmp_path, entry(first.url, jury))
        assert judge(folders, suite).exit_code == 0
        assert (sum(first.paid.values()), sum(second.paid.values())) == (16, 16)
    assert Counter(j.judge for j in judgments(folders[1])) == {"sure": 16, "fair": 16}
    (score,) = scores(folders[1], "chat-pairwise")
    assert metrics(score)["win_rate"].value == pytest.approx((0.5 + 7.5 / 8) / 2)  # the sure one says A in both orders
    assert score.detail is not None
    assert {member["judge"] for member in score.detail["members"]} == {"sure", "fair"}


def test_repeats_are_averaged_within_a_prompt(tmp_path: Path):
    said = iter(range(10**6))

    with FaultServer(reply=lambda m: "[[A]]" if next(said) % 2 else "[[B]]") as server:
        folders, suite = prepare(
            tmp_path, entry(server.url, ", repeats: 4, orders: one").replace("concurrency: 4", "concurrency: 1")
        )
        judge(folders, suite)
        assert sum(server.paid.values()) == 32
    (score,) = scores(folders[1], "chat-pairwise")
    assert metrics(score)["win_rate"].n == 8
    assert metrics(score)["win_rate"].value == pytest.approx(0.5)
    assert metrics(score)["win_rate"].stderr == pytest.approx(0.0)


def test_ratings_are_means_over_prompts_with_bounds_for_what_could_not_be_read(tmp_path: Path):
    def mark(messages: list[dict[str, str]]) -> str:
        text = messages[-1]["content"]
        return "no idea" if "Question 3?" in text else "Fine. [[8]]" if "is good\n" in text else "Poor. [[2]]"

    with FaultServer(reply=mark) as server:
        judges = f"  - {{judge: rating, prompts: chat, model: m, base_url: '{server.url}', retries: 0}}\n"
        folders, suite = prepare(tmp_path, judges)
        assert judge(folders, suite).exit_code == 0
        assert sum(server.paid.values()) == 16
    (score,) = scores(folders[1], "chat-rating")
    assert metrics(score)["rating"].value == pytest.approx((6 * 8 + 2) / 7)
    assert score.detail is not None
    assert score.detail["bounds"] == pytest.approx({"low": 51 / 8, "high": 60 / 8})


def test_a_budget_of_judgments_holds_where_some_questions_fail(tmp_path: Path):
    broken = sometimes(0.3, "500")

    with FaultServer(lambda body, times: broken(body, 1), reply=reply) as server:
        judges = entry(server.url, ", pairs: {budget: 60}").replace("baseline: ../runs/base, canary: false, ", "")
        judges = judges.replace("retries: 3", "retries: 0")
        folders, suite = prepare(tmp_path, judges, prompts=20, runs=("one", "two", "three"))
        report = judge(folders, suite)
        assert report.exit_code == 1
        assert sum(server.paid.values()) <= 60
        server.plan = each()
        judge(folders, suite)
        assert judge(folders, suite).exit_code == 0
        assert sum(server.paid.values()) <= 60
    assert sum(j.status == "judged" for j in judgments(*folders)) >= 58
    assert all(scores(folder, "chat-pairwise") for folder in folders)


@pytest.mark.parametrize("budget", [12, 24, 100])
def test_no_pair_is_scored_with_one_order_while_the_other_waits_to_be_tried_again(tmp_path: Path, budget: int):
    def broken(body: dict[str, Any], times: int) -> str | None:
        text = body["messages"][-1]["content"]  # in one order, all of a pair but the first prompt
        turned = text.find("one is") > text.find("plain") > 0
        return "500" if turned and "Question 0?" not in text else None

    with FaultServer(broken, reply=reply) as server:
        judges = entry(server.url, f", pairs: {{budget: {budget}}}").replace("retries: 3", "retries: 0")
        judges = judges.replace("baseline: ../runs/base, canary: false, ", "")
        folders, suite = prepare(tmp_path, judges, prompts=4, runs=("one", "two"))
        assert judge(folders, suite).exit_code == 1
        assert not any(scores(folder, "chat-pairwise") for folder in folders)
        assert pending_judgments(folders, suite) > 0
        server.plan = each()
        assert judge(folders, suite).exit_code == 0
        assert sum(server.paid.values()) == min(budget, 24)
    fought = battles(judgments(*folders))
    assert {battle.asked for battle in fought} == {2}
    assert all(scores(folder, "chat-pairwise") for folder in folders)


def test_members_of_a_jury_that_rates_count_alike_however_often_each_is_asked(tmp_path: Path):
    with FaultServer(reply=lambda m: "[[2]]") as low, FaultServer(reply=lambda m: "[[8]]") as high:
        jury = f"[{{name: a, base_url: '{low.url}'}}, {{name: b, base_url: '{high.url}', repeats: 4}}]"
        folders, suite = prepare(tmp_path, f"  - {{judge: rating, prompts: chat, model: m, jury: {jury}}}\n")
        assert judge(folders, suite).exit_code == 0
    (score,) = scores(folders[1], "chat-rating")
    assert metrics(score)["rating"].value == 5


def test_marks_have_no_majority(tmp_path: Path):
    jury = (
        "{judge: rating, prompts: chat, model: m, base_url: 'http://x', vote: majority, jury: [{name: a}, {name: b}]}"
    )
    with pytest.raises(InputError, match="a majority takes a side, and a mark has none; drop it"):
        load_suite(write_suite(tmp_path / "s", f"  - {jury}\n"))


def test_marks_on_different_scales_are_not_averaged(tmp_path: Path):
    jury = "{judge: rating, prompts: chat, model: m, base_url: 'http://x', jury: [{name: a, scale: [1, 5]}, {name: b}]}"
    with pytest.raises(InputError, match="must all rate on one `scale`"):
        load_suite(write_suite(tmp_path / "s", f"  - {jury}\n"))


def test_what_the_server_is_told_besides_is_part_of_the_judges_version(tmp_path: Path):
    def version(**more: Any) -> str:
        spec = JudgingSpec(
            judge="pairwise", prompts="p", baseline="b", model="m", base_url="http://x", answer_by="logprobs", **more
        )
        return open_judges("name", load_judges(spec), [tmp_path])[0].version

    versions = {version(), version(extra={"enable_thinking": False}), version(temperature=2.0)}
    assert len(versions) == 3
    assert version(timeout=9) in versions  # how long to wait decides no verdict


def test_a_jury_of_one_judge_twice_is_refused(tmp_path: Path):
    url = "http://127.0.0.1:9/v1"
    folders, suite = prepare(tmp_path, entry(url, ", jury: [{name: a}, {name: b}]"))
    with pytest.raises(InputError, match="the same judge"):
        judge(folders, suite)


ONCE = """
import sys
from pathlib import Path
from posttrain.evals.judging.run import judge
from posttrain.evals.suite_files import load_suite
judge([Path(p) for p in sys.argv[2:]], load_suite(sys.argv[1]))
"""


@pytest.mark.slow
def test_two_processes_share_the_work_and_pay_once(tmp_path: Path):
    with FaultServer(reply=reply, delay=0.05) as server:
        folders, _ = prepare(tmp_path, entry(server.url), prompts=20)
        command = [sys.executable, "-c", ONCE, str(tmp_path / "s" / "suite.yaml"), *map(str, folders)]
        processes = [subprocess.Popen(command), subprocess.Popen([*command[:4], *command[4:][::-1]])]
        assert [process.wait(timeout=500) for process in processes] == [0, 0]
        assert sum(server.paid.values()) == 40
    assert len((folders[1] / "judgments.jsonl").read_text().splitlines()) == 40
    assert len(scores(folders[1], "chat-pairwise")) == 1


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_lose_nothing_and_cost_only_what_was_in_flight(tmp_path: Path, kills: int):
    with FaultServer(sometimes(0.1, "500", "429:0.01"), reply=reply, delay=0.1) as server:
        folders, _ = prepare(tmp_path, entry(server.url), prompts=60)
        script = Path(__file__).with_name("judge_kill_script.py")
        command = [sys.executable, str(script), str(kills), str(tmp_path / "s" / "suite.yaml"), *map(str, folders)]
        killed = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=500).stdout)
        said = judgments(folders[1])
        assert killed == kills
        assert len(said) == len({j.key for j in said}) == 120
        assert {j.status for j in said} == {"judged"}
        assert sum(server.paid.values()) - 120 <= 4 * killed
    assert len(scores(folders[1], "chat-pairwise")) == 1
