"""Who works on which task of one service: the pool's bookkeeping, without processes and without a clock (times are passed in).

A task is in exactly one place: waiting, delayed (until its time has come), suspect (to be run apart), leased to one replica, or given back
to the caller. A replica holds at most `capacity + prefetch` tasks. Tasks that were with a worker when it died are suspects: they run apart
from all others, in groups; a group that kills again is divided, so the one that kills is found after a few deaths and the others only lose
time. A task that was alone in `max_deaths` workers that died is split if it is a batch, and quarantined if it is not.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from cluster.work import Failure, Service, Task

# Into how many groups the suspects of one death are divided: few groups cost more deaths, many cost emptier engines.
GROUPS = 4


@dataclass(slots=True, eq=False)
class Lease:
    """A task on its way. `number` names it between driver and replica; `deaths` counts workers that died while it was alone in them."""

    number: int
    task: Task
    deaths: int = 0
    suspect: bool = False
    retries: int = 0


@dataclass(slots=True)
class _Holding:
    """What a replica has. `apart`: these are suspects, and nothing is added to them. `recalled`: asked back."""

    leases: dict[int, Lease] = field(default_factory=dict)
    apart: bool = False
    recalled: int = 0


class Dispatcher:
    """Takes tasks in (`put`), leases them (`assign`) and gets to know what became of each (`complete`, `retry`, `lose`)."""

    def __init__(self, service: Service) -> None:
        self._capacity = service.capacity
        self._prefetch = service.num_prefetched
        self._max_retries = service.max_retries
        self._max_deaths = service.max_deaths
        self._max_replicas = service.max_replicas
        self._waiting: deque[Lease] = deque()
        self._delayed: list[tuple[float, int, Lease]] = []
        self._suspects: deque[list[Lease]] = deque()
        self._replicas: dict[str, _Holding] = {}
        self._hungry: dict[str, None] = {}  # replicas (an ordered set) that could take more; the others need not be looked at
        self._next_number = 0
        self._num_leased = 0

    def add_replica(self, replica: str) -> None:
        """Lease tasks to `replica` from now on."""
        assert replica not in self._replicas, f"{replica} is there already"
        self._replicas[replica] = _Holding()
        self._hungry[replica] = None

    def remove_replica(self, replica: str) -> None:
        """Lease nothing to `replica` any more; it must hold nothing."""
        assert not self._replicas[replica].leases, f"{replica} holds tasks"
        del self._replicas[replica]
        self._hungry.pop(replica, None)

    def put(self, task: Task) -> None:
        """Take a task in."""
        self._waiting.append(self._lease(task))

    def room(self) -> int:
        """Return how many tasks should be put in before the next `assign`: enough to fill every replica twice over, no more.

        Delayed tasks count, so an endpoint that is down does not draw the whole source in.
        """
        wanted = self._max_replicas + len(self._replicas) * 4 * self._prefetch + len(self._hungry) * self._capacity
        return max(0, wanted - len(self._waiting) - len(self._delayed))

    def assign(self, now: float, num_starting: int = 0) -> dict[str, list[Lease]]:
        """Lease what is due and return it by replica.

        Every free slot is filled, evenly if the tasks are too few for all. Beyond its capacity a replica gets tasks only while many wait,
        fewer as they run out, and after leaving enough for `num_starting` replicas that will soon be there: a task that waits at a busy
        replica at the end of the work would hold up the end.
        """
        self._release_delayed(now)
        given: dict[str, list[Lease]] = {}
        if self._suspects:
            self._assign_suspects(given)
        if self._waiting and self._hungry:
            self._fill_slots(given)
            self._prefetch_more(given, num_starting)
        return given

    def recall(self) -> dict[str, int]:
        """Return who should give back how many tasks that wait at its side, because others have nothing to do. To be called after `assign`.

        Whatever comes of that is told by `give_back`, also if it is nothing.
        """
        if self._waiting or not self._hungry:
            return {}
        free = sum(max(0, self._capacity - len(self._replicas[name].leases)) for name in self._hungry)
        return self._recall(free - sum(holding.recalled for holding in self._replicas.values())) if free else {}

    def recall_all(self) -> dict[str, int]:
        """Return the same for all that waits at a replica's side, because nothing more is to be begun."""
        return self._recall(self._num_leased)

    def give_back(self, replica: str, numbers: Collection[int]) -> None:
        """Take back tasks that `replica` had not begun.

        A replica that is not here was handed on while it answered its former service's recall: then it held nothing.
        """
        if replica not in self._replicas:
            assert not numbers, f"{replica} gives back {numbers}, but is not here"
            return
        self._replicas[replica].recalled = 0
        self._waiting.extendleft([self._take_back(replica, number) for number in reversed(list(numbers))])

    def complete(self, replica: str, number: int) -> Task:
        """Return the task `number`, which `replica` has done."""
        return self._take_back(replica, number).task

    def retry(self, replica: str, number: int, reason: str, after_s: float, now: float) -> tuple[Task, Failure] | None:
        """Put a task off until `now + after_s`. Returns it with its failure when that was done `max_retries` times before."""
        lease = self._take_back(replica, number)
        lease.retries += 1
        if lease.retries > self._max_retries:
            return lease.task, Failure("unavailable", f"put off {self._max_retries} times; the last reason: {reason}")
        heapq.heappush(self._delayed, (now + max(0.0, after_s), lease.number, lease))
        return None

    def lose(self, replica: str, reason: str, at_work: Collection[int] | None = None, *, counts: bool = True) -> list[tuple[Task, Failure]]:
        """Remove a replica that died and take its tasks back. Returns those that are given up, with the failure.

        `at_work` are the tasks (by number) it may have died of; None: all it had. With `counts` False (its node died, or the driver ended
        it) nothing is held against any of them.
        """
        holding = self._replicas.pop(replica)
        self._hungry.pop(replica, None)
        self._num_leased -= len(holding.leases)
        leases = list(holding.leases.values())
        suspected = set() if not counts else set(holding.leases) if at_work is None else set(at_work)
        accused = [lease for lease in leases if lease.number in suspected]
        innocent = [lease for lease in leases if lease.number not in suspected]
        if holding.apart:
            if innocent:
                self._suspects.appendleft(innocent)
        else:
            self._waiting.extendleft(reversed(innocent))
        return self._accuse(accused, reason)

    def held(self, replica: str) -> int:
        """Return how many tasks `replica` has."""
        return len(self._replicas[replica].leases)

    def next_due(self) -> float | None:
        """Return when the next delayed task is due."""
        return self._delayed[0][0] if self._delayed else None

    @property
    def num_waiting(self) -> int:
        """Tasks that could be leased at once."""
        return len(self._waiting)

    @property
    def num_delayed(self) -> int:
        """Tasks that wait for their time."""
        return len(self._delayed)

    @property
    def num_suspects(self) -> int:
        """Tasks that wait to be run apart."""
        return sum(map(len, self._suspects))

    @property
    def num_leased(self) -> int:
        """Tasks in flight."""
        return self._num_leased

    @property
    def num_open(self) -> int:
        """Tasks taken in and not given back yet."""
        return len(self._waiting) + len(self._delayed) + self.num_suspects + self._num_leased

    def _lease(self, task: Task, deaths: int = 0) -> Lease:
        self._next_number += 1
        return Lease(self._next_number, task, deaths, suspect=deaths > 0)

    def _give(self, replica: str, leases: list[Lease], given: dict[str, list[Lease]]) -> None:
        holding = self._replicas[replica]
        holding.leases.update((lease.number, lease) for lease in leases)
        self._num_leased += len(leases)
        given.setdefault(replica, []).extend(leases)
        if holding.apart or len(holding.leases) >= self._capacity + self._prefetch:
            self._hungry.pop(replica, None)

    def _take_back(self, replica: str, number: int) -> Lease:
        holding = self._replicas[replica]
        lease = holding.leases.pop(number)
        self._num_leased -= 1
        if not holding.leases:
            holding.apart = False
        if not holding.apart:
            self._hungry[replica] = None
        return lease

    def _release_delayed(self, now: float) -> None:
        while self._delayed and self._delayed[0][0] <= now:
            lease = heapq.heappop(self._delayed)[2]
            if lease.suspect:
                self._suspects.append([lease])
            else:
                self._waiting.append(lease)

    def _assign_suspects(self, given: dict[str, list[Lease]]) -> None:
        for replica in [name for name in self._hungry if not self._replicas[name].leases]:
            if not self._suspects:
                return
            self._replicas[replica].apart = True
            self._give(replica, self._suspects.popleft(), given)

    def _fill_slots(self, given: dict[str, list[Lease]]) -> None:
        free = {name: self._capacity - len(self._replicas[name].leases) for name in self._hungry}
        free = {name: slots for name, slots in free.items() if slots > 0}
        if len(self._waiting) >= sum(free.values()):
            for name, slots in free.items():
                self._give(name, self._next_waiting(slots), given)
            return
        # Too few for all: one by one to the replica with most free slots, so that all end at about the same time.
        emptiest = [(-slots, name) for name, slots in free.items()]
        heapq.heapify(emptiest)
        while self._waiting:
            negative, name = heapq.heappop(emptiest)
            self._give(name, self._next_waiting(1), given)
            heapq.heappush(emptiest, (negative + 1, name))

    def _prefetch_more(self, given: dict[str, list[Lease]], num_starting: int) -> None:
        sharers = 2 * (len(self._replicas) + num_starting)
        reserved = num_starting * self._capacity
        for name in list(self._hungry):
            share = (len(self._waiting) - reserved) // sharers
            if share <= 0:
                return
            free = self._capacity + self._prefetch - len(self._replicas[name].leases)
            self._give(name, self._next_waiting(min(free, share)), given)

    def _recall(self, wanted: int) -> dict[str, int]:
        asked: dict[str, int] = {}
        for name, holding in self._replicas.items() if wanted > 0 else ():
            excess = min(wanted, len(holding.leases) - self._capacity)
            if excess > 0 and not holding.apart and not holding.recalled:
                holding.recalled = excess
                asked[name] = excess
                wanted -= excess
        return asked

    def _next_waiting(self, count: int) -> list[Lease]:
        return [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]

    def _accuse(self, accused: list[Lease], reason: str) -> list[tuple[Task, Failure]]:
        for lease in accused:
            lease.suspect = True
        if len(accused) != 1:
            size = max(1, -(-len(accused) // GROUPS))
            self._suspects.extend(accused[start : start + size] for start in range(0, len(accused), size))
            return []
        (lease,) = accused
        lease.deaths += 1
        if lease.deaths < self._max_deaths:
            self._suspects.append([lease])
            return []
        parts = list(lease.task.split(lease.task.payload)) if lease.task.split else []
        if len(parts) > 1:
            self._suspects.extend([self._lease(replace(lease.task, payload=part), lease.deaths)] for part in parts)
            return []
        return [(lease.task, Failure("quarantined", f"{lease.deaths} workers died while it was alone in them; the last one: {reason}"))]
