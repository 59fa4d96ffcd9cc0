"""What is recorded of a training while it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from w2sr.progress import MetricsLog
from w2sr.tables import write_text
from w2sr.training.dist import Group
from w2sr.training.spec import TrainSpec

METRICS = "metrics.jsonl"


class Watch:
    """Writes the numbers of a training on rank 0, from `first_step` (from 1) on; knows on every rank where the time of a step went."""

    def __init__(self, spec: TrainSpec, group: Group, first_step: int) -> None:
        self._stack = ExitStack()
        self._log: MetricsLog | None = None
        self._seconds: dict[str, float] = {}
        self._step_s = self._checkpoint_s = 0.0
        if group.rank == 0:
            forget_steps_from(Path(spec.output) / METRICS, first_step - 1)
            self._log = self._stack.enter_context(MetricsLog(Path(spec.output), first_step))

    @property
    def next_s(self) -> float:
        """About how many seconds the next step and a checkpoint take."""
        return self._step_s + self._checkpoint_s

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the time inside as spent on `what`: data, selection, checkpoint."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self._seconds[what] = self._seconds.get(what, 0.0) + seconds
            if what == "checkpoint":
                self._checkpoint_s = max(self._checkpoint_s, seconds)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record `values` after `step` optimizer steps."""
        if self._log is not None:
            self._log.log(step, values)

    def close(self) -> None:
        """Flush what was recorded."""
        self._stack.close()


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
