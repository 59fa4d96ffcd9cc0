"""Rows of a Hugging Face dataset."""

from __future__ import annotations

from collections.abc import Iterator

from w2sr.errors import UserError
from w2sr.prompts.config import HubSource
from w2sr.prompts.rows import Row


def read_hub_rows(source: HubSource, split: str) -> Iterator[Row]:
    """Yield the rows of one split; a UserError says why the dataset cannot be had (not there, offline, no such split or configuration)."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name = "/".join(part for part in (source.path, source.name) if part)
    try:
        data = load_dataset(source.path, name=source.name, split=split, revision=source.revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise UserError(
            f"cannot load dataset {name!r}, split {split!r}: {error}. Check prompts.source (path, name, split, revision); "
            f"without a connection to the hub give a local folder as path, or a file with kind: file"
        ) from error
    wanted = [column for column in vars(source.fields).values() if column is not None]
    # A column that is not there is reported with those that are.
    data = data.select_columns(wanted) if set(wanted) <= set(data.column_names) else data
    for number, values in enumerate(data, start=1):
        yield Row(f"{name} {split} row {number}", values)
