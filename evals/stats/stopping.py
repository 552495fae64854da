"""May a run stop early? A verdict that none of its last checkpoints is better than the best by an effect worth having.

The rule of patience (stop after so many scores without a new best; Prechelt, "Early stopping - but when?" (1998)) stops
on noise: a best that was lucky is not passed for a while by checkpoints that are truly better. Here a run stops only
where each of the last ``patience`` checkpoints is shown to be less than ``min_delta`` better than the best:

- The best is chosen on one half of the items and compared on the other (``selection.py``), so that its luck in being
  chosen has no part in the comparison.
- Of each of them the upper end of the paired difference's interval lies below ``min_delta``. All must be below, so none
  needs a correction for the others (an intersection-union test: Berger, "Multiparameter hypothesis testing and
  acceptance sampling", Technometrics 24 (1982), theorem 1).
- The error of the run is spent over its looks in equal parts, ``alpha / looks`` at each that may stop it. Whatever the
  looks' dependence, the parts add up to at most ``alpha`` (Bonferroni's inequality; the simplest spending function in
  the sense of Lan and DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 70 (1983), section 2).
  Their sharper boundaries take one growing sample of one difference; here each look brings other checkpoints.

So at most ``alpha`` of runs are stopped although one of the checkpoints that they were stopped for is better by
``min_delta`` or more. What a checkpoint not trained yet would have scored, no test can say.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from .compare import ALPHA, paired_difference
from .selection import halved


@dataclass(frozen=True)
class NoGain:
    """A verdict that ends a run.

    Attributes:
        best: The checkpoint that did best on the items that are chosen on.
        later: The last ones, none of which is better by what is worth having.
        bound: The largest gain of any of them that the other items leave possible, in the scores' unit.
        alpha: The error that this look could spend.
    """

    best: str
    later: tuple[str, ...]
    bound: float
    alpha: float


def no_gain(
    scores: Mapping[str, Mapping[Hashable, float]],
    clusters: Mapping[Hashable, Hashable] | None = None,
    *,
    looks: int,
    min_delta: float,
    patience: int = 1,
    alpha: float = ALPHA,
    higher_is_better: bool = True,
) -> NoGain | None:
    """Says whether a run may stop at the latest of its looks.

    Args:
        scores: Each checkpoint's score of each item so far, in the order of the steps.
        clusters: The cluster of an item; an item without one is its own.
        looks: How many looks the whole run has, of which the last can stop nothing.
        min_delta: The smallest gain worth having, above 0, in the scores' unit.
        patience: How many checkpoints, all after the best, the verdict is about.
        alpha: The share of runs that may be stopped in error.
        higher_is_better: Which way is up.

    Returns:
        The verdict; None where the run goes on: a later checkpoint may be better, or there is too little to tell.
    """
    unit, chosen_on, measured_on = halved(scores, clusters)
    stopping_looks = looks - 1 - patience
    if stopping_looks < 1 or not chosen_on or not measured_on:
        return None
    sign = 1 if higher_is_better else -1
    names = list(scores)
    best = max(names, key=lambda name: sign * sum(scores[name][item] for item in chosen_on))
    later = names[-patience:]
    if names.index(best) >= len(names) - patience or len(names) >= looks:
        return None
    share, bounds = alpha / stopping_looks, []
    for name in later:
        its, theirs = ([sign * scores[one][item] for item in measured_on] for one in (name, best))
        found = paired_difference(its, theirs, [unit[item] for item in measured_on], level=1 - 2 * share)
        if found.high is None or found.high >= min_delta:
            return None
        bounds.append(found.high)
    return NoGain(best, tuple(later), max(bounds), share)
