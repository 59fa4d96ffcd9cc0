"""Writes the state of a rank to files, at once or, from a copy in memory, while the training goes on."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sr.tables import sync_folder

if TYPE_CHECKING:
    import torch


class Snapshot:
    """Copies of states in memory of the CPU. The buffers are kept for the next copy: new pages cost more than copying."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._next = 0

    def rewind(self) -> None:
        """Begin again: what was taken so far may be overwritten."""
        self._next = 0

    def take(self, state: Any) -> Any:
        """Return an independent copy of `state`: whatever torch.save takes, its tensors on the CPU and without a gradient.

        Tensors that are one in `state` (the same elements of the same storage) are one in the copy.
        """
        import torch

        copies: list[torch.Tensor] = []
        places: dict[Any, int] = {}
        seen: list[torch.Tensor] = []  # a freed one's storage could come again

        class Split(pickle.Pickler):
            def persistent_id(self, item: Any) -> int | None:
                return place(item) if isinstance(item, torch.Tensor) else None

        class Join(pickle.Unpickler):
            def persistent_load(self, number: Any) -> Any:
                return copies[number]

        def place(tensor: torch.Tensor) -> int:
            elements = tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()
            key = (*elements, tensor.dtype, tensor.device) if tensor.numel() else len(copies)
            if key not in places:
                places[key] = len(copies)
                copies.append(self._copied(tensor))
                seen.append(tensor)
            return places[key]

        text = io.BytesIO()
        Split(text).dump(state)
        text.seek(0)
        return Join(text).load()

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        import torch

        if self._next == len(self._buffers):
            self._buffers.append(torch.empty(0))
        buffer = self._buffers[self._next]
        if buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = self._buffers[self._next] = torch.empty(tensor.shape, dtype=tensor.dtype)
        self._next += 1
        return buffer.copy_(tensor.detach())


class Writer:
    """Writes what it is given: `in_background` from a copy, by a thread that dies with the rank. One set of files is under way at a time.

    `write` for each file, then `submit`; `wait`, or `is_idle` now and then, before the next `write`. The copy costs as much memory of the
    CPU as the rank writes, from the first checkpoint to the end of the training.
    """

    def __init__(self, in_background: bool) -> None:
        self._snapshot = Snapshot() if in_background else None
        self._thread = ThreadPoolExecutor(1, "checkpoint") if in_background else None
        self._files: list[tuple[Any, Path]] = []
        self._sizes: dict[str, int] = {}
        self._work: Future[None] | None = None

    @property
    def copies(self) -> bool:
        """Whether states are copied before they are written, so that they may be views of larger storages."""
        return self._snapshot is not None

    def write(self, state: Any, path: Path) -> None:
        """Take one file's content, and write it unless that is done in the background."""
        if self._snapshot is None:
            self._save(state, path)
        else:
            if not self._files:  # those before are written
                self._snapshot.rewind()
            self._files.append((self._snapshot.take(state), path))

    def submit(self, last: Callable[[], None]) -> None:
        """Write what was taken, and do `last` then."""
        if self._thread is None:
            last()
        else:
            self._work = self._thread.submit(self._write_all, last)

    def is_idle(self) -> bool:
        """Return whether nothing is under way. Raises what the work ended with."""
        if self._work is not None and self._work.done():
            self.wait()
        return self._work is None

    def wait(self) -> None:
        """Wait until nothing is under way. Raises what the work ended with."""
        if self._work is not None:
            work, self._work = self._work, None
            work.result()

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file written since the last call."""
        sizes, self._sizes = self._sizes, {}
        return sizes

    def close(self) -> None:
        """Finish what is under way."""
        if self._thread is not None:
            self._thread.shutdown()

    def _write_all(self, last: Callable[[], None]) -> None:
        files, self._files = self._files, []
        for state, path in files:
            self._save(state, path)
        last()

    def _save(self, state: Any, path: Path) -> None:
        import torch

        torch.save(state, path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            self._sizes[str(path)] = os.fstat(file.fileno()).st_size
        sync_folder(path.parent)
