"""Spending a number of judgments where they narrow the ratings most."""

import math
from collections.abc import Sequence
from functools import cached_property
from random import Random

import numpy as np

from ..sequences import grouped
from ..stats.bradley_terry import posterior
from ..stats.classification import sigmoid
from .backends import OpenJudge
from .judgments import Judgment, battles
from .plan import JudgingPlan
from .questions import Pair, Question, orders_of, questions_of

_PRECISION = 0.025  # of the prior on ratings: as much as a tenth of a battle with a model of the mean rating tells

Group = list[Question]  # all about one prompt of one pair


class Spending:
    """What one judge has been asked of an entry's pairs, and what is to be asked next.

    First come pairs that connect all answer sets, then, a few prompts at a time, the pair whose battles lower the
    variance of its difference in rating most (see :func:`next_pair`). What a killed call left half judged
    is completed before anything else, so a budget is spent alike whatever came between.

    Args:
        plan: The entry, with what has been said.
        judge: The judge; it makes no more than :attr:`JudgingPlan.budget` judgments, and begins no prompt that it could
            not complete with them.
    """

    def __init__(self, plan: JudgingPlan, judge: OpenJudge):
        self.plan, self.judge, self.budget = plan, judge, plan.budget or 0
        self.pairs = plan.pairs()
        self._by_names = {frozenset(pair.names): pair for pair in self.pairs}
        self._names = [answers.model_hash for answers in plan.sets]
        self.version = judge.version
        self.failed: set[str] = set()
        """Keys that gave no verdict in this call; their prompts are left for another."""
        self._groups: dict[tuple[str, str | None], list[Group]] = {}

    def _pair(self, i: int, j: int) -> Pair:
        """Returns the pair of two answer sets by their places."""
        return self._by_names[frozenset((self._names[i], self._names[j]))]

    @cached_property
    def _batch(self) -> int:
        """Returns how many prompts a pair takes at a time: about eight rounds of choice, a prompt at least."""
        each = len(orders_of(self.judge.spec, self.pairs[0], "")) * self.judge.settings.repeats
        prompts = max(len({answer.prompt_key for answer in answers.answers}) for answers in self.plan.sets)
        rounds = max(8, 2 * len(self._names))
        return max(1, min(prompts, 25, self.budget // (each * rounds)))

    def groups(self, pair: Pair) -> list[Group]:
        """Returns a pair's questions by prompt, in the order in which it takes the prompts."""
        if pair.names not in self._groups:
            asked = questions_of(self.judge.spec, pair, self.version)
            found = grouped(asked, lambda question: question.answer.prompt_key)
            order = Random(f"{self.judge.settings.seed}/{pair.seed}").sample(sorted(found), len(found))
            self._groups[pair.names] = [found[key] for key in order]
        return self._groups[pair.names]

    def made(self) -> int:
        """Returns how many judgments are final."""
        return len(self._said())

    def left(self) -> int:
        """Returns how many judgments are still to be made: none if the next prompt would go beyond the budget."""
        room = self.budget - self.made()
        sizes = [len(missing) for missing in self._half()]
        sizes += [len(group) for pair in self.pairs for group in self._open(pair)]
        if not sizes or room < min(sizes):
            return 0
        return min(room, sum(sizes))

    def batch(self) -> list[Question]:
        """Returns what is to be asked next; nothing when the budget is spent or everything is judged."""
        half = self._half()
        ready = [group for group in half if not any(question.key in self.failed for question in group)]
        owed = sum(map(len, half)) - sum(map(len, ready))  # to what failed just now, by another call
        room = self.budget - self.made() - owed
        asked: list[Question] = []
        for group in ready or self._next():
            if len(asked) + len(group) > room:
                break
            asked += group
        return asked

    def _next(self) -> list[Group]:
        """Returns the prompts of the pair whose turn it is."""
        begun = {pair.names for pair in self._begun()}
        connecting = [self._pair(*places) for places in spanning(len(self._names), self.judge.settings.seed)]
        pair = next((pair for pair in connecting if pair.names not in begun and self._open(pair)), None)
        pair = pair or self._best()
        return self._open(pair)[: self._batch] if pair else []

    def _best(self) -> Pair | None:
        fought = [(b.candidate, b.opponent, b.preference) for b in battles(self._said()) if b.preference is not None]
        room = [(pair.candidate.model_hash, str(pair.names[1]), len(self._open(pair))) for pair in self.pairs]
        chosen = next_pair(*matrices(self._names, fought, room))
        return self._pair(*chosen) if chosen else None

    def _begun(self) -> list[Pair]:
        """Returns the pairs of which something has been said."""
        said = self.plan.judgments
        return [pair for pair in self.pairs if any(asked.key in said for group in self.groups(pair) for asked in group)]

    def _said(self) -> list[Judgment]:
        """Returns the judgments that are final."""
        keys = [question.key for pair in self._begun() for group in self.groups(pair) for question in group]
        return [self.plan.judgments[key] for key in keys if self.plan.is_final(key)]

    def _open(self, pair: Pair) -> list[Group]:
        """Returns the prompts of a pair of which nothing is final and nothing failed just now."""
        return [
            group
            for group in self.groups(pair)
            if not any(self.plan.is_final(question.key) or question.key in self.failed for question in group)
        ]

    def _half(self) -> list[Group]:
        """Returns what prompts lack of which something is final and something is not."""
        groups = [group for pair in self._begun() for group in self.groups(pair)]
        lacking = [self.plan.missing(group) for group in groups]
        return [lack for lack, group in zip(lacking, groups, strict=True) if 0 < len(lack) < len(group)]


# --- which pair is next ---


def spanning(players: int, seed: int) -> list[tuple[int, int]]:
    """Returns pairs that connect all players: a ring in drawn order, so that no two are further apart than half of it.

    Args:
        players: How many there are.
        seed: Of the order.
    """
    order = Random(seed).sample(range(players), players)
    ring = list(zip(order, order[1:] + order[:1], strict=True))
    return [(max(pair), min(pair)) for pair in (ring if players > 2 else ring[: players // 2])]


def next_pair(wins: "np.ndarray", counts: "np.ndarray", left: "np.ndarray") -> tuple[int, int] | None:
    """Returns the pair whose next battle lowers the variance of its own difference in rating most.

    Ratings are Bradley-Terry's under a weak prior, ``C`` their covariance (:func:`~..stats.bradley_terry.posterior`).
    A battle between i and j has the information ``w = p (1 - p)``, and lowers the variance of their difference
    ``v = C_ii + C_jj - 2 C_ij`` by ``w v^2 / (1 + w v)`` (Sherman and Morrison 1950); this greedy choice is the one of
    Chatbot Arena's sampling rule (Chiang et al. 2024, arXiv:2403.04132, section 5) with a variance that knows of all
    other battles. Of equals the first is taken.

    Args:
        wins: What i won of its battles with j, ties one half, float64 ``[players, players]``.
        counts: Battles, symmetric, float64 ``[players, players]``.
        left: Battles that a pair could still have, symmetric, ``[players, players]``.

    Returns:
        ``(i, j)`` with ``i > j``; None if nothing is left.
    """
    if not (left > 0).any():
        return None
    theta, covariance = posterior(wins, counts, _PRECISION)
    p = sigmoid(theta[:, None] - theta[None, :])
    variance = np.diag(covariance)[:, None] + np.diag(covariance)[None, :] - 2 * covariance
    w = p * (1 - p)
    gain = np.where(left > 0, w * variance**2 / (1 + w * variance), -math.inf)
    gain = np.where(np.tri(len(gain), k=-1, dtype=bool), gain, -math.inf)
    i, j = divmod(int(np.argmax(np.round(gain, 12))), len(gain))
    return i, j


def matrices(
    names: Sequence[str], fought: Sequence[tuple[str, str, float]], room: Sequence[tuple[str, str, int]]
) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
    """Returns wins, counts and battles left of players by name, as :func:`next_pair` takes them.

    Args:
        names: The players.
        fought: Candidate, opponent and the candidate's preference of each battle.
        room: Candidate, opponent and how many battles they could still have.
    """
    at = {name: number for number, name in enumerate(names)}
    wins, counts, left = (np.zeros((len(names), len(names))) for _ in range(3))
    for one, other, preference in fought:
        wins[at[one], at[other]] += preference
        wins[at[other], at[one]] += 1 - preference
        counts[at[one], at[other]] += 1
        counts[at[other], at[one]] += 1
    for one, other, number in room:
        left[at[one], at[other]] = left[at[other], at[one]] = number
    return wins, counts, left
