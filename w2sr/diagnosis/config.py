"""When a teacher is too bad to go on with."""

from __future__ import annotations

from pydantic import Field

from w2sr.schema import PLACEMENT, StrictModel


class GateConfig(StrictModel):
    """Stops a run before money is spent on a teacher that writes garbage (a wrong prompt style, a model that loops)."""

    min_format_valid: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Least share of requests that end by themselves with a final answer; 0 is off.",
        json_schema_extra=PLACEMENT,
    )
    max_loops: float = Field(0.02, ge=0, le=1, description="Largest share of traces that are loops; 1 is off.", json_schema_extra=PLACEMENT)
    after: int = Field(
        200,
        gt=0,
        description="A teacher is judged for the first time after so many traces, and again at its end.",
        json_schema_extra=PLACEMENT,
    )
