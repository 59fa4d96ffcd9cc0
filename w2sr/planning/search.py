"""Which layout to take: the fastest that fits, or the cheapest change to one that does not.

A candidate is a change of keys of `train`. What the configuration refuses with its changes is no candidate.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from w2sr.planning.assumptions import Assumptions
from w2sr.planning.layout import Layout, layout_of
from w2sr.planning.shapes import ModelShape
from w2sr.planning.speed import Speed, training_speed
from w2sr.planning.training_memory import Memory, training_memory
from w2sr.training.config import TrainConfig

MOST_RANKS = 4096
MOST_TOKENS = 65_536  # of a micro-batch: beyond it arithmetic gains nothing
# Where the optimizer and the parameters may live, from the fastest to what takes the least of devices.
PLACES = (("device", "device"), ("cpu", "device"), ("cpu", "cpu"), ("nvme", "device"), ("nvme", "cpu"))
Changes = dict[str, Any]


@dataclass(frozen=True)
class Option:
    """A layout, the keys of the configuration that are different from the one asked for, and what it needs."""

    layout: Layout
    changes: Changes
    memory: Memory

    def describe(self) -> str:
        """Return the changes as overrides of the configuration."""
        return described(self.changes)


def described(changes: Changes) -> str:
    """Return changes of keys as overrides of the configuration, with commas between them."""
    return ", ".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in changes.items())


def cheapest_change(shape: ModelShape, train: TrainConfig, assumed: Assumptions) -> Option | None:
    """Return the first of the cheaper layouts that fits, None when nothing does.

    What costs least is tried first: recomputing activations, a higher ZeRO stage, a smaller micro-batch, more ranks, the optimizer on the
    host, the parameters too.
    """
    for changes in _escalations(shape, train):
        option = _option(shape, train, changes, assumed)
        if option is not None and option.changes and option.memory.fits:
            return option
    return None


def neighbours(shape: ModelShape, train: TrainConfig, assumed: Assumptions) -> list[Option]:
    """Return the layouts that differ in one choice: what the reason for this one is."""
    rows = layout_of(train, shape).micro_rows
    found: list[Changes] = [{"zero_stage": stage} for stage in (train.zero_stage - 1, train.zero_stage + 1)]
    found.append({"gradient_checkpointing": not train.gradient_checkpointing})
    found += [_micro(train, rows, each) for each in (2 * rows, rows // 2)]
    options = [_option(shape, train, changes, assumed) for changes in found]
    return [option for option in options if option is not None]


def fastest(shape: ModelShape, train: TrainConfig, assumed: Assumptions, step_tokens: float) -> tuple[Option, Speed] | None:
    """Return the fastest layout that fits on the same number of ranks, None when nothing does. On equal speed the simpler one."""
    best: tuple[Option, Speed] | None = None
    own, length = layout_of(train, shape).micro_rows, train.max_length
    most = max(1, int(step_tokens // (length * train.data_size(train.num_ranks))))
    rows = [1 << power for power in range(20) if (1 << power) * length <= max(MOST_TOKENS, length) and 1 << power <= most]
    for places in dict.fromkeys([*PLACES, _places(train)]):
        if best is not None and places[0] != "device":
            break  # offload only where nothing else fits
        for stage, recompute, micro in itertools.product((1, 2, 3), (False, True), rows):
            changes = {"gradient_checkpointing": recompute, "zero_stage": stage, **_micro(train, own, micro), **_at(places)}
            option = _option(shape, train, changes, assumed)
            if option is None or not option.memory.fits:
                continue
            speed = training_speed(shape, option.layout, assumed, step_tokens)
            if best is None or speed.tokens_per_s > 1.01 * best[1].tokens_per_s:
                best = option, speed
    return best


def _escalations(shape: ModelShape, train: TrainConfig) -> Iterator[Changes]:
    """Yield changes, the cheapest first: the last choice here changes fastest."""
    ranks, rows, own = [train.num_ranks], [layout_of(train, shape).micro_rows], _places(train)
    while train.use_gpu and ranks[-1] * 2 <= min(MOST_RANKS, 64 * train.num_ranks):
        ranks.append(ranks[-1] * 2)
    while rows[-1] > 1:
        rows.append(rows[-1] // 2)
    places = PLACES[PLACES.index(own) :] if own in PLACES else (own,)
    recompute = [True] if train.gradient_checkpointing else [False, True]
    for where, size, micro, stage, again in itertools.product(places, ranks, rows, range(train.zero_stage, 4), recompute):
        smaller = _micro(train, rows[0], micro)
        yield {"gradient_checkpointing": again, "zero_stage": stage, **smaller, "num_ranks": size, **_at(where)}


def _places(train: TrainConfig) -> tuple[str, str]:
    return train.memory.offload_optimizer, train.memory.offload_parameters


def _at(places: tuple[str, str]) -> Changes:
    return {"memory.offload_optimizer": places[0], "memory.offload_parameters": places[1]}


def _micro(train: TrainConfig, own: int, rows: int) -> Changes:
    """Return the change that makes micro-batches of `own` rows hold `rows`, in the measure in which the configuration gives them."""
    if rows == own:
        return {}
    return {"micro_batch_tokens": rows * train.max_length} if train.micro_batch_size is None else {"micro_batch_size": rows}


def _option(shape: ModelShape, train: TrainConfig, changes: Changes, assumed: Assumptions) -> Option | None:
    """Return what becomes of `train` with `changes` of its keys; None where the configuration refuses it."""
    values = train.model_dump()
    different: Changes = {}
    for key, value in changes.items():
        section, _, last = key.rpartition(".")
        place = values[section] if section else values
        if place[last] != value:
            different[f"train.{key}"] = place[last] = value
    try:
        layout = layout_of(TrainConfig.model_validate(values), shape)
    except ValidationError:
        return None
    return Option(layout, different, training_memory(shape, layout, assumed.machine(layout)))
