"""Children of a replica do not outlive it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from w2sr.teachers.orphans import MARK, Guard

ROOT = Path(__file__).parents[2]
# A parent that starts a guard and a child of its own, which starts a grandchild.
PARENT = """
import subprocess, sys, time
from w2sr.teachers.orphans import Guard
guard = Guard()
open(guard.folder + "/socket", "w").close()
nap = "import time; time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {nap!r}]); {nap}"])
print(guard.folder, flush=True)
time.sleep(600)
"""


def descendants_of(mark_of: int) -> list[int]:
    """Return the processes whose mark was given by the process `mark_of`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark_of}-".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_until_gone(mark_of: int) -> None:
    deadline = time.monotonic() + 20
    while descendants_of(mark_of):
        assert time.monotonic() < deadline, f"{descendants_of(mark_of)} are still there"
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    """Return the direct children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("children_first", [False, True], ids=["outright", "as Ray ends a worker, its children first"])
def test_children_and_grandchildren_of_a_killed_process_are_ended(children_first: bool) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    folder = Path(parent.stdout.readline().decode().strip())
    deadline = time.monotonic() + 20
    assert (folder / "socket").exists()
    while len(descendants_of(parent.pid)) < 2:
        assert time.monotonic() < deadline, "child and grandchild were started"
        time.sleep(0.05)
    for child in children_of(parent.pid) if children_first else []:
        os.kill(child, signal.SIGKILL)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_until_gone(parent.pid)
    while folder.exists():
        assert time.monotonic() < deadline, "the folder goes too"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_close_ends_what_was_started_since_and_nothing_else() -> None:
    before = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    guard = Guard()
    since = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    time.sleep(0.2)
    guard.close()
    assert since.wait(timeout=10) == -signal.SIGKILL
    assert before.poll() is None
    assert MARK not in os.environ
    assert not Path(guard.folder).exists()
    before.kill()
    before.wait()
