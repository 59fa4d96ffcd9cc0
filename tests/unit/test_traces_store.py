"""The trace store: what is committed is found again, in any order of appends the finished bytes are the same."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.store_rows import committed, id_at, part_bytes, trace_at
from w2sr.errors import UserError
from w2sr.records import Trace
from w2sr.tables import read_table, schema_of
from w2sr.traces.follower import Follower
from w2sr.traces.merging import FAN_IN, merge, worth_merging
from w2sr.traces.positions import Positions
from w2sr.traces.recovery import remove_shards
from w2sr.traces.shards import positions_of, shard_files, shard_path
from w2sr.traces.store import TraceStore

LIMIT = 60


def opened(folder: Path, flush_interval_s: float = 3600.0) -> TraceStore[Trace]:
    return TraceStore.open(folder, Trace, LIMIT, id_at, flush_interval_s)


def fill(folder: Path, *lots: list[int]) -> None:
    with opened(folder) as store:
        for positions in lots:
            store.append([trace_at(position) for position in positions])
            store.flush()


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("calm")
    with opened(folder) as store:
        store.append([trace_at(position) for position in range(LIMIT)])
        store.finish(part_rows=16)
    return part_bytes(folder)


STEPS = st.lists(st.sampled_from(["flush", "reopen", "go on"]), min_size=LIMIT, max_size=LIMIT)


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(LIMIT)), steps=STEPS)
def test_the_finished_bytes_do_not_depend_on_order_flushes_or_restarts(
    tmp_path_factory: pytest.TempPathFactory, calm: dict[str, bytes], order: list[int], steps: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = opened(folder)
    for position, step in zip(order, steps, strict=True):
        store.append([trace_at(position)])
        if step == "flush":
            store.flush()
        elif step == "reopen":
            store.close()
            store = opened(folder)
    with store:
        assert store.num_rows == LIMIT
        paths = store.finish(part_rows=16)
    assert [path.name for path in paths] == list(calm) == [f"part-{number:05d}.parquet" for number in range(4)]
    assert part_bytes(folder) == calm


def test_finished_parts_hold_the_rows_in_position_order(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append([trace_at(position) for position in (41, 3, 17)])
        store.flush()
        store.append([trace_at(5)])
        store.finish(part_rows=2)
        remove_shards(tmp_path)
    assert read_table(tmp_path, Trace) == [trace_at(position) for position in (3, 5, 17, 41)]
    assert [len(read_table(path, Trace)) for path in sorted(tmp_path.glob("part-*"))] == [2, 2]
    assert shard_files(tmp_path) == []


def test_a_store_without_rows_finishes_as_one_empty_part(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert [path.name for path in store.finish()] == ["part-00000.parquet"]
    assert read_table(tmp_path, Trace) == []


def test_a_resume_knows_what_was_committed_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path, [8, 2], [40])
    with opened(tmp_path) as store:
        assert [position for position in range(LIMIT) if store.has(position)] == [2, 8, 40]
        assert sorted(trace.position for trace in store.rows()) == [2, 8, 40]
        store.append([trace_at(3)])
        assert store.has(3)
        assert sorted(trace.position for trace in store.rows()) == [2, 8, 40]  # not committed yet
        assert list(store.positions.missing()) == [position for position in range(LIMIT) if position not in (2, 3, 8, 40)]


def test_a_position_cannot_be_stored_twice(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append([trace_at(1)])
        with pytest.raises(AssertionError, match="added twice"):
            store.append([trace_at(1)])
        with pytest.raises(AssertionError, match="appended twice"):
            store.append([trace_at(2), trace_at(2)])
        with pytest.raises(AssertionError, match="outside the plan"):
            store.append([trace_at(LIMIT)])
        store.finish()
        with pytest.raises(AssertionError, match="closed"):
            store.append([trace_at(5)])


def test_traces_are_committed_while_nobody_calls(tmp_path: Path) -> None:
    with opened(tmp_path, flush_interval_s=0.1) as store:
        store.append([trace_at(7)])
        deadline = time.monotonic() + 20
        while not committed(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_much_text_is_committed_before_it_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2sr.traces.store.PENDING_BYTES", 1)
    monkeypatch.setattr("w2sr.traces.store.LOT_ROWS", 4)
    with opened(tmp_path) as store:
        store.append([trace_at(position) for position in range(3)])
        assert committed(tmp_path) == []
        store.append([trace_at(3)])
        assert committed(tmp_path) == [0, 1, 2, 3]


def test_small_shards_are_merged_while_the_store_is_written(tmp_path: Path) -> None:
    fill(tmp_path, *([position] for position in range(LIMIT)))
    assert len(shard_files(tmp_path)) < 2 * FAN_IN
    assert sorted(committed(tmp_path)) == list(range(LIMIT))


@given(st.dictionaries(st.integers(1, 99), st.integers(1, 1 << 30), max_size=40))
def test_shards_are_merged_with_their_like_and_full_ones_never(sizes: dict[int, int]) -> None:
    paths = {shard_path(Path("x"), number): size for number, size in sizes.items()}
    chosen = worth_merging(paths)
    assert len(chosen) in (0, FAN_IN)
    assert all(paths[path] < 64 << 20 for path in chosen)
    assert not chosen or max(paths[path] for path in chosen) <= 8 * min(paths[path] for path in chosen)
    if not chosen:  # then few are left: at most FAN_IN - 1 of each order of magnitude
        assert sum(size < 64 << 20 for size in sizes.values()) <= (FAN_IN - 1) * 9


@settings(max_examples=30, deadline=None)
@given(owners=st.lists(st.integers(0, 4), min_size=1, max_size=LIMIT), group_bytes=st.sampled_from([1, 300, 1 << 20]))
def test_merging_is_sorting(tmp_path_factory: pytest.TempPathFactory, owners: list[int], group_bytes: int) -> None:
    folder = tmp_path_factory.mktemp("merge")
    lots = [[position for position, owner in enumerate(owners) if owner == wanted] for wanted in range(5)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("w2sr.traces.shards.GROUP_BYTES", group_bytes)
        fill(folder, *(lot for lot in lots if lot))
        tables = list(merge(shard_files(folder), schema_of(Trace)))
    assert np.concatenate([positions_of(table) for table in tables]).tolist() == list(range(len(owners)))


def test_finish_opens_few_files_at_once(tmp_path: Path, calm: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2sr.traces.store.worth_merging", lambda _: [])
    monkeypatch.setattr("w2sr.traces.store.MAX_OPEN", 4)
    with opened(tmp_path) as store:
        for position in range(0, LIMIT, 2):
            store.append([trace_at(position), trace_at(position + 1)])
            store.flush()
        assert len(shard_files(tmp_path)) == 30
        store.finish(part_rows=16)
        assert len(shard_files(tmp_path)) <= 4
    assert part_bytes(tmp_path) == calm


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(UserError, match=rf"being written by process {os.getpid()} on .*wait until it has ended"):
        opened(tmp_path)
    opened(tmp_path).close()


def test_a_writer_that_was_killed_does_not_lock_the_folder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from w2sr.traces.lock import WriterLock\n"
        "lock = WriterLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(UserError, match=f"being written by process {holder.pid} "):
            opened(tmp_path)
        holder.kill()
    opened(tmp_path).close()


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(tmp_path) as store:
        store.append([trace_at(1)])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(UserError, match=r"the disk of .* is full; free some space"):
                store.flush()
    assert committed(tmp_path) == [1]


def test_another_error_of_the_disk_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with opened(tmp_path) as store:
        store.append([trace_at(1)])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", broken)
            with pytest.raises(OSError, match="Input/output error"):
                store.flush()


def test_an_error_of_the_regular_flush_reaches_the_next_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(tmp_path, flush_interval_s=0.05) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            store.append([trace_at(1)])
            deadline = time.monotonic() + 20
            while not store._timer.done():
                assert time.monotonic() < deadline
                time.sleep(0.02)
        with pytest.raises(UserError, match="is full"):
            store.append([trace_at(2)])
    assert committed(tmp_path) == [1]


def test_a_follower_sees_every_row_once_through_merges_restarts_and_the_end(tmp_path: Path) -> None:
    seen = Positions(LIMIT)
    seen.add(np.array([0, 13]))  # worked on before
    follower = Follower(tmp_path, Trace, seen)
    rows: list[Trace] = []
    for start in range(0, LIMIT, 20):
        with opened(tmp_path) as store:
            for position in range(start, start + 20):
                store.append([trace_at(position)])
                store.flush()
                if position % 7 == 3:
                    rows += [row for chunk in follower.poll() for row in chunk]
    with opened(tmp_path) as store:
        store.finish(part_rows=16)
    remove_shards(tmp_path)
    rows += [row for chunk in follower.poll() for row in chunk]
    assert sorted(row.position for row in rows) == [position for position in range(LIMIT) if position not in (0, 13)]
    assert all(row == trace_at(row.position) for row in rows)


def test_a_follower_survives_a_merge_in_the_middle_of_its_reading(tmp_path: Path) -> None:
    fill(tmp_path, *([position] for position in range(FAN_IN - 1)))
    follower = Follower(tmp_path, Trace, Positions(LIMIT))
    poll = follower.poll()
    rows = next(poll)
    fill(tmp_path, [FAN_IN - 1])  # now they are one shard, and the files that the follower listed are gone
    assert len(shard_files(tmp_path)) == 1
    rows += [row for chunk in poll for row in chunk]
    assert sorted(row.position for row in rows) == list(range(FAN_IN))


@given(st.sets(st.integers(0, 299)), st.integers(1, 300))
def test_positions_are_a_set(members: set[int], limit: int) -> None:
    wanted = {member for member in members if member < limit}
    positions = Positions(limit)
    positions.add(np.array(sorted(wanted), np.int64))
    assert len(positions) == len(wanted)
    assert {position for position in range(limit) if position in positions} == wanted
    assert list(positions.missing(chunk=2)) == [position for position in range(limit) if position not in wanted]
    twin = positions.copy()
    assert twin.count_common(positions) == len(wanted)


def test_parts_load_as_a_hugging_face_dataset_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "weak"
    with opened(folder) as store:
        store.append([trace_at(position) for position in range(LIMIT)])
        store.finish(part_rows=16)
    from datasets import load_dataset

    loaded = load_dataset("parquet", data_files=f"{folder}/part-*.parquet", split="train", cache_dir=str(tmp_path / "cache"))
    assert [Trace(**row) for row in loaded] == [trace_at(position) for position in range(LIMIT)]
