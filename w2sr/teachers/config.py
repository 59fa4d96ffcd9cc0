"""Which models write traces, on which engine, and how they are asked and sampled."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cluster.board import LEAST_SHARE
from w2sr.diagnosis.config import GateConfig
from w2sr.prompting import PromptStyle
from w2sr.schema import PLACEMENT, StrictModel
from w2sr.teachers.openai_config import OpenAIEngineConfig as OpenAIEngineConfig
from w2sr.teachers.recorded_config import RecordedEngineConfig as RecordedEngineConfig
from w2sr.textual.banned import refuse_repeated

# Engines that can be held to sampling.banned_words, and why the others cannot.
BANNING = ("hf", "vllm")
NO_BAN = {
    "openai": "an endpoint chooses its tokens itself (a vLLM server takes engine.extra_body: {bad_words: [...]}, which leaks: docs/ban.md)",
    "recorded": "recorded traces are what they are",
}


class SamplingConfig(StrictModel):
    """How tokens are drawn."""

    temperature: float = Field(0.6, ge=0, description="Softmax temperature; 0 is greedy.")
    top_p: float = Field(0.95, gt=0, le=1, description="Nucleus: smallest set of tokens with at least this probability; 1 keeps all.")
    max_new_tokens: int = Field(gt=0, description="Token limit of one completion; a completion ended by it is counted as truncated.")
    banned_words: list[str] = Field(
        default_factory=list,
        description="Words and phrases that no answer may hold, in any case, spacing or division into tokens (docs/ban.md). "
        "Engines hf and vllm.",
    )

    @field_validator("banned_words")
    @classmethod
    def _different_words(cls, words: list[str]) -> list[str]:
        return refuse_repeated(words)


class HFEngineConfig(StrictModel):
    """transformers, in batches: works on a CPU or a GPU with nothing else installed."""

    kind: Literal["hf"] = "hf"
    batch_size: int = Field(
        128, gt=0, description="Requests decoded together. It changes rounding, hence belongs to the result's identity."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Precision of weights and activations; auto: float32 on a CPU, bfloat16 on a GPU."
    )


class VLLMEngineConfig(StrictModel):
    """vLLM with continuous batching, inside a replica."""

    kind: Literal["vllm"]
    tensor_parallel_size: int = Field(1, gt=0, description="GPUs of one engine, all on one node.")
    max_in_flight: int = Field(256, gt=0, description="Requests in one engine at a time.", json_schema_extra=PLACEMENT)
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of a GPU's memory that vLLM takes.", json_schema_extra=PLACEMENT
    )
    max_model_len: int | None = Field(None, gt=0, description="Longest prompt with answer, in tokens; None: what the model allows.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="Precision of weights and activations.")
    python: str | None = Field(
        None,
        description="Interpreter of another environment in which vLLM is installed (vLLM pins versions of its own). None: this one.",
        json_schema_extra=PLACEMENT,
    )
    engine_args: dict[str, Any] = Field(default_factory=dict, description="Further arguments of vLLM's engine, as it names them.")


EngineConfig = Annotated[HFEngineConfig | VLLMEngineConfig | OpenAIEngineConfig | RecordedEngineConfig, Field(discriminator="kind")]


class PoolConfig(StrictModel):
    """How many engines run side by side."""

    replicas: int = Field(2, gt=0, description="Engines side by side, at most.", json_schema_extra=PLACEMENT)
    min_replicas: int = Field(1, gt=0, description="Engines without which the work does not begin.", json_schema_extra=PLACEMENT)
    cpus_per_replica: float = Field(1, ge=LEAST_SHARE, description="Processors of one replica.", json_schema_extra=PLACEMENT)
    gpus_per_replica: float = Field(
        0, ge=0, description="GPUs of one replica; 0 runs on CPU. For vllm: its tensor_parallel_size.", json_schema_extra=PLACEMENT
    )
    start_timeout_s: float = Field(1800, gt=0, description="Longest wait for a replica to be ready.", json_schema_extra=PLACEMENT)
    task_timeout_s: float | None = Field(
        None,
        gt=0,
        description="A replica silent for so long over a request is replaced; None: wait. Endpoints: engine.timeout_s.",
        json_schema_extra=PLACEMENT,
    )

    @model_validator(mode="after")
    def _consistent(self) -> PoolConfig:
        if self.min_replicas > self.replicas:
            raise ValueError(f"min_replicas={self.min_replicas} is more than replicas={self.replicas}; give at most that")
        return self

    @field_validator("gpus_per_replica")
    @classmethod
    def _whole_or_a_share(cls, value: float) -> float:
        if (value > 1 and value != int(value)) or 0 < value < LEAST_SHARE:
            raise ValueError(f"{value:g} is neither whole nor a share of one GPU; give 0, {LEAST_SHARE:g} to 1, or a whole number")
        return value

    def refuse_other_gpus(self, engine: EngineConfig) -> None:
        """Raise ValueError where a replica has other GPUs than its engine is for."""
        if engine.kind == "vllm" and self.gpus_per_replica not in (0, engine.tensor_parallel_size):
            raise ValueError(
                f"pool.gpus_per_replica={self.gpus_per_replica:g}, but tensor_parallel_size={engine.tensor_parallel_size}; "
                "give the same number, or 0 on CPU"
            )


class TeacherConfig(StrictModel):
    """One teacher."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Short name; it appears in trace ids, folders and the report.")
    model: str | None = Field(
        None, description="Folder of a Hugging Face model, hub id, or lab model such as lab:teacher; openai: the served model's name."
    )
    engine: EngineConfig = Field(default_factory=lambda: HFEngineConfig(), description="What serves the model.")
    style: PromptStyle = Field(default_factory=lambda: PromptStyle(), description="How the question is put to the teacher.")
    sampling: SamplingConfig | None = Field(None, description="How tokens are drawn; needed by every engine but recorded.")
    samples_per_prompt: int = Field(1, gt=0, description="Traces of one prompt; with until_correct: at most so many.")
    until_correct: bool = Field(False, description="Sample a prompt again until one of its traces is correct (rescue).")
    share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Part of the training prompts. Teachers take consecutive arcs of one ring of prompts: 0.5 and 0.5 have none in common.",
    )
    pool: PoolConfig = Field(default_factory=lambda: PoolConfig(), description="Replicas.")
    licence: str | None = Field(None, description="Licence of its traces, for the cards of exported datasets.", json_schema_extra=PLACEMENT)

    @field_validator("engine", mode="before")
    @classmethod
    def _hf_by_default(cls, value: Any) -> Any:
        return {"kind": "hf", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _consistent(self) -> TeacherConfig:
        recorded = self.engine.kind == "recorded"
        if recorded == (self.model is not None):
            raise ValueError(
                "engine kind recorded takes no model: its traces exist" if recorded else f"engine kind {self.engine.kind} needs a model"
            )
        if recorded and self.until_correct:
            raise ValueError("until_correct needs an engine that can be asked again; recorded traces are what they are")
        if not recorded and self.sampling is None:
            raise ValueError("sampling is missing; give at least max_new_tokens")
        if self.sampling is not None and self.sampling.temperature == 0 and self.samples_per_prompt > 1:
            raise ValueError(
                f"samples_per_prompt={self.samples_per_prompt} with temperature 0 makes the same trace so many times; "
                "set samples_per_prompt: 1, or a temperature"
            )
        if self.sampling is not None and self.sampling.banned_words and self.engine.kind not in BANNING:
            raise ValueError(f"sampling.banned_words: {NO_BAN[self.engine.kind]}; allowed engines: {', '.join(BANNING)}")
        self.pool.refuse_other_gpus(self.engine)
        if self.engine.kind == "openai" and self.pool.task_timeout_s is not None:
            raise ValueError(
                "pool.task_timeout_s is for replicas of ours; engine.timeout_s bounds an answer of an endpoint: set that instead"
            )
        return self


class GenerateConfig(StrictModel):
    """How generation is committed and when it stops."""

    flush_interval_s: float = Field(
        20, gt=0, description="Longest time between two commits of finished traces.", json_schema_extra=PLACEMENT
    )
    stop_by: datetime | None = Field(
        None,
        description="Time (with zone) at which nothing new is begun: what is in flight is finished and committed.",
        json_schema_extra=PLACEMENT,
    )
    drain_timeout_s: float = Field(
        60, ge=0, description="How long requests in flight may take after stop_by or SIGTERM.", json_schema_extra=PLACEMENT
    )
    gate: GateConfig = Field(default_factory=lambda: GateConfig(), description="When a teacher is too bad to go on with.")

    @field_validator("stop_by")
    @classmethod
    def _with_zone(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no time zone; write for example {value.isoformat()}+00:00")
        return value
