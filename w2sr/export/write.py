"""Writes one arm of a run as a data set that other tools and the Hugging Face hub read: data/, README.md, dataset_info.json."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from w2sr.artifacts import Manifest
from w2sr.errors import UserError
from w2sr.export.card import card
from w2sr.export.formats import Format, Row, dataset_info, row_of
from w2sr.records import Example
from w2sr.run import Run
from w2sr.tables import iter_table, sync_folder

_GROUP_ROWS = 4096
# JSON may hold these as they are, but tools that split at every line end take them for one.
_LINE_ENDS = {"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"}


def export_arm(run: Run, arm: str, form: Format, out: Path, parquet: bool, drop_truncated: bool, licence: str | None) -> int:
    """Write `arm` to the folder `out` and return the number of rows.

    The folder appears as a whole or not at all. Raises UserError for an arm the run does not have, a folder that is there already, or
    traces without an end (`ended` false) unless they shall be dropped: every other trainer would add the end that they never had.
    """
    curate = run.stage("curate")
    Manifest.load(curate)
    path = curate / f"{arm}.parquet"
    arms = list(json.loads((curate / "funnel.json").read_text(encoding="utf-8"))["arms"])
    if arm not in arms:
        raise UserError(f"this run has no arm {arm!r}; allowed: {', '.join(arms)}")
    if out.exists():
        raise UserError(f"{out} is there already; give another folder with --out, or remove it")
    num_cut = sum(not example.ended for example in iter_table(path, Example))
    if num_cut and not drop_truncated:
        raise UserError(
            f"arm {arm!r} holds {num_cut} traces that the token limit cut; other trainers add an end token to them, which teaches to stop "
            "in mid-thought. Leave them out with --drop-truncated, or export another arm"
        )
    aside = out.with_name(f".{out.name}.{os.getpid()}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        (aside / "data").mkdir(parents=True)
        rows = (row_of(example, run.config.student.style, form) for example in iter_table(path, Example) if example.ended)
        name = f"data/train.{'parquet' if parquet else 'jsonl'}"
        number = _write_parquet(aside / name, rows) if parquet else _write_jsonl(aside / name, rows)
        info = dataset_info(out.name, name, form)
        if info is not None:
            _write(aside / "dataset_info.json", json.dumps(info, indent=2) + "\n")
        _write(aside / "README.md", card(run, arm, form, name, number, num_cut, licence))
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # after the rename there is nothing left to remove
    sync_folder(out.parent)
    return number


def _write_jsonl(path: Path, rows: Iterable[Row]) -> int:
    number = 0
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False)
            for character, escape in _LINE_ENDS.items():
                line = line.replace(character, escape)
            file.write(line + "\n")
            number += 1
        file.flush()
        os.fsync(file.fileno())
    return number


def _write_parquet(path: Path, rows: Iterable[Row]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    groups = _groups(rows)
    first = next(groups, None)
    if first is None:
        raise UserError("there is no row left to export")
    schema = pa.Table.from_pylist(first[:1]).schema
    with open(path, "wb") as file, pq.ParquetWriter(file, schema) as writer:
        for group in itertools.chain([first], groups):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            number += len(group)
    return number


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while group := list(itertools.islice(iterator, _GROUP_ROWS)):
        yield group


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def read_export(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of an exported data set, whatever its format."""
    import pyarrow.parquet as pq

    if (folder / "data" / "train.parquet").is_file():
        with pq.ParquetFile(folder / "data" / "train.parquet") as file:
            for batch in file.iter_batches(batch_size=_GROUP_ROWS):
                yield from batch.to_pylist()
        return
    with open(folder / "data" / "train.jsonl", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield json.loads(line)
