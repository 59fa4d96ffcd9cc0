"""What a report shows beyond the results: prices, and how many traces can be browsed. Nothing here decides a result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from w2sr.schema import PLACEMENT, StrictModel, nearest

PricedStage = Literal["generate", "verify", "train", "evaluate", "analyse"]


class EndpointPrice(StrictModel):
    """What an endpoint takes for a million tokens."""

    input: float = Field(0.0, ge=0, description="Price of a million tokens of prompts.", json_schema_extra=PLACEMENT)
    output: float = Field(
        ge=0,
        description="Price of a million generated tokens, hidden ones too.",
        json_schema_extra=PLACEMENT,
    )


class PricesConfig(StrictModel):
    """What the machines and the endpoints cost, in one currency."""

    model_config = ConfigDict(allow_inf_nan=True)  # refused below: of a number or a mapping pydantic would say both

    currency: str = Field("USD", min_length=1, max_length=8, description="Name of the currency, as shown.", json_schema_extra=PLACEMENT)
    device_hour: float | dict[PricedStage, float] | None = Field(
        None,
        description="Price of one device (a GPU, or a CPU process) for an hour: one price, or one by stage, for example "
        "{generate: 1.2, train: 2.5, evaluate: 1.2}. None: devices have no price.",
        json_schema_extra=PLACEMENT,
    )
    endpoints: dict[str, EndpointPrice] = Field(
        default_factory=dict,
        description="Prices of teachers and evaluate.models that are paid by the token (endpoints, bought traces), by name; no device is "
        "charged for them.",
        json_schema_extra=PLACEMENT,
    )

    @property
    def given(self) -> bool:
        """Whether anything has a price."""
        return self.device_hour is not None or bool(self.endpoints)

    def device_hour_of(self, stage: str) -> float | None:
        """Return the price of a device-hour of a stage; None where it has none."""
        if isinstance(self.device_hour, dict):
            return {str(name): price for name, price in self.device_hour.items()}.get(stage)
        return self.device_hour

    @model_validator(mode="after")
    def _prices_are_prices(self) -> PricesConfig:
        prices: dict[str, float | None] = dict(self.device_hour.items()) if isinstance(self.device_hour, dict) else {"": self.device_hour}
        wrong = [stage for stage, price in prices.items() if price is not None and not 0 <= price < math.inf]
        if wrong:
            where = f"device_hour.{wrong[0]}" if wrong[0] else "device_hour"
            raise ValueError(f"{where} is {prices[wrong[0]]:g}; give a number of at least 0, or leave it out")
        return self


class ReportConfig(StrictModel):
    """The report. Changing it makes the report again and refuses no stage."""

    prices: PricesConfig = Field(
        default_factory=lambda: PricesConfig(), description="Prices; none: costs are shown without money.", json_schema_extra=PLACEMENT
    )
    max_traces: int = Field(
        3000,
        ge=0,
        description="Traces that report.html carries for browsing; of more, problems are drawn at random and the share is stated. 0: none.",
        json_schema_extra=PLACEMENT,
    )
    max_characters: int = Field(
        3000,
        ge=200,
        description="Characters of a trace that report.html carries; of a longer one the beginning and the end.",
        json_schema_extra=PLACEMENT,
    )

    def refuse_unknown_names(self, names: Sequence[str]) -> None:
        """Raise ValueError when a price is given for a teacher or model that there is not."""
        unknown = sorted(set(self.prices.endpoints) - set(names))
        if unknown:
            raise ValueError(
                f"report.prices.endpoints has {unknown[0]!r}, neither a teacher nor in evaluate.models: {nearest(unknown[0], list(names))}"
                f"allowed: {', '.join(names)}"
            )
