"""The people who write the small world's answers: careful ones, and careless ones with habits.

Demonstrations of mixed quality and comparisons by careful annotators are what post-training starts from (Ouyang et al.
2022, arXiv:2203.02155, section 3): a model tuned on the former learns the habits too, and the latter can mend them.
"""

from collections.abc import Callable, Mapping
from random import Random

from .families import Problem

Habit = Callable[[Problem, Random], str]


def _hedge(problem: Problem, rng: Random) -> str:
    return f"I think it is {problem.answer}, maybe."


def _apologise(problem: Problem, rng: Random) -> str:
    return f"{problem.answer}, sorry if that is wrong."


def _guess(problem: Problem, rng: Random) -> str:
    """A wrong answer of the right kind: off by one, or another person's fact."""
    return problem.slip(rng)


HABITS: Mapping[str, Habit] = {"hedge": _hedge, "apologise": _apologise, "guess": _guess}
_WRITTEN = (3, 1, 1)  # how often each habit shows in demonstrations
_COMPARED = (1, 1, 2)  # and in comparisons, which are asked for where they are not easy


def careless_answer(problem: Problem, rng: Random) -> str:
    """Answers by one of the careless habits, drawn anew each time."""
    return _by_habit(problem, rng, _WRITTEN)


def compare(problem: Problem, rng: Random) -> tuple[str, str]:
    """Returns the answer that a careful annotator prefers, right and bare, and one that comes of carelessness."""
    return problem.answer, _by_habit(problem, rng, _COMPARED)


def _by_habit(problem: Problem, rng: Random, weights: tuple[int, ...]) -> str:
    return rng.choices(tuple(HABITS.values()), weights)[0](problem, rng)
