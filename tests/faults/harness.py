"""A cluster of real raylets that lose processes and nodes, and drivers that are killed on it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.schedules import Event, Schedule
from tests.faults.work import REFUSED

NODE = {"num_cpus": 16, "object_store_memory": 80 << 20, "include_log_monitor": False}
# A driver that gave no sign of life for so long hangs.
HANGS_AFTER_S = 150.0


class Machines:
    """A head without processors and two nodes, each a raylet with workers of its own. Speaks to nobody without the token."""

    def __init__(self, folder: Path) -> None:
        from ray._raylet import Config
        from ray.cluster_utils import Cluster

        Config.initialize("")  # read the environment again, if somebody imported Ray before it was set
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(folder / "ray"), "object_store_memory": 80 << 20}
        self._cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self._wanted: queue.SimpleQueue[tuple[int, threading.Event]] = queue.SimpleQueue()
        self._nodes = [self._new_node() for _ in range(2)]
        for node in self._nodes:
            self._cluster._wait_for_node(node, timeout=HANGS_AFTER_S)
        self.address: str = self._cluster.address
        self.lost = 0

    def lose_node(self, number: int) -> None:
        """Kill a node with everything on it; a new one joins later."""
        done = threading.Event()
        self._wanted.put((number, done))
        assert done.wait(HANGS_AFTER_S), "no new node was started"

    def serve(self) -> None:
        """Do what other threads ask for. In the main thread, because a node lives no longer than the thread that started it."""
        with contextlib.suppress(queue.Empty):
            number, done = self._wanted.get(timeout=0.05)
            self._cluster.remove_node(self._nodes[number], allow_graceful=False)
            self.lost += 1
            self._nodes[number] = self._new_node()
            done.set()

    def close(self) -> None:
        """End everything."""
        self._cluster.shutdown()

    def _new_node(self) -> Any:
        return _patiently(lambda: self._cluster.add_node(wait=False, **NODE))


class Drivers:
    """The process that forks drivers."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.driver"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._changed = threading.Condition()
        self._ordering = threading.Lock()
        self._started: list[int] = []
        self._status: dict[int, int] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, folder: Path, address: str, log: Path) -> int:
        """Start a driver; return its process id."""
        assert self._process.stdin is not None
        with self._ordering:
            print(json.dumps({"folder": str(folder), "address": address, "log": str(log)}), file=self._process.stdin, flush=True)
            with self._changed:
                assert self._changed.wait_for(lambda: self._started, 60), "the process that forks drivers does not answer"
                return self._started.pop()

    def ended(self, pid: int, timeout_s: float) -> int | None:
        """Return the exit status (as of subprocess), or None when it has not ended by then."""
        with self._changed:
            if not self._changed.wait_for(lambda: pid in self._status, timeout_s):
                return None
            return os.waitstatus_to_exitcode(self._status[pid])

    def close(self) -> None:
        """End the process that forks; its drivers have ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told: dict[str, Any] = json.loads(line)
            with self._changed:
                if "status" in told:
                    self._status[told["pid"]] = told["status"]
                else:
                    self._status.pop(told["pid"], None)  # of an earlier driver: the numbers of processes come again
                    self._started.append(told["pid"])
                self._changed.notify_all()


class Trial:
    """One schedule in one folder: driver after driver, until the work is done."""

    def __init__(self, schedule: Schedule, folder: Path, machines: Machines, drivers: Drivers) -> None:
        self.schedule = schedule
        self.folder = folder
        self.happened: list[str] = []
        self._machines = machines
        self._drivers = drivers
        self._rng = random.Random(-schedule.seed)

    def run_driver(self, number: int) -> bool:
        """Run driver `number` with what shall happen to it; return whether the work is done."""
        before = self._actors()
        pid = self._drivers.start(self.folder, self._machines.address, self.folder / f"driver-{number}.log")
        events = self.schedule.drivers[number] if number < len(self.schedule.drivers) else ()
        if events and self._first_actor(pid, before):
            for event in events:
                if self._drivers.ended(pid, event.after_s) is not None:
                    break
                self._do(event, pid, before)
        status = self._end(pid)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"driver {number} hangs: {self.happened}\n{self.log()}")
        self.happened.append(f"driver {number} ended with {status}")
        assert status in (0, -signal.SIGKILL, -signal.SIGTERM, REFUSED), self.log()
        if status == REFUSED:  # for example because no node was up
            time.sleep(1.0)
        return status == 0

    def _end(self, pid: int) -> int | None:
        """Wait for the end of a driver; None when there was neither a new replica nor a commit for too long."""
        seen: set[Path] = set()
        since = time.monotonic()
        while time.monotonic() - since < HANGS_AFTER_S:
            status = self._drivers.ended(pid, 1.0)
            if status is not None:
                return status
            now = self._actors() | set((self.folder / "run" / "generate").glob("*/*"))
            if not now <= seen:
                seen, since = seen | now, time.monotonic()
        return None

    def log(self) -> str:
        """Return what the drivers said."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-4000:]}" for path in sorted(self.folder.glob("driver-*.log")))

    def _do(self, event: Event, pid: int, before: set[Path]) -> None:
        self.happened.append(event.kind)
        if event.kind == "node":
            self._machines.lose_node(self._rng.randrange(2))
        elif event.kind == "actor":
            live = sorted(path for path in self._actors() - before if Path(f"/proc/{_pid(path)}").exists())
            if live:
                _kill(_pid(self._rng.choice(live)), signal.SIGKILL)
        else:
            _kill(pid, signal.SIGKILL if event.kind == "driver" else signal.SIGTERM)

    def _actors(self) -> set[Path]:
        return set((self.folder / "actors").glob("*"))

    def _first_actor(self, pid: int, before: set[Path]) -> bool:
        while self._actors() <= before:
            if self._drivers.ended(pid, 0.02) is not None:
                return False
        return True


def _patiently(start: Callable[[], Any]) -> Any:
    """Start a node again if it was not up after the 30 s that Ray grants it: a machine with much other work takes longer."""
    for _ in range(4):
        with contextlib.suppress(Exception):  # Ray raises no other type
            return start()
    return start()


def _pid(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has just ended
