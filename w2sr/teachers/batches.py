"""Which requests the hf engine decodes together. A function of the requests alone: never of replicas, deaths or what exists already."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from w2sr.teachers.engine import Request

# Batches that are sorted together. More means less padding, and requests that travel further from their place in the generator's order.
WINDOW = 16


def plan_batches(requests: Iterable[Request], batch_size: int) -> Iterator[list[Request]]:
    """Yield every request exactly once, in batches of `batch_size` (a window's last may be smaller) with questions of similar length.

    The requests, in order of position, are read window by window, so 10 million of them need no memory; in a window the longest
    questions come first, because their batches take longest.
    """
    assert batch_size > 0
    source = iter(requests)
    while window := list(itertools.islice(source, WINDOW * batch_size)):
        window.sort(key=lambda request: (-len(request.question), request.position))
        for start in range(0, len(window), batch_size):
            yield window[start : start + batch_size]
