"""How answers are judged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from w2sr.schema import PLACEMENT, StrictModel


class VerifyConfig(StrictModel):
    """How answers are judged."""

    grader: Literal["exact", "math", "reasoning_gym"] = Field(
        "math",
        description="exact: same text or number; math: math-verify, plain numbers compared exactly; reasoning_gym: the task's own scorer.",
    )
    timeout_s: float = Field(5.0, gt=0, description="A single answer that takes longer is unverifiable (its worker is killed).")
    workers: int = Field(2, gt=0, description="Grading processes.", json_schema_extra=PLACEMENT)
