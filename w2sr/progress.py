"""What a stage shows while it works: a progress bar on the console, numbers in `metrics.jsonl` and in TensorBoard."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm


class Progress:
    """A progress bar named after its stage. In a log file, where a bar cannot move, it writes a line every ten seconds and at the end."""

    LINE_EVERY_S = 10.0

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self._live = sys.stderr.isatty()
        # Without a terminal the bar only keeps count; its lines are written by _write_line.
        out = sys.stderr if self._live else io.StringIO()
        self._bar = tqdm(total=total, initial=done, desc=f"{title:<28}", unit=f" {unit}", dynamic_ncols=True, file=out, mininterval=0.2)
        self._last_line = time.monotonic()
        self._total, self._first = total, done

    def advance(self, amount: int = 1, **values: Any) -> None:
        """Move on by `amount` and show `values` behind the bar."""
        self._bar.update(amount)
        self.show(**values)

    def show(self, **values: Any) -> None:
        """Show `values` behind the bar, whether it moves or not."""
        if values:
            self._bar.set_postfix(values, refresh=self._live)
        if not self._live and time.monotonic() - self._last_line > self.LINE_EVERY_S:
            self._write_line()

    def _write_line(self) -> None:
        bar = self._bar
        elapsed, moved, missing = bar.format_dict["elapsed"], bar.n - self._first, self._total - bar.n
        left = f", {elapsed / moved * missing:.0f} s to go" if moved > 0 and missing > 0 else ""
        shown = f", {bar.postfix}" if bar.postfix else ""
        print(
            f"{bar.desc.rstrip(': ')}: {bar.n}/{bar.total}{bar.unit} in {elapsed:.0f} s{left}{shown}",
            file=sys.stderr,
            flush=True,
        )
        self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if not self._live:
            self._write_line()


class MetricsLog:
    """Numbers over steps, to `metrics.jsonl` and TensorBoard events in the same folder. One writer per folder."""

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        """Open both for appending. `first_step`: events from there on belong to an attempt that was cut short, and are hidden."""
        # TensorBoard's own writer: torch's would make a driver that has no other use for torch import it.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._board = EventFileWriter(str(folder))
        if first_step is not None:
            self._board.add_event(Event(wall_time=time.time(), step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write one row: `values` at `step`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        now = time.time()
        self._file.write(json.dumps({"step": step, "time": round(now, 3), **values}) + "\n")
        self._file.flush()
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._board.add_event(Event(wall_time=now, step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._board.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
