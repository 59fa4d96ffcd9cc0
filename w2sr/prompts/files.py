"""Rows of JSONL, JSON and Parquet files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from w2sr.errors import UserError
from w2sr.prompts.rows import Row


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a .jsonl, .json (a list of objects) or .parquet file.

    Raises UserError for a missing file, an unknown extension, a file without rows,
    text that is no UTF-8 or no JSON, a damaged Parquet file.
    """
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: unknown extension {path.suffix!r}; allowed: {', '.join(readers)}")
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {found}; give the path of a .jsonl, .json or .parquet file (relative paths start at {Path.cwd()})")
    num_rows = 0
    for row in readers[path.suffix.lower()](path):
        num_rows += 1
        yield row
    if not num_rows:
        raise UserError(f"{path} holds no rows; give a file with at least one question")


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_decode(path).split("\n"), start=1):
        if line.strip():
            yield _object(_parse(line, f"{path} line {number}"), f"{path} line {number}")


def _read_json(path: Path) -> Iterator[Row]:
    text = _decode(path)
    rows = _parse(text, str(path)) if text.strip() else []
    if not isinstance(rows, list):
        raise UserError(
            f"{path} holds one {type(rows).__name__}, not a list of objects; write [{{...}}, ...], or one object a line as .jsonl"
        )
    for number, row in enumerate(rows, start=1):
        yield _object(row, f"{path} row {number}")


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path} row {number}", values)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}); write it again") from error


def _decode(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it to UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f" line {error.lineno}" if error.lineno > 1 else ""
        found = error.doc[error.pos : error.pos + 20] or "the end"
        raise UserError(
            f"{where}{line} is not valid JSON: {error.msg} at column {error.colno}, found {found!r}; correct or remove it"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise UserError(f"{where} is JSON that cannot be read: {error}; correct or remove it") from error


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(
            f'{where} is {type(value).__name__}, not an object with named columns, for example {{"question": ..., "answer": ...}}'
        )
    return Row(where, value)
