"""`python -m launcher.slurm_batch FOLDER`: what a batch script does on the first node of its allocation.

It brings up Ray on all nodes and then runs the supervisor of the job in FOLDER, or holds the nodes for the cluster in FOLDER until they
are given back. What always holds: the token lies in the state folder, never in a run folder; Ray ends with this process, after the
supervisor; a job that is not done is queued again under its number if Slurm would let it run on (its time is nearly up, the head was lost),
and not after a cancel. A job that Slurm itself ends (cancelled, pre-empted) is Slurm's to queue again.

SIGTERM, from Slurm `grace_s` before the end or from anybody, lets the supervisor commit its work. Exit codes: the supervisor's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

from cluster.errors import ClusterError
from launcher import job_state, slurm
from launcher.cluster_file import ClusterFile, SlurmCluster
from launcher.home import ClusterState, Job, NodeState, OpenCluster, home, load_job
from launcher.ray_start import read_env_file
from launcher.slurm_nodes import Allocation, NodeLost, Nodes
from w2sr.config import load_config
from w2sr.errors import UserError

POLL_S = 0.3
# How long after each unanswered question Slurm is asked again; then it is given up.
ASK_AGAIN_S = (5.0, 15.0, 45.0)
AGAIN = os.EX_TEMPFAIL
CANCELLED, TERMINATED = 130, 143
STEPS = "slurm"
FAULT = "head-lost"


class _Stopped(Exception):
    """The job is to end before its supervisor has begun."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Batch:
    """What this process does, for a job or for a held cluster. Both have their folder, with cluster.json."""

    def __init__(self, folder: Path, allocation: Allocation) -> None:
        self.folder, self.allocation = folder, allocation
        file = ClusterFile.model_validate_json((folder / "cluster.json").read_text(encoding="utf-8")).root
        assert isinstance(file, SlurmCluster)
        self.file = file
        self.steps = folder / STEPS / f"{allocation.number}-{allocation.restart}"
        self._terminated = False

    def check(self) -> None:
        """Raise _Stopped when the job was cancelled or terminated."""
        if (self.folder / job_state.CANCEL).exists():
            raise _Stopped(CANCELLED)
        if self._terminated:
            raise _Stopped(TERMINATED)

    def run_job(self, job: Job) -> int:
        """Run the job's supervisor on a Ray of its own, and queue the job again if it is not done. Returns the exit code."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            with _token(home() / "tokens" / job.id) as token_path, self._nodes(token_path, open_dashboard=False) as nodes:
                nodes.start(self.check)
                say(f"Ray is up on {len(self.allocation.hosts)} nodes")
                code, reason = self._supervise(nodes, token_path)
        except _Stopped as stop:
            code, reason = stop.code, "cancelled" if stop.code == CANCELLED else "terminated by SIGTERM"
            if stop.code == TERMINATED and self._runs_on():
                code, reason = self._lost(job, NodeLost("the time was up before the job had begun; give a longer time_limit"))
        except NodeLost as lost:
            code, reason = self._lost(job, lost)
        except (UserError, ClusterError) as error:
            code, reason = 2, str(error)
        over = self._over() if code == AGAIN and not reason else ""
        if not over and code in (AGAIN, TERMINATED) and self._requeue(reason):
            return AGAIN
        reason = reason or over
        if reason:  # else the supervisor has said it
            say(reason)
            _write_state(self.folder, code, reason)
        return code

    def hold(self, cluster: OpenCluster) -> int:
        """Keep Ray up until SIGTERM, and tell everybody where it is. Returns the exit code."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        began = time.monotonic()
        assert cluster.token_path is not None
        cluster.token()
        try:
            with self._nodes(cluster.token_path, open_dashboard=True) as nodes:
                ready = nodes.start(self.check)
                found = tuple(
                    NodeState(host, node.address, node.pid, node.folder) for host, node in zip(self.allocation.hosts, ready, strict=True)
                )
                seconds = {"ray": round(time.monotonic() - began, 2)}
                cluster.save(
                    ClusterState(ready[0].gcs, ready[0].dashboard, found, time.time(), slurm_job=self.allocation.number, seconds=seconds)
                )
                say(f"Ray is up on {len(found)} nodes at {ready[0].gcs}")
                while True:
                    self.check()
                    nodes.tend()
                    time.sleep(POLL_S)
        except _Stopped:
            say("the nodes are given back")
            return 0
        except (NodeLost, UserError, ClusterError) as error:
            say(str(error))
            return 1
        finally:
            cluster.save(None)

    def _supervise(self, nodes: Nodes, token_path: Path) -> tuple[int, str]:
        """Run the supervisor to its end. Raises NodeLost when the head was lost, _Stopped when SIGTERM came before it could do anything."""
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "launcher.supervisor", str(self.folder)],
            stdin=subprocess.DEVNULL,
            env=self._environment(nodes, token_path),
        )
        asked = False
        try:
            while supervisor.poll() is None:
                if self._terminated and not asked:
                    asked = True
                    say("SIGTERM: the job commits its work")
                    supervisor.terminate()
                nodes.tend()
                time.sleep(POLL_S)
        finally:
            if supervisor.poll() is None:
                supervisor.terminate()
            supervisor.wait()
        code = supervisor.returncode
        if code == -signal.SIGTERM and self._terminated:
            raise _Stopped(TERMINATED)  # it had only just begun, and could not take the signal yet
        if code in (1, 2) and not nodes.head_answers():
            nodes.tend()  # says how it ended, if it has
            raise NodeLost("the head does not answer")
        return (code, "") if code >= 0 else (1, f"the supervisor was ended by signal {-code}")

    def _environment(self, nodes: Nodes, token_path: Path) -> dict[str, str]:
        variables = dict(os.environ)
        if self.file.env_file:
            variables |= read_env_file(Path(self.file.env_file).expanduser())  # the driver asks endpoints itself
        variables |= {"RAY_ADDRESS": nodes.gcs, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_path)}
        stop_by = self._stop_by()
        return variables | ({"W2SR_STOP_BY": stop_by} if stop_by else {})

    def _stop_by(self) -> str | None:
        """Return when work must be committed, see slurm.stop_by. Asks a few times. Raises UserError when Slurm does not answer."""
        for wait_s in ASK_AGAIN_S:
            try:
                return slurm.stop_by(self.allocation.number, self.file.grace_s)
            except UserError as error:
                say(f"{error}; asking again in {wait_s:g} s")
                time.sleep(wait_s)
                self.check()
        return slurm.stop_by(self.allocation.number, self.file.grace_s)

    def _over(self) -> str:
        """Return a sentence when the configuration's own time is over, so that the job would end at once whenever it is queued again."""
        stop_by = load_config(self.folder / job_state.CONFIG).generate.stop_by
        if stop_by is None or datetime.now(timezone.utc) < stop_by:
            return ""
        return f"generate.stop_by={stop_by.isoformat()} is over; submit the configuration with a later one, it goes on where it was"

    @contextlib.contextmanager
    def _nodes(self, token_path: Path, open_dashboard: bool) -> Iterator[Nodes]:
        nodes = Nodes(self.file, self.allocation, self.steps, token_path, open_dashboard, say)
        try:
            yield nodes
        finally:
            nodes.stop()

    def _lost(self, job: Job, lost: NodeLost) -> tuple[int, str]:
        """Return what becomes of a job whose head was lost: queued again, unless `max_restarts` were lost by no doing of Slurm."""
        if not lost.fault:
            return AGAIN, f"Slurm ended the node of the head ({lost})"
        (self.steps / FAULT).touch()
        faults = len(list(self.steps.parent.glob(f"{self.allocation.number}-*/{FAULT}")))
        if faults > job.max_restarts:
            return 1, f"{lost}; max_restarts={job.max_restarts} allows no further start"
        return AGAIN, f"{lost} ({faults} of at most {job.max_restarts})"

    def _requeue(self, reason: str) -> bool:
        """Queue the job again; tell whether that was done, or Slurm does it."""
        if not self.file.requeue or (self.folder / job_state.CANCEL).exists():
            return False
        if not self._runs_on():
            say("Slurm ends this job")
            return True
        say(f"queued again: {reason or 'not done yet'}")
        _write_state(self.folder, AGAIN, reason or "time was nearly up")
        try:
            slurm.requeue(self.allocation.number)
        except UserError as error:
            say(str(error))
            return False
        return True

    def _runs_on(self) -> bool:
        """Tell whether Slurm would let this job run on. If it does not answer, whatever happens next is its doing."""
        try:
            return slurm.is_running(self.allocation.number)
        except UserError as error:
            say(str(error))
            return False

    def _on_sigterm(self, _signum: int, _frame: FrameType | None) -> None:
        self._terminated = True


