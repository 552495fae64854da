"""The audit shows what a judge looks at besides the answers, and finds nothing in a judge that looks at them alone."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from posttrain.evals.judging.audit import AuditRow, audit
from posttrain.evals.judging.families import Family, families_of, family_named, family_of
from posttrain.evals.judging.judgments import Judgment

from .judged_fixtures import answer, judgment, save_answers
from .report_fixtures import make_run

MODELS = ("base", "sft", "dpo")


def asked(
    prompts: int,
    seed: int,
    *,
    position: float = 0.0,
    length: float = 0.0,
    unparsed: float = 0.0,
    judge: str = "judge",
    truth: int = 0,
) -> list[Judgment]:
    """A judge's verdicts on all pairs of three models, in both orders.

    Quality differs by model, by model within a prompt, and a little at every look; ``position`` is added for what is
    shown first, ``length`` for each standard deviation of difference in length. Judges with the same ``truth`` look
    at the same answers.
    """
    world, rng = np.random.default_rng(truth), np.random.default_rng(seed)
    quality = world.normal([-0.3, 0.0, 0.5], 1.0, (prompts, 3))
    characters = np.exp(world.normal(5.5, 0.5, (prompts, 3))).astype(int)
    spread = (characters[:, :, None] - characters[:, None, :]).std()
    found = []
    plain = judgment(("a", "a", answer(0, "x")), ("b", "b", answer(0, "y")))
    for prompt in range(prompts):
        for own, other in ((1, 0), (2, 0), (2, 1)):
            lead = quality[prompt, own] - quality[prompt, other]
            lead += length * (characters[prompt, own] - characters[prompt, other]) / spread
            for order, side in (("candidate-first", position), ("candidate-second", -position)):
                lost = bool(rng.random() < unparsed)
                won = float(lead + side + rng.normal(0, 0.4) > 0)
                found.append(
                    dataclasses.replace(
                        plain,
                        judge=judge, judge_version=judge, prompt_key=str(prompt), prompt_id=str(prompt), order=order,
                        candidate=MODELS[own], candidate_name=f"{MODELS[own]}/final", opponent=MODELS[other],
                        opponent_name=f"{MODELS[other]}/final", candidate_answer=f"{own} {prompt}",
                        opponent_answer=f"{other} {prompt}", candidate_length=int(characters[prompt, own]),
                        opponent_length=int(characters[prompt, other]), status="unparsed" if lost else "judged",
                        preference=None if lost else won,
                    )
                )  # fmt: skip
    return found


def total(rows: list[AuditRow]) -> AuditRow:
    (row,) = [row for row in rows if row.is_sum]
    return row


def outside(estimate: Any, value: float) -> bool:
    return not estimate.low <= value <= estimate.high


def test_a_biased_judge_is_exposed():
    for seed in range(5):
        row = total(audit(asked(100, seed, position=0.5, length=0.5, unparsed=0.1, truth=seed)))
        assert row.first_wins is not None
        assert row.length_slope is not None
        assert row.first_wins.low > 0.5
        assert row.length_slope.low > 0
        assert row.missing.low < 0.1 < row.missing.high
        assert row.unparsed == row.missing.count > 0
        assert [text for text in row.warnings if "shown first" in text]
        assert [text for text in row.warnings if "prefers length" in text]
        assert [text for text in row.warnings if "gave no verdict" in text]


def test_each_bias_alone_shows_in_its_own_figure_alone():
    late = total(audit(asked(200, 0, position=-0.5)))
    assert [text for text in late.warnings if "shown second" in text]
    assert not [text for text in late.warnings if "length" in text]
    brief = total(audit(asked(200, 0, length=-0.6)))
    assert brief.warnings
    assert all("dislikes length" in text for text in brief.warnings)


def test_a_clean_judge_is_suspected_at_the_nominal_rate():
    repetitions = 240
    sums = [total(audit(asked(40, 1000 + i, truth=i))) for i in range(repetitions)]
    for figure, value in (("first_wins", 0.5), ("length_slope", 0.0)):
        wrong = sum(outside(getattr(row, figure), value) for row in sums)
        assert 0.02 <= wrong / repetitions <= 0.085, figure
    assert all(row.missing.count == 0 for row in sums)
    assert not [text for row in sums for text in row.warnings if "order" in text or "verdict" in text]


def test_the_slope_is_the_change_of_winning_per_standard_deviation():
    """Against a closed form: verdicts that are exactly linear in the difference in length."""
    rng = random.Random(0)
    lines = []
    for i, line in enumerate(asked(60, 0)[::6]):
        own = rng.randrange(100, 200)
        lines.append(dataclasses.replace(line, candidate_length=own, opponent_length=150, order="candidate-first",
                                         preference=0.5 + 0.004 * (own - 150), prompt_key=str(i)))  # fmt: skip
    row = total(audit(lines))
    assert row.length_slope is not None
    assert row.length_sd is not None
    # The tails are drawn in to the 5th and 95th percentile, so that the slope is near but not exactly .004.
    assert row.length_slope.value / row.length_sd == pytest.approx(0.004, rel=0.05)
    giant = dataclasses.replace(lines[0], candidate_length=10**6, prompt_key="giant", candidate_answer="giant")
    assert audit([*lines, giant])[0].length_sd == pytest.approx(row.length_sd, rel=0.2)


def test_better_models_that_write_more_are_no_length_bias():
    lines = asked(150, 3)
    longer = [
        dataclasses.replace(j, candidate_length=j.candidate_length + 5000 * (j.candidate == "dpo")) for j in lines
    ]
    before, after = total(audit(lines)), total(audit(longer))
    assert before.length_slope is not None
    assert after.length_slope is not None
    assert after.length_slope.low <= 0 <= after.length_slope.high
    assert after.length_slope.value == pytest.approx(before.length_slope.value, abs=0.02)


def test_bounds_hold_the_win_rate_that_the_lost_verdicts_would_have_given():
    whole = asked(100, 5)
    lost = asked(100, 5, unparsed=0.2)
    for full, row in zip(audit(whole)[1:], audit(lost)[1:], strict=True):
        assert full.win_rate is not None
        assert row.bounds is not None
        assert full.bounds == (full.win_rate.value, full.win_rate.value)
        assert row.bounds[0] < full.win_rate.value < row.bounds[1]
        assert any("the win rate lies between" in text for text in row.warnings)


def test_statuses_are_counted_apart():
    lines = asked(30, 0)
    states = ("unparsed", "refused", "refused", "truncated", "failed", "rejected")
    lines[:6] = [dataclasses.replace(j, status=s, preference=None) for j, s in zip(lines, states, strict=False)]
    row = total(audit(lines))
    assert (row.unparsed, row.refused, row.truncated, row.rejected, row.failed) == (1, 2, 1, 1, 1)
    assert (row.missing.count, row.missing.n, row.judgments, row.n) == (6, 180, 180, 90)


def test_agreement_with_votes_is_far_from_chance_and_a_coin_is_not():
    votes = [j for j in asked(60, 7, judge="human") if j.order == "candidate-first"]
    votes = [dataclasses.replace(j, backend="human", judge_model="anna") for j in votes]
    # A vote on the same two answers counts whichever of them it calls the candidate.
    votes[::2] = [
        dataclasses.replace(
            j, candidate=j.opponent, opponent=j.candidate, candidate_answer=j.opponent_answer,
            opponent_answer=j.candidate_answer, preference=1 - j.preference,
        )
        for j in votes[::2] if j.preference is not None and j.opponent is not None and j.opponent_answer is not None
    ]  # fmt: skip
    good = asked(60, 8, judge="good")
    rng = random.Random(1)
    coin = [dataclasses.replace(j, preference=float(rng.random() < 0.5)) for j in asked(60, 9, judge="coin")]
    sums = {row.judge: row for row in audit([*good, *coin, *votes]) if row.is_sum}
    assert [other.other for other in sums["good"].agreements] == ["human anna", "coin"]
    kappa, chance = sums["good"].agreements[0].kappa, sums["good"].agreements[0].chance
    assert kappa.low is not None
    assert kappa.low > 0.5
    assert sums["good"].agreements[0].n == 180
    assert 0.3 < chance < 0.6 < sums["good"].agreements[0].observed
    assert outside(sums["coin"].agreements[0].kappa, 0.0) is False
    assert any("cannot be told from chance" in text for text in sums["coin"].warnings)
    assert any("changes with the order" in text for text in sums["coin"].warnings)


@pytest.mark.parametrize(
    ("straight", "turned", "agreed", "contradictions"),
    [
        (1.0, 1.0, {1.0}, 0),
        (1.0, 0.5, {1.0}, 0),  # net votes: a win and a tie are a win
        (0.5, 0.0, {0.0}, 0),
        (0.5, 0.5, {0.5}, 0),
        (1.0, 0.0, set(), 8),  # a contradiction agrees with nobody, least of all with a tie
        (0.9, 0.3, set(), 8),
    ],
)
def test_agreement_counts_net_votes_and_never_a_contradiction(
    straight: float, turned: float, agreed: set[float], contradictions: int
):
    lines = [j for j in asked(8, 0) if (j.candidate, j.opponent) == ("sft", "base")]
    said = {"candidate-first": straight, "candidate-second": turned}
    lines = [dataclasses.replace(j, status="judged", preference=said[j.order]) for j in lines]
    for vote in (0.0, 0.5, 1.0):
        votes = [dataclasses.replace(j, judge="human", backend="human", preference=vote) for j in lines]
        votes = [j for j in votes if j.order == "candidate-first"]
        both = [  # two more, of one mind: else both might say one thing throughout, and kappa be undefined
            [dataclasses.replace(one, preference=p, prompt_key=str(p)) for p in (0.0, 1.0)]
            for one in (votes[0], next(j for j in lines if j.order == "candidate-first"))
        ]
        (found,) = audit([*lines, *both[1], *votes, *both[0]])[0].agreements
        assert (found.n, found.contradictions) == (10, contradictions)
        assert found.observed == pytest.approx((8 * (vote in agreed) + 2) / 10)


def test_judges_that_share_a_name_are_compared_each_by_what_tells_it_apart():
    versions = (("helpful", "1" * 10, "qwen"), ("helpful", "2" * 10, "qwen"), ("helpful", "3" * 10, "llama"))
    lines = []
    for seed, (judge, version, model) in enumerate(
        (*versions, ("human", "4" * 10, "eva"), ("short", "5" * 10, "qwen"))
    ):
        own = asked(20, seed)
        lines += [dataclasses.replace(j, judge=judge, judge_version=version, judge_model=model) for j in own]
    names = ["helpful qwen 11111111", "helpful qwen 22222222", "helpful llama", "human eva", "short"]
    for name, row in zip(names, (row for row in audit(lines) if row.is_sum), strict=True):
        assert {other.other for other in row.agreements} == {*names} - {name}


def test_two_judges_that_contradict_themselves_alike_do_not_agree():
    lines = [j for j in asked(8, 0) if (j.candidate, j.opponent) == ("sft", "base")]
    lines = [dataclasses.replace(j, preference=float(j.order == "candidate-first")) for j in lines]
    twin = [dataclasses.replace(j, judge="twin") for j in lines]
    first = next(row for row in audit([*lines, *twin]) if row.is_sum)
    assert (first.agreements[0].observed, first.agreements[0].contradictions) == (0.0, 8)


def test_answers_that_say_nothing_must_lose():
    def rows(preference: float) -> list[AuditRow]:
        lines = [j for j in asked(20, 0) if (j.candidate, j.opponent) == ("sft", "base")]
        null = {"opponent": "file:0", "opponent_name": "sets/null.jsonl"}
        return audit([dataclasses.replace(j, preference=preference, **null) for j in lines])

    for row in rows(1.0):
        assert row.null_wins is not None
        assert row.null_wins.value == 0
        assert row.null_wins.high is not None
        assert 0 < row.null_wins.high < 0.5
        assert not [text for text in row.warnings if "say nothing" in text]
    assert all(any("say nothing" in text for text in row.warnings) for row in rows(0.0))
    assert all(row.null_wins is None for row in audit(asked(20, 0)))


def test_ratings_are_audited_in_marks():
    lines = []
    for i in range(80):
        reply = answer(i, "x" * (50 + 10 * i))
        alone = judgment(("w", "sft/final", reply), None, order="alone", preference=None, rating=3 + i / 40)
        lines.append(dataclasses.replace(alone, prompt_key=str(i)))
    lines[0] = dataclasses.replace(lines[0], status="unparsed", rating=None)
    row = total(audit(lines))
    assert row.rated
    assert row.n == 80
    assert row.bounds is None
    assert row.length_slope is not None
    assert row.length_slope.low is not None
    assert row.length_slope.low > 0
    assert any("marks" in text for text in row.warnings)


def test_a_handful_of_judgments_is_audited_without_a_figure_that_it_cannot_bear():
    assert audit([]) == []
    (lone, pair) = audit(asked(1, 0)[:1])
    assert (lone.n, lone.first_wins, lone.flip_rate, lone.length_slope, lone.warnings) == (1, None, None, None, ())
    assert pair.candidate_name == "sft/final"


@pytest.mark.parametrize(
    ("name", "families"),
    [
        ("Qwen/Qwen3-32B-Instruct", {"qwen"}),
        ("HuggingFaceTB/SmolLM2-135M", {"smollm"}),
        ("gpt-4o-mini", {"gpt"}),
        ("o3-mini", {"gpt"}),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", {"deepseek", "qwen"}),
        ("mistralai/Mixtral-8x7B-v0.1", {"mistral"}),
        ("", set()),
    ],
)
def test_a_name_tells_its_family(name: str, families: set[str]):
    assert family_named(name).names == families


def run(folder: Path, **recipe: Any) -> Path:
    folder.mkdir()
    record = {"name": folder.name, "recipe": recipe, "recipe_hash": "abcdef123", "references": {}}
    record["references"] = {other.name: str(other) for other in folder.parent.iterdir()}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_a_family_is_read_through_all_runs_that_a_model_came_from(tmp_path: Path):
    sft = run(tmp_path / "sft", model={"name_or_path": "Qwen/Qwen3-0.6B"})
    scratch = run(tmp_path / "scratch", model={"config": {"model_type": "llama"}})
    reward = run(tmp_path / "reward", model={"name_or_path": "@scratch"})
    ppo = run(tmp_path / "ppo", model={"name_or_path": "@sft"}, rewards=[{"model": "@reward"}, {"function": "a:b"}])
    student = run(tmp_path / "student", model={"name_or_path": "@ppo"}, teacher={"name_or_path": "google/gemma-3-27b"})
    assert family_of(sft) == Family(frozenset({"qwen"}))
    assert family_of(reward).names == {"scratch (abcdef)"}
    # What trained an ancestor has left its mark on the child.
    assert family_of(student) == Family(frozenset({"qwen"}), frozenset({"gemma"}), frozenset({"scratch (abcdef)"}))
    (written := json.loads((ppo / "run.json").read_text()))["data"] = {
        "train": {"written_by": ["org/Phi-4", "@scratch"]}
    }
    (ppo / "run.json").write_text(json.dumps(written))
    assert family_of(student).writers == {"phi", "scratch (abcdef)"}
    circle = run(tmp_path / "circle", model={"name_or_path": str(tmp_path / "round")})
    run(tmp_path / "round", model={"name_or_path": str(circle)})
    assert family_of(circle).names
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/config.json").write_text(
        json.dumps({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]})
    )
    assert family_of(tmp_path / "plain").names == {"qwen"}
    (tmp_path / "plain/run.json").write_text("{torn")
    assert family_of(tmp_path / "plain").names == {"qwen"}
    assert set(families_of([sft, ppo], ["Qwen/QwQ-32B", str(scratch)])) == {"sft", "ppo", "Qwen/QwQ-32B", str(scratch)}


def test_kinship_of_judge_and_candidate_is_a_warning():
    lines = [dataclasses.replace(j, judge_model="Qwen/Qwen3-32B") for j in asked(10, 0)]
    families = {"sft": Family(frozenset({"qwen"})), "dpo": Family(frozenset({"llama"}), frozenset({"qwen"}))}
    rows = {(row.candidate, row.opponent): row.warnings for row in audit(lines, families=families) if not row.is_sum}
    assert rows["sft", "base"] == ("sft/final: the judge is of the candidate's own family (qwen)",)
    assert rows["dpo", "base"] == ("dpo/final: the judge is of the family of the candidate's teacher (qwen)",)
    assert len(rows["dpo", "sft"]) == 2
    (row,) = [row for row in audit(lines, families={"sft": Family(writers=frozenset({"qwen"}))}) if row.kin][:1]
    assert row.warnings == (
        "sft/final: the judge is of the family of a model that wrote the candidate's training rows (qwen)",
    )
    rules = [dataclasses.replace(j, backend="rules") for j in lines]
    assert not [text for row in audit(rules, families=families) for text in row.warnings if "family" in text]


def test_runs_that_share_a_name_keep_their_own_family(tmp_path: Path):
    for place, origin in (("a", "Qwen/Qwen3-0.6B"), ("b", "google/gemma-3-1b")):
        folder = make_run(tmp_path / place, "sft", [], recipe={"model": {"name_or_path": origin}})
        save_answers(folder, f"weights-{place}", [answer(0, place)])
    families = families_of([tmp_path / "a", tmp_path / "b"])
    assert (families["weights-a"].names, families["weights-b"].names) == ({"qwen"}, {"gemma"})
    (tmp_path / "a/scores.jsonl").write_text("not JSON\n")
    assert "weights-a" not in families_of([tmp_path / "a"])
