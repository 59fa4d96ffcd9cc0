"""The order of rows: every unit once an epoch, cut into steps, a function of (seed, step) alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2sr.errors import UserError
from w2sr.training.config import TrainConfig
from w2sr.training.order import Course, Units, draws, permutation

MAX_LENGTH = 50
LENGTHS = st.lists(st.integers(1, MAX_LENGTH), min_size=8, max_size=60)
MEASURES = st.sampled_from(
    [
        {"packing": False, "global_batch_size": 4, "micro_batch_size": 1},
        {"packing": False, "global_batch_tokens": 100},
        {"packing": True, "global_batch_size": 2},
        {"packing": True, "global_batch_tokens": 100},
    ]
)


def course(lengths: list[int], seed: int = 0, parts: Any = None, **values: Any) -> Course:
    config = TrainConfig.model_validate({"max_length": MAX_LENGTH, "num_ranks": 1, "epochs": 1, **values})
    return Course(np.array(lengths), parts or ((len(lengths), 1.0),), config, seed)


def rows_of(units: Units) -> list[list[int]]:
    return [part.tolist() for part in np.split(units.rows, units.ends[:-1])]


def size_of(lengths: list[int], unit: list[int], measure: dict[str, Any]) -> int:
    return 1 if "global_batch_size" in measure else sum(lengths[row] for row in unit)


@settings(max_examples=40, deadline=None)
@given(LENGTHS, MEASURES, st.integers(0, 5))
def test_a_step_has_the_units_that_begin_in_its_share_of_the_course(lengths: list[int], measure: dict[str, Any], seed: int) -> None:
    batch = measure.get("global_batch_size") or measure["global_batch_tokens"]
    steps = [rows_of(course(lengths, seed, **measure).step(step)) for step in range(30)]
    position = 0
    for number, units in enumerate(steps):
        assert units, "no step is empty"
        for unit in units:
            assert number * batch <= position < (number + 1) * batch
            position += size_of(lengths, unit, measure)
    assert position >= 30 * batch


@settings(max_examples=40, deadline=None)
@given(LENGTHS, MEASURES, st.integers(0, 5))
def test_each_epoch_shows_every_row_once(lengths: list[int], measure: dict[str, Any], seed: int) -> None:
    this = course(lengths, seed, **measure)
    units = [unit for step in range(30) for unit in rows_of(this.step(step))]
    seen: list[int] = []
    for unit in units:  # an epoch ends with a unit
        seen += unit
        if len(seen) == len(lengths):
            assert sorted(seen) == list(range(len(lengths)))
            seen = []
        assert len(set(seen)) == len(seen)
        assert sum(lengths[row] for row in unit) <= MAX_LENGTH


@settings(max_examples=40, deadline=None)
@given(LENGTHS, MEASURES, st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_any_step_can_be_asked_for_in_any_order(lengths: list[int], measure: dict[str, Any], steps: list[int]) -> None:
    one = course(lengths, 3, **measure)
    for step in steps:
        assert rows_of(one.step(step)) == rows_of(course(lengths, 3, **measure).step(step))


def test_plain_rows_lie_in_one_permutation_an_epoch_end_to_end() -> None:
    """The order of trainings made before there was packing over an epoch; a change would change what a resumed one sees."""
    expected = np.concatenate([np.random.Generator(np.random.PCG64(np.random.SeedSequence([3, e]))).permutation(10) for e in range(3)])
    this = course([7] * 10, 3, packing=False, global_batch_size=4, micro_batch_size=1)
    found = np.concatenate([this.step(step).rows for step in range(7)])
    assert found.tolist() == expected[:28].tolist()


def test_the_order_and_the_companions_depend_on_seed_and_epoch_only() -> None:
    lengths = [10 + number % 9 for number in range(40)]
    first, again, other = (course(lengths, seed, packing=True, global_batch_tokens=sum(lengths)) for seed in (1, 1, 2))
    assert rows_of(first.step(0)) == rows_of(again.step(0))
    assert rows_of(first.step(0)) != rows_of(other.step(0))
    companions = [{frozenset(unit) for unit in rows_of(first.step(epoch))} for epoch in (0, 1)]
    assert len(companions[0] & companions[1]) < len(companions[0]) / 2


@pytest.mark.parametrize(
    ("num_rows", "epochs", "max_steps", "expected"),
    [(100, 1.0, None, 10), (101, 1.0, None, 11), (100, 0.5, None, 5), (100, 0.01, None, 1), (10, 3.0, None, 3), (100, None, 7, 7)],
)
def test_steps_follow_from_epochs_or_are_given(num_rows: int, epochs: float | None, max_steps: int | None, expected: int) -> None:
    length = {"epochs": epochs, "max_steps": max_steps}
    assert course([5] * num_rows, packing=False, global_batch_size=10, micro_batch_size=1, **length).num_steps == expected
    assert course([5] * num_rows, packing=False, global_batch_tokens=50, **length).num_steps == expected
    assert course([25] * 2 * num_rows, packing=True, global_batch_size=10, **length).num_steps == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"packing": False, "global_batch_size": 10, "micro_batch_size": 1},
            r"9 rows are fewer than train.global_batch_size=10: .*Set train.global_batch_size to 9",
        ),
        (
            {"packing": True, "global_batch_size": 10},
            r"9 rows, packed into 5 sequences of train.max_length=50, are fewer than train.global_batch_size=10: .* to 5",
        ),
        ({"global_batch_tokens": 226}, r"9 rows of 225 tokens in all are less than train.global_batch_tokens=226: .* to 225"),
    ],
)
def test_too_few_rows_are_refused_with_numbers(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = course([25] * 9, **values).num_steps


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.05, 0.95), st.integers(0, 3))
def test_a_mixture_gives_each_arm_its_share_through_its_own_permutations(first: int, second: int, share: float, seed: int) -> None:
    parts = ((first, share), (second, 1 - share))
    total = first + second
    if 0 in (round(share * total), round((1 - share) * total)):
        return
    counts = draws(parts)
    assert sum(counts) == total
    assert abs(counts[0] - share * total) <= 0.5 + 1e-9
    this = course([5] * total, seed, parts, packing=False, global_batch_size=total, micro_batch_size=1)
    epochs = [this.step(epoch).rows for epoch in range(5)]
    for part, (offset, num_rows) in enumerate(((0, first), (first, second))):
        seen = [rows[(offset <= rows) & (rows < offset + num_rows)] - offset for rows in epochs]
        assert [len(rows) for rows in seen] == [counts[part]] * 5
        often = np.bincount(np.concatenate(seen), minlength=num_rows)
        assert often.max() - often.min() <= 1  # whole permutations, and a piece of one


@pytest.mark.parametrize("measure", [{"global_batch_tokens": 100}, {"global_batch_size": 2}])
def test_a_packed_mixture_goes_on_at_any_step(measure: dict[str, Any]) -> None:
    lengths, parts = [5 + number % 23 for number in range(30)], ((20, 0.3), (10, 0.7))
    whole = course(lengths, 1, parts, packing=True, **measure)
    steps = [rows_of(whole.step(step)) for step in range(30)]
    for step in (29, 4, 17):
        assert rows_of(course(lengths, 1, parts, packing=True, **measure).step(step)) == steps[step]
    rows = [row for units in steps for unit in units for row in unit]
    assert len([row for row in rows[:90] if row < 20]) / 90 == pytest.approx(0.3, abs=0.02)  # three epochs of 30 rows


def test_a_part_that_would_have_no_row_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"part 2 of a mixture, with a share of 0.01 of 20 rows, would have no row in an epoch; give it more"
    ):
        draws(((10, 0.99), (10, 0.01)))


def test_permutations_of_an_epoch_are_told_apart() -> None:
    found = [permutation(50, 1, 2, what).tolist() for what in range(4)]
    assert all(one != other for number, one in enumerate(found) for other in found[:number])
