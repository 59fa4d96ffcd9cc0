"""Ranks as plain processes of this machine: what torchrun does, without its agent."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from w2sr.errors import UserError

MODULE = "w2sr.selftest.rank"


def run_ranks(asked: Path, num_ranks: int, threads: int, log: Path, timeout_s: float) -> None:
    """Run MODULE with the file `asked` on `num_ranks` ranks and wait. Raises UserError with the end of the log of a rank that failed."""
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(num_ranks),
        "OMP_NUM_THREADS": str(threads),
    }
    ranks, logs = [], [log.with_suffix(f".rank{rank}.log") for rank in range(num_ranks)]
    try:
        for rank, path in enumerate(logs):
            with open(path, "wb") as file:
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                command = [sys.executable, "-m", MODULE, str(asked)]
                ranks.append(subprocess.Popen(command, env=common | place, stdout=file, stderr=file, stdin=subprocess.DEVNULL))
        _wait(ranks, logs, timeout_s)
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def _wait(ranks: list[subprocess.Popen[bytes]], logs: list[Path], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    # The first that fails ends the wait: the others would wait for it until a timeout of their own.
    while None in (codes := [process.poll() for process in ranks]) and not any(codes):
        if time.monotonic() > deadline:
            raise UserError(f"the ranks of the selftest did not end in {timeout_s:.0f} s; give fewer --rows, or a longer --timeout")
        time.sleep(0.05)
    for rank, code in enumerate(codes):
        if code:
            lines = [line for line in logs[rank].read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            raise UserError(f"rank {rank} of {len(ranks)} ended with code {code}: {' | '.join(lines[-3:])}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
