"""Shards: the Parquet files that a running generator commits, each sorted by position, in pages with checksums.

A shard that was merged from others names them in its metadata. Numbers only grow, and a shard replaces lower numbers only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from w2sr.errors import UserError
from w2sr.tables import replacing
from w2sr.traces.positions import Ints

# A merge holds one row group of each file it reads, and the footers, which have some 10 kB for each row group: so neither small nor large.
GROUP_BYTES = 4 << 20
REPLACES = b"w2sr.replaces"


def shard_path(folder: Path, number: int) -> Path:
    """Return the file of shard `number`."""
    return folder / f"shard-{number:06d}.parquet"


def shard_number(path: Path) -> int:
    """Return the number of a shard's file."""
    return int(path.stem.removeprefix("shard-"))


def shard_files(folder: Path) -> list[Path]:
    """Return the shards in `folder`, oldest first."""
    return sorted(folder.glob("shard-*.parquet"), key=shard_number)


def write_shard(path: Path, tables: Iterable[pa.Table], schema: pa.Schema, replaces: Iterable[int] = ()) -> None:
    """Write `tables`, in position order and not empty, as one durable shard. `replaces`: the numbers of the shards it was merged from."""
    told = schema.with_metadata({REPLACES: json.dumps(sorted(replaces))})
    with replacing(path) as aside, parquet_writer(aside, told) as writer:
        pending: list[pa.Table] = []
        for table in tables:
            pending.append(table)
            if sum(piece.nbytes for piece in pending) >= GROUP_BYTES:
                _write_groups(writer, pa.concat_tables(pending))
                pending = []
        if pending:
            _write_groups(writer, pa.concat_tables(pending))


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a writer with the settings of shards and parts. Statistics of texts would fill the footer and help nobody."""
    return pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True, write_statistics=["position"])


@contextmanager
def open_shard(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetFile]:
    """Open a shard or part for reading, with its checksums compared. Raises UserError, also for reads inside, when it is damaged."""
    with damage_named(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        if not file.schema_arrow.equals(schema):
            raise UserError(f"{path} has other columns than this run writes ({_difference(file.schema_arrow, schema)}); {REMOVE_IT}")
        yield file


REMOVE_IT = "remove it and run the same command again: only what it held is made again"


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises about a damaged file into a UserError that names it. A file that is gone stays FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a damaged column name
        raise UserError(f"{path} is damaged ({error}); {REMOVE_IT}") from error


def replaced_by(path: Path, schema: pa.Schema) -> set[int]:
    """Return the numbers of the shards that this one was merged from."""
    with open_shard(path, schema) as file:
        metadata: dict[bytes, bytes] = file.schema_arrow.metadata or {}
        return set(json.loads(metadata.get(REPLACES, b"[]")))


def groups(path: Path, schema: pa.Schema, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the row groups of a shard or part, all columns or some."""
    with open_shard(path, schema) as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number, columns=columns, use_threads=False)


def positions_of(table: pa.Table) -> Ints:
    """Return the column `position`: int64, [rows]."""
    column: Any = table.column("position").to_numpy()
    return np.asarray(column, np.int64)


def by_position(table: pa.Table) -> pa.Table:
    """Return the rows in position order."""
    order = np.argsort(positions_of(table), kind="stable")
    return table.take(pa.array(order))


def _write_groups(writer: pq.ParquetWriter, table: pa.Table) -> None:
    rows = max(1, table.num_rows * GROUP_BYTES // max(1, table.nbytes))
    writer.write_table(table, row_group_size=rows)


def _difference(found: pa.Schema, asked: pa.Schema) -> str:
    have, want = {str(field) for field in found}, {str(field) for field in asked}
    return "; ".join(filter(None, [f"has {', '.join(sorted(have - want))}" * bool(have - want), f"lacks {', '.join(sorted(want - have))}"]))
