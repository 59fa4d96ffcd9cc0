"""Reads what a store has committed while the store is still written, in the same process or in another one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa

from w2sr.tables import schema_of
from w2sr.traces.positions import Positions
from w2sr.traces.shards import open_shard, positions_of, replaced_by, shard_files, shard_number

Row = TypeVar("Row")


class Follower(Generic[Row]):
    """Yields every committed row once, although shards are merged and at last become parts meanwhile. Takes no lock.

    `seen`: the positions that are not wanted, for example those that were worked on before a restart. What is yielded is added to it.
    """

    def __init__(self, folder: Path, row_type: type[Row], seen: Positions) -> None:
        self._folder = folder
        self._row_type = row_type
        self._schema = schema_of(row_type)
        self._seen = seen
        self._read: set[int] = set()  # numbers of shards whose rows are all seen

    def poll(self) -> Iterator[list[Row]]:
        """Yield the rows committed since the last poll, a row group at a time. Raises UserError for a damaged file."""
        changed = True
        while changed:
            changed = False
            for path in [*shard_files(self._folder), *sorted(self._folder.glob("part-*.parquet"))]:
                try:
                    yield from self._unseen(path)
                except FileNotFoundError:  # merged, or made parts, since the folder was listed
                    changed = True

    def _unseen(self, path: Path) -> Iterator[list[Row]]:
        is_shard = path.name.startswith("shard-")
        if is_shard:
            number = shard_number(path)
            replaces = set() if number in self._read else replaced_by(path, self._schema)
            if number in self._read or (replaces and replaces <= self._read):
                self._read.add(number)
                return
        with open_shard(path, self._schema) as file:
            for group in range(file.num_row_groups):
                positions = positions_of(file.read_row_group(group, columns=["position"], use_threads=False))
                wanted = ~self._seen.known(positions)
                if wanted.any():
                    self._seen.add(positions[wanted])
                    table = file.read_row_group(group, use_threads=False).filter(pa.array(wanted))
                    yield [self._row_type(**row) for row in table.to_pylist()]
        if is_shard:
            self._read.add(number)
