from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sr.errors import UserError
from w2sr.packing.rows import Row
from w2sr.training.config import TrainConfig
from w2sr.training.data import deal, load_rows, num_steps, rows_of_step, save_rows


@given(st.integers(8, 60), st.integers(1, 8), st.integers(0, 5), st.integers(1, 12))
def test_each_epoch_shows_every_row_once_whatever_the_batch_size(num_rows: int, batch: int, seed: int, num_epochs: int) -> None:
    steps = num_rows * num_epochs // batch
    seen = np.concatenate([rows_of_step(num_rows, batch, seed, step) for step in range(steps)])
    counts = np.bincount(seen, minlength=num_rows)
    assert counts.max() - counts.min() <= 1
    for epoch in range(len(seen) // num_rows):
        assert sorted(seen[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    assert (rows_of_step(50, 50, 1, 0) == rows_of_step(50, 50, 1, 0)).all()
    assert (rows_of_step(50, 50, 1, 0) != rows_of_step(50, 50, 2, 0)).any()
    assert (rows_of_step(50, 50, 1, 0) != rows_of_step(50, 50, 1, 1)).any()


@given(st.lists(st.integers(1, 500), min_size=24, max_size=24), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 4]))
def test_dealing_gives_each_row_to_one_rank_and_each_rank_as_many(lengths: list[int], num_ranks: int, micro: int) -> None:
    dealt = deal(np.arange(24), np.array(lengths), num_ranks, micro)
    assert sorted(int(row) for of_ranks in dealt for rows in of_ranks for row in rows) == list(range(24))
    assert all(len(of_ranks) == num_ranks and all(len(rows) == micro for rows in of_ranks) for of_ranks in dealt)


@given(st.lists(st.integers(1, 500), min_size=32, max_size=32))
def test_dealing_balances_the_tokens_of_ranks(lengths: list[int]) -> None:
    of_rank = np.sum(
        [[np.array(lengths)[rows].sum() for rows in of_ranks] for of_ranks in deal(np.arange(32), np.array(lengths), 2, 4)], axis=0
    )
    assert abs(int(of_rank[0]) - int(of_rank[1])) <= max(lengths)


@given(st.lists(st.integers(1, 500), min_size=40, max_size=60), st.integers(0, 9), st.integers(0, 20))
def test_the_rows_of_a_step_are_the_same_on_1_2_and_4_ranks(lengths: list[int], seed: int, step: int) -> None:
    def rows(num_ranks: int) -> list[int]:
        indices = rows_of_step(len(lengths), 16, seed, step)
        return sorted(int(row) for of_ranks in deal(indices, np.array(lengths), num_ranks, 2) for rows in of_ranks for row in rows)

    assert rows(1) == rows(2) == rows(4)
    assert len(rows(1)) == 16


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [({}, (8,)), ({"min_ranks": 8}, (8,)), ({"min_ranks": 1}, (1, 2, 4, 8)), ({"min_ranks": 3}, (4, 8)), ({"micro_batch_size": 1}, (8,))],
)
def test_a_group_may_have_the_sizes_that_carry_the_batch(changes: dict[str, int], sizes: tuple[int, ...]) -> None:
    train = TrainConfig.model_validate({"max_steps": 1, "num_ranks": 8, "global_batch_size": 64, "micro_batch_size": 8, **changes})
    assert train.group_sizes == sizes


@pytest.mark.parametrize(
    ("min_ranks", "message"),
    [
        (9, "min_ranks=9 is more than num_ranks=8; give at most that"),
        (5, r"min_ranks=5 allows no group smaller than num_ranks=8: global_batch_size=64 .* up to 7 that carry it: 1, 2, 4;"),
    ],
)
def test_bounds_that_allow_nothing_are_refused(min_ranks: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(max_steps=1, num_ranks=8, global_batch_size=64, micro_batch_size=8, min_ranks=min_ranks)


@pytest.mark.parametrize(
    ("num_ranks", "message"),
    [
        (
            3,
            r"3 ranks were started; global_batch_size=64 is not a multiple of .*, 8 \* ranks.* carry it: 1, 2, 4, 8;",
        ),
        (
            1,
            r"num_ranks=8 and train.min_ranks=2, but 1 ranks .*train.num_ranks=1, or let it have fewer with train.min_ranks=1",
        ),
        (16, r"num_ranks=8 and train.min_ranks=2, but 16 ranks were started; start 8 .*, or set train.num_ranks=16$"),
    ],
)
def test_a_group_of_another_size_is_refused_with_those_that_do(num_ranks: int, message: str) -> None:
    train = TrainConfig(max_steps=1, num_ranks=8, global_batch_size=64, micro_batch_size=8, min_ranks=2)
    train.check_size(4)
    with pytest.raises(UserError, match=message):
        train.check_size(num_ranks)


def test_how_many_ranks_there_are_does_not_make_it_another_training() -> None:
    one, other = (TrainConfig(max_steps=1, num_ranks=ranks, min_ranks=1) for ranks in (2, 8))
    assert one.identity() == other.identity()


def test_dealing_wants_whole_micro_batches() -> None:
    with pytest.raises(AssertionError, match="10 rows do not fill micro-batches of 4 on 2 ranks"):
        deal(np.arange(10), np.ones(10, dtype=np.int64), 2, 4)


@pytest.mark.parametrize(
    ("num_rows", "epochs", "max_steps", "expected"),
    [(100, 1.0, None, 10), (101, 1.0, None, 11), (100, 0.5, None, 5), (100, 0.01, None, 1), (10, 3.0, None, 3), (100, None, 7, 7)],
)
def test_steps_follow_from_epochs_or_are_given(num_rows: int, epochs: float | None, max_steps: int | None, expected: int) -> None:
    assert num_steps(num_rows, 10, epochs, max_steps) == expected


def test_too_few_rows_are_refused_with_numbers() -> None:
    with pytest.raises(UserError, match=r"9 rows are fewer than train.global_batch_size=10.*Set train.global_batch_size to 9"):
        num_steps(9, 10, 1.0, None)


def test_rows_survive_the_file(tmp_path: Path) -> None:
    rows = [Row("a", "p", (5, 6, 7), 2), Row("b", "p", (8, 9), 1)]
    save_rows(tmp_path / "rows.safetensors", rows)
    store = load_rows(tmp_path / "rows.safetensors")
    assert [(store.row(number).ids, store.row(number).num_prefix) for number in range(len(store))] == [((5, 6, 7), 2), ((8, 9), 1)]
    assert store.example_ids == ("a", "b")
    assert store.num_supervised == 2
