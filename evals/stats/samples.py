"""What several samples of an item say: the chance that one of k is right, and the vote of k."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Hashable, Sequence

_MOST_SUBSETS = 10_000  # of k samples that are gone through; of more, as many are drawn


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Returns the unbiased estimate that at least one of k samples is right.

    ``1 - C(n - c, k) / C(n, k)`` of c right samples among n (Chen et al. 2021, arXiv:2107.03374, equation 1). To put
    the share of right samples into ``1 - (1 - p)^k`` is biased.

    Raises:
        ValueError: There are fewer than k samples.
    """
    if not 1 <= k <= samples or not 0 <= right <= samples:
        raise ValueError(f"{right} right of {samples} samples, k = {k}")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def majority_at_k(answers: Sequence[Hashable | None], right: Sequence[float], k: int, seed: int = 0) -> float:
    """Returns how often the commonest answer among k samples is right (Wang et al. 2023, arXiv:2203.11171).

    The mean over all sets of k of the samples; over 10,000 drawn ones, where there are more. Among answers that are
    equally common one is chosen by lot, and samples without an answer have no vote.

    Args:
        answers: One of each sample; None where it could not be read.
        right: How right each is, 0 to 1.
        k: Voters.
        seed: Of the draws.

    Raises:
        ValueError: There are fewer than k samples.
    """
    count = len(answers)
    if not 1 <= k <= count:
        raise ValueError(f"{count} samples, k = {k}")
    if math.comb(count, k) <= _MOST_SUBSETS:
        chosen: list[Sequence[int]] = list(itertools.combinations(range(count), k))
    else:
        drawn = random.Random(seed)
        chosen = [drawn.sample(range(count), k) for _ in range(_MOST_SUBSETS)]
    return sum(_vote(answers, right, places) for places in chosen) / len(chosen)


def _vote(answers: Sequence[Hashable | None], right: Sequence[float], places: Sequence[int]) -> float:
    """Returns how right the winner of one vote is; nobody's win is wrong."""
    votes = Counter(answers[place] for place in places if answers[place] is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, number in votes.items() if number == most]
    worth = {answers[place]: right[place] for place in places}
    return sum(worth[winner] for winner in winners) / len(winners)
