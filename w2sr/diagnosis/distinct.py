"""How many distinct texts a stream holds, in fixed memory."""

from __future__ import annotations

import hashlib
from collections import Counter

_HASH_BITS = 64


class DistinctSample:
    """Counts how often each of a sample of the distinct texts occurs.

    A text is in the sample when its hash is below a bound, so all its copies are or none. The bound is halved whenever more than `capacity`
    distinct texts are held (distinct sampling, Gibbons 2001, VLDB). Exact up to `capacity`; beyond, shares are those of a random sample of
    at least half of `capacity` distinct texts.
    """

    def __init__(self, capacity: int = 1 << 17) -> None:
        assert capacity > 0
        self._capacity = capacity
        self._bound = 1 << _HASH_BITS
        self._counts: Counter[int] = Counter()

    def add(self, *parts: str) -> None:
        """Count one occurrence of the text made of `parts`."""
        value = int.from_bytes(
            hashlib.blake2b("\x1f".join(parts).encode(errors="surrogatepass"), digest_size=_HASH_BITS // 8).digest(), "big"
        )
        if value >= self._bound:
            return
        self._counts[value] += 1
        while len(self._counts) > self._capacity:
            self._bound //= 2
            self._counts = Counter({held: number for held, number in self._counts.items() if held < self._bound})

    @property
    def sampled(self) -> int:
        """Occurrences in the sample, copies included."""
        return self._counts.total()

    @property
    def distinct(self) -> int:
        """Distinct texts in the sample."""
        return len(self._counts)

    @property
    def is_exact(self) -> bool:
        """Whether the sample is everything."""
        return self._bound == 1 << _HASH_BITS
