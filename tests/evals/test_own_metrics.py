"""A user's function of a checkpoint is a score like any other: hashed, kept, with items where it has them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from posttrain.data_tools.errors import SpecError
from posttrain.evals.records import ScoreStore
from posttrain.evals.report.items import read_items
from posttrain.evals.score import score
from posttrain.evals.suite_files import load_suite

METRICS = """
import random

import numpy
import torch

def each(model, tokenizer, step):
    assert not model.training and not torch.is_grad_enabled()
    return torch.tensor([1.0, 0.0, 1.0, float(step)])

def two(model, tokenizer, step):
    return {"share": [0, 1], "size": float(len(tokenizer))}

def drawn(model, tokenizer, step):
    return [torch.rand(()).item(), random.random(), numpy.random.random()]

def fails(model, tokenizer, step):
    raise KeyError("nothing here")

def nan(model, tokenizer, step):
    return float("nan")

def trains(model, tokenizer, step):
    model.train()
    next(model.parameters()).add_(1)
    return 1.0
"""


def suite_of(folder: Path, functions: str, source: str = METRICS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(source)
    (folder / "suite.yaml").write_text(f"functions: [{functions}]\n")
    return folder / "suite.yaml"


def test_numbers_items_and_several_of_them_are_figures(tmp_path: Path, make_run: Callable[..., Path]):
    run = make_run(steps=(1,))
    suite = suite_of(tmp_path / "s", '"own.py:each", {function: "own.py:two", name: pair, higher_is_better: false}')
    report = score([run], suite, device="cpu")
    assert report.exit_code == 0
    each, pair = ScoreStore(run).load()
    assert (each.task, each.metrics[0].name, each.metrics[0].value, each.metrics[0].n) == ("each", "value", 0.75, 4)
    assert each.metrics[0].stderr == pytest.approx(0.25)
    assert [(metric.name, metric.n, metric.higher_is_better) for metric in pair.metrics] == [
        ("share", 2, False),
        ("size", 1, False),
    ]
    assert pair.metrics[1].stderr is None
    items = read_items(run / each.samples_name, "value", 0.75)
    assert items is not None
    assert items.values.tolist() == [1, 0, 1, 1]
    assert read_items(run / pair.samples_name, "size", pair.metrics[1].value) is None
    assert score([run], suite, device="cpu").done == ()


def test_a_change_of_the_file_or_of_what_it_reads_is_scored_anew(tmp_path: Path, make_run: Callable[..., Path]):
    run = make_run(steps=(1,))
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "data.txt").write_text("one")
    suite = suite_of(tmp_path / "s", '{function: "own.py:drawn", files: [data.txt]}')
    first = score([run], suite, device="cpu").done
    (tmp_path / "s" / "data.txt").write_text("two")
    second = score([run], suite, device="cpu").done
    suite_of(tmp_path / "s", '{function: "own.py:drawn", files: [data.txt]}', METRICS + "\n# changed\n")
    third = score([run], suite, device="cpu").done
    assert [len(done) for done in (first, second, third)] == [1, 1, 1]
    assert len({done[0].metrics[0].value for done in (first, second, third)}) == 1  # drawn by the suite's seed


def test_a_function_that_fails_is_told_and_the_others_are_scored(tmp_path: Path, make_run: Callable[..., Path]):
    run = make_run(steps=(1,))
    report = score([run], suite_of(tmp_path / "s", '"own.py:fails", "own.py:nan", "own.py:each"'), device="cpu")
    assert [done.task for done in report.done] == ["each"]
    reasons = {failure.task: failure.reason for failure in report.failed}
    assert "own.py:fails failed: KeyError: 'nothing here'" in reasons["fails"]
    assert "no finite number" in reasons["nan"]
    assert not any(failure.detail for failure in report.failed)


def test_functions_that_are_not_there_are_told_before_any_model(tmp_path: Path, make_run: Callable[..., Path]):
    with pytest.raises(SpecError, match="there is no file"):
        load_suite(suite_of(tmp_path / "s", '"absent.py:each"'))
    report = score([make_run(steps=(1,))], suite_of(tmp_path / "s", '"own.py:absent"'), device="cpu")
    assert "own.py has no function absent" in report.failed[0].reason
    assert report.exit_code == 2


def test_a_function_that_changes_the_model_has_no_score_and_is_told(tmp_path: Path, make_run: Callable[..., Path]):
    suite = suite_of(tmp_path / "s", '"own.py:trains", "own.py:each"')
    report = score([make_run(steps=(1,), final=False)], suite, device="cpu")
    assert [failure.task for failure in report.failed] == ["trains"]
    assert "own.py:trains changed the model itself" in report.failed[0].reason
