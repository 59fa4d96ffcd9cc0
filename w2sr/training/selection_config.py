"""When the selection split is evaluated during a training, and what its loss decides."""

from __future__ import annotations

from w2sr.schema import StrictModel


class SelectionConfig(StrictModel):
    """When the selection split is evaluated during a training, and what its loss decides."""
