"""Completes prompts into a folder of parts; the generate and the evaluate stage both do it here.

The requests of a generator are ordered (prompt order x sample index) and cut into fixed units; unit i becomes exactly
`part-{i:05d}.parquet`, written whole or not at all by the driver. What exists is not made again, so a killed run goes on where it was,
and the bytes of a part do not depend on replicas, order or restarts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.actor_pool import ActorPool
from w2sr.records import Prompt
from w2sr.run import Run
from w2sr.teachers.config import PoolConfig
from w2sr.teachers.engine import GeneratorSpec, Request
from w2sr.teachers.replica import UnitResult


@dataclass(frozen=True)
class Totals:
    """What a folder of parts holds: `samples` requests = `traces` completions + `failed` ones. `first_error` is one failure's reason."""

    prompts: int
    samples: int
    traces: int
    failed: int
    tokens: int
    device_seconds: float
    first_error: str | None

    def counts(self) -> dict[str, int]:
        """Return the manifest's counts: prompts, samples, traces, failed."""
        return {"prompts": self.prompts, "samples": self.samples, "traces": self.traces, "failed": self.failed}

    def usage(self) -> dict[str, float]:
        """Return the manifest's usage: generated tokens, and seconds during which a replica was at work."""
        return {"tokens": self.tokens, "device_seconds": round(self.device_seconds, 3)}


@contextmanager
def open_pool(run: Run, config: PoolConfig, what: str) -> Iterator[ActorPool[GeneratorSpec, list[Request], UnitResult]]:
    """Open the run's Ray session and a pool of engine replicas in it. One pool serves several generators, one after another.

    `what` names the setting for messages, for example "teachers.0.pool" or "evaluate.pool". Raises ClusterError when the machine has too few processors.
    """
    raise NotImplementedError
    yield


def generate_parts(
    pool: ActorPool[GeneratorSpec, list[Request], UnitResult],
    spec: GeneratorSpec,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    samples_per_prompt: int,
    run_seed: int,
    unit_size: int,
    title: str,
) -> Totals:
    """Make every missing part of `folder` with the generator `spec`; return what all parts hold.

    `title` heads the progress bar, for example "generate teacher". Seeds come from `run_seed` and the trace's id. Raises UserError for a
    part that is unreadable or holds other traces than it should, and when every request failed.
    """
    raise NotImplementedError
