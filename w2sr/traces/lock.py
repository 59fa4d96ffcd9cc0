"""One writer per folder of traces."""

from __future__ import annotations

import datetime
import fcntl
import os
import socket
from pathlib import Path

from cluster.file_locks import take_lock
from w2sr.errors import UserError

LOCK = ".writer.lock"


class WriterLock:
    """Held from construction to `release`, or to the end of the process, however it ends. The file stays; its text names the holder."""

    def __init__(self, folder: Path) -> None:
        """Take the lock. Raises UserError, naming the process, when another one has it; ClusterError when the file system has no locks."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - held open on purpose
        if not take_lock(self._file, fcntl.LOCK_EX, folder):
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise UserError(f"{folder} is being written by {holder}: wait until it has ended, or end it, then run the same command again")
        began = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()} (since {began})")
        self._file.flush()

    def release(self) -> None:
        """Let the next writer in."""
        self._file.close()
