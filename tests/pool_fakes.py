"""For tests of the pool: a worker that misbehaves as its tasks say, a source, and a cluster with as little room as one likes."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import RetryLater
from cluster.links import Link, ThreadTransport
from cluster.work import Outcome, Service, Task
from w2sr.errors import UserError


class UnpicklableError(UserError):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class FakeWorker:
    """Does what a payload says: ("sleep", seconds), ("die once", a marker file), ("raise", message) and so on."""

    def __init__(self) -> None:
        self.spec = ""
        self.running = 0
        self.most = 0

    async def load(self, spec: str) -> None:
        if spec == "die":
            os._exit(1)
        if spec == "break":
            raise OSError("no weights")
        if spec == "refuse":
            raise UserError("model 'x' is not there")
        if spec == "sleep":
            await asyncio.sleep(60)
        self.spec = spec

    async def run(self, payload: tuple[Any, ...]) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await self.act(*payload)
        finally:
            self.running -= 1

    async def act(self, verb: str, *rest: Any) -> Any:
        if verb == "sleep":
            await asyncio.sleep(rest[0])
        elif verb == "block":
            time.sleep(rest[0])
        elif verb == "most":
            return self.most
        elif verb == "die":
            os._exit(1)
        elif verb == "sleep and die":
            await asyncio.sleep(rest[0])
            os._exit(1)
        elif verb == "die once" and not Path(rest[0]).exists():
            Path(rest[0]).touch()
            os._exit(1)
        elif verb == "exit":
            raise SystemExit
        elif verb == "raise":
            raise UserError(rest[0])
        elif verb == "raise unpicklable":
            raise UnpicklableError("it holds a lock")
        elif verb == "answer unpicklable":
            return threading.Lock()
        elif verb == "break":
            raise ZeroDivisionError("a mistake of ours")
        elif verb == "later" and time.time() < rest[0]:
            raise RetryLater("429 too many requests", rest[0] - time.time())
        elif verb == "never":
            raise RetryLater("503 overloaded", 0.01)
        elif verb == "environment":
            return {name: os.environ.get(name) for name in rest}
        return f"{self.spec}:{verb}:{os.getpid()}"

    async def close(self) -> None:
        self.spec = "closed"


@dataclass(frozen=True)
class RefusingFactory:
    message: str

    def __call__(self) -> FakeWorker:
        raise UserError(self.message)


class ListSource:
    """Tasks from an iterable for each service, made when asked for."""

    def __init__(self, **payloads: Iterable[tuple[Any, ...]]) -> None:
        self.tasks = {name: self.make(name, found) for name, found in payloads.items()}
        self.ended: set[str] = set()
        self.asked = 0

    def make(self, name: str, payloads: Iterable[tuple[Any, ...]]) -> Iterator[Task]:
        return (Task(name, key, payload) for key, payload in enumerate(payloads))

    def next(self, service: str) -> Task | None:
        found = next(self.tasks[service], None)
        if found is None:
            self.ended.add(service)
        else:
            self.asked += 1
        return found

    def exhausted(self, service: str) -> bool:
        return service in self.ended


class SmallCluster(ThreadTransport):
    """Threads that are placed as on a cluster with `cpus` processors: the others wait until one ends, or until `grow`."""

    def __init__(self, cpus: int) -> None:
        self.free = self.total = cpus
        self.queue: list[tuple[Any, Callable[[], None]]] = []
        self.started = 0

    def start(self, service: Service) -> Link:
        link: Any = super().start(service)
        place, kill = link.place, link.kill
        future = type(place())()
        state = {"placed": False, "killed": False}

        def put() -> None:
            state["placed"] = True
            self.free -= 1
            future.set_result(place().result())

        def end() -> None:
            if not state["killed"]:
                state["killed"] = True
                self.queue = [entry for entry in self.queue if entry[0] is not link]
                self.free += state["placed"]
                kill()
                self.let_in()

        link.place, link.kill = lambda: future, end
        self.queue.append((link, put))
        self.let_in()
        self.started += 1
        return link  # type: ignore[no-any-return]

    def let_in(self) -> None:
        while self.queue and self.free > 0:
            self.queue.pop(0)[1]()

    def grow(self, cpus: int) -> None:
        self.total += cpus
        self.free += cpus
        self.let_in()

    def resources(self) -> tuple[dict[str, float], dict[str, float]]:
        return {"CPU": self.total, "GPU": 0}, {"CPU": self.free, "GPU": 0}


def keys(outcomes: Iterable[Outcome]) -> list[int]:
    """Return the keys of `outcomes`, sorted."""
    return sorted(outcome.task.key for outcome in outcomes)
