"""Checkpoints that a kill cannot spoil.

All ranks write into an aside folder; `complete.json` goes in last and the folder is renamed, so a folder with its final name is whole. An
old checkpoint is removed only after the new one has its name. Half-written ones are removed when training starts again. The writing may
go on beside the next steps (writing.py); completing is done at a step boundary at which all ranks have written.

ZeRO shards belong to a number of ranks. For another number they are brought into DeepSpeed's universal form (universal.py), in a folder
inside the checkpoint's: it comes and goes with it, and the same number of ranks still loads the very bits that it saved.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2sr.artifacts import digest_of
from w2sr.errors import UserError
from w2sr.tables import sync_folder, sync_tree, write_text
from w2sr.training.dist import Group
from w2sr.training.engine import Engine
from w2sr.training.universal import ASIDE, universal_form
from w2sr.training.writing import Writer

COMPLETE = "complete.json"
TAG = "state"
UNIVERSAL = "universal"
_ADVICE = (
    "It is the only one (an older one goes when the next is complete): restore its files from a backup, or remove {} to train from the "
    "first step again"
)
_FINAL = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Position:
    """Where a training stands: `step` optimizer steps done, tokens and seconds spent on them; `sizes` as in TrainResult."""

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0
    rank_seconds: float = 0.0
    sizes: tuple[tuple[int, int], ...] = ()

    def on(self, num_ranks: int) -> Position:
        """Return this position of a training that goes on with `num_ranks` ranks."""
        sizes = [(first, ranks) for first, ranks in self.sizes if first <= self.step]
        if not sizes or sizes[-1][1] != num_ranks:
            sizes.append((self.step + 1, num_ranks))
        return dataclasses.replace(self, sizes=tuple(sizes))

    def after(self, tokens: int, supervised_tokens: int, seconds: float, num_ranks: int) -> Position:
        """Return the position after one more step that took `seconds` on `num_ranks` ranks."""
        return Position(
            self.step + 1,
            self.tokens + tokens,
            self.supervised_tokens + supervised_tokens,
            self.seconds + seconds,
            self.rank_seconds + seconds * num_ranks,
            self.sizes,
        )


@dataclass(frozen=True)
class Saved:
    """A checkpoint that this group of ranks can load: `folder` and whether it is in universal form."""

    position: Position
    folder: Path
    universal: bool

    @property
    def root(self) -> Path:
        """The checkpoint's folder, in which parts other than DeepSpeed's state are; they have one form for any number of ranks."""
        return self.folder.parent if self.universal else self.folder


class Checkpoints:
    """The checkpoints of one training in `folder`. With `asynchronous` a checkpoint is written from a copy while steps go on.

    Every rank calls the same methods at the same step boundaries. One checkpoint is under way at a time.
    """

    def __init__(self, group: Group, folder: Path, identity: str, asynchronous: bool) -> None:
        self.folder = folder
        self._group = group
        self._identity = identity
        self._asynchronous = asynchronous
        self._writer = Writer(in_background=asynchronous)
        self._open: Position | None = None
        self._last: int | None = None
        self._began = 0.0
        self.longest_write_s = 0.0
        """Longest time from the copy of the state to a complete checkpoint, where that is awaited by nobody; 0 where it is."""

    def find(self, sharded: bool) -> Saved | None:
        """Return the checkpoint to go on from, as `find` does."""
        saved = find(self._group, self.folder, self._identity, sharded)
        self._last = saved.position.step if saved else None
        return saved

    def save(self, engine: Engine, position: Position, *parts: Callable[[Path, int, Writer], None]) -> None:
        """Save the state of all ranks as the newest checkpoint, unless that step's is there; asynchronous: begin to.

        `parts`: each gives further files of this rank, in the folder that it is told, to the writer.
        """
        if position.step == self._last:
            return
        self.settle()
        self._writer.wait()
        self._last, self._open, self._began = position.step, position, time.monotonic()
        aside = self._aside(position)
        if self._group.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        self._group.barrier()
        engine.save(aside, TAG, self._writer)
        for part in parts:
            part(aside, self._group.rank, self._writer)
        self._writer.submit(lambda: sync_tree(aside))
        if not self._asynchronous:
            self.settle()

    def is_written(self) -> bool:
        """Return whether this rank has written its part of the checkpoint under way. Raises what went wrong with that."""
        return self._open is not None and self._writer.is_idle()

    def settle(self) -> None:
        """Complete the checkpoint under way, if there is one. Waits until all ranks have written."""
        if self._open is None:
            return
        self._writer.wait()
        aside, position = self._aside(self._open), self._open
        self._open = None
        if self._asynchronous:
            self.longest_write_s = max(self.longest_write_s, time.monotonic() - self._began)
        sizes = self._group.all({str(Path(path).relative_to(aside)): size for path, size in self._writer.sizes().items()})
        if self._group.rank == 0:
            files = {name: size for of_rank in sizes for name, size in of_rank.items()}
            values = {**dataclasses.asdict(position), "identity": self._identity, "world_size": self._group.world_size, "files": files}
            self._complete(aside, self.folder / _name(position), values)
        self._group.barrier()
        if self._group.rank == 0:
            self._writer.submit(lambda: self._remove_before(position))  # a large one takes seconds

    def close(self) -> None:
        """Finish writing. What was not completed is removed at the next start."""
        self._writer.close()

    def _aside(self, position: Position) -> Path:
        return self.folder / f".{_name(position)}.aside"

    def _complete(self, aside: Path, final: Path, values: dict[str, Any]) -> None:
        write_manifest(aside / COMPLETE, values)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        sync_folder(self.folder)

    def _remove_before(self, position: Position) -> None:
        for old in _finals(self.folder):
            if old.name != _name(position):
                shutil.rmtree(old)


def find(group: Group, folder: Path, identity: str, sharded: bool) -> Saved | None:
    """Return the newest complete checkpoint, in universal form if it was written by another number of ranks; None when there is none.

    `sharded`: ranks hold parts of the state (ZeRO 1 to 3). Every rank calls it. Raises UserError when the checkpoint belongs to another
    configuration, model or data, is damaged, or cannot be converted.
    """
    newest = _newest(folder) if group.rank == 0 else None
    newest = group.from_rank_zero(str(newest) if newest else None)
    if newest is None:
        return None
    values = _read_manifest(Path(newest) / COMPLETE)
    found, world_size, files = values.pop("identity"), values.pop("world_size"), values.pop("files")
    if found != identity:
        raise UserError(
            f"checkpoint {newest} belongs to another training (configuration, seed, model or rows differ); "
            f"restore them, or remove {folder} to start again"
        )
    position = Position(**{**values, "sizes": tuple((first, ranks) for first, ranks in values["sizes"])})
    _refuse_damage(group, Path(newest), files)
    if world_size == group.world_size or not sharded:
        return Saved(position, Path(newest), universal=False)
    universal_form(Path(newest) / TAG, Path(newest) / UNIVERSAL, on_this_rank=group.rank == 0)
    return Saved(position, Path(newest) / UNIVERSAL, universal=True)


def write_manifest(path: Path, values: dict[str, Any]) -> None:
    """Write what a checkpoint says of itself, with a digest."""
    write_text(path, json.dumps({**values, "digest": digest_of(values)}, indent=1) + "\n")


def _read_manifest(path: Path) -> dict[str, Any]:
    with suppress(ValueError):
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.pop("digest", None) == digest_of(values):
            return values
    raise UserError(f"checkpoint {path.parent} is damaged: {path.name} is not what was written. {_ADVICE.format(path.parent)}")


def _refuse_damage(group: Group, checkpoint: Path, files: dict[str, int]) -> None:
    """Raise UserError on every rank when a file of the checkpoint is not what was written; each rank reads its share of them.

    torch.load does not compare the checksums that torch.save writes: a flipped bit would be trained on.
    """
    mine = sorted(files)[group.rank :: group.world_size]
    damaged = [f"{name} {problem}" for name in mine if (problem := _damage(checkpoint / name, files[name]))]
    found = sorted(text for of_rank in group.all(damaged) for text in of_rank)
    if found:
        more = f" and {len(found) - 1} more files" if len(found) > 1 else ""
        raise UserError(f"checkpoint {checkpoint} is damaged: {found[0]}{more}. {_ADVICE.format(checkpoint)}")


def _damage(path: Path, size: int) -> str:
    """Return what is wrong with a file of torch.save (a ZIP archive), or nothing."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != size:
        return f"has {path.stat().st_size} bytes where {size} were written"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        return f"cannot be read ({error})"
    return f"has a wrong checksum in its record {damaged}" if damaged else ""


def is_converting(folder: Path) -> bool:
    """Return whether a checkpoint in `folder` is being converted for another number of ranks."""
    return any(folder.glob(f"*/{ASIDE}*"))


def _name(position: Position) -> str:
    return f"step-{position.step:08d}"


def _newest(folder: Path) -> Path | None:
    if not folder.is_dir():
        return None
    finals = _finals(folder)
    for path in folder.iterdir():
        if path not in finals:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return max(finals, default=None)


def _finals(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _FINAL.fullmatch(path.name) and (path / COMPLETE).is_file()]
