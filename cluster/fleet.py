"""Which replicas there are: started as there is work and room, handed from one service to another, missed when they do not come."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal

from cluster.dispatch import Dispatcher
from cluster.errors import ClusterError
from cluster.links import Link, Place, Transport
from cluster.replica import Orders
from cluster.work import Service, ServiceStatus

log = logging.getLogger(__name__)

# When a replica that waits for resources is mentioned first, and how often then.
MENTION_AFTER_S = 3.0
MENTION_EVERY_S = 30.0
# Starts of a service's replicas in a row that may fail while it has none that works.
MAX_FAILED_STARTS = 3
LONGEST_PAUSE_S = 60.0
# How long workers may take to free what they hold when they are released.
CLOSE_S = 5.0
RESOURCES_EVERY_S = 2.0
# How much longer than its task may take a replica may be silent: then even its event loop hangs.
SILENCE_S = 10.0

Kind = Literal["place", "load", "exchange", "close"]


@dataclass(eq=False, slots=True)
class Member:
    """A replica as the driver sees it. `since` is when it came into its state; `heard` when it last said or was told something."""

    name: str
    service: Service
    link: Link
    since: float
    heard: float
    lane: Lane | None
    state: Literal["unplaced", "loading", "ready", "closing"] = "unplaced"
    place: Place | None = None
    turn: int = 0
    gone: bool = False

    def __str__(self) -> str:
        return f"{self.service.name}/{self.name}@{self.place.node if self.place else '?'}"


@dataclass(eq=False, slots=True)
class Lane:
    """A service in a run: its tasks, its replicas, and what happened to them."""

    service: Service
    work: Dispatcher
    members: dict[str, Member] = field(default_factory=dict)
    exhausted: bool = False
    finished: int = 0
    failed: int = 0
    deaths: int = 0
    deaths_in_a_row: int = 0
    failed_starts: int = 0
    not_before: float = 0.0
    short_since: float = 0.0
    mentioned: float = float("-inf")

    def count(self, state: str) -> int:
        """Return how many replicas are in `state`."""
        return sum(member.state == state for member in self.members.values())

    @property
    def placed(self) -> int:
        """Replicas that have their resources."""
        return len(self.members) - self.count("unplaced")

    @property
    def needed(self) -> int:
        """How many replicas have something to do: never more than there are tasks."""
        return min(self.service.max_replicas, self.work.num_open)

    @property
    def is_short(self) -> bool:
        """Whether it has fewer replicas than it must have before others get more."""
        return self.placed < min(self.service.min_replicas, self.needed)

    def spares(self, member: Member) -> bool:
        """Return whether it has nothing left for `member` to do."""
        work = self.work
        return self.exhausted and not (work.num_waiting or work.num_delayed or work.num_suspects) and not work.held(member.name)


class Fleet:
    """All replicas of a pool. What they answer arrives in `events` as (member, what was asked, future)."""

    def __init__(self, ray: Transport, threads: Transport) -> None:
        self.events: SimpleQueue[tuple[Member, Kind, Future[Any]]] = SimpleQueue()
        self.members: dict[str, Member] = {}
        self._transports: Mapping[bool, Transport] = {False: ray, True: threads}
        self._next = 0
        self._resources: tuple[float, dict[str, float], dict[str, float]] | None = None

    def ask(self, member: Member, kind: Kind, future: Future[Any]) -> None:
        """Let the answer to a question arrive in `events`."""
        future.add_done_callback(lambda done: self.events.put((member, kind, done)))

    def exchange(self, member: Member, tasks: list[tuple[int, Any]], recall: int = 0) -> None:
        """Send `tasks` to a replica, or recall some, and ask for what is finished."""
        member.turn += 1
        member.heard = time.monotonic()
        self.ask(member, "exchange", member.link.exchange(member.turn, tasks, recall))

    def load(self, member: Member, now: float) -> None:
        """Let a replica that is placed load what its service serves."""
        member.state, member.since = "loading", now
        self.ask(member, "load", member.link.load(member.service.factory, Orders.of(member.service)))

    def remove(self, member: Member) -> None:
        """End a replica at once."""
        member.gone = True
        self.members.pop(member.name, None)
        if member.lane is not None:
            member.lane.members.pop(member.name, None)
        member.link.kill()

    def scale(self, lanes: list[Lane], now: float) -> None:
        """Bring the number of replicas nearer to what the work asks for.

        Idle replicas are handed over first. Then every service gets its minimum, then they grow together, each at most doubling at a
        time, so that Ray never holds many requests that nobody could fill. Idle replicas end when others wait for resources.
        """
        for member in [member for member in self.members.values() if member.state == "closing" and now - member.since > CLOSE_S]:
            self.remove(member)
        spare = [member for member in self.members.values() if member.state != "closing" and (not member.lane or _is_idle(member))]
        short = any(lane.is_short for lane in lanes)
        for lane in lanes:
            if short and not lane.is_short:
                self._drop_unplaced(lane)
            self._adopt(lane, spare, now)
        for member in [member for member in spare if member.state == "unplaced"]:
            self.remove(member)  # it was asked for by an earlier run
            spare.remove(member)
        for lane in lanes:
            while len(lane.members) < min(lane.service.min_replicas, lane.needed) and now >= lane.not_before:
                self._start(lane, now)
        if not any(lane.is_short for lane in lanes):
            for lane in sorted(lanes, key=lambda lane: len(lane.members)):
                allowed = max(1, lane.placed) - lane.count("unplaced")
                for _ in range(min(allowed, lane.needed - len(lane.members)) if now >= lane.not_before else 0):
                    self._start(lane, now)
        if any(lane.count("unplaced") for lane in lanes if not lane.service.in_driver):
            for member in spare:
                if member.state == "ready" and not member.service.in_driver:
                    self.release(member, now)

    def park(self, member: Member) -> None:
        """Leave a replica that works to whoever needs one."""
        assert member.lane is not None
        member.lane.members.pop(member.name)
        member.state, member.lane = "ready", None

    def release(self, member: Member, now: float) -> None:
        """End a replica that has nothing to do, after its worker freed what it holds."""
        if member.lane is not None:
            member.lane.members.pop(member.name)
            member.lane.work.remove_replica(member.name)
            member.lane = None
        member.state, member.since = "closing", now
        self.ask(member, "close", member.link.close())

    def late(self, lanes: list[Lane], now: float) -> ClusterError | None:
        """Return an error if a replica is not ready in time. Waiting for what other services of the run will free is no fault."""
        for lane in lanes:
            limit = lane.service.start_timeout_s
            for member in lane.members.values():
                if member.state == "loading" and now - member.since > limit:
                    return ClusterError(
                        f"replica {member} was not ready after {limit:g} s: it has its processors and is still loading; "
                        "if it only needs longer, raise start_timeout_s"
                    )
            if not lane.is_short or any(other.placed and not other.service.in_driver for other in lanes if other is not lane):
                lane.short_since = now
            elif now - lane.short_since > limit:
                return ClusterError(
                    f"service {lane.service.name} was not ready after {limit:g} s: it waits for {self.waits_for(lane, now)}; "
                    "ask for less for each replica, free machines or add some"
                )
        return None

    def silent(self, now: float) -> list[Member]:
        """Return the replicas that should have said something by now."""
        return [
            member
            for member in self.members.values()
            if member.state == "ready"
            and member.lane is not None
            and member.service.task_timeout_s is not None
            and now - member.heard > member.service.task_timeout_s + SILENCE_S
            and member.lane.work.held(member.name)
        ]

    def mention_waiting(self, lanes: list[Lane], now: float) -> None:
        """Log what is waited for, a few seconds after the wait began and every half a minute."""
        for lane in lanes:
            began = min((member.since for member in lane.members.values() if member.state == "unplaced"), default=now)
            if now - began > MENTION_AFTER_S and now - lane.mentioned > MENTION_EVERY_S:
                lane.mentioned = now
                level = logging.WARNING if lane.is_short else logging.INFO
                log.log(level, "%s waits for %s", lane.service.name, self.waits_for(lane, now))

    def waits_for(self, lane: Lane, now: float) -> str:
        """Return in words what `lane` waits for, or nothing."""
        unplaced = lane.count("unplaced")
        if not unplaced or lane.service.in_driver:
            return ""
        if self._resources is None or now - self._resources[0] > RESOURCES_EVERY_S:
            self._resources = (now, *self._transports[False].resources())
        _, total, free = self._resources
        wanted = {"CPU": lane.service.cpus, "GPU": lane.service.gpus}
        text = (
            f"{unplaced} replica{'s' * (unplaced > 1)} with {_amounts(wanted)}{' each' * (unplaced > 1)}; "
            f"the cluster has {_amounts(total)}, free: {_amounts(free)}"
        )
        if all(free[kind] >= number for kind, number in wanted.items()):
            where = f" (python={lane.service.python}: is it there on every node, with the same Ray?)" if lane.service.python else ""
            return f"{text}: its process is still starting{where}, or no single node has these"
        return text

    def status(self, lane: Lane, now: float) -> ServiceStatus:
        """Return live figures of a service."""
        work = lane.work
        return ServiceStatus(
            service=lane.service.name,
            ready=lane.count("ready"),
            loading=lane.count("loading"),
            unplaced=lane.count("unplaced"),
            waiting=work.num_waiting,
            in_flight=work.num_leased,
            delayed=work.num_delayed,
            suspects=work.num_suspects,
            finished=lane.finished,
            failed=lane.failed,
            deaths=lane.deaths,
            waits_for=self.waits_for(lane, now),
        )

    def start_failed(self, lane: Lane, reason: str, now: float) -> ClusterError | None:
        """Note that a replica did not become ready. The next one waits a little longer; returns an error when that happens again and again.

        As long as another replica works, one bad node must not end the run.
        """
        lane.failed_starts += 1
        if lane.failed_starts > 1:
            lane.not_before = now + min(LONGEST_PAUSE_S, 2.0 ** (lane.failed_starts - 2))
        if lane.failed_starts < MAX_FAILED_STARTS or lane.count("ready"):
            return None
        return ClusterError(
            f"service {lane.service.name}: {lane.failed_starts} replicas in a row failed while they started; the last one: {reason}. "
            "If memory ran out, use fewer replicas or a smaller model"
        )

    def _start(self, lane: Lane, now: float) -> None:
        self._next += 1
        link = self._transports[lane.service.in_driver].start(lane.service)
        member = Member(str(self._next), lane.service, link, now, now, lane)
        self.members[member.name] = lane.members[member.name] = member
        self.ask(member, "place", link.place())

    def _adopt(self, lane: Lane, spare: list[Member], now: float) -> None:
        """Hand over what `lane` can use of `spare`; one that works takes the place of one that is still asked for."""
        fitting = [member for member in spare if member.service.flavour == lane.service.flavour and member.lane is not lane]
        unplaced = [member for member in lane.members.values() if member.state == "unplaced"]
        for member in sorted(fitting, key=lambda member: member.state != "ready"):
            if len(lane.members) >= lane.needed:
                if not unplaced or member.state != "ready":
                    return
                self.remove(unplaced.pop())
            if member.state == "loading":
                continue  # it is another spec; it can be had when it is done
            if member.lane is not None:
                member.lane.members.pop(member.name)
                member.lane.work.remove_replica(member.name)
            spare.remove(member)
            member.lane, member.service = lane, lane.service
            lane.members[member.name] = member
            if member.state == "ready":
                self.load(member, now)

    def _drop_unplaced(self, lane: Lane) -> None:
        """Ask for no more than the minimum, while another service has less than that."""
        unplaced = [member for member in lane.members.values() if member.state == "unplaced"]
        for member in unplaced[: max(0, len(lane.members) - lane.service.min_replicas)]:
            self.remove(member)


def _is_idle(member: Member) -> bool:
    return member.state == "ready" and member.lane is not None and member.lane.spares(member)


def _amounts(amounts: Mapping[str, float]) -> str:
    """Return for example "4 CPUs, 1 GPU"."""
    return ", ".join(f"{number:g} {kind}{'' if number == 1 else 's'}" for kind, number in _shown(amounts)) or "nothing"


def _shown(amounts: Mapping[str, float]) -> Iterable[tuple[str, float]]:
    return ((kind, number) for kind, number in amounts.items() if number or kind == "CPU")
