"""What more than the cluster has is refused, unless the cluster has lost nodes that may come back; how many GPUs a machine has."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import session
from cluster.config import ClusterSpec
from cluster.errors import ClusterError
from cluster.session import machine_gpus, require


def open_session(monkeypatch: pytest.MonkeyPatch, *alive: bool) -> None:
    """Pretend a session on nodes with a CPU each."""
    nodes = [{"Alive": up} for up in alive]
    fake = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: {"CPU": float(sum(alive))}, nodes=lambda: nodes)
    monkeypatch.setitem(sys.modules, "ray", fake)  # type: ignore[arg-type]


def test_too_much_is_refused_on_a_whole_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    open_session(monkeypatch, True, True)
    require("train.num_ranks=2", 2, 0, ClusterSpec(address="10.0.0.1:6379"))
    with pytest.raises(ClusterError, match=r"needs 3 CPUs; the cluster at 10\.0\.0\.1:6379 has 2 CPUs"):
        require("train.num_ranks=3", 3, 0, ClusterSpec(address="10.0.0.1:6379"))


@pytest.mark.parametrize(
    ("visible", "number"),
    [("0,1", 2), ("1", 1), ("-1", 0), ("0,-1,1", 1), ("0,1,", 2), ("0,2", 1), ("none", 0), ("GPU-8f, GPU-9a", 2), ("0,1,0", 2), ("", 0)],
)
def test_of_the_visible_gpus_those_before_the_first_that_is_none_count(monkeypatch: pytest.MonkeyPatch, visible: str, number: int) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    listed = SimpleNamespace(stdout="GPU 0: A (UUID: GPU-8f)\nGPU 1: A (UUID: GPU-9a)\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: listed)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine_gpus() == number


def test_an_nvidia_smi_that_hangs_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(session, "NVIDIA_SMI_S", 0.1)
    with pytest.raises(ClusterError, match="a GPU or its driver hangs"):
        machine_gpus()


def test_a_lost_node_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    open_session(monkeypatch, True, False)
    require("train.num_ranks=2", 2, 0, ClusterSpec(address="10.0.0.1:6379"))
