"""A pool of killable grading processes.

Invariants: every question gets exactly one judgement, in the order of the questions; a question that takes too long,
eats too much memory or kills its process costs that process and nothing else; no process outlives the pool.

These are plain child processes and no multiprocessing ones: they grade in their own main thread, can be killed at any point, and never
import the caller's main module. Each keeps a forked child that does the work (worker.py), so a runaway answer costs its timeout and no
imports. The timeout counts processor time: on a busy machine an answer gets its time all the same, up to a limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import w2sr
from w2sr.errors import UserError
from w2sr.grading.graders import Judgement, Question
from w2sr.records import Verdict

MEMORY_BYTES = 4 << 30  # address space of a worker: sympy and numpy map about 1 GiB, a runaway expression takes all there is
_START_TIMEOUT_S = 300.0  # imports on a loaded machine
_RESTART_TIMEOUT_S = 60.0  # a fork on a loaded machine
_WALL_FACTOR = 10  # an answer may wait this many times its timeout for a processor
_MAX_FAILED_STARTS = 3  # in a row
_MAX_BATCH = 64
_QUESTIONS_A_WORKER = 8  # fewer are not worth another process
_TICK = os.sysconf("SC_CLK_TCK")


class _Worker:
    """One grading process and the numbers of the questions it holds."""

    def __init__(self, grader: str, timeout_s: float, memory_bytes: int) -> None:
        root = str(Path(w2sr.__file__).parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "w2sr.grading.worker", grader, str(timeout_s), str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.has_started = self.is_ready = False
        self.held: deque[int] = deque()
        self.deadline = time.monotonic() + _START_TIMEOUT_S
        self.batch = 0
        self._timeout_s = timeout_s
        self._child = 0
        self._began = self._cpu_s = 0.0  # of the question it is at: when, and the CPU seconds that its child had used
        self._unread = b""

    def send(self, numbers: Sequence[int], questions: Sequence[Question]) -> None:
        """Hand over questions. A process that has just died is noticed at the next read."""
        self.held.extend(numbers)
        self.batch += 1
        self.begin_question(self._cpu_s)
        with contextlib.suppress(BrokenPipeError):
            # The worker reads the whole line before it replies, so this cannot deadlock on full pipes.
            self.stdin.write(json.dumps([self.batch, [questions[number] for number in numbers]]).encode() + b"\n")
            self.stdin.flush()

    def read(self) -> list[list[Any]] | None:
        """Return the replies that have arrived; None when the process has ended."""
        data = os.read(self.stdout.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def begin_question(self, cpu_s: float) -> None:
        """Give the question it is at its time, from now on; `cpu_s` is what its child has used so far."""
        self._began, self._cpu_s = time.monotonic(), cpu_s
        self.deadline = self._began + self._timeout_s

    def begin_child(self, pid: int, cpu_s: float) -> None:
        """Take note of a new child that waits for questions."""
        self.has_started = self.is_ready = True
        self._child, self._cpu_s = pid, cpu_s

    def is_late(self) -> bool:
        """Return whether the question it is at has used up its time; if it has only waited for a processor, it is given more."""
        used_s = self._used_s()
        if used_s is None or used_s >= self._timeout_s or time.monotonic() - self._began >= _WALL_FACTOR * self._timeout_s:
            return True
        self.deadline = time.monotonic() + max(0.05, self._timeout_s - used_s)
        return False

    def kill_child(self) -> None:
        """End the child that does the work; another one follows."""
        self.process.send_signal(signal.SIGUSR1)
        self.is_ready = False
        self.deadline = time.monotonic() + _RESTART_TIMEOUT_S

    def _used_s(self) -> float | None:
        try:
            fields = Path(f"/proc/{self._child}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / _TICK - self._cpu_s  # utime and stime, proc(5)

    def kill(self) -> str:
        """End the process and return the last of what it said on standard error."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.stdin, self.stdout):
            with contextlib.suppress(BrokenPipeError):  # what was buffered for the dead process
                pipe.close()
        self.errors.seek(max(0, self.errors.seek(0, os.SEEK_END) - 2000))
        said = self.errors.read().decode(errors="replace").strip()
        self.errors.close()
        return said


