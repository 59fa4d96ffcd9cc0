"""Waves of rows copied from a store that is still written."""

from __future__ import annotations

from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.store_rows import trace_at
from w2sr.curation.arrivals import Arrivals
from w2sr.errors import UserError
from w2sr.prompts.waves import share_of, wave_bounds
from w2sr.records import Prompt, Trace
from w2sr.tables import part_files, read_table
from w2sr.teachers.requests import Arc, RequestPlan
from w2sr.traces.store import TraceStore

SAMPLES = 4


def plan_of(num_prompts: int, arc: Arc) -> RequestPlan:
    prompts = [Prompt(f"p{index}", "train", "q", "1", None, "here", "{}") for index in range(num_prompts)]
    return RequestPlan("weak", prompts, SAMPLES, 0, arc)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_wave_is_whole_when_its_last_row_was_committed_and_in_order_whatever_the_order_of_commits(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("arrivals")
    num_prompts = data.draw(st.integers(2, 9))
    waves = data.draw(st.integers(1, num_prompts))
    plan = plan_of(num_prompts, Arc(data.draw(st.sampled_from([0.0, 0.3])), data.draw(st.sampled_from([1.0, 0.5]))))
    bounds = wave_bounds(num_prompts, waves)
    wanted = {wave: [p for p in plan.positions() if bounds[wave] <= p // SAMPLES < bounds[wave + 1]] for wave in range(waves)}
    order = data.draw(st.permutations(list(plan.positions())))
    arrivals = Arrivals(folder / "stage", Trace, plan, bounds, lambda wave: folder / str(wave))
    done: set[int] = set()
    # Hypothesis may leave an example in the middle: a store that stays open keeps the interpreter from ending.
    with closing(arrivals), TraceStore.open(folder / "stage", Trace, plan.num_positions, flush_interval_s=3600) as store:
        num_stored = 0
        while num_stored < len(order):
            lot = order[num_stored : num_stored + data.draw(st.integers(1, 8))]
            store.append([trace_at(position) for position in lot])
            store.flush()
            num_stored += len(lot)
            if num_stored == len(order) and data.draw(st.booleans()):
                store.finish()
            arrivals.poll()
            for wave in set(range(waves)) - done:
                assert arrivals.is_whole(wave) == (set(wanted[wave]) <= set(order[:num_stored]))
                if arrivals.is_whole(wave):
                    arrivals.finish(wave)
                    done.add(wave)
                    assert part_files(folder / str(wave))
                    assert read_table(folder / str(wave), Trace) == [trace_at(position) for position in wanted[wave]]
    assert len(done) == waves


def test_what_is_not_there_yet_has_not_come(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path / "not yet", Trace, plan_of(4, Arc()), [0, 2, 4], lambda wave: tmp_path / str(wave))
    arrivals.poll()
    assert not arrivals.is_whole(0)
    arrivals.close()


@given(number=st.integers(0, 1000), waves=st.integers(1, 50))
def test_shares_add_up_and_waves_cover_all_prompts(number: int, waves: int) -> None:
    shares = [share_of(number, wave, waves) for wave in range(waves)]
    assert sum(shares) == number
    assert max(shares) - min(shares) <= 1
    assert all(share <= share_of(number + 1, wave, waves) for wave, share in enumerate(shares)), "a smaller arm is in a larger one"
    if number >= waves:
        bounds = wave_bounds(number, waves)
        assert [end - start for start, end in pairwise(bounds)] == shares
        assert (bounds[0], bounds[-1]) == (0, number)


def test_more_waves_than_prompts_are_refused() -> None:
    with pytest.raises(UserError, match=r"curate.waves=3, but there are 2 training prompts; give at most as many waves"):
        wave_bounds(2, 3)
