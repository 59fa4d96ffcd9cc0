"""What is made of the answers of Slurm's commands: played by scripts on PATH."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
import yaml

from launcher import job_state, slurm, slurm_batch
from launcher.backends import slurm as slurm_jobs
from launcher.backends.ray import environment
from launcher.cluster_file import SlurmCluster
from launcher.home import ClusterState, Job, OpenCluster
from launcher.slurm_batch import AGAIN, Batch
from launcher.slurm_nodes import Allocation, NodeLost, cpus_per_node
from launcher.substrates import slurm as slurm_nodes
from tests.unit.test_config import SMALL
from w2sr.errors import UserError

Play = Callable[[str, str], None]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Put a command on PATH that is a shell script; each call is noted in `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def command(name: str, body: str) -> None:
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n{body}\n')
        (folder / name).chmod(0o755)

    return command


def calls(tmp_path: Path) -> list[str]:
    path = tmp_path / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_a_missing_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no squeue here: run this on a login node"):
        slurm.queue_state("1")


def test_a_command_that_hangs_is_given_up(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play("squeue", "exec sleep 30")
    monkeypatch.setattr(slurm, "CALL_TIMEOUT_S", 0.3)
    with pytest.raises(UserError, match=r"squeue did not answer in 0\.3 s; see `scontrol ping`"):
        slurm.queue_state("1")


def test_a_job_inherits_neither_secrets_nor_a_surrounding_allocation(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play("sbatch", "cat > /dev/null; env | cut -d= -f1 | sort | tr '\\n' ' '")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SBATCH_ACCOUNT", "nlp")
    names = slurm.submit("#!/bin/sh").split()
    assert {"PATH", "HOME", "SBATCH_ACCOUNT"} <= set(names)
    assert not {"OPENAI_API_KEY", "SLURM_NTASKS"} & set(names)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("RUNNING|None", ("running", "RUNNING")),
        ("COMPLETING|None", ("running", "COMPLETING")),
        ("PENDING|Resources", ("pending", "PENDING, Resources")),
        ("CANCELLED|None", ("ended", "CANCELLED")),
        ("TIMEOUT|TimeLimit", ("ended", "TIMEOUT, TimeLimit")),
        ("", ("ended", "Slurm does not know it any more")),
    ],
)
def test_states_of_slurm_are_three(play: Play, line: str, expected: tuple[str, str]) -> None:
    play("squeue", f"echo '{line}'")
    assert slurm.queue_state("1") == expected


def test_a_job_that_slurm_has_forgotten_has_ended_and_a_silent_slurm_is_an_error(play: Play) -> None:
    play("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert slurm.queue_state("1")[0] == "ended"
    play("squeue", "echo 'squeue: error: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    with pytest.raises(UserError, match=r"squeue failed: Unable to contact slurm controller \(connect failure\)"):
        slurm.queue_state("1")


@pytest.mark.parametrize(("line", "warns"), [("PENDING|PartitionTimeLimit", True), ("PENDING|Priority", False), ("RUNNING|None", False)])
def test_a_job_that_will_never_start_is_warned_of(play: Play, line: str, warns: bool) -> None:
    play("squeue", f"echo '{line}'")
    assert slurm.warning("7").startswith("Slurm accepted job 7 but will not start it: PartitionTimeLimit.") is warns


def test_when_a_jobs_work_must_be_committed_is_told_in_utc(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        play("squeue", "echo 2026-11-22T07:30:00")
        assert slurm.stop_by("1", 120) == "2026-11-22T12:28:00+00:00"
        play("squeue", "echo NONE")
        assert slurm.stop_by("1", 120) is None
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(("text", "expected"), [("2", (2,)), ("2(x3)", (2, 2, 2)), ("8,2(x2),4", (8, 2, 2, 4))])
def test_processors_are_known_for_each_node(text: str, expected: tuple[int, ...]) -> None:
    assert cpus_per_node(text) == expected


def test_an_allocation_is_what_slurm_says_it_is(play: Play) -> None:
    play("scontrol", "printf 'n1\\nn2\\n'")
    variables = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_CPUS_PER_NODE": "4(x2)", "SLURM_RESTART_COUNT": "3"}
    assert Allocation.of(variables) == Allocation("7", 3, ("n1", "n2"), (4, 4))
    # The number of one element is the whole array's: asking for 7 would end, or queue again, its siblings.
    element = variables | {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    assert Allocation.of(element).number == "7_1"
    with pytest.raises(UserError, match="this runs in a batch job of Slurm only; use `w2sr submit`"):
        Allocation.of({})


class FakeNodes:
    """Ray that is up, or whose head ends after some looks."""

    gcs = "127.0.0.1:1"

    def __init__(self, ends_after: int | None = None, fault: bool = True) -> None:
        self.left, self.fault, self.stopped = ends_after, fault, False

    def start(self, check: Callable[[], None]) -> tuple[()]:
        check()
        return ()

    def tend(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise NodeLost("the head on n1 has ended: out of memory", self.fault)

    def head_answers(self) -> bool:
        return self.left is None

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, play: Play) -> Batch:
    monkeypatch.setenv("W2SR_HOME", str(tmp_path / "home"))
    file = SlurmCluster(kind="slurm", name="campus", max_restarts=2)
    folder = tmp_path / "run" / "jobs" / "one"
    Job("one", "campus", "slurm", "7", str(tmp_path / "run"), (), 0.0, max_restarts=2).save()
    (folder / "cluster.json").write_text(file.model_dump_json())
    (folder / job_state.CONFIG).write_text(yaml.safe_dump(SMALL))
    play("scontrol", "exit 0")
    play("squeue", "case $* in *%e*) echo 2026-11-22T07:30:00;; *) echo RUNNING;; esac")
    return Batch(folder, Allocation("7", 0, ("n1",), (2,)))


def run(batch: Batch, nodes: FakeNodes, supervisor: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """Run the batch with a supervisor that is a shell script."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{supervisor}\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    monkeypatch.setattr("launcher.slurm_batch.Nodes", lambda *_: nodes)
    (batch.steps).mkdir(parents=True, exist_ok=True)
    job = Job(**json.loads((batch.folder / "job.json").read_text()) | {"stages": ()})
    before = signal.getsignal(signal.SIGTERM)
    try:
        return batch.run_job(job)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (2, False), (75, True), (130, False), (143, True)])
