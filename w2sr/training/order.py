"""Which rows an optimizer step sees: a pure function of (rows, configuration, seed, step), whatever the number of ranks.

An epoch is a permutation of the rows of an arm, or of a draw from each arm of a mixture; with packing it is packed as a whole and its
sequences are permuted. Rows that come in waves have an epoch for each wave, one after another, and then again from the first on. Epochs
lie end to end in one endless course, which is cut into steps of so many units or so many tokens. The only
state is the step, so a resumed run goes on exactly where it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from w2sr.errors import UserError
from w2sr.packing.fit import Indices, fill_bins
from w2sr.training.config import TrainConfig

Parts = tuple[tuple[int, float], ...]
_OF_SEQUENCES, _OF_MIXTURE, _OF_PART = 1, 2, 3  # what a permutation is of, besides the rows of a single arm


@dataclass(frozen=True)
class Units:
    """Units end to end, each a row or a packed sequence: row numbers, and where each unit ends in them."""

    rows: Indices
    ends: Indices

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def starts(self) -> Indices:
        """Where each unit begins in `rows`."""
        return np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])

    def some(self, start: int, stop: int) -> Units:
        """Return units `start` to `stop` (exclusive)."""
        first, last = self.starts[start], self.ends[stop - 1]
        return Units(self.rows[first:last], self.ends[start:stop] - first)

    def reordered(self, order: Indices) -> Units:
        """Return the units in another order."""
        counts = (self.ends - self.starts)[order]
        ends = np.cumsum(counts)
        within = np.arange(len(self.rows)) - np.repeat(ends - counts, counts)
        return Units(self.rows[np.repeat(self.starts[order], counts) + within], ends)

    def tokens(self, lengths: Indices) -> Indices:
        """Return the tokens of each unit; `lengths` are those of all rows."""
        if not len(self):
            return np.zeros(0, np.int64)
        return np.add.reduceat(lengths[self.rows], self.starts)


@dataclass(frozen=True)
class _Epoch:
    """The units of an epoch, and where each begins in it, and where the epoch ends, in units or tokens: [units + 1]."""

    units: Units
    bounds: Indices


class Course:
    """The order of rows of `lengths` in a training under `train` with `seed`.

    `parts`, `waves`: as in RowStore. Of `waves` some may come later (`grow`): what a step sees does not depend on when.
    """

    def __init__(self, lengths: Indices, parts: Parts, train: TrainConfig, seed: int, waves: int = 1) -> None:
        self._train = train
        self._seed = seed
        self._waves = waves
        self._batch = train.global_batch_size if train.global_batch_size is not None else train.global_batch_tokens
        self._begins = [0]  # of a mixture's epochs, as far as they were looked at
        self._sizes: dict[int, int] = {}  # of the first epoch of each wave, and so of its other ones
        self._epochs: dict[int, _Epoch] = {}
        self.grow(lengths, parts)
        self._draws = draws(parts) if self._is_mixture else []

    def grow(self, lengths: Indices, parts: Parts) -> None:
        """Take note of further waves: `lengths` and `parts` as before, and theirs behind."""
        self._lengths = lengths
        self._parts = parts
        self._firsts = np.cumsum([0, *(num_rows for num_rows, _ in parts)])  # rows before each part

    @property
    def _is_mixture(self) -> bool:
        return self._waves == 1 and len(self._parts) > 1

    @property
    def is_whole(self) -> bool:
        """Whether all waves are there."""
        return len(self._parts) >= self._waves

    @cached_property
    def num_steps(self) -> int:
        """Optimizer steps: `max_steps`, or enough for `epochs` passes over all waves, rounded up to a whole step.

        Raises UserError when all rows have less than one step needs, or when `epochs` are to be counted and not all waves are there.
        """
        assert self._batch is not None
        self._require_enough()
        if self._train.max_steps is not None:
            return self._train.max_steps
        assert self._train.epochs is not None
        if not self.is_whole:
            raise UserError(
                f"train.epochs={self._train.epochs:g}, but {len(self._parts)} of {self._waves} waves of rows are there, and the number "
                "of steps is not known before; give train.max_steps in its place, or train when all waves are there"
            )
        whole, part = divmod(self._train.epochs, 1)
        first = int(whole) * self._waves
        end = self._begin(first) + (part * (self._begin(first + self._waves) - self._begin(first)) if part else 0)
        return max(1, math.ceil(end / self._batch - 1e-9))

    def has(self, step: int) -> bool:
        """Whether the rows of optimizer step `step` (from 0) are there."""
        assert self._batch is not None
        return self.is_whole or self._begin(len(self._parts)) >= (step + 1) * self._batch

    def step(self, step: int) -> Units:
        """Return the units of optimizer step `step` (from 0), whose rows are there; it may span the ends of epochs.

        Raises UserError when all rows have less than one step needs, which is known when the last wave is there.
        """
        assert self._batch is not None
        assert self.has(step), f"rows of step {step + 1} are not there"
        self._require_enough()
        start, stop = step * self._batch, (step + 1) * self._batch
        epoch, found = self._epoch_at(start), []
        while self._begin(epoch) < stop:
            begin, this = self._begin(epoch), self._epoch(epoch)
            first, last = np.searchsorted(this.bounds[:-1], [start - begin, stop - begin])
            if first < last:
                found.append(this.units.some(int(first), int(last)))
            epoch += 1
        shifts = np.cumsum([0, *(len(units.rows) for units in found)])
        ends = [units.ends + shift for units, shift in zip(found, shifts)]
        return Units(np.concatenate([units.rows for units in found]), np.concatenate(ends))

    def fill(self) -> float:
        """Return the share of the places in the first epoch's packed sequences that hold a token."""
        units = self._epoch(0).units
        return float(self._lengths[units.rows].sum() / (len(units) * self._train.max_length))

    def _require_enough(self) -> None:
        """Raise UserError if all rows have less than one step needs."""
        assert self._batch is not None
        size = 0
        for wave in range(len(self._parts) if not self._is_mixture else 1):
            size += self._size(wave)
            if size >= self._batch:
                return
        if self.is_whole:
            raise UserError(self._too_little(size))

    def _epoch_at(self, position: int) -> int:
        """Return the epoch in which `position` of the course lies."""
        epoch = 0
        if self.is_whole and not self._is_mixture:
            epoch = position // self._begin(self._waves) * self._waves
        while self._begin(epoch + 1) <= position:
            epoch += 1
        return epoch

    def _begin(self, epoch: int) -> int:
        """Return where an epoch begins in the course. Epochs of one wave are equally large; those of a mixture have to be drawn."""
        if not self._is_mixture:
            turn, wave = divmod(epoch, self._waves)
            before = sum(map(self._size, range(wave)))
            return before + (turn * sum(map(self._size, range(self._waves))) if turn else 0)
        while len(self._begins) <= epoch:
            self._begins.append(self._begins[-1] + int(self._epoch(len(self._begins) - 1).bounds[-1]))
        return self._begins[epoch]

    def _size(self, wave: int) -> int:
        if wave not in self._sizes:
            self._sizes[wave] = int(self._epoch(wave).bounds[-1])
        return self._sizes[wave]

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            kept = {epoch: self._epochs[epoch] for epoch in (0, number - 1) if epoch in self._epochs}
            self._epochs = {**kept, number: self._make(number)}
        return self._epochs[number]

    def _make(self, number: int) -> _Epoch:
        rows = self._rows(number)
        units = Units(rows, np.arange(1, len(rows) + 1))
        if self._train.packing:
            bins = fill_bins(self._lengths[rows], self._train.max_length)
            order = permutation(len(bins), self._seed, number, _OF_SEQUENCES)
            units = Units(rows[bins.members], bins.ends).reordered(order)
        sizes = np.ones(len(units), np.int64) if self._train.global_batch_size is not None else units.tokens(self._lengths)
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        same = number < self._waves or self._is_mixture or bounds[-1] == self._size(number % self._waves)
        assert same, "rows of the same lengths make as many sequences in any order"
        return _Epoch(units, bounds)

    def _rows(self, epoch: int) -> Indices:
        """Return the rows of an epoch in its order."""
        if not self._is_mixture:
            wave = epoch % self._waves
            rows: Indices = self._firsts[wave] + permutation(self._parts[wave][0], self._seed, epoch)
            return rows
        found, offset = [], 0
        for part, (num_rows, draw) in enumerate(zip((rows for rows, _ in self._parts), self._draws)):
            found.append(offset + _drawn(num_rows, draw, self._seed, epoch, _OF_PART + part))
            offset += num_rows
        rows = np.concatenate(found)
        return rows[permutation(len(rows), self._seed, epoch, _OF_MIXTURE)]

    def _too_little(self, units: int) -> str:
        num_rows, tokens = len(self._lengths), int(self._lengths.sum())
        if self._train.global_batch_size is None:
            least = self._train.max_length
            lower = f"Set train.global_batch_tokens to {tokens} or less" + (f", and train.max_length={least} too" if tokens < least else "")
            return (
                f"{num_rows} rows of {tokens} tokens in all are less than train.global_batch_tokens={self._batch}: not one step has "
                f"enough. {lower}, or make more rows"
            )
        what = f"{num_rows} rows"
        if self._train.packing:
            what += f", packed into {units} sequences of train.max_length={self._train.max_length},"
        return (
            f"{what} are fewer than train.global_batch_size={self._batch}: not one step has enough. "
            f"Set train.global_batch_size to {units} or less (with train.micro_batch_size low enough to divide it), or make more rows"
        )


