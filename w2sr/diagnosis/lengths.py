"""The distribution of lengths."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

_BARS = " ▁▂▃▄▅▆▇█"
NUM_BINS = 24


@dataclass(frozen=True)
class Lengths:
    """Lengths in `unit`; quantiles are values that occur. `histogram`: counts in equal bins from 0 to `max`."""

    unit: Literal["tokens", "words"]
    mean: float
    median: int
    p90: int
    p99: int
    max: int
    histogram: list[int]

    @classmethod
    def of(cls, counts: Counter[int], unit: Literal["tokens", "words"]) -> Lengths:
        """Summarise `counts`: how many traces have each length."""
        total = counts.total()
        if not total:
            return cls(unit, 0.0, 0, 0, 0, 0, [0] * NUM_BINS)
        longest = max(counts)
        histogram = [0] * NUM_BINS
        for length, number in counts.items():
            histogram[min(NUM_BINS - 1, length * NUM_BINS // max(1, longest))] += number
        mean = sum(length * number for length, number in counts.items()) / total
        median, p90, p99 = (_quantile(counts, total, share) for share in (0.5, 0.9, 0.99))
        return cls(unit, mean, median, p90, p99, longest, histogram)

    def bars(self) -> str:
        """Return the histogram as one line of block characters; a bin that is not empty shows at least the lowest block."""
        top = max(self.histogram)
        return "".join(_BARS[-(-number * (len(_BARS) - 1) // top)] if top else " " for number in self.histogram)


def _quantile(counts: Counter[int], total: int, share: float) -> int:
    """Return the smallest length that at least `share` of the traces do not exceed."""
    seen = 0
    for length in sorted(counts):
        seen += counts[length]
        if seen >= share * total:
            return length
    raise AssertionError("no length reaches the quantile")
