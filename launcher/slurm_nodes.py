"""Ray on the nodes of a Slurm allocation: each node has a keeper (launcher/node.py) in a step of its own (srun).

What always holds: the head's step runs, or `tend` raises NodeLost; a worker's step that ended is started again, later and later. A keeper
is told what to do over stdin, and answers by a file on the shared file system.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from launcher import slurm
from launcher.cluster_file import SlurmCluster
from launcher.home import home
from launcher.node_spec import NodeReady, NodeSpec
from launcher.ray_start import own_address
from launcher.substrate import Say
from w2sr.errors import UserError
from w2sr.tables import write_text

POLL_S = 0.3
SAY_EVERY_S = 5.0
FIRST_AGAIN_S, LONGEST_AGAIN_S = 5.0, 60.0
STOP_WAIT_S = 40.0
CONNECT_TIMEOUT_S = 5.0
NODES = "nodes.json"


class NodeLost(Exception):
    """The head is gone, or nodes did not come up. `fault` is False when Slurm itself ended them, as it does before it takes a node away."""

    def __init__(self, message: str, fault: bool = True) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class Allocation:
    """What Slurm gave: the job's number (7, or 7_1 in an array), how often it was queued again, its hosts and the processors on each."""

    number: str
    restart: int
    hosts: tuple[str, ...]
    cpus: tuple[int, ...]

    @staticmethod
    def of(environment: Mapping[str, str]) -> Allocation:
        """Return the allocation of the batch script that this process belongs to. Raises UserError outside of one."""
        if "SLURM_JOB_ID" not in environment or "SLURM_JOB_NODELIST" not in environment:
            raise UserError("this runs in a batch job of Slurm only; use `w2sr submit` or `w2sr cluster up`")
        number = environment["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in environment:
            # One element's SLURM_JOB_ID is the array's, which Slurm's commands take to mean all elements.
            number = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
        hosts = slurm.hostnames(environment["SLURM_JOB_NODELIST"])
        return Allocation(
            number,
            int(environment.get("SLURM_RESTART_COUNT", "0")),
            hosts,
            cpus_per_node(environment["SLURM_JOB_CPUS_PER_NODE"]),
        )


def cpus_per_node(text: str) -> tuple[int, ...]:
    """Return the processors of each node: "2(x3),4" means 2, 2, 2, 4."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        assert match is not None, f"Slurm says {text!r}"
        found += [int(match[1])] * int(match[2] or 1)
    return tuple(found)


class Step:
    """A node's step. `start` may be called again when it has ended."""

    def __init__(self, python: str, host: str, cpus: int, spec: NodeSpec, path: Path) -> None:
        self.host = host
        self._command = [
            *("srun", f"--nodelist={host}", "--nodes=1", "--ntasks=1", f"--cpus-per-task={cpus}", "--mem=0"),
            # Steps lie over one another and over the batch script, and none ends the others.
            *("--overlap", "--kill-on-bad-exit=0", "--export=ALL", "--quiet"),
            *(python, "-u", "-m", "launcher.node", "run", "--ready", f"{path}.json"),
        ]
        self._spec = spec
        self._ready = Path(f"{path}.json")
        self._log = Path(f"{path}.log")
        self._srun: subprocess.Popen[bytes] | None = None
        self._found: NodeReady | None = None
        self._again_s = FIRST_AGAIN_S
        self._ended_at: float | None = None

    def start(self, head: str | None = None) -> None:
        """Start the step; `head` is where a worker finds GCS."""
        self._ready.unlink(missing_ok=True)
        self._found = None
        self._spec = replace(self._spec, head=head)
        with open(self._log, "ab") as log:
            # A session of its own: what ends the batch script's group must leave Ray running while work is committed.
            self._srun = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        assert self._srun.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._srun.stdin as pipe:
            pipe.write(self._spec.json().encode() + b"\n")
        self._ended_at = None

    def ready(self) -> NodeReady | None:
        """Return what the keeper wrote when its node was up."""
        if self._found is None and self._ready.exists():
            self._found = NodeReady.parse(self._ready.read_text(encoding="utf-8"))
        return self._found

    def ended(self) -> int | None:
        """Return the exit code of the step, None while it runs."""
        assert self._srun is not None
        return self._srun.poll()

    def is_due(self) -> bool:
        """Tell whether a step that has ended shall be started again now: after 5 s, then 10 s, up to a minute."""
        now = time.monotonic()
        if self._ended_at is None:
            self._ended_at = now
        if now - self._ended_at < self._again_s:
            return False
        self._again_s = min(LONGEST_AGAIN_S, 2 * self._again_s)
        return True

    def last_words(self) -> str:
        """Return the last lines of the step's log."""
        lines = [line.strip() for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-6:]).replace("w2sr node: ", "") or "it said nothing"

    def wait(self, deadline: float) -> None:
        """Wait for its end until `deadline` (time.monotonic), then end it by force: on SIGTERM srun kills its step."""
        if self._srun is None:
            return
        try:
            self._srun.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._srun.terminate()
            self._srun.wait()


