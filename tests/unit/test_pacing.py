"""The pace of an endpoint, on a clock of our own."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sr.teachers.pacing import LONGEST_BACKOFF_S, Pace, backoff_s, retry_after_s


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def pace_of(clock: Clock, requests_per_minute: float | None = None) -> Pace:
    return Pace(requests_per_minute, 1.0, clock, clock.sleep)


@given(attempt=st.integers(1, 10_000), seed=st.integers(0, 2**63 - 1), asked=st.none() | st.floats(0, 1000))
def test_a_wait_is_bounded_repeatable_and_never_shorter_than_asked(attempt: int, seed: int, asked: float | None) -> None:
    wait = backoff_s(1.0, attempt, seed, asked)
    assert wait == backoff_s(1.0, attempt, seed, asked)
    assert 0.5 <= wait <= max(1.5 * LONGEST_BACKOFF_S, (asked or 0) + 1)
    assert asked is None or wait >= asked


def test_waits_double_and_differ_between_requests() -> None:
    means = [sum(backoff_s(1.0, attempt, seed, None) for seed in range(400)) / 400 for attempt in (1, 2, 3, 4)]
    assert means == pytest.approx([1, 2, 4, 8], rel=0.1)
    assert len({backoff_s(1.0, 1, seed, None) for seed in range(100)}) == 100


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        (None, None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("", None),
        ("Sun, 22 Nov 2026 02:00:30 GMT", 30.0),
        ("Sunday, 22-Nov-26 02:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 02:00:30 -0000", 30.0),
        ("Sun, 22 Nov 2026 01:00:00 GMT", 0.0),
        ("Sun, 22 Nov 99999999999 02:00:30 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, datetime(2026, 11, 22, 2, tzinfo=timezone.utc)) == seconds
    assert retry_after_s(value, datetime(2026, 11, 22, 2)) == seconds


def test_without_a_limit_nobody_waits() -> None:
    clock = Clock()
    pace = pace_of(clock)
    assert [asyncio.run(pace.turn()) for _ in range(5)] == [100.0] * 5


def test_requests_per_minute_are_kept() -> None:
    clock = Clock()
    pace = pace_of(clock, requests_per_minute=30)
    went = [asyncio.run(pace.turn()) for _ in range(4)]
    assert went == [100.0, 102.0, 104.0, 106.0]


def test_a_rate_limit_holds_everyone_for_as_long_as_asked_and_then_spaces_them_out() -> None:
    clock = Clock()
    pace = pace_of(clock)
    went = asyncio.run(pace.turn())
    assert pace.failed(went, everyone=True, limited=True, asked_s=10) >= 10
    after = [asyncio.run(pace.turn()) for _ in range(3)]
    assert after[0] >= 110
    assert after[1] - after[0] == pytest.approx(0.1)
    for _ in range(60):
        pace.answered()
    clock.now += 1
    assert asyncio.run(pace.turn()) == asyncio.run(pace.turn())  # the spacing is gone


def test_of_a_burst_only_the_first_failure_counts() -> None:
    clock = Clock()
    pace = pace_of(clock)
    went = [asyncio.run(pace.turn()) for _ in range(32)]
    clock.now += 0.5
    held = [pace.failed(at, everyone=True, limited=True) for at in went]
    assert pace.outages == 1
    assert held[0] > 0
    assert not any(held[1:])
    again = asyncio.run(pace.turn())
    pace.failed(again, everyone=True, limited=True)
    assert pace.outages == 2
    pace.answered()
    assert pace.outages == 0


def test_single_failures_hold_nobody_until_there_are_many_in_a_row() -> None:
    clock = Clock()
    pace = pace_of(clock)
    for number in range(1, 21):
        if number % 7 == 0:
            pace.answered()
        assert pace.failed(asyncio.run(pace.turn()), everyone=False) == 0.0
    pace.answered()
    held = [pace.failed(clock.now, everyone=False) for _ in range(8)]
    assert held[:7] == [0.0] * 7
    assert held[7] > 0


def test_a_request_that_waited_out_one_hold_waits_for_the_next_too() -> None:
    async def run() -> tuple[float, float]:
        pace = Pace(None, 0.05)
        began = asyncio.get_running_loop().time()
        pace.failed(await pace.turn(), everyone=True)
        waiting = asyncio.create_task(pace.turn())
        await asyncio.sleep(0.01)
        pace._held_until += 0.2  # another request met a longer outage meanwhile
        return began, await waiting

    began, went = asyncio.run(run())
    assert went - began >= 0.2
