"""Real endpoints: `transformers serve` on a lab model, and a process in front of it that makes faults."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from w2sr.lab.models import MODELS_DIR

HERE = Path(__file__).parent
MODEL = str(MODELS_DIR / "teacher")


@dataclass(frozen=True)
class Server:
    """A running endpoint."""

    port: int
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@dataclass(frozen=True)
class FaultyProxy(Server):
    """An endpoint that hands requests on, after faults."""

    def faults(self) -> dict[str, int]:
        """Return how many faults of each kind there were."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/faults") as response:
            found: dict[str, int] = json.load(response)
        return found


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def transformers_serve(port: int, log: Path) -> Iterator[Server]:
    """Run `transformers serve` on the lab's teacher; nothing is fetched."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    code = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", code, "serve", MODEL, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 120
        while not _answers(port):
            up = process.poll() is None and time.monotonic() < deadline
            assert up, f"transformers serve did not come up: {log.read_text()[-2000:]}"
            time.sleep(0.1)
        yield Server(port, process)
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for package in ("fastapi", "openai", "uvicorn"):
        assert importlib.util.find_spec(package), f"{package} is not installed: pip install -e '.[test]'"
    with transformers_serve(free_port(), tmp_path_factory.mktemp("serve") / "serve.log") as running:
        yield running


@contextlib.contextmanager
def faulty_proxy(upstream: int, seed: int) -> Iterator[FaultyProxy]:
    """Run a proxy in front of a port."""
    command = [sys.executable, str(HERE / "faulty_proxy.py"), str(upstream), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield FaultyProxy(int(process.stdout.readline()), process)
        finally:
            process.kill()


@pytest.fixture
def faulty(server: Server) -> Iterator[Callable[[int], FaultyProxy]]:
    """Return a function that starts a proxy with a seed before the server."""
    with contextlib.ExitStack() as stack:
        yield lambda seed: stack.enter_context(faulty_proxy(server.port, seed))
