"""The finished form: parts of a fixed number of rows in position order, the same bytes whatever the order of completion was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from w2sr.tables import replacing
from w2sr.traces.merging import merge
from w2sr.traces.shards import parquet_writer

PART_ROWS = 16_384
GROUP_ROWS = 1_024


def write_parts(folder: Path, shards: Sequence[Path], schema: pa.Schema, part_rows: int = PART_ROWS) -> list[Path]:
    """Write the rows of all shards as `part-00000.parquet`, ... with `part_rows` each (the last has the rest); return their paths.

    The bytes are a function of the rows: every row group is one contiguous table of GROUP_ROWS rows, or what is left. No rows make
    one empty part, so that there is always a schema to read.
    """
    paths: list[Path] = []
    group_rows = min(GROUP_ROWS, part_rows)
    assert part_rows % group_rows == 0
    rows = regrouped(merge(shards, schema), group_rows)
    table = next(rows, schema.empty_table())
    while table is not None:
        path = folder / f"part-{len(paths):05d}.parquet"
        with replacing(path) as aside, parquet_writer(aside, schema) as writer:
            written = 0
            while table is not None and written < part_rows:
                writer.write_table(table)
                written += table.num_rows
                table = next(rows, None)
        paths.append(path)
    return paths


def regrouped(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in contiguous tables of `rows` rows; the last may have fewer."""
    pending: list[pa.Table] = []
    have = 0
    for table in tables:
        pending.append(table)
        have += table.num_rows
        while have >= rows:
            joined = pa.concat_tables(pending)
            yield joined.slice(0, rows).combine_chunks()
            pending = [joined.slice(rows)]
            have -= rows
    if have:
        yield pa.concat_tables(pending).combine_chunks()
