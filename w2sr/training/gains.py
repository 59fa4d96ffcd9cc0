"""Gain-based loss weighting (arXiv 2601.04992): what each trace counts follows from how its loss moved since the student last saw it.

The state is the mean token NLL of every trace at its last visit, the same on every rank, so it belongs to no number of ranks. A trace is
known by a hash of its tokens: equal traces share their history.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from w2sr.packing.pack import IGNORED, MicroBatch
from w2sr.training.dist import Group
from w2sr.training.loss_config import ProgressConfig

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Traces:
    """The rows of a micro-batch: a 63-bit `key` each, and for each supervised token (in order of position) the number of its row."""

    keys: tuple[int, ...]
    of_token: npt.NDArray[np.int64]

    @property
    def num_tokens(self) -> npt.NDArray[np.int64]:
        """Supervised tokens of each row."""
        return np.bincount(self.of_token, minlength=len(self.keys))

    def counting_alike(self, batch: MicroBatch) -> MicroBatch:
        """Return `batch`, of these rows, with the weight of each divided among its tokens."""
        weights = batch.weights.copy()
        weights[batch.labels != IGNORED] /= self.num_tokens[self.of_token]
        return dataclasses.replace(batch, weights=weights)

    @classmethod
    def of(cls, batch: MicroBatch) -> Traces:
        """Tell the rows of a padded or packed micro-batch apart."""
        keys: list[int] = []
        of_token: list[int] = []
        for number, labels in enumerate(batch.labels):
            positions = None if batch.position_ids is None else batch.position_ids[number]
            starts = [0] if positions is None else np.flatnonzero(positions == 0).tolist()
            for start, end in zip(starts, [*starts[1:], len(labels)], strict=True):
                supervised = np.flatnonzero(labels[start:end] != IGNORED)
                if len(supervised):
                    of_token += [len(keys)] * len(supervised)
                    keys.append(_key(batch.input_ids[number, start : start + supervised[-1] + 1]))
        return cls(tuple(keys), np.asarray(of_token, dtype=np.int64))


class Gains:
    """The last mean NLL of every trace. `weights` looks back and takes note; what was noted counts from `settle` on."""

    def __init__(self, config: ProgressConfig) -> None:
        self._config = config
        self._last: dict[int, float] = {}
        self._noted: dict[int, float] = {}

    def weights(self, traces: Traces, nll: Floats) -> Floats:
        """Return for each supervised token what its trace counts, given the NLL [tokens] of the tokens today; 1 at the first visit."""
        means = np.bincount(traces.of_token, nll, len(traces.keys)) / traces.num_tokens
        self._noted |= dict(zip(traces.keys, means.tolist(), strict=True))
        gains = np.asarray([self._last.get(key, np.nan) for key in traces.keys], dtype=np.float64) - means
        found: Floats = gain_weights(gains, self._config)[traces.of_token]
        return found

    def settle(self, group: Group, keep: bool = True) -> None:
        """Bring together what the ranks noted since the last time, or forget it (not `keep`); every rank calls it."""
        for noted in group.all(self._noted) if keep else ():
            self._last |= noted
        self._noted = {}

    def state(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint must keep."""
        import torch

        return {
            "keys": torch.tensor(list(self._last), dtype=torch.int64),
            "nll": torch.tensor(list(self._last.values()), dtype=torch.float64),
        }

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what `state` returned."""
        self._last = dict(zip(state["keys"].tolist(), state["nll"].tolist(), strict=True))


def gain_weights(gains: Floats, config: ProgressConfig) -> Floats:
    """Return alpha * (1 - sigmoid(beta * gain)) for each gain, held in [min_weight, max_weight]; 1 where the gain is not known (NaN)."""
    weights = config.alpha * 0.5 * (1 - np.tanh(config.beta * gains / 2))  # 1 - sigmoid(x), without overflow
    held: Floats = np.where(np.isnan(gains), 1.0, np.clip(weights, config.min_weight, config.max_weight))
    return held


def _key(ids: npt.NDArray[np.int64]) -> int:
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(ids).tobytes(), digest_size=8).digest(), "big") >> 1
