"""An average of the weights over the steps, shard by shard: each rank averages what it holds, so it works alike for every ZeRO stage.

average(t) = sum over i = 1..t of (1 - decay) * decay^(t - i) * weights(i) / (1 - decay^t): an exponential moving average that is corrected
for its beginning as Adam's moments are (arXiv 1412.6980, section 3), so the weights before the first step have no share in it, and which
becomes the plain mean (Polyak and Juditsky 1992) as decay goes to 1. Memory: 4 bytes a trainable parameter, where the master weights are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from w2sr.training.engine import Engine
from w2sr.training.engine_shards import read_shards, write_shards
from w2sr.training.optimizer_config import AverageConfig
from w2sr.training.writing import Writer

if TYPE_CHECKING:
    import torch

FOLDER = "average"


class WeightAverage:
    """The average of a training of `num_steps` steps that `config` asks for; of none (None) it is the weights themselves."""

    def __init__(self, config: AverageConfig | None, engine: Engine, num_steps: int) -> None:
        self._config = config
        self._engine = engine
        self._first = 1 + int(config.start * num_steps + 1e-9) if config is not None else num_steps + 1
        self._values: list[torch.Tensor] = []

    @property
    def has_begun(self) -> bool:
        """Whether there is an average; of none that is asked for, the weights themselves."""
        return self._config is None or bool(self._values)

    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step` (from 1). Every step, in order."""
        if self._config is None or step < self._first:
            return
        import torch

        shards = self._engine.shards()
        if step == self._first:
            self._values = [shard.values.clone() for shard in shards]
        else:
            torch._foreach_lerp_(self._values, [shard.values for shard in shards], weight(self._config.decay, step - self._first + 1))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the averaged weights inside, and its own again afterwards, to the bit; collective."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def put_in_place(self) -> None:
        """Give the model the averaged weights for good; collective."""
        self._exchange()

    def write(self, folder: Path, rank: int, writer: Writer) -> None:
        """Give this rank's part of the average to `writer`, for a checkpoint in `folder`."""
        if self._values:
            shards = self._engine.shards()
            write_shards([shard.holding(values) for shard, values in zip(shards, self._values, strict=True)], folder / FOLDER, rank, writer)

    def read(self, folder: Path, step: int) -> None:
        """Go on from the checkpoint in `folder`, of any number of ranks, made after optimizer step `step`."""
        if step >= self._first:
            shards = self._engine.shards()
            self._values = [shard.values.clone() for shard in shards]
            read_shards([shard.holding(values) for shard, values in zip(shards, self._values, strict=True)], folder / FOLDER)

    def _exchange(self) -> None:
        if not self._values:
            return
        for shard, values in zip(self._engine.shards(), self._values, strict=True):
            live = shard.values.clone()
            shard.values.copy_(values)
            values.copy_(live)
        self._engine.publish()


def weight(decay: float, number: int) -> float:
    """Return the share that the `number`th weights (from 1) have in the average when they are added."""
    return 1 / number if decay == 1 else (1 - decay) / (1 - decay**number)
