"""Which requests a generator gets, and in which tasks: the plan, arcs of prompts, batches, singles, rescue."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2sr.records import Prompt, Trace, seed_of, trace_id_of
from w2sr.teachers.engine import Request
from w2sr.teachers.requests import Arc, RequestPlan, arcs
from w2sr.teachers.sources import PlannedSource, RescueSource


def prompts_of(count: int) -> list[Prompt]:
    return [Prompt(f"p{number}", "train", "x" * (1 + number * 7 % 23), "1", None, "s", "{}") for number in range(count)]


def trace_of(request: Request) -> Trace:
    place = (request.trace_id, request.prompt_id, "g", request.sample_index)
    return Trace(*place, "t", "stop", 1, 1, request.seed, "h", "d", "e", None, request.position)


def all_tasks(source: PlannedSource) -> list[list[Request]]:
    return list(iter(source.next, None))


@given(count=st.integers(0, 60), shares=st.lists(st.floats(0.05, 1), min_size=1, max_size=5))
def test_arcs_cover_the_ring_evenly_and_take_the_share_asked_for(count: int, shares: list[float]) -> None:
    prompts = prompts_of(count)
    members = [arc.members(prompts, 3) for arc in arcs(shares)]
    for share, part in zip(shares, members, strict=True):
        assert part == sorted(set(part))
        assert abs(len(part) - share * count) <= 1
    taken = [sum(index in part for part in members) for index in range(count)]
    if taken:
        # Arc after arc round the ring: nobody is asked for a second time before everybody was asked once, rounding at the seams aside.
        assert sum(abs(number - sum(shares)) >= 2 for number in taken) == 0


@pytest.mark.parametrize("parts", [20, 7])
def test_arcs_that_fill_the_ring_have_no_prompt_in_common_and_miss_none(parts: int) -> None:
    for first, second in itertools.combinations(range(1, parts), 2):
        shares = [first / parts, (second - first) / parts, (parts - second) / parts]
        for count in (1, 2, 5, 10, 15, 30, 45, 50):
            members = [arc.members(prompts_of(count), 3) for arc in arcs(shares)]
            assert sorted(itertools.chain(*members)) == list(range(count)), (shares, count)


@given(count=st.integers(1, 60), shares=st.lists(st.integers(1, 99).map(lambda number: number / 100), min_size=2, max_size=6))
def test_prompts_are_asked_in_turn_however_many_rounds_the_shares_make(count: int, shares: list[float]) -> None:
    members = [arc.members(prompts_of(count), 3) for arc in arcs(shares)]
    asked = [sum(index in part for part in members) for index in range(count)]
    assert max(asked) - min(asked) <= 1, "no prompt at a seam is asked once more or once less"


def test_two_halves_are_disjoint_and_complete_and_order_does_not_matter() -> None:
    prompts = prompts_of(101)
    first, second = (arc.members(prompts, 0) for arc in arcs([0.5, 0.5]))
    assert sorted(first + second) == list(range(101))
    shuffled = prompts[::-1]
    assert {shuffled[index].prompt_id for index in arcs([0.5])[0].members(shuffled, 0)} == {prompts[index].prompt_id for index in first}


def test_a_request_comes_from_prompt_generator_and_sample_only() -> None:
    plan = RequestPlan("weak", prompts_of(5), 3, run_seed=9, arc=Arc(0.2, 0.6))
    assert plan.num_requests == 9
    for position in plan.positions():
        request = plan.request_at(position)
        prompt, sample = divmod(position, 3)
        assert (request.prompt_id, request.sample_index, request.position) == (f"p{prompt}", sample, position)
        assert request.trace_id == trace_id_of(f"p{prompt}", "weak", sample) == plan.trace_id_at(position)
        assert request.seed == seed_of(9, request.trace_id)


@settings(deadline=None)
@given(count=st.integers(0, 70), samples=st.integers(1, 3), batch=st.sampled_from([1, 2, 5]), done=st.sets(st.integers(0, 209)))
def test_a_second_run_makes_what_the_first_missed_in_the_same_batches(count: int, samples: int, batch: int, done: set[int]) -> None:
    plan = RequestPlan("g", prompts_of(count), samples, 0)
    calm = all_tasks(PlannedSource(plan, lambda _: False, batch))
    assert sorted(request.position for task in calm for request in task) == list(range(count * samples))
    again = all_tasks(PlannedSource(plan, done.__contains__, batch))
    expected = [[request for request in task if request.position not in done] for task in calm]
    assert again == [task for task in expected if task]


def solve(
    plan: RequestPlan, first_right: Callable[[int], int], batch: int, stored: Sequence[Trace] = (), stop_after: int = 10**9
) -> list[Trace]:
    """Work a rescue source off, `stop_after` tasks at most; prompt p is right from sample first_right(p) on."""

    def judge(traces: Sequence[Trace]) -> list[bool]:
        return [trace.sample_index >= first_right(trace.position // plan.samples) for trace in traces]

    source = RescueSource(plan, stored, judge, batch)
    made = list(stored)
    under_way: list[list[Request]] = []
    for _ in range(10_000):
        task = source.next()
        if task is not None:
            under_way.append(task)
        if not under_way:
            assert not source.may_grow
            return made
        if task is None or len(under_way) == 3:
            traces = [trace_of(request) for request in under_way.pop()]  # the last first: the order of finishing is not that of asking
            made += traces
            source.done(traces)
            stop_after -= 1
            if stop_after == 0:
                return made
    raise AssertionError("the source does not end")


@settings(deadline=None)
@given(
    count=st.integers(0, 25),
    samples=st.integers(1, 4),
    batch=st.sampled_from([1, 4]),
    rights=st.lists(st.integers(0, 5), min_size=25, max_size=25),
    stop_after=st.integers(1, 12),
)
def test_rescue_asks_until_right_or_capped_whatever_was_interrupted(
    count: int, samples: int, batch: int, rights: list[int], stop_after: int
) -> None:
    plan = RequestPlan("g", prompts_of(count), samples, 0)
    expected = {p * samples + s for p in range(count) for s in range(min(samples, rights[p] + 1))}
    interrupted = solve(plan, rights.__getitem__, batch, stop_after=stop_after)
    for made in (solve(plan, rights.__getitem__, batch), solve(plan, rights.__getitem__, batch, stored=interrupted)):
        positions = [trace.position for trace in made]
        assert len(set(positions)) == len(positions)
        assert set(positions) == expected


def test_a_prompt_given_up_in_rescue_is_left_alone() -> None:
    plan = RequestPlan("g", prompts_of(2), 3, 0)
    source = RescueSource(plan, [], lambda traces: [False for _ in traces], 1)
    first, second = source.next(), source.next()
    assert first is not None
    assert second is not None
    source.given_up(first)
    source.done([trace_of(request) for request in second])
    positions = [task[0].position for task in iter(source.next, None)]
    assert positions == [second[0].position + 1]
