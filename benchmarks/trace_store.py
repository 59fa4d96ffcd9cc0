"""Is the trace store's memory flat, and how fast is it? 1 M and 10 M traces appended in scattered order, killed halfway, resumed, finished.

    python benchmarks/trace_store.py --folder /tmp/trace_store --rows 1000000 10000000

Every phase is a process of its own, so that its peak memory (ru_maxrss) is its own. The order is position = i * step mod rows: every shard
is scattered over the whole range, the worst case for sorting. Commits come every 50,000 rows, so small shards are merged all the time. The
last phase reads all parts back and compares every row with what was appended. Needs about 100 bytes of disk a row, twice; cleans up.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

LOT = 500
COMMIT_EVERY = 50_000


def trace_at(position: int):
    """Return the trace of a position: every field follows from it."""
    from w2sr.records import Trace

    return Trace(
        trace_id=f"{position:020x}",
        prompt_id=f"p{position // 4}",
        generator="weak",
        sample_index=position % 4,
        text=f"Step 1: {position} + 1 = {position + 1}. So the answer is \\boxed{{{position + 1}}}.",
        finish_reason="stop",
        num_prompt_tokens=20,
        num_tokens=8,
        seed=position * 7919,
        template_hash="0123456789abcdef",
        model_digest="fedcba9876543210",
        engine="fake",
        error=None,
        position=position,
        token_ids=[position & 1023, (position >> 10) & 1023, 5, 6, 7, 8, 9, 2],
        engine_version="1",
        model="none",
    )


def id_at(position: int) -> str:
    """Return the trace id that belongs to a position."""
    return f"{position:020x}"


def order(rows: int):
    """Return the i-th position to be appended, as a function: a permutation that needs no memory."""
    step = int(rows * 0.6180339887) | 1
    while math.gcd(step, rows) != 1:
        step += 2
    return lambda number: number * step % rows


def append(folder: Path, rows: int, first: int, last: int, figures: dict[str, float]):
    """Open the store and append the traces number `first` to `last`; return the store."""
    from w2sr.records import Trace
    from w2sr.traces.store import TraceStore

    began = time.perf_counter()
    store = TraceStore.open(folder, Trace, rows, id_at, flush_interval_s=20.0)
    figures["open_s"] = time.perf_counter() - began
    figures["found"] = store.num_rows
    place, spent, cpu = order(rows), 0.0, 0.0
    for start in range(first, last, LOT):
        lot = [trace_at(position) for position in map(place, range(start, min(last, start + LOT))) if not store.has(position)]
        began, used = time.perf_counter(), time.process_time()
        store.append(lot)
        if start % COMMIT_EVERY == 0:
            store.flush()
        spent, cpu = spent + time.perf_counter() - began, cpu + time.process_time() - used
    began, used = time.perf_counter(), time.process_time()
    store.flush()
    figures["append_s"] = spent + time.perf_counter() - began
    figures["append_cpu_s"] = cpu + time.process_time() - used
    figures["appended"] = store.num_rows - figures["found"]
    return store


def phase_killed(folder: Path, rows: int, figures: dict[str, float]) -> None:
    """Append half of the rows; the process is killed afterwards, without closing the store."""
    append(folder, rows, 0, rows // 2, figures)
    figures["shards"] = len(list(folder.glob("shard-*")))


def phase_resumed(folder: Path, rows: int, figures: dict[str, float]) -> None:
    """Find the first half, append the other, write the parts."""
    from w2sr.traces.recovery import remove_shards

    with append(folder, rows, rows // 2 - 1000, rows, figures) as store:
        figures["shards"] = len(list(folder.glob("shard-*")))
        began, used = time.perf_counter(), time.process_time()
        paths = store.finish()
        figures["finish_s"] = time.perf_counter() - began
        figures["finish_cpu_s"] = time.process_time() - used
        assert store.num_rows == rows
    remove_shards(folder)
    figures["parts"] = len(paths)
    figures["bytes"] = sum(path.stat().st_size for path in paths)


def phase_read(folder: Path, rows: int, figures: dict[str, float]) -> None:
    """Read the parts back and compare every row."""
    from w2sr.records import Trace
    from w2sr.tables import part_files, schema_of, to_arrow
    from w2sr.traces.shards import groups

    began, schema, count = time.perf_counter(), schema_of(Trace), 0
    for path in part_files(folder):
        for table in groups(path, schema):
            expected = to_arrow([trace_at(position) for position in range(count, count + table.num_rows)], schema)
            assert table.equals(expected), path
            count += table.num_rows
    assert count == rows
    figures["read_s"] = time.perf_counter() - began


PHASES = {"killed": phase_killed, "resumed": phase_resumed, "read": phase_read}


def main() -> None:
    """Run all phases for every number of rows, or one phase in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--phase", choices=list(PHASES))
    asked = parser.parse_args()
    if asked.phase:
        figures: dict[str, float] = {}
        PHASES[asked.phase](asked.folder, asked.rows[0], figures)
        figures["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({key: round(value, 2) for key, value in figures.items()}), flush=True)
        if asked.phase == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return
    for rows in asked.rows:
        for phase in PHASES:
            command = [sys.executable, __file__, "--folder", str(asked.folder), "--rows", str(rows), "--phase", phase]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            assert done.returncode in (0, -signal.SIGKILL), done.returncode
            print(f"{rows:>10,} rows, {phase}: {done.stdout.strip()}", flush=True)
        shutil.rmtree(asked.folder)


if __name__ == "__main__":
    main()
