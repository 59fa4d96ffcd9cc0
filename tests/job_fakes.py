"""A cluster that is up, with a backend that is a fake."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from cluster.errors import ClusterError
from launcher.home import ClusterState, Job, OpenCluster, open_cluster
from launcher.substrate import Say
from tests.unit.test_config import SMALL
from w2sr.config import load_config


class FakeBackend:
    """Takes jobs and knows a state of each, as Ray and Slurm do; refuses or falls silent when told to."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.stopped: list[str] = []
        self.refuses = self.silent = False
        self.room = 1000

    def submit(self, _cluster: OpenCluster, job: Job, _say: Say) -> str:
        if self.refuses or len(self.states) >= self.room:
            raise ClusterError("no")
        assert load_config(job.folder / "config.yaml").run_dir == job.run_dir
        self.states[job.id] = "pending"
        return f"number-{len(self.states)}"

    def preview(self, _cluster: OpenCluster, _job: Job) -> str:
        return "would run it"

    def state(self, _cluster: OpenCluster, job: Job) -> str:
        if self.silent:
            raise ClusterError("nobody answers")
        return self.states[job.id]

    def stop(self, _cluster: OpenCluster, job: Job) -> None:
        self.stopped.append(job.id)
        self.states[job.id] = "ended"


def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    """Make a state folder with the cluster `lab`, which is up and whose backend is a fake, and a configuration."""
    monkeypatch.setenv("W2SR_HOME", str(tmp_path / "home"))
    backend = FakeBackend()
    monkeypatch.setitem(sys.modules, "launcher.backends.ray", backend)  # type: ignore[arg-type]
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump({"kind": "local"}))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SMALL | {"run_dir": str(tmp_path / "run")}))
    open_cluster(str(tmp_path / "lab.yaml")).save(ClusterState("127.0.0.1:1", "127.0.0.1:2", (), 1.0))
    return backend
