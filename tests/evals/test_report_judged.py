"""What judges said, and the answers they saw: on the page, in the tables, and never as markup."""

import csv
import io
import json
from pathlib import Path

import pytest
from posttrain.evals.judging.run import judge
from posttrain.evals.report import build, write
from posttrain.evals.report.format import Speller
from posttrain.evals.report.html import MOST_BYTES
from posttrain.evals.report.markdown import to_markdown
from posttrain.evals.report.sections import sections
from posttrain.evals.report.tables import to_csv, to_json
from posttrain.evals.suite_files import load_suite

from .judged import add_answers, write_suite
from .judged_fixtures import answer, judged_score, judgment, pair, save_answers, save_judgments, world
from .report_fixtures import EVIL, make_run, score, share


def notices(board) -> str:
    return "\n".join(notice.text for notice in board.notices)


def duel(root: Path, outcomes: list[float], mine: str = "mine", **fields) -> Path:
    """Two runs with one answer to each prompt, and a judge's verdicts on the first's."""
    players = []
    for name in ("mine", "theirs"):
        folder = make_run(root / name, name, [], final=f"{name}-weights")
        given = [answer(i, f"{mine if name == 'mine' else 'theirs'} {i}") for i in range(len(outcomes))]
        save_answers(folder, f"{name}-weights", given)
        players.append((f"{name}-weights", f"{name}/final", given))
    (a, b, one), (c, d, two) = players
    said = [
        verdict
        for i, outcome in enumerate(outcomes)
        for verdict in pair((a, b, one[i]), (c, d, two[i]), outcome, **fields)
    ]
    save_judgments(root / "mine", said)
    return root


def test_a_match_counts_ties_half_and_has_an_interval(tmp_path: Path):
    (match,) = build([duel(tmp_path, [1.0] * 6 + [0.5] * 2 + [0.0] * 2)]).judgings[0].matches
    assert (match.wins.value, match.battles, match.ties) == (pytest.approx(0.7), 10, 2)
    assert match.wins.low is not None
    assert match.wins.low < 0.7 < (match.wins.high or 0)


def test_votes_are_one_match_whichever_of_the_two_was_named_first(tmp_path: Path):
    human = {"judge": "human", "judge_version": "anna", "backend": "human", "judge_model": "anna"}
    duel(tmp_path, [1.0] * 12 + [0.0] * 8)
    sides = [(f"{name}-weights", f"{name}/final") for name in ("mine", "theirs")]
    texts = [[answer(i, f"{name} {i}") for i in range(20)] for name in ("mine", "theirs")]
    for i in range(20):  # of 20 votes "mine" wins 15, cast in two sessions that had the folders in another order
        mine, theirs = ((*side, some[i]) for side, some in zip(sides, texts, strict=True))
        first, second = (mine, theirs) if i < 10 else (theirs, mine)
        won = float((i % 4 > 0) == (first is mine))
        save_judgments(tmp_path / first[1][:-6], [judgment(first, second, preference=won, **human)])
    board = build([tmp_path])
    (votes,) = (judging for judging in board.judgings if judging.backend == "human")
    (match,) = votes.matches
    assert (match.candidate, match.wins.value, match.battles) == ("mine-weights", 0.75, 20)
    (row,) = (row for row in votes.audit if not row.is_sum)
    assert (row.n, row.win_rate and row.win_rate.value) == (20, 0.75)
    assert board.compared == 2  # the judge's match and the voter's


def test_three_players_are_ranked_into_tiers(tmp_path: Path):
    board = build([world(tmp_path)])
    judging = board.judgings[0]
    assert [board.row(name.row).run for r in judging.ranking for name in judging.players if name.id == r.player] == [
        "run3", "run2", "run4", "run1",
    ]  # fmt: skip
    tiers = [row.tier for row in judging.ranking]
    assert tiers[0] == 1
    assert tiers[-1] > 1


