"""Jobs on a real cluster: submitted, followed, cancelled, resumed, and what happens to them when something is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.ray_jobs import RayJobs
from launcher.attempt import busy
from launcher.job_state import LOG
from tests.jobs.conftest import QUICKSTART, TINY, Lab, state_of, wait_for
from w2sr.artifacts import Manifest


def digests(run_dir: Path) -> dict[str, str]:
    """What was computed, by stage folder. The report tells times too, and is another each time."""
    stages = (path.parent for path in run_dir.rglob("manifest.json") if path.parent.name != "report")
    return {str(stage.relative_to(run_dir)): Manifest.load(stage).digest for stage in stages}


def dashboard(lab: Lab) -> str:
    return f"http://{json.loads((lab.home / 'clusters' / 'here' / 'state.json').read_text())['dashboard']}"


def command_lines() -> str:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append(path.read_bytes().decode(errors="replace"))
    return "\n".join(found)


@pytest.fixture(scope="module")
def calm(lab: Lab) -> Path:
    """A run of the tiny pipeline that nothing disturbed."""
    folder = lab.folder / "calm"
    lab.w2sr("run", QUICKSTART, f"run_dir={folder}", *TINY)
    return folder


def test_a_job_outlives_its_terminal_a_cancel_and_its_driver_and_the_result_is_that_of_a_calm_run(lab: Lab, calm: Path) -> None:
    run_dir = lab.folder / "run"

    # Submitted and followed; then the terminal is closed.
    options = {"start_new_session": True, "preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)}  # nohup's children ignore it
    terminal = lab.start("submit", QUICKSTART, f"run_dir={run_dir}", *TINY, "--cluster", "here", "--follow", **options)
    wait_for(lambda: list(run_dir.glob("generate/weak/shard-*.parquet")))
    os.killpg(terminal.pid, signal.SIGHUP)
    seen = terminal.communicate(timeout=30)[0]
    assert "== generate" in seen
    job = lab.latest_job(run_dir)
    assert f"job {job.name} on cluster here" in seen
    assert state_of(job).phase == "running", "the job goes on"

    # Cancelled in the middle of generation: what was finished is committed.
    assert "what was finished is kept" in lab.w2sr("cancel", job.name)
    assert not (run_dir / "generate" / "weak" / "manifest.json").exists()
    assert lab.row(job)["phase"] == "cancelled"
    assert f"job {job.name}: cancelled" in lab.w2sr("logs", run_dir, "-f", code=130)
    assert "has ended already (cancelled" in lab.w2sr("cancel", job.name, code=2)

    # Resumed, and refused a second time while it runs. Its driver is killed in the middle of training.
    lab.w2sr("resume", job.name)
    again = lab.latest_job(run_dir)
    assert again.name != job.name
    follower = lab.start("logs", again.name, "-f")
    assert f"job {again.name} has not ended" in lab.w2sr("resume", again.name, code=2)
    assert f"job {again.name} (" in lab.w2sr("submit", QUICKSTART, f"run_dir={run_dir}", *TINY, "--cluster", "here", code=2)
    wait_for(lambda: list(run_dir.glob("train/all-seed0/checkpoints/*/complete.json")))
    assert lab.token not in command_lines()
    driver = state_of(again).tries[-1].pid
    os.kill(driver, signal.SIGKILL)
    said = follower.communicate(timeout=240)[0]
    assert follower.returncode == 0, said
    assert "the driver was killed by SIGKILL (out of memory, or by hand); start 1 of at most 3 again" in said
    assert said.count("attempt attempt_") == 2
    assert f"job {again.name}: succeeded: done" in said

    # What was killed is explained, and what came out is what comes out of a calm run.
    killed = next(path for path in run_dir.glob("logs/attempt_*") if list(path.glob(f"processes/driver-*-{driver}.json")))
    why = lab.w2sr("why", run_dir, "--attempt", killed.name.removeprefix("attempt_"))
    assert f"(process {driver}) was killed by signal 9" in why
    assert "did not fail" in lab.w2sr("why", run_dir)
    assert digests(run_dir) == digests(calm)
    assert len(digests(calm)) > 8
    for path in run_dir.rglob("*"):
        assert not path.is_file() or lab.token.encode() not in path.read_bytes(), f"the token is in {path}"


def test_a_job_goes_on_when_its_machine_lost_ray_in_mid_generation_and_in_mid_training(lab: Lab, calm: Path) -> None:
    run_dir = lab.folder / "dies"
    job = lab.submit(run_dir)
    moments = ("generate/weak/shard-*.parquet", "train/all-seed0/checkpoints/*/complete.json")
    for moment in moments:
        wait_for(lambda moment=moment: list(run_dir.glob(moment)))
        (node,) = json.loads((lab.home / "clusters" / "here" / "state.json").read_text())["nodes"]
        os.kill(node["pid"], signal.SIGKILL)
        assert "1 node: " in lab.w2sr("cluster", "up", "here")
        wait_for(lambda: busy(run_dir) is None)
        assert lab.row(lab.latest_job(run_dir))["phase"] == "lost"
        lab.w2sr("resume", run_dir)
    assert "succeeded" in lab.w2sr("logs", run_dir, "-f")
    assert lab.latest_job(run_dir) != job
    assert digests(run_dir) == digests(calm)


def test_an_array_is_a_job_for_each_value_each_in_its_own_folder(lab: Lab) -> None:
    study = lab.folder / "study"
    lab.w2sr("submit", QUICKSTART, f"run_dir={study}", *TINY, "--cluster", "here", "--stage", "prompts", "--array", "seed=0,1")
    for seed in (0, 1):
        job = lab.latest_job(study / f"seed={seed}")
        lab.w2sr("logs", job.name, "-f")
        assert (study / f"seed={seed}" / "prompts" / "manifest.json").exists()
        assert not (study / f"seed={seed}" / "generate").exists()


def test_a_supervisor_that_was_killed_is_lost_and_the_job_can_be_resumed(lab: Lab) -> None:
    run_dir = lab.folder / "lost"
    job = lab.submit(run_dir, "--stage", "generate", "--stage", "prompts")
    wait_for(lambda: list(run_dir.glob("generate/weak/shard-*.parquet")))
    os.kill(state_of(job).pid, signal.SIGKILL)
    said = lab.w2sr("logs", job.name, "-f", code=1)
    assert f"job {job.name}: lost: no word of its supervisor on" in said
    wait_for(lambda: "w2sr: terminated; run the same command again" in (job / LOG).read_text())  # its driver ends with it
    assert lab.row(job)["phase"] == "lost"
    assert "succeeded" in lab.w2sr("resume", run_dir, "--follow")
    assert (run_dir / "generate" / "weak" / "manifest.json").exists()


def test_a_mistake_is_found_before_anything_is_submitted(lab: Lab) -> None:
    run_dir = lab.folder / "mistake"
    submit = ("submit", QUICKSTART, f"run_dir={run_dir}", *TINY, "student.model=/nowhere", "--cluster", "here")
    assert "model '/nowhere': there is no such folder" in lab.w2sr(*submit, code=2)
    assert not run_dir.exists()
    said = lab.w2sr(*submit, "--no-preflight", "--follow", code=2)
    assert "failed: model '/nowhere': there is no such folder" in said
    assert state_of(lab.latest_job(run_dir)).restarts == 0
    assert "ended before an attempt began: model '/nowhere'" in lab.w2sr("why", run_dir)


def test_a_dry_run_shows_the_command_and_leaves_nothing(lab: Lab) -> None:
    run_dir = lab.folder / "dry"
    said = lab.w2sr("submit", QUICKSTART, f"run_dir={run_dir}", "--cluster", "here", "--dry-run")
    assert "-m launcher.supervisor" in said
    assert str(run_dir) in said
    assert not run_dir.exists()


def test_a_command_on_the_head_is_stopped_by_force(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:1")  # of another cluster, which Ray's client would prefer
    jobs = RayJobs(dashboard(lab), lab.token)
    number = jobs.submit("sleeper", "trap '' TERM; sleep 600", {})
    wait_for(lambda: jobs.state(number) == "running")
    jobs.stop(number)
    wait_for(lambda: jobs.state(number) == "ended")
    jobs.stop(number)
    jobs.stop("never heard of")
    assert os.environ["RAY_ADDRESS"] == "10.0.0.1:1"


def test_where_nobody_listens_the_message_says_so(lab: Lab) -> None:
    with pytest.raises(ClusterError, match=r"did not take the request \(.*\); see `w2sr cluster status`"):
        RayJobs("http://127.0.0.1:9", lab.token)


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_who_has_no_token_can_neither_submit_nor_ask(lab: Lab, token: str | None) -> None:
    url = dashboard(lab)
    with pytest.raises(ClusterError, match="refused this client"):
        RayJobs(url, token)
    request = urllib.request.Request(
        f"{url}/api/jobs/",
        data=json.dumps({"entrypoint": "touch /tmp/intruder"}).encode(),
        headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code in (401, 403)
