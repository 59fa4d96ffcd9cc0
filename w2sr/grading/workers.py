"""A pool of killable grading processes.

Invariants: every question gets exactly one judgement, in the order of the questions; a question that takes too long,
eats too much memory or kills its process costs that process and nothing else; no process outlives the pool.

These are plain child processes and no multiprocessing ones: they grade in their own main thread, can be killed at any point, and never
import the caller's main module.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import w2sr
from w2sr.errors import UserError
from w2sr.grading.graders import Judgement, Question

MEMORY_BYTES = 4 << 30  # address space of a worker: sympy and numpy map about 1 GiB, a runaway expression takes all there is
_START_TIMEOUT_S = 300.0  # imports on a loaded machine
_MAX_FAILED_STARTS = 3  # in a row
_MAX_BATCH = 32
_QUESTIONS_A_WORKER = 16  # fewer are not worth another process


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
        self.is_ready = False
        self.held: deque[int] = deque()
        self.deadline = time.monotonic() + _START_TIMEOUT_S
        self._unread = b""

    def send(self, numbers: Sequence[int], questions: Sequence[Question]) -> None:
        """Hand over questions. A process that has just died is noticed at the next read."""
        self.held.extend(numbers)
        with contextlib.suppress(BrokenPipeError):
            # The worker reads the whole line before it replies, so this cannot deadlock on full pipes.
            self.stdin.write(json.dumps([questions[number] for number in numbers]).encode() + b"\n")
            self.stdin.flush()

    def read(self) -> list[object] | None:
        """Return the replies that have arrived; None when the process has ended."""
        data = os.read(self.stdout.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [json.loads(line) for line in lines]

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
                worker.deadline = time.monotonic() + self._timeout_s
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
                self._take(worker, reply)

    def _take(self, worker: _Worker, reply: object) -> None:
        worker.deadline = time.monotonic() + self._timeout_s
        if reply == "ready":
            worker.is_ready = True
            return
        assert isinstance(reply, list), reply
        self._judgements[worker.held.popleft()] = Judgement(*reply)

    def _kill_late(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            if now >= worker.deadline and (worker.held or not worker.is_ready):
                self._bury(worker, Judgement("unverifiable", "timeout"))

    def _bury(self, worker: _Worker, judgement: Judgement) -> None:
        """Replace a process; the question it was at gets `judgement`, the others go back to the front of the queue."""
        said = worker.kill()
        self._workers.remove(worker)
        self._num_failed_starts = 0 if worker.is_ready else self._num_failed_starts + 1
        # A start that was killed from outside is tried again; one that ended by itself would end again.
        if not worker.is_ready and (worker.process.returncode > 0 or self._num_failed_starts == _MAX_FAILED_STARTS):
            last = said.splitlines()[-1] if said else f"exit code {worker.process.returncode}"
            raise UserError(f"a grading process for verify.grader={self._grader!r} could not start: {last}; check the installation")
        if worker.held:
            self._judgements[worker.held.popleft()] = judgement
        self._queue.extendleft(reversed(worker.held))
        if self._queue:
            self._workers.append(self._start())
