"""How a gradient changes the weights, and whether an average of them is kept."""

from __future__ import annotations

from pydantic import Field

from w2sr.schema import StrictModel


class OptimizerConfig(StrictModel):
    """How a gradient changes the weights, and whether an average of them is kept."""

    weight_decay: float = Field(
        0.0, ge=0, description="Decoupled weight decay: each step takes learning rate * this share of a weight away."
    )
    decay_vectors: bool = Field(
        False,
        description="Whether parameters of one dimension (gains of norms, biases) decay too. They are few and cannot overfit; a gain "
        "that is pulled to 0 only dims its layer.",
    )
    beta1: float = Field(0.9, gt=0, lt=1, description="AdamW's first-moment decay.")
    beta2: float = Field(0.95, gt=0, lt=1, description="AdamW's second-moment decay.")
    epsilon: float = Field(1e-8, gt=0, description="Added to AdamW's denominator.")
