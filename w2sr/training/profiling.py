"""A trace of some optimizer steps, for chrome://tracing and Perfetto."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from w2sr.errors import UserError
from w2sr.training.watch_config import ProfileConfig

PROFILE = "profile"


def check_profile(config: ProfileConfig | None, num_steps: int) -> None:
    """Raise UserError when none of the steps that `config` names is among the `num_steps` of the training."""
    if config is not None and config.steps[0] > num_steps:
        raise UserError(
            f"train.watch.profile.steps={list(config.steps)}, but the training has {num_steps} steps; give some of them, or leave it out"
        )


class Profiler:
    """Records the steps that `config` names, on this rank, to profile/rank-N.json.gz. Costs nothing outside of them."""

    def __init__(self, config: ProfileConfig | None, output: Path, rank: int) -> None:
        self._steps = range(config.steps[0], config.steps[1] + 1) if config else range(0)
        self._path = output / PROFILE / f"rank-{rank}.json.gz"
        self._open: Any = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Do optimizer step `number` (from 1) inside."""
        if number not in self._steps:
            yield
            return
        from torch.profiler import profile, record_function

        if self._open is None:
            self._open = profile(acc_events=True)  # of all activities that this machine has: CPU, CUDA
            self._open.start()
        with record_function(f"step {number}"):
            yield

    def write_after(self, number: int) -> None:
        """Write the trace if `number` was its last step. Takes as long as many steps."""
        if self._steps and number == self._steps[-1]:
            self.close()

    def close(self) -> None:
        """Write what was recorded, be it all or, when the training stops before, a part."""
        if self._open is None:
            return
        trace, self._open, self._steps = self._open, None, range(0)
        trace.stop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(self._path))
