"""Finds which process of an attempt failed first and of what, from what the processes wrote down (cluster/blackbox.py).

Times are corrected by each process's difference from the file server's clock. A process that was killed wrote no end: its file's time
says when it last lived, within a few seconds. So an exception is the cause, unless it only says that a neighbour was lost; then that is.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.blackbox import FAULT, INTERVAL_S
from launcher.advice import advice_for
from launcher.attempt import busy
from launcher.job_state import Try, read_state
from launcher.jobs import jobs_of
from w2sr.errors import UserError
from w2sr.training.watchdog import SAID, STALLS

# What a process says that only lost another one.
_LOST_NEIGHBOUR = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|connectFullMesh|ActorDiedError|ActorUnavailable|WorkerCrashed|NodeDied|OwnerDied"
    r"|collective operation timeout|Timed out waiting|DistBackendError|ncclRemoteError|WorkerGroupError|process group .* (aborted|shut)",
    re.IGNORECASE,
)
STALL_LINES = 3
# How far a supervisor's clock may be from the file server's; a process number comes again only much later.
NEAR_S = 600.0
_ABORTED = "Fatal Python error: Aborted"
_INTERRUPTED = {"KeyboardInterrupt": "by Ctrl-C", "Terminated": "by SIGTERM", "StoppedEarly": "at stop_by"}


@dataclass(frozen=True)
class Process:
    """What one process left. Times are corrected; `alive` is when it was last known to live."""

    role: str
    group: str
    host: str
    pid: int
    started: float
    alive: float
    ended: bool
    at: str
    at_since: float
    stack: list[str]
    last_lines: list[str]
    error: dict[str, Any] | None
    fault: str
    file: str

    @property
    def vanished(self) -> bool:
        """Whether it neither ended nor said why."""
        return not self.ended and not self.fault

    @property
    def says_why(self) -> bool:
        """Whether it failed of something of its own, and not of the loss of another."""
        return bool(self.fault) or (self.error is not None and not _LOST_NEIGHBOUR.search(f"{self.error['type']}: {self.error['message']}"))

    @property
    def name(self) -> str:
        """Its name for people."""
        return f"{self.role} on {self.host} (process {self.pid})"


@dataclass(frozen=True)
class Cause:
    """The answer. `failed` False: there is nothing to explain, and `cause` says so."""

    attempt: str
    failed: bool
    cause: str
    when: float | None = None
    details: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    advice: str = ""
    file: str = ""

    def render(self) -> str:
        """Return what `w2sr why` prints."""
        when = f" at {time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime(self.when))}" if self.when else ""
        lines = [f"{self.attempt}: {self.cause}{when}" if self.attempt else f"{self.cause}{when}"]
        lines += [f"    {line}" for line in self.details]
        lines += [f"meanwhile: {line}" for line in self.others]
        lines += [f"to do: {self.advice}"] if self.advice else []
        lines += [f"more: {self.file}"] if self.file else []
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the same for programs."""
        return json.dumps(dataclasses.asdict(self), indent=1)


def root_cause(run_dir: Path, number: int | None = None) -> Cause:
    """Return why attempt `number` (None: the last) of a run failed. Raises UserError when there is no such run or attempt."""
    attempts = sorted(int(path.name[8:]) for path in run_dir.glob("logs/attempt_*") if path.name[8:].isdigit())
    if number is not None and number not in attempts:
        raise UserError(f"{run_dir} has no attempt {number}; it has: {', '.join(map(str, attempts)) or 'none'}")
    refused = _refused_before_it_began(run_dir, attempts) if number is None else None
    if refused is not None:
        return refused
    if not attempts:
        raise UserError(f"{run_dir} has no logs/attempt_N: nothing has run there; give the run_dir of a configuration, or see `w2sr jobs`")
    last = attempts[-1] if number is None else number
    folder = run_dir / "logs" / f"attempt_{last}"
    processes = [process for path in sorted(folder.glob("processes/*.json")) if (process := _read(path)) is not None]
    stalls = _stalls(run_dir, processes) if last == attempts[-1] else []
    holder = busy(run_dir) if last == attempts[-1] else None
    if holder:
        return Cause(folder.name, False, f"has not ended: process {holder} works on it", details=stalls)
    tries = [item for job in jobs_of(run_dir) for item in read_state(job.folder).tries]
    cause = explain(folder.name, processes, tries)
    cause = dataclasses.replace(cause, others=[*cause.others, *stalls]) if cause.failed else cause
    return cause if cause.file or not (folder / "w2sr.log").exists() else dataclasses.replace(cause, file=str(folder / "w2sr.log"))


