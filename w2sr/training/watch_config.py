"""What is recorded of a training while it runs, and what is done when it stands still."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from w2sr.schema import PLACEMENT, StrictModel


class ProfileConfig(StrictModel):
    """A trace of some steps, of every rank, that chrome://tracing and https://ui.perfetto.dev open."""

    steps: tuple[int, int] = Field(
        description="First and last optimizer step of the trace, counted from 1. Leave the first two out: caches are cold. Three are "
        "plenty: a step of a large model makes tens of MB."
    )

    @field_validator("steps")
    @classmethod
    def _in_order(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1]:
            raise ValueError(f"{list(value)} is not a first and a last step, counted from 1; write for example [10, 12]")
        return value


class WatchConfig(StrictModel):
    """What is recorded of a training while it runs, and what is done when it stands still."""

    peak_flops: float | None = Field(
        None,
        gt=0,
        description="Arithmetic operations a second that one device can do at best in train.precision, for the MFU. None: the "
        "maker's figure for a known GPU; on CPU what a multiplication of large matrices reaches.",
        json_schema_extra=PLACEMENT,
    )
    step_timeout_s: float | None = Field(
        None,
        gt=0,
        description="When a step takes longer, every rank writes its stacks to the student's folder, and one line says which rank the "
        "others wait for; the training goes on waiting. None: ten times the median of the last steps, between one and fifteen minutes.",
        json_schema_extra=PLACEMENT,
    )
    profile: ProfileConfig | None = Field(
        None, description="Record a profile of some steps to profile/rank-N.json.gz. None: no.", json_schema_extra=PLACEMENT
    )
    trackers: list[Literal["wandb", "mlflow"]] = Field(
        default_factory=list,
        description="Send the numbers of metrics.jsonl there too, by its own client. Keys and addresses come from its environment.",
        json_schema_extra=PLACEMENT,
    )
    project: str = Field(
        "w2sr",
        min_length=1,
        description="The W&B project or MLflow experiment; a run there is named after the student.",
        json_schema_extra=PLACEMENT,
    )
