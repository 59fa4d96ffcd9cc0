"""Where the answers of one generator go: rows of its store, numbers in its metrics, a moving progress bar."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence

from cluster.work import Outcome, ServiceStatus
from w2sr.progress import MetricsLog, Progress
from w2sr.records import Trace
from w2sr.teachers.engine import Completion, GeneratorSpec, Request
from w2sr.teachers.worker import Answer
from w2sr.traces.store import TraceStore

# Intervals of a replica that a task may still reach back into; older ones are only a sum.
OPEN_INTERVALS = 1000


class BusyTime:
    """How long each replica was at work, tasks that overlapped counted once: the length of the union of their intervals."""

    def __init__(self) -> None:
        self._intervals: dict[str, deque[tuple[float, float]]] = {}
        self._settled = 0.0

    def add(self, replica: str, ended: float, seconds: float) -> None:
        """Add a task that ended at `ended` after `seconds`; calls come in the order of ending."""
        began, intervals = ended - seconds, self._intervals.setdefault(replica, deque())
        while intervals and intervals[-1][1] >= began:
            began = min(began, intervals.pop()[0])
        intervals.append((began, ended))
        if len(intervals) > OPEN_INTERVALS:
            first, last = intervals.popleft()
            self._settled += last - first

    @property
    def seconds(self) -> float:
        """The sum over all replicas."""
        return self._settled + sum(ended - began for intervals in self._intervals.values() for began, ended in intervals)


class Sink:
    """Takes the outcomes of one generator. `every_s`: seconds between two rows of metrics."""

    def __init__(self, spec: GeneratorSpec, store: TraceStore[Trace], progress: Progress, every_s: float) -> None:
        self.unavailable: list[Request] = []
        self.last_reason = ""
        self.num_failed = 0
        self._spec = spec
        self._store = store
        self._progress = progress
        self._every_s = every_s
        self._metrics = MetricsLog(store.folder)
        self._busy = BusyTime()
        self._began = self._logged_at = time.monotonic()
        self._tokens = 0
        self._logged = {"rows": store.num_rows, "tokens": 0, "busy": 0.0, "failed": 0}
        self._tokens_of: Counter[str] = Counter()

    def take(self, outcome: Outcome) -> list[Trace]:
        """Store what came of a task and return its rows. Requests that could not be made are kept in `unavailable`, not stored."""
        requests: list[Request] = outcome.task.payload
        if outcome.failure is not None and outcome.failure.kind == "unavailable":
            self.unavailable += requests
            self.last_reason = outcome.failure.reason
            return []
        if outcome.failure is not None:
            rows = [_quarantined(self._spec, request, outcome.failure.reason) for request in requests]
        else:
            rows = rows_of(self._spec, requests, outcome.result)
        self._store.append(rows)
        self._busy.add(outcome.replica, time.monotonic(), outcome.seconds)
        tokens = sum(row.num_tokens for row in rows)
        self._tokens += tokens
        self._tokens_of[outcome.replica] += tokens
        self.num_failed += sum(row.finish_reason == "error" for row in rows)
        self._progress.advance(len(rows))
        return rows

    def tick(self, status: ServiceStatus | None) -> None:
        """Show what the pool says, and log a row of metrics when it is time."""
        now = time.monotonic()
        if status is not None:
            self._progress.show(**self._shown(status, now))
        if now - self._logged_at >= self._every_s:
            self._log(now)

    def log_rest(self) -> None:
        """Log what has come since the last row of metrics."""
        self._log(time.monotonic())

    def close(self) -> None:
        """Log what is left and close the files."""
        self.log_rest()
        self._metrics.close()

    def _shown(self, status: ServiceStatus, now: float) -> dict[str, object]:
        shown: dict[str, object] = {"tok/s": round(self._tokens / max(1e-9, now - self._began)), "replicas": status.ready}
        if status.loading + status.unplaced:
            shown["starting"] = status.loading + status.unplaced
        if status.delayed:
            shown["retrying"] = status.delayed
        if self.num_failed or status.failed:
            shown["failed"] = self.num_failed + len(self.unavailable)
        if status.deaths:
            shown["deaths"] = status.deaths
        if status.waits_for:
            shown["waits for"] = status.waits_for
        return shown

    def _log(self, now: float) -> None:
        rows, busy, seconds = self._store.num_rows, self._busy.seconds, max(1e-9, now - self._logged_at)
        if rows == self._logged["rows"]:
            return
        tokens = self._tokens - int(self._logged["tokens"])
        values = {
            "traces": rows - self._logged["rows"],
            "tokens": tokens,
            "failed": self.num_failed - self._logged["failed"],
            "device_seconds": round(busy - self._logged["busy"], 4),
            "tokens_per_second": round(tokens / seconds, 1),
            **{f"tokens_per_second/{replica}": round(count / seconds, 1) for replica, count in sorted(self._tokens_of.items())},
        }
        self._metrics.log(rows, values)
        self._logged = {"rows": rows, "tokens": self._tokens, "busy": busy, "failed": self.num_failed}
        self._tokens_of.clear()
        self._logged_at = now


def rows_of(spec: GeneratorSpec, requests: Sequence[Request], answer: Answer) -> list[Trace]:
    """Return the rows of a task's requests and their answer."""
    made_by = (answer.engine, answer.engine_version, answer.model, answer.template_hash)
    return [_row(spec, request, completion, *made_by) for request, completion in zip(requests, answer.completions, strict=True)]


def _row(spec: GeneratorSpec, request: Request, completion: Completion, engine: str, version: str, model: str, template_hash: str) -> Trace:
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
        template_hash=template_hash,
        model_digest=spec.model_digest,
        engine=engine,
        error=completion.error,
        position=request.position,
        token_ids=None if completion.token_ids is None else list(completion.token_ids),
        engine_version=version,
        model=model,
    )


def _quarantined(spec: GeneratorSpec, request: Request, reason: str) -> Trace:
    completion = Completion("", "error", 0, 0, f"quarantined: {reason}")
    return _row(spec, request, completion, spec.engine.kind, "", "", "")
