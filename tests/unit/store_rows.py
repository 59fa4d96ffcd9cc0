"""Traces whose every field follows from their position, and what a folder of them holds."""

import hashlib
from pathlib import Path

from w2sr.records import Trace, trace_id_of
from w2sr.tables import read_table
from w2sr.traces.shards import shard_files


def id_at(position: int) -> str:
    return trace_id_of(f"p{position // 4}", "weak", position % 4)


def trace_at(position: int) -> Trace:
    noise = hashlib.sha256(str(position).encode()).hexdigest()
    return Trace(
        trace_id=id_at(position),
        prompt_id=f"p{position // 4}",
        generator="weak",
        sample_index=position % 4,
        text=noise * (1 + position % 3),
        finish_reason="stop",
        num_prompt_tokens=9,
        num_tokens=position % 7,
        seed=position,
        template_hash="h",
        model_digest="m",
        engine="fake",
        error=None,
        position=position,
        token_ids=None if position % 5 == 0 else list(range(position % 6)),
        engine_version="1",
        model="r",
    )


def committed(folder: Path) -> list[int]:
    """Positions in the shards, as a reader finds them that knows nothing of merging."""
    return [trace.position for path in shard_files(folder) for trace in read_table(path, Trace)]


def part_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*.parquet"))}
