"""Who works on which unit: the pool's bookkeeping, without processes.

At any time every unit is in exactly one place: waiting, leased to one replica, completed, or given up. A replica has at most one unit.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable


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
