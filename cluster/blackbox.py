"""What a process was doing, written to the shared run folder while it works, so that it can be asked after its death.

Each process of an attempt (driver, rank, replica) has a file of its own: where it runs, how its clock differs from the file server's, where
it was last seen (its stack, sampled every few seconds), how it ended. A process that was killed leaves a file without an end; the file's
time says when it was last alive. Nothing here ever fails the work: a full disk or an absent folder means only that less is known.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import stat
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

INTERVAL_S = 5.0
MAX_FRAMES = 16
TAIL_BYTES = 2048
MAX_TRACE = 6000
# Beside a record: what faulthandler writes when the interpreter itself crashes.
FAULT = ".fault.txt"
_ROOT = f"{Path(__file__).resolve().parents[1]}{os.sep}"

# A function, its file, the line it is at.
Call = tuple[str, str, int]

_current: Path | None = None


def current_folder() -> Path | None:
    """Return the folder this process records into, to hand it to the processes it starts; None: nothing is recorded."""
    return _current


@contextmanager
def recording(role: str, folder: Path | None, group: str = "") -> Iterator[None]:
    """Record this thread while the block runs, and the exception that leaves it. Without a `folder` that exists nothing is recorded.

    `role` is for people, for example "rank 3"; `group` names those that were started together and wait for each other.
    """
    record = Record(role, folder, group)
    try:
        yield
    finally:
        record.end(sys.exc_info()[1])


class Record:
    """One process's file. Written by a thread of its own until `end`."""

    def __init__(self, role: str, folder: Path | None, group: str = "") -> None:
        """Begin. `folder` may be absent (None, or on a node that does not see it)."""
        global _current
        self._before = _current
        self._watched = threading.get_ident()
        self._over = threading.Event()
        self._path: Path | None = None
        if folder is None or not folder.is_dir():
            return
        host = socket.gethostname()
        name = f"{role.replace(' ', '-').replace(os.sep, '-')}-{host}-{os.getpid()}"
        self._path = folder / f"{name}.json"
        self._values: dict[str, Any] = {
            "role": role,
            "group": group,
            "host": host,
            "pid": os.getpid(),
            "clock_offset_s": 0.0,
            "started": time.time(),
            "seen": time.time(),
            "at": "",
            "at_since": time.time(),
            "stack": [],
            "last_lines": [],
            "error": None,
            "ended": None,
        }
        self._fault = _open_fault_file(folder / f"{name}{FAULT}")
        # The driver prints to a log of the run already; Ray keeps what its workers print on their node.
        self._output = _Output(folder / f"{name}.log") if role != "driver" else None
        _current = folder
        self._values["clock_offset_s"] = self._measure_clock()
        self._thread = threading.Thread(target=self._keep, name="blackbox", daemon=True)
        self._thread.start()

    def end(self, error: BaseException | None = None) -> None:
        """Write down that the work ended, and of what."""
        global _current
        if self._path is None or self._over.is_set():
            return
        _current = self._before
        self._over.set()
        self._thread.join()
        now = time.time()
        if self._output is not None:
            self._output.copy()
        self._values |= {"ended": now, "last_lines": _last_lines()}
        if error is not None:
            trace = "".join(traceback.format_exception(error))
            self._note_place([(f.name, f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)][::-1])
            self._values["error"] = {
                "type": type(error).__name__,
                "message": str(error)[:2000],
                "traceback": trace[-MAX_TRACE:],
                "time": now,
            }
        self._write()
        _close_fault_file(self._fault)

    def _keep(self) -> None:
        self._look()
        while not self._over.wait(INTERVAL_S):
            self._look()

    def _look(self) -> None:
        """Sample the stack and the last lines. What did not change is not written again: the file's time says that we live."""
        if self._output is not None:
            self._output.copy()
        before = (self._values["stack"], self._values["last_lines"])
        self._note_place(_calls(_working_frame(self._watched)))
        self._values |= {"seen": time.time(), "last_lines": _last_lines()}
        if (self._values["stack"], self._values["last_lines"]) == before:
            assert self._path is not None
            with contextlib.suppress(OSError):
                os.utime(self._path)
        else:
            self._write()

    def _note_place(self, calls: list[Call]) -> None:
        stack, at = describe(calls)
        if at != self._values["at"]:
            self._values["at_since"] = time.time()
        self._values |= {"stack": stack, "at": at}

    def _measure_clock(self) -> float:
        """Return what to add to this machine's clock to get the file server's, by which all processes can be ordered."""
        before = time.time()
        self._write()
        after = time.time()
        assert self._path is not None
        try:
            return self._path.stat().st_mtime - (before + after) / 2
        except OSError:
            return 0.0

    def _write(self) -> None:
        assert self._path is not None
        aside = self._path.with_suffix(".aside")
        with contextlib.suppress(OSError):
            aside.write_text(json.dumps(self._values), encoding="utf-8")
            os.replace(aside, self._path)


