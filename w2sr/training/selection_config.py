"""When the selection split is evaluated during a training, and what its loss decides."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from w2sr.schema import StrictModel


class SelectionConfig(StrictModel):
    """When the selection split is evaluated during a training, and what its loss decides. The test split decides nothing.

    Its loss is the mean NLL of the tokens of the selection prompts' reference traces; without those nothing is evaluated.
    """

    every: int | None = Field(None, gt=0, description="Steps between evaluations. None: only before the first step and after the last.")
    patience: int | None = Field(None, gt=0, description="Stop after so many evaluations in a row without a gain. None: never.")
    min_gain: float = Field(0.0, ge=0, description="By how many nats a token the loss must fall below the best one's to be a gain.")
    export: Literal["last", "best"] = Field(
        "last", description="Which weights become the student: those of the last step, or of the evaluation with the last gain."
    )

    @property
    def decides(self) -> bool:
        """Whether the weights of the student depend on the selection split."""
        return self.patience is not None or self.export == "best"

    @model_validator(mode="after")
    def _has_evaluations(self) -> SelectionConfig:
        if self.decides and self.every is None:
            raise ValueError("selection.patience and selection.export=best choose among evaluations: give selection.every, their distance")
        if self.min_gain and not self.decides:
            raise ValueError("selection.min_gain decides nothing without selection.patience or selection.export=best")
        return self
