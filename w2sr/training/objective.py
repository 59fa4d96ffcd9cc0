"""What a training minimises: the loss of a micro-batch, and the number that the losses of a step are divided by.

Loss of a step = sum over all micro-batches and ranks / one global normaliser, never a mean of means. DeepSpeed averages gradients over
ranks, so each micro-batch's sum is multiplied by world_size / normaliser before its backward pass (loop.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from w2sr.packing.pack import MicroBatch
from w2sr.training.data import RowStore
from w2sr.training.dist import Group
from w2sr.training.engine import Engine
from w2sr.training.feed import Step
from w2sr.training.loss import sum_nll
from w2sr.training.spec import TrainSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Loss:
    """`total`: what is differentiated, a scalar summed over the micro-batch; `nll`: its supervised tokens' NLL, in nats, summed."""

    total: torch.Tensor
    nll: float


class Objective:
    """The loss of `spec`. `prepare(model)` comes before DeepSpeed takes the model, `begin_step` before the first loss of each step."""

    def __init__(self, spec: TrainSpec, group: Group) -> None:
        self._spec = spec
        self._group = group

    def prepare(self, model: Any) -> None:
        """Change the freshly loaded model (under ZeRO-3 its parameters are partitioned) as this loss needs it."""

    def begin_step(self, step: int, num_steps: int) -> None:
        """Say that optimizer step `step` (from 0) of `num_steps` begins."""

    def normaliser(self, rows: RowStore, step: Step) -> float:  # noqa: ARG002
        """Return what the losses of `step` are divided by: the same on every rank."""
        return float(step.num_supervised)

    def loss(self, engine: Engine, batch: MicroBatch) -> Loss:
        """Return the loss of one micro-batch; every rank calls it together."""
        total = self._nll(engine, batch)
        return Loss(total, float(total.detach()))

    def selection_nll(self, engine: Engine, batch: MicroBatch) -> float:
        """Return the NLL of the supervised tokens, in nats, summed: what the selection split is judged by, whatever is minimised."""
        return float(self._nll(engine, batch))

    def _nll(self, engine: Engine, batch: MicroBatch) -> torch.Tensor:
        import torch

        device = self._group.device
        positions = None if batch.position_ids is None else torch.as_tensor(batch.position_ids).to(device)
        logits = engine.forward(torch.as_tensor(batch.input_ids).to(device), positions)
        return sum_nll(logits, torch.as_tensor(batch.labels).to(device))
