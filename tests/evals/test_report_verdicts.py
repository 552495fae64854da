"""Which rows the report calls better: paired where it can be, against a baseline that it names."""

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from posttrain.chat_templates.errors import InputError
from posttrain.evals.parity.compare import ParityCheck
from posttrain.evals.parity.record import Form, ParityReport, write_comparison
from posttrain.evals.records import parquet
from posttrain.evals.report import build
from posttrain.evals.report.board import BoardRow, BoardRun, Cell, Column, ColumnMetric, Figure, Headline, Leaderboard
from posttrain.evals.report.format import Speller
from posttrain.evals.report.html import to_html
from posttrain.evals.report.items import Items
from posttrain.evals.report.markdown import to_markdown
from posttrain.evals.report.sections import sections
from posttrain.evals.report.tables import to_csv, to_json
from posttrain.evals.report.verdicts import baseline_text, with_verdicts

from .judged_fixtures import harness_samples
from .report_fixtures import lineage, make_run, score, share

HARD = [int(i % 3 == 0) for i in range(200)]


def run_of_two(root: Path, *rights: list[int], samples: bool = True) -> Path:
    """A run whose checkpoints answered the same items right or wrong."""
    records = [
        score(f"checkpoint-{i}", i, "arc", share(sum(right), len(right)), weights_hash=f"{i}-weights")
        for i, right in enumerate(rights, start=1)
    ]
    folder = make_run(root / "run", "run", records)
    for record, right in zip(records, rights, strict=True):
        if samples:
            harness_samples(folder, record, right)
    return folder


def better_by(count: int) -> list[int]:
    """The same answers, with some more of them right."""
    wrong = [i for i, right in enumerate(HARD) if not right]
    return [1 if i in wrong[:count] else right for i, right in enumerate(HARD)]


def test_the_same_items_are_compared_one_by_one_which_finds_what_intervals_hide(tmp_path: Path):
    paired = build([run_of_two(tmp_path / "a", HARD, better_by(12))])
    alone = build([run_of_two(tmp_path / "b", HARD, better_by(12), samples=False)])
    (sharp,), (blunt,) = paired.differences, alone.differences
    assert (sharp.method, sharp.verdict, sharp.value) == ("paired", "better", pytest.approx(0.06))
    assert (blunt.method, blunt.verdict) == ("unpaired", "no verdict")
    assert blunt.smallest is not None
    assert blunt.smallest > 0.06


def test_the_order_of_items_in_a_file_does_not_matter(tmp_path: Path):
    run = run_of_two(tmp_path, HARD, better_by(12))
    (before,) = build([run]).differences
    path = next((run / "samples").glob("2-*.parquet"))
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    path.write_bytes(parquet(table.take(np.random.default_rng(0).permutation(len(table))).to_pydict()))
    assert build([run]).differences == (before,)


@pytest.mark.parametrize("damage", ["missing", "torn", "another scoring"])
def test_samples_that_do_not_make_up_the_figure_are_not_used(tmp_path: Path, damage: str):
    run = run_of_two(tmp_path, HARD, better_by(12))
    path = next((run / "samples").glob("2-*.parquet"))
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        harness_samples(run, json.loads((run / "scores.jsonl").read_text().splitlines()[1]), better_by(30))
    (difference,) = build([run]).differences
    assert difference.method == "unpaired"


def test_equal_answers_are_no_verdict(tmp_path: Path):
    (difference,) = build([run_of_two(tmp_path, HARD, HARD)]).differences
    assert (difference.verdict, difference.value) == ("no verdict", 0.0)
    assert difference.low is not None
    assert difference.low < 0


def test_the_baseline_is_what_the_lineage_came_from_and_the_page_says_so(tmp_path: Path):
    board = build([lineage(tmp_path)])
    row = board.row(board.baseline or "")
    assert (board.run_of(row).name, row.step) == ("base", 20)
    assert baseline_text(board) == "base step 20, final (the last model of the first run)"
    alone = build([tmp_path / "zz-base"])
    assert alone.row(alone.baseline or "").step == 10


