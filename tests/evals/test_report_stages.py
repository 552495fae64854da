"""What the stages add to the report: confusion matrices, classes, and rewards against KL."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from posttrain.evals.report import build
from posttrain.evals.report.html import classes_of, confusion_of, to_html
from posttrain.evals.report.markdown import to_markdown
from posttrain.evals.report.sections import PageTable
from posttrain.evals.report.tables import to_json

from .report_fixtures import EVIL, board_of, make_run, score, share


def metric(name: str, value: float, **fields: Any) -> dict[str, Any]:
    return {"name": name, "value": value, "stderr": 0.02, "n": 100, "higher_is_better": True, **fields}


def classified(labels: list[str], counts: list[list[int]], **fields: Any) -> dict[str, Any]:
    metrics = [share(80, 100, "accuracy"), metric("f1_macro", 0.8, low=0.7, high=0.86)]
    for label in labels:
        metrics += [share(30, 40, f"precision/{label}"), share(20, 30, f"recall/{label}"), metric(f"f1/{label}", 0.7)]
    detail = {"confusion": {"labels": labels, "counts": counts}}
    return score(
        "final", 9, "topics", *metrics, detail=detail, notes=["always answering 'a' is right on 40.0%"], **fields
    )


def log(folder: Path, *lines: dict[str, Any]) -> None:
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def ppo_run(root: Path, name: str = "ppo", stage: str = "ppo", **extra: Any) -> Path:
    run = make_run(root / name, name, [score("final", 30, "arc", share(3, 9))], stage=stage)
    steps = [(10, 0.0, 0.1, 0.1), (20, 1.0, 0.5, 0.4), (30, 4.0, 0.9, 0.2)]
    log(run, *({"step": s, "kl": k, "reward": r, "rewards/gold/mean": g, **extra} for s, k, r, g in steps))
    return run


def best_of(root: Path, name: str = "bon") -> None:
    points = [{"n": n, "kl": math.log(n) - (n - 1) / n, "reward": 0.1 * n, "gold": 0.05 * n} for n in (1, 2, 4)]
    points = [{**point, "reward_stderr": 0.01, "gold_stderr": None, "prompts": 9} for point in points]
    (root / name).mkdir()
    (root / name / "best_of_n.json").write_text(json.dumps({"reward": "rm", "gold": "check", "points": points}))


def test_means_of_shares_stand_in_per_cent_beside_the_shares(tmp_path: Path):
    sampled = metric("exact_match,strict", 0.4, low=0.2, high=0.6)  # of several samples an item
    scores = [
        score("final", 1, "boolq", share(9, 20, "acc")),
        score("final", 1, "mmlu", metric("acc_macro", 0.31, low=0.2, high=0.4)),
        score("final", 1, "gsm8k", sampled, metric("maj@4,strict", 0.5, low=0.3, high=0.7)),
        score("final", 1, "core", metric("centred_accuracy", 0.1, low=0.0, high=0.2)),
    ]
    make_run(tmp_path / "run", "run", scores)
    columns = {column.task: column for column in build([tmp_path]).columns}
    assert {task: [m.unit for m in columns[task].metrics] for task in columns} == {
        "boolq": ["%"],
        "mmlu": ["%"],
        "gsm8k": ["%", "%"],
        "core": [""],
    }


def test_a_confusion_matrix_is_shaded_by_the_share_of_its_row():
    shown = confusion_of({"detail": {"confusion": {"labels": ["a", "b"], "counts": [[30, 10], [5, 55]]}}})
    assert isinstance(shown, PageTable)
    cells = [[cell if isinstance(cell, str) else (cell.text, cell.css) for cell in line.cells] for line in shown.lines]  # pyright: ignore[reportAttributeAccessIssue]
    assert cells == [[("a", ""), ("30", "h6"), ("10", "h2"), "40"], [("b", ""), ("5", "h1"), ("55", "h7"), "60"]]


def test_figures_of_classes_stay_out_of_the_table(tmp_path: Path):
    labels = [f"intent {i}" for i in range(77)]
    counts = [[9 if i == k else int(k == i + 1) for k in range(77)] for i in range(77)]
    board = board_of(tmp_path, classified(labels, counts), stage="classify")
    assert [m.name for m in board.columns[0].main] == ["accuracy", "f1_macro"]
    mistakes, classes = confusion_of(board.rows[0].cells["c1"].score), classes_of(board.rows[0].cells["c1"].figures)
    assert mistakes is not None
    assert classes is not None
    assert (len(mistakes.lines), len(classes.lines)) == (12, 77)
    assert "among 77 classes" in mistakes.caption
    assert "intent" not in to_markdown(board)
    assert json.loads(to_json(board))["rows"][0]["cells"]["c1"]["score"]["detail"]["confusion"]["counts"] == counts


@pytest.mark.parametrize("detail", [None, {}, {"confusion": 7}, {"confusion": {"labels": ["a"], "counts": [["x"]]}}])
def test_a_detail_of_another_shape_is_left_out(tmp_path: Path, detail: Any):
    record = {**classified(["a"], [[1]]), "detail": detail, "notes": detail}
    make_run(tmp_path / "run", "run", [record], stage="classify")
    assert confusion_of(record) is None
    assert '<table class="confusion' not in to_html(build([tmp_path]))


def test_names_of_classes_cannot_become_markup(tmp_path: Path):
    make_run(tmp_path / "run", "run", [classified([EVIL, "b"], [[1, 2], [3, 4]])], stage="classify")
    page = to_html(build([tmp_path]))
    assert "<img" not in page


def test_intervals_that_the_record_gives_are_shown(tmp_path: Path):
    make_run(tmp_path / "run", "run", [classified(["a"], [[1]])], stage="classify")
    figure = build([tmp_path]).rows[0].cells["c1"].figures[1]
    assert figure.interval is not None
    assert (figure.interval.low, figure.interval.high, figure.interval.method) == (0.7, 0.86, "bootstrap")


def test_what_cannot_be_is_blank_and_what_is_missing_is_a_dash(tmp_path: Path):
    make_run(tmp_path / "a", "lm", [score("final", 1, "wiki", share(1, 9))], stage="sft")
    make_run(tmp_path / "b", "other", [score("final", 1, "arc", share(1, 9), weights_hash="w2")], stage="dpo")
    make_run(tmp_path / "c", "cls", [classified(["a"], [[1]], weights_hash="w3")], stage="classify")
    text = to_markdown(build([tmp_path]))
    (row,) = [line for line in text.splitlines() if line.startswith("| cls")]
    assert row.count("–") == 0
    (row,) = [line for line in text.splitlines() if line.startswith("| lm")]
    assert row.count("–") == 1  # arc; topics is not for it


def test_rewards_are_drawn_against_kl(tmp_path: Path):
    ppo_run(tmp_path)
    best_of(tmp_path)
    best_of(tmp_path, "bon.old-1")
    board = build([tmp_path / "ppo"])
    assert [(curve.name, curve.kind, len(curve.points)) for curve in board.curves] == [
        ("ppo", "training", 3),
        ("bon", "best-of-n", 3),
    ]
    assert "| ppo | training | 4.00 | 0.1 → 0.9 | 0.1 → 0.2 | 0.4 at KL 1.00 |" in to_markdown(board)
    assert json.loads(to_json(board))["curves"][0]["points"][2]["kl"] == 4.0


def test_evaluations_come_before_the_training_log(tmp_path: Path):
    run = ppo_run(tmp_path)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    held_out = [{"step": s, "eval_kl": s / 10, "eval_reward": 0.3, "eval_rewards/gold/mean": 0.2} for s in (10, 20)]
    log(run, *lines, *held_out)
    (curve,) = build([tmp_path]).curves
    assert (curve.kind, [point.kl for point in curve.points]) == ("evaluation", [1.0, 2.0])


def test_the_kl_of_a_token_becomes_that_of_an_answer(tmp_path: Path):
    ppo_run(tmp_path, "grpo", "grpo", **{"completions/mean_length": 5.0})
    ppo_run(tmp_path, "rloo", "rloo")  # without lengths nothing can be said
    (curve,) = build([tmp_path]).curves
    assert [point.kl for point in curve.points] == [0.0, 5.0, 20.0]


def test_runs_without_rewards_have_no_curves(tmp_path: Path):
    board = board_of(tmp_path, score("final", 9, "arc", share(3, 9)), losses=9)
    assert board.curves == ()
    assert "KL" not in to_markdown(board)


def test_a_damaged_best_of_n_is_named(tmp_path: Path):
    ppo_run(tmp_path)
    best_of(tmp_path)
    (tmp_path / "bon" / "best_of_n.json").write_text('{"points": [{"n": 1}]}')
    board = build([tmp_path / "ppo"])
    assert [curve.name for curve in board.curves] == ["ppo"]
    assert any("bon/best_of_n.json cannot be read" in notice.text for notice in board.notices)


def test_the_loss_of_each_source_is_a_chart_of_all_runs(tmp_path: Path):
    for name, sources in (("plain", ("web",)), ("annealed", ("web", "<maths>"))):
        folder = make_run(tmp_path / name, name, [score("final", 9, "arc", share(3, 9))])
        lines = [{"step": s, "loss": 3 / s} | {f"loss/{source}": 2 / s for source in sources} for s in (1, 2, 3)]
        log(folder, *lines)
    board = build([tmp_path])
    assert {run.name: list(run.source_losses) for run in board.runs} == {
        "annealed": ["web", "<maths>"],
        "plain": ["web"],
    }
    html = to_html(board)
    assert "Loss on web" in html
    assert "Loss on &lt;maths&gt;" in html
    assert "<maths>" not in html
