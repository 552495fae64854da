"""One page, one verdict: what a leaderboard says of two rows, it says everywhere, and seldom by chance."""

import re
from pathlib import Path

import numpy as np
import pytest
from posttrain.evals.report import build
from posttrain.evals.report.html import to_html
from posttrain.evals.report.markdown import to_markdown

from .judged_fixtures import harness_samples, world
from .null_boards import all_claims, board, page_claims
from .report_fixtures import make_run, score, share

SHAPES = {
    "two rows": (1, 2, 1),
    "two runs, three tasks": (2, 1, 3),
    "five rows of one run, with a judge": (5, 1, 2, "one"),
    "ten rows of two runs": (2, 5, 2),
    "four models before a judge, no baseline": (4, 1, 0, "all"),
    "two models before a judge, no baseline": (2, 1, 0, "one"),
    "three runs, two tasks and their mean, each rephrased and clean too": (3, 2, 2, "", 0.0, True),
}


@pytest.fixture(autouse=True)
def _verdicts_alone(monkeypatch):
    """Leaves out the refits behind intervals at equal length, and a page's data for programs: they bear no verdict."""
    monkeypatch.setattr("posttrain.evals.report.judged._REFITS", 0)
    monkeypatch.setattr("posttrain.evals.report.html.to_value", lambda board: {})


def boards_with_a_claim(shape: tuple, boards: int, seed: int) -> int:
    rng = np.random.default_rng(seed)
    return sum(bool(page_claims(to_html(board(rng, *shape)))) for _ in range(boards))


def test_of_100_pages_of_equal_models_few_say_that_one_is_better():
    names = ("two rows", "ten rows of two runs", "three runs, two tasks and their mean, each rephrased and clean too")
    shapes = [SHAPES[name] for name in names]
    found = sum(boards_with_a_claim(shape, count, 5) for shape, count in zip(shapes, (40, 40, 20), strict=True))
    assert found <= 9  # 95% of samples of 100 hold at most 9 where 5% is the truth


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_of_1000_pages_of_equal_models_at_most_5_percent_say_that_one_is_better(shape: tuple):
    # Wherever it may stand: the first sentence, table, ledger, any two rows, tiers, judges' matches and ranking.
    assert boards_with_a_claim(shape, 1000, 1) <= 62  # 95% of samples of 1,000 hold at most 62 where 5% is the truth


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "lead", "found"), [((2, 1, 3), 0.7, 0.95), ((2, 5, 2), 0.75, 0.95)])
def test_a_true_difference_is_still_found(shape: tuple, lead: float, found: float):
    rng = np.random.default_rng(2)
    pages = [page_claims(to_html(board(rng, *shape, lead=lead))) for _ in range(200)]
    assert sum("better than" in page for page in pages) >= found * 200


def test_every_file_speaks_of_a_planted_difference_and_none_of_another():
    claims = all_claims(board(np.random.default_rng(0), 3, 1, 2, "one", lead=2.5))
    assert claims["md"] == {"▲", "gained", "tier 2"}
    assert claims["csv"] == claims["json"] == {"better", "tier 2"}
    assert {"better than", "gained", "won", "tier 2", "pair better"} <= claims["html"]
    assert not {"worse than", "pair worse"} & claims["html"]


def test_the_table_the_ledger_the_tiers_and_any_two_rows_say_the_same(tmp_path: Path):
    built = build([world(tmp_path)])
    turn = {"better": "worse", "worse": "better", "no verdict": "no verdict"}
    found: dict[tuple[str, str, str], set[str]] = {}
    for one in [*built.differences, *built.pairs, *(d for entry in built.ledger for d in entry.differences)]:
        found.setdefault((one.column, one.row, one.against), set()).add(one.verdict)
        found.setdefault((one.column, one.against, one.row), set()).add(turn[one.verdict])
    assert all(len(said) == 1 for said in found.values())
    assert {"better", "worse", "no verdict"} == set.union(*found.values())
    for column in ("c1", "c2", "c3"):
        ranked = sorted(built.rows, key=lambda row: -(row.cells[column].figures[0].value or 0))
        head, tiers = ranked[0], [row.cells[column].tier or 0 for row in ranked]
        for before, tier, row in zip(tiers, tiers[1:], ranked[1:], strict=False):
            worse = found[column, row.id, head.id] == {"worse"}
            assert (tier > before) == worse
            head = row if worse else head


def test_a_difference_that_the_whole_family_does_not_support_is_nowhere_on_the_page(tmp_path: Path):
    """A stage whose one difference would pass alone (p .01), among 13 checkpoints."""
    hard = [int(i % 3 == 0) for i in range(200)]
    wrong = [i for i, right in enumerate(hard) if not right]
    better = [1 if i in wrong[:7] else right for i, right in enumerate(hard)]
    for name, rights in (("base", [hard]), ("sft", [better] * 12)):
        records = [
            score(f"checkpoint-{i}", i, "arc", share(sum(right), 200), weights_hash=f"{name}-{i}-weights")
            for i, right in enumerate(rights, start=1)
        ]
        origin = {"name": "base", "weights_hash": "base-1-weights", "recipe_hash": "recipe-base"}
        folder = make_run(tmp_path / name, name, records, parent=origin if name == "sft" else None)
        for record, right in zip(records, rights, strict=True):
            harness_samples(folder, record, right)
    built = build([tmp_path])
    assert built.ledger
    assert all_claims(built) == {"html": set(), "md": set(), "csv": set(), "json": set()}


def test_a_judges_match_is_the_same_question_as_its_column(tmp_path: Path):
    built = build([world(tmp_path)])
    judging = next(item for item in built.judgings if item.judge == "helpful")
    rows = {player.id: player.row for player in judging.players}
    column = next(column for column in built.columns if column.opponent)
    table = {(d.row, d.against): d for d in built.pairs if d.column == column.id and d.method == "win rate"}
    shared = [m for m in judging.matches if (rows[m.candidate], rows[m.opponent]) in table]
    turned = [m for m in judging.matches if (rows[m.opponent], rows[m.candidate]) in table]
    assert len(shared) + len(turned) == 3
    for match in shared:
        other = table[rows[match.candidate] or "", rows[match.opponent] or ""]
        assert (match.verdict, match.p) == (other.verdict, pytest.approx(other.p))
    for match in turned:
        other = table[rows[match.opponent] or "", rows[match.candidate] or ""]
        assert match.p == pytest.approx(other.p)
        assert {match.verdict, other.verdict} in ({"better", "worse"}, {"no verdict"})


def test_a_judges_tiers_do_not_contradict_its_matches(tmp_path: Path):
    judging = next(item for item in build([world(tmp_path)]).judgings if item.judge == "helpful")
    lost = {(m.candidate, m.opponent): m.verdict for m in judging.matches if m.verdict != "no verdict"}
    assert lost
    tier = {row.player: row.tier for row in judging.ranking}
    assert sorted(tier.values()) == [1, 2, 2, 3]
    for (candidate, opponent), verdict in lost.items():
        assert (tier[candidate] < tier[opponent]) == (verdict == "better")


def test_the_page_says_how_many_comparisons_its_verdicts_allow_for(tmp_path: Path):
    built = build([world(tmp_path)])
    text = re.sub(r"<[^>]+>", "", to_html(built))
    assert f"The page's {built.compared:,} comparisons are judged together" in text
    assert f"one family of all {built.compared:,} comparisons" in to_markdown(built)
    assert "nothing here is corrected" not in text