class Nodes:
    """All nodes of the allocation. `folder` is this attempt's, on the shared file system; `open_dashboard`: not only on loopback."""

    def __init__(self, file: SlurmCluster, allocation: Allocation, folder: Path, token_path: Path, open_dashboard: bool, say: Say) -> None:
        self._file, self._folder, self._say, self._number = file, folder, say, allocation.number
        self._steps = []
        for index, (host, cpus) in enumerate(zip(allocation.hosts, allocation.cpus, strict=True)):
            spec = NodeSpec(
                cluster=file.name,
                folder=_node_folder(file, allocation.number, index),
                port_key=f"{file.name} {allocation.number}",
                token_path=str(token_path),
                interface=file.network.interface,
                num_cpus=cpus,
                num_gpus=file.gpus_per_node,
                env=file.environment(),
                env_file=file.env_file,
                ready_timeout_s=file.ready_timeout_s,
            )
            if open_dashboard and index == 0:
                spec = replace(spec, dashboard_host=own_address(spec))  # the batch script runs on the first node
            self._steps.append(Step(file.python, host, cpus, spec, folder / f"node-{index}"))
        self._gcs = ""
        self._told: object = None

    def start(self, check: Callable[[], None]) -> tuple[NodeReady, ...]:
        """Start Ray everywhere and return when all nodes are up. `check` is called again and again and may raise.

        Raises NodeLost when a node does not come up, UserError when that is for a mistake of the user.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._steps[0].start()
        head = self._wait(self._steps[:1], check)
        self._gcs = head[0].gcs
        for step in self._steps[1:]:
            step.start(self._gcs)
        workers = self._wait(self._steps[1:], check)
        self._tell()
        return head + workers

    def _wait(self, steps: list[Step], check: Callable[[], None]) -> tuple[NodeReady, ...]:
        began, said = time.monotonic(), 0.0
        while missing := [step for step in steps if step.ready() is None]:
            check()
            waited_s = time.monotonic() - began
            for step in missing:
                code = step.ended()
                if code is not None:
                    message = f"node {step.host} did not come up: {step.last_words()}"
                    raise UserError(message) if code == 2 else NodeLost(message, _is_fault(code))
            if waited_s > self._file.ready_timeout_s:
                raise NodeLost(
                    f"not up after ready_timeout_s={self._file.ready_timeout_s:g}: {', '.join(step.host for step in missing)}; its log: "
                    f"{missing[0].last_words()}"
                )
            if waited_s - said > SAY_EVERY_S:
                said = waited_s
                names = ", ".join(step.host for step in missing[:8]) + (" ..." if len(missing) > 8 else "")
                self._say(f"waiting {waited_s:.0f} s for Ray on {len(missing)} of {len(self._steps)} nodes: {names}")
            time.sleep(POLL_S)
        return tuple(found for step in steps if (found := step.ready()) is not None)

    @property
    def gcs(self) -> str:
        """Where drivers find the cluster, host:port."""
        return self._gcs

    def tend(self) -> None:
        """Start lost workers again. Raises NodeLost when the head's step has ended."""
        code = self._steps[0].ended()
        if code is not None:
            raise NodeLost(f"the head on {self._steps[0].host} has ended: {self._steps[0].last_words()}", _is_fault(code))
        for step in self._steps[1:]:
            if step.ended() is not None and step.is_due():
                self._say(f"node {step.host} is lost ({step.last_words()}); starting its step again")
                step.start(self._gcs)
        self._tell()

    def head_answers(self) -> bool:
        """Tell whether GCS takes connections: a driver that failed without it failed for no fault of its own."""
        host, _, port = self._gcs.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
        except OSError:
            return False
        return self._steps[0].ended() is None

    def _tell(self) -> None:
        """Write how the nodes stand, for `w2sr cluster status`."""
        standing = [(step.host, *_standing(step)) for step in self._steps]
        if standing != self._told:
            self._told = standing
            rows = [{"host": host, "alive": alive, "detail": detail} for host, alive, detail in standing]
            with contextlib.suppress(OSError):  # a full disk must not end the job
                write_text(self._folder / NODES, json.dumps(rows))

    def stop(self) -> None:
        """End Ray on all nodes."""
        with contextlib.suppress(UserError):  # Slurm is ending them already, or does not answer: the wait decides
            slurm.end_steps(self._number)
        deadline = time.monotonic() + STOP_WAIT_S
        for step in self._steps:
            step.wait(deadline)


def _node_folder(file: SlurmCluster, number: str, index: int) -> str:
    """Return a node's private folder: short, and the same when the job is queued again, so that what a killed one left is cleared."""
    key = "\0".join((file.name, number, str(index), str(home())))
    return f"{file.temp_dir.rstrip('/')}/w2sr-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _standing(step: Step) -> tuple[bool, str]:
    if step.ended() is not None:
        return False, f"lost: {step.last_words()}"
    found = step.ready()
    return found is not None, f"up at {found.address}" if found else "starting Ray"


def _is_fault(code: int) -> bool:
    """A keeper ends with 0 on SIGTERM, which Slurm sends to steps before it takes a node away."""
    return code not in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
