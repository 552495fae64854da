"""``posttrain data scaling``: a table of runs becomes a law, best models and a verdict on runs that were kept out."""

import json
import shutil
import struct

import pytest
from posttrain.chat_templates.errors import PosttrainError
from posttrain.recipes.load import load
from posttrain.recipes.tools import run_command
from posttrain.recipes.train import train

from ..evals.test_scaling import LAW, planted
from ..rows import write_rows


def runs(noise=0.002, **more):
    return [{"parameters": n, "tokens": d, "loss": y, **more} for n, d, y in zip(*planted(noise=noise), strict=True)]


def scaling(*arguments):
    with pytest.raises(SystemExit) as ended:
        run_command("scaling", *map(str, arguments))
    assert ended.value.code == 0


def test_runs_become_a_law_and_the_largest_confirm_it(tmp_path, capsys):
    path = write_rows(tmp_path / "runs.jsonl", runs())
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
    path = write_rows(tmp_path / "runs.jsonl", rows)
    scaling(path, "--hold-out", "1", "--draws", "100", "-o", str(tmp_path / "out"))
    assert "refutes" in capsys.readouterr().out


def test_one_of_two_equal_rows_is_left_out(tmp_path, capsys):
    rows = runs(name="twin")
    rows.append(max(rows, key=lambda run: run["loss"]))
    path = write_rows(tmp_path / "runs.jsonl", rows)
    scaling(path, "--leave-out", "1", "--draws", "100", "-o", str(tmp_path / "out"))
    assert "30 runs: L(N, D) =" in capsys.readouterr().out


@pytest.fixture
def run_folder(make_recipe, tiny_model_dir, tmp_path):
    """A run of a new model, evaluated at its end."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = {"config": {"model_type": "llama", **shape}, "tokenizer": str(tiny_model_dir)}
    rows = {"path": str(tmp_path / "text.jsonl"), "format": "text"}
    (tmp_path / "runs").mkdir()
    recipe = make_recipe(
        "pretrain",
        "runs/one",
        sections={"model": model, "data": {"train": rows, "eval": rows}},
        max_steps=2,
        eval_strategy="epoch",
    )
    train(load(recipe))
    return tmp_path / "runs" / "one"


def edit(path, change):
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def test_run_folders_give_the_law_that_their_figures_give(run_folder, tmp_path, capsys):
    figures = runs()
    for number, run in enumerate(figures):
        copy = shutil.copytree(run_folder, tmp_path / "copies" / f"run{number}")
        header = json.dumps({"weight": {"shape": [round(run["parameters"])]}}).encode()
        (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        edit(copy / "run.json", {"name": copy.name, "trained": [{"loss_tokens": run["tokens"]}]})
        lines = [json.loads(line) for line in (copy / "log.jsonl").read_text().splitlines()]
        changed = [{**line, "eval_loss": run["loss"]} if "eval_loss" in line else line for line in lines]
        (copy / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    shutil.copytree(tmp_path / "copies" / "run0", tmp_path / "copies" / "run0.old-1")  # of a pipeline's changed step
    scaling(tmp_path / "copies", "--draws", "100", "-o", str(tmp_path / "out"))
    folders = capsys.readouterr().out.splitlines()[0]
    scaling(write_rows(tmp_path / "runs.jsonl", figures), "--draws", "100", "-o", str(tmp_path / "out"))
    assert capsys.readouterr().out.splitlines()[0] == folders


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"finished": None}, "the run has not ended"),
        ({"parent": {"run": "other"}}, "the model was trained before"),
        ({"trained": None}, "a run of stage pretrain does not count its tokens"),
    ],
)
def test_run_folders_that_no_law_can_use_are_named(run_folder, tmp_path, change, said):
    edit(run_folder / "run.json", change)
    with pytest.raises(PosttrainError, match=f"runs/one: {said}"):
        run_command("scaling", str(run_folder), "-o", str(tmp_path / "out"))


def test_a_law_has_one_held_out_set_and_its_runs_are_evaluated_at_their_end(run_folder, tmp_path):
    other = shutil.copytree(run_folder, run_folder.with_name("two"))
    record = json.loads((other / "run.json").read_text())
    record["data"]["eval"]["fingerprint"] = "another"
    edit(other / "run.json", record)
    with pytest.raises(PosttrainError, match=r"runs/two: was evaluated on other rows than .*runs/one"):
        run_command("scaling", str(run_folder.parent), "-o", str(tmp_path / "out"))
    (other / "log.jsonl").write_text('{"step": 1, "eval_loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(PosttrainError, match="was not evaluated after its last step"):
        run_command("scaling", str(other), "-o", str(tmp_path / "out"))
    (other / "log.jsonl").write_text('{"step": 2, "eval_loss": "nan"}\n')
    edit(other / "run.json", {"data": json.loads((run_folder / "run.json").read_text())["data"]})
    with pytest.raises(PosttrainError, match=r"runs/two: 'eval_loss' is 'nan', which is no number above zero"):
        run_command("scaling", str(run_folder.parent), "-o", str(tmp_path / "out"))


def test_holding_out_all_runs_and_more_leaves_none_to_fit(tmp_path):
    path = write_rows(tmp_path / "runs.jsonl", runs())
    with pytest.raises(PosttrainError, match="0 runs to fit"):
        run_command("scaling", path, "--hold-out", "40", "-o", str(tmp_path / "out"))


def test_compute_stands_for_tokens_and_columns_are_named(tmp_path, capsys):
    rows = [
        {"Size": run["parameters"], "C": 6 * run["parameters"] * run["tokens"], "loss": run["loss"]} for run in runs()
    ]
    write_rows(tmp_path / "runs.jsonl", rows)
    source = f"{{path: {tmp_path}/runs.jsonl, columns: {{Size: parameters, C: flops}}}}"
    scaling(source, "--draws", "100", "-o", str(tmp_path / "out"))
    first = capsys.readouterr().out.splitlines()[0]
    write_rows(tmp_path / "runs.jsonl", runs())
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
    path = write_rows(tmp_path / "runs.jsonl", rows)
    with pytest.raises(PosttrainError, match=said):
        run_command("scaling", path, "-o", str(tmp_path / "out"))
