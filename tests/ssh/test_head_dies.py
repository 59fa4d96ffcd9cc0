"""The machine that a job's supervisor and Ray's head run on dies, twice: the job is told as lost, and goes on with what was committed."""

from __future__ import annotations

import re
from pathlib import Path

from launcher.job_state import read_state
from tests.jobs.conftest import QUICKSTART
from tests.jobs.test_jobs import digests
from tests.ssh.conftest import ON_BOTH
from tests.ssh.hosts import NAMES, Hosts
from tests.ssh.test_jobs_over_ssh import jobs, wait_for


def test_a_job_whose_head_dies_in_mid_generation_and_in_mid_training_ends_with_the_same_result(two_hosts: Hosts, calm_run: Path) -> None:
    hosts = [{"host": name, "cpus": 1, "gpus": 0, "address": two_hosts.addresses[name]} for name in NAMES]
    two_hosts.w2sr("cluster", "up", two_hosts.write_cluster("beheaded", hosts=hosts))
    run_dir = two_hosts.folder / "beheaded-run"
    two_hosts.w2sr("submit", QUICKSTART, f"run_dir={run_dir}", *ON_BOTH, "--cluster", "beheaded")
    wait_for(lambda: list(run_dir.glob("generate/weak/shard-*.parquet")))
    job = jobs(two_hosts, on=None)[-1]["id"]
    two_hosts.kill_host("a")
    assert re.search(r"a +LOST +cannot be reached", two_hosts.w2sr("cluster", "status", "beheaded", code=1))
    assert "has not ended (running); follow it with" in two_hosts.w2sr("resume", job, code=2)
    said = two_hosts.w2sr("logs", job, "-f", code=1)  # after a minute of silence
    assert f"job {job}: lost: no word of its supervisor on a for" in said
    assert not read_state(run_dir / "jobs" / job).ended
    _bring_back(two_hosts)
    two_hosts.w2sr("resume", run_dir)
    wait_for(lambda: list(run_dir.glob("train/all-seed0/checkpoints/*/complete.json")))
    two_hosts.kill_host("a")
    _bring_back(two_hosts)
    assert jobs(two_hosts)[-1]["phase"] == "lost"  # at once: the new head does not know it
    assert ": succeeded" in two_hosts.w2sr("resume", run_dir, "--follow")
    assert digests(run_dir) == digests(calm_run)
    two_hosts.w2sr("cluster", "down", "beheaded")
    assert two_hosts.leftovers() == []


def _bring_back(hosts: Hosts) -> None:
    hosts.start_host("a")
    hosts.w2sr("cluster", "up", "beheaded")
