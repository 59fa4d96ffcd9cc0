"""Bins: every item once, never over the limit, and fuller than the textbook makes them."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sr.packing.fit import fill_bins

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def best_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """The number of bins of the textbook: longest first, each into the fullest bin with room for it."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [number for number, room in enumerate(free) if room >= length]
        number = min(fitting, key=lambda number: free[number]) if fitting else len(free)
        if not fitting:
            free.append(capacity)
        free[number] -= length
    return len(free)


@given(LENGTHS, st.integers(40, 90))
def test_every_item_is_in_exactly_one_bin_and_no_bin_is_over_the_limit(lengths: list[int], capacity: int) -> None:
    bins = fill_bins(np.array(lengths), capacity)
    assert sorted(bins.members.tolist()) == list(range(len(lengths)))
    assert len(bins.split()) == len(bins)
    assert all(0 < sum(lengths[item] for item in members) <= capacity for members in bins.split())


@given(LENGTHS, st.integers(40, 90))
def test_at_most_one_bin_is_half_empty(lengths: list[int], capacity: int) -> None:
    totals = [sum(lengths[item] for item in members) for members in fill_bins(np.array(lengths), capacity).split()]
    assert sum(2 * total <= capacity for total in totals) <= 1


@given(LENGTHS, st.integers(0, 99))
def test_another_order_makes_as_many_and_as_full_bins(lengths: list[int], seed: int) -> None:
    shuffled = list(lengths)
    random.Random(seed).shuffle(shuffled)
    one, other = (
        [sorted(some[item] for item in members) for members in fill_bins(np.array(some), 50).split()] for some in (lengths, shuffled)
    )
    assert one == other


@pytest.mark.parametrize("capacity", [1024, 2048, 4096])
@pytest.mark.parametrize("num_rows", [300, 2000])
def test_never_more_bins_than_best_fit_decreasing_on_lengths_as_of_traces(capacity: int, num_rows: int) -> None:
    for seed in range(3):
        lengths = np.clip(np.random.default_rng(seed).lognormal(5.5, 0.6, num_rows).astype(np.int64), 1, 1024)
        textbook = best_fit_decreasing(lengths.tolist(), capacity)
        least = -(-int(lengths.sum()) // capacity)
        assert least <= len(fill_bins(lengths, capacity)) <= textbook


@pytest.mark.parametrize(
    ("lengths", "capacity", "fewest"), [([6, 6, 5, 5, 4, 4], 10, 3), ([7, 5, 5, 3], 10, 2), ([3] * 7, 9, 3), ([10] * 4, 10, 4)]
)
def test_bins_that_can_be_full_are(lengths: list[int], capacity: int, fewest: int) -> None:
    assert len(fill_bins(np.array(lengths), capacity)) == fewest


def test_nothing_makes_no_bins_and_an_item_over_the_limit_is_our_own_mistake() -> None:
    assert len(fill_bins(np.zeros(0, np.int64), 10)) == 0
    with pytest.raises(AssertionError, match="1 to 10 tokens, got 3 to 11"):
        fill_bins(np.array([3, 11]), 10)


@pytest.mark.parametrize("capacity", [1024, 4096])
def test_a_hundred_thousand_traces_fill_their_sequences_at_once(capacity: int) -> None:
    """Lengths as of chains of thought: log-normal. benchmarks/packing.py has the real ones, and a million."""
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.6, 100_000).astype(np.int64), 1, capacity)
    began = time.process_time()
    bins = fill_bins(lengths, capacity)
    assert time.process_time() - began < 2
    assert lengths.sum() / (len(bins) * capacity) > 0.998
