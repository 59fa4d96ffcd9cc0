"""How many traces a second one driver hands out and takes in, and whether its memory is flat.

    python -m benchmarks.pool_ceiling processes --replicas 256 --tasks 300000
    python -m benchmarks.pool_ceiling simulated --replicas 1024 --tasks 500000
    python -m benchmarks.pool_ceiling actors --replicas 64 --tasks 200000

The engine answers at once with a text of about 1.4 kB, so that only the pool's work is left. actors: one Ray actor a replica. processes:
16 Ray actors with 16 replicas each (a machine of two cores has no memory for 256 processes): for the driver the messages are the same,
one exchange a replica. simulated: replicas are objects in another thread of the driver.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from benchmarks.pool_engines import InstantEngine, Prompts, make_prompts, memory_mib
from cluster.config import ClusterSpec
from cluster.links import Death, Link, Place, ThreadTransport
from cluster.pool import Pool
from cluster.replica import Orders, Replica, Reply, Trouble
from cluster.session import machine_cpus, ray_session
from cluster.work import Service, Worker

HOSTS = 16


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("replicas_are", choices=["actors", "processes", "simulated"])
    parser.add_argument("--replicas", type=int, default=256)
    parser.add_argument("--tasks", type=int, default=300_000)
    args = parser.parse_args()
    if args.replicas_are == "simulated":
        measure(args, Pool(threads=SimulatedTransport()))
        return
    with ray_session(ClusterSpec(num_cpus=machine_cpus())):
        measure(args, Pool(threads=HostTransport()) if args.replicas_are == "processes" else Pool())


def measure(args: argparse.Namespace, opened: Pool) -> None:
    """Run all tasks and print traces/s, memory along the way, and processor time."""
    in_driver = args.replicas_are != "actors"
    cpus = round(machine_cpus() / args.replicas, 4)
    service = Service("s", InstantEngine, None, args.replicas, args.replicas, cpus, capacity=64, in_driver=in_driver, start_timeout_s=3600)
    prompts = make_prompts(1000)
    with opened as pool:
        ready = time.perf_counter()
        warm = 0
        while warm < args.replicas:
            for _ in pool.run([service], Prompts("s", prompts * 4)):
                warm = max(warm, pool.status()[0].ready)
        print(f"{warm} replicas after {time.perf_counter() - ready:.1f} s", flush=True)
        began, cpu, done = time.perf_counter(), time.process_time(), 0
        seen: set[str] = set()
        memory: list[float] = []
        for outcome in pool.run([service], Prompts("s", (prompts[number % 1000] for number in range(args.tasks)))):
            done += 1
            seen.add(outcome.replica)
            if done % (args.tasks // 10) == 0:
                memory.append(memory_mib())
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
    assert done == args.tasks
    print(
        f"{args.replicas_are}, {len(seen)} of {args.replicas} replicas worked: {done} traces in {took:.1f} s = {done / took:.0f} traces/s "
        f"({done / cpu:.0f} a second of the driver's processor time)"
    )
    print("driver's memory, MiB, at each tenth:", " ".join(f"{value:.0f}" for value in memory), f"peak {peak_mib():.0f}")


def peak_mib() -> float:
    """Return the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Host:
    """A Ray actor that holds several replicas."""

    def __init__(self) -> None:
        self._replicas: dict[int, Replica] = {}

    async def place(self, number: int) -> Place:
        """Make a replica."""
        self._replicas[number] = Replica()
        return Place("host", None)

    async def load(self, number: int, factory: Any, orders: Orders) -> Trouble | None:
        """See Replica."""
        return await self._replicas[number].load(factory, orders)

    async def exchange(self, number: int, turn: int, tasks: Any, recall: int) -> Reply:
        """See Replica."""
        return await self._replicas[number].exchange(turn, tasks, recall)

    async def close(self, number: int) -> None:
        """See Replica."""
        await self._replicas[number].close()


class HostTransport(ThreadTransport):
    """Replicas in a few actors."""

    def __init__(self) -> None:
        self._hosts: list[Any] = []
        self._next = 0

    def start(self, _: Service) -> Link:
        """See Transport."""
        import ray

        if not self._hosts:
            self._hosts = [ray.remote(Host).options(num_cpus=0.05, max_concurrency=10_000).remote() for _ in range(HOSTS)]
        self._next += 1
        return HostLink(self._hosts[self._next % HOSTS], self._next)


class HostLink:
    """One replica of a host."""

    def __init__(self, host: Any, number: int) -> None:
        self._host, self._number = host, number

    def place(self) -> Future[Place]:
        """See Link."""
        return self._host.place.remote(self._number).future()  # type: ignore[no-any-return]

    def load(self, factory: Callable[[], Worker], orders: Orders) -> Future[Trouble | None]:
        """See Link."""
        return self._host.load.remote(self._number, factory, orders).future()  # type: ignore[no-any-return]

    def exchange(self, turn: int, tasks: list[tuple[int, Any]], recall: int) -> Future[Reply]:
        """See Link."""
        return self._host.exchange.remote(self._number, turn, tasks, recall).future()  # type: ignore[no-any-return]

    def close(self) -> Future[None]:
        """See Link."""
        return self._host.close.remote(self._number).future()  # type: ignore[no-any-return]

    def kill(self) -> None:
        """Hosts end with the session."""

    def death(self, error: BaseException) -> Death:
        """See Link."""
        return Death(repr(error), blameless=False)


class SimulatedTransport(ThreadTransport):
    """Replicas in one other thread with one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def start(self, _: Service) -> Link:
        """See Transport."""
        return SimulatedLink(self._loop)


class SimulatedLink:
    """One replica in the common loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._replica = loop, Replica()

    def place(self) -> Future[Place]:
        """See Link."""
        placed: Future[Place] = Future()
        placed.set_result(Place("simulated", None))
        return placed

    def load(self, factory: Callable[[], Worker], orders: Orders) -> Future[Trouble | None]:
        """See Link."""
        return asyncio.run_coroutine_threadsafe(self._replica.load(factory, orders), self._loop)

    def exchange(self, turn: int, tasks: list[tuple[int, Any]], recall: int) -> Future[Reply]:
        """See Link."""
        return asyncio.run_coroutine_threadsafe(self._replica.exchange(turn, tasks, recall), self._loop)

    def close(self) -> Future[None]:
        """See Link."""
        return asyncio.run_coroutine_threadsafe(self._replica.close(), self._loop)

    def kill(self) -> None:
        """Nothing to end."""

    def death(self, error: BaseException) -> Death:
        """See Link."""
        return Death(repr(error), blameless=False)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
