"""Where recorded traces are and what their columns mean."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from w2sr.schema import StrictModel


class RecordedFields(StrictModel):
    """Which column of the recorded traces holds what."""

    question: str | None = Field("question", description="Column with the question; used with match: question.")
    prompt_id: str | None = Field(None, description="Column with the prompt's id; used with match: prompt_id.")
    text: str = Field("text", description="Column with the trace.")
    answer: str | None = Field(None, description="Column with the final answer, where the trace does not hold it; see answer_format.")
    finish_reason: str | None = Field(None, description="Column with stop, length or error. None: every trace ended by itself (stop).")
    num_tokens: str | None = Field(None, description="Column with the number of generated tokens. None: unknown, stored as 0.")


class RecordedEngineConfig(StrictModel):
    """Traces that exist already: written by people, or by an earlier run."""

    kind: Literal["recorded"]
    path: str = Field(
        description="A .json, .jsonl or .parquet file, a folder of part-*.parquet (of an earlier run), a dataset's folder, or a hub id."
    )
    name: str | None = Field(None, description="Configuration of a hub dataset.")
    split: str = Field("train", description="Split of a hub dataset.")
    revision: str | None = Field(None, description="Git revision of a hub dataset, to pin it.")
    fields: RecordedFields = Field(default_factory=lambda: RecordedFields(), description="Which column holds what.")
    match: Literal["question", "prompt_id"] = Field("question", description="How a row finds its prompt; white space does not count.")
    question_format: str = Field(
        "{question}", description="What the column has around the question, for example 'Question: {question}\\nAnswer:'."
    )
    answer_format: str = Field("\n#### {answer}", description="How fields.answer is put behind the text.")
    origin: str | None = Field(None, description="Who or what wrote them, for the dataset's card; stored as the model of each trace.")

    @field_validator("question_format", "answer_format")
    @classmethod
    def _one_place(cls, value: str, info: ValidationInfo) -> str:
        place = f"{{{str(info.field_name).removesuffix('_format')}}}"
        if value.count(place) != 1:
            raise ValueError(f"{value!r} must hold {place} once")
        return value

    @model_validator(mode="after")
    def _column_to_match(self) -> RecordedEngineConfig:
        if getattr(self.fields, self.match) is None:
            raise ValueError(f"match: {self.match} needs fields.{self.match}, the column that holds it")
        return self
