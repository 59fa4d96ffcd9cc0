"""For the pool's benchmarks: an engine that takes time as a real one does but computes nothing, and prompts for it."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.work import Task

# A step of continuous batching takes so long, and so much more for each request in it: with 64 requests 16.4 ms, 3,900 tokens/s.
STEP_S = 0.010
STEP_PER_REQUEST_S = 0.0001
SLOTS = 64
# How often the engine looks at the clock.
TICK_S = 0.02
MEDIAN_TOKENS = 350
SIGMA = 0.8
MOST_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Prompt:
    """What travels: a question as long as a real one, and how long its answer will be."""

    question: str
    num_tokens: int


def make_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """Return prompts whose answers have lognormal lengths: many short ones and a long tail, cut at a limit."""
    draw = random.Random(seed)
    lengths = (min(MOST_TOKENS, round(draw.lognormvariate(0, SIGMA) * MEDIAN_TOKENS) + 1) for _ in range(count))
    return [Prompt(f"question {number} ".ljust(200, "?"), length) for number, length in enumerate(lengths)]


class FakeEngine:
    """Continuous batching: whoever is in decodes a token a step, and a step is slower the more are in."""

    def __init__(self) -> None:
        self._left: dict[asyncio.Future[None], float] = {}
        self._free = asyncio.Semaphore(SLOTS)
        self._stepping: asyncio.Task[None] | None = None

    async def load(self, spec: Any) -> None:
        """Nothing to load."""

    async def run(self, prompt: Prompt) -> tuple[str, int]:
        """Return a text of about four letters a token, when a real engine would."""
        async with self._free:
            done = asyncio.get_running_loop().create_future()
            self._left[done] = float(prompt.num_tokens)
            if self._stepping is None:
                self._stepping = asyncio.create_task(self._step())
            await done
        return "word" * prompt.num_tokens, prompt.num_tokens

    async def close(self) -> None:
        """Nothing to free."""

    async def _step(self) -> None:
        before = time.perf_counter()
        while self._left:
            await asyncio.sleep(TICK_S)
            now = time.perf_counter()
            tokens = (now - before) / (STEP_S + STEP_PER_REQUEST_S * len(self._left))
            before = now
            for request, left in list(self._left.items()):
                if left <= tokens:
                    del self._left[request]
                    request.set_result(None)
                else:
                    self._left[request] = left - tokens
        self._stepping = None


class InstantEngine:
    """Answers at once."""

    async def load(self, spec: Any) -> None:
        """Nothing to load."""

    async def run(self, prompt: Prompt) -> tuple[str, int]:
        """Return a text of about four letters a token."""
        return "word" * prompt.num_tokens, prompt.num_tokens

    async def close(self) -> None:
        """Nothing to free."""


class Prompts:
    """A source of one service's tasks, made when they are asked for."""

    def __init__(self, service: str, payloads: Iterable[Any], split: Callable[[Any], list[Any]] | None = None) -> None:
        self._tasks: Iterator[Task] = (Task(service, key, payload, split) for key, payload in enumerate(payloads))
        self._next = next(self._tasks, None)

    def next(self, _: str) -> Task | None:
        """See cluster.work.Source."""
        task, self._next = self._next, next(self._tasks, None)
        return task

    def exhausted(self, _: str) -> bool:
        """See cluster.work.Source."""
        return self._next is None


def spread(values: list[float]) -> str:
    """Return for example "0.985 (0.981 to 0.990, 3 times)"."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f}, {len(values)} times)"


def memory_mib() -> float:
    """Return the resident memory of this process."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
