"""The dispatcher's invariant, under any order of completions and deaths."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.dispatch import Dispatcher


def test_units_are_handed_out_in_order_and_one_a_replica() -> None:
    work = Dispatcher([3, 5, 7], max_attempts=2)
    assert (work.lease(0), work.lease(1)) == (3, 5)
    assert work.complete(1) == 5
    assert work.lease(1) == 7
    assert work.lease(2) is None
    assert not work.is_finished()
    assert {work.complete(0), work.complete(1)} == {3, 7}
    assert work.is_finished()


def test_a_lost_unit_comes_first_and_a_second_death_gives_it_up() -> None:
    work = Dispatcher([1, 2], max_attempts=2)
    work.lease(0)
    assert work.lose(0) is None
    assert work.lease(1) == 1
    assert work.lose(1) == 1
    assert work.lease(2) is None, "nothing is leased after a unit was given up"
    assert work.is_finished()


@given(
    num_units=st.integers(0, 12),
    num_replicas=st.integers(1, 4),
    max_attempts=st.integers(1, 3),
    events=st.lists(st.tuples(st.sampled_from(["lease", "complete", "lose"]), st.integers(0, 3)), max_size=80),
)
def test_every_unit_is_in_exactly_one_place_whatever_happens(
    num_units: int, num_replicas: int, max_attempts: int, events: list[tuple[str, int]]
) -> None:
    work = Dispatcher(range(num_units), max_attempts)
    leased: dict[int, int] = {}
    completed: list[int] = []
    deaths = dict.fromkeys(range(num_units), 0)
    given_up: list[int] = []
    for event, number in events:
        replica = number % num_replicas
        if event == "lease" and replica not in leased:
            unit = work.lease(replica)
            assert (unit is None) == bool(given_up or len(leased) + len(completed) == num_units)
            if unit is not None:
                assert unit not in leased.values()
                leased[replica] = unit
        elif event == "complete" and replica in leased:
            assert work.complete(replica) == leased[replica]
            completed.append(leased.pop(replica))
        elif event == "lose" and replica in leased:
            unit = leased.pop(replica)
            deaths[unit] += 1
            gone = work.lose(replica)
            assert (gone is not None) == (deaths[unit] >= max_attempts)
            given_up += [] if gone is None else [gone]
        assert {number: work.unit_of(number) for number in leased} == leased
        assert len(completed) == len(set(completed))
        assert work.is_finished() == (not leased and (bool(given_up) or len(completed) == num_units))
