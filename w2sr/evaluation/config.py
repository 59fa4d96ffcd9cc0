"""How models are compared."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from w2sr.benchmarks.config import BenchmarkConfig
from w2sr.benchmarks.shipped import spec_values
from w2sr.evaluation.bans_config import BanConfig
from w2sr.prompting import PromptStyle
from w2sr.schema import PLACEMENT, StrictModel, nearest
from w2sr.teachers.config import HFEngineConfig, OpenAIEngineConfig, PoolConfig, SamplingConfig, VLLMEngineConfig


class ModelConfig(StrictModel):
    """A model that is compared with the students without being one: any Hugging Face model, an exported checkpoint, an endpoint."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Its label: folder, trace ids, report.")
    model: str = Field(description="Folder of a Hugging Face model, hub id or lab model; openai: the served model's name.")
    kind: Literal["other", "ceiling"] = Field(
        "other", description="ceiling: the measured upper end, for example the student after reinforcement learning."
    )
    style: PromptStyle | None = Field(None, description="How the question is put to it. None: student.style.")
    engine: Annotated[HFEngineConfig | VLLMEngineConfig | OpenAIEngineConfig, Field(discriminator="kind")] | None = Field(
        None, description="What serves it. None: evaluate.engine."
    )
    sampling: SamplingConfig | None = Field(None, description="How its tokens are drawn. None: as for everyone on that set.")

    @field_validator("engine", mode="before")
    @classmethod
    def _hf_by_default(cls, value: Any) -> Any:
        return {"kind": "hf", **value} if isinstance(value, dict) else value


class CitedConfig(StrictModel):
    """A figure that somebody published and nobody measured here. It is shown, marked as cited, and enters no ratio."""

    name: str = Field(min_length=1, description="Of which model, for example 'DAPO-32B'.")
    set: str = Field(description="On which set of this run: a benchmark's name, or test.")
    value: float = Field(ge=0, le=100, description="Accuracy in percent.")
    source: str = Field(min_length=1, description="Where it is published.")


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
    benchmarks: list[BenchmarkConfig] = Field(
        default_factory=list,
        description="Sets of problems beside the own split: shipped names (`w2sr benchmarks list`), overrides over them, own specs.",
        json_schema_extra=PLACEMENT,
    )
    models: list[ModelConfig] = Field(
        default_factory=list, description="Further models to compare, for example a measured RL ceiling.", json_schema_extra=PLACEMENT
    )
    cited: list[CitedConfig] = Field(
        default_factory=list, description="Published figures to show beside the measured ones.", json_schema_extra=PLACEMENT
    )
    bans: list[BanConfig] = Field(
        default_factory=list, description="Lists of words that models answer without (docs/ban.md).", json_schema_extra=PLACEMENT
    )
    ceiling: str = Field(
        "gold",
        description="Who stands for the ceiling in the gap ratios: an arm, or a model of kind ceiling.",
        json_schema_extra=PLACEMENT,
    )
    budgets: list[Annotated[int, Field(gt=0)]] = Field(
        default_factory=list,
        description="Token budgets at which accuracy is reported from the same samples. Empty: powers of two below the limit.",
        json_schema_extra=PLACEMENT,
    )
    bootstrap_samples: int = Field(2000, gt=99, description="Resamples of the bootstrap over problems.", json_schema_extra=PLACEMENT)
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Level of every interval.", json_schema_extra=PLACEMENT)

    @field_validator("engine", mode="before")
    @classmethod
    def _hf_by_default(cls, value: Any) -> Any:
        return {"kind": "hf", **value} if isinstance(value, dict) else value

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _over_shipped(cls, value: Any) -> Any:
        return [spec_values(entry) for entry in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> EvaluateConfig:
        named = {"benchmarks": [each.name for each in self.benchmarks], "models": [each.name for each in self.models]}
        for key, names in named.items():
            twice = [name for number, name in enumerate(names) if name in names[:number]]
            if twice:
                raise ValueError(f"{key}: name {twice[0]!r} is used more than once; every entry needs a name of its own")
        for engine in (self.engine, *(model.engine for model in self.models if model.engine is not None)):
            self.pool.refuse_other_gpus(engine)
        for benchmark in self.benchmarks:
            benchmark.refuse_large_k(benchmark.samples_per_prompt or self.samples_per_prompt)
        sets = ["test", "selection", *named["benchmarks"]]
        for cited in self.cited:
            if cited.set not in sets:
                raise ValueError(f"cited: {cited.name!r} is on {cited.set!r}: {nearest(cited.set, sets)}allowed: {', '.join(sets)}")
        return self

    def refuse_foreign_names(self, arms: list[str], labels: list[str]) -> None:
        """Raise ValueError when a model bears the name of an arm or of somebody else's label, or the ceiling is nobody's name."""
        taken = {*arms, *labels, "base", "base-cot", "few-shot"}
        for model in self.models:
            if model.name in taken or model.name.startswith("teacher-"):
                raise ValueError(f"evaluate.models: {model.name!r} is the name of an arm, a student or a baseline; choose another")
        allowed = [*arms, *(model.name for model in self.models if model.kind == "ceiling")]
        if self.ceiling != "gold" and self.ceiling not in allowed:
            raise ValueError(
                f"evaluate.ceiling is {self.ceiling!r}: {nearest(self.ceiling, allowed)}allowed: {', '.join(allowed)} "
                "(arms, and models of kind ceiling)"
            )