@pytest.mark.parametrize(
    ("wanted", "run", "step"),
    [
        ("tuned", "tuned", 20),
        ("tuned/checkpoint-5", "tuned", 5),
        ("base/final", "base", 20),
        ("a/zz-base", "base", 20),
    ],
)
def test_a_baseline_can_be_chosen_by_its_name_its_folder_or_a_checkpoint(
    tmp_path: Path, wanted: str, run: str, step: int
):
    board = build([lineage(tmp_path)], baseline=wanted)
    row = board.row(board.baseline or "")
    assert (board.run_of(row).name, row.step) == (run, step)
    assert {difference.against for difference in board.differences} == {row.id}
    assert baseline_text(board).endswith("(as chosen)")


def test_a_baseline_that_is_not_there_is_one_clear_error(tmp_path: Path):
    with pytest.raises(InputError, match=r"no row is called so.*did you mean 'tuned'"):
        build([lineage(tmp_path)], baseline="tunde")


def test_lower_is_better_where_the_metric_says_so(tmp_path: Path):
    def bits(step: int, value: float) -> dict[str, Any]:
        metric = {"name": "bits_per_byte", "value": value, "stderr": 0.01, "n": 90, "higher_is_better": False}
        return score(f"checkpoint-{step}", step, "wiki", metric)

    board = build([make_run(tmp_path / "run", "run", [bits(1, 1.5), bits(2, 1.2), bits(3, 1.8)])])
    assert [(d.verdict, d.value < 0) for d in board.differences] == [("better", True), ("worse", False)]


def test_all_comparisons_with_the_baseline_are_one_family(tmp_path: Path):
    many = [better_by(7)] * 12
    alone = build([run_of_two(tmp_path / "a", HARD, many[0])]).differences
    together = build([run_of_two(tmp_path / "b", HARD, *many)]).differences
    assert alone[0].verdict == "better"
    assert {difference.verdict for difference in together} == {"no verdict"}
    # Twelve share one half of the 5%; the other half is for the pairs of those twelve, which the page can show too.
    assert together[0].p == pytest.approx(24 * (alone[0].p or 0))


def test_tiers_part_rows_only_where_they_can_be_told_apart(tmp_path: Path):
    board = build([run_of_two(tmp_path, HARD, better_by(2), better_by(60), better_by(62))])
    assert [cell.tier for row in board.rows for cell in row.cells.values()] == [2, 2, 1, 1]


def test_the_page_opens_with_the_best_row_and_how_it_stands_to_the_baseline(tmp_path: Path):
    board = build([run_of_two(tmp_path, HARD, better_by(60), better_by(58))])
    told = board.headline
    assert told is not None
    assert (told.row, told.level, told.against) == ("r2", ("r3",), "r1")
    assert (told.better, told.worse, told.undecided) == (("c1",), (), ())
    assert board.order == ("r2", "r3", "r1")
    for shown in (to_html(board), to_markdown(board)):
        text = re.sub(r"<[^>]+>|[*]", "", shown)
        assert "1 other row cannot be told from it there" in text
        assert re.search(r"Best on “arc”: .{1,9} step 2 with 63\.5% \(95% interval \d\d\.\d to \d\d\.\d\)", text)
        assert re.search(r"Against the baseline .{1,9} step 1: better on arc\.", text)


def test_a_baseline_that_is_best_itself_is_compared_with_the_second_best(tmp_path: Path):
    board = build([run_of_two(tmp_path, better_by(60), HARD, better_by(2))])
    assert board.headline == Headline("c1", "r1", (), "r3", better=("c1",))


def test_the_mean_of_a_group_leads_and_stands_before_its_tasks(tmp_path: Path):
    tasks = {"arc": share(3, 9), "piqa": share(4, 9)}
    records = [
        score(f"checkpoint-{step}", step, task, share(hits + step, 40))
        for step in (1, 2)
        for task, hits in (("other", 30), ("arc", 20), ("piqa", 9 - 2 * step))
    ]
    detail = {"kind": "group", "mean": "macro", "tasks": {task: figure["value"] for task, figure in tasks.items()}}
    records += [
        score(f"checkpoint-{step}", step, "core", share(20 - step, 40, "acc_macro"), detail=detail) for step in (1, 2)
    ]
    board = build([make_run(tmp_path / "run", "run", records)])
    assert [column.task for column in board.columns] == ["other", "core", "arc", "piqa"]
    assert board.columns[1].group == ("arc", "piqa")
    assert board.headline is not None
    assert (board.headline.column, board.headline.row) == ("c2", "r1")


