"""Says, before any collective times out, which rank the others wait for.

Every rank has a thread that looks at how long its step takes. Past the limit it writes where the training stands, and the stacks of all its
threads, to the student's folder. The lowest rank that wrote puts the places together in one line. Nothing is ended: the training goes on
when the late rank comes, and the collectives' own timeout is still there when it does not.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import shutil
import socket
import statistics
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from cluster.blackbox import place_of
from w2sr.tables import write_text
from w2sr.training.dist import TIMEOUT_S

STALLS = "stalls"
SAID = "said.txt"
FACTOR, LEAST_S, MOST_S = 10.0, 60.0, TIMEOUT_S / 2
LOOK_S, GATHER_S = 0.5, 2.0
# As calls are described: of torch.distributed, which DeepSpeed's go through, of our own, and of asynchronous ones.
_COLLECTIVES = re.compile(r"\((distributed_c10d|c10d_logger|w2sr/training/dist)\.py:|^wait \(")


class Watchdog:
    """Watches the thread that makes it. `timeout_s`: the limit of a step; None: it follows the last steps."""

    def __init__(self, output: Path, rank: int, world_size: int, timeout_s: float | None) -> None:
        self._folder = output / STALLS
        self._rank, self._world_size = rank, world_size
        self._timeout_s = timeout_s
        self._watched = threading.get_ident()
        self._durations: deque[float] = deque(maxlen=20)
        self._lock = threading.Lock()
        self._step, self._since, self._dumped = 0, time.monotonic(), False
        self._over = threading.Event()
        if rank == 0:
            shutil.rmtree(self._folder, ignore_errors=True)  # of an earlier attempt
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def begin(self, step: int) -> None:
        """Say that this rank begins optimizer step `step` (from 1)."""
        with self._lock:
            self._step, self._since, self._dumped = step, time.monotonic(), False

    def end(self) -> None:
        """Say that the step is done. What comes between two steps has the longest limit."""
        with self._lock:
            seconds, stood_still = time.monotonic() - self._since, self._dumped
            step, self._step = self._step, 0
            self._since, self._dumped = time.monotonic(), False
        if not stood_still:
            self._durations.append(seconds)
        elif self._rank == 0:
            self._say(f"step {step} went on after {seconds:.0f} s")

    @property
    def limit_s(self) -> float:
        """Seconds that what is under way may take."""
        if not self._step:
            return MOST_S
        if self._timeout_s is not None:
            return self._timeout_s
        return min(MOST_S, max(LEAST_S, FACTOR * statistics.median(self._durations))) if self._durations else MOST_S

    def close(self) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            with self._lock:
                step, late_s = self._step, time.monotonic() - self._since
                due = not self._dumped and late_s > self.limit_s
                self._dumped = self._dumped or due
            if due:
                with contextlib.suppress(OSError):  # a full disk must not end a training that only stands still
                    self._dump(step)
                    if not self._over.wait(GATHER_S):
                        self._tell(step, late_s + GATHER_S)

    def _file(self, step: int, rank: int, kind: str) -> Path:
        return self._folder / f"{_what(step).replace(' ', '-')}.rank-{rank}.{kind}"

    def _dump(self, step: int) -> None:
        stack, at = place_of(self._watched)
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._file(step, self._rank, "txt"), "w", encoding="utf-8") as file:
            file.write(f"rank {self._rank} on {socket.gethostname()}, process {os.getpid()}, in {_what(step)}\n\n")
            file.flush()
            faulthandler.dump_traceback(file)
        waits = any(_COLLECTIVES.search(call) for call in stack)
        write_text(self._file(step, self._rank, "json"), json.dumps({"at": at, "waits": waits, "stack": stack}))

    def _tell(self, step: int, late_s: float) -> None:
        """Put the ranks' places together, if this is the lowest rank that wrote."""
        places = {rank: self._read(self._file(step, rank, "json")) for rank in range(self._world_size)}
        found = {rank: place for rank, place in places.items() if place is not None}
        if min(found) == self._rank:
            self._say(f"{_what(step)} takes {late_s:.0f} s so far: {digest(found, self._world_size)}. Stacks: {self._folder}")

    def _read(self, path: Path) -> dict[str, Any] | None:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        with open(self._folder / SAID, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def digest(places: dict[int, dict[str, Any]], world_size: int) -> str:
    """Return in one line who is where: ranks that gave no sign first, then those in no collective, then those that wait."""
    silent = sorted(set(range(world_size)) - set(places))
    parts = [f"no sign of {_ranks(silent)} (stopped, swapped out, or on a lost node)"] if silent else []
    for waits in (False, True):
        by_place: dict[str, list[int]] = {}
        for rank, place in sorted(places.items()):
            if place["waits"] is waits:
                by_place.setdefault(place["at"], []).append(rank)
        verb = "wait in" if waits else "at work in"
        parts += [f"{_ranks(ranks)} {verb} {at}" for at, ranks in by_place.items()]
    if len(places) == world_size and all(place["waits"] for place in places.values()):
        parts.append("nobody is late: look at the network between the nodes")
    return "; ".join(parts)


def _ranks(ranks: list[int]) -> str:
    """Return for example "ranks 0-2, 5"."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"


def _what(step: int) -> str:
    return f"step {step}" if step else "the time between two steps"