def test_the_audit_stands_beside_what_it_audits_and_warns_before_the_reader_compares(tmp_path: Path):
    # Every verdict follows the order: a judge that always takes what it sees first.
    board = build([duel(tmp_path, [0.5] * 40)])
    flips = board.judgings[0].audit[0].flip_rate
    assert flips is not None
    assert (flips.value, flips.n) == (1.0, 40)
    assert "judge helpful (endpoint qwen3-32b) on chat: it leans to what is shown first" in notices(board)


def test_what_a_judge_has_in_common_with_an_entry_is_said_before_the_reader_compares(tmp_path: Path):
    duel(tmp_path, [1.0] * 8)
    record = json.loads((tmp_path / "theirs/run.json").read_text())
    (tmp_path / "theirs/run.json").write_text(
        json.dumps(record | {"recipe": {"model": {"name_or_path": "Qwen/Qwen3-8B"}}})
    )
    record["data"]["train"] |= {"written_by": ["Qwen/Qwen3-32B"], "judged_by": ["Qwen/QwQ-32B"]}
    (tmp_path / "mine/run.json").write_text(json.dumps(record | {"name": "mine"}))
    said = notices(build([tmp_path]))
    who = "judge helpful (endpoint qwen3-32b) on chat: the judge is of"
    assert f"{who} the candidate's own family (qwen): theirs/final" in said
    assert f"{who} the family of a model that wrote the candidate's training rows (qwen): mine/final" in said
    assert f"{who} the family of a judge that chose the candidate's training rows (qwen): mine/final" in said


def test_judgments_without_a_verdict_are_counted_and_bound_the_win_rate(tmp_path: Path):
    duel(tmp_path, [1.0] * 8)
    given = {name: [answer(i, f"{name} {i}") for i in range(10)] for name in ("mine", "theirs")}
    for name, answers in given.items():
        save_answers(tmp_path / name, f"{name}-weights", answers)
    for i in range(8, 10):
        mine, theirs = ((f"{name}-weights", f"{name}/final", answers[i]) for name, answers in given.items())
        save_judgments(tmp_path / "mine", [judgment(mine, theirs, status="unparsed", preference=None)])
    board = build([tmp_path])
    (match,) = board.judgings[0].matches
    assert (match.battles, match.missing, match.low, match.high) == (8, 2, 0.8, 1.0)


def test_rules_are_left_off_unless_their_suite_asks_for_them(tmp_path: Path):
    duel(tmp_path, [1.0, 0.0] * 6, backend="rules", judge="longer")
    judged_score(tmp_path / "mine", "mine-weights", [1.0, 0.0] * 6, "theirs-weights", backend="rules", judge="longer")
    board = build([tmp_path])
    assert board.columns == ()
    assert board.judgings == ()
    assert not any(sample.judgments for sample in board.samples)
    assert "left off the leaderboard: longer" in notices(board)


def test_rules_that_are_shown_are_stamped_wherever_their_figures_stand(tmp_path: Path):
    duel(tmp_path, [1.0, 0.0] * 6, backend="rules", judge="longer")
    shown = {"backend": "rules", "judge": "longer", "leaderboard": True}
    judged_score(tmp_path / "mine", "mine-weights", [1.0, 0.0] * 6, "theirs-weights", **shown)
    board = build([tmp_path])
    stamp = "rules, not a judge"
    assert "left off" not in notices(board)
    assert {board.columns[0].stamp, board.judgings[0].stamp} == {stamp}
    assert stamp in to_markdown(board)
    (line, *_) = csv.DictReader(io.StringIO(to_csv(board)))
    assert line["stamp"] == stamp


def test_answers_are_facts_and_no_column(tmp_path: Path):
    board = build([duel(tmp_path, [1.0, 0.0])])
    assert board.columns == ()
    assert "without scores" not in notices(board)
    (mine, _) = board.usage
    assert (mine.answers, mine.characters, mine.stopped, mine.seconds) == (2, 6.0, 1.0, 0.25)


