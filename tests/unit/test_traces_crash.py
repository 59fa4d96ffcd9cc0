"""A store that is killed, or loses power, at every single file-system operation; and a writer that is really killed, again and again."""

import functools
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.unit.store_rows import committed, id_at, part_bytes, trace_at
from w2sr.records import Trace
from w2sr.tables import read_table, write_text
from w2sr.traces.merging import worth_merging
from w2sr.traces.recovery import remove_shards
from w2sr.traces.store import TraceStore

LIMIT = 12
ORDER = random.Random(3).sample(range(LIMIT), LIMIT)


class Killed(BaseException):
    """The process has ended: nothing that follows happens."""


class Disk:
    """Passes the store's file-system operations on, up to number `last`; from there on the process is dead.

    `power_loss()` then undoes what was not made durable: it brings back files whose removal, and takes back renames, whose folder was not
    synced since, and tears files that were not synced themselves. Each of these at random, as a real disk would.
    """

    def __init__(self, patch: pytest.MonkeyPatch, last: int) -> None:
        self.last = last
        self.count = 0
        self._undo: list[Callable[[], None]] = []
        self._torn: set[int] = set()
        self._real = {name: getattr(os, name) for name in ("fsync", "replace", "rename", "unlink")}
        patch.setattr(os, "fsync", self._fsync)
        patch.setattr(os, "replace", self._replace)
        patch.setattr(os, "rename", self._replace)
        patch.setattr(os, "unlink", self._unlink)
        patch.setattr(os, "getpid", lambda: last)  # another process every time
        self._write_table = pq.ParquetWriter.write_table
        disk = self

        def write_table(writer: pq.ParquetWriter, *args: Any, **kwargs: Any) -> None:
            disk._step()
            disk._write_table(writer, *args, **kwargs)

        patch.setattr(pq.ParquetWriter, "write_table", write_table)

    def power_loss(self, rng: random.Random) -> None:
        for undo in reversed(self._undo):
            if rng.random() < 0.5:
                undo()

    def _step(self) -> None:
        self.count += 1
        if self.count > self.last:
            raise Killed

    def _fsync(self, descriptor: int) -> None:
        self._step()
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self._undo.clear()
        else:
            self._torn.add(found.st_ino)

    def _replace(self, source: Any, target: Any) -> None:
        self._step()
        was_synced = os.stat(source).st_ino in self._torn
        old = Path(target).read_bytes() if Path(target).exists() else None
        self._real["replace"](source, target)

        def undo() -> None:
            if not was_synced:
                Path(target).write_bytes(Path(target).read_bytes()[:-9])
            elif old is not None:
                Path(target).write_bytes(old)
            elif Path(target).exists():
                Path(target).rename(source)

        self._undo.append(undo)

    def _unlink(self, path: Any, **kwargs: Any) -> None:
        self._step()
        data = Path(path).read_bytes()
        self._real["unlink"](path, **kwargs)
        self._undo.append(lambda: Path(path).write_bytes(data) and None)


def work(folder: Path, acknowledged: set[int], lot: int) -> None:
    """Store what is missing, one shard for each `lot` positions, then finish. `acknowledged`: what `flush` has returned for."""
    if (folder / "manifest.json").exists():
        remove_shards(folder)
        return
    store = TraceStore.open(folder, Trace, LIMIT, id_at, flush_interval_s=3600.0)
    try:
        missing = [position for position in ORDER if not store.has(position)]
        for start in range(0, len(missing), lot):
            store.append([trace_at(position) for position in missing[start : start + lot]])
            store.flush()
            acknowledged.update(missing[start : start + lot])
        store.finish(part_rows=8)
        write_text(folder / "manifest.json", "{}")
        remove_shards(folder)
    finally:
        store._stop_timer()
        store._lock.release()  # the system does it for a killed process


def run_on_disk(folder: Path, last: int, acknowledged: set[int], loss: random.Random | None, lot: int = 1) -> Disk:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("w2sr.traces.store.worth_merging", functools.partial(worth_merging, fan_in=3))  # merged shards are merged again
        disk = Disk(patch, last)
        try:
            work(folder, acknowledged, lot)
        except Killed:
            pass
        else:
            assert disk.count <= last
    if loss is not None and disk.count > last:
        disk.power_loss(loss)
    return disk


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int]:
    folder = tmp_path_factory.mktemp("calm")
    disk = run_on_disk(folder, 10**9, set(), None)
    assert committed(folder) == []
    return part_bytes(folder), disk.count


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power loss"])
def test_a_store_killed_at_any_operation_loses_nothing_and_doubles_nothing(
    tmp_path: Path, calm: tuple[dict[str, bytes], int], power: bool
) -> None:
    parts, operations = calm
    assert operations > 90
    for last in range(operations):
        folder = tmp_path / str(last)
        acknowledged: set[int] = set()
        rng = random.Random(last)
        run_on_disk(folder, last, acknowledged, rng if power else None)
        if not (folder / "manifest.json").exists():
            with TraceStore.open(folder, Trace, LIMIT, id_at, 3600.0) as store:
                there = committed(folder)
                assert len(there) == len(set(there)) == store.num_rows, last
                assert acknowledged <= set(there), last
        run_on_disk(folder, last // 2 + 3, acknowledged, rng if power else None)  # killed a second time, early in the resume
        run_on_disk(folder, 10**9, acknowledged, None, lot=LIMIT)
        assert part_bytes(folder) == parts, last
        found = {path.name for path in folder.iterdir() if "manifest" not in path.name}
        assert found == {".writer.lock", *parts}, last


WRITER = """
import random, sys
from pathlib import Path
from tests.unit.store_rows import id_at, trace_at
from w2sr.records import Trace
from w2sr.traces.store import TraceStore

folder, seed, limit = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with TraceStore.open(folder, Trace, limit, id_at, flush_interval_s=0.01) as store:
    missing = list(store.positions.missing())
    random.Random(seed).shuffle(missing)
    for start in range(0, len(missing), 10):
        lot = missing[start : start + 10]
        store.append([trace_at(position) for position in lot])
        if start % 30 == 0:
            store.flush()
            print(*missing[: start + 10], flush=True)
    store.finish(part_rows=64)
    print("finished", flush=True)
"""


def test_a_writer_process_that_is_killed_again_and_again_gets_done(tmp_path: Path) -> None:
    limit, rng, kills = 8000, random.Random(5), 0
    acknowledged: set[int] = set()
    folder = tmp_path / "store"
    finished = False
    while not finished:
        command = [sys.executable, "-c", WRITER, str(folder), str(kills), str(limit)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            first = writer.stdout.readline()  # it is at work
            if kills < 8:
                time.sleep(rng.uniform(0, 0.15))
                writer.send_signal(signal.SIGKILL)
                kills += 1
            lines = [first, *writer.stdout]
        finished = lines[-1].strip() == "finished"
        complete = [line for line in lines if line.endswith("\n") and line.strip() != "finished"]
        acknowledged.update(int(word) for line in complete for word in line.split())
        assert writer.returncode in (0, -signal.SIGKILL)
        if not finished:
            with TraceStore.open(folder, Trace, limit, id_at) as store:
                assert all(store.has(position) for position in acknowledged)
    assert kills == 8
    assert read_table(folder, Trace) == [trace_at(position) for position in range(limit)]
