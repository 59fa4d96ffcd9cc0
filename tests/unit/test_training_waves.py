"""Rows in waves: their order is one of lists, whatever is there when; an index grows without another identity."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2sr.errors import UserError
from w2sr.packing.fit import fill_bins
from w2sr.packing.rows import Row
from w2sr.training.config import TrainConfig
from w2sr.training.data import ROWS, WAVES, facts_path, load_rows, read_waves, rows_digest, save_rows, write_waves
from w2sr.training.feed import Feed
from w2sr.training.order import Course, Units, permutation
from w2sr.training.spec import TrainSpec

MAX_LENGTH = 50
SHAPES = st.lists(st.lists(st.integers(1, MAX_LENGTH), max_size=20), min_size=2, max_size=5).filter(
    lambda waves: sum(map(sum, waves)) >= 60
)
MEASURES = st.sampled_from(
    [
        {"packing": False, "global_batch_size": 2, "micro_batch_size": 1},
        {"packing": False, "global_batch_tokens": 60},
        {"packing": True, "global_batch_size": 2},
        {"packing": True, "global_batch_tokens": 60},
    ]
)


def config(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate({"max_length": MAX_LENGTH, "num_ranks": 1, "max_steps": 9, **values})


def course(waves: list[list[int]], there: int, seed: int, train: TrainConfig) -> Course:
    lengths, parts = arrays(waves, there)
    return Course(lengths, parts, train, seed, len(waves))


def arrays(waves: list[list[int]], there: int) -> Any:
    lengths = np.array([length for wave in waves[:there] for length in wave], dtype=np.int64)
    return lengths, tuple((len(wave), 1.0) for wave in waves[:there])


def units_of(units: Units) -> list[list[int]]:
    return [part.tolist() for part in np.split(units.rows, units.ends[:-1])]


def listed(waves: list[list[int]], turns: int, seed: int, train: TrainConfig) -> list[list[list[int]]]:
    """The units of so many passes over all waves, pass by pass, made with lists."""
    found: list[list[list[int]]] = []
    for turn in range(turns):
        units: list[list[int]] = []
        for wave, lengths in enumerate(waves):
            epoch, first = turn * len(waves) + wave, sum(map(len, waves[:wave]))
            rows = [first + int(row) for row in permutation(len(lengths), seed, epoch)]
            packed = [[row] for row in rows]
            if train.packing:
                bins = fill_bins(np.array([lengths[row - first] for row in rows], dtype=np.int64), MAX_LENGTH)
                starts = [0, *bins.ends[:-1]]
                in_bins = [[rows[member] for member in bins.members[start:end]] for start, end in zip(starts, bins.ends)]
                packed = [in_bins[place] for place in permutation(len(in_bins), seed, epoch, 1)]
            units += packed
        found.append(units)
    return found


def cut(units: list[list[int]], lengths: list[int], train: TrainConfig) -> dict[int, list[list[int]]]:
    """Units in steps, each in that in which it begins."""
    steps: dict[int, list[list[int]]] = {}
    position, batch = 0, train.global_batch_size or train.global_batch_tokens
    assert batch is not None
    for unit in units:
        steps.setdefault(position // batch, []).append(unit)
        position += 1 if train.global_batch_size else sum(lengths[row] for row in unit)
    return steps


@settings(max_examples=60, deadline=None)
@given(SHAPES, MEASURES, st.integers(0, 3))
def test_the_order_is_that_of_lists_of_waves_and_each_pass_has_every_row_once(
    waves: list[list[int]], measure: dict[str, Any], seed: int
) -> None:
    train, lengths = config(**measure), [length for wave in waves for length in wave]
    passes = listed(waves, 3, seed, train)
    assert all(sorted(row for unit in units for row in unit) == list(range(len(lengths))) for units in passes)
    size = len(passes[0]) if train.global_batch_size else sum(lengths)
    batch = train.global_batch_size or train.global_batch_tokens
    assert batch is not None
    if size < batch:
        with pytest.raises(UserError, match="not one step has enough"):
            _ = course(waves, len(waves), seed, train).num_steps
        return
    steps = cut([unit for units in passes for unit in units], lengths, train)
    this = course(waves, len(waves), seed, train)
    whole = 3 * size // batch  # the last one goes on into a fourth pass
    for step in [*range(whole), whole - 1, 0]:
        assert units_of(this.step(step)) == steps[step]
    assert course(waves, len(waves), seed, config(**measure, max_steps=None, epochs=2)).num_steps == -(-2 * size // batch)
    assert course(waves, len(waves), seed, config(**measure, max_steps=None, epochs=1.5)).num_steps == -(-3 * size // (2 * batch))


@settings(max_examples=60, deadline=None)
@given(SHAPES, MEASURES, st.data())
def test_steps_are_the_same_however_many_waves_are_there(waves: list[list[int]], measure: dict[str, Any], data: st.DataObject) -> None:
    train, calm, there = config(**measure), course(waves, len(waves), 1, config(**measure)), 1
    early = course(waves, there, 1, train)
    assert early.num_steps == 9  # too few rows are no fault yet
    sizes = [len(units) for units in (listed([wave], 1, 1, train)[0] for wave in waves)]
    for step in range(12):
        while not early.has(step):
            assert there < len(waves)
            begun = sum(sizes[:there]) if train.global_batch_size else sum(map(sum, waves[:there]))
            assert begun < (step + 1) * (train.global_batch_size or train.global_batch_tokens or 0)
            there = data.draw(st.integers(there + 1, len(waves)))
            early.grow(*arrays(waves, there))
        if early.is_whole and sum(sizes if train.global_batch_size else map(sum, waves)) < (train.global_batch_size or 0):
            for each in (early, calm):
                with pytest.raises(UserError, match=r"not one step has enough"):
                    each.step(step)
            return
        assert units_of(early.step(step)) == units_of(calm.step(step))


def test_epochs_cannot_be_counted_before_all_waves_are_there() -> None:
    early = course([[5] * 9, [5] * 9], 1, 0, config(packing=False, global_batch_tokens=60, max_steps=None, epochs=2))
    with pytest.raises(UserError, match=r"train.epochs=2, but 1 of 2 waves of rows are there, .*; give train.max_steps"):
        _ = early.num_steps


def saved(folder: Path, numbers: list[int]) -> list[Path]:
    rng, paths = np.random.default_rng(1), []
    for wave, number in enumerate(numbers):
        rows = [Row(f"w{wave}-{n}", "p", tuple(rng.integers(3, 90, 5 + n % 7).tolist()), 2) for n in range(number)]
        paths.append(folder / f"wave{wave}{ROWS}")
        save_rows(paths[-1], rows)
    return paths


def test_an_index_maps_the_waves_that_are_there_and_keeps_its_digest(tmp_path: Path) -> None:
    paths, index = saved(tmp_path, [6, 0, 9]), tmp_path / "sub" / f"a{WAVES}"
    index.parent.mkdir()
    digests = []
    for there in (1, 2, 3):
        write_waves(index, 3, paths[:there])
        store = load_rows(index)
        assert (store.waves, store.parts) == (3, ((6, 1.0), (0, 1.0), (9, 1.0))[:there])
        digests.append(rows_digest(index))
    assert store.example_ids(np.arange(len(store))) == [f"w{wave}-{n}" for wave, number in ((0, 6), (2, 9)) for n in range(number)]
    assert [path.resolve() for path in read_waves(index).rows] == [path.resolve() for path in paths]
    assert len(set(digests)) == 1
    write_waves(index, 4, paths)
    assert rows_digest(index) != digests[0]
    write_waves(index, 3, paths[2:])
    assert rows_digest(index) != digests[0]
    facts_path(paths[2]).unlink()
    with pytest.raises(UserError, match="there is no complete rows file"):
        load_rows(index)
    with pytest.raises(UserError, match=r"there is no rows file .*none.waves.json"):
        read_waves(tmp_path / f"none{WAVES}")


def test_a_feed_takes_up_waves_when_their_rows_are_wanted_and_complete(tmp_path: Path) -> None:
    paths, index = saved(tmp_path, [6, 0, 9]), tmp_path / f"a{WAVES}"
    write_waves(index, 3, paths[:1])
    train = config(packing=False, global_batch_size=4, micro_batch_size=4)
    spec = TrainSpec("s", 5, train, "model", "digest", str(index), "output")
    group: Any = SimpleNamespace(data_rank=0, data_size=1)
    early, rows = (Feed(spec, group, SimpleNamespace(pad_token_id=0)) for _ in "ab")
    assert (early.has(0), early.has(1), early.is_whole) == (True, False, False)
    write_waves(index, 3, paths)
    facts = facts_path(paths[2]).read_text()
    facts_path(paths[2]).unlink()
    assert not early.has(1)  # its rows are not seen yet
    facts_path(paths[2]).write_text(facts)
    assert early.has(1)
    assert early.is_whole
    assert len(rows.rows) == 6
    step = early.step(1)
    ((names, _),) = early.micro_batches(step)
    assert {name.split("-")[0] for name in names} == {"w0", "w2"}
    assert step.lengths.tolist() == [early.rows.lengths[row] for row in step.rows]
