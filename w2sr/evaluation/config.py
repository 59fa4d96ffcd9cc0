"""How models are compared."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from w2sr.schema import PLACEMENT, StrictModel
from w2sr.teachers.config import HFEngineConfig, PoolConfig, SamplingConfig, VLLMEngineConfig


class EvaluateConfig(StrictModel):
    """Every model answers the same prompts with the same sampling."""

    split: Literal["test", "selection"] = Field(
        "test", description="test for results; selection for choosing settings.", json_schema_extra=PLACEMENT
    )
    samples_per_prompt: int = Field(4, gt=0, description="Samples of one prompt; avg@k is their mean.")
    pass_k: list[int] = Field(
        default_factory=lambda: [1, 4],
        min_length=1,
        description="k of pass@k (unbiased), each at most samples_per_prompt; the report's table shows the largest.",
        json_schema_extra=PLACEMENT,
    )
    sampling: SamplingConfig = Field(description="How tokens are drawn, for every model alike.")
    engine: Annotated[HFEngineConfig | VLLMEngineConfig, Field(discriminator="kind")] = Field(
        default_factory=lambda: HFEngineConfig(), description="What serves the models, for all alike; a teacher at an endpoint stays there."
    )
    pool: PoolConfig = Field(default_factory=lambda: PoolConfig(), description="Replicas.")
    ceiling: str = Field("gold", description="Arm that stands for the ceiling in the gap ratios.", json_schema_extra=PLACEMENT)
    bootstrap_samples: int = Field(2000, gt=99, description="Resamples of the two-level bootstrap.", json_schema_extra=PLACEMENT)
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Level of every interval.", json_schema_extra=PLACEMENT)

    @field_validator("engine", mode="before")
    @classmethod
    def _hf_by_default(cls, value: Any) -> Any:
        return {"kind": "hf", **value} if isinstance(value, dict) else value
