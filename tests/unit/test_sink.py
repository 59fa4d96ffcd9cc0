"""How long replicas were at work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sr.teachers.sink import BusyTime


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 300), st.integers(0, 60)), max_size=60))
def test_overlapping_tasks_count_once_and_replicas_add_up(tasks: list[tuple[str, int, int]]) -> None:
    busy = BusyTime()
    for replica, ended, seconds in sorted(tasks, key=lambda task: task[1]):
        busy.add(replica, ended, seconds)
    covered = {(replica, tick) for replica, ended, seconds in tasks for tick in range(ended - seconds, ended)}
    assert busy.seconds == pytest.approx(len(covered))


def test_memory_stays_flat_however_many_tasks_there_were() -> None:
    busy = BusyTime()
    for number in range(5000):
        busy.add("a", 2.0 * number + 1, 1.0)
    assert busy.seconds == 5000
    assert sum(map(len, busy._intervals.values())) <= 1000
