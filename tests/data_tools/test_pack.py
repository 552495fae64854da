"""Packing puts every token in exactly one row, and packs as tightly as best-fit decreasing does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from posttrain.data_tools.pack import Rows, best_fit_decreasing, pack, pack_in_order, split
from posttrain.data_tools.ragged import ranges


def tokens_of(rows: Rows) -> list[tuple[int, int]]:
    """Every (document, position) that the rows hold, in their order."""
    return list(
        zip(np.repeat(rows.document, rows.length).tolist(), ranges(rows.start, rows.length).tolist(), strict=True)
    )


def all_tokens(lengths: list[int]) -> list[tuple[int, int]]:
    return [(document, position) for document, length in enumerate(lengths) for position in range(length)]


def bins_one_by_one(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing as the textbook states it, one item at a time."""
    bins: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [items for items in bins if sum(items) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            bins.append([length])
    return bins


LENGTHS = st.lists(st.integers(0, 40), max_size=60)


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, max_length=st.integers(1, 33), strategy=st.sampled_from(["bfd_split", "wrapped"]))
def test_every_token_is_in_exactly_one_row(lengths, max_length, strategy):
    rows = pack(lengths, max_length, strategy)
    assert sorted(tokens_of(rows)) == all_tokens(lengths)
    sizes = rows.row_lengths()
    assert len(sizes) == len(rows)
    assert (sizes > 0).all()
    assert (sizes <= max_length).all()


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS)
def test_bfd_keeps_documents_whole(lengths):
    rows = pack(lengths, 40, "bfd")
    assert sorted(tokens_of(rows)) == all_tokens(lengths)
    assert (rows.start == 0).all()
    assert sorted(rows.document.tolist()) == [number for number, length in enumerate(lengths) if length]


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 24), max_size=80), capacity=st.integers(24, 40))
def test_placing_equal_lengths_together_is_still_best_fit_decreasing(lengths, capacity):
    placed, bins = best_fit_decreasing(np.array(lengths, dtype=np.int64), capacity)
    ours: dict[int, list[int]] = {}
    for item, number in zip(placed.tolist(), bins.tolist(), strict=True):
        ours.setdefault(number, []).append(lengths[item])
    # bins of equal room are interchangeable, so only how full they are is compared
    assert sorted(map(sum, ours.values())) == sorted(map(sum, bins_one_by_one(lengths, capacity)))
    assert sorted(placed.tolist()) == list(range(len(lengths)))


def test_wrapped_rows_are_full_but_the_last_and_run_in_document_order():
    assert pack([5, 0, 9, 4], 4, "wrapped").row_lengths().tolist() == [4, 4, 4, 4, 2]
    rows = pack([5, 0, 9, 3], 4, "wrapped")  # never a last row of one token, on which nothing can be learnt
    assert rows.row_lengths().tolist() == [4, 4, 4, 3, 2]
    assert tokens_of(rows) == all_tokens([5, 0, 9, 3])
    assert rows.joined


def test_a_document_longer_than_a_row_is_refused_by_bfd_rather_than_cut():
    with pytest.raises(ValueError, match="11 tokens does not fit"):
        pack([3, 11], 10, "bfd")


def test_split_keeps_every_token_in_rows_of_one_document():
    rows = split([7, 3, 0, 6], 3)
    assert rows.document.tolist() == [0, 0, 0, 1, 3, 3]
    assert rows.length.tolist() == [3, 2, 2, 3, 3, 3]
    assert tokens_of(rows) == all_tokens([7, 3, 0, 6])


def test_taking_rows_in_another_order_moves_whole_rows():
    rows = pack([3, 2, 2, 1], 4, "bfd")
    turned = rows.take(np.arange(len(rows))[::-1])
    assert turned.row_lengths().tolist() == rows.row_lengths().tolist()[::-1]
    assert sorted(tokens_of(turned)) == all_tokens([3, 2, 2, 1])


def test_a_million_documents_pack_tightly():
    lengths = np.random.default_rng(0).lognormal(5, 1, 1_000_000).astype(np.int64).clip(1, 2048)
    rows = pack(lengths, 2048, "bfd")
    assert rows.length.sum() == lengths.sum()
    assert rows.fill(2048) > 0.999


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_nothing_packs_to_nothing(strategy):
    rows = pack([], 8, strategy)
    assert (len(rows), rows.fill(8)) == (0, 0.0)


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, max_length=st.integers(1, 33), strategy=st.sampled_from(["bfd_split", "wrapped"]))
def test_packing_in_order_loses_nothing_either(lengths, max_length, strategy):
    begins = sorted({0, len(lengths) // 2})
    rows = pack_in_order(lengths, max_length, strategy, begins)
    assert sorted(tokens_of(rows)) == all_tokens(lengths)
    assert rows.row_lengths().max(initial=0) <= max_length


def test_rows_packed_in_order_hold_neighbours_and_no_two_phases():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 120, 40_000)
    begins = np.array([0, 31_234])
    rows = pack_in_order(lengths, 512, "bfd", begins)
    spans = [rows.document[a:b] for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)]
    widest = max(int(np.ptp(span)) for span in spans)
    assert widest < 40_000 / 60, "documents of a row are neighbours"
    assert all((span < 31_234).all() or (span >= 31_234).all() for span in spans)
    means = np.array([span.mean() for span in spans])
    assert (np.maximum.accumulate(means) - means).max() < 40_000 / 60, "rows follow the documents"
    assert rows.fill(512) > 0.97
