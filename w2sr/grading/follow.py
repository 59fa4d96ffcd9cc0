"""Verdicts while traces are still being made: a thread that judges what generation commits.

It changes nothing but the time at which work is done: what it has not reached when generation ends is left to the verify stage, and so is a
fault that it meets.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType

from w2sr.errors import UserError
from w2sr.grading.config import VerifyConfig
from w2sr.grading.grade import Grader
from w2sr.grading.verdicts import Sieve, Subject, batches
from w2sr.records import Prompt

log = logging.getLogger(__name__)


class Following:
    """Judges the traces of `subjects` as they are committed. Use as a context manager, inside of which the traces' stages have begun."""

    def __init__(
        self, subjects: Sequence[Subject], prompts: Sequence[Prompt], prompts_digest: str, config: VerifyConfig, interval_s: float = 20.0
    ) -> None:
        self._subjects = subjects
        self._prompts: Mapping[str, Prompt] = {prompt.prompt_id: prompt for prompt in prompts}
        self._prompts_digest = prompts_digest
        self._config = config
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="verify", daemon=True)
        self.num_judged = 0

    def __enter__(self) -> Following:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._follow()
        except (UserError, OSError) as error:
            log.warning("verdicts on unfinished traces: %s; the verify stage will judge them", error)

    def _follow(self) -> None:
        sieve = Sieve(self._config, self._prompts)
        with ExitStack() as stack:
            grader = stack.enter_context(Grader(self._config))
            open_subjects = []
            for subject in self._subjects:
                if subject.has_begun:
                    continue  # verdicts on other traces, which were removed since: the stage will say so
                origin = subject.origin(self._config, self._prompts_digest)
                store = stack.enter_context(subject.open_early(origin, self._interval_s))
                open_subjects.append((store, subject.unjudged(store)))
            while not self._ended.wait(self._interval_s):
                for store, follower in open_subjects:
                    for traces in batches(follower):
                        ready = sieve.pass_through(traces)
                        store.append(grader.grade(ready, self._prompts))
                        self.num_judged += len(ready)
                        if self._ended.is_set():
                            return
