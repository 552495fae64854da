"""Scores while a run trains: the best checkpoint stays, a run that gains nothing ends, and a kill changes neither."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from posttrain.data_tools.errors import SpecError
from posttrain.evals import checkpoints
from posttrain.evals.records import ScoreStore
from posttrain.evals.report import build
from posttrain.recipes import launch
from posttrain.recipes.check import check_all
from posttrain.recipes.errors import RunError
from posttrain.recipes.load import load
from posttrain.recipes.monitor import Monitor
from posttrain.recipes.scoring import score_models

from . import warm
from .conftest import log, run

STOP = {"column": "lines", "min_delta": 0.5}


@pytest.fixture
def make(tmp_path: Path, make_recipe: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a recipe of 12 steps that is scored every 3 on lines of text, of which the tiny model learns nothing."""
    lines = [f"the quick {n} fox jumps {n * 7} dog" for n in range(40)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    (tmp_path / "suite.yaml").write_text("perplexity:\n  - {name: lines, path: text.txt, sample_by: line}\n")

    def write(name: str = "run", **score: Any) -> Path:
        section = {"suite": "suite.yaml", "every": 3, "start": True} | score
        return make_recipe(name=name, sections={"score": section, "trainer": _TRAINER})

    return write


_TRAINER = {
    "max_length": 64,
    "max_steps": 12,
    "save_strategy": "no",
    "save_total_limit": 1,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.003,
    "gradient_checkpointing": False,
}


def scored(command: Sequence[str], environment: Any = None) -> int:
    """Stands for ``launch.run``: scores in this process what the command names."""
    place = command.index("score") + 1
    folders = [part for part in command[place:] if part.startswith("/") and "--suite" not in part]
    suite = command[command.index("--suite") + 1]
    folders = [folder for folder in folders if folder != suite]
    return score_models(folders, suite=suite, watch=False, final_only=False, output=None, references={})


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "run", scored)


def record(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text())


def steps(run_dir: Path) -> list[int | None]:
    return [score.step for score in ScoreStore(run_dir).load()]


@pytest.mark.usefixtures("in_process")
def test_the_best_checkpoint_stays_and_is_marked(make: Callable[..., Path]):
    run_dir = run(make(keep_best={"column": "lines"}))
    assert steps(run_dir) == [0, 3, 6, 9, 12]
    best = record(run_dir)["best"]
    figures = {score.step: score.metrics[0].value for score in ScoreStore(run_dir).load()}
    assert best["value"] == figures[3] == min(figures.values())  # bits per byte: the fewest are the best
    assert best["candidates"] == 5
    kept = {path.name for path in checkpoints.list_checkpoints(run_dir)}
    assert kept == {"checkpoint-0", "checkpoint-3", "checkpoint-12"}
    assert "early_stop" not in record(run_dir)


@pytest.mark.usefixtures("in_process")
def test_a_run_that_gains_nothing_ends_with_what_it_has(make: Callable[..., Path], capsys: pytest.CaptureFixture[str]):
    run_dir = run(make(early_stop=STOP, keep_best={"column": "lines/bits_per_byte"}))
    found = record(run_dir)
    assert found["early_stop"]["step"] < 12
    assert found["early_stop"]["bound"] < 0.5
    assert f"stopped at {found['early_stop']['step']} of 12 steps" in capsys.readouterr().out
    assert found["finished"]
    last = run_dir / f"checkpoint-{found['early_stop']['step']}"
    assert checkpoints.weights_hash(run_dir) == checkpoints.weights_hash(last)
    assert max(line["step"] for line in log(run_dir)) == found["early_stop"]["step"]
    badges = {row.step: {badge.text: badge.detail for badge in row.badges} for row in build([run_dir]).rows}
    assert "the best of" in badges[found["best"]["step"]]["kept as the best"]
    assert f"at {found['early_stop']['step']} of 12 steps" in badges[found["early_stop"]["step"]]["training ended here"]


