"""Counts over totals, with exact intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Rate:
    """`count` of `total`."""

    count: int
    total: int

    @property
    def value(self) -> float:
        """The share; 0 of nothing is 0."""
        return self.count / self.total if self.total else 0.0

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Return the exact two-sided interval of the share (Clopper & Pearson 1934, Biometrika 26).

        It is never too narrow, also for small counts, if the counted things are independent of each other.
        """
        from scipy import stats

        tail = (1 - confidence) / 2
        low = float(stats.beta.ppf(tail, self.count, self.total - self.count + 1)) if self.count else 0.0
        high = float(stats.beta.isf(tail, self.count + 1, self.total - self.count)) if self.count < self.total else 1.0
        return low, high

    def to_json(self) -> dict[str, Any]:
        """Return count, total, value and the 95 % interval (low, high)."""
        low, high = self.interval()
        return {"count": self.count, "total": self.total, "value": self.value, "low": low, "high": high}
