"""The process that forks drivers: each does the real generate stage with the fake engine, on the cluster, and can be killed.

Forked, because importing Ray, torch and pyarrow takes seconds. Speaks JSON lines: {"folder", "address", "log"} comes in, {"pid"} and
{"pid", "status"} (as of os.waitpid) go out.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import sys
import traceback
from pathlib import Path

import pyarrow.parquet  # noqa: F401 - imported once, here, for all drivers
import ray  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

from cluster.config import ClusterSpec
from cluster.errors import ClusterError
from cluster.session import ray_session
from tests.faults.engine import FakeWorkerFactory
from tests.faults.work import REFUSED, config_of
from w2sr.errors import UserError
from w2sr.run import Run
from w2sr.stages import generate
from w2sr.teachers import services


def drive(folder: Path, address: str) -> int:
    """Run the generate stage once; return the exit code."""
    services.HFWorkerFactory = services.VLLMWorkerFactory = FakeWorkerFactory  # type: ignore[misc, assignment]
    try:
        run = Run(config_of(folder, address), folder / "run", functools.partial(ray_session, ClusterSpec(address=address)))
        generate.run(run)
    except (UserError, ClusterError) as error:
        print(f"REFUSED: {error}", flush=True)
        return REFUSED
    return 0


def _fork(order: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        log = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        code = drive(Path(order["folder"]), order["address"])
    except BaseException:  # noqa: BLE001 - a forked child must never return into its parent's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Fork a driver for each line; tell when one has ended."""
    children: set[int] = set()
    pending = b""
    while True:
        if select.select([0], [], [], 0.02)[0]:
            received = os.read(0, 65536)
            if not received:  # whoever gave the orders has gone
                for pid in children:
                    os.kill(pid, signal.SIGKILL)
                return
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                children.add(pid := _fork(json.loads(line)))
                print(json.dumps({"pid": pid}), flush=True)
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            children.discard(pid)
            print(json.dumps({"pid": pid, "status": status}), flush=True)


if __name__ == "__main__":
    main()
