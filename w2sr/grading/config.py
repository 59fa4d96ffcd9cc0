"""How answers are judged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from w2sr.schema import PLACEMENT, StrictModel
from w2sr.teachers.openai_config import OpenAIEngineConfig


class JudgeConfig(StrictModel):
    """A model that judges answers to questions without a reference."""

    model: str = Field(description="The served model's name.")
    engine: OpenAIEngineConfig = Field(description="The endpoint that serves it.")
    max_new_tokens: int = Field(1024, gt=0, description="Token limit of one judgement.")


class VerifyConfig(StrictModel):
    """How answers are judged."""

    grader: Literal["exact", "math", "choice", "reasoning_gym"] = Field(
        "math",
        description="exact: same text or number; math: equal expressions, proven where that can be done, else by math-verify; choice: the "
        "letter of an option, or its text; reasoning_gym: the task's own scorer.",
    )
    percent: bool = Field(False, description="math: take 50 for 0.5 and 0.5 for 50 (50% is taken for both in any case).")
    tolerance: float = Field(0.0, ge=0, lt=1, description="math: relative difference at which two numbers still count as the same.")
    timeout_s: float = Field(5.0, gt=0, description="A single answer that takes longer is unverifiable (its worker is killed).")
    workers: int = Field(
        2, gt=0, description="Grading processes; with where: ray, at most so many on the cluster.", json_schema_extra=PLACEMENT
    )
    where: Literal["auto", "local", "ray"] = Field(
        "auto",
        description="Where stored traces are judged: local processes, or processors of the Ray cluster. auto: the cluster if it is a "
        "running one (cluster.address) and the traces are many.",
        json_schema_extra=PLACEMENT,
    )
    without_reference: Literal["unverifiable", "majority", "judge"] = Field(
        "unverifiable",
        description="Questions without a reference answer: no verdict; what most samples agree on is right; or a judge decides.",
    )
    majority_min_answers: int = Field(3, ge=2, description="majority: a question with fewer final answers gets no verdict.")
    judge: JudgeConfig | None = Field(None, description="The judge for without_reference: judge.")
    audit: int = Field(
        200, ge=0, description="Verdicts of each teacher that are checked a second time by other means (docs/verify.md); 0: none."
    )

    @model_validator(mode="after")
    def _consistent(self) -> VerifyConfig:
        if self.without_reference == "judge" and self.judge is None:
            raise ValueError("without_reference=judge, but there is no judge; give judge: {model, engine}, or choose majority")
        if self.without_reference != "judge" and self.judge is not None:
            raise ValueError(f"a judge is given, but without_reference={self.without_reference}; set it to judge, or remove the judge")
        if self.grader != "math" and (self.percent or self.tolerance):
            raise ValueError(f"percent and tolerance belong to grader math, not {self.grader}; remove them")
        return self