def test_a_row_against_its_own_opponent_is_compared_with_a_half(tmp_path: Path):
    outcomes = [1.0] * 17 + [0.0] * 3
    duel(tmp_path, outcomes)
    judged_score(tmp_path / "mine", "mine-weights", outcomes, "theirs-weights")
    board = build([tmp_path], baseline="theirs")
    (difference,) = board.differences
    assert (difference.method, difference.verdict, difference.value) == ("win rate", "better", pytest.approx(0.35))


@pytest.mark.parametrize(("repeats", "verdict"), [(1, "better"), (5, "no verdict")])
def test_a_win_on_every_prompt_is_better_by_the_number_of_prompts(tmp_path: Path, repeats: int, verdict: str):
    duel(tmp_path, [1.0] * 20)
    judged_score(tmp_path / "mine", "mine-weights", [1.0] * 20, "theirs-weights", repeats=repeats)
    (difference,) = build([tmp_path], baseline="theirs").differences
    assert (difference.method, difference.verdict, difference.value) == ("win rate", verdict, 0.5)
    assert difference.p == pytest.approx(2.0 ** -(20 // repeats))


def test_damaged_judgments_and_answers_are_named_and_the_rest_is_kept(tmp_path: Path):
    duel(tmp_path, [1.0] * 5)
    path = tmp_path / "mine/judgments.jsonl"
    good = path.read_text()
    wrong = [json.loads(good.splitlines()[0]) | change for change in (
        {"preference": "high"}, {"preference": 7}, {"order": "both"}, {"opponent": None}, {"candidate": 3},
        {"status": "judged", "preference": None}, {"reason": None},
    )]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in wrong) + "[1]\nno json\n" + good + good[:50])
    (sample,) = (tmp_path / "theirs/samples").glob("*.parquet")
    sample.write_bytes(b"PAR1 no")
    board = build([tmp_path])
    found = notices(board)
    for clause in (
        "7 lines are no judgment",
        "judgments.jsonl:8 is not a JSON object",
        "judgments.jsonl:9 is not JSON",
        "judgments.jsonl: the last line is torn",
        "theirs: theirs-weigh-chat-chathash.parquet cannot be",
    ):
        assert clause in found  # fmt: skip
    assert board.judgings[0].matches[0].battles == 5
    assert {answer.player for sample in board.samples for answer in sample.answers} == {"mine-weights"}


def test_judgments_of_the_same_weights_in_two_runs_count_once(tmp_path: Path):
    duel(tmp_path, [1.0] * 5)
    copy = make_run(tmp_path / "copy", "copy", [score("final", 1, "arc", share(1, 9), weights_hash="mine-weights")])
    (copy / "judgments.jsonl").write_text((tmp_path / "mine/judgments.jsonl").read_text())
    assert build([tmp_path]).judgings[0].matches[0].battles == 5


def test_what_was_said_of_answers_that_were_made_anew_is_left_out_and_counted(tmp_path: Path):
    duel(tmp_path, [1.0] * 5)
    one, two = answer(0, "older"), answer(0, "theirs, older")
    older = pair(
        ("mine-weights", "mine/final", one),
        ("theirs-weights", "theirs/final", two),
        0.0,
        task_hash="before",
        created="2026-01-01T00:00:00Z",
    )
    save_judgments(tmp_path / "mine", older)
    board = build([tmp_path])
    assert [(match.battles, match.wins.value) for match in board.judgings[0].matches] == [(5, 1.0)]
    assert "2 judgments left out: of answers that have since been made anew" in notices(board)


