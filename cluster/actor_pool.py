"""A pool of replicas: Ray actors that stay alive, serve one spec after another and pull units of work.

The result of every unit is yielded exactly once, whatever replicas die, or `map` raises. Whichever replica is free takes the next unit,
so a slow replica delays nobody. The death of a process and an exception of its code are different things: a dead replica is replaced and
its unit goes to another one, an exception ends the work and arrives at the caller as what it was.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from cluster.errors import ClusterError

Spec = TypeVar("Spec")
Unit = TypeVar("Unit")
Result = TypeVar("Result")
SpecIn = TypeVar("SpecIn", contravariant=True)
UnitIn = TypeVar("UnitIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)

log = logging.getLogger(__name__)

# How long the driver sleeps at most before it looks whether a replica takes too long to become ready.
POLL_S = 1.0


class Worker(Protocol[SpecIn, UnitIn, ResultOut]):
    """What runs inside a replica. The factory that makes it is pickled; the worker itself never leaves its process."""

    def load(self, spec: SpecIn) -> None:
        """Serve `spec` from now on; what was served before may be dropped."""
        ...

    def run(self, unit: UnitIn) -> ResultOut:
        """Work on one unit."""
        ...


class _Replica:
    """The actor's class."""

    def __init__(self) -> None:
        self._worker: Any = None

    def load(self, factory: Callable[[], Any], spec: Any) -> int:
        # The worker is made here and not in __init__, where Ray reports an exception as the death of the actor.
        if self._worker is None:
            self._worker = factory()
        self._worker.load(spec)
        return os.getpid()

    def run(self, unit: Any) -> Any:
        return self._worker.run(unit)


@dataclass
class _Slot:
    """A replica as the driver sees it. `pending` is the call it works on: a load, or a unit if the dispatcher leased it one."""

    actor: Any
    pending: Any
    since: float
    pid: int | None = None


class ActorPool(Generic[Spec, Unit, Result]):
    """`num_replicas` workers made by `factory`, with `cpus` and `gpus` each. Use it in a `with`; needs an open Ray session.

    A unit that has killed `max_attempts` replicas is given up. A replica that is not ready to work `start_timeout_s` after `load` is an
    error, and so are `max_attempts` deaths in a row while loading.
    """

    def __init__(
        self,
        factory: Callable[[], Worker[Spec, Unit, Result]],
        num_replicas: int,
        cpus: float = 1,
        gpus: float = 0,
        max_attempts: int = 2,
        start_timeout_s: float = 600.0,
    ) -> None:
        assert num_replicas > 0
        self._factory = factory
        self._num_replicas = num_replicas
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        self._max_attempts = max_attempts
        self._start_timeout_s = start_timeout_s
        self._slots: dict[int, _Slot] = {}
        self._spec: Spec | None = None
        self._deaths_while_loading = 0
        self._work: Dispatcher | None = None

    def __enter__(self) -> ActorPool[Spec, Unit, Result]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all replicas."""
        for number in list(self._slots):
            self._kill(number)

    @property
    def pids(self) -> list[int]:
        """Process ids of the replicas that have been ready."""
        return [slot.pid for slot in self._slots.values() if slot.pid is not None]

    def load(self, spec: Spec) -> None:
        """Let every replica serve `spec` from now on. Returns at once; an error shows in `map`."""
        self._spec = spec
        self._work = None
        self._deaths_while_loading = 0
        for number in range(self._num_replicas):
            self._load(number)

    def map(self, units: Mapping[int, Unit]) -> Iterator[tuple[int, Result]]:
        """Yield (index, result) of every unit exactly once, in the order in which they are done.

        Raises what a worker's `load` or `run` raised, as it was raised, and ClusterError when a unit was given up or replicas do not start;
        both after the results of the units in flight were yielded.
        """
        assert self._spec is not None, "load() comes before map()"
        work = self._work = Dispatcher(units, self._max_attempts)
        failure: Exception | None = None
        for number in range(self._num_replicas):
            if number not in self._slots:
                self._load(number)
        try:
            while not work.is_finished():
                self._hand_out(work, units)
                for number in self._answered():
                    unit = work.unit_of(number)
                    try:
                        result = self._collect(number)
                    except _Died as death:
                        reason = self._replace(number, work, death)
                        failure = failure or reason
                    except _Raised as raised:
                        if unit is not None:
                            work.complete(number)
                        work.stop()
                        failure = failure or raised.error
                    else:
                        if unit is not None:
                            work.complete(number)
                            yield unit, result
                late = self._late(work)
                if late is not None:
                    work.stop()
                    failure = failure or late
        finally:
            self._abandon(work)
        if failure is not None:
            raise failure

    def _hand_out(self, work: Dispatcher, units: Mapping[int, Unit]) -> None:
        for number, slot in self._slots.items():
            if slot.pending is None:
                unit = work.lease(number)
                if unit is not None:
                    slot.pending = slot.actor.run.remote(units[unit])
                    slot.since = time.monotonic()

    def _answered(self) -> list[int]:
        import ray

        waiting = {slot.pending: number for number, slot in self._slots.items() if slot.pending is not None}
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL_S)
        return [waiting[ref] for ref in ready]

    def _collect(self, number: int) -> Any:
        import ray
        from ray import exceptions

        slot = self._slots[number]
        pending, slot.pending = slot.pending, None
        try:
            value = ray.get(pending)
        except exceptions.RayTaskError as error:
            cause = error.cause
            if not isinstance(cause, Exception):
                raise  # it could not be pickled; Ray's own error has its text
            cause.__cause__ = error  # keeps the replica's traceback for --debug
            raise _Raised(cause) from None
        except (exceptions.RayActorError, exceptions.OutOfMemoryError, exceptions.WorkerCrashedError, exceptions.ObjectLostError) as error:
            raise _Died(f"process {slot.pid or '(not ready yet)'}: {_brief(str(error))}") from error
        if slot.pid is None:
            slot.pid = value
        self._deaths_while_loading = 0
        return value

    def _replace(self, number: int, work: Dispatcher, death: _Died) -> ClusterError | None:
        """Put a new replica in the place of a dead one. Returns an error when that has been done often enough."""
        unit = work.unit_of(number)
        given_up = None if unit is None else work.lose(number)
        self._kill(number)
        if given_up is not None:
            return ClusterError(
                f"work unit {given_up} has ended {self._max_attempts} replicas and was given up; the last one: {death}. "
                "If memory ran out, lower batch_size; what was finished is kept"
            )
        if unit is None:
            self._deaths_while_loading += 1
            if self._deaths_while_loading >= self._max_attempts:
                work.stop()
                return ClusterError(
                    f"{self._deaths_while_loading} replicas in a row died while they started; the last one: {death}. "
                    "If memory ran out, use fewer replicas or a smaller model"
                )
        if work.is_stopped:
            return None
        log.warning("a replica died%s and is replaced: %s", "" if unit is None else f" at work unit {unit}", death)
        self._load(number)
        return None

    def _late(self, work: Dispatcher) -> ClusterError | None:
        now = time.monotonic()
        for number, slot in self._slots.items():
            if slot.pending is not None and work.unit_of(number) is None and now - slot.since > self._start_timeout_s:
                return ClusterError(
                    f"a replica with {self._options['num_cpus']:g} CPUs and {self._options['num_gpus']:g} GPUs was not ready after "
                    f"{self._start_timeout_s:g} s: either no machine of the cluster has these free, or its model takes longer to load"
                )
        return None

    def _load(self, number: int) -> None:
        import ray

        slot = self._slots.get(number)
        actor = slot.actor if slot else ray.remote(_Replica).options(**self._options).remote()
        pending = actor.load.remote(self._factory, self._spec)
        self._slots[number] = _Slot(actor, pending, time.monotonic(), slot.pid if slot else None)

    def _kill(self, number: int) -> None:
        import ray

        ray.kill(self._slots.pop(number).actor, no_restart=True)

    def _abandon(self, work: Dispatcher) -> None:
        # Only when the caller stopped early or was interrupted: what these replicas work on is wanted by nobody.
        # A generator can be closed late, by the garbage collector; by then the replicas may work on something else.
        for number in list(self._slots) if self._work is work else []:
            if work.unit_of(number) is not None:
                self._kill(number)


def _brief(text: str) -> str:
    """Return what Ray says about a death, without its ids and its general advice."""
    line = " ".join(text.split())
    detail = line.partition("Worker exit detail: ")[2] or line
    return detail.partition(" Some common causes")[0][:300].rstrip(". ")


class _Died(Exception):
    """The replica's process is gone."""


