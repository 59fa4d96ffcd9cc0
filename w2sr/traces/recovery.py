"""What a folder of traces holds, after whatever ended its last writer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from w2sr.errors import UserError
from w2sr.tables import part_files, sync_folder
from w2sr.traces.positions import Ints, Positions
from w2sr.traces.shards import REMOVE_IT, groups, positions_of, replaced_by, shard_files, shard_number, shard_path

FOREIGN = f"it was put there or changed from outside: {REMOVE_IT}"
IdAt = Callable[[int], str | None]


@dataclass
class Found:
    """The shards that count, with their sizes in bytes, and which positions they hold."""

    sizes: dict[Path, int]
    positions: Positions


def recover(folder: Path, schema: pa.Schema, limit: int, id_at: IdAt | None) -> Found:
    """Finish what a killed writer began, and return what is there. Only the holder of the writer's lock may call this.

    `id_at` gives the trace id that belongs to a position, or None where the run asks for nothing; every row is compared. Raises UserError
    for a file that is damaged, holds rows that the run does not ask for, or rows that another file holds as well.
    """
    for aside in [*folder.glob(".shard-*.aside"), *folder.glob(".part-*.aside")]:
        aside.unlink()
    shards = _remove_replaced(folder, schema)
    found = Positions(limit)
    for path in shards:
        _scan(path, schema, found, id_at)
    parts = part_files(folder)
    if parts:
        in_parts = Positions(limit)
        for path in parts:
            _scan(path, schema, in_parts, id_at)
        shards, found = _settle(folder, shards, found, parts, in_parts)
    return Found({path: path.stat().st_size for path in shards}, found)


def remove_shards(folder: Path) -> None:
    """Remove the shards of a folder whose parts are complete and listed in a manifest. Nothing happens when they are gone already."""
    remove(shard_files(folder), folder)


def remove(paths: Iterable[Path], folder: Path) -> None:
    """Remove files, durably: none of them comes back after what is done next."""
    paths = list(paths)
    for path in paths:
        path.unlink()
    if paths:
        sync_folder(folder)


def _remove_replaced(folder: Path, schema: pa.Schema) -> list[Path]:
    """Remove what a merged shard replaces, newest first, so that it is never read; return what is left, oldest first."""
    kept: list[Path] = []
    replaced: set[int] = set()
    obsolete: list[Path] = []
    for path in reversed(shard_files(folder)):
        if shard_number(path) in replaced:
            obsolete.append(path)
        else:
            kept.append(path)
            replaced |= replaced_by(path, schema)
    remove(obsolete, folder)
    return kept[::-1]


def _scan(path: Path, schema: pa.Schema, found: Positions, id_at: IdAt | None) -> None:
    """Add the positions of one file to `found`."""
    last = -1
    for table in groups(path, schema, ["position", "trace_id"]):
        positions = positions_of(table)
        if len(positions) == 0:
            continue
        if positions[0] <= last or (np.diff(positions) <= 0).any():
            raise UserError(f"{path} is not in position order, so this program did not write it so; {REMOVE_IT}")
        last = int(positions[-1])
        if positions[0] < 0 or last >= found.limit:
            raise UserError(f"{path} holds position {last}, and this run asks for {found.limit}; {FOREIGN}")
        if id_at is not None:
            _compare_ids(path, positions, table.column("trace_id").to_pylist(), id_at)
        known = found.known(positions)
        if known.any():
            raise UserError(f"{path} holds {known.sum()} traces that another file of the folder holds as well; {FOREIGN}")
        found.add(positions)


def _compare_ids(path: Path, positions: Ints, ids: list[str], id_at: IdAt) -> None:
    for position, found in zip(positions.tolist(), ids, strict=True):
        asked = id_at(position)
        if found != asked:
            what = "nothing" if asked is None else asked
            raise UserError(f"{path} holds trace {found} at position {position}, where this run asks for {what}; {FOREIGN}")


def _settle(folder: Path, shards: list[Path], found: Positions, parts: list[Path], in_parts: Positions) -> tuple[list[Path], Positions]:
    """Parts without a manifest: a kill while they were made (the shards hold all of it), or the manifest was removed by hand."""
    both = in_parts.count_common(found)
    if both == in_parts.count:
        remove(parts, folder)
        return shards, found
    if both not in (0, found.count):  # none in common: a kill while parts were made shards again
        raise UserError(
            f"{folder} has shard-*.parquet and part-*.parquet files, each with traces the others lack: "
            f"one kind was put there from outside; remove that kind and run the same command again"
        )
    number = max(map(shard_number, shards), default=0)
    if both:
        remove(shards, folder)
        shards, found = [], Positions(found.limit)
    for path in parts:
        number += 1
        shards.append(path.rename(shard_path(folder, number)))
    sync_folder(folder)
    found.merge(in_parts)
    return shards, found
