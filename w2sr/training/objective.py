"""What a training minimises: the loss of a micro-batch, and the number that the losses of a step are divided by.

Loss of a step = sum over all micro-batches and ranks / one global normaliser, never a mean of means. DeepSpeed averages gradients over
ranks, so each micro-batch's sum is multiplied by world_size / normaliser before its backward pass (loop.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from w2sr.errors import UserError
from w2sr.packing.pack import IGNORED, MicroBatch
from w2sr.training.data import RowStore
from w2sr.training.dist import Group
from w2sr.training.engine import Engine
from w2sr.training.feed import Step
from w2sr.training.gains import Gains, Traces
from w2sr.training.loss_config import LossConfig
from w2sr.training.spec import TrainSpec
from w2sr.training.writing import Writer

if TYPE_CHECKING:
    import torch

    from w2sr.training.engine_frozen import Frozen
    from w2sr.training.fused import Supervised, TokenLoss
    from w2sr.training.head import Head
    from w2sr.training.noise import Noise

GAINS = "gains.pt"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loss:
    """`total`: what is differentiated, a scalar summed over the micro-batch; `nll`: its supervised tokens' NLL, in nats, summed."""

    total: torch.Tensor
    nll: float


class Objective:
    """The loss of `spec`. `prepare(model)` comes before DeepSpeed takes the model, `begin_step` before the first loss of each step."""

    def __init__(self, spec: TrainSpec, group: Group) -> None:
        self._spec = spec
        self._config = spec.train.loss
        self._group = group
        self._head: Head | None = None
        self._fuses: bool | None = None  # whether logits are made in chunks; decided at the first batch
        self._noise: Noise | None = None
        self._base: Frozen | None = None
        self._gains = Gains(self._config.progress) if self._config.progress else None
        self._step = self._micro_batch = 0
        self._confidence = 0.0
        self.sum = 0.0  # what the micro-batches of this step gave to the loss, on this rank; 0 where that is the NLL

    def prepare(self, model: Any) -> None:
        """Change the freshly loaded model (under ZeRO-3 its parameters are partitioned) as this loss needs it."""
        from w2sr.training.head import attach
        from w2sr.training.liger import liger_loss
        from w2sr.training.noise import Noise

        if self._config.kernel != "full":
            self._head = attach(model, liger_loss() if self._config.kernel == "liger" else None)
        if self._config.neftune_alpha:
            self._noise = Noise(model, self._config.neftune_alpha, self._spec.seed, self._group.rank)
        if self._config.kl_to_base:
            from w2sr.training.engine_frozen import Frozen

            self._base = Frozen(self._spec.train, self._spec.model, self._group)

    def begin_step(self, step: int, num_steps: int) -> None:
        """Say that optimizer step `step` (from 0) of `num_steps` begins, or begins again; every rank calls it."""
        if self._gains is not None:
            self._gains.settle(self._group, keep=step != self._step)
        self._step, self._micro_batch, self.sum = step, 0, 0.0
        self._confidence = confidence_at(self._config, step, num_steps)

    def normaliser(self, rows: RowStore, step: Step) -> float:
        """Return what the losses of `step` are divided by, the weights of its tokens or traces summed: the same on every rank."""
        weights = rows.weights[step.rows].astype(np.float64)
        if self._config.normalise == "traces":
            return float(weights.sum())
        return float((weights * (rows.lengths - rows.prefixes)[step.rows]).sum())

    def loss(self, engine: Engine, batch: MicroBatch) -> Loss:
        """Return the loss of one micro-batch; every rank calls it together."""
        import torch

        from w2sr.training.fused import TokenLoss

        config = self._config
        if config.normalise == "traces":
            batch = Traces.of(batch).counting_alike(batch)
        asked = self._asked(batch, TokenLoss(config.label_smoothing, config.gce_q, self._confidence, config.kl_to_base))
        if self._gains is not None:
            asked.reweigh = self._reweigh(self._gains, Traces.of(batch), asked.weights)
        total = self._total(engine, batch, asked, training=True)
        self._micro_batch += 1
        if not config.is_plain:
            self.sum += float(total.detach())
        assert asked.nll is not None
        return Loss(total, float(asked.nll.sum(dtype=torch.float64)))

    def shown(self, minimised: float) -> dict[str, float]:
        """Return what is logged beside the NLL: the loss of a step, where it is something else."""
        return {} if self._config.is_plain else {"objective": minimised}

    def selection_nll(self, engine: Engine, batch: MicroBatch) -> float:
        """Return the NLL of the supervised tokens, in nats, summed: what the selection split is judged by, whatever is minimised."""
        import torch

        from w2sr.training.fused import TokenLoss

        asked = self._asked(batch, TokenLoss())
        self._total(engine, batch, asked, training=False)
        assert asked.nll is not None
        return float(asked.nll.sum(dtype=torch.float64))

    def write(self, folder: Path, rank: int, writer: Writer) -> None:
        """Give what a checkpoint in `folder` must keep of this loss to the writer; every rank calls it."""
        if self._gains is not None:
            self._gains.settle(self._group)
            if rank == 0:
                writer.write(self._gains.state(), folder / GAINS)

    def read(self, folder: Path) -> None:
        """Take up what `write` wrote; for any number of ranks."""
        import torch

        if self._gains is not None:
            self._gains.load(torch.load(folder / GAINS, weights_only=True))

    def close(self) -> None:
        """Release what `prepare` set up beside the student."""
        if self._base is not None:
            self._base.close()

    def _asked(self, batch: MicroBatch, loss: TokenLoss) -> Supervised:
        import torch

        from w2sr.training.fused import Supervised

        labels = np.full_like(batch.labels, IGNORED)
        labels[:, :-1] = batch.labels[:, 1:]  # a token is predicted from the one before it
        weights = np.zeros_like(batch.weights)
        weights[:, :-1] = batch.weights[:, 1:]
        positions = np.flatnonzero(labels != IGNORED)

        def placed(array: npt.NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array).to(self._group.device)

        return Supervised(placed(positions), placed(labels.ravel()[positions]), placed(weights.ravel()[positions]), loss)

    def _total(self, engine: Engine, batch: MicroBatch, asked: Supervised, training: bool) -> torch.Tensor:
        import torch

        from w2sr.training.fused import Projection, fused_loss

        device = self._group.device
        input_ids = torch.as_tensor(batch.input_ids).to(device)
        position_ids = None if batch.position_ids is None else torch.as_tensor(batch.position_ids).to(device)
        fuses = self._decide(engine, input_ids) if self._fuses is None else self._fuses
        if self._group.sequence_size > 1:
            asked.keep(*self._group.own_range(input_ids.shape[1]))
        with ExitStack() as stack:
            if training and self._base is not None:
                asked.base = stack.enter_context(self._base.states(input_ids, position_ids, asked.positions, not fuses))
            if training and self._noise is not None:
                self._noise.draw(self._step, self._micro_batch, batch)
            total: torch.Tensor
            if fuses:
                total = engine.run(input_ids, position_ids, supervised=asked)
                return total
            logits = engine.forward(input_ids, position_ids).flatten(0, 1)
            total = fused_loss(logits.index_select(0, asked.positions), Projection(None), asked)
            return total

    def _decide(self, engine: Engine, input_ids: torch.Tensor) -> bool:
        """Decide, together with all ranks, whether logits can be made in chunks. Raises UserError when they were asked for and cannot."""
        from w2sr.training.head import reproduces

        wrong = self._head is None
        if self._head is not None:
            was_training = engine.module.training
            with engine.evaluating():
                wrong = not reproduces(self._head, lambda **asked: engine.run(position_ids=None, **asked), input_ids[:, :16])
            engine.module.train(was_training)
        (num_wrong,) = self._group.sum([float(wrong)])
        self._fuses = num_wrong == 0
        if self._fuses or self._config.kernel == "full":
            return self._fuses
        name = type(engine.module).__name__
        if self._config.kernel != "auto":
            raise UserError(
                f"train.loss.kernel={self._config.kernel}, but the logits of this model ({name}) are not its head applied to its last "
                "hidden states, as far as w2sr knows; set train.loss.kernel: auto, which takes the model's own logits"
            )
        if self._group.rank == 0:
            _log.warning("%s: the loss takes the model's own logits, all at once; w2sr cannot make those of a %s in chunks", name, name)
        return False

    def _reweigh(self, gains: Gains, traces: Traces, weights: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        import torch

        def reweigh(nll: torch.Tensor) -> torch.Tensor:
            found = torch.from_numpy(gains.weights(traces, nll.double().cpu().numpy()))
            weighed: torch.Tensor = weights * found.to(weights.device)
            return weighed

        return reweigh


def confidence_at(config: LossConfig, step: int, num_steps: int) -> float:
    """Return the weight of the auxiliary confidence loss in `step` (from 0): it rises linearly to its full value over the warm-up."""
    num_warmup = config.confidence_warmup * num_steps
    return config.confidence * (min(1.0, step / num_warmup) if num_warmup else 1.0)
