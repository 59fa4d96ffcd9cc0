"""What is recorded of a training while it runs, and what is done when it stands still."""

from __future__ import annotations

from w2sr.schema import StrictModel


class WatchConfig(StrictModel):
    """What is recorded of a training while it runs, and what is done when it stands still."""
