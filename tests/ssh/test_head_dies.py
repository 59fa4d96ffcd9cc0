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
    _lose_the_head(two_hosts)
    two_hosts.w2sr("resume", run_dir)
    wait_for(lambda: list(run_dir.glob("train/all-seed0/checkpoints/*/complete.json")))
    _lose_the_head(two_hosts)
    said = two_hosts.w2sr("resume", run_dir, "--follow")
    assert ": succeeded" in said
    assert digests(run_dir) == digests(calm_run)
    two_hosts.w2sr("cluster", "down", "beheaded")
    assert two_hosts.leftovers() == []


def _lose_the_head(hosts: Hosts) -> None:
    """Kill host a under the job, see that everybody says so, and bring it and the cluster back."""
    job = jobs(hosts, on=None)[-1]
    hosts.kill_host("a")
    assert re.search(r"a +LOST +cannot be reached", hosts.w2sr("cluster", "status", "beheaded", code=1))
    said = hosts.w2sr("resume", job["id"], code=2)
    print(said)
    said = hosts.w2sr("logs", job["id"], "-f", code=1)
    assert f"job {job['id']}: lost: no word of its supervisor on a for" in said
    assert not read_state(Path(job["run_dir"]) / "jobs" / job["id"]).ended
    hosts.start_host("a")
    hosts.w2sr("cluster", "up", "beheaded")
