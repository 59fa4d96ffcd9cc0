"""What is minimised: the token NLL, and what guards it against a teacher's mistakes."""

from __future__ import annotations

from w2sr.schema import StrictModel


class LossConfig(StrictModel):
    """What is minimised: the token NLL, and what guards it against a teacher's mistakes."""
