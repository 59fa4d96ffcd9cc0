"""Batch maths: one measure each, what a number of ranks makes of it, and how units become micro-batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sr.errors import UserError
from w2sr.training.batches import batch_plan, cut, deal
from w2sr.training.config import TrainConfig

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=60)


def train(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate({"max_steps": 1, **values})


def test_what_is_not_given_is_filled_in_once_and_survives_a_round_trip() -> None:
    packed, plain = train(), train(packing=False)
    assert (packed.global_batch_size, packed.global_batch_tokens, packed.micro_batch_size) == (None, 131_072, 1)
    assert (plain.global_batch_size, plain.global_batch_tokens, plain.micro_batch_size) == (128, None, 8)
    for config in (packed, plain, train(global_batch_tokens=9000, micro_batch_tokens=8192)):
        assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"global_batch_size": 8, "global_batch_tokens": 9000},
            "give one of global_batch_size and global_batch_tokens; given: .*=8, .*=9000",
        ),
        ({"micro_batch_size": 8, "micro_batch_tokens": 9000}, "give one of micro_batch_size and micro_batch_tokens"),
        (
            {"micro_batch_size": None, "micro_batch_tokens": 4095},
            "micro_batch_tokens=4095 is less than max_length=4096, .*; give at least that, or lower max_length",
        ),
        ({"global_batch_tokens": 4095}, "global_batch_tokens=4095 is less than max_length=4096"),
        ({"global_batch_size": 9}, r"9 is not divisible by .* 2 \* 2; nearest valid: 8, 12; or give micro_batch_tokens"),
        ({"global_batch_size": 1, "micro_batch_size": None, "micro_batch_tokens": 4096}, "makes 1 sequences a step, too few for 2 ranks"),
        (
            {
                "global_batch_size": 32,
                "micro_batch_size": None,
                "micro_batch_tokens": 4096,
                "packing": True,
                "num_ranks": 70,
                "memory": {"sequence_parallel": 2},
            },
            "too few for 70 ranks: .* Give at most 64 ranks",
        ),
        (
            {"global_batch_size": 32, "packing": True, "num_ranks": 4, "min_ranks": 3, "memory": {"sequence_parallel": 2}},
            "min_ranks=3 allows no group smaller than num_ranks=4: 3 ranks do not divide into groups of memory.sequence_parallel=2",
        ),
        ({"global_batch_tokens": 8191}, "global_batch_tokens=8191 with max_length=4096 makes 1 sequences a step, too few for 2 ranks"),
    ],
)
def test_a_batch_that_cannot_be_made_is_refused_with_what_would_do(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(**{"micro_batch_size": 2} | changes)


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, (8,)),
        ({"min_ranks": 8}, (8,)),
        ({"min_ranks": 1}, (1, 2, 4, 8)),
        ({"min_ranks": 3}, (4, 8)),
        ({"micro_batch_size": 1}, (8,)),
        ({"min_ranks": 5, "micro_batch_size": None, "micro_batch_tokens": 4096}, (5, 6, 7, 8)),
    ],
)
def test_a_group_may_have_the_sizes_that_carry_the_batch(changes: dict[str, Any], sizes: tuple[int, ...]) -> None:
    assert train(**{"num_ranks": 8, "global_batch_size": 64, "micro_batch_size": 8} | changes).group_sizes == sizes


@pytest.mark.parametrize(
    ("min_ranks", "message"),
    [
        (9, "min_ranks=9 is more than num_ranks=8; give at most that"),
        (5, r"min_ranks=5 allows no group smaller than num_ranks=8: global_batch_size=64 .* up to 7 that carry it: 1, 2, 4;"),
    ],
)
def test_bounds_that_allow_nothing_are_refused(min_ranks: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(num_ranks=8, global_batch_size=64, micro_batch_size=8, min_ranks=min_ranks)


@pytest.mark.parametrize(
    ("num_ranks", "message"),
    [
        (3, r"3 ranks were started; global_batch_size=64 is not a multiple of .*, 8 \* ranks.* carry it: 1, 2, 4, 8;"),
        (1, r"num_ranks=8 and train.min_ranks=2, but 1 ranks .*train.num_ranks=1, or let it have fewer with train.min_ranks=1"),
        (16, r"num_ranks=8 and train.min_ranks=2, but 16 ranks were started; start 8 .*, or set train.num_ranks=16$"),
    ],
)
def test_a_group_of_another_size_is_refused_with_those_that_do(num_ranks: int, message: str) -> None:
    config = train(num_ranks=8, global_batch_size=64, micro_batch_size=8, min_ranks=2)
    config.check_size(4)
    with pytest.raises(UserError, match=message):
        config.check_size(num_ranks)


def test_how_many_ranks_there_are_does_not_make_it_another_training() -> None:
    one, other = (train(num_ranks=ranks, min_ranks=1) for ranks in (2, 8))
    assert one.identity() == other.identity()


@pytest.mark.parametrize(
    ("values", "num_shares", "mean_length", "expected"),
    [
        # 128 rows of 300 tokens on 4 ranks, 8 at a time
        ({"packing": False, "global_batch_size": 128, "micro_batch_size": 8}, 4, 300, (38_400, 8 * 4096, 4, True)),
        ({"packing": False, "global_batch_size": 128, "micro_batch_size": 8}, 4, None, (128 * 4096, 8 * 4096, 4, True)),
        # 64 full sequences of 4096 tokens on 16 ranks, one at a time
        ({"global_batch_size": 64, "micro_batch_size": 1}, 16, None, (64 * 4096, 4096, 4, True)),
        # a million tokens by sequences of 4096; a budget of 10,000 holds two of them
        ({"global_batch_tokens": 1_000_000, "micro_batch_tokens": 10_000}, 8, None, (1_000_000, 10_000, 16, False)),
        ({"packing": False, "global_batch_tokens": 1_000_000, "micro_batch_tokens": 10_000}, 8, 300, (1_000_000, 10_000, 13, False)),
    ],
)
def test_the_plan_is_the_arithmetic(values: dict[str, Any], num_shares: int, mean_length: float | None, expected: tuple[Any, ...]) -> None:
    plan = batch_plan(train(**values), num_shares, mean_length)
    assert (plan.step_tokens, plan.micro_tokens, plan.accumulation, plan.is_exact) == expected


@given(LENGTHS, st.integers(1, 6), st.integers(500, 3000))
def test_cutting_by_tokens_keeps_every_unit_once_within_the_budget(lengths: list[int], num_shares: int, budget: int) -> None:
    sizes = np.array(lengths)
    rounds = cut(sizes, num_shares, None, budget)
    assert sorted(int(unit) for shares in rounds for units in shares for unit in units) == list(range(len(lengths)))
    assert all(len(shares) == num_shares for shares in rounds)
    assert all(len(units) * sizes[units].max(initial=0) <= budget for shares in rounds for units in shares)
    assert any(len(units) for units in rounds[-1])
    if len(lengths) >= num_shares * len(rounds):
        assert all(len(units) for shares in rounds for units in shares)


@given(LENGTHS, st.integers(1, 6), st.integers(1, 9))
def test_cutting_by_units_makes_as_few_and_as_even_micro_batches_as_can_be(lengths: list[int], num_shares: int, size: int) -> None:
    rounds = cut(np.array(lengths), num_shares, size, None)
    counts = [len(units) for shares in rounds for units in shares]
    assert sum(counts) == len(lengths)
    assert max(counts) <= size
    assert len(rounds) == -(-len(lengths) // (size * num_shares))


@given(LENGTHS, st.integers(1, 6), st.integers(500, 3000))
def test_no_more_rounds_than_a_greedy_cut_needs(lengths: list[int], num_shares: int, budget: int) -> None:
    runs, room = 0, 0
    for length in sorted(lengths, reverse=True):
        if room == 0:
            runs, room = runs + 1, budget // length
        room -= 1
    assert len(cut(np.array(lengths), num_shares, None, budget)) == -(-runs // num_shares)


def test_a_rank_without_a_unit_gets_an_empty_share() -> None:
    (shares,) = cut(np.array([7, 9]), 3, None, 10)
    assert [units.tolist() for units in shares] == [[1], [0], []]


def test_a_unit_over_the_budget_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="a unit of 11 is over the budget of 10"):
        cut(np.array([11]), 1, None, 10)
    with pytest.raises(AssertionError, match="give max_units or max_tokens"):
        cut(np.array([11]), 1, None, None)


@given(st.lists(st.integers(1, 500), min_size=24, max_size=24), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 4]))
def test_dealing_gives_each_unit_to_one_rank_and_each_rank_as_many(lengths: list[int], num_ranks: int, micro: int) -> None:
    dealt = deal(np.array(lengths), num_ranks, micro)
    assert sorted(int(unit) for shares in dealt for units in shares for unit in units) == list(range(24))
    assert all(len(shares) == num_ranks and all(len(units) == micro for units in shares) for shares in dealt)


@given(st.lists(st.integers(1, 500), min_size=32, max_size=32))
def test_dealing_balances_the_tokens_of_ranks(lengths: list[int]) -> None:
    of_rank = np.sum([[np.array(lengths)[units].sum() for units in shares] for shares in deal(np.array(lengths), 2, 4)], axis=0)
    assert abs(int(of_rank[0]) - int(of_rank[1])) <= max(lengths)


def test_dealing_wants_whole_micro_batches() -> None:
    with pytest.raises(AssertionError, match="10 units do not fill micro-batches of 4 on 2 ranks"):
        deal(np.ones(10, dtype=np.int64), 2, 4)