def say(text: str) -> None:
    """Tell whoever follows the job's log, or what is left of one."""
    with contextlib.suppress(OSError):  # a full disk must not end the job
        print(f"[{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} nodes] {text}", flush=True)


@contextlib.contextmanager
def _token(path: Path) -> Iterator[Path]:
    """Yield the path of a new token, which is gone afterwards."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.unlink(missing_ok=True)  # of an allocation that was killed
    with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _write_state(folder: Path, code: int, reason: str) -> None:
    before = job_state.read_state(folder)
    with contextlib.suppress(OSError):
        job_state.write_state(
            folder, dataclasses.replace(before, phase=job_state.PHASES[code], reason=reason, exit_code=code, heartbeat=time.time())
        )


def main(arguments: list[str]) -> int:
    """Run the job in the folder given, or hold nodes for the cluster in it."""
    folder = Path(arguments[0]).resolve()  # an element of an array comes by a link
    try:
        batch = Batch(folder, Allocation.of(os.environ))
    except UserError as error:
        print(f"w2sr: {error}", file=sys.stderr)
        return 2
    if (folder / "job.json").exists():
        return batch.run_job(load_job(folder))
    (folder / "state.json").unlink(missing_ok=True)  # of nodes that Slurm has taken away
    return batch.hold(OpenCluster(batch.file, folder, None))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
