"""What the pool is given and what it gives back: services, tasks, outcomes. Knows neither processes nor what the work is about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

DEFAULT_START_TIMEOUT_S = 600.0


class Worker(Protocol):
    """What runs inside a replica. Its factory is pickled; the worker itself never leaves its process.

    All methods are awaited in the replica's one event loop: what takes long must not block it (use a thread).
    """

    async def load(self, spec: Any) -> None:
        """Serve `spec` from now on; what was served before may be dropped. Never called while a `run` is under way."""
        ...

    async def run(self, payload: Any) -> Any:
        """Work on one task; awaited concurrently, up to the service's capacity.

        Raises RetryLater for a fault that is not the task's and may pass; an exception that the service calls fatal (or a ClusterError) to
        end the whole run with it; any other exception means that this worker is broken: its process is ended and replaced.
        """
        ...

    async def close(self) -> None:
        """Free what is held. Called when the replica is released in peace, not when it is killed."""
        ...


@dataclass(frozen=True)
class Service:
    """A kind of worker, and how many of it there may be.

    `min_replicas` are started before any service gets more; up to `max_replicas` follow as the cluster has room, and never more than there
    are tasks. A replica gets `cpus` and `gpus` on one node (CUDA_VISIBLE_DEVICES lists exactly its GPUs) and has at most `capacity` tasks
    in `run` at a time, with up to `prefetch` more waiting at its side (None: a quarter of the capacity, at least one).

    `in_driver` True: the replica is a thread of this process with an event loop of its own, needs no Ray and counts no cpus. Else it is a
    Ray actor, in the environment of the interpreter `python` (None: the driver's); that environment needs the same Ray and Python
    versions, and finds this package by PYTHONPATH.

    Two services with equal `factory`, `cpus`, `gpus`, `python` and `in_driver` are of one flavour: a replica of one is loaded with the
    other's `spec` instead of being replaced, so let factories be comparable (frozen dataclasses, classes, functions).

    `start_timeout_s` bounds the wait for the first replicas to be placed and, for each, the time it takes to load. `task_timeout_s`: a
    task in `run` for longer means that the worker hangs; it is replaced as if it had died of that task. `max_retries`: how often a task
    may come back with RetryLater. `max_deaths`: a task that was alone in so many workers that died is quarantined.
    `max_deaths_in_a_row`: deaths with nothing finished in between that end the run. `fatal`: exception types that end the run as they are.
    """

    name: str
    factory: Callable[[], Worker]
    spec: Any = None
    min_replicas: int = 1
    max_replicas: int = 1
    cpus: float = 1
    gpus: float = 0
    capacity: int = 1
    prefetch: int | None = None
    python: str | None = None
    in_driver: bool = False
    start_timeout_s: float = DEFAULT_START_TIMEOUT_S
    task_timeout_s: float | None = None
    max_retries: int = 8
    max_deaths: int = 2
    max_deaths_in_a_row: int = 10
    fatal: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        assert 0 < self.min_replicas <= self.max_replicas, self
        assert min(self.capacity, self.max_deaths, self.max_deaths_in_a_row) > 0, self
        assert self.prefetch is None or self.prefetch >= 0, self

    @property
    def num_prefetched(self) -> int:
        """How many tasks may wait at a replica's side."""
        return self.prefetch if self.prefetch is not None else max(1, self.capacity // 4)

    @property
    def flavour(self) -> tuple[Any, ...]:
        """What two services must have in common to share a replica."""
        return (self.factory, self.cpus, self.gpus, self.python, self.in_driver)


@dataclass(frozen=True, slots=True)
class Task:
    """What is leased to a replica. `key` is the caller's; `payload` travels to the replica and is pickled.

    `split` divides the payload of a batch in two or more parts that cover it (fewer: it is indivisible). It is used, in the driver, on a
    batch that kills workers, to find the part that does; the caller then gets an outcome for every part, each with this task's key.
    """

    service: str
    key: int
    payload: Any
    split: Callable[[Any], Sequence[Any]] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task has no result: it killed workers ("quarantined"), or was put off with RetryLater too often ("unavailable")."""

    kind: Literal["quarantined", "unavailable"]
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task (or of the part of it that `task.payload` holds): `result`, unless `failure` says why there is none.

    `replica` names who did it, as "<service>/<number>@<node>"; `seconds` is the time in `run`.
    """

    task: Task
    result: Any
    failure: Failure | None
    replica: str
    seconds: float


class Source(Protocol):
    """Where tasks come from; asked by the pool, in the thread that iterates over `Pool.run`, between two outcomes.

    Look-ahead is bounded, so a source may hold ten million tasks that it makes only when asked. It may make new tasks of outcomes.
    """

    def next(self, service: str) -> Task | None:
        """Return the next task for `service`, or None when there is none now (the pool asks again)."""
        ...

    def exhausted(self, service: str) -> bool:
        """Return whether `next(service)` will be None from now on, whatever comes back of the tasks in flight."""
        ...


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """Live figures of a service.

    Replicas: `ready`, `loading` (placed, not ready yet), `unplaced` (waiting for resources). Tasks: `waiting` (of the look-ahead),
    `in_flight`, `delayed` (RetryLater), `suspects` (waiting to be run apart, because a worker died of one of them). Since the run began:
    `finished` tasks, `failed` ones, `deaths` of replicas (those of their nodes included). `waits_for` says in words what is missing
    ("1 replica with 4 CPUs, 1 GPU; the cluster has 2 CPUs, free: 1 CPU"), or is empty.
    """

    service: str
    ready: int
    loading: int
    unplaced: int
    waiting: int
    in_flight: int
    delayed: int
    suspects: int
    finished: int
    failed: int
    deaths: int
    waits_for: str
