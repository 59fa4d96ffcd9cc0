"""Parquet tables of records, written atomically: a reader sees a whole file or none."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from w2sr.errors import UserError

if typing.TYPE_CHECKING:
    import pyarrow as pa

Record = TypeVar("Record")


def schema_of(record_type: type[Any]) -> pa.Schema:
    """Return the Arrow schema of a record dataclass: str, int, float, bool, Literal, list[int] (32 bits) and `| None` of these."""
    import pyarrow as pa

    arrow = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), list[int]: pa.list_(pa.int32())}
    fields = []
    for name, hint in typing.get_type_hints(record_type).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
        base = next(option for option in options if option is not types.NoneType)
        base = str if typing.get_origin(base) is typing.Literal else base
        fields.append(pa.field(name, arrow[base], nullable=types.NoneType in options))
    return pa.schema(fields)


def to_arrow(rows: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """Return records as one Arrow table."""
    import pyarrow as pa

    columns = [pa.array([getattr(row, field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def write_table(path: Path, rows: Sequence[Any], record_type: type[Any]) -> None:
    """Write `rows` to `path`: aside, synced to disk, then renamed, so that no reader and no crash leaves half a file.

    Every page carries a checksum that `iter_table` compares.
    """
    import pyarrow.parquet as pq

    table = to_arrow(rows, schema_of(record_type))
    with replacing(path) as aside:
        pq.write_table(table, aside, write_page_checksum=True)


def read_table(path: Path, record_type: type[Record]) -> list[Record]:
    """Read all rows of one Parquet file, or of all `part-*.parquet` files of a folder in name order."""
    return list(iter_table(path, record_type))


def iter_table(path: Path, record_type: type[Record], batch_rows: int = 4096) -> Iterator[Record]:
    """Yield the rows of a file or of a folder of parts without holding more than `batch_rows` of them."""
    names = [field.name for field in dataclasses.fields(record_type)]  # type: ignore[arg-type]
    for batch in iter_batches(path, names, batch_rows):
        for row in batch.to_pylist():
            yield record_type(**row)


def iter_batches(path: Path, columns: Sequence[str], batch_rows: int = 65_536) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a file or of a folder of parts as Arrow record batches; no other column is read.

    Raises UserError for a file that is damaged or has no such column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for part in part_files(path):
        try:
            with pq.ParquetFile(part, page_checksum_verification=True) as file:
                missing = set(columns) - set(file.schema_arrow.names)
                if missing:
                    raise UserError(f"{part} has no column {', '.join(sorted(missing))}; remove it and run the same command again")
                yield from file.iter_batches(batch_size=batch_rows, columns=list(columns))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a damaged column name
            raise UserError(f"{part} is not a readable Parquet file ({error}); remove it and run the same command again") from error


def num_rows(path: Path) -> int:
    """Return the number of rows of a Parquet file, read from its footer."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def part_files(path: Path) -> list[Path]:
    """Return the Parquet files behind `path` (a file, or a folder with `part-*.parquet`), in name order."""
    return sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]


class replacing:
    """Context manager: yields a path aside of `path`; on success it is fsynced and renamed to `path`, on an error it is removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.aside = path.with_name(f".{path.name}.{os.getpid()}.aside")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.aside

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is not None:
            self.aside.unlink(missing_ok=True)
            return
        with open(self.aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.aside, self.path)
        sync_folder(self.path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make everything below `folder` durable: what is in its files, and their names."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(Path(parent) / name, "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