@pytest.mark.parametrize("limits", [(None, None), (100, None), (100, 50)])
def test_a_mean_over_limited_tasks_is_no_full_result_and_leads_only_where_nothing_else_is(tmp_path: Path, limits: Any):
    tasks = dict(zip(("arc", "piqa"), limits, strict=True))
    detail = {"kind": "group", "mean": "macro", "tasks": dict.fromkeys(tasks, 0.5)}
    records = [score("final", 1, task, share(20, 40), limit=limit) for task, limit in tasks.items()]
    records += [
        score("final", 1, "wiki", share(30, 40)),
        # its own line has the suite's limit where all tasks are given that one, here more than the items that they have
        score("final", 1, "core", share(20, 40, "acc_macro"), detail=detail, limit=None if any(limits) else 100),
    ]
    board = build([make_run(tmp_path / "run", "run", records)])
    (core,) = (column for column in board.columns if column.group)
    assert core.name == ("core (limit 100)" if any(limits) else "core")
    assert (f"only the first items were scored: {core.name}" in to_markdown(board)) == any(limits)
    led = next(column.task for column in board.columns if board.headline and column.id == board.headline.column)
    assert (led == "core") == (not any(limits))


def test_the_mean_of_a_group_is_no_task_more(tmp_path: Path):
    tasks = ("arc", "piqa", "boolq", "wiki")
    for name, hits in (("base", 80), ("tuned", 150)):
        detail = {"kind": "group", "mean": "micro", "tasks": dict.fromkeys(tasks, hits / 200)}
        records = [score("final", 9, task, share(hits, 200), weights_hash=name) for task in tasks]
        records.append(score("final", 9, "core", share(4 * hits, 800, "acc_micro"), weights_hash=name, detail=detail))
        parent = {"name": "base", "weights_hash": "base"} if name == "tuned" else None
        make_run(tmp_path / name, name, records, parent=parent)
    page, markdown = to_html(build([tmp_path])), to_markdown(build([tmp_path]))
    assert "2 checkpoints of 2 runs on 4 tasks" in page
    assert "Best on “core”, the mean over all items of 4 tasks: " in markdown
    assert "better on core and 4 tasks." in markdown
    assert "<sub>4 gained</sub>" in markdown


def test_groups_of_a_group_are_no_tasks(tmp_path: Path):
    groups = {"mmlu": ("stem", "law"), "stem": ("physics", "algebra"), "law": ("torts",)}
    records = [score("final", 9, task, share(9, 20)) for task in ("physics", "algebra", "torts")]
    for name, of in groups.items():
        detail = {"kind": "group", "mean": "macro", "tasks": dict.fromkeys(of, 0.45)}
        records.append(score("final", 9, name, share(27, 60, "acc_macro"), detail=detail))
    assert "1 checkpoint of 1 run on 3 tasks" in to_html(build([make_run(tmp_path / "run", "run", records)]))


def test_a_task_asked_in_several_ways_is_called_so_and_no_mean(tmp_path: Path):
    detail = {"kind": "group", "mean": "robust", "tasks": {"arc-plain": 0.5, "arc-typing1": 0.4}}
    records = [score(f"checkpoint-{n}", n, "arc", share(9 + n, 40, "acc_in_all"), detail=detail) for n in (1, 2)]
    records += [score("checkpoint-1", 1, way, share(20, 40)) for way in detail["tasks"]]
    page = to_html(build([make_run(tmp_path / "run", "run", records)]))
    assert "Best on “arc”, right in all of 2 ways to ask: " in page
    assert "the mean of 2 tasks" not in page
    assert "2 checkpoints of 1 run on 1 task," in page


def test_two_rows_are_compared_by_what_differs_in_their_recipes(tmp_path: Path):
    for name, rate in (("slow", 1e-5), ("fast", 1e-4)):
        recipe = {"stage": "sft", "trainer": {"learning_rate": rate, "seed": 1}, "data": {"train": [{"path": name}]}}
        make_run(tmp_path / name, name, [score("final", 1, "arc", share(3, 9), weights_hash=name)], recipe=recipe)
    data = json.loads(to_html(build([tmp_path])).split('id="pairs">')[1].split("</script>")[0])
    fast, slow = data["recipes"]["run1"], data["recipes"]["run2"]
    assert fast == {"trainer.learning_rate": "0.0001", "data.train.0.path": '"fast"'}
    assert slow == {"trainer.learning_rate": "1e-05", "data.train.0.path": '"slow"'}


