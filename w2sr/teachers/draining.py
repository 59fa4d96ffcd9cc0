"""Stops work in time: at SIGTERM, at a set time or when another thread asks, what is under way is finished and nothing new begun."""

from __future__ import annotations

import logging
import signal
import threading
from datetime import datetime, timezone
from types import FrameType, TracebackType

from w2sr.errors import StoppedEarly

log = logging.getLogger(__name__)


class Drain:
    """While it is open, the first SIGTERM only asks to stop; a second one does what it always did."""

    def __init__(self, stop_by: datetime | None, asked: threading.Event | None = None) -> None:
        self._stop_by = stop_by
        self._asked = asked or threading.Event()
        self._terminated = False
        self._announced = False
        self._before: signal.Handlers | None = None

    def is_wanted(self) -> bool:
        """Return whether nothing new shall be begun."""
        late = self._stop_by is not None and datetime.now(timezone.utc) >= self._stop_by
        if (late or self._terminated) and not self._announced:
            self._announced = True
            log.warning("%s: finishing what is under way, then stopping", "SIGTERM" if self._terminated else f"stop_by={self._stop_by}")
        return late or self._terminated or self._asked.is_set()

    def pass_on(self, message: str) -> None:
        """Work was left undone: raise StoppedEarly with `message`, or let the SIGTERM that stopped it have its usual effect."""
        if not self._terminated:
            raise StoppedEarly(message)
        log.warning("%s", message)

    def __enter__(self) -> Drain:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._on_sigterm)  # type: ignore[assignment]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
            if self._terminated and kind is None:
                signal.raise_signal(signal.SIGTERM)

    def _on_sigterm(self, _signum: int, _frame: FrameType | None) -> None:
        if self._terminated and self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            signal.raise_signal(signal.SIGTERM)
        self._terminated = True
