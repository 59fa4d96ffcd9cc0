"""Best-fit decreasing: against the textbook loop, and on lengths as they are met."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sr.packing.fit import best_fit

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def textbook(lengths: list[int], capacity: int) -> list[int]:
    """The tokens in each bin: longest first, each into the fullest bin with room for it."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [number for number, room in enumerate(free) if room >= length]
        number = min(fitting, key=lambda number: free[number]) if fitting else len(free)
        if not fitting:
            free.append(capacity)
        free[number] -= length
    return sorted(capacity - room for room in free)


@given(LENGTHS, st.integers(40, 90))
def test_the_bins_are_as_full_as_those_of_the_textbook(lengths: list[int], capacity: int) -> None:
    bins = best_fit(np.array(lengths), capacity)
    assert sorted(int(np.array(lengths)[members].sum()) for members in bins.split()) == textbook(lengths, capacity)


@given(LENGTHS, st.integers(40, 90))
def test_every_item_is_in_exactly_one_bin_and_no_bin_is_over_the_limit(lengths: list[int], capacity: int) -> None:
    bins = best_fit(np.array(lengths), capacity)
    assert sorted(bins.members.tolist()) == list(range(len(lengths)))
    assert len(bins.split()) == len(bins)
    assert all(0 < sum(lengths[item] for item in members) <= capacity for members in bins.split())


@given(LENGTHS, st.randoms())
def test_another_order_makes_as_many_and_as_full_bins(lengths: list[int], random: object) -> None:
    shuffled = list(lengths)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (best_fit(np.array(some), 50) for some in (lengths, shuffled))
    assert sorted(np.add.reduceat(np.array(lengths)[one.members], one.ends - np.diff(one.ends, prepend=0))) == sorted(
        np.add.reduceat(np.array(shuffled)[other.members], other.ends - np.diff(other.ends, prepend=0))
    )


def test_nothing_makes_no_bins_and_an_item_over_the_limit_is_our_own_mistake() -> None:
    assert len(best_fit(np.zeros(0, np.int64), 10)) == 0
    with pytest.raises(AssertionError, match="1 to 10 tokens, got 3 to 11"):
        best_fit(np.array([3, 11]), 10)


def test_a_hundred_thousand_traces_fill_their_sequences_at_once() -> None:
    """Lengths as of chains of thought: log-normal. benchmarks/packing.py has the real ones, and a million."""
    lengths = np.clip(np.random.default_rng(0).lognormal(6, 0.6, 100_000).astype(np.int64), 1, 4096)
    began = time.process_time()
    bins = best_fit(lengths, 4096)
    assert time.process_time() - began < 2
    assert lengths.sum() / (len(bins) * 4096) > 0.99