def test_an_answer_that_came_out_the_same_keeps_its_older_judgment(tmp_path: Path):
    # Made anew with other settings, the answers to three of eight prompts changed; only those are judged again.
    duel(tmp_path, [1.0] * 8, task_hash="before", created="2026-01-01T00:00:00Z")
    given = [answer(i, f"mine {i}" if i < 5 else f"mine anew {i}") for i in range(8)]
    save_answers(tmp_path / "mine", "mine-weights", given)
    other = [answer(i, f"theirs {i}") for i in range(8)]
    for i in range(5, 8):
        sides = ("mine-weights", "mine/final", given[i]), ("theirs-weights", "theirs/final", other[i])
        save_judgments(tmp_path / "mine", pair(*sides, 0.0))
    board = build([tmp_path])
    assert [(match.battles, match.wins.value) for match in board.judgings[0].matches] == [(8, 0.625)]
    assert "6 judgments left out" in notices(board)
    # Without the run of the opponent nobody knows its answers: of two judgments of a question the later holds.
    (alone,) = build([tmp_path / "mine"]).judgings[0].matches
    assert (alone.battles, alone.wins.value) == (8, 0.625)


def test_hostile_answers_run_nothing_and_are_all_there(tmp_path: Path):
    hostile = f"{EVIL}\0\x1b[2J\u202e{{% for x in y %}}<!--<a href='javascript:1'>\u2028"
    root = duel(tmp_path / "runs", [1.0, 0.5], mine=hostile, reason=hostile, judge=EVIL, judge_model=EVIL)
    page, markdown, *_ = write(build([root]), tmp_path / "out")
    text = page.read_text()
    for markup in ("<img", "<a href='j", "<script>document", "</script><img"):
        assert markup not in text
        assert markup not in markdown.read_text()
    assert "{{ 7*7 }}" in text
    assert not {"\0", "\x1b", "\u202e", "\u2028"} & set(text)
    assert text.count("<script") == text.count("</script>") == 3  # the data, the differences, the page's own


def test_many_long_answers_keep_the_page_small_and_the_parquet_whole(tmp_path: Path):
    import pyarrow.parquet

    folder = make_run(tmp_path / "runs/run", "run", [], final="w" * 12)
    long = [answer(i, f"{i} " + "word <b>&amp; " * 70_000 if i < 2 else f"{i} " + "x" * 3000) for i in range(700)]
    save_answers(folder, "w" * 12, long)
    page, *_, beside = write(build([tmp_path / "runs"]), tmp_path / "out")
    text = page.read_text()
    assert len(text.encode()) < MOST_BYTES
    shown = text.count("data-sample=")
    assert 0 < shown < 700
    assert f"{shown} of 700 prompts" in text
    assert "more characters" in text
    table = pyarrow.parquet.read_table(beside)
    assert beside.name == "leaderboard-samples.parquet"
    assert [row[0] for row in table.column("answers").to_pylist()] == [item.texts[0] for item in long]


def test_the_parquet_says_what_judges_said(tmp_path: Path):
    import pyarrow.parquet

    *_, beside = write(build([duel(tmp_path / "runs", [1.0, 0.0])]), tmp_path / "out")
    rows = pyarrow.parquet.read_table(beside).to_pylist()
    said = [json.loads(row["judgments"]) for row in rows if row["model_hash"] == "mine-weights"]
    assert [[line["preference"] for line in lines] for lines in said] == [[1.0, 1.0], [0.0, 0.0]]
    assert said[0][0]["reason"] == "The first answer is clearer."


def test_a_report_without_answers_leaves_no_older_ones_beside_it(tmp_path: Path):
    write(build([duel(tmp_path / "a", [1.0])]), tmp_path / "out")
    make_run(tmp_path / "b/run", "run", [score("final", 1, "arc", share(3, 9))])
    assert len(write(build([tmp_path / "b"]), tmp_path / "out")) == 4
    assert not (tmp_path / "out/leaderboard-samples.parquet").exists()


def test_the_json_has_everything_but_the_answers(tmp_path: Path):
    board = build([world(tmp_path, prompts=12, items=60)])
    data = json.loads(to_json(board), parse_constant=pytest.fail)
    assert "samples" not in data
    assert data["judgings"][0]["ranking"][0]["tier"] == 1
    assert data["judgings"][0]["audit"][0]["flip_rate"]["n"] == 48
    assert data["ledger"]
    assert {d["verdict"] for d in data["differences"]} <= {"better", "worse", "no verdict"}
    lines = list(csv.DictReader(io.StringIO(to_csv(board))))
    judged = [line for line in lines if line["metric"] == "win_rate"]
    assert {line["judge"] for line in judged} == {"helpful"}
    assert {line["verdict"] for line in lines if line["primary"] == "true"} > {"better", ""}