class GradingPool:
    """Judges questions in up to `num_workers` processes, which are started when the first question comes. Use as a context manager."""

    def __init__(self, grader: str, num_workers: int, timeout_s: float, memory_bytes: int = MEMORY_BYTES) -> None:
        self._grader = grader
        self._num_workers = num_workers
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._workers: list[_Worker] = []
        self._questions: Sequence[Question] = ()
        self._judgements: list[Judgement | None] = []
        self._queue: deque[int] = deque()
        self._num_failed_starts = 0

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """Return the judgement of each question, in order. Raises UserError when a process cannot start."""
        self._questions, self._judgements = questions, [None] * len(questions)
        self._queue = deque(range(len(questions)))
        wanted = min(self._num_workers, -(-len(questions) // _QUESTIONS_A_WORKER))
        while len(self._workers) < wanted:
            self._workers.append(self._start())
        while self._queue or any(worker.held for worker in self._workers):
            self._feed()
            self._listen()
            self._kill_late()
        judged = [judgement for judgement in self._judgements if judgement is not None]
        assert len(judged) == len(questions), "a question was lost"
        return judged

    def close(self) -> None:
        """End all processes."""
        while self._workers:
            self._workers.pop().kill()

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _start(self) -> _Worker:
        return _Worker(self._grader, self._timeout_s, self._memory_bytes)

    def _feed(self) -> None:
        for worker in self._workers:
            if worker.is_ready and not worker.held and self._queue:
                # Smaller batches towards the end, so that the processes finish together.
                size = max(1, min(_MAX_BATCH, len(self._queue) // (2 * len(self._workers))))
                worker.send([self._queue.popleft() for _ in range(size)], self._questions)

    def _listen(self) -> None:
        waiting = [worker for worker in self._workers if worker.held or not worker.is_ready]
        with selectors.DefaultSelector() as selector:
            for worker in waiting:
                selector.register(worker.stdout, selectors.EVENT_READ, worker)
            patience_s = max(0.0, min(worker.deadline for worker in waiting) - time.monotonic())
            ready = [key.data for key, _ in selector.select(patience_s)]
        for worker in ready:
            replies = worker.read()
            if replies is None:
                self._bury(worker, Judgement("unverifiable", "crashed"))
                continue
            for reply in replies:
                self._take(worker, *reply)

    def _take(self, worker: _Worker, kind: str, number: int, cpu_s: float, *judgement: str) -> None:
        if kind == "ready":
            self._give_back(worker, Judgement("unverifiable", "crashed"))  # nothing, unless a child died by itself
            worker.begin_child(number, cpu_s)
        elif number == worker.batch and worker.held and worker.is_ready:  # else: from a batch that was taken away
            verdict, reason = judgement
            self._judgements[worker.held.popleft()] = Judgement(cast(Verdict, verdict), reason)
            worker.begin_question(cpu_s)

    def _kill_late(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            if now < worker.deadline:
                continue
            if not worker.is_ready:
                self._bury(worker, Judgement("unverifiable", "timeout"))
            elif worker.held and worker.is_late():
                worker.kill_child()
                self._give_back(worker, Judgement("unverifiable", "timeout"))

    def _give_back(self, worker: _Worker, judgement: Judgement) -> None:
        """Take its questions from a worker: the one it was at gets `judgement`, the others go back to the front of the queue."""
        if worker.held:
            self._judgements[worker.held.popleft()] = judgement
        self._queue.extendleft(reversed(worker.held))
        worker.held.clear()

    def _bury(self, worker: _Worker, judgement: Judgement) -> None:
        """Replace a process that has ended, or does not start; the question it was at gets `judgement`."""
        said = worker.kill()
        self._workers.remove(worker)
        self._num_failed_starts = 0 if worker.has_started else self._num_failed_starts + 1
        # A start that was killed from outside is tried again; one that ended by itself would end again.
        if not worker.has_started and (worker.process.returncode > 0 or self._num_failed_starts == _MAX_FAILED_STARTS):
            last = said.splitlines()[-1] if said else f"exit code {worker.process.returncode}"
            raise UserError(f"a grading process for verify.grader={self._grader!r} could not start: {last}; check the installation")
        self._give_back(worker, judgement)
        if self._queue:
            self._workers.append(self._start())
