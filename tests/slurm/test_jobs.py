"""Jobs through sbatch on two nodes: shared, followed, cancelled, resumed; cut short, pre-empted, and losing each of the nodes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.conftest import QUICKSTART
from tests.slurm.conftest import NUM_TRACES, SMALLER, Job, Site, committed, digests
from tests.slurm.daemons import Slurm


def generated(job: Job) -> int:
    return committed(job.run_dir / "generate" / "weak")


def is_generating(job: Job) -> bool:
    return 0 < generated(job) < NUM_TRACES


class TokenWatch:
    """Looks again and again whether a token shows: in arguments of processes, and in what Slurm tells of its jobs."""

    def __init__(self, slurm: Slurm, *homes: Path) -> None:
        self.slurm, self.homes, self.tokens, self.shown = slurm, homes, set[str](), list[str]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> TokenWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            for path in (path for home in self.homes for path in (home / "tokens").glob("*")):
                try:
                    assert path.stat().st_mode & 0o777 == 0o600
                    self.tokens.add(path.read_text())
                except FileNotFoundError:
                    continue
            told = self.slurm.call("squeue", "--Format=all") + self.slurm.call("scontrol", "-o", "show", "job")
            texts = {"squeue and scontrol": told.encode()}
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    texts[str(path)] = path.read_bytes()
                except OSError:
                    continue
            self.shown += [name for name, text in texts.items() if any(token.encode() in text for token in self.tokens)]


def files_with(texts: set[str], *folders: Path) -> Iterator[Path]:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and any(text.encode() in path.read_bytes() for text in texts):
                yield path


def test_two_jobs_share_the_nodes_and_one_is_cancelled_resumed_and_runs_out_of_time(
    site: Site, calm: Job, request: pytest.FixtureRequest
) -> None:
    slurm = site.slurm
    other = site.submit("other", site.cluster("campus"))
    with TokenWatch(slurm, site.home, calm.site.home) as watch:
        other.wait_until(lambda: is_generating(other), "it generates")
        assert slurm.call("squeue", "-h", "-o", "%T %N").split("\n") == ["RUNNING n[1-2]"] * 2, "both hold both nodes"
        assert f"{other.id}: cancelled" in site.w2sr("cancel", other.id)
        assert is_generating(other)
        assert "cancelled" in site.w2sr("jobs")
        assert "running" in calm.site.w2sr("jobs")
        assert "has not ended" in calm.site.w2sr("resume", calm.id, expect=2)
        followed = calm.site.start("logs", "-f", calm.id)
        # A minute is not enough for the rest.
        site.w2sr("resume", other.id, "--cluster", site.cluster("hurried", time_limit="1"))
        resumed = site.job(other.run_dir)
        assert resumed.number != other.number
        resumed.wait_until(lambda: resumed.restarts() == 1, "its time is nearly up and it is queued again")
        assert "queued again: " in resumed.log
        assert any("queued again" in line for line in site.w2sr("jobs").splitlines() if resumed.id in line)
        slurm.call("scontrol", "update", f"JobId={resumed.number}", "TimeLimit=30")
        said, _ = followed.communicate(timeout=900)
        assert followed.returncode == 0, said
        for line in ("for Ray on", "Ray is up on 2 nodes", "supervisor] succeeded: done", f"job {calm.id}: succeeded"):
            assert line in said, said
        site.w2sr("logs", "-f", resumed.id)
        slurm.wait_until(lambda: slurm.state(resumed.number) == "COMPLETED", "the resumed job has ended")
    expected = request.getfixturevalue("calm_digests")
    assert {"prompts", "generate/weak", "verify/weak", "curate", "train/all-seed0", "evaluate/test/all-seed0"} <= set(expected)
    assert digests(other.run_dir) == expected
    assert len(watch.tokens) == 4, "each allocation has its own"
    assert not watch.shown
    assert not list(files_with(watch.tokens, calm.run_dir, other.run_dir, calm.site.home, site.home, slurm.folder))


def test_a_job_survives_pre_emption_and_the_loss_of_each_node(site: Site, calm_digests: dict[str, str]) -> None:
    slurm = site.slurm
    site.killed = True
    job = site.submit("100% hard", site.cluster("hard"))
    job.wait_until(lambda: is_generating(job), "it generates")
    urgent = slurm.call("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    job.wait_until(lambda: job.restarts() == 1, "it is pre-empted and queued again")
    assert generated(job) < NUM_TRACES
    slurm.wait_until(lambda: slurm.state(urgent) == "COMPLETED", "the urgent job has run")

    before = generated(job)
    job.wait_until(lambda: NUM_TRACES > generated(job) > before, "it generates for the second time")
    slurm.kill_node("n2")
    assert generated(job) < NUM_TRACES, "the worker was lost in mid-generation"
    job.wait_until(lambda: "node n2 is lost" in job.log, "the loss is noticed")

    checkpoints = job.run_dir / "train" / "all-seed0" / "checkpoints"
    job.wait_until(lambda: any(checkpoints.glob("*/complete.json")), "it trains on what is left")
    assert job.restarts() == 1, "a lost worker costs no restart"
    slurm.kill_node("n1")
    assert not (job.run_dir / "train" / "all-seed0" / "manifest.json").exists(), "the head was lost in mid-training"
    for node in ("n1", "n2"):
        slurm.start_node(node)
    job.wait_until(lambda: job.restarts() == 2, "Slurm queues it again", timeout_s=300)
    site.w2sr("logs", "-f", job.id)
    assert digests(job.run_dir) == calm_digests


def test_an_array_is_one_job_of_slurm_with_a_run_folder_for_each_element(site: Site) -> None:
    cluster = site.cluster("one-node", nodes=1, cpus_per_node=1)
    arguments = ["submit", str(QUICKSTART), f"run_dir={site.folder / 'study'}", *SMALLER, "--stage", "prompts", "--cluster", cluster]
    script = site.w2sr(*arguments, "--dry-run")
    assert "#SBATCH --nodes=1" in script
    assert site.slurm.call("squeue", "-h") == "", "a dry run submits nothing"
    site.w2sr(*arguments, "--array", "seed=3,4")
    jobs = [site.job(site.folder / "study" / f"seed={seed}") for seed in (3, 4)]
    assert [job.number.partition("_")[2] for job in jobs] == ["0", "1"]
    assert len({job.number.partition("_")[0] for job in jobs}) == 1
    for job in jobs:
        site.w2sr("logs", "-f", job.id)
        assert "Ray is up on 1 nodes" in job.log
        assert "queued again" not in job.log, "the first to end leaves the other alone"
    texts = [(job.run_dir / "prompts" / "train.parquet").read_bytes() for job in jobs]
    assert texts[0] != texts[1]
