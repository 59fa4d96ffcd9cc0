"""A worker that sleeps, and tasks for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from cluster.work import Service, Task


class Sleeper:
    """Sleeps for as many seconds as a task says."""

    async def load(self, spec: object) -> None:
        """Nothing to load."""

    async def run(self, payload: float) -> float:
        """Sleep."""
        await asyncio.sleep(payload)
        return payload

    async def close(self) -> None:
        """Nothing to close."""


@dataclass
class Naps:
    """A source of tasks: one for each number of seconds."""

    seconds: list[float] = field(default_factory=list)

    def next(self, service: str) -> Task | None:
        """Return the next nap."""
        return Task(service, len(self.seconds), self.seconds.pop()) if self.seconds else None

    def exhausted(self, service: str) -> bool:  # noqa: ARG002 - there is one service
        """Return whether all were given out."""
        return not self.seconds


def sleepers(replicas: int = 2) -> Service:
    """Return a service of sleeping replicas."""
    return Service("sleep", Sleeper, max_replicas=replicas)
