"""Jobs on two hosts over ssh, submitted from a machine that is neither: followed, cancelled, resumed, and a host that dies twice: the
second time under a job that came by a CLUSTER.yaml of kind ray.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.job_state import read_state
from tests.jobs.conftest import QUICKSTART
from tests.jobs.test_jobs import digests
from tests.ssh.conftest import ON_BOTH
from tests.ssh.hosts import NAMES, Hosts

DEADLINE_S = 900.0


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


STARTED: list[subprocess.Popen[str]] = []


def start(hosts: Hosts, *arguments: object, on: str | None = None) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        hosts.command(*arguments, on=on),
        env=hosts.environment,
        cwd=hosts.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    STARTED.append(process)
    return process


def jobs(hosts: Hosts, on: str | None = "a") -> list[dict[str, Any]]:
    said = hosts.w2sr("jobs", "--json", on=on)
    rows: list[dict[str, Any]] = json.loads(said)
    return rows


def replicas_on(run_dir: Path) -> set[str]:
    return {json.loads(path.read_text())["host"] for path in run_dir.glob("logs/attempt_*/processes/replica-of-weak-*.json")}


def test_a_job_goes_on_when_a_host_dies_in_mid_generation_and_in_mid_training(two_hosts: Hosts, calm_run: Path) -> None:
    hosts = [{"host": name, "cpus": 1, "gpus": 0, "address": two_hosts.addresses[name]} for name in NAMES]
    two_hosts.w2sr("cluster", "up", two_hosts.write_cluster("duo", hosts=hosts, network={"interface": "eth0"}))
    try:
        _the_story(two_hosts, calm_run)
    finally:
        for process in STARTED:
            process.kill()
            process.wait()
        two_hosts.w2sr("cluster", "down", "duo")


def _the_story(hosts: Hosts, calm_run: Path) -> None:
    run_dir = hosts.folder / "run"
    submitted = start(hosts, "submit", QUICKSTART, f"run_dir={run_dir}", *ON_BOTH, "--cluster", "duo", "--follow")
    wait_for(lambda: list(run_dir.glob("generate/weak/shard-*.parquet")) and replicas_on(run_dir) == {"a", "b"})
    hosts.kill_host("b")
    first = jobs(hosts)[0]["id"]
    log = run_dir / "jobs" / first / "supervisor.log"
    wait_for(lambda: "waiting for 2 CPUs for 2 ranks" in log.read_text())  # the other replica wrote all traces; ranks need both hosts
    assert (run_dir / "generate" / "weak" / "manifest.json").exists()
    hosts.w2sr("cancel", first)
    said = submitted.communicate(timeout=DEADLINE_S)[0]
    assert submitted.returncode == 130, said
    assert f"job {first}: cancelled" in said
    hosts.start_host("b")
    hosts.w2sr("cluster", "up", "duo")

    # A Ray that is there already, to somebody who has its token; typed on its head, as nothing forwards its dashboard.
    duo = json.loads((hosts.folder / "home/clusters/duo/state.json").read_text())
    token_file = hosts.folder / "their-token"
    token_file.write_text((hosts.folder / "home/clusters/duo/token").read_text())
    theirs = {"kind": "ray", "address": duo["address"], "dashboard": duo["dashboard"], "token_file": str(token_file)}
    file = hosts.write_cluster("theirs", **theirs, hosts=None, ssh_options=None, ready_timeout_s=None, env=None, temp_dir=None)
    assert "theirs is up after" in hosts.w2sr("cluster", "up", file, on="a")
    hosts.w2sr("resume", first, "--cluster", "theirs", on="a")
    second = jobs(hosts)[-1]["id"]
    follower = start(hosts, "logs", second, "-f", on="a")
    wait_for(lambda: list(run_dir.glob("train/all-seed0/checkpoints/*/complete.json")))
    hosts.kill_host("b")
    hosts.start_host("b")
    hosts.w2sr("cluster", "up", "duo")
    said = follower.communicate(timeout=DEADLINE_S)[0]
    assert follower.returncode == 0, said
    assert "starting again from the last checkpoint" in said
    assert read_state(run_dir / "jobs" / second).restarts == 0, "the driver lived all the time"
    assert read_state(run_dir / "jobs" / second).host == "a"
    assert jobs(hosts)[-1]["cluster"] == "theirs"
    hosts.w2sr("cluster", "down", "theirs", on="a")

    assert digests(run_dir) == digests(calm_run)
    token = (hosts.folder / "home/clusters/duo/token").read_bytes().strip()
    assert not [path for path in run_dir.rglob("*") if path.is_file() and token in path.read_bytes()]
