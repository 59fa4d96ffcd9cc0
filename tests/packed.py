"""Micro-batches of rows that are in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from w2sr.packing.fit import fill_bins
from w2sr.packing.pack import MicroBatch, RowTable, collate
from w2sr.packing.rows import Row


def table_of(rows: Sequence[Row]) -> RowTable:
    """Return rows that are in memory as a table."""
    lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
    return RowTable(
        (np.concatenate([np.zeros(0, np.int32), *(np.asarray(row.ids, dtype=np.int32) for row in rows)]),),
        np.zeros(len(rows), dtype=np.int16),
        np.cumsum(lengths) - lengths,
        lengths,
        np.array([row.num_prefix for row in rows], dtype=np.int64),
        np.array([row.weight for row in rows], dtype=np.float32),
    )


def collate_padded(rows: Sequence[Row], pad_id: int) -> MicroBatch:
    """Return one sequence a row, padded on the right to the longest."""
    return collate(table_of(rows), [np.array([number]) for number in range(len(rows))], pad_id, packed=False)


def collate_packed(rows: Sequence[Row], pad_id: int, capacity: int, flatten: bool) -> MicroBatch:
    """Return `rows` packed into sequences of at most `capacity` tokens. `flatten`: all end to end in one."""
    table = table_of(rows)
    sequences = [np.arange(len(rows))] if flatten else fill_bins(table.lengths, capacity).split()
    return collate(table, sequences, pad_id, packed=True)
