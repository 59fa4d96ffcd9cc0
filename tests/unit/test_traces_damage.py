"""What is wrong with a folder of traces is said, with the file's name and what to do."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.store_rows import committed, id_at, trace_at
from w2sr.errors import UserError
from w2sr.records import Reject, Trace
from w2sr.tables import write_table
from w2sr.traces.recovery import remove_shards
from w2sr.traces.shards import shard_files, shard_path
from w2sr.traces.store import TraceStore

LIMIT = 40


def opened(folder: Path) -> TraceStore[Trace]:
    return TraceStore.open(folder, Trace, LIMIT, id_at, 3600.0)


def fill(folder: Path, *lots: list[int]) -> None:
    with opened(folder) as store:
        for positions in lots:
            store.append([trace_at(position) for position in positions])
            store.flush()


def refused(folder: Path, words: str) -> None:
    with pytest.raises(UserError, match=words):
        opened(folder)


@pytest.mark.parametrize("what", ["torn", "empty", "text"])
def test_a_file_that_is_no_parquet_is_named(tmp_path: Path, what: str) -> None:
    fill(tmp_path, [1, 2])
    path = shard_path(tmp_path, 1)
    path.write_bytes({"torn": path.read_bytes()[:-20], "empty": b"", "text": b"hello"}[what])
    refused(tmp_path, r"shard-000001\.parquet is damaged .*remove it and run the same command again: only what it held is made again")
    path.unlink()
    fill(tmp_path, [1, 2])
    assert committed(tmp_path) == [1, 2]


def test_no_changed_byte_changes_a_row_in_silence(tmp_path: Path) -> None:
    """Every 5th byte of a shard, one bit flipped: the finished rows are the same, or the file is named."""
    fill(tmp_path / "store", list(range(0, LIMIT, 3)))
    path = shard_path(tmp_path / "store", 1)
    whole = path.read_bytes()
    noticed = 0
    for place in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            with opened(tmp_path / "store") as store:
                (part,) = store.finish()
        except UserError as error:
            assert "shard-000001.parquet" in str(error)  # noqa: PT017 - some bytes matter, some do not
            noticed += 1
        else:
            assert pq.read_table(part).to_pylist() == [vars_of(position) for position in range(0, LIMIT, 3)], place
            part.unlink()
    assert noticed > len(whole) // 5 * 0.7


def vars_of(position: int) -> dict[str, object]:
    trace = trace_at(position)
    return {name: getattr(trace, name) for name in Trace.__slots__}


def test_a_trace_that_the_run_does_not_ask_for_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, [4], [5, 6])
    with pytest.raises(UserError, match=rf"shard-000002\.parquet holds trace {id_at(6)} at position 6, where this run asks for nothing"):
        TraceStore.open(tmp_path, Trace, LIMIT, lambda position: None if position == 6 else id_at(position))
    with pytest.raises(UserError, match=r"shard-000001\.parquet holds trace .* where this run asks for x"):
        TraceStore.open(tmp_path, Trace, LIMIT, lambda _: "x")
    with pytest.raises(UserError, match=r"shard-000002\.parquet holds position 6, and this run asks for 6;"):
        TraceStore.open(tmp_path, Trace, 6, id_at)
    opened(tmp_path).close()


def test_a_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    write_table(shard_path(tmp_path, 1), [Reject("all", "t", "p", "loop")], Reject)
    refused(tmp_path, r"shard-000001\.parquet has other columns than this run writes \(has .*reason: string.*; lacks .*seed: int64")


def test_a_file_out_of_order_is_refused(tmp_path: Path) -> None:
    write_table(shard_path(tmp_path, 1), [trace_at(2), trace_at(1)], Trace)
    refused(tmp_path, r"shard-000001\.parquet is not in position order")


def test_a_copy_of_a_shard_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, [1, 2])
    shard_path(tmp_path, 7).write_bytes(shard_path(tmp_path, 1).read_bytes())
    refused(tmp_path, r"shard-000007\.parquet holds 2 traces that another file of the folder holds as well")


def finished(folder: Path, *lots: list[int]) -> None:
    fill(folder, *lots)
    with opened(folder) as store:
        store.finish(part_rows=4)


def test_parts_of_an_unfinished_end_are_made_again(tmp_path: Path) -> None:
    finished(tmp_path, [1, 3, 5, 7, 9])
    (tmp_path / "part-00001.parquet").unlink()
    fill(tmp_path, [2])
    assert list(tmp_path.glob("part-*")) == []
    assert sorted(committed(tmp_path)) == [1, 2, 3, 5, 7, 9]


def test_finished_parts_whose_manifest_was_removed_are_gone_on_from(tmp_path: Path) -> None:
    finished(tmp_path, [1, 3, 5, 7, 9])
    remove_shards(tmp_path)
    fill(tmp_path, [2])
    assert list(tmp_path.glob("part-*")) == []
    assert sorted(committed(tmp_path)) == [1, 2, 3, 5, 7, 9]


def test_a_removal_of_shards_that_was_cut_short_is_gone_on_from(tmp_path: Path) -> None:
    finished(tmp_path, [1, 3, 5], [7, 9])
    shard_path(tmp_path, 1).unlink()
    opened(tmp_path).close()
    assert sorted(committed(tmp_path)) == [1, 3, 5, 7, 9]


def test_a_kill_while_parts_become_shards_is_gone_on_from(tmp_path: Path) -> None:
    finished(tmp_path, [1, 3, 5, 7, 9])
    remove_shards(tmp_path)
    (tmp_path / "part-00001.parquet").rename(shard_path(tmp_path, 1))
    opened(tmp_path).close()
    assert sorted(committed(tmp_path)) == [1, 3, 5, 7, 9]


def test_parts_and_shards_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    finished(tmp_path, [1, 3, 5, 7, 9])
    remove_shards(tmp_path)
    write_table(shard_path(tmp_path, 1), [trace_at(1), trace_at(2)], Trace)
    refused(tmp_path, r"has shard-\*\.parquet and part-\*\.parquet files, each with traces the others lack")
    assert shard_files(tmp_path)


def test_what_a_merged_shard_replaces_is_removed_unread(tmp_path: Path) -> None:
    fill(tmp_path, *([position] for position in range(8)))  # merged: shard 9 replaces 1 to 8
    assert [path.name for path in shard_files(tmp_path)] == ["shard-000009.parquet"]
    shard_path(tmp_path, 3).write_bytes(b"left behind, and torn")
    opened(tmp_path).close()
    assert committed(tmp_path) == list(range(8))
    assert pa.schema(pq.read_schema(shard_path(tmp_path, 9))).metadata == {b"w2sr.replaces": b"[1, 2, 3, 4, 5, 6, 7, 8]"}
