"""How a job stands by its two witnesses, what is refused, and what is printed. The backend is a fake with states; all files are real."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher import logs
from launcher.cli import main
from launcher.cluster_file import ClusterFile
from launcher.home import ClusterState, Job, OpenCluster, load_job, open_cluster
from launcher.job_state import CANCEL, LOG, JobState, write_state
from launcher.jobs import Standing, age, jobs_of, standing
from launcher.substrate import NodeStatus, backend_of
from launcher.substrates import slurm as slurm_substrate
from tests.job_fakes import FakeBackend, lab


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    return lab(tmp_path, monkeypatch)


@pytest.fixture
def job(fake: FakeBackend, tmp_path: Path) -> Job:
    assert fake.states == {}
    assert main(["submit", str(tmp_path / "config.yaml"), "--cluster", "lab"]) == 0
    return jobs_of(tmp_path / "run")[0]


def put(job: Job, phase: str, **values: object) -> None:
    write_state(job.folder, dataclasses.replace(JobState(phase=phase, heartbeat=time.time(), host="n1"), **values))


def test_a_cluster_that_is_taken_down_names_the_jobs_that_end_with_it(
    fake: FakeBackend, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.states[job.id] = "running"
    put(job, "running")
    monkeypatch.setitem(sys.modules, "launcher.substrates.local", SimpleNamespace(down=lambda *_: None))  # type: ignore[arg-type]
    capsys.readouterr()
    assert main(["cluster", "down", "lab"]) == 0
    assert f"job {job.id} ends with it" in capsys.readouterr().err
    open_cluster("lab").save(ClusterState("127.0.0.1:1", "127.0.0.1:2", (), 1.0))
    put(job, "succeeded", exit_code=0)
    assert main(["cluster", "down", "lab"]) == 0
    assert job.id not in capsys.readouterr().err


def test_a_run_folder_has_one_job_at_a_time(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["submit", str(tmp_path / "config.yaml"), "--cluster", "lab"]
    assert main(again) == 2
    assert f"job {job.id} (pending) has {tmp_path / 'run'}" in capsys.readouterr().err
    put(job, "succeeded", exit_code=0)
    assert main(again) == 0


@pytest.mark.parametrize(
    ("phase", "backend", "shown", "over"),
    [
        ("pending", "pending", "pending", False),
        ("running", "running", "running", False),
        ("restarting", "running", "restarting", False),
        ("running", "unknown", "running", False),
        ("running", "ended", "lost", True),
        ("succeeded", "ended", "succeeded", True),
        ("succeeded", "running", "succeeded", True),
        ("waiting-for-requeue", "pending", "pending", False),
        ("waiting-for-requeue", "ended", "waiting-for-requeue", True),
        ("terminated", "pending", "pending", False),
        ("terminated", "ended", "terminated", True),
    ],
)
def test_two_witnesses_say_how_a_job_stands(fake: FakeBackend, job: Job, phase: str, backend: str, shown: str, over: bool) -> None:
    put(job, phase)
    fake.states[job.id] = backend
    stands = standing(job)
    assert (stands.phase, stands.over) == (shown, over)


@pytest.mark.parametrize(
    ("phase", "shown"), [("waiting-for-requeue", "cancelled"), ("terminated", "cancelled"), ("succeeded", "succeeded")]
)
def test_a_job_cancelled_while_it_waits_to_be_queued_again_is_cancelled(fake: FakeBackend, job: Job, phase: str, shown: str) -> None:
    put(job, phase, exit_code=0)
    fake.states[job.id] = "ended"
    (job.folder / CANCEL).touch()
    stands = standing(job)
    assert (stands.phase, stands.exit_code) == (shown, {"cancelled": 130, "succeeded": 0}[shown])


def test_a_job_that_slurm_queued_again_is_pending_and_not_running(fake: FakeBackend, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "launcher.backends.slurm", fake)  # type: ignore[arg-type]
    put(job, "running")
    fake.states[job.id] = "pending"
    assert standing(job).phase == "running", "Ray's own job is about to run"
    stands = standing(dataclasses.replace(job, backend="slurm"))
    assert (stands.phase, stands.reason, stands.over) == ("pending", "queued again by Slurm", False)


def test_a_job_whose_supervisor_never_began_says_where_to_look(fake: FakeBackend, job: Job) -> None:
    fake.states[job.id] = "ended"
    assert "its supervisor never began: see" in standing(job).reason


@pytest.mark.usefixtures("fake")
def test_a_job_whose_folder_was_removed_is_over(job: Job) -> None:
    shutil.rmtree(job.folder)
    stands = standing(job)
    assert (stands.phase, stands.over) == ("lost", True)
    assert "is gone" in stands.reason


def test_a_long_silence_of_all_witnesses_is_a_loss(fake: FakeBackend, job: Job) -> None:
    fake.silent = True
    assert standing(job).phase == "pending", "it never began, and may be queued"
    put(job, "running", heartbeat=time.time() - 120)
    stands = standing(job)
    assert (stands.phase, stands.over) == ("lost", True)
    assert "no word of its supervisor on n1 for 2 min; `w2sr cluster status lab`" in stands.reason


def test_a_job_that_never_began_can_be_cancelled_when_its_cluster_is_gone(fake: FakeBackend, job: Job) -> None:
    fake.silent = True
    assert main(["cancel", job.id]) == 0
    assert standing(job).phase == "cancelled"


def test_a_job_of_a_cluster_whose_files_are_gone_can_still_be_shown(job: Job, tmp_path: Path) -> None:
    put(job, "running")
    (tmp_path / "home" / "clusters" / "lab" / "cluster.json").unlink()
    assert standing(job).phase == "running"


def test_the_table_shows_state_age_cluster_and_run(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["jobs"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["JOB", "STATE", "AGE", "CLUSTER", "RUN"]
    assert line.split()[:2] == [job.id, "pending"]
    assert main(["jobs", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["id"], row["phase"], row["over"]) == (job.id, "pending", False)


@pytest.mark.usefixtures("fake")
def test_without_jobs_the_table_says_how_to_make_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs"]) == 0
    assert "no jobs yet" in capsys.readouterr().out


def test_a_queued_job_is_taken_back_at_once(fake: FakeBackend, job: Job) -> None:
    assert main(["cancel", job.id]) == 0
    assert fake.stopped == [job.id]
    assert standing(job) == Standing("cancelled", "cancelled", True, 130)


def test_a_running_job_is_asked_politely(fake: FakeBackend, job: Job) -> None:
    put(job, "running")
    fake.states[job.id] = "running"
    polite = threading.Thread(target=lambda: (wait_for((job.folder / CANCEL).exists), put(job, "cancelled", exit_code=130)))
    polite.start()
    assert main(["cancel", str(job.run_dir)]) == 0
    polite.join()
    assert fake.stopped == []


def test_a_supervisor_that_does_not_answer_is_ended_by_force(fake: FakeBackend, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    put(job, "running")
    fake.states[job.id] = "running"
    monkeypatch.setattr("launcher.supervisor.GRACE_S", -1000.0)
    assert main(["cancel", job.id]) == 0
    assert fake.stopped == [job.id]


def test_what_has_ended_cannot_be_cancelled_and_what_runs_cannot_be_resumed(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", job.id]) == 2
    assert f"job {job.id} has not ended (pending)" in capsys.readouterr().err
    put(job, "failed", exit_code=2, reason="so")
    assert main(["cancel", job.id]) == 2
    assert "has ended already (failed: so)" in capsys.readouterr().err


def test_resume_submits_the_same_again(job: Job) -> None:
    put(job, "failed", exit_code=1)
    assert main(["resume", job.id]) == 0
    old, new = jobs_of(Path(job.run_dir))
    assert new.id != old.id
    assert (new.run_dir, new.cwd, new.stages, new.cluster) == (old.run_dir, old.cwd, old.stages, old.cluster)
    assert (new.folder / "config.yaml").read_text() == (old.folder / "config.yaml").read_text()


def test_unknown_jobs_and_folders_are_named(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cancel", f"{job.id}x"]) == 2
    assert f"did you mean {job.id!r}" in capsys.readouterr().err
    assert main(["cancel", str(tmp_path)]) == 2
    assert "no job was submitted for" in capsys.readouterr().err
    assert main(["logs", str(tmp_path)]) == 2
    assert "is not a run folder (no logs there)" in capsys.readouterr().err


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def test_logs_prints_what_is_there(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    (job.folder / LOG).write_text("one\ntwo without an end")
    capsys.readouterr()
    assert main(["logs", job.id]) == 0
    assert capsys.readouterr().out == "one\ntwo without an end\n"


def test_following_ends_with_the_job_and_with_its_code(fake: FakeBackend, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    put(job, "running")
    fake.states[job.id] = "running"
    with open(job.folder / LOG, "w") as log:

        def work() -> None:
            for number in range(5):
                log.write(f"line {number}\n")
                log.flush()
            put(job, "failed", exit_code=2, reason="no such model")

        thread = threading.Thread(target=work)
        thread.start()
        assert main(["logs", job.id, "-f"]) == 2
        thread.join()
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-5:] == [f"line {number}" for number in range(5)]
    assert printed.err.splitlines()[-1] == f"job {job.id}: failed: no such model"


def test_ctrl_c_stops_following_and_not_the_job(
    fake: FakeBackend, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(job, "running")
    fake.states[job.id] = "running"

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=time.monotonic, sleep=interrupted))
    assert main(["logs", job.id, "-f"]) == 130
    assert "stopped following; the job goes on" in capsys.readouterr().err
    assert not (job.folder / CANCEL).exists()


def test_all_files_of_all_attempts_are_shown_with_their_names(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (2, 10):
        folder = Path(job.run_dir) / "logs" / f"attempt_{number}" / "processes"
        folder.mkdir(parents=True)
        (folder.parent / "w2sr.log").write_text(f"attempt {number}\n")
        (folder / "rank-0.fault.txt").write_text("Segmentation fault\n")
        (folder / "rank-0.json").write_text("{}")
    capsys.readouterr()
    assert main(["logs", job.id, "--all"]) == 0
    names = [line for line in capsys.readouterr().out.splitlines() if line.startswith("==>")]
    assert names == [f"==> logs/attempt_{n}/{file} <==" for n in (2, 10) for file in ("processes/rank-0.fault.txt", "w2sr.log")]


@pytest.mark.usefixtures("fake")
def test_a_run_without_a_job_is_followed_until_its_command_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    run_dir = tmp_path / "alone"
    (run_dir / "logs" / "attempt_1").mkdir(parents=True)
    (run_dir / "logs" / "attempt_1" / "w2sr.log").write_text("first\n")
    with open(run_dir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        codes: list[int] = []
        follower = threading.Thread(target=lambda: codes.append(logs.show_logs(str(run_dir), follow=True, every_file=False)))
        follower.start()
        (run_dir / "logs" / "attempt_2").mkdir()
        (run_dir / "logs" / "attempt_2" / "w2sr.log").write_text("second\n")
        assert follower.is_alive()
    follower.join(30)
    assert codes == [0]
    assert capsys.readouterr().out.splitlines() == ["==> logs/attempt_1/w2sr.log <==", "first", "==> logs/attempt_2/w2sr.log <==", "second"]


def test_a_file_that_is_written_anew_is_read_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    tail = logs.Tail(lambda: [path], tmp_path, named=False)
    tail.print_new()
    path.write_text("a long first line\nand half")
    tail.print_new()
    path.write_text("new\n")
    tail.print_new()
    assert capsys.readouterr().out == "a long first line\nnew\n"


@pytest.mark.parametrize(
    ("file", "state"), [({"kind": "ray", "name": "theirs", "address": "h:6379"}, "unknown"), ({"kind": "local", "name": "here"}, "ended")]
)
def test_a_cluster_that_is_only_forgotten_goes_on_with_its_jobs(tmp_path: Path, file: dict[str, str], state: str) -> None:
    from launcher.backends import ray

    down = OpenCluster(ClusterFile.model_validate(file).root, tmp_path, None)
    assert ray.state(down, Job("one", down.name, "ray", "one", str(tmp_path), (), 0.0, max_restarts=1)) == state


@pytest.mark.parametrize(
    ("kind", "alive", "name"),
    [("local", None, "ray"), ("slurm", None, "slurm"), ("slurm", [True, True], "ray"), ("slurm", [True, False], "slurm")],
)
def test_a_job_goes_to_nodes_that_are_held_and_else_to_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, alive: list[bool] | None, name: str
) -> None:
    more = {"nodes": 2, "cpus_per_node": 1} if kind == "slurm" else {}
    file = ClusterFile.model_validate({"kind": kind, "name": "c", **more}).root
    state = None if alive is None else ClusterState("a:1", "a:2", (), 0.0, slurm_job="7")
    monkeypatch.setattr(slurm_substrate, "status", lambda _: [NodeStatus("n", each, "") for each in alive or []])
    assert backend_of(OpenCluster(file, tmp_path, state)) == name


@pytest.mark.parametrize(("seconds", "said"), [(-1, "0 s"), (59, "59 s"), (150, "2 min"), (7200, "2 h"), (200000, "2 d")])
def test_ages_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert age(seconds) == said


def test_jobs_are_read_back_as_written(job: Job) -> None:
    assert load_job(job.folder) == job
