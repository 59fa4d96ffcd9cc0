"""What the pool has to run for a generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.work import Service
from w2sr.errors import UserError
from w2sr.teachers.config import PoolConfig
from w2sr.teachers.engine import GeneratorSpec
from w2sr.teachers.worker import HFWorkerFactory, VLLMWorkerFactory

# Recorded traces are looked up, not made: as many at a time as make the bookkeeping cheap.
RECORDED_BATCH = 256


@dataclass(frozen=True)
class _Serving:
    """How an engine wants to be run: what makes its worker, how many tasks it has at a time, how many it sets aside."""

    factory: Callable[[], Any]
    capacity: int
    prefetch: int | None = None
    in_driver: bool = False
    python: str | None = None
    max_retries: int = 0


def service_of(spec: GeneratorSpec, pool: PoolConfig) -> Service:
    """Return the service that is the generator `spec`, with the replicas and resources of `pool`."""
    serving = _serving(spec, pool)
    return Service(
        name=spec.name,
        factory=serving.factory,
        spec=spec,
        # A thread of this process is enough for an endpoint or a file, however many requests it has at a time.
        min_replicas=1 if serving.in_driver else pool.min_replicas,
        max_replicas=1 if serving.in_driver else pool.replicas,
        cpus=pool.cpus_per_replica,
        gpus=pool.gpus_per_replica,
        capacity=serving.capacity,
        prefetch=serving.prefetch,
        python=serving.python,
        in_driver=serving.in_driver,
        start_timeout_s=pool.start_timeout_s,
        # At an endpoint it would count the wait for a turn too; an answer has engine.timeout_s.
        task_timeout_s=None if serving.in_driver else pool.task_timeout_s,
        max_retries=serving.max_retries,
        fatal=(UserError,),
    )


def batch_size_of(spec: GeneratorSpec) -> int:
    """Return the number of requests in a task: an engine with continuous batching takes them one by one."""
    if spec.engine.kind == "hf":
        return spec.engine.batch_size
    return RECORDED_BATCH if spec.engine.kind == "recorded" else 1


def _serving(spec: GeneratorSpec, pool: PoolConfig) -> _Serving:
    engine = spec.engine
    num_threads, device = max(1, int(pool.cpus_per_replica)), "cuda" if pool.gpus_per_replica else "cpu"
    if engine.kind == "hf":
        # Several batches at its side: those of a small model take less time than a message to the driver and back.
        return _Serving(HFWorkerFactory(num_threads, device), capacity=1, prefetch=8)
    if engine.kind == "vllm":
        # vLLM may abort a request that it could serve a moment later.
        return _Serving(VLLMWorkerFactory(num_threads, device), engine.max_in_flight, python=engine.python, max_retries=4)
    if engine.kind == "openai":
        from w2sr.teachers.openai_engine import OpenAIWorkerFactory

        return _Serving(OpenAIWorkerFactory(), engine.max_in_flight, prefetch=0, in_driver=True, max_retries=engine.max_retries)
    from w2sr.teachers.recorded import RecordedWorkerFactory

    return _Serving(RecordedWorkerFactory(), capacity=1, prefetch=0, in_driver=True)