def _stalls(run_dir: Path, processes: list[Process]) -> list[str]:
    """Return what the watchdogs of trainings have said since these processes were started, the last lines of each student."""
    began, found = min((process.started for process in processes), default=0.0), list[str]()
    for path in sorted(run_dir.glob(f"train/*/{STALLS}/{SAID}")):
        if path.stat().st_mtime >= began:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found += [f"{path.parents[1].name}: {line}" for line in lines[-STALL_LINES:]]
    return found


def explain(attempt: str, processes: list[Process], tries: list[Try]) -> Cause:
    """Return the cause; `tries`: what supervisors saw of the run's drivers."""
    driver = next((process for process in processes if process.role == "driver"), None)
    if driver is None:
        return Cause(attempt, False, "left no record of its processes; its log may say more")
    kind = driver.error["type"] if driver.error else ""
    if driver.ended and driver.error is None:
        return Cause(attempt, False, "did not fail")
    if kind in _INTERRUPTED:
        message = f": {driver.error['message']}" if driver.error and driver.error["message"] else ""
        return Cause(attempt, False, f"was ended {_INTERRUPTED[kind]}{message}; the same command goes on", driver.alive)
    peers = _last_group(processes)
    first = _first_failure(peers, driver)
    if first is None:
        exit_code = next((item.exit_code for item in tries if _is_of(driver, item)), None)
        return _of_driver(attempt, driver, [p for p in processes if p is not driver], exit_code)
    root, doubt = first
    others = [process for process in peers if process is not root]
    return _of_peer(attempt, root, others, doubt, _gone_node(root, processes))


def _last_group(processes: list[Process]) -> list[Process]:
    """Return the ranks that were started last: earlier groups were started again, and are forgiven."""
    ranks = [process for process in processes if process.group]
    if not ranks:
        return []
    last = max(ranks, key=lambda process: process.started).group
    return [process for process in ranks if process.group == last]


def _first_failure(peers: list[Process], driver: Process) -> tuple[Process, str] | None:
    """Return the rank that failed first, and what is not certain about that; None: no rank failed before the driver did."""
    reasons = sorted((peer for peer in peers if peer.says_why and not _followed(peer, driver)), key=lambda peer: peer.alive)
    silent = sorted((peer for peer in peers if peer.vanished), key=lambda peer: peer.alive)
    lost = [peer for peer in peers if peer.error is not None and not peer.says_why and not _followed(peer, driver)]
    if reasons and not (silent and silent[0].alive < reasons[0].alive - 2 * INTERVAL_S):
        return reasons[0], ""
    if driver.vanished and not lost and not (silent and silent[0].alive < driver.alive - 2 * INTERVAL_S):
        return None  # the ranks ended with their driver
    named = _rank_in(driver)
    if silent:
        if named in [peer.role for peer in silent]:
            return next(peer for peer in silent if peer.role == named), ""
        close = [peer.role for peer in silent[1:] if peer.alive - silent[0].alive < INTERVAL_S]
        return silent[0], f"or {', '.join(close)}: they fell silent within {INTERVAL_S:.0f} s" if close else ""
    return (min(lost, key=lambda peer: peer.alive), "it lost another rank, which left no record") if lost else None


def _followed(peer: Process, driver: Process) -> bool:
    """Whether a rank lost a neighbour, or was aborted as C++ does of that, after a driver that was killed: no rank kills its driver."""
    return driver.vanished and peer.alive >= driver.alive and (peer.fault.startswith(_ABORTED) or not peer.says_why)


def _rank_in(driver: Process) -> str:
    """Return the rank that the driver's own message blames, as "rank 3"."""
    found = re.search(r"rank \d+(?= of \d+ failed)", driver.error["message"]) if driver.error else None
    return found.group() if found else ""


def _of_peer(attempt: str, root: Process, others: list[Process], doubt: str, gone_node: str) -> Cause:
    what = gone_node or _end_of(root)
    details = ([doubt] if doubt else []) + _place_of(root) + [f"| {line}" for line in root.last_lines]
    text = f"{root.fault} {root.error or ''} {what} {' '.join(root.last_lines)}"
    return Cause(attempt, True, f"{root.name} {what}", root.alive, details, _grouped(others), advice_for(text), root.file)


def _of_driver(attempt: str, driver: Process, others: list[Process], exit_code: int | None) -> Cause:
    if driver.error is not None or driver.fault:
        kind = driver.error["type"] if driver.error else ""
        mistake = kind in ("UserError", "ClusterError", "GroupError")
        what = f"stopped with a message: {driver.error['message']}" if mistake and driver.error else f"the driver {_end_of(driver)}"
        text = f"{driver.fault} {driver.error}"
        silent = [process for process in others if process.vanished and not process.group and driver.alive - process.alive < 60]
        return Cause(
            attempt, True, what, driver.alive, [] if mistake else _place_of(driver), _grouped(silent), advice_for(text), driver.file
        )
    signal_text = f"killed by signal {-exit_code}" if exit_code is not None and exit_code < 0 else "killed, or its node went away"
    lived = [process for process in others if process.alive > driver.alive - 2 * INTERVAL_S and not process.ended]
    details = _place_of(driver) + [f"| {line}" for line in driver.last_lines]
    advice = advice_for(signal_text)
    return Cause(attempt, True, f"the driver on {driver.host} (process {driver.pid}) was {signal_text}; last seen", driver.alive, details,
                 _grouped(lived), advice, driver.file)  # fmt: skip