@pytest.mark.parametrize(("status", "said"), [("close", "same"), ("differs", "differs")])
def test_a_row_says_whether_its_forms_are_one_model(tmp_path: Path, status: Any, said: str):
    records = [
        score(name, step, "arc", share(3, 9), weights_hash=name)
        for step, name in ((1, "checkpoint-1"), (2, "checkpoint-2"), (3, "final"))
    ]
    run = make_run(tmp_path / "run", "run", records)
    assert "parity" not in to_markdown(build([run]))
    assert 'data-column="parity"' not in to_html(build([run]))
    checks = (
        ParityCheck("tokens", "same", "all alike"),
        ParityCheck("weights", status, "7 of 9", cause="a stale adapter"),
    )
    for place in ("adapter", "checkpoint-1", "checkpoint-9"):  # the last of which nothing has scored
        forms = Form("adapter on its base", place, None), Form("merged model", f"{place}/merged", None)
        write_comparison(run, ParityReport(*forms, checks, None, "exact", versions={}))
    board = build([run])
    assert {row.label: row.one_model for row in board.rows} == {
        "step 1": said,
        "step 2": "not checked",
        "step 3, final": said,
    }
    assert sum(len(row.parity) for row in board.rows) == 2
    lines = [line for line in to_markdown(board).splitlines() if line.startswith("| run step ")]
    assert [line.removesuffix(" |").rpartition("| ")[2] for line in lines[:3]].count(said) == 2
    page = to_html(board)
    assert page.count(f'data-parity="{said}"') == 2
    assert page.count(f'title="adapter on its base against merged model: {said}">{said}</td>') == 2
    assert page.count('title="no other form of it was compared">not checked</td>') == 1


def test_what_was_compared_with_what_stands_in_every_file(tmp_path: Path):
    for place, name in enumerate(("checked", "bare")):
        records = [score("final", 1, "arc", share(3 + place, 9), weights_hash=name)]
        make_run(tmp_path / name, name, records)
    other = {"merged model": ("merged", "same"), "server": ("http://a/v1, m", "differs"), "Ollama": ("gone", "same")}
    for against, (place, status) in other.items():
        stale = "0" * 64 if against == "Ollama" else None  # no such folder is there any more
        checks = (
            ParityCheck("weights", "not compared", ""),
            ParityCheck("greedy answers", status, "parted", cause="another EOS"),
        )
        forms = Form("adapter on its base", ".", None), Form(against, place, stale)
        write_comparison(
            tmp_path / "checked", ParityReport(*forms, checks, None, "exact", created="2026-11-29", versions={})
        )
    board = build([tmp_path])
    (row,) = [row for row in board.rows if row.parity]
    assert [one.verdict for one in row.parity] == ["same", "differs", "out of date"]
    assert row.parity[0].hidden == ("weights",)
    rows = {line["run"]: line["parity"] for line in csv.DictReader(io.StringIO(to_csv(board)))}
    assert rows == {"checked": "merged model: same; server: differs; Ollama: out of date", "bare": "not checked"}
    found = json.loads(to_json(board))["rows"]
    assert sorted(len(row["parity"]) for row in found) == [0, 3]
    for shown in (to_html(board), to_markdown(board)):
        assert all(word in shown for word in ("not checked", "differs", "out of date", "another EOS", "server"))


