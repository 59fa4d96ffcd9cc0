"""What a stage shows while it works: a progress bar on the console, numbers in `metrics.jsonl` and in TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm


class Progress:
    """A progress bar named after its stage. On a terminal it moves; in a log file it prints a line at most every ten seconds."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        live = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=f"{title:<28}",
            unit=f" {unit}",
            mininterval=0.2 if live else 10.0,
            dynamic_ncols=live,
            ncols=None if live else 110,
            file=sys.stderr,
            ascii=None if live else True,
        )

    def advance(self, amount: int = 1, **values: Any) -> None:
        """Move on by `amount` and show `values` behind the bar."""
        if values:
            self._bar.set_postfix(values, refresh=False)
        self._bar.update(amount)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()


class MetricsLog:
    """Numbers over steps, to `metrics.jsonl` and TensorBoard events in the same folder. One writer per folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._board = SummaryWriter(log_dir=str(folder))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write one row: `values` at `step`."""
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._board.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
