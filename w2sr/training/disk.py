"""A full disk, said in words. Python, torch and safetensors each report it in a way of their own."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from w2sr.errors import UserError

# torch's writer notices only that fewer bytes were written than it gave; safetensors passes the number of the system's error on.
TORCH_WRITER = ("inline_container", "PytorchStreamWriter")
SAFETENSORS = ("os error 28", "os error 122")


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn what a write to a full disk raises into one UserError that names `folder`; pass everything else on."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full(folder) from error
    except RuntimeError as error:
        if not any(word in str(error) for word in TORCH_WRITER):
            raise
        raise _full(folder) from error
    except SafetensorError as error:
        if not any(word in str(error) for word in SAFETENSORS):
            raise
        raise _full(folder) from error


def _full(folder: Path) -> UserError:
    return UserError(f"the disk of {folder} is full; free some space and run the same command again: it goes on from the last checkpoint")
