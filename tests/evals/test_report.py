import csv
import io
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from posttrain.chat_templates.errors import InputError
from posttrain.evals.model_card import why_not, write_card
from posttrain.evals.records import Metric
from posttrain.evals.report import build, write
from posttrain.evals.report.board import last_row
from posttrain.evals.report.html import to_html
from posttrain.evals.report.markdown import to_markdown
from posttrain.evals.report.tables import to_csv, to_json
from posttrain.evals.stats.intervals import spelt

from .golden_page import golden_world
from .report_fixtures import EVIL, board_of, lineage, make_run, score, share


def notices(board) -> str:
    return "\n".join(notice.text for notice in board.notices)


def cell_of(board, names, task):
    row = next(row for row in board.rows if names in row.names)
    column = next(column for column in board.columns if column.task == task)
    return row.cells[column.id]


def test_parents_come_before_children_then_steps(tmp_path: Path):
    board = build([lineage(tmp_path)])
    shown = [(board.run_of(row).name, row.step, row.position) for row in board.rows]
    assert shown == [("base", 10, 10), ("base", 20, 20), ("tuned", 5, 25), ("tuned", 20, 40)]
    assert board.rows[2].parent == "base step 20, final"


def test_the_same_weights_under_two_names_are_one_row_with_both(tmp_path: Path):
    board = build([lineage(tmp_path)])
    assert [row.names for row in board.rows if row.step == 20] == [("checkpoint-20", "final")] * 2


def test_weights_that_training_left_unchanged_are_flagged(tmp_path: Path):
    same = [score(f"checkpoint-{s}", s, "arc", share(1, 9), weights_hash="w", task_hash=str(s)) for s in (0, 50)]
    make_run(tmp_path / "run", "run", same)
    (row,) = build([tmp_path]).rows
    assert "did not change" in row.flags[0]


def test_intervals_follow_the_kind_of_metric(tmp_path: Path):
    metrics = [
        share(3, 40, "exact_match"),
        {"name": "f1", "value": 0.4, "stderr": 0.05, "n": 40, "higher_is_better": True},
        {"name": "perplexity", "value": 12.0, "stderr": None, "n": 40, "higher_is_better": False},
    ]
    make_run(tmp_path / "run", "run", [score("final", 9, "qa", *metrics)])
    found = [figure.interval for figure in cell_of(build([tmp_path]), "final", "qa").figures]
    assert [interval.method if interval else None for interval in found] == ["wilson", "bounded", None]


def test_best_and_what_its_interval_reaches_are_marked_in_the_metric_s_direction(tmp_path: Path):
    def row(step, hits, bits):
        loss = {"name": "bits_per_byte", "value": bits, "stderr": 0.01, "n": 9, "higher_is_better": False}
        name = f"checkpoint-{step}"
        return [score(name, step, "arc", share(hits, 100)), score(name, step, "wiki", loss)]

    board = board_of(tmp_path, *row(1, 20, 0.9), *row(2, 60, 1.5), *row(3, 62, 0.91))
    standings = {
        task: [cell_of(board, f"checkpoint-{step}", task).figures[0].standing for step in (1, 2, 3)]
        for task in ("arc", "wiki")
    }
    assert standings == {"arc": [None, "overlaps", "best"], "wiki": ["best", None, "overlaps"]}


@pytest.mark.parametrize("field", [{"task_hash": "other"}, {"num_fewshot": 5}, {"limit": 10}])
def test_different_measurements_of_a_task_never_share_a_column(tmp_path: Path, field):
    scores = [score("checkpoint-1", 1, "arc", share(10, 20)), score("checkpoint-2", 2, "arc", share(19, 20), **field)]
    board = board_of(tmp_path, *scores)
    assert [column.task for column in board.columns] == ["arc", "arc"]
    assert board.columns[0].variant != board.columns[1].variant
    assert {f.standing for row in board.rows for cell in row.cells.values() for f in cell.figures} == {None}
    assert "not to be compared across: arc" in notices(board)


@pytest.mark.parametrize("field", [{"template_fingerprint": "other"}, {"suite_version": "v2"}])
def test_differences_within_a_column_are_marked_and_named(tmp_path: Path, field):
    scores = [score("checkpoint-1", 1, "arc", share(10, 20)), score("checkpoint-2", 2, "arc", share(19, 20), **field)]
    board = board_of(tmp_path, *scores)
    marks = [cell_of(board, f"checkpoint-{step}", "arc").marks for step in (1, 2)]
    assert marks == [("a",), ("b",)]
    assert "arc" in notices(board)
    assert "rows differ in" in notices(board)


