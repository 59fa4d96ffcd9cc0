"""Which traces train a student."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from w2sr.schema import StrictModel

ArmName = Literal["all", "correct", "incorrect", "gold"]


class CurateConfig(StrictModel):
    """Which traces train a student."""

    arms: list[ArmName] = Field(
        default=["all", "correct", "incorrect", "gold"],
        min_length=1,
        description="all: every complete trace (W2SR); correct: right final answer (W2SR-P); incorrect: wrong (W2SR-N); "
        "gold: reference traces.",
    )
    match: Literal["none", "rows"] = Field(
        "rows", description="rows: every arm is cut, by seed, to the size of the smallest, so that arms differ only in what they hold."
    )
    max_rows: int | None = Field(None, gt=0, description="At most this many rows an arm; chosen by seed.")
    max_per_prompt: int | None = Field(None, gt=0, description="At most this many traces of one prompt and arm.")
    min_unique_word_ratio: float = Field(
        0.0, ge=0, le=1, description="Traces whose share of distinct words is lower are rejected as loops; 0 is off."
    )
    drop_duplicates: bool = Field(False, description="Reject traces of a prompt whose text repeats an earlier one.")
