"""A run is ended by what is shown, not by what happened: never where its last checkpoints may be better."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from posttrain.evals.stats.stopping import no_gain

_SPEC = importlib.util.spec_from_file_location(
    "early_stopping", Path(__file__).parents[2] / "benchmarks" / "early_stopping.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
simulation: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(simulation)


def checkpoints(*shares: float, items: int = 1000, seed: int = 0) -> dict[str, dict[Any, float]]:
    """Answers of checkpoints of which these shares are truly right."""
    values = simulation.answers(np.array(shares), items, np.random.default_rng(seed))
    return {str(number): dict(enumerate(row.tolist())) for number, row in enumerate(values)}


def test_a_run_whose_last_checkpoints_are_far_below_its_best_stops():
    found = no_gain(checkpoints(0.5, 0.8, 0.6, 0.6), looks=10, min_delta=0.02, patience=2)
    assert found is not None
    assert (found.best, found.later) == ("1", ("2", "3"))
    assert found.bound < 0
    assert found.alpha == pytest.approx(0.05 / 7)


@pytest.mark.parametrize(
    ("shares", "options"),
    [
        ((0.5, 0.8, 0.6), {}),  # one checkpoint after the best where two are asked for
        ((0.5, 0.8, 0.6, 0.8), {}),  # one of the last two is as good, and could be better
        ((0.5, 0.52, 0.5, 0.5), {}),  # too little between them to tell
        ((0.5, 0.8, 0.6, 0.6), {"looks": 4}),  # the last look ends nothing
        ((0.5, 0.8, 0.6, 0.6), {"higher_is_better": False}),  # the first is the best, and the last two are new worsts
    ],
)
def test_a_run_goes_on_where_nothing_is_shown(shares: tuple[float, ...], options: dict[str, Any]):
    wanted = {"looks": 10, "min_delta": 0.02, "patience": 2} | options
    found = no_gain(checkpoints(*shares), **wanted)
    assert found is None or (options.get("higher_is_better") is False and found.best == "0")


def test_downwards_is_the_mirror_of_upwards():
    scores = checkpoints(0.5, 0.8, 0.6, 0.6)
    turned = {name: {item: -value for item, value in by.items()} for name, by in scores.items()}
    wanted = {"looks": 10, "min_delta": 0.02, "patience": 2}
    up, down = no_gain(scores, **wanted), no_gain(turned, **wanted, higher_is_better=False)
    assert up is not None
    assert down is not None
    assert (up.best, up.later, up.bound) == (down.best, down.later, pytest.approx(down.bound, abs=0.01))


def test_items_of_one_cluster_count_once():
    scores = checkpoints(0.5, 0.9, 0.85, 0.85, items=60)
    copied = {
        name: {(item, copy): value for item, value in by.items() for copy in range(20)} for name, by in scores.items()
    }
    clusters = {key: key[0] for key in copied["0"]}
    wanted = {"looks": 10, "min_delta": 0.1, "patience": 2}
    assert no_gain(copied, **wanted) is not None
    assert no_gain(copied, clusters, **wanted) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", list(simulation.CURVES))
def test_at_most_one_run_in_twenty_is_stopped_in_error(name: str):
    runs = 300
    _, false, _ = simulation.simulate(simulation.CURVES[name], simulation.by_verdict, runs)
    assert false <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)


@pytest.mark.slow
def test_a_run_that_gets_worse_is_stopped_and_patience_would_have_stopped_one_that_gets_better():
    assert simulation.simulate(simulation.CURVES["falls by .10 after look 2"], simulation.by_verdict, 100)[0] > 0.9
    assert simulation.simulate(simulation.CURVES["rises by .015 a look"], simulation.by_patience, 100)[1] > 0.5
