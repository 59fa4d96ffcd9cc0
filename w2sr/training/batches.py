"""How ranks carry a global batch. `batch_plan` is the arithmetic, on configuration alone; `cut` makes micro-batches of the units of a step.

A unit is what is never divided: a row, or with packing a packed sequence. A step has either so many units or so many tokens, a micro-batch
at most so many units or so many padded tokens (units x the longest of them).
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from w2sr.training.config import TrainConfig

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BatchPlan:
    """A step of `data_size` data-parallel ranks. A unit is a row, or with packing a packed sequence of up to `max_length` tokens.

    `step_units` is None where steps are measured in tokens, `micro_units` where micro-batches are. `step_tokens` is the expected number of
    tokens of a step, `micro_tokens` the most that a micro-batch holds, padding included. `accumulation`: micro-batches of each rank in a
    step; exact where both sizes are in units (`is_exact`), else what full micro-batches make of `step_tokens`, and the least there can be.
    """

    data_size: int
    packing: bool
    step_units: int | None
    step_tokens: float
    micro_units: int | None
    micro_tokens: int
    accumulation: int
    is_exact: bool


def batch_plan(train: TrainConfig, data_size: int, mean_length: float | None = None) -> BatchPlan:
    """Return how `data_size` ranks carry the global batch of `train`.

    `mean_length`: tokens of a row where it is known; without it every row is taken for as long as it may be. With packing sequences are
    taken to be full.
    """
    unit = float(train.max_length) if train.packing or mean_length is None else mean_length
    step_tokens = float(train.global_batch_tokens or 0) if train.global_batch_size is None else train.global_batch_size * unit
    micro_tokens = train.micro_batch_tokens if train.micro_batch_size is None else train.micro_batch_size * train.max_length
    assert micro_tokens is not None
    is_exact = train.global_batch_size is not None and train.micro_batch_size is not None
    full = micro_tokens if train.micro_batch_size is None else train.micro_batch_size * unit
    if train.packing and train.micro_batch_size is None:
        full = micro_tokens // train.max_length * train.max_length
    accumulation = max(1, -int(-step_tokens // (full * data_size)))
    return BatchPlan(
        data_size, train.packing, train.global_batch_size, step_tokens, train.micro_batch_size, micro_tokens, accumulation, is_exact
    )


def cut(lengths: Indices, num_shares: int, max_units: int | None, max_tokens: int | None) -> list[list[Indices]]:
    """Deal the units of a step: `cut(...)[round][share]` holds numbers of units (places in `lengths`), possibly none.

    No micro-batch has more than `max_units` units, or `max_tokens` padded tokens (exactly one is given). There are as few rounds as that
    allows; within it micro-batches are as even as can be, and those of a round alike: ranks wait for each other after each. Every share
    has a micro-batch in every round, since ZeRO 2 and 3 communicate in each backward pass: where there are not enough, the largest are
    halved, and when all hold one unit, the last round is filled up with empty ones.
    """
    assert (max_units is None) != (max_tokens is None), "give max_units or max_tokens"
    assert len(lengths), "a step has at least one unit"
    order = np.lexsort((np.arange(len(lengths)), -lengths))
    sizes = np.ones(len(lengths), dtype=np.int64) if max_tokens is None else lengths[order]
    budget = max_units if max_tokens is None else max_tokens
    assert budget is not None
    assert budget >= sizes[0], f"a unit of {sizes[0]} is over the budget of {budget}"
    most = -(-len(_cuts(sizes, budget)) // num_shares) * num_shares
    low, high = int(sizes[0]), budget  # the smallest budget that needs no more rounds makes the evenest micro-batches
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_cuts(sizes, middle)) <= most else (middle + 1, high)
    micro_batches = _halved([order[start:stop] for start, stop in _cuts(sizes, high)], lengths, most)
    micro_batches += [order[:0]] * (most - len(micro_batches))
    return [micro_batches[start : start + num_shares] for start in range(0, most, num_shares)]


def _cuts(sizes: Indices, budget: int) -> list[tuple[int, int]]:
    """Cut descending sizes into runs of at most `budget`, each unit counted as large as the first of its run."""
    found, start = [], 0
    while start < len(sizes):
        stop = min(len(sizes), start + budget // int(sizes[start]))
        found.append((start, stop))
        start = stop
    return found


def _halved(micro_batches: list[Indices], lengths: Indices, number: int) -> list[Indices]:
    """Halve the largest until there are `number`, or all hold one unit; return them from the largest to the smallest."""
    places = itertools.count()  # distinct, so that the heap never compares arrays
    heap = [(-int(lengths[units].sum()), next(places), units) for units in micro_batches]
    heapq.heapify(heap)
    done: list[tuple[int, int, Indices]] = []
    while heap and len(heap) + len(done) < number:
        size, place, units = heapq.heappop(heap)
        if len(units) == 1:
            done.append((size, place, units))
            continue
        for half in (units[: len(units) // 2], units[len(units) // 2 :]):
            heapq.heappush(heap, (-int(lengths[half].sum()), next(places), half))
    return [units for _, _, units in sorted([*heap, *done], key=lambda item: item[:2])]


def deal(lengths: Indices, num_shares: int, micro_batch_size: int) -> list[list[Indices]]:
    """Deal as many units as fill micro-batches of `micro_batch_size` evenly: `deal(...)[round][share]` holds numbers of units.

    Units of like length come together, so that little is padded and ranks that wait for each other have equal work.
    """
    group = num_shares * micro_batch_size
    assert len(lengths) % group == 0, f"{len(lengths)} units do not fill micro-batches of {micro_batch_size} on {num_shares} ranks"
    rounds = np.lexsort((np.arange(len(lengths)), -lengths)).reshape(-1, micro_batch_size, num_shares)
    rounds[:, 1::2] = rounds[:, 1::2, ::-1]  # there and back, or rank 0 would always get the longer one
    return [[chunk[:, share] for share in range(num_shares)] for chunk in rounds]
