"""What is minimised: the token NLL, and what guards it against a teacher's mistakes. Formulas and sources: docs/losses.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from w2sr.records import Verdict
from w2sr.schema import StrictModel, nearest

# Bounded so that no product of them is 0 or infinite in fp32.
Weight = Annotated[float, Field(ge=1e-6, le=1e6)]


class ProgressConfig(StrictModel):
    """Gain-based loss weighting: traces that the student has stopped learning count more (arXiv 2601.04992, as in its published code).

    From its second visit on a trace counts alpha * (1 - sigmoid(beta * gain)), held in [min_weight, max_weight]; its gain is the mean
    token NLL of its last visit less today's.
    """

    alpha: float = Field(1.0, gt=0, description="Twice the weight of a trace whose loss has not moved. Published runs: 1 or 2.")
    beta: float = Field(10.0, gt=0, description="How sharply the weight follows the gain, per nat. Published runs: 5 to 30.")
    min_weight: float = Field(0.5, ge=0, description="No trace counts less.")
    max_weight: float = Field(5.0, gt=0, description="No trace counts more.")

    @model_validator(mode="after")
    def _is_a_range(self) -> ProgressConfig:
        if self.min_weight > self.max_weight:
            raise ValueError(f"min_weight={self.min_weight} is more than max_weight={self.max_weight}; give a range")
        return self


class LossConfig(StrictModel):
    """What is minimised: the token NLL, and what guards it against a teacher's mistakes."""

    kernel: Literal["auto", "chunked", "full", "liger"] = Field(
        "auto",
        description="How the loss comes from hidden states. chunked: logits of a few tokens at a time, never all. full: the model's own "
        "logits, all at once. auto: chunked for models whose logits it reproduces exactly (tested at the start), else full. liger: the "
        "kernel of liger-kernel (GPU and plain NLL only).",
    )
    normalise: Literal["tokens", "traces"] = Field(
        "tokens", description="What counts the same: every supervised token of a step, or every trace, however long."
    )
    verdict_weights: dict[Verdict, Weight] = Field(
        default_factory=dict,
        description="What a trace of this verdict counts, such as {incorrect: 0.3}. A verdict that is not named, and no verdict: 1. To "
        "leave traces out choose an arm without them (curate.arms).",
    )
    teacher_weights: dict[str, Weight] = Field(
        default_factory=dict, description="What a trace of this teacher counts (or of gold, human). A name that is not here: 1."
    )
    agreement_power: float = Field(
        0.0,
        ge=0,
        le=4,
        description="A trace counts (share of its prompt's traces in the arm that give its final answer) ** this; 0: agreement does not "
        "matter. A trace without a final answer has nobody to agree with it but itself.",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target that is spread evenly over the vocabulary.")
    gce_q: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Generalised cross-entropy (1 - p**q) / q: towards 1 it turns from tokens that the student finds implausible. 0: NLL.",
    )
    confidence: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the target that is the student's own likeliest token, once warmed up: the auxiliary confidence loss.",
    )
    confidence_warmup: float = Field(0.2, ge=0, le=1, description="Share of the steps in which that share rises from 0.")
    kl_to_base: float = Field(
        0.0,
        ge=0,
        description="Times KL(base || student) at every supervised token, added to the loss. Keeps the weights of the base in memory "
        "beside the student's (sharded alike under ZeRO-3) and runs it on every batch.",
    )
    neftune_alpha: float = Field(0.0, ge=0, description="Noise on the token embeddings in training (NEFTune); usual: 5 to 15. 0: none.")
    progress: ProgressConfig | None = Field(None, description=f"{ProgressConfig.__doc__} None: no such weights.")

    @model_validator(mode="after")
    def _one_token_loss(self) -> LossConfig:
        given = {name: getattr(self, name) for name in ("label_smoothing", "gce_q", "confidence") if getattr(self, name)}
        if len(given) > 1:
            shown = ", ".join(f"{name}={value}" for name, value in given.items())
            raise ValueError(f"{shown}: each puts another loss in the place of the token NLL; give at most one of them")
        return self

    @model_validator(mode="after")
    def _liger_knows_one_loss(self) -> LossConfig:
        if self.kernel != "liger":
            return self
        beyond = [name for name in ("label_smoothing", "gce_q", "confidence", "kl_to_base", "agreement_power") if getattr(self, name)]
        beyond += [name for name in ("verdict_weights", "teacher_weights", "progress") if getattr(self, name)]
        beyond += ["normalise"] if self.normalise != "tokens" else []
        if beyond:
            raise ValueError(f"kernel=liger computes the plain NLL, without {beyond[0]}; give kernel: chunked, or leave it out")
        return self

    def refuse_unknown_teachers(self, teachers: Sequence[str]) -> None:
        """Raise ValueError when a weight names a teacher that there is not."""
        allowed = [*teachers, "gold", "human"]
        for name in self.teacher_weights:
            if name not in allowed:
                raise ValueError(
                    f"train.loss.teacher_weights names {name!r}, which is no teacher: {nearest(name, allowed)}allowed: {', '.join(allowed)}"
                )

    @property
    def trace_weights(self) -> dict[str, object]:
        """What decides the weights of traces, as plain data; empty when all count the same."""
        found = {"verdict": self.verdict_weights, "teacher": self.teacher_weights, "agreement": self.agreement_power}
        return {name: value for name, value in found.items() if value}

    @property
    def is_plain(self) -> bool:
        """Whether the loss is the NLL over the number of supervised tokens (on embeddings with noise, perhaps)."""
        others = self.label_smoothing or self.gce_q or self.confidence or self.kl_to_base or self.progress
        return not (others or self.trace_weights or self.normalise == "traces")
