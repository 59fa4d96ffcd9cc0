"""Says, before any collective times out, which rank the others wait for.

Every rank has a thread that looks at how long its step takes. Past the limit it writes where the training stands, and the stacks of all its
threads, to the student's folder; the other ranks' threads see that and write theirs, wherever they are. The lowest rank that wrote puts the
places together in one line. Nothing is ended: the training goes on when the late rank comes, and the collectives' own timeout is still
there when it does not.
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
LOOK_S, ASKED_S = 0.5, 5.0  # how often a rank looks at its clock, and whether another one asks
GATHER_S = 30.0  # some file systems show a new file that late
# As calls are described: of torch.distributed, which DeepSpeed's go through, of our own, and of asynchronous ones.
_COLLECTIVES = re.compile(r"\((distributed_c10d|c10d_logger|w2sr/training/dist)\.py:|^wait \((?!threading\.py|w2sr/)")
# A rank that waits for its own disk is in no collective, whatever it was called from.
_WRITES = "(w2sr/training/writing.py:"


class Watchdog:
    """Watches the thread that makes it. `timeout_s`: the limit of a step; None: it follows the last steps."""

    def __init__(self, output: Path, rank: int, world_size: int, timeout_s: float | None) -> None:
        self._folder = output / STALLS
        self._rank, self._world_size = rank, world_size
        self._timeout_s = timeout_s
        self._watched = threading.get_ident()
        self._durations: deque[float] = deque(maxlen=20)
        self._lock = threading.Lock()
        self._what, self._is_step, self._since = "what comes before the first step", False, time.monotonic()
        self._dumped = self._told = False  # in what is under way
        self._over = threading.Event()
        if rank == 0:
            shutil.rmtree(self._folder, ignore_errors=True)  # of an earlier attempt
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def begin(self, step: int) -> None:
        """Say that this rank begins optimizer step `step` (from 1)."""
        self._turn_to(f"step {step}", is_step=True)

    def end(self) -> None:
        """Say that the step is done. What comes between two steps has the longest limit."""
        with self._lock:
            what, seconds, stood_still = self._what, time.monotonic() - self._since, self._dumped
        if not stood_still:
            self._durations.append(seconds)
        self._turn_to(f"what comes after {what}", is_step=False)

    def rest(self, step: int) -> None:
        """Say, again and again, that the ranks wait together for what optimizer step `step` (from 1) needs: none of them is late."""
        self._turn_to(f"the wait for the rows of step {step}", is_step=False)

    def _turn_to(self, what: str, is_step: bool) -> None:
        """Begin to count the time of `what`; say so if what was under way had been reported."""
        with self._lock:
            before, seconds, told = self._what, time.monotonic() - self._since, self._told
            self._what, self._is_step = what, is_step
            self._since, self._dumped, self._told = time.monotonic(), False, False
        if told:
            self._say(f"{before} went on after {seconds:.0f} s")

    @property
    def limit_s(self) -> float:
        """Seconds that what is under way may take."""
        if not self._is_step:
            return MOST_S
        if self._timeout_s is not None:
            return self._timeout_s
        return min(MOST_S, max(LEAST_S, FACTOR * statistics.median(self._durations))) if self._durations else MOST_S

    def close(self) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        answered, look_again = set[str](), 0.0
        while not self._over.wait(LOOK_S):
            with self._lock:
                what, late_s = self._what, time.monotonic() - self._since
                due = not self._dumped and late_s > self.limit_s
                self._dumped = self._dumped or due
            with contextlib.suppress(OSError):  # a full disk must not end a training that only stands still
                if due and what not in answered:
                    answered.add(what)
                    self._dump(what, asks=True)
                    self._tell(what, late_s)
                elif time.monotonic() > look_again:
                    look_again = time.monotonic() + ASKED_S
                    for other in self._asked() - answered:
                        answered.add(other)
                        self._dump(other, asks=False)

    def _asked(self) -> set[str]:
        """Return what other ranks find too long."""
        return {path.name.split(".rank-")[0].replace("-", " ") for path in self._folder.glob("*.json")}

    def _file(self, what: str, rank: int, kind: str) -> Path:
        return self._folder / f"{what.replace(' ', '-')}.rank-{rank}.{kind}"

    def _dump(self, what: str, asks: bool) -> None:
        """Write where this rank is, because it or another one `asks` why `what` takes so long."""
        stack, at = place_of(self._watched)
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._file(what, self._rank, "txt"), "w", encoding="utf-8") as file:
            file.write(f"rank {self._rank} on {socket.gethostname()}, process {os.getpid()}, in {self._what}\n\n")
            file.flush()
            faulthandler.dump_traceback(file)
        waits = any(_COLLECTIVES.search(call) for call in stack) and not any(_WRITES in call for call in stack)
        write_text(self._file(what, self._rank, "json"), json.dumps({"at": at, "waits": waits, "asks": asks, "stack": stack}))

    def _tell(self, what: str, late_s: float) -> None:
        """Put the ranks' places together when they are there, if this is the lowest rank that wrote because it was late itself."""
        began, found = time.monotonic(), dict[int, dict[str, Any]]()
        while len(found) < self._world_size and time.monotonic() - began < GATHER_S and not self._over.wait(LOOK_S):
            paths = {rank: self._file(what, rank, "json") for rank in range(self._world_size) if rank not in found}
            found |= {rank: json.loads(path.read_text(encoding="utf-8")) for rank, path in paths.items() if path.is_file()}
        if self._rank != min((rank for rank, place in found.items() if place["asks"]), default=None):
            return
        with self._lock:
            self._told = still = self._dumped
        took = f"takes {late_s + time.monotonic() - began:.0f} s so far" if still else f"took more than {late_s:.0f} s"
        self._say(f"{what} {took}: {digest(found, self._world_size)}. Stacks: {self._folder}")

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
        for at, ranks in by_place.items():
            verb = "at work" if not waits else "wait" if len(ranks) > 1 else "waits"
            parts.append(f"{_ranks(ranks)} {verb} in {at}")
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
