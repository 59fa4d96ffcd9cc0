"""How the driver reaches a replica, whatever it is; and replicas that are threads of the driver."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from cluster.replica import Orders, Replica, Reply, Trouble
from cluster.work import Service, Worker

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a replica runs. `node` is for people; `pid` is None for a thread of the driver."""

    node: str
    pid: int | None


@dataclass(frozen=True, slots=True)
class Death:
    """How a replica ended. `blameless`: by the doing of its node or of the driver, not of its tasks."""

    reason: str
    blameless: bool


class Link(Protocol):
    """One replica as the driver reaches it. The futures may be completed by any thread; one that raises means that the replica is gone."""

    def place(self) -> Future[Place]:
        """Return where it runs, once it does."""
        ...

    def load(self, factory: Callable[[], Worker], orders: Orders) -> Future[Trouble | None]:
        """See Replica.load."""
        ...

    def exchange(self, turn: int, tasks: list[tuple[int, Any]], recall: int) -> Future[Reply]:
        """See Replica.exchange."""
        ...

    def close(self) -> Future[None]:
        """Let the worker free what it holds."""
        ...

    def kill(self) -> None:
        """End it at once. Never fails, whatever state it is in."""
        ...

    def death(self, error: BaseException) -> Death:
        """Say what a future's error means. Called in the driver's thread."""
        ...


class Transport(Protocol):
    """A way to have replicas."""

    def start(self, service: Service) -> Link:
        """Ask for a replica with the resources of `service`. Returns at once; it may take until the cluster has room."""
        ...

    def resources(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return what the cluster has, and what of it is free: {"CPU": ..., "GPU": ...}."""
        ...


class ThreadTransport:
    """Replicas as threads of this process: for work that waits for others (an endpoint, a file)."""

    def start(self, service: Service) -> Link:
        """Start a thread."""
        return _ThreadLink(service.name)

    def resources(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return nothing: a thread needs nothing."""
        return {}, {}


class _LoopEnded(Exception):
    """The event loop of the thread is closed."""


class _ThreadLink:
    """A thread with an event loop. When it is killed, the loop ends as soon as it is not busy; nobody waits for that."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._replica = Replica()
        self._open: set[Future[Any]] = set()
        self._ended = False
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, name=f"replica-{name}", daemon=True).start()

    def place(self) -> Future[Place]:
        """Return this process."""
        placed: Future[Place] = Future()
        placed.set_result(Place("driver", None))
        return placed

    def load(self, factory: Callable[[], Worker], orders: Orders) -> Future[Trouble | None]:
        """See Link."""
        return self._submit(self._replica.load(factory, orders))

    def exchange(self, turn: int, tasks: list[tuple[int, Any]], recall: int) -> Future[Reply]:
        """See Link."""
        return self._submit(self._replica.exchange(turn, tasks, recall))

    def close(self) -> Future[None]:
        """See Link."""
        return self._submit(self._replica.close())

    def kill(self) -> None:
        """See Link."""
        with self._lock:
            if not self._ended:
                self._loop.call_soon_threadsafe(self._loop.stop)

    def death(self, error: BaseException) -> Death:
        """See Link."""
        return Death(f"its thread ended ({error!r})", blameless=False)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            with self._lock:
                self._ended = True
            for pending in asyncio.all_tasks(self._loop):
                pending.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            for future in list(self._open):
                if not future.done():
                    future.set_exception(_LoopEnded())

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if self._ended:
                work.close()
                future: Future[T] = Future()
                future.set_exception(_LoopEnded())
                return future
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future


def this_place() -> Place:
    """Return the node and process this code runs in."""
    return Place(os.uname().nodename, os.getpid())