def test_one_model_under_two_templates_gets_two_columns(tmp_path: Path):
    scores = [score("final", 1, "arc", share(h, 20), template_fingerprint=t) for h, t in ((4, None), (12, "chatml"))]
    board = board_of(tmp_path, *scores)
    assert [column.variant for column in board.columns] == ["no template", "template chatml"]
    assert len(board.rows[0].cells) == 2


def test_limited_scores_are_called_no_results_everywhere(tmp_path: Path):
    make_run(tmp_path / "run", "run", [score("final", 1, "arc", share(4, 20), limit=20)])
    page, markdown, table, _ = (path.read_text() for path in write(build([tmp_path]), tmp_path / "out"))
    assert "LIMITED, not a full result" in page
    assert "LIMITED, so not full results" in markdown
    assert next(csv.DictReader(io.StringIO(table)))["limit"] == "20.0"


def test_a_limit_that_left_no_item_out_of_an_older_line_sets_it_apart_from_no_newer_one(tmp_path: Path):
    detail = {"kind": "lm-eval", "changes": []}
    older = {"limit": 100, "detail": {"kind": "lm-eval", "changes": ["a limit"], "too_long": 2}}
    scores = [score("checkpoint-1", 1, "arc", share(10, 38), **older)]
    scores += [score("checkpoint-2", 2, "arc", share(30, 38), detail=detail)]
    scores += [score("final", 3, "piqa", share(10, 98), **older)]
    board = board_of(tmp_path, *scores)
    assert [column.name for column in board.columns] == ["arc", "piqa (limit 100)"]
    assert [difference.column for difference in board.differences] == [board.columns[0].id]
    assert "not to be compared across" not in notices(board)
    cells = [cell_of(board, name, task) for name, task in (("checkpoint-1", "arc"), ("final", "piqa"))]
    assert ["a limit" in (why_not(cell) or "") for cell in cells] == [False, True]


def test_rescored_records_are_all_kept(tmp_path: Path):
    scores = [score("final", 1, "arc", share(h, 20), created=f"2026-01-0{h}") for h in (5, 4)]
    make_run(tmp_path / "run", "run", scores)
    cell = cell_of(build([tmp_path]), "final", "arc")
    assert cell.figures[0].value == 0.25
    assert cell.earlier[0]["metrics"][0]["value"] == 0.2


def test_same_folders_give_the_same_bytes_wherever_they_lie(tmp_path: Path):
    outputs = []
    for place in ("one", "two/deeper"):
        paths = write(build([golden_world(tmp_path / place / "runs")]), tmp_path / place / "out")
        outputs.append({path.name: path.read_bytes() for path in paths})
        assert not any(str(tmp_path).encode() in content for content in outputs[-1].values())
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 5


def test_csv_is_tidy_and_agrees_with_the_json(tmp_path: Path):
    board = build([lineage(tmp_path)])
    lines = list(csv.DictReader(io.StringIO(to_csv(board))))
    assert len(lines) == 4 * 2 + 2 * 2 + 2  # base: 2 tasks of 2 metrics; tuned: arc of 2, wiki of 1
    data = json.loads(to_json(board))
    assert data["schema"] == 1
    values = [f["value"] for row in data["rows"] for cell in row["cells"].values() for f in cell["figures"]]
    assert sorted(float(line["value"]) for line in lines) == sorted(values)
    assert {line["seed"] for line in lines} == {"17"}


def test_paths_given_twice_count_once(tmp_path: Path):
    root = lineage(tmp_path)
    assert len(build([root, root / "zz-base", root]).runs) == 2


def test_a_place_without_runs_is_one_clear_error(tmp_path: Path):
    with pytest.raises(InputError, match="no run here"):
        build([tmp_path])
    with pytest.raises(InputError, match="no such file or folder"):
        build([tmp_path / "missing"])


def test_runs_that_name_each_other_as_parents_are_both_shown(tmp_path: Path):
    for name, parent in (("a", "b"), ("b", "a")):
        make_run(tmp_path / name, name, [score("final", 1, "arc", share(1, 9))], parent={"name": parent})
    assert {run.name for run in build([tmp_path]).runs} == {"a", "b"}


def test_two_runs_of_one_name_are_told_apart_and_none_is_lost(tmp_path: Path):
    for folder in ("x/sft", "y/sft"):
        make_run(tmp_path / folder, "sft", [score("final", 1, "arc", share(3, 9), weights_hash=folder)])
    board = build([tmp_path])
    assert [run.name for run in board.runs] == ["sft (x/sft)", "sft (y/sft)"]
    assert "several runs are named sft" in notices(board)


