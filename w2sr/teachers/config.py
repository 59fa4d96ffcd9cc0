"""Which models write traces, and how they are asked and sampled."""

from __future__ import annotations

from pydantic import Field

from w2sr.prompting import PromptStyle
from w2sr.schema import PLACEMENT, StrictModel


class SamplingConfig(StrictModel):
    """How tokens are drawn."""

    temperature: float = Field(0.6, ge=0, description="Softmax temperature; 0 is greedy.")
    top_p: float = Field(0.95, gt=0, le=1, description="Nucleus: smallest set of tokens with at least this probability; 1 keeps all.")
    max_new_tokens: int = Field(gt=0, description="Token limit of one completion; a completion ended by it is counted as truncated.")


class PoolConfig(StrictModel):
    """How many engines run side by side and how work is handed to them."""

    replicas: int = Field(2, gt=0, description="Engines side by side.", json_schema_extra=PLACEMENT)
    cpus_per_replica: float = Field(1, gt=0, description="Processors of one replica.", json_schema_extra=PLACEMENT)
    gpus_per_replica: float = Field(0, ge=0, description="GPUs of one replica; 0 runs on CPU.", json_schema_extra=PLACEMENT)
    unit_size: int = Field(
        256,
        gt=0,
        description="Requests in a work unit: it is leased to one replica, decoded as fixed batches and committed as one Parquet shard.",
    )
    batch_size: int = Field(
        128, gt=0, description="Requests decoded together. It changes rounding, hence belongs to the result's identity."
    )
    max_attempts: int = Field(2, gt=0, description="Replicas a work unit may kill before it is given up.", json_schema_extra=PLACEMENT)


class TeacherConfig(StrictModel):
    """One teacher."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Short name; it appears in trace ids, folders and the report.")
    model: str = Field(description="Folder of a Hugging Face model, a hub id, or a shipped lab model such as lab:teacher.")
    style: PromptStyle = Field(default_factory=lambda: PromptStyle(), description="How the question is put to the teacher.")
    sampling: SamplingConfig = Field(description="How tokens are drawn.")
    samples_per_prompt: int = Field(1, gt=0, description="Traces of one prompt.")
    pool: PoolConfig = Field(default_factory=lambda: PoolConfig(), description="Replicas and work units.")
