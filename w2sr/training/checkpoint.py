"""Checkpoints that a kill cannot spoil.

All ranks write into an aside folder; `complete.json` goes in last and the folder is renamed, so a folder with its final name is whole. An
old checkpoint is removed only after the new one has its name. Half-written ones are removed when training starts again.

ZeRO shards belong to a number of ranks. For another number they are brought into DeepSpeed's universal form (universal.py), in a folder
inside the checkpoint's: it comes and goes with it, and the same number of ranks still loads the very bits that it saved.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from w2sr.errors import UserError
from w2sr.tables import sync_folder, write_text
from w2sr.training.dist import Group
from w2sr.training.engine import Engine
from w2sr.training.universal import ASIDE, sync_files, universal_form

COMPLETE = "complete.json"
TAG = "state"
UNIVERSAL = "universal"
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


def save(engine: Engine, group: Group, folder: Path, position: Position, identity: str) -> None:
    """Save the state of all ranks as the newest checkpoint; collective."""
    final = folder / f"step-{position.step:08d}"
    aside = folder / f".{final.name}.aside"
    if group.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    group.barrier()
    engine.save(aside, TAG)
    sync_files(aside)  # each rank syncs what it wrote; the others' files cost it nothing
    group.barrier()
    if group.rank == 0:
        values = {**dataclasses.asdict(position), "identity": identity, "world_size": group.world_size}
        write_text(aside / COMPLETE, json.dumps(values, indent=1) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        sync_folder(folder)
        for old in _finals(folder):
            if old != final:
                shutil.rmtree(old)
    group.barrier()


def find(group: Group, folder: Path, identity: str, sharded: bool) -> Saved | None:
    """Return the newest complete checkpoint, in universal form if it was written by another number of ranks; None when there is none.

    `sharded`: ranks hold parts of the state (ZeRO 1 to 3). Every rank calls it. Raises UserError when the checkpoint belongs to another
    configuration, model or data, or cannot be converted.
    """
    newest = _newest(folder) if group.rank == 0 else None
    newest = group.from_rank_zero(str(newest) if newest else None)
    if newest is None:
        return None
    values = json.loads((Path(newest) / COMPLETE).read_text(encoding="utf-8"))
    found, world_size = values.pop("identity"), values.pop("world_size")
    if found != identity:
        raise UserError(
            f"checkpoint {newest} belongs to another training (configuration, seed, model or rows differ); "
            f"restore them, or remove {folder} to start again"
        )
    position = Position(**{**values, "sizes": tuple((first, ranks) for first, ranks in values["sizes"])})
    if world_size == group.world_size or not sharded:
        return Saved(position, Path(newest), universal=False)
    universal_form(Path(newest) / TAG, Path(newest) / UNIVERSAL, on_this_rank=group.rank == 0)
    return Saved(position, Path(newest) / UNIVERSAL, universal=True)


def is_converting(folder: Path) -> bool:
    """Return whether a checkpoint in `folder` is being converted for another number of ranks."""
    return any(folder.glob(f"*/{ASIDE}*"))


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