def _end_of(process: Process) -> str:
    if process.fault:
        return f"crashed: {process.fault.splitlines()[0]}"
    if process.error is not None:
        return f"raised {process.error['type']}: {process.error['message']}"
    return "was killed from outside (signal 9), or its node went away; last seen"


def _place_of(process: Process) -> list[str]:
    if process.fault:
        return process.fault.splitlines()[1:9]
    if not process.at:
        return []
    since_s = process.alive - process.at_since
    stuck = f", for {since_s:.0f} s" if not process.ended and since_s > 2 * INTERVAL_S else ""
    return [f"at {process.at}{stuck}"]


def _gone_node(root: Process, processes: list[Process]) -> str:
    """Return words for a node that went away with all its processes; none if one lived on, or it was alone there: who can tell?."""
    if not root.vanished:
        return ""
    there = [process for process in processes if process.host == root.host and process.alive > root.alive - 4 * INTERVAL_S]
    elsewhere = [process for process in processes if process.host != root.host]
    if not elsewhere or len(there) < 2 or any(process.ended for process in there):
        return ""
    return f"went away with its node {root.host}: all {len(there)} processes there fell silent; last seen"


def _grouped(processes: list[Process]) -> list[str]:
    """Return what others did, alike ones together: "3 ranks waited in all_reduce (w2sr/training/engine.py:120)"."""
    kinds = Counter((re.sub(r" \d+$", "", process.role), process.at) for process in processes if process.at and process.error is None)
    lost = Counter((re.sub(r" \d+$", "", p.role), p.at, _first_line(p.error)) for p in processes if p.error is not None)
    return [f"{_count(number, role)} last seen in {at}" for (role, at), number in kinds.most_common()] + [
        f"{_count(number, role)} waited in {at} until: {message}" for (role, at, message), number in lost.most_common()
    ]


def _count(number: int, role: str) -> str:
    head, space, tail = role.partition(" ")
    return f"{number} {head}{'s' if number > 1 else ''}{space}{tail}"


def _first_line(error: dict[str, Any]) -> str:
    return f"{error['type']}: {error['message']}".splitlines()[0][:160]


def _refused_before_it_began(run_dir: Path, attempts: list[int]) -> Cause | None:
    """Return the reason of a job that ended before any attempt had a folder: a bad configuration, a lost backend."""
    jobs = jobs_of(run_dir)
    if not jobs:
        return None
    state = read_state(jobs[-1].folder)
    if state.exit_code not in (1, 2) or (
        attempts and state.tries and _began(run_dir / "logs" / f"attempt_{attempts[-1]}", state.tries[-1])
    ):
        return None
    ended = state.tries[-1].ended if state.tries else state.heartbeat
    return Cause("", True, f"job {jobs[-1].id} ended before an attempt began: {state.reason}", ended, advice=advice_for(state.reason))


def _began(attempt: Path, last: Try) -> bool:
    """Whether an attempt is that of the last try, or was begun after it, as by hand; one without a record of its driver counts as such."""
    drivers = [process for path in attempt.glob("processes/driver-*.json") if (process := _read(path)) is not None]
    return not drivers or any(_is_of(driver, last) or driver.started > (last.ended or last.began) for driver in drivers)


def _is_of(driver: Process, item: Try) -> bool:
    """Whether a driver is the one of a try: by its number, and not an earlier one that had the same."""
    return driver.pid == item.pid and abs(driver.started - item.began) < NEAR_S


def _read(path: Path) -> Process | None:
    """Return a process's record; None if it vanished or is damaged (the disk was full)."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        modified = path.stat().st_mtime
        fault_file = path.with_name(path.name.removesuffix(".json") + FAULT)
        fault = fault_file.read_text(encoding="utf-8", errors="replace").strip() if fault_file.exists() else ""
        modified = fault_file.stat().st_mtime if fault else modified
    except (OSError, ValueError):
        return None
    offset = values["clock_offset_s"]
    ended = values["ended"] is not None
    return Process(
        **{name: values[name] for name in ("role", "group", "host", "pid", "at", "stack", "last_lines", "error")},
        started=values["started"] + offset,
        alive=values["ended"] + offset if ended else modified,
        ended=ended,
        at_since=values["at_since"] + offset,
        fault=fault if not ended else "",
        file=str(path),
    )