@pytest.mark.parametrize(
    ("entry", "opponents", "verdicts"),
    [("kind: pairwise, baseline: ../runs/sft", 1, True), ("kind: pairwise, pairs: all", 2, False),
     ("kind: rating", 0, True)],
)  # fmt: skip
def test_what_the_judge_itself_writes_is_read(tmp_path: Path, entry: str, opponents: int, verdicts: bool):
    rule = 'judge: rules-not-a-judge, prompts: chat, rule: "rules.py:count_good", leaderboard: true'
    judges = f"  - {{{rule}, {entry}}}\n"
    suite = write_suite(tmp_path / "suite", judges, prompts=24)
    runs = [tmp_path / "runs" / name for name in ("base", "sft", "dpo")]
    for skill, run in enumerate(runs):
        add_answers(run, suite, lambda prompt, skill=skill: "good " * (1 + skill + len(prompt.id) % 2) + f"{skill}")
    report = judge(runs, load_suite(suite))
    assert report.problems == []
    board = build([tmp_path / "runs"])
    (column,) = board.columns
    assert column.stamp == "rules, not a judge"
    assert (column.opponent is not None) == (opponents == 1)
    assert bool(board.differences) == verdicts
    # Win rates against all others are not compared, and one tier of them all would say that they are equal.
    assert any(cell.tier for row in board.rows for cell in row.cells.values()) == (opponents < 2)
    assert {difference.method for difference in board.differences} <= {"paired", "win rate"}
    assert len(board.judgings[0].matches) == {0: 0, 1: 2, 2: 3}[opponents]


def test_win_rates_against_all_on_other_prompts_share_no_column(tmp_path: Path):
    rule = 'judge: rules-not-a-judge, prompts: chat, rule: "rules.py:longer", leaderboard: true, pairs: all'
    for prompts in (4, 6):
        suite = load_suite(write_suite(tmp_path / f"suite{prompts}", f"  - {{{rule}}}\n", prompts=prompts))
        runs = [tmp_path / "runs" / f"{name}{prompts}" for name in "abc"]
        for length, run in enumerate(runs):
            add_answers(run, suite, lambda prompt, length=length: "x" * (1 + length))
        assert judge(runs, suite).problems == []
    board = build([tmp_path / "runs"])
    assert [sum(column.id in row.cells for row in board.rows) for column in board.columns] == [3, 3]
    assert len({column.name for column in board.columns}) == 2


def test_a_judge_of_many_players_does_not_fill_the_page(tmp_path: Path):
    players = [(f"{i}-weights", f"m{i}/final", answer(0, f"text {i}")) for i in range(24)]
    said = [line for i, mine in enumerate(players) for other in players[:i] for line in pair(mine, other, 1.0)]
    folder = make_run(tmp_path / "run", "run", [score("final", 1, "arc", share(1, 9))])
    save_judgments(folder, said)
    board = build([tmp_path])
    (judged,) = [section for section in sections(Speller(board)) if section.id == "judged"]
    assert "the win rates of 276 pairs of 24 players; the audit of 236 pairs" in judged.blocks[0].left_out
    assert judged.blocks[0].matrix is None
    assert len(json.loads(to_json(board))["judgings"][0]["matches"]) == 276


def test_players_that_never_met_have_no_ranking_and_the_report_says_why(tmp_path: Path):
    players = [(f"{i}-weights", f"m{i}/final", answer(0, f"text {i}")) for i in range(4)]
    folder = make_run(tmp_path / "run", "run", [])
    save_judgments(folder, [*pair(players[0], players[1], 1.0), *pair(players[2], players[3], 1.0)])
    board = build([tmp_path])
    assert board.judgings[0].ranking == ()
    assert "No ranking: the battles fall into groups that never met" in to_markdown(board)
