"""How far an optimizer step moves each layer: the norm of the update over the norm of the weights. Too far breaks what a model knows.

Every rank sums the squares over its shards of the fp32 master weights, so nothing is gathered; one all-reduce of two numbers a layer makes
the norms. Of a large shard only a sample is looked at, the same elements before and after the step, spread over all rows and columns: it
costs one small copy instead of another set of weights.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from w2sr.tables import write_text
from w2sr.training.dist import Group
from w2sr.training.engine import Engine
from w2sr.training.engine_shards import Shard
from w2sr.training.spec import TrainSpec
from w2sr.training.watch import forget_steps_from

if TYPE_CHECKING:
    import torch

FILE = "update_ratios.jsonl"
WARNED = "update_ratio.txt"
SAMPLE = 1 << 16  # elements of a shard: a norm is then off by about half a percent
NUM_FIRST = 10  # steps that are always measured: what a wrong learning rate breaks it breaks at once
_NUMBERED = re.compile(r".*?\.\d+(?=\.)")
_log = logging.getLogger(__name__)


class UpdateRatios:
    """Measures the steps that train.optimizer.update_ratio_every asks for, from `first_step` (from 1) on; writes them on rank 0."""

    def __init__(self, spec: TrainSpec, group: Group, engine: Engine, first_step: int) -> None:
        self._train, self._name = spec.train, spec.name
        self._group, self._engine = group, engine
        self._path = Path(spec.output) / FILE
        self._layers = sorted({layer_of(name) for name, value in engine.module.named_parameters() if value.requires_grad})
        self._before: list[torch.Tensor] | None = None
        if group.rank == 0:
            forget_steps_from(self._path, first_step - 1)
            if first_step == 1:
                self._path.with_name(WARNED).unlink(missing_ok=True)
        self._warned = self._path.with_name(WARNED).is_file()

    def before(self, step: int) -> None:
        """Look at the weights before optimizer step `step` (from 1) if it is to be measured."""
        every = self._train.optimizer.update_ratio_every
        if every and not self._train.memory.uses_nvme and (step <= NUM_FIRST or step % every == 0):
            self._before = [sample(shard).clone() for shard in self._engine.shards()]

    def after(self, step: int, learning_rate: float) -> dict[str, float]:
        """Return the largest ratio of the step for the log, nothing if it is not measured; collective."""
        if self._before is None:
            return {}
        ratios = self._ratios(self._before)
        self._before = None
        if self._group.rank == 0:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "learning_rate": learning_rate, "layers": ratios}) + "\n")
            self._judge(step, learning_rate, ratios)
        return {"update_ratio/max": max(ratios.values())} if ratios else {}

    def _ratios(self, before: list[torch.Tensor]) -> dict[str, float]:
        """Return the ratio of each layer whose weights are not all 0."""
        import torch

        place = {layer: number for number, layer in enumerate(self._layers)}
        sums = [0.0] * (2 * len(place))
        for shard, old in zip(self._engine.shards(), before, strict=True):
            if not shard.counts:
                continue
            scale = shard.values.numel() / old.numel()
            number = place[layer_of(shard.name)]
            norms = torch.linalg.vector_norm(torch.stack([sample(shard) - old, old]), dim=1, dtype=torch.float64).tolist()
            for kind, norm in enumerate(norms):
                sums[2 * number + kind] += scale * norm**2
        sums = self._group.sum(sums)
        return {layer: math.sqrt(sums[2 * number] / sums[2 * number + 1]) for layer, number in place.items() if sums[2 * number + 1]}

    def _judge(self, step: int, learning_rate: float, ratios: dict[str, float]) -> None:
        """Warn once when the layer that moves most is out of the sane range, had the learning rate been at its peak."""
        peak = self._train.learning_rate
        low, high = self._train.optimizer.sane_update_ratio
        found = warning({layer: ratio * peak / learning_rate for layer, ratio in ratios.items()}, low, high, self._rate_of)
        if found is not None and not self._warned:
            self._warned = True
            line = f"step {step}: {found}"
            _log.warning("%s, %s", self._name, line)  # for who looks at the rank itself; the driver reads the file
            write_text(self._path.with_name(WARNED), line + "\n")

    def _rate_of(self, layer: str) -> tuple[str, float]:
        """Return the key of the learning rate that moves a layer most, and its value."""
        optimizer = self._train.optimizer
        if optimizer.muon_learning_rate is not None and _NUMBERED.match(f"{layer}."):
            return "train.optimizer.muon_learning_rate", optimizer.muon_learning_rate
        return "train.learning_rate", self._train.learning_rate


def layer_of(name: str) -> str:
    """Return the layer of a parameter: its block (model.layers.3), or what it is called without .weight and .bias."""
    block = _NUMBERED.match(name)
    return block[0] if block else name.removesuffix(".weight").removesuffix(".bias")


def sample(shard: Shard) -> torch.Tensor:
    """Return at most SAMPLE elements of a shard, evenly spread, as a view."""
    stride = math.ceil(shard.values.numel() / SAMPLE)
    while stride > 1 and math.gcd(stride, shard.width) > 1:  # else it would look at a few columns only
        stride += 1
    return shard.values[::stride]


def warning(ratios: dict[str, float], low: float, high: float, rate_of: Callable[[str], tuple[str, float]]) -> str | None:
    """Return what is wrong with `ratios` at the peak learning rate, or None. `rate_of`: the key and value of a layer's learning rate.

    The largest ratio decides: gains of norms are large numbers, and move little of themselves at any rate.
    """
    layer = max(ratios, key=lambda name: ratios[name], default=None)
    if layer is None or low <= ratios[layer] <= high:
        return None
    ratio, (key, rate), is_high = ratios[layer], rate_of(layer), ratios[layer] > high
    advice = f"about {rate * (high if is_high else low) / ratio:.1g} or {'less' if is_high else 'more'}" if ratio else "more"
    return (
        f"{layer} moves by {ratio:.1e} of its weights a step at the peak learning rate, more than any other layer; {low:.0e} to {high:.0e} "
        f"is usual. {key}={rate:g} looks too {'high' if is_high else 'low'}: try {advice}, or move the bounds with "
        f"train.optimizer.sane_update_ratio. All layers: {FILE}"
    )
