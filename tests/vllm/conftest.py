"""What the tests with vLLM share: the other environment, the model, one Ray session with one pool, and vLLM's server."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config import ClusterSpec
from cluster.pool import Pool
from cluster.session import ray_session
from tests.smollm2 import default_folder, make_smollm2
from tests.vllm.server import Server, vllm_server

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The interpreter of the environment that has vLLM."""
    python = Path(os.environ.get("W2SR_VLLM_PYTHON") or ROOT / ".venv-vllm" / "bin" / "python")
    if not python.is_file():
        pytest.skip(f"vLLM's environment is not installed ({python}): make setup-vllm, then make test-vllm")
    return python


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, a real model."""
    return make_smollm2(default_folder())


@pytest.fixture(scope="session")
def pool(vllm_python: Path) -> Iterator[Pool]:
    """One pool for all tests: vLLM takes half a minute to start. At its end none of its sockets may be left."""
    assert vllm_python.is_file()
    before = _sockets()
    with ray_session(ClusterSpec(num_cpus=2, num_gpus=0)), Pool() as shared:
        yield shared
    deadline = time.monotonic() + 20
    while left := _sockets() - before:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.1)


def _sockets() -> set[Path]:
    """Return the sockets that vLLM's processes talk by, where it makes them unless told otherwise, and our folders of them."""
    folder = Path(tempfile.gettempdir())
    named = [path for path in folder.iterdir() if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", path.name)]
    return {*named, *(path.parent for path in folder.glob("w2sr-*/*-*-*-*-*"))}


@pytest.fixture(scope="session")
def server(vllm_python: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """vLLM's OpenAI-compatible server with SmolLM2."""
    with vllm_server(vllm_python, smollm2, tmp_path_factory.mktemp("server") / "log") as running:
        yield running
