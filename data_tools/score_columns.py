"""Scores of rows, whoever gives them: which values rows may have."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

import numpy as np
from pydantic import model_validator

from .dataset import number_in
from .errors import DataError
from .row_tool import blocks_of, readable
from .spec import Section, Share, SourceSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDING = 1e-9  # .29 of 100 rows are 29


class Bounds(Section):
    """Which values of a score a row may have, both ends included."""

    min: float | None = None
    """The least value."""
    max: float | None = None
    """The largest value."""
    min_quantile: Share | None = None
    """The quantile, over the scored rows of all sources, that is the least value: `.9` keeps the highest tenth."""
    max_quantile: Share | None = None
    """The quantile that is the largest value: `.5` keeps the lower half."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [getattr(self, f"{end}{kind}") for end in ("min", "max") for kind in ("", "_quantile")]
        if not any(value is not None for value in given):
            raise ValueError("give one of min, max, min_quantile and max_quantile")
        for end in ("min", "max"):
            if getattr(self, end) is not None and getattr(self, f"{end}_quantile") is not None:
                raise ValueError(f"give {end} or {end}_quantile, not both")
        return self

    def resolve(self, values: "NDArray[np.float64]") -> tuple[float, float]:
        """Returns the least and the largest value; those of quantiles occur among the values.

        Of n values ``min_quantile: q`` keeps all but the q n lowest, ``max_quantile: q`` the q n lowest and what equals
        the last of those.
        """
        low, high, ranked = self.min, self.max, np.sort(values)
        last = len(ranked) - 1
        if len(ranked) and self.min_quantile is not None:
            low = float(ranked[min(last, math.floor(self.min_quantile * len(ranked) + _ROUNDING))])
        if len(ranked) and self.max_quantile is not None:
            high = float(ranked[max(0, math.ceil(self.max_quantile * len(ranked) - _ROUNDING) - 1)])
        return -math.inf if low is None else low, math.inf if high is None else high


def outside(value: float, bounds: tuple[float, float]) -> str:
    """Returns on which side of resolved bounds a value lies; nothing if it is within."""
    low, high = bounds
    if low <= value <= high:
        return ""
    return f"below {low:.6g}" if value < low else f"above {high:.6g}"


def column_values(source: SourceSpec, column: str) -> Iterator[tuple[str, float]]:
    """Yields where each row of a source is and its number in a column, of those that have a finite one.

    Raises:
        DataError: No row has one.
    """
    found = 0
    for rows in blocks_of(source):
        for row, value in readable(rows, lambda row: number_in(row.values, column)):
            found += 1
            yield row.where, value
    if not found:
        raise DataError(f"has no numbers in a column '{column}'", where=source.title)
