"""Spending a number of judgments on the pairs that need them most."""

from functools import cached_property

from . import pairs as judge_pairs
from .battles import battles
from .bench import Bench
from .plan import Plan
from .questions import Pair, Question, orders_of, questions_of, sampled

Group = list[tuple[Question, str]]  # all questions about one prompt of one pair, with their keys


class Spending:
    """What one judge has been asked of an entry's pairs, and what is to be asked next.

    First come pairs that connect all answer sets, then, a few prompts at a time, the pair whose battles lower the
    variance of its difference in rating most (see :func:`judge_pairs.next_pair`). What a killed call left half judged
    is completed before anything else, so a budget is spent alike whatever came between.

    Args:
        plan: The entry, with what has been said.
        bench: The judge.
        budget: How many judgments it may make; a prompt is not begun that it could not complete.
    """

    def __init__(self, plan: Plan, bench: Bench, budget: int):
        self.plan, self.bench, self.budget = plan, bench, budget
        self.version = bench.version
        self.failed: set[str] = set()
        """Keys that gave no verdict in this call; their prompts are left for another."""
        self._groups: dict[tuple[str, str], list[Group]] = {}

    @cached_property
    def pairs(self) -> list[Pair]:
        """Returns all pairs, in the order of the answer sets."""
        return self.plan.pairs()

    @cached_property
    def _names(self) -> list[str]:
        return [answers.model_hash for answers in self.plan.sets]

    @cached_property
    def _spanning(self) -> list[Pair]:
        by_name = {frozenset(pair.names): pair for pair in self.pairs}
        chosen = judge_pairs.spanning(len(self._names), self.bench.judge.settings.seed)
        return [by_name[frozenset((self._names[i], self._names[j]))] for i, j in chosen]

    @cached_property
    def _batch(self) -> int:
        settings = self.bench.judge.settings
        each = len(orders_of(self.bench.judge)) * settings.repeats
        prompts = max(len({answer.prompt_key for answer in answers.answers}) for answers in self.plan.sets)
        return judge_pairs.batch_size(self.budget, len(self._names), each, prompts)

    def groups(self, pair: Pair) -> list[Group]:
        """Returns a pair's questions by prompt, in the order in which it takes the prompts."""
        if pair.names not in self._groups:
            found: dict[str, Group] = {}
            for question in questions_of(self.bench.judge, pair):
                found.setdefault(question.answer.prompt_key, []).append((question, question.key(self.version)))
            order = sampled(list(found), pair, self.bench.judge.settings.seed)
            self._groups[pair.names] = [found[key] for key in order]
        return self._groups[pair.names]

    def made(self) -> int:
        """Returns how many judgments are final."""
        return sum(self.plan.is_final(key) for pair in self._begun() for group in self.groups(pair) for _, key in group)

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
        ready = [group for group in half if not any(key in self.failed for _, key in group)]
        owed = sum(map(len, half)) - sum(map(len, ready))  # to what failed just now, by another call
        room = self.budget - self.made() - owed
        asked: list[Question] = []
        for group in ready or self._next():
            if len(asked) + len(group) > room:
                break
            asked += [question for question, _ in group]
        return asked

    def _next(self) -> list[Group]:
        """Returns the prompts of the pair whose turn it is."""
        begun = {pair.names for pair in self._begun()}
        pair = next((pair for pair in self._spanning if pair.names not in begun and self._open(pair)), None)
        pair = pair or self._best()
        return self._open(pair)[: self._batch] if pair else []

    def _best(self) -> Pair | None:
        begun = self._begun()
        said = [
            self.plan.judgments[key]
            for pair in begun
            for group in self.groups(pair)
            for _, key in group
            if self.plan.is_final(key)
        ]
        fought = [(b.candidate, b.opponent, b.preference) for b in battles(said) if b.preference is not None]
        room = [(*pair.names, len(self._open(pair))) for pair in self.pairs]
        chosen = judge_pairs.next_pair(*judge_pairs.matrices(self._names, fought, room))
        if chosen is None:
            return None
        wanted = {self._names[chosen[0]], self._names[chosen[1]]}
        return next(pair for pair in self.pairs if set(pair.names) == wanted)

    def _begun(self) -> list[Pair]:
        """Returns the pairs of which something has been said."""
        said = {(j.candidate, j.opponent) for j in self.plan.judgments.values() if j.judge_version == self.version}
        return [pair for pair in self.pairs if pair.names in said]

    def _open(self, pair: Pair) -> list[Group]:
        """Returns the prompts of a pair of which nothing is final and nothing failed just now."""
        return [
            group
            for group in self.groups(pair)
            if not any(self.plan.is_final(key) or key in self.failed for _, key in group)
        ]

    def _half(self) -> list[Group]:
        """Returns what prompts lack of which something is final and something is not."""
        groups = [group for pair in self._begun() for group in self.groups(pair)]
        lacking = [[part for part in group if not self.plan.is_final(part[1])] for group in groups]
        return [lack for lack, group in zip(lacking, groups, strict=True) if 0 < len(lack) < len(group)]
