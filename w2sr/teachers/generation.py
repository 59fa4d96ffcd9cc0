"""Completes prompts into a folder of parts; the generate and the evaluate stage both do it here.

The requests of a generator are ordered (prompt order x sample index) and cut into fixed units; unit i becomes exactly
`part-{i:05d}.parquet`, written whole or not at all by the driver. What exists is not made again, so a killed run goes on where it was,
and the bytes of a part do not depend on replicas, order or restarts.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.actor_pool import ActorPool
from cluster.session import require
from w2sr.errors import UserError
from w2sr.progress import MetricsLog, Progress
from w2sr.records import FinishReason, Prompt, Trace, seed_of, trace_id_of
from w2sr.run import Run
from w2sr.tables import read_table, write_table
from w2sr.teachers.config import PoolConfig
from w2sr.teachers.engine import Completion, GeneratorSpec, Request
from w2sr.teachers.replica import HFWorkerFactory, UnitResult

GeneratorPool = ActorPool[GeneratorSpec, list[Request], UnitResult]


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


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The columns of a part that the totals are made of."""

    trace_id: str
    finish_reason: FinishReason
    num_tokens: int
    error: str | None


@contextmanager
def open_pool(run: Run, config: PoolConfig, what: str) -> Iterator[GeneratorPool]:
    """Open the run's Ray session and a pool of engine replicas in it. One pool serves several generators, one after another.

    `what` names the setting for messages, for example "teachers.0.pool" or "evaluate.pool". Raises ClusterError when the machine has too
    few processors.
    """
    replicas, cpus, gpus = config.replicas, config.cpus_per_replica, config.gpus_per_replica
    asked = f"{what}: replicas={replicas} with cpus_per_replica={cpus:g} and gpus_per_replica={gpus:g}"
    check = functools.partial(require, asked, replicas * cpus, replicas * gpus, run.config.cluster.spec())
    check()  # before Ray starts, which takes seconds
    with run.ray():
        check()  # a cluster at an address knows only now what it has
        factory = HFWorkerFactory(num_threads=max(1, int(cpus)), device="cuda" if gpus else "cpu")
        pool: GeneratorPool
        with ActorPool(factory, replicas, cpus, gpus, config.max_attempts) as pool:
            yield pool


def generate_parts(
    pool: GeneratorPool,
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
    units = units_of(spec.name, prompts, samples_per_prompt, run_seed, unit_size)
    samples = len(prompts) * samples_per_prompt
    missing = {index: unit for index, unit in enumerate(units) if not part_path(folder, index).exists()}
    _check_existing(folder, units, missing)
    done = samples - sum(len(unit) for unit in missing.values())
    with Progress(title, samples, "traces", done) as progress:
        if missing:
            _generate_missing(pool, spec, missing, folder, len(units), progress)
    return _totals(folder, len(prompts), samples, spec)


def units_of(generator: str, prompts: Sequence[Prompt], samples_per_prompt: int, run_seed: int, unit_size: int) -> list[list[Request]]:
    """Return the ordered requests of a generator, cut in units: a function of its arguments and nothing else."""
    requests = []
    for prompt in prompts:
        for sample_index in range(samples_per_prompt):
            trace_id = trace_id_of(prompt.prompt_id, generator, sample_index)
            requests.append(Request(trace_id, prompt.prompt_id, sample_index, prompt.question, seed_of(run_seed, trace_id)))
    return [requests[start : start + unit_size] for start in range(0, len(requests), unit_size)]


def part_path(folder: Path, index: int) -> Path:
    """Return the file of unit `index`."""
    return folder / f"part-{index:05d}.parquet"


def part_paths(folder: Path, num_samples: int, unit_size: int) -> list[Path]:
    """Return the files that hold `num_samples` requests."""
    return [part_path(folder, index) for index in range(-(-num_samples // unit_size))]


def _check_existing(folder: Path, units: list[list[Request]], missing: dict[int, list[Request]]) -> None:
    expected = {part_path(folder, index): unit for index, unit in enumerate(units) if index not in missing}
    for path in sorted(folder.glob("part-*.parquet")):
        found = [row.trace_id for row in read_table(path, _Outcome)]
        if path not in expected or found != [request.trace_id for request in expected[path]]:
            raise UserError(
                f"{path} holds other traces than this run asks for; it was put there or changed from outside: remove it and run again"
            )
    for aside in folder.glob(".part-*.aside"):
        aside.unlink()  # of an attempt that was killed while it wrote; this driver is the only writer


def _generate_missing(
    pool: GeneratorPool, spec: GeneratorSpec, missing: dict[int, list[Request]], folder: Path, num_units: int, progress: Progress
) -> None:
    done, tokens, began = num_units - len(missing), 0, time.monotonic()
    pool.load(spec)
    with MetricsLog(folder) as metrics:
        for index, result in pool.map(missing):
            traces = [
                _trace(spec, request, completion, result) for request, completion in zip(missing[index], result.completions, strict=True)
            ]
            write_table(part_path(folder, index), traces, Trace)
            done += 1
            unit_tokens = sum(trace.num_tokens for trace in traces)
            tokens += unit_tokens
            rate = tokens / (time.monotonic() - began)
            row = {
                "traces": len(traces),
                "tokens": unit_tokens,
                "device_seconds": round(result.seconds, 4),
                "tokens_per_second": round(rate, 1),
            }
            metrics.log(done, row)
            progress.advance(len(traces), tokens_per_s=round(rate))


def _trace(spec: GeneratorSpec, request: Request, completion: Completion, result: UnitResult) -> Trace:
    return Trace(
        trace_id=request.trace_id,
        prompt_id=request.prompt_id,
        generator=spec.name,
        sample_index=request.sample_index,
        text=completion.text,
        finish_reason=completion.finish_reason,
        num_prompt_tokens=completion.num_prompt_tokens,
        num_tokens=completion.num_tokens,
        seed=request.seed,
        template_hash=result.template_hash,
        model_digest=spec.model_digest,
        engine=result.engine,
        error=completion.error,
    )


def _totals(folder: Path, num_prompts: int, samples: int, spec: GeneratorSpec) -> Totals:
    rows = read_table(folder, _Outcome)
    assert len(rows) == samples, f"{len(rows)} traces in {folder}, not {samples}"
    errors = [row.error for row in rows if row.finish_reason == "error"]
    if len(errors) == samples:
        raise UserError(
            f"generator {spec.name}: all {samples} requests failed, the first because {errors[0]}. "
            f"Correct that and remove {folder} to try again"
        )
    return Totals(
        prompts=num_prompts,
        samples=samples,
        traces=samples - len(errors),
        failed=len(errors),
        tokens=sum(row.num_tokens for row in rows),
        device_seconds=_device_seconds(folder / "metrics.jsonl"),
        first_error=errors[0] if errors else None,
    )


def _device_seconds(path: Path) -> float:
    """Sum what all attempts logged. A line that a kill left torn is passed over: this is a cost, not a result."""
    total = 0.0
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            total += float(json.loads(line)["device_seconds"])
        except (json.JSONDecodeError, KeyError):
            continue
    return total
