"""A pool of replicas that pull tasks: whichever is free takes the next one, of whatever service, on whatever node.

What always holds: every task taken from the source reaches the caller exactly once (as a result, as a failure with its reason, or in parts
if it was split), or `run` raises, or it was told to stop and says so (`drained`). No task is leased to two replicas at a time. In flight and
look-ahead are bounded. The death of a node or the doing of the driver is never held against a task.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from cluster.work import Outcome, Service, ServiceStatus, Source


class Pool:
    """Use it in a `with`. Services that are not `in_driver` need an open Ray session.

    Replicas outlive a `run`: the next one uses those of an equal flavour, after loading the new spec if it differs.
    """

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all replicas."""
        raise NotImplementedError

    def run(
        self,
        services: Sequence[Service],
        source: Source,
        stop: Callable[[], bool] | threading.Event | None = None,
        drain_timeout_s: float = 60.0,
    ) -> Iterator[Outcome]:
        """Yield the outcome of every task of `source`, in the order in which they are done.

        `stop` (asked several times a second) ends the run early: nothing is leased any more, what is in flight is yielded for at most
        `drain_timeout_s`, then the iteration ends and `drained` is True. Tasks that were not yielded then are the caller's to give again.

        Raises, after the tasks in flight were yielded in the same way: a worker's exception that its service calls fatal, as it was raised
        (the replica's traceback is its cause); ClusterError when replicas do not start or workers die again and again, with the last
        reason. Closing the iterator early abandons what is in flight.
        """
        raise NotImplementedError

    @property
    def drained(self) -> bool:
        """Whether the last `run` ended because of `stop`, before the source was exhausted."""
        raise NotImplementedError

    def status(self) -> list[ServiceStatus]:
        """Return live figures of every service of the run; cheap, for a progress line."""
        raise NotImplementedError

    @property
    def pids(self) -> list[int]:
        """Process ids of the replicas that are Ray actors and have been placed."""
        raise NotImplementedError
