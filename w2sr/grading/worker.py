"""The process that judges difficult answers: `python -m w2sr.grading.worker GRADER TIMEOUT_S MEMORY_BYTES`.

It imports what grading needs, which takes seconds, and then only keeps a forked child alive that does the work. An answer that takes too
long costs that child; the next one is there at once.

Protocol, one JSON value a line: in comes [batch number, [question, ...]]; out goes ["ready", child's pid, its CPU seconds] when a child
begins, and ["judged", batch number, CPU seconds, verdict, reason] for each question, in order. SIGUSR1 to this process kills the child. All
ends when the input ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import TextIO

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(grader: str, timeout_s: float, memory_bytes: int) -> None:
    """Answer questions until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; our owner decides when we end
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = _take_stdout()
    _warm_up(grader)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    keep_child(lambda: _serve(replies, timeout_s))


def keep_child(serve: Callable[[], None]) -> None:
    """Run `serve` in a forked child, and in another one whenever a child dies; return when one ends by itself."""
    parent = os.getpid()
    while True:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _die_with(parent)
                with contextlib.suppress(BrokenPipeError):  # our owner is gone
                    serve()
                code = 0
            finally:
                os._exit(code)
        # The child cannot have been reaped when the handler runs, so the pid is its own. A signal that comes too early is sent again.
        signal.signal(signal.SIGUSR1, lambda *_, pid=child: os.kill(pid, signal.SIGKILL))
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return


def judge(question: list[str]) -> tuple[str, str]:
    """Return (verdict, reason) of one question."""
    from w2sr.grading.graders import Question, judge_fully

    try:
        return judge_fully(Question(*question))
    except MemoryError:
        return "unverifiable", "memory"


def _serve(replies: TextIO, timeout_s: float) -> None:
    _say(replies, ["ready", os.getpid(), time.process_time()])
    while line := sys.stdin.readline():
        batch, questions = json.loads(line)
        for question in questions:
            _limit_cpu(timeout_s)
            verdict, reason = judge(question)
            _say(replies, ["judged", batch, time.process_time(), verdict, reason])


def _die_with(parent: int) -> None:
    """End this process when its parent ends, however that happens (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _take_stdout() -> TextIO:
    """Keep the pipe for replies; whatever a library prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _warm_up(grader: str) -> None:
    logging.disable(logging.WARNING)  # math-verify warns that its own timeouts are off, which they are on purpose
    if grader == "math":
        from w2sr.grading.graders import judge_math

        judge_math("\\frac{1}{2}", "\\sqrt{2}")
        judge_math("(1,2]", "x=1")
    else:
        import reasoning_gym  # noqa: F401


def _limit_cpu(timeout_s: float) -> None:
    """End this process if one answer burns far more than its time: nobody else does once our owner has been killed."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(usage.ru_utime + usage.ru_stime + 2 * timeout_s + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _say(replies: TextIO, value: object) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
