"""Which two answers a voter sees next, and which of them on the left."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ...data_tools.files import hash_json
from ..answers import Answer, AnswerSet
from ..judging.judgments import Judgment, Order


@dataclass(frozen=True)
class Matchup:
    """Two different answers to one prompt.

    Attributes:
        pair: The number of the pair of models.
        prompt: The number of the prompt among all.
        candidate: The model whose run folder keeps the vote.
        opponent: The other.
        own: The candidate's answer.
        other: The opponent's.
    """

    pair: int
    prompt: int
    candidate: AnswerSet
    opponent: AnswerSet
    own: Answer
    other: Answer

    @cached_property
    def id(self) -> str:
        """Returns what names the two answers, whichever was called the candidate, and tells nothing of the models."""
        return _identity(
            (self.candidate.model_hash, self.own.key), (self.opponent.model_hash, self.other.key), self.own.sample
        )


def judged_id(vote: Judgment) -> str:
    """Returns :attr:`Matchup.id` of what a vote was about."""
    own, other = (vote.candidate, vote.candidate_answer), (vote.opponent or "", vote.opponent_answer or "")
    return _identity(own, other, vote.sample)


def _identity(one: tuple[str, str], two: tuple[str, str], sample: int) -> str:
    return hash_json([sorted([one, two]), sample])


def match(sets: Sequence[AnswerSet]) -> tuple[list[Matchup], int]:
    """Pairs all models on the prompts that both have answered.

    Returns:
        The matchups, and how many were left out because the two answers are the same, which no vote could tell apart.
    """
    found: list[Matchup] = []
    identical, pair = 0, 0
    prompts: dict[tuple[str, int], int] = {}
    indexed = [(answers, answers.by_prompt()) for answers in sets]
    for j, (candidate, own) in enumerate(indexed):
        for opponent, other in indexed[:j]:
            for key in [key for key in own if key in other]:
                if own[key].texts == other[key].texts:
                    identical += 1
                    continue
                number = prompts.setdefault(key, len(prompts))
                found.append(Matchup(pair, number, candidate, opponent, own[key], other[key]))
            pair += 1
    return found, identical


class Schedule:
    """Chooses the next matchup: of the pair with the fewest votes, the prompt with the fewest; by lot among equals.

    The choice depends on the votes and the seed alone, so that a page that is loaded again asks the same.

    Args:
        matchups: All there are.
        seed: Of the lots.
    """

    def __init__(self, matchups: Sequence[Matchup], seed: int):
        rng = random.Random(seed)
        pairs = sorted({matchup.pair for matchup in matchups})
        prompts = sorted({matchup.prompt for matchup in matchups})
        self._lots = {pair: rng.random() for pair in pairs}
        # One order of the prompts for all pairs: sides alternate over it, and over the pairs of each prompt.
        self._places = dict(zip(prompts, rng.sample(range(len(prompts)), len(prompts)), strict=True))
        self.matchups = {matchup.id: matchup for matchup in matchups}
        self._open: dict[int, dict[str, Matchup]] = {pair: {} for pair in pairs}
        for name, matchup in self.matchups.items():
            self._open[matchup.pair][name] = matchup
        self._pair_votes = dict.fromkeys(pairs, 0)
        self._prompt_votes = dict.fromkeys(prompts, 0)
        self._lead = dict.fromkeys(pairs, 0)  # votes with the candidate on the left, less the others

    @property
    def total(self) -> int:
        """Returns how many matchups there are."""
        return len(self.matchups)

    @property
    def pairs(self) -> int:
        """Returns how many pairs of models there are."""
        return len(self._lots)

    @property
    def remaining(self) -> int:
        """Returns how many the voter has not voted on."""
        return sum(map(len, self._open.values()))

    def count(self, vote: Judgment, by: int = 1, *, own: bool) -> Matchup | None:
        """Takes a vote into account.

        Args:
            vote: The vote; one on answers that are not compared here changes nothing.
            by: 1, or -1 if it is taken back.
            own: Whether it is this voter's, who is not asked again.

        Returns:
            What it was about, or None if that is not compared here.
        """
        matchup = self.matchups.get(judged_id(vote))
        if matchup is None:
            return None
        self._pair_votes[matchup.pair] += by
        self._prompt_votes[matchup.prompt] += by
        straight = (vote.order == "candidate-first") == (vote.candidate == matchup.candidate.model_hash)
        self._lead[matchup.pair] += by if straight else -by
        if own and by > 0:
            self._open[matchup.pair].pop(matchup.id, None)
        elif own:
            self._open[matchup.pair][matchup.id] = matchup
        return matchup

    def next(self, skipped: Sequence[str]) -> Matchup | None:
        """Returns what to ask next, or None when all is voted or skipped."""
        left_out = set(skipped)
        pairs = sorted(self._open, key=lambda pair: (self._pair_votes[pair], self._lots[pair]))
        for pair in pairs:
            choices = [matchup for name, matchup in self._open[pair].items() if name not in left_out]
            if choices:
                return min(choices, key=lambda m: (self._prompt_votes[m.prompt], self._places[m.prompt]))
        return None

    def order(self, matchup: Matchup) -> Order:
        """Returns which answer goes to the left: the side that the pair has seen less, else by turns."""
        lead = self._lead[matchup.pair]
        if lead:
            return "candidate-first" if lead < 0 else "candidate-second"
        return "candidate-first" if (self._places[matchup.prompt] + matchup.pair) % 2 else "candidate-second"
