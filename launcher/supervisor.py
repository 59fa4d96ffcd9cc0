"""`python -m launcher.supervisor JOB_FOLDER`: keeps a job's driver running until the job is done, wherever a backend started it.

Always holds: at most one supervisor works on a run folder, and its driver ends with it. What it and the driver print goes to
JOB_FOLDER/supervisor.log, how the job stands to state.json. Reads from the environment RAY_ADDRESS (of the cluster; absent: a private Ray),
RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH (Ray reads them), W2SR_STOP_BY (ISO time at which work must be committed).

Exit codes: 0 done, 1 failed more often than `max_restarts` allows, 2 a mistake the user can mend, 75 run it again to go on, 130 cancelled
(JOB_FOLDER/cancel), 143 terminated.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from cluster.file_locks import take_lock
from launcher.attempt import busy
from launcher.home import Job, load_job
from launcher.job_state import CANCEL, CONFIG, LOG, PENDING, PHASES, RESTARTING, RUNNING, JobState, Try, write_state
from w2sr.config import PipelineConfig, load_config
from w2sr.errors import UserError

POLL_S = 0.2
HEARTBEAT_S = 5.0
SAY_EVERY_S = 10.0
# How long another command may still hold the run folder: a requeued job overlaps the dying one.
FREE_WAIT_S = 600.0
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 2.0, 60.0
# What a driver gets to end in, beyond generate.drain_timeout_s.
GRACE_S = 60.0
FINAL = (0, 2, os.EX_TEMPFAIL)
CANCELLED, TERMINATED = 130, 143
_PR_SET_PDEATHSIG = 1


class _Stopped(Exception):
    """Somebody cancelled the job, or terminated its supervisor."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Supervisor:
    """Runs one job in this process."""

    def __init__(self, job: Job, folder: Path) -> None:
        self._job, self._folder = job, folder
        self._terminated = False
        self._state = JobState(host=socket.gethostname(), pid=os.getpid())

    def run(self) -> int:
        """Run the job's stages; return the exit code. SIGTERM is caught while it works."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            config = load_config(self._folder / CONFIG)
            with self._alone():
                return self._end(*self._run_all(config))
        except _Stopped as stop:
            return self._end(stop.code, "cancelled" if stop.code == CANCELLED else "terminated by SIGTERM; `w2sr resume` goes on")
        except UserError as error:
            return self._end(2, str(error))

    def _run_all(self, config: PipelineConfig) -> tuple[int, str]:
        for command in commands(self._job, self._folder, config, dict(os.environ)):
            code, reason = self._run_one(command, config.generate.drain_timeout_s + GRACE_S)
            if code != 0:
                return code, reason
        return 0, "done"

    def _run_one(self, command: list[str], grace_s: float) -> tuple[int, str]:
        """Run a command until it ends with a code that another start would not change, or the budget is spent."""
        while True:
            self._wait_until_free()
            where = self._log_size()
            code = self._child(command, grace_s)
            if code in FINAL:
                return code, "done" if code == 0 else self._last_line(where)
            reason = _describe(code) + (f": {self._last_line(where)}" if code == 1 else "")
            if self._state.restarts >= self._job.max_restarts:
                return 1, f"{reason}; max_restarts={self._job.max_restarts} allows no further start"
            delay_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2**self._state.restarts)
            restarts = self._state.restarts + 1
            self._say(f"{reason}; start {restarts} of at most {self._job.max_restarts} again in {delay_s:g} s")
            self._note(phase=RESTARTING, reason=reason, restarts=restarts)
            self._rest(delay_s)

    def _child(self, command: list[str], grace_s: float) -> int:
        """Run one driver to its end, and end it politely when the job is to stop."""
        environment = os.environ | {"PYTHONPATH": _with_our_tree(os.environ.get("PYTHONPATH")), "PYTHONUNBUFFERED": "1"}
        cwd = self._job.cwd if Path(self._job.cwd).is_dir() else None  # relative paths in the configuration mean what they meant there
        # In a session of its own: a signal to our group must not reach it before we ask it to end.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, cwd=cwd, env=environment, start_new_session=True, preexec_fn=_end_with_parent
        )
        tries = self._state.tries
        self._say(f"started process {child.pid}")
        self._note(phase=RUNNING, reason="", tries=(*tries, Try(child.pid, time.time())))
        try:
            while child.poll() is None:
                self._rest(POLL_S)
        except _Stopped as stop:
            self._say(f"{'cancelled' if stop.code == CANCELLED else 'terminated'}: the driver has {grace_s:.0f} s to commit its work")
            _end(child, grace_s)
            raise
        finally:
            last = dataclasses.replace(self._state.tries[-1], ended=time.time(), exit_code=child.poll())
            self._note(tries=(*tries, last))
        return child.returncode

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the run folder's jobs against other supervisors; wait for one that is dying."""
        with open(self._folder.parent / ".lock", "a+", encoding="utf-8") as file:
            with self._waiting() as step:
                while not take_lock(file, fcntl.LOCK_EX, self._folder.parent):
                    file.seek(0)
                    step(f"job {file.read().strip() or 'unknown'}")
            file.truncate(0)
            file.write(f"{self._job.id} (process {os.getpid()} on {self._state.host})")
            file.flush()
            yield

    def _wait_until_free(self) -> None:
        with self._waiting() as step:
            while holder := busy(Path(self._job.run_dir)):
                step(f"process {holder}")

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[Any]:
        """Yield a function that waits a moment for who holds the run folder, says so now and then, and gives up in the end."""
        began, said = time.monotonic(), -SAY_EVERY_S

        def step(holder: str) -> None:
            nonlocal said
            waited_s = time.monotonic() - began
            if waited_s > FREE_WAIT_S:
                raise UserError(f"{holder} has worked in {self._job.run_dir} for {waited_s:.0f} s; stop it, then resume this job")
            if waited_s - said >= SAY_EVERY_S:
                said = waited_s
                self._say(f"waiting for {holder}, which works in {self._job.run_dir}")
                self._note(phase=PENDING, reason=f"waiting for {holder}")
            self._rest(POLL_S)

        yield step

    def _rest(self, seconds: float) -> None:
        """Let time pass. Raises _Stopped when the job is to stop."""
        until = time.monotonic() + seconds
        while True:
            if (self._folder / CANCEL).exists():
                raise _Stopped(CANCELLED)
            if self._terminated:
                raise _Stopped(TERMINATED)
            if time.time() - self._state.heartbeat > HEARTBEAT_S:
                self._note()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(POLL_S, left))

    def _end(self, code: int, reason: str) -> int:
        self._say(f"{PHASES[code]}: {reason}")
        self._note(phase=PHASES[code], reason=reason, exit_code=code)
        return code

    def _note(self, **changes: Any) -> None:
        self._state = dataclasses.replace(self._state, heartbeat=time.time(), **changes)
        with contextlib.suppress(OSError):  # a full disk ends the driver with a message of its own; the supervisor must outlive it
            write_state(self._folder, self._state)

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(f"[{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} supervisor] {text}", flush=True)

    def _on_sigterm(self, _signum: int, _frame: FrameType | None) -> None:
        self._terminated = True

    def _log_size(self) -> int:
        path = self._folder / LOG
        return path.stat().st_size if path.exists() else 0

    def _last_line(self, where: int) -> str:
        """Return the last line the driver printed since the log had `where` bytes."""
        path = self._folder / LOG
        if not path.exists():
            return ""
        with open(path, "rb") as file:
            file.seek(max(where, self._log_size() - 4096))
            lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("w2sr: ")[:500] if lines else ""