def test_an_interval_is_the_same_in_the_terminal_and_in_every_file(tmp_path: Path):
    """None right of twenty; LAMBADA's perplexity; two equal marks, as an older version recorded them."""
    marks = {"kind": "judged", "judge": "marks", "scale": [1, 10], "bounds": {"low": 7.0, "high": 7.0}}
    cases = [
        (Metric("acc", 0.0, 0.0, 20, True), {}, "acc 0 [0, 0.1611]", "0.0 to 16.1"),
        (Metric("perplexity", 38.0, 27.0, 100, False), {}, "perplexity 38 [9.279, 155.6]", "9 to 156"),
        (Metric("rating", 7.0, 0.0, 2, True, 7.0, 7.0), marks, "rating 7 [2.342, 9.329]", "2.3 to 9.3"),
    ]
    records = []
    for place, (metric, detail, _, _) in enumerate(cases):
        judge = "0123456789" if detail else None
        records.append(score("final", 1, f"t{place}", asdict(metric), detail=detail, judge_version=judge))
    board = build([make_run(tmp_path / "run", "run", records)])
    table = list(csv.DictReader(io.StringIO(to_csv(board))))
    figures = [cell.figures[0] for cell in board.rows[0].cells.values()]
    texts = [to_markdown(board), to_html(board).replace("–", " to "), write_card(tmp_path / "run")]
    for (metric, detail, terminal, shown), row, figure in zip(cases, table, figures, strict=True):
        assert spelt(metric, detail) == terminal
        assert figure.interval is not None
        ends = (figure.interval.low, figure.interval.high)
        assert terminal.endswith("[{:.4g}, {:.4g}]".format(*ends))
        assert (float(row["interval_low"]), float(row["interval_high"])) == ends
        assert all(shown in text for text in texts)


@pytest.mark.parametrize(
    ("runs", "shown"),
    [
        ({"lr/a": "sft", "lr/b": "sft"}, ["sft (a)", "sft (b)"]),  # a sweep that changes the output folder
        ({"one/model": "model", "two/model": "model"}, ["model (one/model)", "model (two/model)"]),
        ({"m": "model", "a/m": "model"}, ["model (a/m)", "model (m)"]),
        ({"x": "sft", "y": "sft", "z": "sft (x)"}, None),
        ({"x": "a" * 70 + "1", "y": "a" * 70 + "2"}, None),  # alike as far as they are shown
        ({"p" * 40 + "/x/" + "q" * 40: "sft", "r" * 40 + "/x/" + "q" * 40: "sft"}, None),
    ],
)
def test_no_two_runs_share_a_name_where_it_is_shown(tmp_path: Path, runs: dict[str, str], shown: list[str] | None):
    for place, (folder, name) in enumerate(runs.items()):
        make_run(tmp_path / folder, name, [score("final", 1, "arc", share(3, 9), weights_hash=f"w{place}")])
    board = build([tmp_path])
    if shown:
        assert sorted(run.name for run in board.runs) == shown
    names = re.findall(r'popovertarget="about-r\d+"><bdi>(.*?)</bdi>', to_html(board))
    assert len(set(names)) == len(names) == len(runs)
    assert max(map(len, names)) <= 60
    lines = [line.split("|")[1] for line in to_markdown(board).splitlines() if "| sft |" in line]
    assert len(set(lines)) == len(runs)


def test_what_training_kept_as_its_best_has_the_step_of_its_weights(tmp_path: Path):
    """The final model is checkpoint 20's, and says that it is of the last step."""
    records = [
        score("checkpoint-20", 20, "arc", share(90, 100), weights_hash="best"),
        score("checkpoint-40", 40, "arc", share(50, 100), weights_hash="late"),
        score("final", 40, "piqa", share(50, 100), weights_hash="best"),
    ]
    board = board_of(tmp_path, *records)
    assert [(row.step, row.names, row.flags) for row in board.rows] == [
        (20, ("checkpoint-20", "final"), ()),
        (40, ("checkpoint-40",), ()),
    ]
    assert last_row(board.rows).id == "r1"


def test_two_models_of_one_run_and_step_do_not_read_the_same(tmp_path: Path):
    records = [
        score("final", 20, "arc", share(n, 100), weights_hash="w", model_hash=name, task_hash="t")
        for n, name in ((40, "0123456789"), (60, "abcdef0123"))
    ]
    board = build([make_run(tmp_path / "run", "run", records)])
    assert [row.label for row in board.rows] == ["step 20, final (01234567)", "step 20, final (abcdef01)"]


