"""Checkpoints that a kill cannot spoil.

All ranks write into an aside folder; `complete.json` goes in last and the folder is renamed, so a folder with its final name is whole. An
old checkpoint is removed only after the new one has its name. Half-written ones are removed when training starts again.
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

COMPLETE = "complete.json"
TAG = "state"
_FINAL = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Position:
    """Where a training stands: `step` optimizer steps done, tokens and seconds spent on them."""

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0


def save(engine: Engine, group: Group, folder: Path, position: Position, identity: str) -> None:
    """Save the state of all ranks as the newest checkpoint; collective."""
    final = folder / f"step-{position.step:08d}"
    aside = folder / f".{final.name}.aside"
    if group.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    group.barrier()
    engine.save(aside, TAG)
    _sync_files(aside)  # each rank syncs what it wrote; the others' files cost it nothing
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


def resume(engine: Engine, group: Group, folder: Path, identity: str) -> Position:
    """Load the newest complete checkpoint and return where it stands; the start when there is none. Collective.

    Raises UserError when the checkpoint belongs to another configuration, model or data, or to another number of ranks.
    """
    newest = _newest(folder) if group.rank == 0 else None
    newest = group.from_rank_zero(str(newest) if newest else None)
    if newest is None:
        return Position()
    values = json.loads((Path(newest) / COMPLETE).read_text(encoding="utf-8"))
    found, world_size = values.pop("identity"), values.pop("world_size")
    if world_size != group.world_size:
        raise UserError(
            f"checkpoint {newest} was written by {world_size} ranks, this training has {group.world_size}; "
            f"go on with {world_size} ranks, or remove {folder} to start again"
        )
    if found != identity:
        raise UserError(
            f"checkpoint {newest} belongs to another training (configuration, seed, model or rows differ); "
            f"restore them, or remove {folder} to start again"
        )
    engine.load(Path(newest), TAG)
    return Position(**values)


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


def _sync_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
