from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sr.errors import UserError
from w2sr.training.selection import Evaluations, check_rows
from w2sr.training.selection_config import SelectionConfig

LOSSES = st.lists(st.floats(0, 10) | st.just(float("nan")) | st.just(float("inf")), max_size=30)


def seen(losses: list[float]) -> Evaluations:
    """Evaluations before the first step, and then after every fifth."""
    return Evaluations(((0, 0.0), *((5 * number, loss) for number, loss in enumerate(losses, 1))))


@given(LOSSES)
def test_without_a_minimal_gain_the_best_is_the_first_lowest_of_the_finite(losses: list[float]) -> None:
    finite = [loss for loss in losses if loss < float("inf")]
    best = seen(losses).best(0.0)
    assert best == (5 * (losses.index(min(finite)) + 1) if finite else None)


@given(LOSSES, st.floats(0, 2))
def test_a_gain_is_more_than_the_minimum_below_all_gains_before(losses: list[float], min_gain: float) -> None:
    gains, lowest = [], float("inf")
    for number in range(1, len(losses) + 1):
        now = seen(losses[:number])
        if now.best(min_gain) == 5 * number:
            assert now.num_without_gain(min_gain) == 0
            assert losses[number - 1] < lowest - min_gain
            gains.append(number)
            lowest = losses[number - 1]
        else:
            assert now.num_without_gain(min_gain) == number - (gains[-1] if gains else 0)
            assert now.best(min_gain) == (5 * gains[-1] if gains else None)


@given(LOSSES, st.floats(0, 1))
def test_what_was_decided_does_not_change_by_what_comes_later(losses: list[float], min_gain: float) -> None:
    """The counter grows by one or falls to 0, so a training that goes on from any checkpoint ends where the calm one ended."""
    counts = [seen(losses[:number]).num_without_gain(min_gain) for number in range(len(losses) + 1)]
    assert all(later in (0, earlier + 1) for earlier, later in itertools.pairwise(counts))


def test_the_untrained_student_is_never_the_best() -> None:
    assert Evaluations(((0, 0.1), (5, 2.0))).best(0.0) == 5
    assert Evaluations(((0, 0.1),)).best(0.0) is None


@pytest.mark.parametrize("config", [SelectionConfig(every=1, patience=2), SelectionConfig(every=1, export="best")])
def test_decisions_without_selection_rows_are_refused(config: SelectionConfig) -> None:
    check_rows(config, has_rows=True)
    with pytest.raises(UserError, match=r"no prompt of prompts/selection\.parquet has a reference trace that the student can read"):
        check_rows(config, has_rows=False)
    check_rows(SelectionConfig(every=1), has_rows=False)
