"""The private folder of a node, and the processes that belong to it.

```
<folder>/  lock         held by the keeper for as long as it lives
           keeper.json  its pid, boot of the machine, first port and specification (without the token)
           keeper.log   what a detached keeper said; ray.log: what `ray start` said
           token        mode 0600
           ready.json   NodeReady; absent while Ray starts
           r/           Ray's temporary files
```

Every process that a keeper starts carries W2SR_NODE=<folder> in its environment. By that mark, and nothing else, they are found and ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.file_locks import take_lock
from launcher.node_spec import NodeSpec

MARK = "W2SR_NODE"
LOCK_WAIT_S = 3.0
TERMINATE_WAIT_S = 5.0
KILL_WAIT_S = 20.0
POLL_S = 0.05
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclasses.dataclass(frozen=True)
class Keeper:
    """What keeper.json says. `same_boot` is False when the machine was restarted since."""

    pid: int
    spec: NodeSpec
    first_port: int
    same_boot: bool


class NodeFolder:
    """A node's folder; making the object touches nothing."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.log = self.path / "keeper.log"
        self.ray_log = self.path / "ray.log"
        self.ready = self.path / "ready.json"
        self.token = self.path / "token"
        self.temp_dir = self.path / "r"

    def make(self) -> None:
        """Make the folder, or check that it is this user's alone. Raises ClusterError when not: others could read or plant a token."""
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            found = self.path.lstat()
        except OSError as error:
            raise ClusterError(f"cannot make {self.path} ({error.strerror}); give a temp_dir that exists and you may write to") from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ClusterError(f"{self.path} exists and is not a private folder of yours (mode 0700); remove it, or give another temp_dir")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock. Raises ClusterError when a keeper holds it, or the file system has no locks."""
        deadline = time.monotonic() + LOCK_WAIT_S  # somebody who looks holds it for a moment
        while (held := self._lock()) is None:
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.path} has a keeper already; end it with `python -m launcher.node stop`")
            time.sleep(POLL_S)
        try:
            yield
        finally:
            os.close(held)

    def _lock(self) -> int | None:
        self.make()
        found = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        with contextlib.ExitStack() as unless_held:
            unless_held.callback(os.close, found)
            # Its last holder may have removed it meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if take_lock(found, fcntl.LOCK_EX, self.path) and os.fstat(found).st_ino == os.stat(self.path / "lock").st_ino:
                    unless_held.pop_all()
                    return found
        return None

    def is_kept(self) -> bool:
        """Tell whether a keeper lives."""
        try:
            found = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not take_lock(found, fcntl.LOCK_SH, self.path)
        finally:
            os.close(found)

    def write(self, spec: NodeSpec, first_port: int) -> Path:
        """Store who keeps what, and the token; return the token's file."""
        if spec.token is not None:
            self.token.unlink(missing_ok=True)
            with os.fdopen(os.open(self.token, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
                file.write(spec.token)
        kept = dataclasses.replace(spec, token=None, token_path=spec.token_path or str(self.token))
        values = {"pid": os.getpid(), "boot": _boot(), "first_port": first_port, "spec": dataclasses.asdict(kept)}
        write_aside(self.path / "keeper.json", json.dumps(values))
        return self.token if spec.token is not None else Path(str(spec.token_path)).expanduser()

    def keeper(self) -> Keeper | None:
        """Return who keeps, or kept, the folder; None when it is not there."""
        try:
            values: dict[str, Any] = json.loads((self.path / "keeper.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Keeper(values["pid"], NodeSpec(**values["spec"]), values["first_port"], values["boot"] == _boot())

    def keeps(self, spec: NodeSpec) -> bool:
        """Tell whether the keeper was given `spec`, token included."""
        keeper = self.keeper()
        if keeper is None:
            return False
        if spec.token is not None and (not self.token.exists() or self.token.read_text(encoding="utf-8") != spec.token):
            return False
        return dataclasses.replace(keeper.spec, token_path=spec.token_path, token=spec.token) == spec

    def end_processes(self) -> None:
        """End every process that carries the folder's mark: SIGTERM, then SIGKILL. Raises ClusterError when one outlives that."""
        for number, wait_s in ((signal.SIGTERM, TERMINATE_WAIT_S), (signal.SIGKILL, KILL_WAIT_S)):
            deadline = time.monotonic() + wait_s
            sent: set[int] = set()
            while (found := set(self._processes())) and time.monotonic() < deadline:
                for pid in found - sent:
                    self._send(pid, number)
                sent |= found
                time.sleep(POLL_S)
        if left := list(self._processes()):
            raise ClusterError(
                f"processes {', '.join(map(str, left))} of {self.path} outlive SIGKILL: a device or a file system hangs; see `dmesg`"
            )

    def _processes(self) -> Iterator[int]:
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and int(entry.name) != os.getpid() and self._is_ours(int(entry.name)):
                yield int(entry.name)

    def _is_ours(self, pid: int) -> bool:
        try:
            return f"{MARK}={self.path}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False  # ended, or another user's

    def _send(self, pid: int, number: signal.Signals) -> None:
        # The descriptor pins the process, so that the number cannot have gone to a stranger between the look and the signal.
        with contextlib.suppress(ProcessLookupError), contextlib.ExitStack() as held:
            pinned = os.pidfd_open(pid)
            held.callback(os.close, pinned)
            if self._is_ours(pid):
                signal.pidfd_send_signal(pinned, number)

    def clear(self, keep_log: bool = False) -> None:
        """Remove token and files; with `keep_log` the logs stay, for `status` to say how it ended."""
        if not keep_log:
            shutil.rmtree(self.path, ignore_errors=True)  # Ray's last log lines may race with the removal
            shutil.rmtree(self.path, ignore_errors=True)
            return
        for path in (self.token, self.ready):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.temp_dir, ignore_errors=True)


def write_aside(path: Path, text: str) -> None:
    """Write `path` so that a reader sees all of it or none."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _boot() -> str:
    return BOOT_ID.read_text(encoding="utf-8").strip() if BOOT_ID.exists() else ""