def test_a_column_that_is_the_same_in_every_line_is_said_once(tmp_path: Path):
    tasks = ("arc", "piqa", "boolq")
    rights = (HARD, better_by(20), better_by(60))
    records = [
        score(f"checkpoint-{i}", i, task, share(sum(right), 200), weights_hash=f"{i}-weights")
        for i, right in enumerate(rights, start=1)
        for task in tasks
    ]
    run = make_run(tmp_path / "run", "run", records)
    for place, record in enumerate(records):
        harness_samples(run, record, rights[place // 3])
    board = build([run])
    (table,) = next(section for section in sections(Speller(board)) if section.id == "best").blocks
    assert "out of" not in table.heads
    assert "In every line: out of: 3" in table.caption
    assert {len(line.cells) for line in table.lines} == {len(table.heads)} == {len(table.markdown)}
    assert "In every line: out of: 3" in to_markdown(board)


def test_the_ledger_says_what_each_stage_gained_and_lost(tmp_path: Path):
    rights = {"arc": (HARD, better_by(50)), "piqa": (better_by(50), HARD), "boolq": (HARD, HARD)}
    parent = {"name": "base", "weights_hash": "1-base"}
    for name, place, origin in (("base", 0, None), ("tuned", 1, parent)):
        records = [
            score("final", 9, task, share(sum(right[place]), 200), weights_hash=f"{place + 1}-{name}")
            for task, right in rights.items()
        ]
        folder = make_run(tmp_path / name, name, records, parent=origin, stage="sft" if place else "pretrain")
        for record, right in zip(records, rights.values(), strict=True):
            harness_samples(folder, record, right[place])
    board = build([tmp_path])
    (entry,) = board.ledger
    assert [d.verdict for d in entry.differences] == ["better", "worse", "no verdict"]
    (line,) = [line for line in to_markdown(board).splitlines() if line.startswith("| sft<br>")]
    assert ["gained" in cell or "lost" in cell for cell in line.split("|")[4:7]] == [True, True, False]


@pytest.mark.parametrize(
    ("scored", "step", "origin", "entries"),
    [
        ("last", 800, {"path": "runs/sft/checkpoint-400", "weights_hash": "at 400"}, []),  # which nothing has scored
        ("last", 800, {"path": "runs/sft", "weights_hash": "last"}, ["sft step 800, final"]),
        ("model", None, {"path": "model", "weights_hash": "model"}, ["sft final"]),  # of no run, so without a step
    ],
)
def test_the_ledger_compares_a_stage_with_the_very_model_that_it_started_from(
    tmp_path: Path, scored: str, step: int | None, origin: dict[str, Any], entries: list[str]
):
    make_run(tmp_path / "sft", "sft", [score("final", step, "arc", share(60, 200), weights_hash=scored)])
    tuned = score("final", 50, "arc", share(140, 200), weights_hash="tuned")
    make_run(tmp_path / "dpo", "dpo", [tuned], stage="dpo", parent={"name": "sft", **origin})
    board = build([tmp_path])
    assert [board.label(board.row(entry.before)) for entry in board.ledger] == entries


def test_any_two_rows_can_be_compared_until_they_are_too_many(tmp_path: Path, monkeypatch):
    run = run_of_two(tmp_path, HARD, better_by(10), better_by(60))
    assert [(d.row, d.against) for d in build([run]).pairs] == [("r3", "r2"), ("r3", "r1"), ("r2", "r1")]
    monkeypatch.setattr("posttrain.evals.report.verdicts.MOST_PAIRS", 2)
    board = build([run])
    assert board.pairs == ()
    data = to_html(board).split('id="pairs">')[1].split("</script>")[0]
    assert json.loads(data)["told"] == "baseline"
    assert set(json.loads(data)["pairs"]) == {"r2 r1", "r3 r1"}


def save(folder: Path, record: dict[str, Any], table: dict[str, Any]) -> None:
    path = folder / "samples" / f"{record['weights_hash'][:12]}-{record['task']}-{record['task_hash'][:8]}.parquet"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(parquet(table))


def two(root: Path, name: str, values: list[float], tables: list[dict[str, Any]], **fields: Any) -> Any:
    metrics = [{"name": name, "value": v, "stderr": 0.05, "n": 40, "higher_is_better": True} | fields for v in values]
    records = [
        score(f"checkpoint-{i}", i, "task", metric, weights_hash=f"{i}-weights")
        for i, metric in enumerate(metrics, start=1)
    ]
    folder = make_run(root / "run", "run", records)
    for record, table in zip(records, tables, strict=True):
        save(folder, record, table)
    (difference,) = build([folder]).differences
    return difference


def test_documents_of_a_text_are_compared_pairwise(tmp_path: Path):
    rng = np.random.default_rng(0)
    size, base = rng.uniform(50, 500, 40), rng.uniform(0.6, 1.2, 40)
    nll = [size * base * math.log(2), size * (base - 0.01 - rng.uniform(0, 0.004, 40)) * math.log(2)]
    common = {"document": list(range(40)), "first_token": [1] * 40, "bytes": size.tolist(), "tokens": [9] * 40}
    values = [float(n.sum() / math.log(2) / size.sum()) for n in nll]
    tables = [{**common, "nll": n.tolist()} for n in nll]
    found = two(tmp_path, "bits_per_byte", values, tables, higher_is_better=False)
    assert (found.method, found.verdict, found.n) == ("paired", "better", 40)
    assert found.value == pytest.approx(values[1] - values[0])


def test_windows_are_compared_pairwise_only_where_a_tokenizer_cuts_the_text_as_the_other_does(tmp_path: Path):
    def table(tokens: int, factor: float) -> dict[str, Any]:
        """One document of 40,000 bytes in windows of 100 tokens, whose last tenth is hard."""
        first = np.arange(1, tokens, 100)
        nats = np.where(first / tokens > 0.9, 2.0, 0.7) * factor * 4e6 / tokens * (1 + np.sin(first) / 100)
        columns = {"document": 0 * first, "first_token": first, "tokens": 0 * first + 100}
        return {**columns, "bytes": 0 * first + 4e6 / tokens, "nll": nats}

    def compared(root: Path, *tables: dict[str, Any]) -> tuple[Any, float]:
        values = [float(t["nll"].sum() / math.log(2) / t["bytes"].sum()) for t in tables]
        return two(root, "bits_per_byte", values, list(tables), higher_is_better=False), values[1] - values[0]

    found, difference = compared(tmp_path / "same", table(10_000, 1), table(10_000, 1.03))
    assert (found.method, found.verdict, found.value) == ("paired", "worse", pytest.approx(difference))
    # the shorter list of windows begins as the longer does, and stands for other text at every place
    found, difference = compared(tmp_path / "other", table(10_000, 1), table(9_200, 1.03))
    assert (found.method, found.value) == ("unpaired", pytest.approx(difference))


def test_pairs_of_one_prompt_are_no_independent_items(tmp_path: Path):
    # Ten prompts stand four times each: the second model is right on two prompts more, not on eight items more.
    prompts = [f"p{i // 4}" for i in range(40)]
    margins = [[1.0 if i < 20 else -1.0 for i in range(40)], [1.0 if i < 28 else -1.0 for i in range(40)]]
    tables = [
        {"prompt": prompts, "chosen": [f"c{i}" for i in range(40)], "rejected": ["r"] * 40, "margin": margin}
        for margin in margins
    ]
    found = two(tmp_path, "accuracy", [0.5, 0.7], tables)
    assert (found.method, found.verdict) == ("paired", "no verdict")


def test_labels_are_compared_row_by_row(tmp_path: Path):
    texts, truth = [f"text {i}" for i in range(40)], ["a", "b"] * 20
    guesses = [["a"] * 40, truth]
    tables = [{"text": texts, "label": truth, "prediction": guess, "probabilities": [[0.5]] * 40} for guess in guesses]
    found = two(tmp_path, "accuracy", [0.5, 1.0], tables)
    assert (found.method, found.verdict, found.value) == ("paired", "better", 0.5)


def test_the_items_on_which_rows_differ_can_be_looked_at(tmp_path: Path):
    board = build([run_of_two(tmp_path, HARD, better_by(3))])
    assert [sample.prompt.prompt_id for sample in board.items] == ["1", "2", "4"]
    first = board.items[0]
    assert (first.prompt.turns, first.prompt.references) == (("Question 1?",), ("yes",))
    assert [(given.answer.texts, given.mark) for given in first.answers] == [(("no",), "acc 0"), (("yes",), "acc 1")]


def test_items_of_a_file_with_other_columns_are_left_out(tmp_path: Path):
    run = run_of_two(tmp_path, HARD, better_by(3))
    for path in (run / "samples").iterdir():
        import pyarrow.parquet

        path.write_bytes(parquet(pyarrow.parquet.read_table(path).drop_columns(["options"]).to_pydict()))
    board = build([run])
    assert board.items == ()
    assert board.differences[0].method == "paired"


def test_the_best_of_many_is_measured_on_items_that_did_not_choose_it(tmp_path: Path):
    rng = np.random.default_rng(1)
    equals = [(rng.random(400) < 0.5).astype(int).tolist() for _ in range(20)]
    board = build([run_of_two(tmp_path, *equals)])
    (pick,) = board.picks
    assert (pick.candidates, pick.items) == (20, 400)
    assert pick.chosen > 0.53  # luck chose it
    assert pick.value < pick.chosen
    assert pick.low is not None
    assert pick.high is not None
    assert pick.low < 0.5 < pick.high  # and does not last
    assert build([run_of_two(tmp_path / "two", HARD, better_by(5))]).picks == ()


def test_a_clean_column_counts_in_the_first_sentence_only_where_it_says_something_else():
    columns = (("c1", "arc", False), ("c2", "arc", True), ("c3", "piqa", False), ("c4", "piqa", True))
    metrics = (ColumnMetric("acc", True, "%"),)
    named = [Column(name, task, "clean" if clean else "", metrics, clean=clean) for name, task, clean in columns]
    values = {
        "r1": dict.fromkeys(("c1", "c2", "c3", "c4"), HARD),
        "r2": dict.fromkeys(("c1", "c2", "c3"), better_by(60)),
    }
    values["r2"]["c4"] = HARD
    rows = []
    for name, mine in values.items():
        figures = {key: Figure("acc", sum(right) / len(right), 0.03, len(right), True) for key, right in mine.items()}
        cells = {key: Cell(key, (figure,)) for key, figure in figures.items()}
        rows.append(BoardRow(name, "run1", (), int(name[1]), int(name[1]), None, name, cells, (), name))
    bare = Leaderboard("clean", (BoardRun("run1", "run", "run"),), tuple(rows), tuple(named), baseline="r1")

    def items(row: BoardRow, column: Column) -> Items:
        right = values[row.id][column.id]
        return Items(tuple(map(str, range(len(right)))), np.array(right, dtype=float))

    told = with_verdicts(bare, items, {}).headline
    assert told is not None
    assert (told.better, told.undecided) == (("c1", "c3"), ("c4",))


def test_the_letters_that_all_figures_of_a_row_share_stand_at_its_name_alone(tmp_path: Path):
    for name, template in (("a", None), ("b", "f" * 64)):
        tasks = ("arc", "piqa") if name == "a" else ("arc", "piqa", "wiki")
        records = [
            score("final", 1, task, share(3, 9), weights_hash=name, template_fingerprint=template) for task in tasks
        ]
        make_run(tmp_path / name, name, records)
    page = to_html(build([tmp_path]))
    assert re.findall(r"<sup>(\w)</sup>", page.split("</table>")[0]) == ["a", "b"]


def test_what_scores_decided_while_a_run_trained_is_a_badge(tmp_path: Path):
    records = [score(f"checkpoint-{step}", step, "arc", share(step, 9), weights_hash=str(step)) for step in (3, 5)]
    run = make_run(tmp_path / "run", "run", records)
    best = {"checkpoint": "checkpoint-3", "column": "arc", "candidates": 2}
    record = json.loads((run / "run.json").read_text()) | {"best": best, "early_stop": {"step": 5, "of": 20}}
    (run / "run.json").write_text(json.dumps(record))
    board = build([run])
    assert [[badge.text for badge in row.badges] for row in board.rows] == [
        ["kept as the best"],
        ["training ended here"],
    ]
    assert "the best of 2 checkpoints in arc" in to_html(board)


def test_no_interval_of_a_difference_leaves_the_scale(tmp_path: Path):
    records = [score(f"checkpoint-{i}", i, "arc", share(i, 3), weights_hash=str(i)) for i in (1, 2)]
    (found,) = build([make_run(tmp_path / "run", "run", records)]).differences
    assert (found.method, found.low, found.high) == ("unpaired", -1.0, 1.0)


def test_figures_that_lie_on_no_0_to_1_scale_keep_the_whole_intervals_of_their_differences(tmp_path: Path):
    rng = np.random.default_rng(0)
    marks = {step: rng.integers(low, low + 4, 60).tolist() for step, low in ((1, 1), (2, 3), (3, 7))}
    records = []
    for step, mine in marks.items():
        error = float(np.std(mine, ddof=1)) / math.sqrt(60)
        figure = {"name": "accuracy", "value": sum(mine) / 60, "stderr": error, "n": 60, "higher_is_better": True}
        records.append(score(f"checkpoint-{step}", step, "own", figure, weights_hash=str(step)))
    folder = make_run(tmp_path / "run", "run", records)
    bare = build([folder])
    for record, mine in zip(records, marks.values(), strict=True):
        harness_samples(folder, record, mine)
    whole = build([folder])
    for found in (*bare.differences, *whole.differences, *whole.picks):
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.value < found.high
    assert {found.method for found in (*bare.differences, *whole.differences)} == {"unpaired", "paired"}
    assert len(whole.picks) == 1
    for line in csv.DictReader(io.StringIO(to_csv(bare))):
        assert not line["difference"] or float(line["difference_high"]) > 1
