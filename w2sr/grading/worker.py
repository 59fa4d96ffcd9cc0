"""The process that judges difficult answers: `python -m w2sr.grading.worker GRADER TIMEOUT_S MEMORY_BYTES`.

It reads one JSON list of questions a line from standard input and writes one JSON pair (verdict, reason) a line for each of them, in order;
"ready" comes first. It ends when its input ends. Its owner kills it when an answer takes too long.
"""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import signal
import sys
from typing import TextIO


def main(grader: str, timeout_s: float, memory_bytes: int) -> None:
    """Answer questions until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; our owner decides when we end
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = _take_stdout()
    _warm_up(grader)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    _say(replies, "ready")
    for line in sys.stdin:
        for question in json.loads(line):
            _limit_cpu(timeout_s)
            _say(replies, judge(question))


def judge(question: list[str]) -> tuple[str, str]:
    """Return (verdict, reason) of one question."""
    from w2sr.grading.graders import Question, judge_fully

    try:
        return judge_fully(Question(*question))
    except MemoryError:
        return "unverifiable", "memory"


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
