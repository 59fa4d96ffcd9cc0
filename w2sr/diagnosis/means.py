"""Means over prompts, in fixed memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from w2sr.diagnosis.rates import CONFIDENCE


@dataclass
class Mean:
    """A mean over prompts of values in [0, 1], with its variance (Welford 1962, Technometrics 4)."""

    count: int = 0
    value: float = 0.0
    _squares: float = 0.0

    def add(self, value: float) -> None:
        """Take one prompt's value in."""
        self.count += 1
        delta = value - self.value
        self.value += delta / self.count
        self._squares += delta * (value - self.value)

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Return the t interval of the mean within [0, 1]; the whole of it for fewer than two prompts.

        Prompts are what is independent here, not samples. Values that are all equal give an interval of width 0: read it as "less than
        3 / prompts" away.
        """
        if self.count < 2:
            return 0.0, 1.0
        from scipy import stats

        half = float(stats.t.isf((1 - confidence) / 2, self.count - 1)) * math.sqrt(self._squares / (self.count - 1) / self.count)
        return max(0.0, self.value - half), min(1.0, self.value + half)

    def to_json(self) -> dict[str, Any]:
        """Return prompts, value and the 95 % interval (low, high)."""
        low, high = self.interval()
        return {"prompts": self.count, "value": self.value, "low": low, "high": high}
