"""One invocation on a run folder: a lock against a second one, a log folder of its own, the resolved configuration."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

from cluster.blackbox import recording
from cluster.file_locks import take_lock
from w2sr.config import PipelineConfig, dump_config
from w2sr.errors import UserError
from w2sr.tables import write_text

# Who only looks whether a folder is free holds its lock for a moment.
LOOK_S = 0.5


@contextmanager
def attempt(config: PipelineConfig) -> Iterator[Path]:
    """Yield this attempt's log folder, `logs/attempt_N`; `logs/latest` points to it.

    The resolved configuration is stored beside the log at once, and as the run's `config.yaml` when the command has succeeded (or is the
    first): a refused change must not overwrite what the finished stages were made with.
    """
    folder = Path(config.run_dir)
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir={config.run_dir}: cannot make that folder ({error.strerror}); give a folder you may write to") from error
    with _lock(folder):
        logs = _next_attempt(folder / "logs")
        resolved = dump_config(config)
        write_text(logs / "config.yaml", resolved)
        if not (folder / "config.yaml").exists():
            write_text(folder / "config.yaml", resolved)
        (logs / "processes").mkdir()
        with _logging_to(logs / "w2sr.log"), recording("driver", logs / "processes"):
            logging.getLogger("w2sr").info("attempt %s in %s", logs.name, folder)
            yield logs
        write_text(folder / "config.yaml", resolved)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        deadline = time.monotonic() + LOOK_S
        while not take_lock(file, fcntl.LOCK_EX, folder):
            if time.monotonic() > deadline:
                raise UserError(
                    f"another w2sr command (process {_holder(file)}) is working in {folder}; wait for it, stop it, or choose "
                    "another run_dir"
                )
            time.sleep(0.05)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def busy(folder: Path) -> str | None:
    """Return which process works in a run folder, "PID on HOST"; None when none does."""
    path = folder / ".lock"
    if not path.exists():
        return None
    with open(path, encoding="utf-8") as file:
        return None if take_lock(file, fcntl.LOCK_SH, folder) else _holder(file)


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"


def _next_attempt(logs: Path) -> Path:
    numbers = [int(path.name.removeprefix("attempt_")) for path in logs.glob("attempt_*") if path.name.removeprefix("attempt_").isdigit()]
    folder = logs / f"attempt_{max(numbers, default=0) + 1}"
    folder.mkdir()
    # A link made aside and renamed: `latest` always points somewhere.
    aside = logs / ".latest.aside"
    aside.unlink(missing_ok=True)
    aside.symlink_to(folder.name)
    aside.replace(logs / "latest")
    return folder


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Send our own log lines to the console (plain) and to the attempt's file (with times)."""
    root = logging.getLogger("w2sr")
    root.setLevel(logging.INFO)
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ"))
    logging.Formatter.converter = time.gmtime
    to_console = logging.StreamHandler()
    to_console.setFormatter(logging.Formatter("%(message)s"))
    with ExitStack() as cleanup:
        for handler in (to_file, to_console):
            root.addHandler(handler)
            cleanup.callback(handler.close)
            cleanup.callback(root.removeHandler, handler)
        cleanup.push(functools.partial(_log_failure, to_file))
        yield


def _log_failure(
    to_file: logging.Handler, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> None:
    """Put the full traceback into the attempt's file; on the console the command line shows one message."""
    if kind is not None and error is not None:
        text = f"{kind.__name__}: {error}"
        record = logging.LogRecord("w2sr", logging.ERROR, __file__, 0, text, None, (kind, error, trace))
        to_file.handle(record)
