"""Which completions a generator has to make: a pure function of prompts, samples and seed, never of replicas or of what is done.

The place of a request in its generator's order is its `position` = prompt index x samples per prompt + sample index. Positions, not lists
of requests, are what is kept in memory: ten million of them are a range.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from w2sr.records import Prompt, seed_of, trace_id_of
from w2sr.teachers.engine import Request

# Places on the ring of prompts are counted in billionths.
_RING = 10**9


@dataclass(frozen=True)
class Arc:
    """The part of the prompts that a teacher answers: from `start` over `share`, both fractions of a ring on which the prompts lie."""

    start: float = 0.0
    share: float = 1.0

    def members(self, prompts: Sequence[Prompt], run_seed: int) -> list[int]:
        """Return the indices of the prompts on this arc, ascending. Arcs that touch have no prompt in common and miss none between."""
        count = len(prompts)
        if self.share >= 1:
            return list(range(count))
        ring = sorted(range(count), key=lambda index: hashlib.sha256(f"{run_seed}\x1f{prompts[index].prompt_id}".encode()).digest())
        first = _billionths(self.start)
        places = range(_nearest(first, count), _nearest(first + _billionths(self.share), count))
        return sorted(ring[place % count] for place in places)


def arcs(shares: Sequence[float]) -> list[Arc]:
    """Return the arcs of teachers with these shares: each begins where the one before ends, round the ring."""
    starts = [sum(map(_billionths, shares[:number])) % _RING for number in range(len(shares))]
    return [Arc(start / _RING, share) for start, share in zip(starts, shares, strict=True)]


def _billionths(fraction: float) -> int:
    return round(fraction * _RING)


def _nearest(at: int, count: int) -> int:
    """Return which of `count` prompts begins at `at` billionths of the ring: in whole numbers, so that an end and the next start agree."""
    return (2 * at * count + _RING) // (2 * _RING)


class RequestPlan:
    """The requests of one generator over `prompts`, `samples` a prompt, of which it answers those on `arc`."""

    def __init__(self, generator: str, prompts: Sequence[Prompt], samples: int, run_seed: int, arc: Arc | None = None) -> None:
        self.generator = generator
        self.samples = samples
        self._prompts = prompts
        self._run_seed = run_seed
        self.members = (arc or Arc()).members(prompts, run_seed)

    @property
    def num_positions(self) -> int:
        """All positions there are, on the arc or not."""
        return len(self._prompts) * self.samples

    @property
    def num_requests(self) -> int:
        """The requests on the arc."""
        return len(self.members) * self.samples

    def positions(self) -> Iterator[int]:
        """Yield the positions on the arc in order."""
        for index in self.members:
            yield from range(index * self.samples, (index + 1) * self.samples)

    def prompt_at(self, position: int) -> Prompt:
        """Return the prompt that the request at `position` asks."""
        return self._prompts[position // self.samples]

    def trace_id_at(self, position: int) -> str:
        """Return the id of the trace at `position`."""
        return trace_id_of(self.prompt_at(position).prompt_id, self.generator, position % self.samples)

    def request_at(self, position: int) -> Request:
        """Return the request at `position`."""
        prompt, sample_index = self.prompt_at(position), position % self.samples
        trace_id = trace_id_of(prompt.prompt_id, self.generator, sample_index)
        return Request(trace_id, prompt.prompt_id, sample_index, position, prompt.question, seed_of(self._run_seed, trace_id))
