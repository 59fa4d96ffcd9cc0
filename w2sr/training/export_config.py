"""As what the finished student is written."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from w2sr.schema import PLACEMENT, StrictModel


class ExportConfig(StrictModel):
    """As what the finished student is written: Hugging Face safetensors."""

    precision: Literal["fp32", "bf16", "fp16"] | None = Field(
        None,
        description="Of the weights in the files. fp32 after a training in 16 bits writes the master weights. None: train.precision.",
    )
    shard_size_gb: float = Field(
        5.0, gt=0, description="Largest size of one file, in 1e9 bytes; one process holds as much at a time.", json_schema_extra=PLACEMENT
    )
