"""Merges sorted shards in flat memory, and says which are worth merging."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from w2sr.traces.positions import Ints
from w2sr.traces.shards import by_position, groups, positions_of

# Shards of about the same size are merged eight at a time, until they have 64 MiB; then each byte was written three or four times.
FAN_IN = 8
FULL_BYTES = 64 << 20


def worth_merging(sizes: dict[Path, int], fan_in: int = FAN_IN, full_bytes: int = FULL_BYTES) -> list[Path]:
    """Return `fan_in` shards of one order of magnitude, the smallest that has so many; [] when there are none. `sizes`: in bytes."""
    tiers: dict[int, list[Path]] = defaultdict(list)
    for path, size in sorted(sizes.items()):
        if size < full_bytes:
            tiers[size.bit_length() // 3].append(path)
    for tier in sorted(tiers):
        if len(tiers[tier]) >= fan_in:
            return tiers[tier][:fan_in]
    return []


def merge(paths: Sequence[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of all shards in position order. Holds one row group of each shard whose positions surround the current one.

    No position may be in two shards.
    """
    waiting = sorted((_Run(path, schema) for path in paths), key=lambda run: run.first, reverse=True)
    active: list[_Run] = []
    last = -1
    while waiting or active:
        if not active:
            active.append(waiting.pop())
        while waiting and waiting[-1].first <= min(run.bound for run in active):
            active.append(waiting.pop())
        bound = min(run.bound for run in active)  # no run holds a smaller position beyond its current group
        table = by_position(pa.concat_tables([run.take_up_to(bound) for run in active]))
        active = [run for run in active if not run.is_done]
        positions = positions_of(table)
        assert (np.diff(positions, prepend=last) > 0).all(), f"a position is in two of {len(paths)} shards"
        last = int(positions[-1])
        yield table


class _Run:
    """A shard being read in order, one row group at a time; nothing is held before the first `bound`."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.first = int(positions_of(next(groups(path, schema, ["position"])))[0])
        self.is_done = False
        self._groups = groups(path, schema)
        self._table: pa.Table | None = None
        self._positions: Ints = np.empty(0, np.int64)
        self._start = 0

    @property
    def bound(self) -> int:
        """The last position of the current row group."""
        if self._table is None:
            self._advance()
        return int(self._positions[-1])

    def take_up_to(self, bound: int) -> pa.Table:
        """Return the rows of the current group with positions up to `bound`, and move on behind them."""
        assert self._table is not None
        end = int(np.searchsorted(self._positions, bound, side="right"))
        taken = self._table.slice(self._start, end - self._start)
        self._start = end
        if end == len(self._positions):
            self._advance()
        return taken

    def _advance(self) -> None:
        self._table = next(self._groups, None)
        self.is_done = self._table is None
        self._start = 0
        if self._table is not None:
            self._positions = positions_of(self._table)
