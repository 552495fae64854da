"""Changes of a task's rows that leave the right answers as they are: what an answer should not depend on."""

import random
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from ..data_tools.spec import ClosedSection, PositiveShare
from .errors import SuiteError

if TYPE_CHECKING:
    from datasets import Dataset

_SHORTEST = 4  # letters of a word that is misspelt: shorter ones become other words


class TypingErrors(ClosedSection):
    """Errors of typing, as of Belinkov and Bisk (2018, arXiv:1711.02173, section 3.2), within words."""

    column: str = "question"
    """The column whose text is misspelt."""
    rate: PositiveShare = 0.1
    """The share of words of four letters or more that get one error: two letters swapped, one lost, or one doubled."""


class OptionOrder(ClosedSection):
    """Options in another order, as of Zheng et al. (2024, arXiv:2309.03882)."""

    column: str = "choices"
    """The column that lists the options."""
    answer: str = "answer"
    """The column that holds the place of the right one, from 0."""
    fixed: str = r"(?i:\b(?:above|below)\b)|\b[A-Z],? (?:and|or|nor|&) [A-Z]\b"
    """A regular expression of what names other options by their place ("none of the above", "both A and B", as in one
    of 25 items of MMLU): an item with such an option keeps its order, since in another it would be another question."""

    @field_validator("fixed")
    @classmethod
    def _is_an_expression(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern


class RowChange(ClosedSection):
    """A change, the same for a row whatever rows stand beside it."""

    seed: int
    """What is drawn depends on it and on the row alone."""
    how: TypingErrors | OptionOrder
    """Errors of typing, or options in another order."""

    def apply(self, rows: "Dataset", where: str) -> "Dataset":
        """Returns rows with the change made.

        Args:
            rows: The rows that are scored.
            where: The task, for errors.

        Raises:
            SuiteError: A column is missing or not of the type that the change needs.
        """
        change: Callable[[dict[str, Any]], dict[str, Any]] = (
            self._misspell if isinstance(self.how, TypingErrors) else self._reorder
        )
        made = []
        for place, row in enumerate(rows):
            try:
                made.append(dict(row) | change(dict(row)))
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                what = f"row {place} cannot be changed by `{type(self.how).__name__}`: {type(error).__name__}: {error}"
                raise SuiteError(what, where=where, hint=f"its columns: {', '.join(rows.column_names)}") from error
        return type(rows).from_list(made, features=rows.features)

    def _misspell(self, row: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(self.how, TypingErrors)
        text: str = row[self.how.column]
        draws = random.Random(f"{self.seed}:{text}")
        words = [_mistyped(word, draws) if draws.random() < self.how.rate else word for word in text.split(" ")]
        return {self.how.column: " ".join(words)}

    def _reorder(self, row: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(self.how, OptionOrder)
        options, right = list(row[self.how.column]), int(row[self.how.answer])
        if not 0 <= right < len(options):
            raise ValueError(f"the answer {right} is none of {len(options)} options")
        if any(re.search(self.how.fixed, str(option)) for option in options):
            return {}
        order = list(range(len(options)))
        random.Random(f"{self.seed}:{options}").shuffle(order)
        moved = [options[place] for place in order]
        return {self.how.column: moved, self.how.answer: type(row[self.how.answer])(order.index(right))}


def _mistyped(word: str, draws: random.Random) -> str:
    """Makes one error behind the first letter; numbers, names in capitals and short words stay as they are."""
    letters = word.rstrip(".,;:!?")
    if len(letters) < _SHORTEST or not letters.isalpha() or letters.isupper():
        return word
    at = draws.randrange(1, len(letters) - 1)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return draws.choice([swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]])