def draws(parts: Parts) -> list[int]:
    """Return how many rows of each part an epoch has: their shares of the number of all rows, rounded so that the sum stays.

    Raises UserError when a part would have none.
    """
    total = sum(num_rows for num_rows, _ in parts)
    exact = [share * total for _, share in parts]
    found = [math.floor(number) for number in exact]
    largest = sorted(range(len(parts)), key=lambda part: (found[part] - exact[part], part))
    for part in largest[: total - sum(found)]:
        found[part] += 1
    if 0 in found:
        part = found.index(0)
        raise UserError(
            f"part {part + 1} of a mixture, with a share of {parts[part][1]:.2g} of {total} rows, would have no row in an epoch; give it "
            "more weight in train.mixtures, or leave it out"
        )
    return found


def _drawn(num_rows: int, draw: int, seed: int, epoch: int, what: int) -> Indices:
    """Return the rows that an epoch draws: the next `draw` of the arm's own permutations, which lie end to end over all epochs."""
    start, stop, found = epoch * draw, (epoch + 1) * draw, []
    while start < stop:
        turn, offset = divmod(start, num_rows)
        found.append(permutation(num_rows, seed, turn, what)[offset : offset + stop - start])
        start += len(found[-1])
    return np.concatenate(found)


@lru_cache(maxsize=8)
def permutation(number: int, seed: int, epoch: int, what: int = 0) -> Indices:
    """Return the permutation of an epoch; `what` tells those of an epoch apart."""
    entropy = [seed, epoch, what] if what else [seed, epoch]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy))).permutation(number).astype(np.int64)
