"""Batches are planned from the requests alone, and every request is in exactly one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sr.teachers.batches import UNSORTED, WINDOW, plan_batches, windows
from w2sr.teachers.engine import Request


def requests_of(lengths: list[int]) -> list[Request]:
    return [Request(f"t{number}", f"p{number}", 0, number, "x" * length, number) for number, length in enumerate(lengths)]


@given(lengths=st.lists(st.integers(0, 30), max_size=300), batch_size=st.integers(1, 9), in_order=st.booleans())
def test_every_request_of_a_window_is_in_exactly_one_batch(lengths: list[int], batch_size: int, in_order: bool) -> None:
    requests = requests_of(lengths)
    batches = plan_batches(requests, batch_size, in_order)
    assert sorted((request for batch in batches for request in batch), key=lambda request: request.position) == requests
    assert all(len(batch) == batch_size for batch in batches[:-1])
    shown = [len(request.question) for batch in batches for request in batch]
    assert shown == (lengths if in_order else sorted(lengths, reverse=True))


@given(count=st.integers(0, 3000), batch_size=st.integers(1, 60))
def test_windows_hold_every_position_once_and_whole_batches(count: int, batch_size: int) -> None:
    found = list(windows(range(count), batch_size))
    assert list(itertools.chain.from_iterable(window.positions for window in found)) == list(range(count))
    assert [window.in_order for window in found] == [True, *[False] * len(found[1:])][: len(found)]
    assert all(len(window.positions) % batch_size == 0 for window in found[:-1])


@pytest.mark.parametrize("batch_size", [1, 3, 128, 1000])
def test_the_first_traces_are_those_of_the_first_prompts(batch_size: int) -> None:
    first = next(windows(range(100_000), batch_size))
    assert UNSORTED <= len(first.positions) < UNSORTED + batch_size
    assert first.in_order


def test_positions_are_read_one_window_at_a_time() -> None:
    source = itertools.count()
    found = windows(source, 300)
    next(found)
    next(found)
    assert next(source) == 300 + WINDOW * 300
