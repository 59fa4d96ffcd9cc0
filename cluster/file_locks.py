"""Locks of files (flock), which end with the process that holds them, on this machine and over a shared file system that has them."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import IO

from cluster.errors import ClusterError

# What a file system answers that was mounted without locks: Lustre without -o flock, NFS without its lock daemon.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def take_lock(file: IO[str] | int, kind: int, folder: Path) -> bool:
    """Lock a file of `folder` as fcntl.LOCK_EX or LOCK_SH, without waiting; False: another process holds it.

    Raises ClusterError when the file system has no locks.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise ClusterError(
            f"the file system of {folder} has no locks (flock: {error.strerror}): mount it with flock (Lustre: -o flock; NFS: with its "
            "lock daemon), or use another folder"
        ) from error
    return True
