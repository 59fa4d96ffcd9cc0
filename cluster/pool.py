"""A pool of replicas that pull tasks: whichever is free takes the next one, of whatever service, on whatever node.

What always holds: every task taken from the source reaches the caller exactly once (as a result, as a failure with its reason, or in
parts if it was split), or `run` raises, or it was told to stop and says so (`drained`). No task is leased to two replicas at a time. In
flight and look-ahead are bounded. The death of a node or the doing of the driver is never held against a task.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from types import TracebackType
from typing import Any

from cluster.dispatch import Dispatcher
from cluster.errors import ClusterError
from cluster.fleet import CLOSE_S, Fleet, Kind, Lane, Member
from cluster.links import Death, ThreadTransport, Transport
from cluster.ray_replicas import RayTransport
from cluster.replica import Reply, Trouble
from cluster.work import Failure, Outcome, Service, ServiceStatus, Source, Task

log = logging.getLogger(__name__)

# How long the driver sleeps at most before it asks the source and `stop` again, and how often it looks after the replicas.
POLL_S = 0.2
LOOK_AFTER_S = 0.1


class Pool:
    """Use it in a `with`. Services that are not `in_driver` need an open Ray session.

    Replicas outlive a `run`: the next one uses those of an equal flavour, after loading the new spec. `ray` and `threads` say how replicas
    are had; tests put their own there.
    """

    def __init__(self, ray: Transport | None = None, threads: Transport | None = None) -> None:
        self._fleet = Fleet(ray or RayTransport(), threads or ThreadTransport())
        self._run: _Run | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(CLOSE_S if error is None else 0.0)

    def close(self, patience_s: float = CLOSE_S) -> None:
        """End all replicas, after letting their workers free what they hold for at most `patience_s`."""
        members = list(self._fleet.members.values())
        if patience_s > 0:
            wait([member.link.close() for member in members if member.state == "ready"], timeout=patience_s)
        for member in members:
            self._fleet.remove(member)

    def run(
        self,
        services: Sequence[Service],
        source: Source,
        stop: Callable[[], bool] | threading.Event | None = None,
        drain_timeout_s: float = 60.0,
    ) -> Iterator[Outcome]:
        """Yield the outcome of every task of `source`, in the order in which they are done.

        `stop` (asked several times a second) ends the run early: nothing is begun any more, what is in a worker is yielded for at most
        `drain_timeout_s`, then the iteration ends and `drained` is True. Tasks that were not yielded then are the caller's to give again.

        Raises, after the tasks in flight were yielded in the same way: a worker's exception that its service calls fatal, as it was raised
        (the replica's traceback is its cause); ClusterError when replicas do not start or workers die again and again, with the last
        reason. Closing the iterator early abandons what is in flight.
        """
        asked = stop.is_set if isinstance(stop, threading.Event) else stop
        run = self._run = _Run(self._fleet, services, source, asked or (lambda: False), drain_timeout_s)
        return self._iterate(run)

    def _iterate(self, run: _Run) -> Iterator[Outcome]:
        try:
            while True:
                while run.outcomes:
                    yield run.outcomes.popleft()
                if run.is_over():
                    break
                run.step()
            if run.failure is not None:
                raise run.failure
        finally:
            run.abandon()

    @property
    def drained(self) -> bool:
        """Whether the last `run` ended because of `stop`, before everything was done."""
        return self._run is not None and self._run.drained

    def status(self) -> list[ServiceStatus]:
        """Return live figures of every service of the run; cheap, for a progress line."""
        now = time.monotonic()
        return [self._fleet.status(lane, now) for lane in self._run.lanes.values()] if self._run else []

    @property
    def pids(self) -> list[int]:
        """Process ids of the replicas that are Ray actors and have been placed."""
        return [member.place.pid for member in self._fleet.members.values() if member.place is not None and member.place.pid is not None]


class _ReplicaError(Exception):
    """The traceback in the replica, as the cause of the error it sent."""


class _Run:
    """One `Pool.run`."""

    def __init__(self, fleet: Fleet, services: Sequence[Service], source: Source, stop: Callable[[], bool], drain_timeout_s: float) -> None:
        self.lanes = {service.name: Lane(service, Dispatcher(service)) for service in services}
        assert len(self.lanes) == len(services), "two services have the same name"
        self.outcomes: deque[Outcome] = deque()
        self.failure: Exception | None = None
        self.drained = False
        self._fleet = fleet
        self._source = source
        self._stop = stop
        self._drain_timeout_s = drain_timeout_s
        self._drain_until: float | None = None
        self._looked = float("-inf")
        for lane in self.lanes.values():
            lane.short_since = time.monotonic()
        self._unasked: dict[Member, None] = {}  # replicas that have nothing to answer at the moment; an ordered set
        self._abandoned = False

    def step(self) -> None:
        """Lease what can be leased, wait until something happens, and note it."""
        self._handle_events(0.0)
        self._lease()
        self._handle_events(self._patience())
        self._lease()

    def is_over(self) -> bool:
        """Return whether nothing is in flight and nothing will be."""
        self._check_stop()
        is_done = all(self._is_exhausted(lane) and not lane.work.num_open for lane in self.lanes.values())
        if self._drain_until is None:
            return is_done
        if any(lane.work.num_leased for lane in self.lanes.values()) and time.monotonic() < self._drain_until:
            return False
        self.drained = self.failure is None and not is_done
        return True

    def abandon(self) -> None:
        """Leave the replicas to the next run. What is still in flight is wanted by nobody, and a busy replica is not to be had back."""
        if self._abandoned:
            return
        self._abandoned = True
        for lane in self.lanes.values():
            for member in list(lane.members.values()):
                if member.state == "ready" and lane.work.held(member.name):
                    self._fleet.remove(member)
                member.lane = None
            lane.members = {}

    def _check_stop(self) -> None:
        if self._drain_until is None and self._stop():
            self._begin_drain()

    def _begin_drain(self) -> None:
        if self._drain_until is None:
            self._drain_until = time.monotonic() + self._drain_timeout_s

    def _fail(self, error: Exception) -> None:
        self.failure = self.failure or error
        self._begin_drain()

    def _patience(self) -> float:
        if self.outcomes:
            return 0.0
        dues = [due for lane in self.lanes.values() if (due := lane.work.next_due()) is not None]
        return max(0.0, min([POLL_S, *(due - time.monotonic() for due in dues)]))

    def _lease(self) -> None:
        self._check_stop()
        now = time.monotonic()
        if self._drain_until is None:
            for lane in self.lanes.values():
                self._pull(lane)
            if now - self._looked > LOOK_AFTER_S:
                self._looked = now
                self._look_after(now)
            for lane in self.lanes.values():
                self._assign(lane, now)
        else:
            for lane in self.lanes.values():
                self._recall(lane, lane.work.recall_all())
        for member in self._unasked:
            self._fleet.exchange(member, [])
        self._unasked.clear()

    def _assign(self, lane: Lane, now: float) -> None:
        starting = len(lane.members) - lane.count("ready") if lane.work.num_waiting else 0
        for name, leases in lane.work.assign(now, starting).items():
            member = lane.members[name]
            self._unasked.pop(member, None)
            self._fleet.exchange(member, [(lease.number, lease.task.payload) for lease in leases])
        self._recall(lane, lane.work.recall())

    def _recall(self, lane: Lane, asked: dict[str, int]) -> None:
        for name, count in asked.items():
            member = lane.members[name]
            self._unasked.pop(member, None)
            self._fleet.exchange(member, [], count)

    def _pull(self, lane: Lane) -> None:
        if lane.exhausted:
            return
        for _ in range(lane.work.room()):
            task = self._source.next(lane.service.name)
            if task is None:
                self._is_exhausted(lane)
                return
            assert task.service == lane.service.name, f"a task of {task.service} for {lane.service.name}"
            lane.work.put(task)

    def _is_exhausted(self, lane: Lane) -> bool:
        lane.exhausted = lane.exhausted or self._source.exhausted(lane.service.name)
        return lane.exhausted

    def _look_after(self, now: float) -> None:
        lanes = list(self.lanes.values())
        self._fleet.scale(lanes, now)
        self._fleet.mention_waiting(lanes, now)
        error = self._fleet.late(lanes, now)
        if error is not None:
            self._fail(error)
        for member in self._fleet.silent(now):
            self._bury(member, Death("it hangs: it said nothing for longer than task_timeout_s allows", blameless=False))

    def _handle_events(self, patience_s: float) -> None:
        """Handle everything that has happened; wait for the first at most so long."""
        try:
            event = self._fleet.events.get(timeout=patience_s) if patience_s > 0 else self._fleet.events.get_nowait()
            while True:
                self._handle(*event)
                event = self._fleet.events.get_nowait()
        except queue.Empty:
            return

    def _handle(self, member: Member, kind: Kind, future: Future[Any]) -> None:
        if member.gone:
            return
        now = member.heard = time.monotonic()
        error = CancelledError() if future.cancelled() else future.exception()
        if kind == "close":
            self._fleet.remove(member)
        elif error is not None:
            self._bury(member, member.link.death(error))
        elif kind == "place":
            member.place = future.result()
            member.state = "ready"
            if member.lane is not None:
                self._fleet.load(member, now)
        elif kind == "load":
            self._note_loaded(member, future.result(), now)
        elif member.lane is not None:
            self._note_reply(member, member.lane, future.result(), now)

    def _note_loaded(self, member: Member, trouble: Trouble | None, now: float) -> None:
        if trouble is not None and trouble.error is None:
            self._bury(member, Death(trouble.text, blameless=False))
            return
        if trouble is not None and member.lane is not None:
            self._fail(_with_cause(trouble))
            self._fleet.park(member)  # it refused this spec, and may serve another one
            return
        member.state, member.since = "ready", now
        if member.lane is not None:
            member.lane.failed_starts = 0
            member.lane.work.add_replica(member.name)
            self._unasked[member] = None

    def _note_reply(self, member: Member, lane: Lane, reply: Reply, now: float) -> None:
        for number, result, seconds in reply.finished:
            task = lane.work.complete(member.name, number)
            lane.finished += 1
            lane.deaths_in_a_row = 0
            self.outcomes.append(Outcome(task, result, None, str(member), seconds))
        for number, reason, after_s in reply.delayed:
            given_up = lane.work.retry(member.name, number, reason, after_s, now)
            if given_up is not None:
                self._give_up(lane, member, *given_up)
        if reply.given_back is not None:
            lane.work.give_back(member.name, reply.given_back)
        if reply.turn == member.turn:
            self._unasked[member] = None
        if reply.trouble is not None:
            self._note_trouble(member, lane, reply.trouble)

    def _note_trouble(self, member: Member, lane: Lane, trouble: Trouble) -> None:
        if trouble.error is None:
            self._bury(member, Death(trouble.text, blameless=False), trouble.at_work)
            return
        for number in trouble.at_work:
            lane.work.complete(member.name, number)
        self._fail(_with_cause(trouble))

    def _bury(self, member: Member, death: Death, at_work: Sequence[int] | None = None) -> None:
        """Take note of a dead replica, and of what it died of."""
        lane, was_ready = member.lane, member.state == "ready"
        self._unasked.pop(member, None)
        self._fleet.remove(member)
        if lane is None:
            return
        lane.deaths += 1
        if self._drain_until is None:
            log.warning("replica %s died and is replaced: %s", member, death.reason)
        if not was_ready:
            error = None if death.blameless else self._fleet.start_failed(lane, death.reason, time.monotonic())
            if error is not None:
                self._fail(error)
            return
        for task, failure in lane.work.lose(member.name, death.reason, at_work, counts=not death.blameless):
            self._give_up(lane, member, task, failure)
        lane.deaths_in_a_row += not death.blameless
        if lane.deaths_in_a_row >= lane.service.max_deaths_in_a_row:
            self._fail(
                ClusterError(
                    f"service {lane.service.name}: {lane.deaths_in_a_row} workers in a row died with nothing finished in between; the last "
                    f"one: {death.reason}. If memory ran out, lower batch_size or what is in flight; what was finished is kept"
                )
            )

    def _give_up(self, lane: Lane, member: Member, task: Task, failure: Failure) -> None:
        lane.failed += 1
        self.outcomes.append(Outcome(task, None, failure, str(member), 0.0))


def _with_cause(trouble: Trouble) -> Exception:
    assert trouble.error is not None
    trouble.error.__cause__ = _ReplicaError(trouble.trace)  # for --debug
    return trouble.error
