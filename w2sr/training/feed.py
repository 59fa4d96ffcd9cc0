"""What a rank is fed: its micro-batches of each optimizer step, and of the selection rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2sr.packing import attention
from w2sr.packing.fit import Indices, fill_bins
from w2sr.packing.pack import MicroBatch, collate
from w2sr.training.batches import cut, deal
from w2sr.training.data import RowFacts, RowStore, load_rows, read_waves
from w2sr.training.dist import Group
from w2sr.training.order import Course, Units
from w2sr.training.spec import TrainSpec


@dataclass(frozen=True)
class Step:
    """One optimizer step: the numbers of all its rows, over all ranks, and their tokens and supervised tokens.

    `ends`: where its units (rows; with packing packed sequences) end in `rows`; `lengths`: tokens of each row.
    """

    rows: Indices
    num_tokens: int
    num_supervised: int
    ends: Indices
    lengths: Indices


class Feed:
    """Deals the rows of a training to this rank. `model_config`: the student's, which names the pad token and the attention."""

    def __init__(self, spec: TrainSpec, group: Group, model_config: Any) -> None:
        self._path = Path(spec.rows)
        self.rows = load_rows(self._path)
        self._train = spec.train
        self._course = Course(self.rows.lengths, self.rows.parts, spec.train, spec.seed, self.rows.waves)
        self._group = group
        self._pad_id = int(model_config.pad_token_id or 0)
        self._flatten = spec.train.packing and attention.takes_one_sequence(model_config)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the training. Raises UserError when there are too few rows for one."""
        return self._course.num_steps

    @property
    def is_whole(self) -> bool:
        """Whether all waves of rows were there at the last look."""
        return self._course.is_whole

    def has(self, step: int) -> bool:
        """Whether the rows of optimizer step `step` (from 0) are there for this rank; looks for further waves if they were not."""
        if not self._course.has(step):
            self._look()
        return self._course.has(step)

    def step(self, step: int) -> Step:
        """Return what optimizer step `step` (from 0) sees, the same on every rank and for any number of them."""
        units = self._course.step(step)
        lengths = self.rows.lengths[units.rows]
        num_tokens = int(lengths.sum())
        return Step(units.rows, num_tokens, num_tokens - int(self.rows.prefixes[units.rows].sum()), units.ends, lengths)

    def micro_batches(self, step: Step) -> Iterator[tuple[list[str], MicroBatch]]:
        """Yield this rank's micro-batches of `step`, each with the ids of its examples; every rank yields as many.

        Where there are not enough units for that, a rank gets one without a label, and without examples.
        """
        yield from self._dealt(self.rows, Units(step.rows, step.ends), is_whole=True)

    def selection(self, rows: RowStore) -> Iterator[MicroBatch]:
        """Yield this rank's share of `rows`; every rank yields as many (ZeRO-3 gathers in each forward pass).

        The surplus ones are unsupervised.
        """
        units = Units(np.arange(len(rows)), np.arange(1, len(rows) + 1))
        if self._train.packing:
            bins = fill_bins(rows.lengths, self._train.max_length)
            units = Units(bins.members, bins.ends)
        for _, batch in self._dealt(rows, units, is_whole=False):
            yield batch

    def _look(self) -> None:
        """Map the waves that have come."""
        found = read_waves(self._path).rows
        new = found[len(self.rows.parts) :]
        # Some file systems show the index of a new wave before its rows.
        if new and all(RowFacts.load(path) is not None for path in new):
            self.rows = load_rows(self._path)
            self._course.grow(self.rows.lengths, self.rows.parts)

    def _dealt(self, rows: RowStore, units: Units, is_whole: bool) -> Iterator[tuple[list[str], MicroBatch]]:
        """`is_whole`: these are the units of a step, which fill micro-batches of so many units if both sizes are given in units."""
        units = units.reordered(np.argsort(units.rows[units.starts], kind="stable"))  # equal lengths are dealt by row number
        train, lengths, size = self._train, units.tokens(rows.lengths), self._group.data_size
        if is_whole and train.global_batch_size is not None and train.micro_batch_size is not None:
            rounds = deal(lengths, size, train.micro_batch_size)
        else:
            rounds = cut(lengths, size, train.micro_batch_size, train.micro_batch_tokens)
        for shares in rounds:
            mine = shares[self._group.data_rank]
            if len(mine):
                members = [units.rows[units.starts[unit] : units.ends[unit]] for unit in mine]
                yield rows.example_ids(np.concatenate(members)), self._collate(rows, members)
            else:
                shortest = int(np.argmin(lengths))
                yield [], self._collate(rows, [units.rows[units.starts[shortest] : units.ends[shortest]]]).unsupervised()

    def _collate(self, rows: RowStore, sequences: list[Indices]) -> MicroBatch:
        if self._flatten:
            sequences = [np.concatenate(sequences)]
        return collate(rows, sequences, self._pad_id, packed=self._train.packing)
