"""The same work by the pool and by ray.data's map_batches actors with the same engine, in turns.

    python -m benchmarks.pool_vs_ray_data fake --replicas 8 --repeats 3
    python -m benchmarks.pool_vs_ray_data hf --replicas 2 --repeats 3

fake: continuous batching (pool_engines.py). ray.data gets an asynchronous class as its own vLLM stage has: batches of 16 prompts, 8 of them
in an actor at a time, so that the engine's 64 slots are full; hf: transformers on the lab's teacher, batches of 32, a synchronous class.
Every turn is timed from nothing: actors started, models loaded, all answers in the driver. "work alone" takes the time to the first answer
off both, so that it does not count whose processes start faster.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from typing import Any

from benchmarks.pool_efficiency import Kind, fake_kind, hf_kind
from benchmarks.pool_engines import FakeEngine, Prompt, Prompts, spread
from cluster.config import ClusterSpec
from cluster.pool import Pool
from cluster.session import machine_cpus, ray_session

ASYNC_BATCH, ASYNC_BATCHES = 16, 8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["fake", "hf"])
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--share", type=int, default=0, help="prompts (hf: batches) of one replica")
    args = parser.parse_args()
    args.threads = False
    os.environ["RAY_DATA_DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY"] = str(ASYNC_BATCHES)
    whole: list[float] = []
    work: list[float] = []
    with ray_session(ClusterSpec(num_cpus=machine_cpus())):
        kind = hf_kind(args) if args.engine == "hf" else fake_kind(args)
        for _ in range(args.repeats):
            ours, theirs = by_pool(kind), by_ray_data(kind, args)
            assert ours[2] == theirs[2], f"{ours[2]} and {theirs[2]} tokens"
            whole.append(theirs[0] / ours[0])
            work.append((theirs[0] - theirs[1]) / (ours[0] - ours[1]))
            print(f"pool {ours[0]:.1f} s (first answer after {ours[1]:.1f}), ray.data {theirs[0]:.1f} s ({theirs[1]:.1f})", flush=True)
    print(f"{args.engine}, {args.replicas} replicas, {len(kind.payloads)} tasks: ray.data's time / the pool's = {spread(whole)}; ", end="")
    print(f"work alone: {spread(work)}")


def by_pool(kind: Kind) -> tuple[float, float, int]:
    """Return seconds in all, seconds to the first answer, and tokens."""
    began, first, tokens = time.perf_counter(), 0.0, 0
    with Pool() as pool:
        for outcome in pool.run([kind.service], Prompts("s", kind.payloads)):
            first = first or time.perf_counter() - began
            tokens += kind.tokens(outcome.result)
        took = time.perf_counter() - began
    return took, first, tokens


def by_ray_data(kind: Kind, args: argparse.Namespace) -> tuple[float, float, int]:
    """Return the same for ray.data."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    began, first, tokens = time.perf_counter(), 0.0, 0
    options: dict[str, Any] = {"concurrency": args.replicas, "num_cpus": kind.service.cpus}
    if args.engine == "fake":
        rows = ray.data.from_items([{"question": prompt.question, "length": prompt.num_tokens} for prompt in kind.payloads])
        done = rows.map_batches(AsyncEngine, batch_size=ASYNC_BATCH, **options)
    else:
        rows = ray.data.from_items([{"requests": batch} for batch in kind.payloads])
        done = rows.map_batches(BatchEngine, batch_size=1, fn_constructor_args=(kind,), **options)
    for row in done.iter_rows():
        first = first or time.perf_counter() - began
        tokens += int(row["tokens"])
    return time.perf_counter() - began, first, tokens


class AsyncEngine:
    """The fake engine as ray.data calls it."""

    def __init__(self) -> None:
        self._engine = FakeEngine()

    async def __call__(self, batch: dict[str, Any]) -> Any:
        """Complete the prompts of a batch."""
        prompts = [Prompt(str(question), int(length)) for question, length in zip(batch["question"], batch["length"])]
        answers = await asyncio.gather(*map(self._engine.run, prompts))
        yield {"text": [text for text, _ in answers], "tokens": [tokens for _, tokens in answers]}


class BatchEngine:
    """The hf engine as ray.data calls it."""

    def __init__(self, kind: Kind) -> None:
        self._loop = asyncio.new_event_loop()
        self._worker = kind.service.factory()
        self._loop.run_until_complete(self._worker.load(kind.service.spec))
        self._tokens = kind.tokens

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Complete one batch of requests."""
        (requests,) = batch["requests"]
        answer = self._loop.run_until_complete(self._worker.run(list(requests)))
        texts = [completion.text for completion in answer.completions]
        return {"text": ["\n".join(texts)], "tokens": [self._tokens(answer)]}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
