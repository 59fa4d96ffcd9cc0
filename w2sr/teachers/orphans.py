"""Ends the processes, and removes the files, that a replica leaves behind when it is killed outright: they hold its GPU's memory for ever.

vLLM's engine runs in processes of its own, and those outlive a parent that gets SIGKILL (measured: still there after ten minutes). A small
guard process waits for the parent's end and then kills whatever carries the parent's mark in its environment. Linux only.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

MARK = "W2SR_REPLICA"
# The guard's whole program: leave the parent, wait until the pipe is closed, then end what carries the mark and remove the folder. It is
# nobody's child by then: a worker of Ray that is made to end kills its own children first, and would kill its guard.
_GUARD = (
    "import os, shutil, sys; from w2sr.teachers.orphans import kill_marked; os.fork() and os._exit(0); sys.stdin.buffer.read(); "
    "kill_marked(sys.argv[1]); shutil.rmtree(sys.argv[2], ignore_errors=True)"
)


class Guard:
    """Marks the children that this process starts from now on, and ends them when this process ends, however it ends, or at `close`.

    `folder` is a private one for their sockets; it goes with them.
    """

    def __init__(self) -> None:
        self._mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        self.folder = tempfile.mkdtemp(prefix="w2sr-")  # short: a socket's path may have 107 characters
        root = str(Path(__file__).resolve().parents[2])
        # In a session of its own, so that a signal to the replica's group leaves it to its work; not marked itself.
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {root!r}); {_GUARD}", self._mark, self.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._process.wait()  # it goes on in another one
        os.environ[MARK] = self._mark
        # Processes that give themselves a title with setproctitle, as vLLM's do, write it over their environment unless told not to.
        os.environ["SPT_NOENV"] = "1"

    def close(self) -> None:
        """End the marked processes now, and the guard; remove the folder."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.read()  # until the guard has ended
        self._process.stdout.close()
        if os.environ.get(MARK) == self._mark:
            del os.environ[MARK]


def kill_marked(mark: str) -> None:
    """Kill every process of this user that was started with `mark` in its environment."""
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), 9)
        except OSError:
            continue  # it has ended meanwhile, or is another user's
