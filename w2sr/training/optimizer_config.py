"""How a gradient changes the weights, and whether an average of them is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from w2sr.schema import PLACEMENT, StrictModel

if TYPE_CHECKING:
    from w2sr.training.config import TrainConfig


class AverageConfig(StrictModel):
    """An average of the weights over the steps, in fp32 and sharded as they are. It is what is evaluated and exported."""

    decay: float = Field(
        0.999,
        gt=0,
        le=1,
        description="Of an exponential average: how much of it stays when a step is added, so that about 1 / (1 - decay) steps count. The "
        "weights before the first step never do. 1: the plain mean of all steps since `start`.",
    )
    start: float = Field(0.0, ge=0, lt=1, description="Share of the steps that is over when averaging begins.")


class OptimizerConfig(StrictModel):
    """How a gradient changes the weights, and whether an average of them is kept. docs/optimizers.md says which for what."""

    type: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: matrices inside the layers by Muon; embeddings, the head, norms and biases by AdamW."
    )
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
    muon_learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate of the matrices under muon, the size of a step's singular values; learning_rate is AdamW's. Both "
        "follow the same schedule.",
    )
    muon_momentum: float = Field(0.95, gt=0, lt=1, description="Momentum of muon.")
    average: AverageConfig | None = Field(None, description=AverageConfig.__doc__)
    update_ratio_every: int = Field(
        50,
        ge=0,
        description="Steps between measurements of how far a step moves each layer (norm of the update over norm of the weights); the "
        "first ten steps are always measured. 0: never.",
        json_schema_extra=PLACEMENT,
    )
    sane_update_ratio: tuple[float, float] = Field(
        (1e-6, 1e-2),
        description="Range of that ratio, at the peak learning rate; a largest one outside it is warned of.",
        json_schema_extra=PLACEMENT,
    )

    @model_validator(mode="after")
    def _muon_has_a_rate(self) -> OptimizerConfig:
        if self.type == "muon" and self.muon_learning_rate is None:
            raise ValueError("type=muon needs muon_learning_rate: its step is an orthogonal matrix times that; try 10 times learning_rate")
        if self.type != "muon" and self.muon_learning_rate is not None:
            raise ValueError(f"muon_learning_rate={self.muon_learning_rate} is for type=muon; given: type={self.type}")
        return self

    @model_validator(mode="after")
    def _range_is_one(self) -> OptimizerConfig:
        low, high = self.sane_update_ratio
        if not 0 <= low < high:
            raise ValueError(f"sane_update_ratio={list(self.sane_update_ratio)}: give the lower bound (at least 0), then a higher one")
        return self

    def refuse_what_does_not_combine(self, train: TrainConfig) -> None:
        """Raise ValueError for options that the rest of the training's configuration does not carry."""
        if self.average is not None and train.memory.uses_nvme:
            raise ValueError("optimizer.average needs the weights in memory at each step; with offload to nvme they are not: use cpu")
        if self.type != "muon":
            return
        if train.max_grad_norm is not None:
            raise ValueError(
                f"optimizer.type=muon needs max_grad_norm: null (given: {train.max_grad_norm}): DeepSpeed takes the norm after Muon has "
                "made orthogonal matrices of the gradients, so clipping would divide its steps by a number that says nothing of gradients"
            )
        for name, used in (
            ("precision=fp16", train.precision == "fp16"),
            ("memory.offload_optimizer", train.memory.offload_optimizer != "device"),
            ("memory.quantized_gradients", train.memory.quantized_gradients),
        ):
            if used:
                raise ValueError(f"optimizer.type=muon does not combine with {name}: not shown to be right there; use type: adamw")
        if train.zero_stage and train.min_ranks not in (None, train.num_ranks):
            raise ValueError(
                f"optimizer.type=muon with zero_stage={train.zero_stage} cannot go on with fewer ranks (DeepSpeed's universal checkpoint "
                "knows AdamW's states only): leave min_ranks out, or use zero_stage=0 or type: adamw"
            )
