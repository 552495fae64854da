"""``posttrain data scaling``: a table of runs becomes a law, best models and a verdict on runs that were kept out."""

import json

import pytest
from posttrain.chat_templates.errors import PosttrainError
from posttrain.recipes.tools import run_command

from ..evals.test_scaling import LAW, planted


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def runs(noise=0.002, **more):
    return [{"parameters": n, "tokens": d, "loss": y, **more} for n, d, y in zip(*planted(noise=noise), strict=True)]


def scaling(*arguments):
    with pytest.raises(SystemExit) as ended:
        run_command("scaling", *map(str, arguments))
    assert ended.value.code == 0


def test_runs_become_a_law_and_the_largest_confirm_it(tmp_path, capsys):
    path = write(tmp_path / "runs.jsonl", runs())
    scaling(path, "--hold-out", "2", "--served", "1e12", "--draws", "100", "-o", str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "28 runs: L(N, D) =" in said
    assert "2 of 2 runs that were kept out" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["law"]["alpha"] == pytest.approx(LAW.alpha, abs=0.03)
    titles = [table["title"] for table in report["tables"]]
    assert titles == [
        "The law",
        "How much the choices matter",
        "The best model for a budget",
        "Runs kept out of the fit",
    ]
    assert "&lt;" not in (tmp_path / "out" / "report.html").read_text()


def test_a_larger_run_that_does_not_keep_to_the_law_refutes_it(tmp_path, capsys):
    rows = runs()
    rows[-1]["loss"] *= 1.1
    path = write(tmp_path / "runs.jsonl", rows)
    scaling(path, "--hold-out", "1", "--draws", "100", "-o", str(tmp_path / "out"))
    assert "refutes" in capsys.readouterr().out


def test_holding_out_all_runs_and_more_leaves_none_to_fit(tmp_path):
    path = write(tmp_path / "runs.jsonl", runs())
    with pytest.raises(PosttrainError, match="0 runs to fit"):
        run_command("scaling", path, "--hold-out", "40", "-o", str(tmp_path / "out"))


def test_compute_stands_for_tokens_and_columns_are_named(tmp_path, capsys):
    rows = [
        {"Size": run["parameters"], "C": 6 * run["parameters"] * run["tokens"], "loss": run["loss"]} for run in runs()
    ]
    write(tmp_path / "runs.jsonl", rows)
    source = f"{{path: {tmp_path}/runs.jsonl, columns: {{Size: parameters, C: flops}}}}"
    scaling(source, "--draws", "100", "-o", str(tmp_path / "out"))
    first = capsys.readouterr().out.splitlines()[0]
    write(tmp_path / "runs.jsonl", runs())
    scaling(tmp_path / "runs.jsonl", "--draws", "100", "-o", str(tmp_path / "out2"))
    assert capsys.readouterr().out.splitlines()[0] == first


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"parameters": 1e6, "loss": 3.0}], r"runs.jsonl:1: has no column 'tokens'"),
        ([{"parameters": 1e6, "tokens": 1e9, "loss": "nan"}], r"runs.jsonl:1: 'loss' is 'nan', which is no number"),
        (runs()[:4], "4 runs to fit: a law of five unknowns"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, said):
    path = write(tmp_path / "runs.jsonl", rows)
    with pytest.raises(PosttrainError, match=said):
        run_command("scaling", path, "-o", str(tmp_path / "out"))
