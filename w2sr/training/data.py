"""Rows on disk: an Arrow file of tokens that every rank maps into its memory, and beside it the facts about it, written last.

What always holds:
- a rows file without its facts does not exist for anybody: it is being written, or its writer was killed;
- facts hold the digest of what the rows are: of tokens, lengths, prefixes, weights and ids, not of the file's layout;
- nobody copies the tokens: a rank holds a few numbers a row, and its batches.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from w2sr.artifacts import digest_of
from w2sr.errors import UserError
from w2sr.packing.fit import Indices
from w2sr.packing.pack import RowTable
from w2sr.packing.rows import Row
from w2sr.tables import replacing, write_text

if TYPE_CHECKING:
    import pyarrow as pa

# What the kinds of file end with.
ROWS, FACTS, MIXTURE, WAVES = ".rows.arrow", ".rows.json", ".mixture.json", ".waves.json"
BLOCK_TOKENS = 1 << 22


@dataclass(frozen=True)
class Block:
    """Some rows in arrays, end to end: `ids` [tokens], the others [rows]. `example_ids`: strings, or an Arrow array of them."""

    example_ids: Sequence[str]
    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    prefixes: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Block:
        """Return rows as arrays."""
        return cls(
            [row.example_id for row in rows],
            np.concatenate([np.zeros(0, np.int32), *(np.array(row.ids, dtype=np.int32) for row in rows)]),
            np.array([len(row.ids) for row in rows], dtype=np.int32),
            np.array([row.num_prefix for row in rows], dtype=np.int32),
            np.array([row.weight for row in rows], dtype=np.float32),
        )

    @classmethod
    def join(cls, blocks: Sequence[Block]) -> Block:
        """Return blocks end to end."""
        arrays = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("ids", "lengths", "prefixes", "weights"))
        return cls([name for block in blocks for name in block.example_ids], *arrays)


@dataclass(frozen=True)
class RowFacts:
    """What is known of a rows file: its digest, rows, tokens and supervised tokens, and the ids of the examples that were dropped."""

    digest: str
    num_rows: int
    num_tokens: int
    num_supervised: int
    too_long: tuple[str, ...] = ()
    unwritable: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path) -> RowFacts | None:
        """Return the facts of the rows file `path`, or None when it is not complete."""
        facts = facts_path(path)
        if not (facts.is_file() and path.is_file()):
            return None
        values = json.loads(facts.read_text(encoding="utf-8"))
        return cls(**values | {name: tuple(values[name]) for name in ("too_long", "unwritable")})


def facts_path(path: Path) -> Path:
    """Return where the facts of the rows file `path` are."""
    return path.with_name(path.name.removesuffix(ROWS) + FACTS)


def write_rows(path: Path, blocks: Iterable[Block], dropped: Any = None) -> RowFacts:
    """Write a rows file block by block, then its facts; a kill leaves neither. Holds some BLOCK_TOKENS tokens at a time.

    `dropped` (packing.rows.Tally) is looked at when the last block was taken.
    """
    import pyarrow as pa

    digest, num_rows, num_tokens, num_supervised = _Digest(), 0, 0, 0
    facts_path(path).unlink(missing_ok=True)  # never facts of other rows
    with replacing(path) as aside, pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, _schema()) as writer:
        for block in _merged(blocks):
            digest.add(block)
            num_rows, num_tokens = num_rows + len(block.lengths), num_tokens + len(block.ids)
            num_supervised += int((block.lengths - block.prefixes).sum())
            offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(block.lengths, dtype=np.int32)])
            ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(block.ids))
            columns = [pa.array(block.example_ids, pa.string()), ids, pa.array(block.prefixes), pa.array(block.weights)]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=_schema()))
    too_long, unwritable = (tuple(getattr(dropped, name, ())) for name in ("too_long", "unwritable"))
    facts = RowFacts(digest.text(), num_rows, num_tokens, num_supervised, too_long, unwritable)
    write_text(facts_path(path), json.dumps(dataclasses.asdict(facts)) + "\n")
    return facts


def save_rows(path: Path, rows: Sequence[Row]) -> RowFacts:
    """Write rows that are in memory."""
    return write_rows(path, [Block.of(rows)])


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("example_id", pa.string()), ("ids", pa.list_(pa.int32())), ("num_prefix", pa.int32()), ("weight", pa.float32())])


def _merged(blocks: Iterable[Block]) -> Iterable[Block]:
    """Join small blocks: fewer, larger batches are read faster."""
    waiting: list[Block] = []
    for block in blocks:
        if waiting and sum(len(some.ids) for some in waiting) + len(block.ids) > BLOCK_TOKENS:
            yield Block.join(waiting)
            waiting = []
        waiting.append(block)
    if waiting:
        yield Block.join(waiting)


class _Digest:
    """A digest of rows that does not depend on how they are cut into blocks."""

    def __init__(self) -> None:
        self._hashes = {name: hashlib.sha256() for name in ("ids", "lengths", "prefixes", "weights", "example_ids")}

    def add(self, block: Block) -> None:
        for name in ("ids", "lengths", "prefixes", "weights"):
            self._hashes[name].update(np.ascontiguousarray(getattr(block, name)).data)
        self._hashes["example_ids"].update("".join(f"{name}\x1f" for name in block.example_ids).encode())

    def text(self) -> str:
        return digest_of({name: found.hexdigest() for name, found in self._hashes.items()})


class _Names:
    """The example ids of rows files end to end, decoded when they are asked for."""

    def __init__(self, columns: Sequence[pa.ChunkedArray]) -> None:
        chunks = [chunk for column in columns for chunk in column.chunks]
        self._chunks = chunks
        self._ends = np.cumsum([len(chunk) for chunk in chunks])

    def __getitem__(self, number: int) -> str:
        chunk = int(np.searchsorted(self._ends, number, side="right"))
        return str(self._chunks[chunk][int(number) - int(self._ends[chunk]) + len(self._chunks[chunk])].as_py())


@dataclass(frozen=True)
class RowStore(RowTable):
    """The rows of a training, mapped into memory.

    `parts`: (number of rows, share of an epoch) of each arm, in the order of the rows; a student of one arm has one part with share 1.
    `waves`: how many waves there will be; with several, each part is one of those that are there, all of which is in an epoch.
    """

    names: _Names
    parts: tuple[tuple[int, float], ...]
    waves: int = 1

    def example_ids(self, rows: Indices) -> list[str]:
        """Return the ids of the examples that these rows were made of."""
        return [self.names[int(number)] for number in rows]

    def row(self, number: int) -> Row:
        """Return one row (its prompt id is not kept)."""
        some = np.array([number])
        ids = self.tokens(some, np.arange(self.lengths[number]))
        return Row(self.names[number], "", tuple(ids.tolist()), int(self.prefixes[number]), float(self.weights[number]))


def load_rows(path: Path) -> RowStore:
    """Map a rows file, or the rows files of a mixture or of the waves that are there.

    Raises UserError when one is not there, or not complete.
    """
    parts = _parts(path)
    opened = [_open(each) for each, _ in parts]
    return RowStore(
        buffers=tuple(each.ids for each in opened),
        places=np.repeat(np.arange(len(opened), dtype=np.int16), [len(each.starts) for each in opened]),
        starts=np.concatenate([each.starts for each in opened]),
        lengths=np.concatenate([each.lengths for each in opened]),
        prefixes=np.concatenate([each.prefixes for each in opened]),
        weights=np.concatenate([each.weights for each in opened]),
        names=_Names([each.names for each in opened]),
        parts=tuple((len(each.starts), share) for each, (_, share) in zip(opened, parts)),
        waves=read_waves(path).of if path.name.endswith(WAVES) else 1,
    )


def write_mixture(path: Path, parts: Sequence[tuple[Path, float]]) -> None:
    """Write a mixture of rows files of the same folder with their shares (which sum to 1)."""
    write_text(path, json.dumps([{"rows": file.name, "share": share} for file, share in parts], indent=1) + "\n")


@dataclass(frozen=True)
class Waves:
    """The waves of rows that are there, in order: their rows files and the digests of these; `of`: how many there will be."""

    of: int
    rows: tuple[Path, ...]
    digests: tuple[str, ...]


def write_waves(path: Path, of: int, rows_files: Sequence[Path]) -> None:
    """Write the index of the waves that are there, the first and those that follow it, of `of` in all.

    Raises UserError when a rows file is not complete.
    """
    assert 0 < len(rows_files) <= of, f"{len(rows_files)} of {of} waves"
    folder = path.parent.resolve()
    names = [file.name if file.resolve().parent == folder else str(file.resolve()) for file in rows_files]
    waves = [{"rows": name, "digest": _facts(file).digest} for name, file in zip(names, rows_files)]
    write_text(path, json.dumps({"of": of, "waves": waves}, indent=1) + "\n")


def read_waves(path: Path) -> Waves:
    """Read an index of waves, which may grow; raises UserError when there is none."""
    values = _index(path)
    waves = values["waves"]
    return Waves(values["of"], tuple(path.parent / wave["rows"] for wave in waves), tuple(wave["digest"] for wave in waves))


def rows_digest(path: Path) -> str:
    """Return a digest of the rows in a rows file or mixture, without reading them; raises UserError as `load_rows` does.

    That of waves is one of their number and the first of them: it stays the same while others come, so that a checkpoint is gone on from
    when there are more. Whether later ones are those that were trained on is for who adopts the student to compare (early.py).
    """
    if path.name.endswith(WAVES):
        waves = read_waves(path)
        return digest_of(["waves", waves.of, waves.digests[0]])
    return digest_of([[_facts(file).digest, share] for file, share in _parts(path)])


def is_sound(path: Path) -> bool:
    """Whether a complete rows file still holds what its facts say; reads all of it."""
    facts = RowFacts.load(path)
    if facts is None:
        return False
    try:
        digest = _Digest()
        for batch in _mapped(path)[1]:
            digest.add(_block(batch))
    except (OSError, ValueError, UnicodeDecodeError):  # Arrow's errors are ValueErrors: the file is damaged
        return False
    return digest.text() == facts.digest


def _parts(path: Path) -> list[tuple[Path, float]]:
    if path.name.endswith(WAVES):
        return [(file, 1.0) for file in read_waves(path).rows]
    if path.name.endswith(MIXTURE):
        return [(path.with_name(part["rows"]), part["share"]) for part in _index(path)]
    return [(path, 1.0)]


def _index(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"there is no rows file {path}; run `w2sr train` (or `w2sr run`), which makes it")
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class _Opened:
    ids: npt.NDArray[np.int32]
    starts: Indices
    lengths: Indices
    prefixes: Indices
    weights: npt.NDArray[np.float32]
    names: pa.ChunkedArray


def _open(path: Path) -> _Opened:
    import pyarrow as pa

    _facts(path)

    whole, batches = _mapped(path)
    blocks = [_block(batch) for batch in batches]
    starts = [
        (block.ids.__array_interface__["data"][0] - whole.address) // 4 + np.cumsum(block.lengths, dtype=np.int64) - block.lengths
        for block in blocks
    ]
    none = np.zeros(0, dtype=np.int64)
    return _Opened(
        # All of the file as tokens: those of a row lie somewhere in it, whichever batch it is in.
        np.frombuffer(whole.slice(0, whole.size // 4 * 4), dtype=np.int32),
        np.concatenate([none, *starts]),
        np.concatenate([none, *(block.lengths for block in blocks)]),
        np.concatenate([none, *(block.prefixes for block in blocks)]),
        np.concatenate([none.astype(np.float32), *(block.weights for block in blocks)]),
        pa.chunked_array([batch.column("example_id") for batch in batches], pa.string()),
    )


def _facts(path: Path) -> RowFacts:
    facts = RowFacts.load(path)
    if facts is None:
        raise UserError(f"there is no complete rows file {path}; run `w2sr train` (or `w2sr run`), which makes it")
    return facts


def _mapped(path: Path) -> tuple[pa.Buffer, list[pa.RecordBatch]]:
    """Return a rows file as it lies in memory, and its batches, which are views of that."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        whole = source.read_buffer(source.size())
    reader = pa.ipc.open_file(pa.BufferReader(whole))
    return whole, [reader.get_batch(number) for number in range(reader.num_record_batches)]


def _block(batch: pa.RecordBatch) -> Block:
    ids = batch.column("ids")
    lengths, prefixes, weights = np.diff(ids.offsets.to_numpy()), batch.column("num_prefix").to_numpy(), batch.column("weight").to_numpy()
    return Block(batch.column("example_id"), ids.values.to_numpy(), lengths, prefixes, weights)
