"""Which requests the hf engine decodes together. A function of the requests alone: never of replicas, deaths or what exists already."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from w2sr.teachers.engine import Request

# Batches that are sorted together. More means less padding, and requests that travel further from their place in the generator's order.
WINDOW = 16
# So many requests at the start are not sorted: by the first traces it is decided whether a teacher is worth its price, and the longest
# questions alone would make it look worse than it is.
UNSORTED = 256


@dataclass(frozen=True)
class Window:
    """Positions that are made into batches together, `in_order` or by length."""

    positions: list[int]
    in_order: bool


def windows(positions: Iterable[int], batch_size: int) -> Iterator[Window]:
    """Cut ascending `positions` into windows of whole batches, so that ten million of them need no memory. The first one stays in order."""
    assert batch_size > 0
    source = iter(positions)
    first = list(itertools.islice(source, -(-UNSORTED // batch_size) * batch_size))
    if first:
        yield Window(first, in_order=True)
    while window := list(itertools.islice(source, WINDOW * batch_size)):
        yield Window(window, in_order=False)


def plan_batches(requests: Sequence[Request], batch_size: int, in_order: bool = False) -> list[list[Request]]:
    """Return the requests of one window in batches of `batch_size` (the last may be smaller).

    Unless they stay `in_order`, questions of similar length meet, and the longest come first, because their batches take longest.
    """
    ordered = list(requests) if in_order else sorted(requests, key=lambda request: (-len(request.question), request.position))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
