"""The best of several checkpoints, and how good it is on items that had no part in choosing it.

The best of many by chance looks better than it is (the winner's curse; Cawley and Talbot, "On over-fitting in model
selection and subsequent selection bias in performance evaluation", JMLR 11 (2010)). Choosing on one half of
the items and reporting on the other removes that: the second half knows nothing of the choice.
"""

import functools
import hashlib
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from .intervals import Estimate, mean_estimate


@dataclass(frozen=True)
class Selection:
    """A checkpoint chosen on one half of the items and measured on the other.

    Attributes:
        name: The checkpoint that did best on the first half; of equals the first given.
        chosen: Its mean there, which is too good by what luck chose.
        reported: Its mean on the second half, with interval: the figure to quote.
        whole: Its mean on all items, for comparison.
        candidates: How many checkpoints it was chosen from.
        items: Items that every one of them has.
        note: What a reader must know.
    """

    name: str
    chosen: float
    reported: Estimate
    whole: float
    candidates: int
    items: int
    note: str


def first_half(unit: Hashable) -> bool:
    """Says whether an item, or a cluster of items, belongs to the half that is chosen on.

    By a hash, so that adding items or checkpoints moves no other item, and every report halves alike.
    """
    return _is_first(f"0\0{unit}")


@functools.lru_cache(maxsize=1 << 16)  # a report and the looks at a run halve the same items again and again
def _is_first(name: str) -> bool:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()[0] < 128


def halved(
    scores: Mapping[str, Mapping[Hashable, float]], clusters: Mapping[Hashable, Hashable] | None
) -> tuple[dict[Hashable, Hashable], list[Hashable], list[Hashable]]:
    """Splits the items that all checkpoints have into those that are chosen on and those that are measured on.

    Args:
        scores: As of :func:`select`.
        clusters: Likewise.

    Returns:
        The cluster of each item (the item itself where it has none), the first half and the second.
    """
    finite = [{item for item, score in by.items() if math.isfinite(score)} for by in scores.values()]
    # Sorted, so that sums do not depend on the order of a file.
    items = sorted(set.intersection(*finite), key=str) if finite else []
    unit = {item: item if clusters is None else clusters.get(item, item) for item in items}
    halves: tuple[list[Hashable], list[Hashable]] = [], []
    for item in items:
        halves[not first_half(unit[item])].append(item)
    return unit, *halves


def select(
    scores: Mapping[str, Mapping[Hashable, float]],
    clusters: Mapping[Hashable, Hashable] | None = None,
    *,
    higher_is_better: bool = True,
    scale: tuple[float, float] | None = None,
) -> Selection | None:
    """Chooses the best checkpoint on one half of the items that all of them have, and measures it on the other.

    Args:
        scores: Each checkpoint's score of each item, by its name and the item's id.
        clusters: The cluster of an item; whole clusters go to one half. An item without one is its own.
        higher_is_better: Which way is up.
        scale: The ends between which scores lie, if there are any; the interval then does too.

    Returns:
        None where there is nothing to choose from: no checkpoint, or a half without items.
    """
    unit, *halves = halved(scores, clusters)
    if not all(halves):
        return None
    sign = 1 if higher_is_better else -1
    means = {name: _mean(by, halves[0]) for name, by in scores.items()}
    best = max(means, key=lambda name: sign * means[name])
    chosen = scores[best]
    reported = mean_estimate(
        [chosen[item] for item in halves[1]],
        None if clusters is None else [unit[item] for item in halves[1]],
        scale=scale,
    )
    note = (
        f"the best of {len(scores)} on {len(halves[0])} items, measured on {len(halves[1])} others; a best figure on "
        "the items that chose it is too good by luck"
    )
    return Selection(best, means[best], reported, _mean(chosen, list(unit)), len(scores), len(unit), note)


def _mean(scores: Mapping[Hashable, float], items: list[Hashable]) -> float:
    return math.fsum(scores[item] for item in items) / len(items)
