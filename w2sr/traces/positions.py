"""A set of positions, one bit each: what a resume has to know of ten million traces takes 1.25 MB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Positions:
    """A set of integers in [0, limit)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self._bytes = bytearray(-(-limit // 8))
        self._bits = np.frombuffer(self._bytes, np.uint8)  # the same memory, for whole arrays

    def __contains__(self, position: int) -> bool:
        return bool(self._bytes[position >> 3] >> (position & 7) & 1)

    def __len__(self) -> int:
        return self.count

    def known(self, positions: Ints) -> NDArray[np.bool_]:
        """Return for each of `positions` whether it is in the set; same shape."""
        found: NDArray[np.bool_] = (self._bits[positions >> 3] >> (positions & 7) & 1).astype(bool)
        return found

    def add(self, positions: Ints) -> None:
        """Add `positions`: [n], all different and none of them in the set."""
        assert ((positions >= 0) & (positions < self.limit)).all(), "a position outside the plan"
        assert not self.known(positions).any(), "a position is added twice"
        np.bitwise_or.at(self._bits, positions >> 3, (1 << (positions & 7)).astype(np.uint8))
        self.count += len(positions)

    def count_common(self, other: Positions) -> int:
        """Return how many positions are in both sets, which have the same limit."""
        return int(np.unpackbits(self._bits & other._bits).sum())

    def merge(self, other: Positions) -> None:
        """Add the members of another set, none of which is in this one."""
        self._bits |= other._bits
        self.count += other.count

    def missing(self, chunk: int = 1 << 16) -> Iterator[int]:
        """Yield what is not in the set, ascending."""
        for start in range(0, len(self._bits), chunk):
            bits = np.unpackbits(self._bits[start : start + chunk], bitorder="little")
            found: Any = np.flatnonzero(bits == 0) + start * 8
            yield from found[found < self.limit].tolist()

    def copy(self) -> Positions:
        """Return a set of its own with the same members."""
        twin = Positions(self.limit)
        twin._bytes[:] = self._bytes
        twin.count = self.count
        return twin
