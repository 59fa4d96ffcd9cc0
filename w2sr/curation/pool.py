"""The pool that arms are made of, read in batches of columns: teachers' judged traces, people's traces, reference traces.

It is read twice, and nothing but compact facts (facts.py) is held in between: memory does not grow with the texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from w2sr.errors import UserError
from w2sr.tables import num_rows, part_files

BATCH_ROWS = 4096
GOLD = "gold"
HUMAN = "human"

_TRACE = ["trace_id", "prompt_id", "generator", "text", "finish_reason"]
_VERIFICATION = ["trace_id", "verdict", "reason", "last_answer"]
COLUMNS = pa.schema(
    [
        pa.field("row_id", pa.string()),
        pa.field("prompt_id", pa.string()),
        pa.field("origin", pa.string()),
        pa.field("text", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("verdict", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("trace_id", pa.string()),
        pa.field("edited_from", pa.string()),
    ]
)
"""Columns of a batch. `row_id` names the row in arms and rejects; `verdict` is null for reference traces."""


class Source(Protocol):
    """Rows of one origin, in an order that never changes."""

    @property
    def name(self) -> str:
        """A teacher's name, "human" or "gold"."""
        ...

    @property
    def num_rows(self) -> int:
        """Rows of all batches together."""
        ...

    def batches(self) -> Iterator[pa.Table]:
        """Yield tables with the COLUMNS, of at most BATCH_ROWS rows."""
        ...


@dataclass(frozen=True)
class TeacherSource:
    """A teacher's traces with their verdicts: the rows of both stages are in the same order."""

    name: str
    traces: Path
    verdicts: Path

    @property
    def num_rows(self) -> int:
        """Rows by the files' own metadata."""
        return sum(_num_rows(part) for part in part_files(self.traces))

    def batches(self) -> Iterator[pa.Table]:
        """Yield traces beside their verdicts."""
        traces, verdicts = _read(self.traces, _TRACE), _read(self.verdicts, _VERIFICATION)
        for trace, verdict in zip(traces, verdicts, strict=True):
            assert trace["trace_id"].equals(verdict["trace_id"]), f"the verdicts of teacher {self.name} do not belong to its traces"
            columns = [trace["trace_id"], trace["prompt_id"], trace["generator"], trace["text"], trace["finish_reason"]]
            columns += [verdict["verdict"], verdict["reason"], verdict["last_answer"], trace["trace_id"]]
            yield pa.Table.from_arrays([*columns, pa.nulls(len(trace), pa.string())], schema=COLUMNS)


@dataclass(frozen=True)
class Prompts:
    """The training prompts as columns, in file order; `answers` and `references` may be null."""

    ids: pa.Array
    questions: pa.Array
    answers: pa.Array
    references: pa.Array

    @classmethod
    def read(cls, path: Path) -> Prompts:
        """Read prompts/train.parquet."""
        columns = ["prompt_id", "question", "answer", "reference_trace"]
        table = pa.concat_tables(list(_read(path, columns)) or [_empty(columns)])
        return cls(*(table[name].combine_chunks() for name in columns))

    def some(self, start: int, stop: int) -> Prompts:
        """Return prompts `start` to `stop` (exclusive)."""
        return Prompts(*(column.slice(start, stop - start) for column in (self.ids, self.questions, self.answers, self.references)))

    def __len__(self) -> int:
        return len(self.ids)

    def index(self, prompt_ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int32]:
        """Return the place of each prompt id."""
        found = pc.index_in(prompt_ids, value_set=self.ids)
        assert not found.null_count, "a trace answers a prompt that is no training prompt"
        numbers: npt.NDArray[np.int32] = found.to_numpy(zero_copy_only=False).astype(np.int32)
        return numbers


@dataclass(frozen=True)
class GoldSource:
    """The reference traces, one row for each training prompt; the text is empty where there is none."""

    prompts: Prompts
    name: str = GOLD

    @property
    def num_rows(self) -> int:
        """One for each prompt."""
        return len(self.prompts)

    def batches(self) -> Iterator[pa.Table]:
        """Yield them in the order of the prompts."""
        for start in range(0, len(self.prompts), BATCH_ROWS):
            ids = self.prompts.ids.slice(start, BATCH_ROWS)
            texts = pc.fill_null(self.prompts.references.slice(start, BATCH_ROWS), "")
            none, count = pa.nulls(len(ids), pa.string()), len(ids)
            row_ids = pc.binary_join_element_wise(GOLD, ids, "-")
            columns = [row_ids, ids, _same(GOLD, count), texts, _same("stop", count), none, _same(GOLD, count), none, none, none]
            yield pa.Table.from_arrays(columns, schema=COLUMNS)


def _same(value: str, count: int) -> pa.Array:
    return pa.array([value] * count, pa.string())


def _empty(columns: Sequence[str]) -> pa.Table:
    return pa.table({name: pa.array([], pa.string()) for name in columns})


def _num_rows(part: Path) -> int:
    with _readable(part):
        return num_rows(part)


@contextmanager
def _readable(part: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a damaged column name
        what = " ".join(str(error).split())
        raise UserError(
            f"{part} is not a readable Parquet file ({what}); it was damaged from outside: remove {part.parent} to make it again"
        ) from error


def _read(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    """Yield tables of exactly BATCH_ROWS rows (the last may be shorter), whatever the sizes of the files behind `path`."""
    waiting: list[Any] = []
    num_waiting = 0
    for part in part_files(path):
        with _readable(part), pq.ParquetFile(part, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                waiting.append(pa.Table.from_batches([batch]).select(columns))
                num_waiting += len(batch)
                while num_waiting >= BATCH_ROWS:
                    whole = pa.concat_tables(waiting)
                    yield whole.slice(0, BATCH_ROWS).combine_chunks()
                    waiting, num_waiting = [whole.slice(BATCH_ROWS)], num_waiting - BATCH_ROWS
    if num_waiting:
        yield pa.concat_tables(waiting).combine_chunks()
