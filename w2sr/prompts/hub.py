"""Rows of a Hugging Face dataset."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

from w2sr.errors import UserError
from w2sr.prompts.rows import Row


class HubPlace(Protocol):
    """Where a dataset is: its id or local folder, its configuration, its revision."""

    @property
    def path(self) -> str: ...

    @property
    def name(self) -> str | None: ...

    @property
    def revision(self) -> str | None: ...


def read_hub_rows(place: HubPlace, split: str, columns: Collection[str], setting: str) -> Iterator[Row]:
    """Yield the rows of one split, of its columns those in `columns` if it has them all; `setting` is where `place` is configured.

    A UserError says why the dataset cannot be had (not there, offline, no such split or configuration).
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name = "/".join(part for part in (place.path, place.name) if part)
    try:
        data = load_dataset(place.path, name=place.name, split=split, revision=place.revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise UserError(
            f"cannot load dataset {name!r}, split {split!r}: {error}. Check {setting} (path, name, split, revision); "
            "without a connection to the hub give a local file or folder"
        ) from error
    # A column that is not there is reported with those that are.
    data = data.select_columns(list(columns)) if set(columns) <= set(data.column_names) else data
    for number, values in enumerate(data, start=1):
        yield Row(f"{name} {split} row {number}", values)