class _Raised(Exception):
    """The replica's code raised `error`."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Dispatcher:
    """Hands units to replicas that ask (`lease`), takes them back when they are done (`complete`) or the replica died (`lose`)."""

    def __init__(self, units: Iterable[int], max_attempts: int) -> None:
        assert max_attempts > 0
        self._waiting = deque(units)
        self._leased: dict[int, int] = {}
        self._deaths: Counter[int] = Counter()
        self._max_attempts = max_attempts
        self._stopped = False

    def lease(self, replica: int) -> int | None:
        """Return the next unit for `replica`, or None when nothing waits or the work was stopped."""
        assert replica not in self._leased, f"replica {replica} has a unit already"
        if self._stopped or not self._waiting:
            return None
        self._leased[replica] = self._waiting.popleft()
        return self._leased[replica]

    def complete(self, replica: int) -> int:
        """Return the unit that `replica` has completed."""
        return self._leased.pop(replica)

    def lose(self, replica: int) -> int | None:
        """Take back the unit of a replica that died: it goes to the front of the queue.

        Returns the unit's number if it has now killed `max_attempts` replicas; then it is given up and no unit is leased any more.
        """
        unit = self._leased.pop(replica)
        self._deaths[unit] += 1
        if self._deaths[unit] >= self._max_attempts:
            self.stop()
            return unit
        self._waiting.appendleft(unit)
        return None

    def stop(self) -> None:
        """Lease nothing any more; units in flight may still complete."""
        self._stopped = True

    @property
    def is_stopped(self) -> bool:
        """Return whether nothing will be leased any more."""
        return self._stopped

    def unit_of(self, replica: int) -> int | None:
        """Return the unit leased to `replica`."""
        return self._leased.get(replica)

    def is_finished(self) -> bool:
        """Return whether nothing is in flight and nothing will be leased."""
        return not self._leased and (self._stopped or not self._waiting)
