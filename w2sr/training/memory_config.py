"""Where parameters, optimizer states and activations live, and who shares them."""

from __future__ import annotations

from w2sr.schema import StrictModel


class MemoryConfig(StrictModel):
    """Where parameters, optimizer states and activations live, and who shares them."""
