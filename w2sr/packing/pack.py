"""Layouts of a micro-batch: padded (one row a sequence) and packed (several rows a sequence, no attention across rows).

Packed sequences carry position_ids that restart with each row. transformers builds the block-diagonal mask from them when no attention
mask is given (masking_utils.find_packed_sequence_indices for sdpa and eager; flash attention reads the same restarts, but only in a
batch of one sequence, hence `flatten`). Padded rows need no mask either: padding stands on the right, where causal attention never looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

IGNORED = -100


class TokenRow(Protocol):
    """What a layout needs to know of a row."""

    @property
    def ids(self) -> Sequence[int]:
        """Token ids, prefix first."""
        ...

    @property
    def num_prefix(self) -> int:
        """Tokens at the start that are not supervised; at least one."""
        ...

    @property
    def weight(self) -> float:
        """Weight of each supervised token in the loss."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    """Arrays [sequences, tokens] of int64. `labels` are the ids where supervised, else IGNORED; unshifted. `position_ids` None: padded.

    `weights` (fp32): what a supervised token counts in the loss, at the place of its label.
    """

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64] | None
    weights: npt.NDArray[np.float32]

    @property
    def num_supervised(self) -> int:
        """Tokens that count in the loss."""
        return int((self.labels != IGNORED).sum())


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put every index of `lengths` into one bin of at most `capacity` tokens, longest first, each into the fullest bin it fits."""
    assert all(0 < length <= capacity for length in lengths), f"rows must have 1 to {capacity} tokens, got {max(lengths)}"
    bins: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        fitting = [number for number, room in enumerate(free) if room >= lengths[index]]
        if fitting:
            number = min(fitting, key=lambda number: (free[number], number))
        else:
            number = len(bins)
            bins.append([])
            free.append(capacity)
        bins[number].append(index)
        free[number] -= lengths[index]
    return bins


def collate_padded(rows: Sequence[TokenRow], pad_id: int) -> MicroBatch:
    """Return one sequence a row, padded on the right to the longest."""
    return _collate([[row] for row in rows], pad_id, packed=False)


def collate_packed(rows: Sequence[TokenRow], pad_id: int, capacity: int, flatten: bool) -> MicroBatch:
    """Return `rows` packed into sequences of at most `capacity` tokens. `flatten`: all end to end in one, as flash attention wants."""
    bins = [list(range(len(rows)))] if flatten else best_fit([len(row.ids) for row in rows], capacity)
    return _collate([[rows[index] for index in members] for members in bins], pad_id, packed=True)


def _collate(sequences: list[list[TokenRow]], pad_id: int, packed: bool) -> MicroBatch:
    shape = (len(sequences), max(sum(len(row.ids) for row in rows) for rows in sequences))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    weights = np.zeros(shape, dtype=np.float32)
    for number, rows in enumerate(sequences):
        start = 0
        for row in rows:
            assert row.num_prefix >= 1, "the first token of a row has nothing to be predicted from"
            end = start + len(row.ids)
            input_ids[number, start:end] = row.ids
            labels[number, start + row.num_prefix : end] = row.ids[row.num_prefix :]
            weights[number, start + row.num_prefix : end] = row.weight
            positions[number, start:end] = np.arange(end - start)
            start = end
        positions[number, start:] = np.arange(shape[1] - start)  # padding is a row of its own
    return MicroBatch(input_ids, labels, positions if packed else None, weights)
