"""Which rows an optimizer step sees: a pure function of (number of rows, batch size, seed, step).

The order is one permutation an epoch, end to end, cut every global_batch_size rows; a step's rows do not depend on the number of
ranks. The only state is the step, so a resumed run goes on exactly where it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from w2sr.errors import UserError
from w2sr.packing.rows import Row
from w2sr.tables import replacing

Indices = npt.NDArray[np.int64]


def num_steps(num_rows: int, global_batch_size: int, epochs: float | None, max_steps: int | None) -> int:
    """Return the optimizer steps of a training: `max_steps`, or enough to see every row `epochs` times (rounded up to a whole step).

    Raises UserError when there are fewer rows than one step needs.
    """
    if num_rows < global_batch_size:
        raise UserError(
            f"{num_rows} rows are fewer than train.global_batch_size={global_batch_size}: not one step has enough. "
            f"Set train.global_batch_size to {num_rows} or less (with train.micro_batch_size low enough to divide it), or make more rows"
        )
    if max_steps is not None:
        return max_steps
    assert epochs is not None
    return max(1, math.ceil(epochs * num_rows / global_batch_size - 1e-9))


@lru_cache(maxsize=4)
def epoch_order(num_rows: int, seed: int, epoch: int) -> Indices:
    """Return the permutation of the rows in an epoch."""
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(num_rows)
    return order.astype(np.int64)


def rows_of_step(num_rows: int, global_batch_size: int, seed: int, step: int) -> Indices:
    """Return the row numbers of optimizer step `step` (from 0), [global_batch_size]; a step may span the end of an epoch."""
    start, stop = step * global_batch_size, (step + 1) * global_batch_size
    parts = []
    while start < stop:
        epoch, offset = divmod(start, num_rows)
        part = epoch_order(num_rows, seed, epoch)[offset : offset + stop - start]
        parts.append(part)
        start += len(part)
    return np.concatenate(parts)


def deal(indices: Indices, lengths: Indices, num_ranks: int, micro_batch_size: int) -> list[list[Indices]]:
    """Deal a step's rows out: `deal(...)[micro_batch][rank]` is an array of `micro_batch_size` row numbers.

    Rows of like length come together, so that little is padded and ranks that wait for each other have equal work. Every rank gets the
    same number of micro-batches: ZeRO 2 and 3 communicate in each backward pass.
    """
    group = num_ranks * micro_batch_size
    assert len(indices) % group == 0, f"{len(indices)} rows do not fill micro-batches of {micro_batch_size} on {num_ranks} ranks"
    ordered = indices[np.lexsort((indices, -lengths[indices]))]
    rounds = ordered.reshape(-1, micro_batch_size, num_ranks)
    rounds[:, 1::2] = rounds[:, 1::2, ::-1]  # there and back, or rank 0 would always get the longer one
    return [[chunk[:, rank] for rank in range(num_ranks)] for chunk in rounds]


@dataclass(frozen=True)
class RowStore:
    """All rows of an arm in arrays: `ids` [tokens], `ends` [rows] (end of each row in `ids`), `prefixes` [rows], `weights` [rows]."""

    ids: npt.NDArray[np.int32]
    ends: Indices
    prefixes: Indices
    weights: npt.NDArray[np.float32]
    example_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> Indices:
        """Tokens of each row."""
        return np.diff(self.ends, prepend=0)

    @property
    def num_supervised(self) -> int:
        """Supervised tokens of all rows."""
        return int((self.lengths - self.prefixes).sum())

    def row(self, number: int) -> Row:
        """Return one row (its prompt id is not kept)."""
        start = int(self.ends[number - 1]) if number else 0
        ids = tuple(int(token) for token in self.ids[start : int(self.ends[number])])
        return Row(self.example_ids[number], "", ids, int(self.prefixes[number]), float(self.weights[number]))


def save_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows atomically, as safetensors."""
    from safetensors.numpy import save_file

    tensors = {
        "ids": np.concatenate([np.asarray(row.ids, dtype=np.int32) for row in rows]),
        "ends": np.cumsum([len(row.ids) for row in rows], dtype=np.int64),
        "prefixes": np.asarray([row.num_prefix for row in rows], dtype=np.int64),
        "weights": np.asarray([row.weight for row in rows], dtype=np.float32),
    }
    with replacing(path) as aside:
        save_file(tensors, aside, metadata={"example_ids": json.dumps([row.example_id for row in rows])})


def load_rows(path: Path) -> RowStore:
    """Read what `save_rows` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        example_ids = tuple(json.loads(file.metadata()["example_ids"]))
        ids, ends, prefixes, weights = (file.get_tensor(name) for name in ("ids", "ends", "prefixes", "weights"))
        return RowStore(ids, ends, prefixes, weights, example_ids)
