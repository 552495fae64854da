"""Reward functions for the tests' recipes."""

from typing import Any


def share_of_low_ids(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """The share of a completion's tokens in the first half of the vocabulary."""
    return [sum(token < 256 for token in ids) / len(ids) for ids in completion_ids]


def length(completion_ids: list[list[int]]) -> list[float]:
    """The number of tokens."""
    return [float(len(ids)) for ids in completion_ids]
