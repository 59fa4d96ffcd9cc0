"""The store of a generator's traces while it works: nothing committed is lost or doubled, whenever the writer is killed.

What holds at every instant, for whatever the last writer got to:
- a shard is whole or absent (written aside, synced, renamed), and its pages carry checksums;
- a position is in one shard, or in a merged shard and in those it replaces, which the next `open` removes unread;
- nothing is removed before what replaces it is durable: shards after the merged shard, all shards after the manifest over the parts.

Any record with `position` (an int) and `trace_id` (a str) can be stored, so verdicts resume the way traces do.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa

from w2sr.disk import full_disk_explained
from w2sr.tables import schema_of, to_arrow
from w2sr.traces.follower import Follower
from w2sr.traces.lock import WriterLock
from w2sr.traces.merging import merge, worth_merging
from w2sr.traces.parts import PART_ROWS, write_parts
from w2sr.traces.positions import Positions
from w2sr.traces.recovery import Found, IdAt, recover, remove
from w2sr.traces.shards import by_position, shard_number, shard_path, write_shard

Row = TypeVar("Row")

# Rows become a table in lots; a table becomes a shard when it is due, or when so much waits.
LOT_ROWS = 256
PENDING_BYTES = 32 << 20
# Files that are read at once while parts are made.
MAX_OPEN = 32


class TraceStore(Generic[Row]):
    """Rows of one folder, appended in any order, one row for each position in [0, limit). Made by `open`; close it, or use `with`.

    `append`, `flush` and `has` may be called from several threads.
    """

    @classmethod
    def open(
        cls, folder: Path, row_type: type[Row], limit: int, id_at: IdAt | None = None, flush_interval_s: float | None = 20.0
    ) -> TraceStore[Row]:
        """Open a folder for writing, new or begun; what is there already counts as stored.

        `id_at` gives the trace id that the run asks for at a position (None: nothing); every row found is compared. What was appended is
        committed every `flush_interval_s` by a thread of the store (None: only when much waits, and at the end). Raises UserError when
        another process writes this folder, or for a file that is damaged or holds what the run does not ask for.
        """
        lock = WriterLock(folder)
        with contextlib.ExitStack() as undo:
            undo.callback(lock.release)
            found = recover(folder, schema_of(row_type), limit, id_at)
            undo.pop_all()
        return cls(folder, row_type, lock, found, flush_interval_s)

    def __init__(self, folder: Path, row_type: type[Row], lock: WriterLock, found: Found, flush_interval_s: float | None) -> None:
        self.folder = folder
        self.positions = found.positions  # stored: committed or not
        self._row_type = row_type
        self._schema = schema_of(row_type)
        self._lock = lock
        self._sizes = found.sizes
        self._rows: list[Row] = []
        self._lots: list[pa.Table] = []
        self._pending_bytes = 0
        self._appending = threading.Lock()  # guards what is pending
        self._committing = threading.Lock()  # guards the files; taken before `_appending`
        self._closed = threading.Event()
        self._timer_thread = ThreadPoolExecutor(1, thread_name_prefix="flush")
        # Without an interval one that is never done.
        self._timer: Future[None] = Future()
        if flush_interval_s is not None:
            self._timer = self._timer_thread.submit(self._flush_regularly, flush_interval_s)

    @property
    def num_rows(self) -> int:
        """Rows stored, committed or not."""
        return len(self.positions)

    def has(self, position: int) -> bool:
        """Return whether the row of `position` is stored, committed or not."""
        return position in self.positions

    def append(self, rows: Sequence[Row]) -> None:
        """Store rows, which are committed by the next flush. A position that is stored already is our mistake: AssertionError.

        Raises what a flush in the background raised, for example UserError for a full disk.
        """
        if self._timer.done():
            self._timer.result()
        positions = np.fromiter((row.position for row in rows), np.int64, len(rows))  # type: ignore[attr-defined]
        assert len(np.unique(positions)) == len(rows), "a position is appended twice"
        with self._appending:
            assert not self._closed.is_set(), "the store is closed"
            self.positions.add(positions)
            self._rows.extend(rows)
            if len(self._rows) >= LOT_ROWS:
                self._make_lot()
        if self._pending_bytes >= PENDING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Commit what was appended: durable when this returns. Then merge shards where there are many. Raises UserError for a full disk."""
        with self._committing, full_disk_explained(self.folder, "what was committed"):
            with self._appending:
                self._make_lot()
                lots = list(self._lots)
            if not lots:
                return
            self._commit([by_position(pa.concat_tables(lots))])
            with self._appending:
                del self._lots[: len(lots)]
                self._pending_bytes = sum(lot.nbytes for lot in self._lots)
            while paths := worth_merging(self._sizes):
                self._merge(paths)

    def rows(self) -> Iterator[Row]:
        """Yield the rows that are committed, shard by shard."""
        for rows in Follower(self.folder, self._row_type, Positions(self.positions.limit)).poll():
            yield from rows

    def finish(self, part_rows: int = PART_ROWS) -> list[Path]:
        """Commit everything and write the parts; return their paths. Nothing can be appended any more.

        The shards stay, so that a kill loses nothing, until the caller has written the manifest and calls `remove_shards`.
        """
        self.flush()
        self._stop_timer()
        with self._committing, full_disk_explained(self.folder, "what was committed"):
            while len(self._sizes) > MAX_OPEN:
                self._merge(sorted(self._sizes, key=lambda path: (self._sizes[path], path))[:MAX_OPEN])
            return write_parts(self.folder, sorted(self._sizes), self._schema, part_rows)

    def close(self) -> None:
        """Commit what was appended and let the next writer in."""
        self._stop_timer()
        try:
            self.flush()
        finally:
            self._lock.release()

    def __enter__(self) -> TraceStore[Row]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _make_lot(self) -> None:
        if self._rows:
            self._lots.append(to_arrow(self._rows, self._schema))
            self._pending_bytes += self._lots[-1].nbytes
            self._rows = []

    def _commit(self, tables: Iterator[pa.Table] | list[pa.Table], replaced: Sequence[Path] = ()) -> None:
        path = shard_path(self.folder, 1 + max(map(shard_number, self._sizes), default=0))
        write_shard(path, tables, self._schema, map(shard_number, replaced))
        self._sizes[path] = path.stat().st_size

    def _merge(self, paths: Sequence[Path]) -> None:
        self._commit(merge(paths, self._schema), paths)
        remove(paths, self.folder)
        for path in paths:
            del self._sizes[path]

    def _flush_regularly(self, interval_s: float) -> None:
        while not self._closed.wait(interval_s):
            self.flush()

    def _stop_timer(self) -> None:
        with self._appending:
            self._closed.set()
        self._timer_thread.shutdown(wait=True)
