"""Grading on the processors of a Ray cluster, through the pool: for stores of many traces."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.pool import Pool
from cluster.work import Service, Task
from w2sr.errors import UserError
from w2sr.grading.config import VerifyConfig
from w2sr.grading.grade import Grader
from w2sr.records import Prompt, Trace, Verification

SERVICE = "verify"


class GradeWorker:
    """The pool's worker: a grader with one grading process of its own, so that nothing an answer does reaches the replica."""

    def __init__(self) -> None:
        self._grader: Grader | None = None

    async def load(self, spec: VerifyConfig) -> None:
        """Judge by `spec` from now on."""
        await self.close()
        self._grader = Grader(spec.model_copy(update={"workers": 1}))

    async def run(self, payload: tuple[list[Trace], dict[str, Prompt]]) -> list[Verification]:
        """Judge the traces of one task, with the prompts they answer."""
        assert self._grader is not None, "load() comes before run()"
        return await asyncio.to_thread(self._grader.grade, *payload)

    async def close(self) -> None:
        """End the grading process."""
        if self._grader is not None:
            self._grader.__exit__(None, None, None)
        self._grader = None


class _Source:
    """Batches of traces as tasks: a `cluster.work.Source`."""

    def __init__(self, batches: Iterator[list[Trace]], prompts: Mapping[str, Prompt]) -> None:
        self._batches = enumerate(batches)
        self._prompts = prompts
        self._ahead = next(self._batches, None)

    def next(self, service: str) -> Task | None:
        if self._ahead is None:
            return None
        key, traces = self._ahead
        self._ahead = next(self._batches, None)
        asked = {trace.prompt_id: self._prompts[trace.prompt_id] for trace in traces}
        # Token ids are most of a trace's bytes and say nothing about its answer.
        return Task(service, key, ([dataclasses.replace(trace, token_ids=None) for trace in traces], asked))

    def exhausted(self, service: str) -> bool:  # noqa: ARG002 - there is one
        return self._ahead is None


def grade_remotely(
    pool: Pool, batches: Iterator[list[Trace]], prompts: Mapping[str, Prompt], config: VerifyConfig, fallback: Grader
) -> Iterator[Sequence[Verification]]:
    """Yield the verdicts on all batches, in the order in which they are done, by up to `config.workers` replicas.

    What the pool gives up is judged here, by `fallback`. Raises UserError as Grader.grade does, ClusterError when no replica starts.
    """
    service = Service(SERVICE, GradeWorker, spec=config, max_replicas=config.workers, capacity=1, prefetch=2, fatal=(UserError,))
    for outcome in pool.run([service], _Source(batches, prompts)):
        result: Any = outcome.result
        yield result if outcome.failure is None else fallback.grade(*outcome.task.payload)
