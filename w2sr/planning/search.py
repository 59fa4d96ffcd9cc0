"""Which layout to take: the fastest that fits, or the cheapest change to one that does not."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from w2sr.planning.assumptions import Assumptions
from w2sr.planning.layout import Layout
from w2sr.planning.shapes import ModelShape
from w2sr.planning.speed import Speed, training_speed
from w2sr.planning.training_memory import Memory, training_memory
from w2sr.training.memory_config import Place

MOST_RANKS = 4096
MOST_TOKENS = 65_536  # of a micro-batch: beyond it arithmetic gains nothing


@dataclass(frozen=True)
class Option:
    """A layout, what is different from the one asked for, and what it needs."""

    layout: Layout
    changes: dict[str, object]
    memory: Memory

    def describe(self) -> str:
        """Return the changes as keys of the configuration."""
        return ", ".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in self.changes.items())


KEYS = {
    "recompute": "train.gradient_checkpointing",
    "zero_stage": "train.zero_stage",
    "micro_rows": "micro-batch rows",
    "num_ranks": "train.num_ranks",
    "offload_optimizer": "train.memory.offload_optimizer",
    "offload_parameters": "train.memory.offload_parameters",
}


def cheapest_change(shape: ModelShape, layout: Layout, assumed: Assumptions) -> Option | None:
    """Return the first of the cheaper layouts that fits, None when nothing does.

    What costs least is tried first: recomputing activations, a higher ZeRO stage, a smaller micro-batch, more ranks, the optimizer on the
    host, the parameters too.
    """
    for candidate in _escalations(layout):
        option = _option(shape, layout, candidate, assumed)
        if option.memory.fits:
            return option
    return None


def neighbours(shape: ModelShape, layout: Layout, assumed: Assumptions) -> list[Option]:
    """Return the layouts that differ in one choice: what the reason for this one is."""
    stages = [stage for stage in (layout.zero_stage - 1, layout.zero_stage + 1) if (1 if layout.weight_bytes == 2 else 0) <= stage <= 3]
    found = [dataclasses.replace(layout, zero_stage=stage) for stage in stages if _combines(dataclasses.replace(layout, zero_stage=stage))]
    if not layout.offload_activations:
        found.append(dataclasses.replace(layout, recompute=not layout.recompute))
    found.append(dataclasses.replace(layout, micro_rows=2 * layout.micro_rows))
    if layout.micro_rows > 1:
        found.append(dataclasses.replace(layout, micro_rows=layout.micro_rows // 2))
    return [_option(shape, layout, each, assumed) for each in found]


def fastest(shape: ModelShape, layout: Layout, assumed: Assumptions, step_tokens: float) -> tuple[Option, Speed] | None:
    """Return the fastest layout that fits on the same number of ranks, None when nothing does. On equal speed the simpler one."""
    best: tuple[Option, Speed] | None = None
    rows = [1 << power for power in range(20) if (1 << power) * layout.length <= max(MOST_TOKENS, layout.length)]
    most = max(1, int(step_tokens // (layout.length * layout.num_ranks)))
    choices = itertools.product(_places(layout), (1, 2, 3), (False, True), [each for each in rows if each <= most])
    for (optimizer, parameters), stage, recompute, micro in choices:
        changed = dataclasses.replace(layout, zero_stage=stage, recompute=recompute, micro_rows=micro)
        candidate = dataclasses.replace(changed, offload_optimizer=optimizer, offload_parameters=parameters)
        if best is not None and optimizer != "device" and best[0].layout.offload_optimizer == "device":
            break  # offload only where nothing else fits
        if not _combines(candidate):
            continue
        option = _option(shape, layout, candidate, assumed)
        speed = training_speed(shape, candidate, assumed, step_tokens)
        if option.memory.fits and (best is None or speed.tokens_per_s > 1.01 * best[1].tokens_per_s):
            best = option, speed
    return best


def _places(layout: Layout) -> list[tuple[Place, Place]]:
    """Return where optimizer and parameters may live, from what the layout has to what takes the least of devices."""
    pairs: list[tuple[Place, Place]] = [("device", "device"), ("cpu", "device"), ("cpu", "cpu"), ("nvme", "device"), ("nvme", "cpu")]
    own = (layout.offload_optimizer, layout.offload_parameters)
    return pairs[pairs.index(own) :] if own in pairs else [own]


def _escalations(layout: Layout) -> Iterator[Layout]:
    """Yield layouts that need less, the cheapest changes first: the last choice here changes fastest."""
    ranks = [layout.num_ranks]
    while layout.on_gpu and ranks[-1] * 2 <= min(MOST_RANKS, 64 * layout.num_ranks):
        ranks.append(ranks[-1] * 2)
    rows = [layout.micro_rows]
    while rows[-1] > 1:
        rows.append(rows[-1] // 2)
    least = layout.zero_stage
    stages = range(least, 4)
    recompute = [True] if layout.recompute else [False, True]
    for places, size, micro, stage, again in itertools.product(_places(layout), ranks, rows, stages, recompute):
        candidate = dataclasses.replace(layout, num_ranks=size, micro_rows=micro, zero_stage=stage, recompute=again)
        candidate = dataclasses.replace(candidate, offload_optimizer=places[0], offload_parameters=places[1])
        if _combines(candidate) and candidate != layout:
            yield candidate


def _combines(layout: Layout) -> bool:
    """Whether the configuration would take it (training/memory_config.py)."""
    if layout.zero_stage == 3:
        return True
    sharded = layout.offload_parameters != "device" or layout.offload_optimizer == "nvme" or layout.secondary > 1
    return not sharded and (layout.zero_stage > 0 or layout.offload_optimizer == "device")


def _option(shape: ModelShape, asked: Layout, layout: Layout, assumed: Assumptions) -> Option:
    changes = {name: getattr(layout, key) for key, name in KEYS.items() if getattr(layout, key) != getattr(asked, key)}
    return Option(layout, changes, training_memory(shape, layout, assumed.machine(layout)))
