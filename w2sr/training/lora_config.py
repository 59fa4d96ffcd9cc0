"""Low-rank adapters in place of a full fine-tune."""

from __future__ import annotations

from pydantic import Field

from w2sr.schema import StrictModel


class LoraConfig(StrictModel):
    """Low-rank adapters (Hu et al. 2021, through peft) in place of a full fine-tune; they are merged into the base at the end."""

    rank: int = Field(16, gt=0, description="Rank of each adapter.")
    alpha: float = Field(32.0, gt=0, description="An adapter's output is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before an adapter.")
    targets: list[str] | None = Field(
        None, min_length=1, description="Last parts of the names of the linear layers that get one, such as q_proj. None: all but the head."
    )