@pytest.mark.parametrize("scored_before", [False, True])
def test_a_kill_between_a_save_and_its_scores_changes_no_decision(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, scored_before: bool
):
    monkeypatch.setattr(launch, "run", scored)
    decided = {"early_stop": STOP, "keep_best": {"column": "lines"}}
    whole = run(make("whole", **decided))
    end = record(whole)["early_stop"]["step"]
    for at in (3, end):
        recipe = make(f"killed-{at}", **decided)

        def killed(command: Sequence[str], environment: Any = None, at: int = at) -> int:
            if any(part.endswith(f"checkpoint-{at}") for part in command):
                if scored_before:
                    scored(command)
                raise KeyboardInterrupt
            return scored(command)

        monkeypatch.setattr(launch, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
        monkeypatch.setattr(launch, "run", scored)
        run_dir = run(recipe)
        for key in ("early_stop", "best"):
            assert record(run_dir)[key] == record(whole)[key]
        assert steps(run_dir) == steps(whole)
        assert log(run_dir) == log(whole)
        assert checkpoints.weights_hash(run_dir) == checkpoints.weights_hash(whole)


@pytest.mark.usefixtures("in_process")
def test_scores_of_another_suite_under_the_same_title_decide_nothing(make: Callable[..., Path]):
    run_dir = run(make(keep_best={"column": "lines"}))
    whole = record(run_dir)["best"]
    loaded = load(make(keep_best={"column": "lines"}))
    monitor = Monitor(loaded, 12)
    store = ScoreStore(run_dir)
    first, *_, last = store.load()
    other = {"task_hash": "of another suite", "metrics": (replace(last.metrics[0], value=0.1),)}
    store.append(replace(last, **other))
    monitor._decide(monitor.looks(12))
    assert record(run_dir)["best"] == whole
    kept = [score for score in store.load() if score is not first and score.step != 0]
    store.path.write_text("")
    for score in [*kept, replace(first, **other)]:
        store.append(score)
    with pytest.raises(RunError, match="the looks at `lines` were scored by different versions of the task"):
        monitor._decide(monitor.looks(12))


@pytest.mark.slow
def test_beside_the_training_the_same_is_decided_a_look_later(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(launch, "run", warm.launched)
    decided = {"early_stop": STOP, "keep_best": {"column": "lines"}}
    between, beside = run(make("between", **decided)), run(make("beside", device="cpu", **decided))
    first, second = record(between)["early_stop"], record(beside)["early_stop"]
    assert {key: first[key] for key in ("best", "later", "bound")} == {
        key: second[key] for key in ("best", "later", "bound")
    }
    assert steps(beside) == [*steps(between), first["step"] + 3]
    assert (beside / record(beside)["best"]["checkpoint"]).is_dir()


def test_a_decision_by_what_is_not_scored_is_refused(make: Callable[..., Path], capsys: pytest.CaptureFixture[str]):
    recipe = make(keep_best={"column": "liness"})
    assert check_all([recipe], [], {}, read_data=True) == 2
    error = capsys.readouterr().err
    assert "score.keep_best.column: the suite has no task 'liness'" in error
    assert "did you mean 'lines'" in error


def test_a_check_says_how_often_a_run_is_looked_at_and_where_it_may_end(
    make: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    assert (
        check_all([make(early_stop=STOP), make("few", every=6, start=False, early_stop=STOP)], [], {}, read_data=True)
        == 0
    )
    said = capsys.readouterr().out
    assert "score: 5 looks while the run trains, between steps" in said
    assert "the run may end at 2 of them, each with an error of 0.025 at most" in said
    assert "warning: score.early_stop can end nothing" in said


def test_decisions_need_scores_while_the_run_trains(make: Callable[..., Path]):
    with pytest.raises(SpecError, match="early_stop is for scores while the run trains: say every: N"):
        load(make(every="end", start=False, early_stop=STOP))
    with pytest.raises(SpecError, match="min_delta"):
        load(make(early_stop={"column": "lines"}))


def test_where_a_run_may_end_is_part_of_what_it_is_and_how_it_is_watched_is_not(make: Callable[..., Path]):
    plain, kept = load(make("plain")), load(make("kept", keep_best={"column": "lines"}))
    stops, sooner = load(make("stops", early_stop=STOP)), load(make("sooner", early_stop={**STOP, "patience": 1}))
    assert plain.hash == kept.hash
    assert len({plain.hash, stops.hash, sooner.hash}) == 3