def test_a_job_is_queued_again_when_it_is_not_done(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, again: bool
) -> None:
    nodes = FakeNodes()
    assert run(batch, nodes, f"exit {code}", monkeypatch, tmp_path) == (AGAIN if again else code)
    assert ("scontrol requeue 7" in calls(tmp_path)) is again
    assert nodes.stopped
    assert not list((tmp_path / "home" / "tokens").iterdir())
    if again:
        assert job_state.read_state(batch.folder).phase == job_state.REQUEUE


def test_a_signal_that_comes_before_the_supervisor_can_take_it_costs_one_try(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(batch, FakeNodes(), "kill -TERM $PPID; exec sleep 30", monkeypatch, tmp_path) == AGAIN
    assert "scontrol requeue 7" in calls(tmp_path)
    assert "the time was up before the job had begun" in job_state.read_state(batch.folder).reason


@pytest.mark.parametrize(("year", "again"), [(2020, False), (2999, True)])
def test_a_job_whose_own_time_is_over_is_not_queued_again(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, year: int, again: bool
) -> None:
    (batch.folder / job_state.CONFIG).write_text(yaml.safe_dump(SMALL | {"generate": {"stop_by": f"{year}-01-01T00:00:00Z"}}))
    assert run(batch, FakeNodes(), "exit 75", monkeypatch, tmp_path) == AGAIN
    assert ("scontrol requeue 7" in calls(tmp_path)) is again
    reason = job_state.read_state(batch.folder).reason
    assert ("generate.stop_by=2020-01-01T00:00:00+00:00 is over; submit the configuration with a later one" in reason) is not again


def test_a_slurm_that_is_silent_for_a_moment_is_asked_again_for_the_end_of_the_time(
    batch: Batch, play: Play, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(slurm_batch, "ASK_AGAIN_S", (0.0, 0.0))
    play("squeue", f"[ $(grep -c squeue {tmp_path}/calls) = 3 ] && echo 2026-11-22T07:30:00 || exit 1")
    assert run(batch, FakeNodes(), f"echo $W2SR_STOP_BY > {tmp_path}/seen", monkeypatch, tmp_path) == 0
    assert datetime.fromisoformat((tmp_path / "seen").read_text().strip()) == datetime(2026, 11, 22, 7, 27).astimezone(timezone.utc)


def test_a_job_is_queued_again_while_slurm_still_signals_it(
    batch: Batch, play: Play, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play("squeue", "echo SIGNALING")
    run(batch, FakeNodes(), "exit 143", monkeypatch, tmp_path)
    assert "scontrol requeue 7" in calls(tmp_path)


def test_a_job_that_slurm_ends_or_a_person_cancelled_is_not_queued_again(
    batch: Batch, play: Play, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play("squeue", "echo COMPLETING")
    run(batch, FakeNodes(), "exit 143", monkeypatch, tmp_path)
    play("squeue", "echo RUNNING")
    (batch.folder / job_state.CANCEL).touch()
    assert run(batch, FakeNodes(), "exit 0", monkeypatch, tmp_path) == 130
    assert job_state.read_state(batch.folder).phase == job_state.CANCELLED
    assert "scontrol requeue 7" not in calls(tmp_path)


def test_a_slurm_that_refuses_to_queue_again_is_told(
    batch: Batch, play: Play, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play("scontrol", "echo 'Requeue of job 7 is disabled' >&2; exit 1")
    assert run(batch, FakeNodes(), "exit 75", monkeypatch, tmp_path) == 75
    assert "scontrol failed: Requeue of job 7 is disabled" in capsys.readouterr().out


def test_the_supervisor_learns_where_ray_is_and_when_to_stop_and_no_secret_is_in_its_environment(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secrets_file = tmp_path / "secrets"
    secrets_file.write_text("OPENAI_API_KEY=from the file\nRAY_ADDRESS=elsewhere:1\nRAY_AUTH_TOKEN_PATH=/elsewhere\n")
    secrets_file.chmod(0o600)
    batch.file = batch.file.model_copy(update={"env_file": str(secrets_file), "grace_s": 120})
    assert run(batch, FakeNodes(), f"env > {tmp_path}/seen; cat $RAY_AUTH_TOKEN_PATH > {tmp_path}/token", monkeypatch, tmp_path) == 0
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
    assert seen["RAY_ADDRESS"] == "127.0.0.1:1"
    assert seen["OPENAI_API_KEY"] == "from the file"
    stop_by = datetime.fromisoformat(seen["W2SR_STOP_BY"])
    assert stop_by == datetime(2026, 11, 22, 7, 28).astimezone(timezone.utc)
    assert len((tmp_path / "token").read_text()) == 64
    assert "RAY_AUTH_TOKEN" not in seen


def interrupted(said: str) -> None:
    if not said.startswith("cancelling"):
        raise KeyboardInterrupt


def handed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, play: Play) -> tuple[OpenCluster, list[Job]]:
    monkeypatch.setenv("W2SR_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "clusters" / "campus").mkdir(parents=True)
    jobs = [Job(name, "campus", "slurm", "", str(tmp_path / name), (), 0.0, max_restarts=2) for name in ("one", "two")]
    for job in jobs:
        job.save()
    play("sbatch", "cat > /dev/null; echo 7")
    play("squeue", "echo 'PENDING|Priority'")
    play("scancel", f"printf '#!/bin/sh\necho CANCELLED' > {tmp_path}/bin/squeue")
    return OpenCluster(SlurmCluster(kind="slurm", name="campus"), tmp_path / "home" / "clusters" / "campus", None), jobs


def test_an_interrupt_after_slurm_took_a_job_leaves_nothing_in_its_queue(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, jobs = handed_in(tmp_path, monkeypatch, play)
    for submit in (
        lambda: slurm_jobs.submit(cluster, jobs[0], interrupted),
        lambda: slurm_jobs.submit_array(cluster, jobs, interrupted),
        lambda: slurm_nodes.up(cluster, interrupted),
    ):
        (tmp_path / "calls").unlink(missing_ok=True)
        with pytest.raises(KeyboardInterrupt):
            submit()
        assert "scancel --quiet 7" in calls(tmp_path)
    assert not list((tmp_path / "home" / "arrays").iterdir())


def test_what_slurm_took_is_a_job_also_when_it_falls_silent_then(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, jobs = handed_in(tmp_path, monkeypatch, play)
    play("squeue", "echo 'squeue: error: Socket timed out' >&2; exit 1")
    said: list[str] = []
    assert slurm_jobs.submit(cluster, jobs[0], said.append) == "7"
    assert said == ["Slurm job 7 is submitted, but how it stands is not known: squeue failed: Socket timed out"]
    assert "scancel --quiet 7" not in calls(tmp_path)


def test_an_array_that_slurm_refuses_leaves_no_links(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, jobs = handed_in(tmp_path, monkeypatch, play)
    play("sbatch", "cat > /dev/null; echo 'no such partition' >&2; exit 1")
    with pytest.raises(UserError, match="no such partition"):
        slurm_jobs.submit_array(cluster, jobs, print)
    assert not list((tmp_path / "home" / "arrays").iterdir())


@pytest.mark.parametrize("is_up", [False, True])
def test_an_interrupt_of_a_second_up_ends_the_nodes_unless_they_were_up(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_up: bool
) -> None:
    cluster, _ = handed_in(tmp_path, monkeypatch, play)
    (cluster.folder / slurm_nodes.NUMBER).write_text("7")
    if is_up:
        cluster = cluster.save(ClusterState("a:1", "a:2", (), 0.0, slurm_job="7"))

    def wait(*_: object) -> ClusterState:
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm_nodes, "_wait", wait)
    with pytest.raises(KeyboardInterrupt):
        slurm_nodes.up(cluster, print)
    assert ("scancel --quiet 7" in calls(tmp_path)) is not is_up


def test_a_job_on_held_nodes_learns_when_to_stop(play: Play, tmp_path: Path) -> None:
    file = SlurmCluster(kind="slurm", name="c", nodes=1, cpus_per_node=1, grace_s=60)
    held = OpenCluster(file, tmp_path, ClusterState("a:1", "a:2", (), 0.0, slurm_job="7"))
    play("squeue", "echo 2026-11-22T07:30:00")
    # A minute for the job, a minute of grace for the nodes, and the minute that Slurm may be early.
    assert datetime.fromisoformat(environment(held)["W2SR_STOP_BY"]) == datetime(2026, 11, 22, 7, 27).astimezone(timezone.utc)
    play("squeue", "echo NONE")
    assert "W2SR_STOP_BY" not in environment(held)


def test_a_lost_head_is_borne_max_restarts_times_and_slurms_own_doing_always(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    supervisor = "trap 'exit 143' TERM; sleep 30 & wait"
    codes = []
    for restart in range(4):
        # The third was ended by Slurm itself, with SIGTERM: it does not count.
        attempt = Batch(batch.folder, Allocation("7", restart, ("n1",), (2,)))
        codes.append(run(attempt, FakeNodes(ends_after=1, fault=restart != 2), supervisor, monkeypatch, tmp_path))
    assert codes == [AGAIN, AGAIN, AGAIN, 1]
    state = job_state.read_state(batch.folder)
    assert state.phase == job_state.FAILED
    assert "the head on n1 has ended: out of memory; max_restarts=2 allows no further start" in state.reason


def test_a_time_that_is_always_up_before_ray_is_does_not_go_on_for_ever(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Slow(FakeNodes):
        def start(self, check: Callable[[], None]) -> tuple[()]:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().start(check)

    attempts = [Batch(batch.folder, Allocation("7", restart, ("n1",), (2,))) for restart in range(3)]
    assert [run(attempt, Slow(), "exit 0", monkeypatch, tmp_path) for attempt in attempts] == [AGAIN, AGAIN, 1]
    assert "the time was up before the job had begun; give a longer time_limit" in job_state.read_state(batch.folder).reason


def test_a_driver_that_failed_because_the_head_was_gone_is_no_users_mistake(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nodes = FakeNodes(ends_after=10_000)
    assert run(batch, nodes, "exit 2", monkeypatch, tmp_path) == AGAIN
    assert "the head does not answer" in job_state.read_state(batch.folder).reason


def test_a_cluster_file_is_the_jobs_own(batch: Batch) -> None:
    assert batch.file.name == "campus"
    assert batch.steps == batch.folder / "slurm" / "7-0"


def test_the_module_says_so_outside_of_a_job(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    (tmp_path / "cluster.json").write_text(SlurmCluster(kind="slurm", name="campus").model_dump_json())
    command = [sys.executable, "-m", "launcher.slurm_batch", str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "this runs in a batch job of Slurm only" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_slurm_that_is_silent_for_a_while_costs_no_place_in_it(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_nodes, "SILENT_S", (0.0, 0.0))
    play("squeue", f"[ $(grep -c squeue {tmp_path}/calls) = 3 ] && echo 'PENDING|Priority' || exit 1")
    said: list[str] = []
    assert slurm_nodes._asked("7", said.append) == ("pending", "PENDING, Priority")
    assert len(said) == 2
