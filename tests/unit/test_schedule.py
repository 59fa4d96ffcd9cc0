from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from w2sr.errors import UserError
from w2sr.training.config import TrainConfig
from w2sr.training.schedule import check_schedule, learning_rate, warmup_steps

SHAPES = st.sampled_from(["cosine", "linear", "constant", "wsd"])


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({"max_steps": 20, "learning_rate": 1.0, "warmup_ratio": 0.2, **changes})


def rates(num_steps: int = 20, **changes: Any) -> list[float]:
    """The rates of all steps, and the one that a step after the last would get."""
    return [learning_rate(config(**changes), step, num_steps) for step in range(num_steps + 1)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_the_rate_rises_to_the_peak_and_ends_at_the_floor(schedule: str) -> None:
    found = rates(schedule=schedule, min_learning_rate_ratio=0.1)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[20] == pytest.approx(1.0 if schedule == "constant" else 0.1)


@given(
    schedule=SHAPES,
    shape=st.sampled_from(["linear", "cosine", "sqrt", "exponential"]),
    num_steps=st.integers(1, 300),
    warmup=st.floats(0, 0.5),
    decay=st.floats(0.01, 0.5),
    floor=st.floats(0.001, 1),
)
def test_every_schedule_rises_once_falls_once_and_stays_within_peak_and_floor(
    schedule: str, shape: str, num_steps: int, warmup: float, decay: float, floor: float
) -> None:
    changes = {"warmup_ratio": warmup, "decay_ratio": decay, "decay_shape": shape, "min_learning_rate_ratio": floor}
    found = rates(num_steps, schedule=schedule, **changes)
    num_warmup = warmup_steps(config(**changes), num_steps)
    assert all(0 < earlier < later <= 1 for earlier, later in pairwise(found[: num_warmup + 1]))
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(found[num_warmup:]))
    assert min(found[num_warmup:]) >= floor * (1 - 1e-12)
    assert found[-1] == pytest.approx(1.0 if schedule == "constant" else floor)


def test_no_step_has_a_rate_of_zero() -> None:
    assert min(min(rates(schedule=schedule)[:20]) for schedule in ("cosine", "linear", "wsd")) > 0


def test_the_cosine_is_the_closed_form() -> None:
    found = rates(warmup_ratio=0.0, min_learning_rate_ratio=0.2)
    assert found == pytest.approx([0.2 + 0.8 * math.cos(math.pi * step / 40) ** 2 for step in range(21)])


@pytest.mark.parametrize(
    ("shape", "floor", "expected"),
    [
        ("linear", 0.0, [1, 0.75, 0.5, 0.25, 0]),
        ("sqrt", 0.0, [1, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0]),
        ("cosine", 0.0, [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
        ("exponential", 0.0001, [1, 0.1, 0.01, 0.001, 0.0001]),
    ],
)
def test_wsd_warms_up_stays_and_decays_over_its_share(shape: str, floor: float, expected: list[float]) -> None:
    found = rates(schedule="wsd", decay_ratio=0.2, decay_shape=shape, min_learning_rate_ratio=floor)
    assert found[4:16] == [1.0] * 12
    assert found[16:] == pytest.approx(expected)


def test_a_longer_wsd_training_has_the_same_beginning() -> None:
    short = rates(20, schedule="wsd", warmup_ratio=None, warmup_steps=3)
    long = rates(400, schedule="wsd", warmup_ratio=None, warmup_steps=3)
    assert long[:18] == short[:18]


def test_a_warm_up_in_steps_does_not_depend_on_the_length() -> None:
    for num_steps in (20, 2000):
        found = rates(num_steps, warmup_ratio=None, warmup_steps=3)
        assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates(warmup_ratio=None, warmup_steps=0)[0] == 1.0


def test_of_neither_a_tenth_is_warm_up_and_the_choice_survives_json() -> None:
    assert warmup_steps(TrainConfig(max_steps=20), 20) == 2
    train = config(warmup_ratio=None, warmup_steps=3)
    assert TrainConfig.model_validate(train.model_dump(mode="json")) == train


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": 3}, "give one of warmup_ratio and warmup_steps; given: 0.2 and 3"),
        ({"schedule": "wsd", "decay_ratio": 0.9}, "warmup_ratio=0.2 and decay_ratio=0.9 are more than all the steps"),
        ({"schedule": "wsd", "decay_shape": "exponential"}, "decay_shape=exponential never reaches 0: give min_learning_rate_ratio"),
    ],
)
def test_a_schedule_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_a_warm_up_that_leaves_no_steps_is_refused_when_their_number_is_known() -> None:
    train = config(warmup_ratio=None, warmup_steps=18, schedule="wsd")
    with pytest.raises(UserError, match=r"train.warmup_steps=18 and the decay 2, but the training has 20 steps"):
        check_schedule(train, 20)
    check_schedule(train, 40)
    with pytest.raises(UserError, match=r"train.warmup_steps=18, but the training has 18 steps"):
        check_schedule(config(warmup_ratio=None, warmup_steps=18), 18)
