"""A full disk, said in words."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from w2sr.errors import UserError


@contextmanager
def full_disk_explained(folder: Path, resumes_from: str) -> Iterator[None]:
    """Turn the system's error of a full disk into a UserError that names `folder`. `resumes_from`: what the same command goes on from."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise full_disk(folder, resumes_from) from error


def full_disk(folder: Path, resumes_from: str) -> UserError:
    """Return the error that says that the disk of `folder` is full."""
    return UserError(f"the disk of {folder} is full; free some space and run the same command again: it goes on from {resumes_from}")
