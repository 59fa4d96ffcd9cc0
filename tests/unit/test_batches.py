"""Batches are planned from the requests alone, and every request is in exactly one."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from w2sr.teachers.batches import WINDOW, plan_batches
from w2sr.teachers.engine import Request


def requests_of(lengths: list[int]) -> list[Request]:
    return [Request(f"t{number}", f"p{number}", 0, number, "x" * length, number) for number, length in enumerate(lengths)]


@given(lengths=st.lists(st.integers(0, 30), max_size=300), batch_size=st.integers(1, 9))
def test_every_request_is_in_exactly_one_batch(lengths: list[int], batch_size: int) -> None:
    requests = requests_of(lengths)
    batches = list(plan_batches(requests, batch_size))
    assert sorted((request for batch in batches for request in batch), key=lambda request: request.position) == requests
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert len(batches) == -(-len(requests) // batch_size), "only the last window has a smaller batch"


@given(lengths=st.lists(st.integers(0, 30), max_size=300), batch_size=st.integers(1, 9))
def test_lengths_fall_within_a_window(lengths: list[int], batch_size: int) -> None:
    batches = list(plan_batches(requests_of(lengths), batch_size))
    for first in range(0, len(batches), WINDOW):
        window = [len(request.question) for batch in batches[first : first + WINDOW] for request in batch]
        assert window == sorted(window, reverse=True)


def test_requests_are_read_one_window_at_a_time() -> None:
    read = 0

    def source() -> Iterator[Request]:
        nonlocal read
        for request in requests_of([5] * 1000):
            read += 1
            yield request

    next(plan_batches(source(), 3))
    assert read == WINDOW * 3