class _Output:
    """Copies what this process prints from now on into a file of the shared folder; only where stdout and stderr are files themselves."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = {(at.st_dev, at.st_ino): (fd, at.st_size) for fd in (2, 1) if stat.S_ISREG((at := os.fstat(fd)).st_mode)}
        self._read = dict(found.values())

    def copy(self) -> None:
        """Append what is new. On a full disk, or where the file is gone, it is tried again at the next call."""
        for fd, place in self._read.items():
            with contextlib.suppress(OSError), open(f"/proc/self/fd/{fd}", "rb") as source:
                source.seek(place)
                while new := source.read(2**16):
                    with open(self._path, "ab") as out:
                        out.write(new)
                    self._read[fd] += len(new)


def place_of(thread: int) -> tuple[list[str], str]:
    """Return where a thread of this process is, as `describe` does, or the one it waits for."""
    return describe(_calls(_working_frame(thread)))


def describe(calls: list[Call]) -> tuple[list[str], str]:
    """Return a stack (given innermost first, returned innermost last) and in a few words where it is: the innermost function, and the
    line of ours that it serves."""
    if not calls:
        return [], ""
    shown = [f"{function} ({_short(path)}:{line})" for function, path, line in calls[:MAX_FRAMES]]
    ours = next((call for call in calls if _is_ours(call[1])), calls[0])
    return shown[::-1], f"{calls[0][0]} ({_short(ours[1])}:{ours[2]})"


def _calls(frame: FrameType | None) -> list[Call]:
    calls = []
    while frame is not None:
        calls.append((frame.f_code.co_name, frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return calls


def _working_frame(watched: int) -> FrameType | None:
    """Return the watched thread's frame or, where that one only waits for others, the first that is in code of ours."""
    frames = sys._current_frames()
    del frames[threading.get_ident()]
    first = frames.pop(watched, None)
    return next((frame for frame in (first, *frames.values()) if any(_is_ours(call[1]) for call in _calls(frame))), first)


def _is_ours(path: str) -> bool:
    return path.startswith(_ROOT) and f"{os.sep}site-packages{os.sep}" not in path and path != __file__


def _short(path: str) -> str:
    return path.removeprefix(_ROOT) if _is_ours(path) else os.path.basename(path)


def _last_lines() -> list[str]:
    """Return the last lines of our stderr, where it is a file."""
    try:
        if not stat.S_ISREG(os.fstat(2).st_mode):
            return []
        with open("/proc/self/fd/2", "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    # Ray's marks are for its own log reader, and it shows some lines twice.
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith((":job_id:", ":actor_name:", ":task_name:"))]
    return [line for number, line in enumerate(lines) if number == 0 or line != lines[number - 1]][-8:]


def _open_fault_file(path: Path) -> Any:
    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed by _close_fault_file
    except OSError:
        return None
    faulthandler.enable(file)  # Ray's own goes to the worker's log, which stays on the node
    return file


def _close_fault_file(file: Any) -> None:
    if file is None:
        return
    faulthandler.disable()
    with contextlib.suppress(OSError, ValueError, AttributeError):  # where stderr is no file, there is none to return to
        faulthandler.enable(sys.__stderr__)  # type: ignore[arg-type]
    file.close()
    with contextlib.suppress(OSError):
        if os.path.getsize(file.name) == 0:
            os.unlink(file.name)
