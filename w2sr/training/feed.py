"""What a rank is fed: its micro-batches of each optimizer step, and of the selection rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2sr.packing import attention
from w2sr.packing.pack import IGNORED, MicroBatch, collate_packed, collate_padded
from w2sr.packing.rows import Row
from w2sr.training.data import Indices, RowStore, deal, load_rows, num_steps, rows_of_step
from w2sr.training.dist import Group
from w2sr.training.spec import TrainSpec


@dataclass(frozen=True)
class Step:
    """One optimizer step: the numbers of all its rows, over all ranks, and their tokens and supervised tokens."""

    rows: Indices
    num_tokens: int
    num_supervised: int


class Feed:
    """Deals the rows of a training to this rank. `model_config`: the student's, which names the pad token and the attention."""

    def __init__(self, spec: TrainSpec, group: Group, model_config: Any) -> None:
        self.rows = load_rows(Path(spec.rows))
        self._lengths = self.rows.lengths
        self._spec = spec
        self._group = group
        self._pad_id = int(model_config.pad_token_id or 0)
        self._flatten = attention.takes_one_sequence(model_config)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the training."""
        train = self._spec.train
        return num_steps(len(self.rows), train.global_batch_size, train.epochs, train.max_steps)

    def step(self, step: int) -> Step:
        """Return what optimizer step `step` (from 0) sees, the same on every rank and for any number of them."""
        rows = rows_of_step(len(self.rows), self._spec.train.global_batch_size, self._spec.seed, step)
        lengths = self._lengths[rows]
        return Step(rows, int(lengths.sum()), int((lengths - self.rows.prefixes[rows]).sum()))

    def micro_batches(self, step: Step) -> Iterator[tuple[list[str], MicroBatch]]:
        """Yield this rank's micro-batches of `step`, each with the ids of its examples; every rank yields as many."""
        for shares in deal(step.rows, self._lengths, self._group.data_size, self._spec.train.micro_batch_size):
            rows = [self.rows.row(int(number)) for number in shares[self._group.data_rank]]
            yield [row.example_id for row in rows], self._collate(rows)

    def selection(self, rows: RowStore) -> Iterator[MicroBatch]:
        """Yield this rank's share of `rows`, in order of length; every rank yields as many (ZeRO-3 gathers in each forward pass).

        The surplus ones are unsupervised.
        """
        order = np.argsort(-rows.lengths, kind="stable")
        size = self._spec.train.micro_batch_size * self._group.data_size
        for start in range(0, len(order), size):
            mine = [int(number) for number in order[start : start + size][self._group.data_rank :: self._group.data_size]]
            batch = self._collate([rows.row(number) for number in mine or [int(order[0])]])
            yield batch if mine else MicroBatch(batch.input_ids, np.full_like(batch.labels, IGNORED), batch.position_ids, batch.weights * 0)

    def _collate(self, rows: Sequence[Row]) -> MicroBatch:
        if self._spec.train.packing:
            return collate_packed(rows, self._pad_id, self._spec.train.max_length, self._flatten)
        return collate_padded(rows, self._pad_id)
