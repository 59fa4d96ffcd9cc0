"""Requests to stop at the next step boundary: SIGTERM, a file, a time."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from enum import IntEnum
from pathlib import Path

STOP_FILE = "stop"


class Stop(IntEnum):
    """Whether to stop, and why: somebody asked, or the time to be done by comes before another step could be done and saved."""

    NO = 0
    ASKED = 1
    LATE = 2


@contextmanager
def stop_requests(stop_by: datetime | None, file: Path | None) -> Iterator[Callable[[float], Stop]]:
    """Yield a function that says whether to stop, given the seconds after which the next time would be too late.

    Asked for by SIGTERM or by the existence of `file`. The previous handler of SIGTERM is restored at the end. Outside the main thread
    (Ray Train runs us in another) signals cannot be caught: SIGTERM acts as before, and the driver writes the file.
    """
    asked = threading.Event()

    def stop(next_s: float) -> Stop:
        if asked.is_set() or (file is not None and file.exists()):
            return Stop.ASKED
        late = stop_by is not None and datetime.now(timezone.utc) + timedelta(seconds=next_s) >= stop_by
        return Stop.LATE if late else Stop.NO

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)
