"""Layouts of a micro-batch: padded (one row a sequence) and packed (several rows a sequence, no attention across rows).

Packed sequences carry position_ids that restart with each row. From them attention knows the rows: w2sr.packing.attention and flash
attention, which want all rows in one sequence, or the block-diagonal mask that transformers builds when no attention mask is
given (masking_utils.find_packed_sequence_indices). Padded rows need no mask either: padding stands on the right, where causal attention
never looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from w2sr.packing.fit import Indices

IGNORED = -100


@dataclass(frozen=True)
class RowTable:
    """Rows in arrays, each [rows] but `buffers`: row n is `lengths[n]` tokens from `starts[n]` on in `buffers[places[n]]`.

    The first `prefixes[n]` of them are not supervised; the others count `weights[n]` in the loss.
    """

    buffers: tuple[npt.NDArray[np.int32], ...]
    places: npt.NDArray[np.int16]
    starts: Indices
    lengths: Indices
    prefixes: Indices
    weights: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def num_supervised(self) -> int:
        """Supervised tokens of all rows."""
        return int((self.lengths - self.prefixes).sum())

    def tokens(self, rows: Indices, within: Indices) -> npt.NDArray[np.int32]:
        """Return the tokens of `rows` end to end; `within` is each token's place in its row."""
        lengths = self.lengths[rows]
        sources = np.repeat(self.starts[rows], lengths) + within
        if len(self.buffers) == 1:
            only: npt.NDArray[np.int32] = self.buffers[0][sources]
            return only
        places, found = np.repeat(self.places[rows], lengths), np.empty(len(sources), dtype=np.int32)
        for place, buffer in enumerate(self.buffers):
            here = places == place
            found[here] = buffer[sources[here]]
        return found


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

    def unsupervised(self) -> MicroBatch:
        """Return the same tokens without a label."""
        return MicroBatch(self.input_ids, np.full_like(self.labels, IGNORED), self.position_ids, np.zeros_like(self.weights))


def collate(table: RowTable, sequences: Sequence[Indices], pad_id: int, packed: bool) -> MicroBatch:
    """Return a micro-batch in which sequence n holds the rows `sequences[n]` end to end, padded on the right to the longest sequence.

    Padding is a row of its own: its positions count from 0 too.
    """
    rows = np.concatenate(sequences)
    counts = np.array([len(members) for members in sequences])
    lengths = table.lengths[rows]
    assert (table.prefixes[rows] >= 1).all(), "the first token of a row has nothing to be predicted from"
    row_starts = np.cumsum(lengths) - lengths  # with all sequences end to end
    firsts = np.cumsum(counts) - counts
    totals = np.add.reduceat(lengths, firsts)
    width = int(totals.max())
    within = np.arange(lengths.sum()) - np.repeat(row_starts, lengths)
    targets = np.repeat(np.repeat(np.arange(len(counts)) * width - row_starts[firsts], counts) + row_starts, lengths) + within
    ids = table.tokens(rows, within).astype(np.int64)
    is_supervised = within >= np.repeat(table.prefixes[rows], lengths)

    shape = (len(counts), width)
    input_ids, labels = np.full(shape, pad_id, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    weights = np.zeros(shape, dtype=np.float32)
    positions = np.arange(width) - totals[:, None]
    input_ids.ravel()[targets] = ids
    labels.ravel()[targets[is_supervised]] = ids[is_supervised]
    weights.ravel()[targets[is_supervised]] = np.repeat(table.weights[rows], lengths)[is_supervised]
    positions.ravel()[targets] = within
    return MicroBatch(input_ids, labels, positions if packed else None, weights)