def test_rows_chosen_to_be_like_a_task_that_is_scored_are_a_warning_of_the_run_and_of_those_after_it(tmp_path: Path):
    trained = {"fingerprint": "f", "rows": 10, "chosen_like": ["/data/gsm8k/train.jsonl", "notes.jsonl"]}
    scores = [score("final", 20, "gsm8k", share(50, 100), weights_hash="a")]
    first = make_run(tmp_path / "first", "first", scores, final="a", data={"train": trained, "eval": None})
    make_run(tmp_path / "next", "next", [], final="b", parent={"name": "first", "path": str(first)})
    said = [notice.text for notice in build([tmp_path]).notices if "chosen" in notice.text]
    assert said == [
        "first, next: training rows were chosen to be like train.jsonl, of the domain of gsm8k",
        "first, next: training rows were chosen to be like notes.jsonl; see whether a task here is of that domain",
    ]


def test_damage_is_named_and_the_rest_is_kept(tmp_path: Path):
    run = make_run(tmp_path / "run", "run", [score("final", 1, "arc", share(3, 9))])
    good = (run / "scores.jsonl").read_text()
    nan = json.dumps(score("final", 1, "nan", {"name": "acc", "value": float("nan"), "stderr": 0.1, "n": 3}))
    bare = json.dumps(score("final", 1, "bare"))
    (run / "scores.jsonl").write_text(f"{good}not json\n[1]\n{nan}\n{bare}\n" + good[:40])
    (run / "run.json").write_text('{"name": ')
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/run.json").write_text('{"name": "empty", "stage": 3, "recipe": [], "data": 1, "git": "x"}')
    board = build([tmp_path])
    assert cell_of(board, "final", "arc").figures[0].value == pytest.approx(3 / 9)
    assert cell_of(board, "final", "nan").figures[0].value is None
    found = notices(board)
    for clause in ("run.json cannot be read", "scores.jsonl:2 is not JSON", "scores.jsonl:3 is not a JSON object"):
        assert clause in found
    for clause in ("last line is torn", "nan acc is nan", "task bare holds no metric", "without scores: empty"):
        assert clause in found
    json.loads((write(board, tmp_path / "out")[3]).read_text(), parse_constant=pytest.fail)


def test_a_logged_number_too_large_for_a_float_is_left_out(tmp_path: Path):
    run = make_run(tmp_path / "run", "run", [score("final", 2, "arc", share(3, 9))])
    lines = [
        {"step": step, "loss": loss, "kl": loss, "reward": 1.0} for step, loss in ((1, 10**400), (2, 2.0), (3, 1.0))
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    board = build([tmp_path])
    assert board.runs[0].losses == ((2, 2.0), (3, 1.0))
    assert [point.at for curve in board.curves for point in curve.points] == [2, 3]


def test_huge_and_hostile_text_is_shown_short_and_kept_whole(tmp_path: Path):
    long = "A" * 1_000_000
    scores = [score(EVIL, None, EVIL, share(3, 9, EVIL)), score("final", 10**400, long, share(3, 9), seconds="\ud800")]
    make_run(tmp_path / "run", EVIL + "\u2028\u202e\x1b[2J", scores, stage=EVIL, command=long, recipe={"k": long})
    page, markdown, table, data = (path.read_text() for path in write(build([tmp_path]), tmp_path / "out"))
    assert len(page.encode()) < 2_000_000
    assert len(markdown) < 20_000
    assert "<img" not in page
    assert "<img" not in markdown
    for text in (page, markdown):
        assert not {"\u2028", "\u202e", "\x1b"} & set(text)
    assert json.loads(data)["runs"][0]["record"]["command"] == long
    assert next(csv.DictReader(io.StringIO(table)))["task"] == EVIL


def test_a_spreadsheet_is_given_no_formula(tmp_path: Path):
    make_run(tmp_path / "run", '=HYPERLINK("http://x")', [score("final", 1, "arc", share(3, 9))])
    (line,) = csv.DictReader(io.StringIO(to_csv(build([tmp_path]))))
    assert line["run"].startswith("'=")


def test_the_markdown_table_has_equally_many_cells_in_every_line(tmp_path: Path):
    make_run(tmp_path / "run", "a|b\nc", [score("final", 1, "x|y", share(3, 9)), score("c-1", 2, "z", share(4, 9))])
    table = [line for line in to_markdown(build([tmp_path])).split("\n") if line.startswith("|")]
    assert len(table) == 4
    assert {line.replace(r"\|", "").count("|") for line in table} == {5}
