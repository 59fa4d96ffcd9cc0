"""One cluster, and one process that forks drivers, for all schedules."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import Drivers, Machines

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="package")
def machines() -> Iterator[Machines]:
    folder = Path(tempfile.mkdtemp(prefix="w2sr-f-", dir="/tmp"))  # short: sockets lie in it
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_health_check_period_ms", "300")  # a dead node is noticed after 1.5 s instead of 15 s
        patch.setenv("RAY_worker_niceness", "0")  # 15 by default: beside other work they would start very slowly
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        started = Machines(folder)
        yield started
        started.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="package")
def drivers(machines: Machines) -> Iterator[Drivers]:
    assert machines.address  # they inherit its token
    started = Drivers()
    yield started
    started.close()
