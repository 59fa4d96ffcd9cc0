"""How a gradient changes the weights, and whether an average of them is kept."""

from __future__ import annotations

from w2sr.schema import StrictModel


class OptimizerConfig(StrictModel):
    """How a gradient changes the weights, and whether an average of them is kept."""
