"""A full disk while training. Python, torch and safetensors each report it in a way of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from w2sr import disk

# torch's writer notices only that fewer bytes were written than it gave; safetensors passes the number of the system's error on.
TORCH_WRITER = ("inline_container", "PytorchStreamWriter")
SAFETENSORS = ("os error 28", "os error 122")
RESUMES_FROM = "the last checkpoint"


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn what a write to a full disk raises into one UserError that names `folder`; pass everything else on."""
    from safetensors import SafetensorError

    try:
        with disk.full_disk_explained(folder, RESUMES_FROM):
            yield
    except (RuntimeError, SafetensorError) as error:
        if not any(word in str(error) for word in (SAFETENSORS if isinstance(error, SafetensorError) else TORCH_WRITER)):
            raise
        raise disk.full_disk(folder, RESUMES_FROM) from error