def commands(job: Job, folder: Path, config: PipelineConfig, environment: dict[str, str]) -> list[list[str]]:
    """Return the drivers' command lines: one `run`, or one for each of the job's stages."""
    overrides = []
    if environment.get("RAY_ADDRESS"):
        overrides.append(f"cluster.address={environment['RAY_ADDRESS']}")
    if environment.get("W2SR_STOP_BY"):
        stop_by = datetime.fromisoformat(environment["W2SR_STOP_BY"].replace("Z", "+00:00"))
        assert stop_by.tzinfo is not None, "W2SR_STOP_BY has no zone"
        if config.generate.stop_by is None or stop_by < config.generate.stop_by:
            overrides.append(f"generate.stop_by={stop_by.isoformat()}")
    return [[sys.executable, "-m", "launcher", verb, str(folder / CONFIG), *overrides] for verb in job.stages or ("run",)]


def _with_our_tree(path: str | None) -> str:
    root = str(Path(__file__).resolve().parents[1])
    return root if not path else path if root in path.split(os.pathsep) else f"{root}{os.pathsep}{path}"


def _end_with_parent() -> None:
    """Ask the kernel for SIGTERM when our parent dies: a driver must not go on that nobody supervises."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    child.terminate()
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _describe(code: int) -> str:
    if code >= 0:
        return f"the driver ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"the driver was killed by {name}" + (" (out of memory, or by hand)" if -code == signal.SIGKILL else "")


def main(arguments: list[str]) -> int:
    """Supervise the job in the folder given; print to its log."""
    folder = Path(arguments[0]).absolute()
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    return Supervisor(load_job(folder), folder).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
