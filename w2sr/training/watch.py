"""What is recorded of a training while it runs: numbers, where the time went, a profile, and who stands still."""

from __future__ import annotations

import json
import logging
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from w2sr.progress import MetricsLog
from w2sr.tables import write_text
from w2sr.training.dist import Group
from w2sr.training.feed import Step
from w2sr.training.flops import ModelFlops, peak_flops
from w2sr.training.profiling import Profiler
from w2sr.training.spec import TrainSpec
from w2sr.training.trackers import Tracker, open_trackers
from w2sr.training.watchdog import Watchdog

METRICS = "metrics.jsonl"
CONSOLE_EVERY_S = 10.0
_log = logging.getLogger(__name__)


class Watch:
    """Writes the numbers of a training on rank 0, from `first_step` (from 1) on; knows on every rank where the time of a step went.

    `model` is the student. `close` when it ends, after `finished` was set if it is at its end.
    """

    def __init__(self, spec: TrainSpec, group: Group, first_step: int, model: Any) -> None:
        output, watch = Path(spec.output), spec.train.watch
        self.finished = False
        self._spec, self._group = spec, group
        self._seconds: dict[str, float] = {}
        self._longest: dict[str, float] = {}
        self._step_s = 0.0
        self._data_wait_s = self._memory_gb = 0.0
        self._last_line = time.monotonic()
        self._logs: list[MetricsLog | Tracker] = []
        _forget_peak(group.device)
        with ExitStack() as stack:
            self._watchdog = Watchdog(output, group.rank, group.world_size, watch.step_timeout_s)
            stack.callback(self._watchdog.close)
            self._profiler = Profiler(watch.profile, output, group.rank)
            stack.callback(self._profiler.close)
            if group.rank == 0:
                self._flops = ModelFlops.of(model)
                self._peak = watch.peak_flops or peak_flops(group.device, spec.train.precision)
                if self._peak is None:
                    _log.warning("no MFU: the peak of this GPU is not known here; give train.watch.peak_flops")
                forget_steps_from(output / METRICS, first_step - 1)
                self._logs.append(stack.enter_context(MetricsLog(output, first_step)))
                for tracker in open_trackers(spec):
                    self._logs.append(tracker)
                    stack.callback(lambda tracker=tracker: tracker.close(self.finished))  # type: ignore[misc]
            self._stack = stack.pop_all()

    @property
    def next_s(self) -> float:
        """About how many seconds may go until a stop that is not asked for now is saved: two steps, an evaluation and a checkpoint each."""
        return 2 * (self._step_s + sum(self._longest.values()))

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Do optimizer step `number` (from 1) inside."""
        began = time.monotonic()
        self._watchdog.begin(number)
        with self._profiler.step(number):
            yield
        self._watchdog.end()
        self._step_s = time.monotonic() - began
        self._profiler.write_after(number)

    def waits(self, number: int) -> None:
        """Say, every few seconds, that optimizer step `number` (from 1) cannot begin because its rows are not there."""
        self._watchdog.rest(number)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the time inside as spent on `what`: data, selection, checkpoint."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self._seconds[what] = self._seconds.get(what, 0.0) + seconds
            if what != "data":
                self._longest[what] = max(self._longest.get(what, 0.0), seconds)

    def summed(self, values: Sequence[float]) -> list[float]:
        """Return the sums of `values` over ranks; with them travels what is measured on each rank. Every rank calls it in every step."""
        columns = self._group.columns([*values, self._seconds.pop("data", 0.0), _memory_bytes(self._group.device) / 1e9])
        self._data_wait_s, self._memory_gb = max(columns[-2]), max(columns[-1])
        return [sum(column) for column in columns[:-2]]

    def of_step(self, step: Step, seconds: float) -> dict[str, float]:
        """Return how fast `step` was and what it took: of the slowest or fullest rank where ranks differ. Empty but on rank 0.

        `mfu`: ModelFlops of the step's rows, over what all devices could have done in `seconds`. `checkpoint_stall_s` and `selection_s`
        are the time between the step before and this one's end.
        """
        if not self._logs:
            return {}
        rate, size = step.num_tokens / seconds, self._group.world_size
        values = {"tokens_per_s": round(rate, 1), "tokens_per_s_per_device": round(rate / size, 1)}
        if self._peak is not None:
            values["mfu"] = round(self._flops.of_rows(step.lengths) / seconds / size / self._peak, 4)
        values |= {"peak_memory_gb": round(self._memory_gb, 3), "data_wait_s": round(self._data_wait_s, 4)}
        spent = {"checkpoint": "checkpoint_stall_s", "selection": "selection_s"}
        values |= {name: round(self._seconds.pop(what), 4) for what, name in spent.items() if what in self._seconds}
        return values

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record `values` after `step` optimizer steps."""
        for log in self._logs:
            log.log(step, values)
        now = time.monotonic()
        if self._logs and now - self._last_line > CONSOLE_EVERY_S:
            self._last_line = now
            _log.info("%s: step %d, %s", self._spec.name, step, ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def close(self) -> None:
        """Flush what was recorded."""
        self._stack.close()


def _memory_bytes(device: Any) -> int:
    """Return the most memory that this process has had: what torch has given out of the GPU's, or resident memory."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _forget_peak(device: Any) -> None:
    """Let the most memory of a GPU be counted from now on: this process may have trained and exported another student before."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def forget_steps_from(path: Path, step: int) -> None:
    """Drop rows of metrics.jsonl past `step` optimizer steps: they are about to be done again. A torn last line goes too."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # a kill in the middle of a write
        if row["step"] <= step and step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))
