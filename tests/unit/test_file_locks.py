"""Locks of files, also where the file system has none: what it answers is faked."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.file_locks import take_lock
from launcher.attempt import attempt, busy
from launcher.cluster import _alone
from launcher.node_folder import NodeFolder
from tests.unit.test_attempt import config_in
from w2sr.traces.lock import WriterLock


def test_a_lock_is_had_once_and_shared_among_those_who_look(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "a") as first, open(tmp_path / "lock", "a") as second:
        assert take_lock(first, fcntl.LOCK_SH, tmp_path)
        assert take_lock(second, fcntl.LOCK_SH, tmp_path)
        assert not take_lock(second, fcntl.LOCK_EX, tmp_path)


def of_an_attempt(folder: Path) -> None:
    with attempt(config_in(folder)):
        pass


def of_a_run(folder: Path) -> None:
    (folder / ".lock").write_text("")
    busy(folder)


def of_a_keeper(folder: Path) -> None:
    folder.chmod(0o700)
    with NodeFolder(str(folder)).locked():
        pass


def of_a_node(folder: Path) -> None:
    (folder / "lock").write_text("")
    NodeFolder(str(folder)).is_kept()


def of_a_cluster(folder: Path) -> None:
    (folder / "lab.yaml").write_text("kind: local")
    with _alone(str(folder / "lab.yaml")):
        pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("user", [WriterLock, of_an_attempt, of_a_run, of_a_keeper, of_a_node, of_a_cluster])
def test_a_file_system_without_locks_is_named(
    user: Callable[[Path], object], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setenv("W2SR_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ClusterError, match=rf"the file system of {tmp_path}.* has no locks \(flock: .*\): mount it with flock"):
        user(tmp_path)


def test_a_lock_file_that_vanishes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = NodeFolder(str(tmp_path / "n"))
    flock, removed = fcntl.flock, []

    def remove_first(file: int, kind: int) -> None:
        if not removed:
            removed.append(shutil.rmtree(folder.path))
        flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with folder.locked():
        assert (folder.path / "lock").exists()
