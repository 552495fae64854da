import math

import numpy as np
from posttrain.evals.stats.selection import first_half, select


def world(seed: int, checkpoints: int = 20, items: int = 100, gap: float = 0.0) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(seed)
    shift = np.zeros(checkpoints)
    shift[3] = gap
    scores = rng.normal(size=(checkpoints, items)) + shift[:, None]
    return {f"step {n}": {f"item {i}": float(value) for i, value in enumerate(row)} for n, row in enumerate(scores)}


def test_the_reported_figure_knows_nothing_of_the_choice():
    """With 20 equal checkpoints of true mean 0 the chosen figure is far above it, the reported one is not."""
    found = [select(world(seed)) for seed in range(300)]
    assert np.mean([one.chosen for one in found]) > 0.2
    assert abs(np.mean([one.reported.value for one in found])) < 3 * 0.14 / math.sqrt(300)
    covered = np.mean([one.reported.low <= 0 <= one.reported.high for one in found])
    assert 0.91 <= covered <= 0.99  # 300 replicates: three standard errors about 95%


def test_a_checkpoint_that_is_better_is_chosen():
    found = select(world(0, gap=1.0))
    assert found.name == "step 3"
    assert found.reported.low > 0.4
    assert found.reported.n < found.items == 100
    assert found.candidates == 20


def test_lower_can_be_better():
    losses = {name: {item: -score for item, score in scores.items()} for name, scores in world(0, gap=1.0).items()}
    assert select(losses, higher_is_better=False).name == "step 3"


def test_clusters_are_not_torn_apart_and_halves_do_not_move():
    clusters = {f"item {n}": f"prompt {n // 4}" for n in range(100)}
    found = select(world(0), clusters)
    assert found.reported.clusters == sum(not first_half(f"prompt {n}") for n in range(25))
    assert found.reported.n == 4 * found.reported.clusters
    shuffled = {name: dict(reversed(scores.items())) for name, scores in world(0).items()}
    assert select(shuffled, clusters) == found


def test_items_that_one_checkpoint_lacks_decide_nothing():
    scores = world(0, gap=1.0)
    scores["step 5"] |= {"bonus": 1e9}
    scores["step 6"]["item 0"] = math.nan
    found = select(scores)
    assert (found.name, found.items) == ("step 3", 99)


def test_nothing_to_choose_from_is_no_choice():
    assert select({}) is None
    assert select({"only": {"one": 1.0}}) is None
    assert select({"a": {"x": 1.0}, "b": {"y": 1.0}}) is None


def test_the_interval_of_the_best_keeps_to_its_scale():
    scores = {"a": {str(n): 10.0 - 9.0 * (n % 17 == 0) for n in range(40)}, "b": {str(n): 3.0 for n in range(40)}}
    found, free = select(scores, scale=(1.0, 10.0)), select(scores)
    assert found is not None
    assert free is not None
    assert found.reported.high <= 10 < free.reported.high
