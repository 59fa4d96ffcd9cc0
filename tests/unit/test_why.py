"""`w2sr why`: which process failed first. Records are written as cluster/blackbox.py writes them; real ranks are in tests/jobs."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from launcher.advice import advice_for
from launcher.cli import main
from launcher.home import Job
from launcher.job_state import JobState, Try, write_state
from launcher.root_cause import Cause, root_cause
from w2sr.errors import UserError

NOON = 1_800_000_000.0
LOST = {"type": "RuntimeError", "message": "[gloo/pair.cc:534] Connection closed by peer [10.0.0.2]:4242"}


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("W2SR_HOME", str(tmp_path / "home"))
    (tmp_path / "run" / "logs" / "attempt_1" / "processes").mkdir(parents=True)
    return tmp_path / "run"


def process(run_dir: Path, role: str, *, seen: float, attempt: int = 1, fault: str = "", **values: Any) -> None:
    """Write a record. `seen`: when it was last alive by the file server's clock, in seconds after noon; `ended` and `error` by its own."""
    folder = run_dir / "logs" / f"attempt_{attempt}" / "processes"
    folder.mkdir(parents=True, exist_ok=True)
    pid = values.get("pid", 100 + len(list(folder.iterdir())))
    error = values.pop("error", None)
    record: dict[str, Any] = {
        "role": role,
        "group": "train/1" if role.startswith("rank") else "",
        "host": "n1",
        "pid": pid,
        "clock_offset_s": 0.0,
        "started": NOON,
        "seen": NOON + seen,
        "at": "step (w2sr/training/loop.py:88)",
        "at_since": NOON + seen - 1,
        "stack": [],
        "last_lines": [],
        "error": error,
        "ended": NOON + seen if error else None,
    }
    path = folder / f"{role.replace(' ', '-')}-{pid}.json"
    path.write_text(json.dumps(record | values))
    if fault:
        crashed = path.with_name(f"{path.stem}.fault.txt")
        crashed.write_text(fault)
        os.utime(crashed, (NOON + seen, NOON + seen))
    os.utime(path, (NOON + seen, NOON + seen))


def driver(run_dir: Path, kind: str | None = None, message: str = "", *, seen: float = 100, **values: Any) -> None:
    error = {"type": kind, "message": message} if kind else None
    process(run_dir, "driver", seen=seen, error=error, at="run_group (cluster/train_group.py:100)", **values)


def test_the_rank_that_raised_is_the_cause_and_the_others_waited_for_it(run_dir: Path) -> None:
    driver(run_dir, "GroupError", "rank 2 of 4 failed: …")
    where = "all_reduce (w2sr/training/engine.py:120)"
    process(run_dir, "rank 0", seen=12, error=LOST, at=where)
    process(run_dir, "rank 1", seen=11, error=LOST, at=where)
    out_of_memory = {"type": "OutOfMemoryError", "message": "CUDA out of memory. Tried to allocate 2 GiB"}
    process(run_dir, "rank 2", seen=12.5, error=out_of_memory, at="forward (w2sr/training/engine.py:80)", last_lines=["step 7"])
    process(run_dir, "rank 3", seen=11.5, at=where)
    cause = root_cause(run_dir)
    assert cause.cause.startswith("rank 2 on n1 (process ")
    assert cause.cause.endswith("raised OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    assert cause.details == ["at forward (w2sr/training/engine.py:80)", "| step 7"]
    assert cause.others == [
        f"1 rank last seen in {where}",
        f"2 ranks waited in {where} until: RuntimeError: {LOST['message']}",
    ]
    assert "train.micro_batch_size" in cause.advice
    assert cause.when == NOON + 12.5


def test_a_rank_that_fell_silent_is_the_cause_where_the_others_only_lost_it(run_dir: Path) -> None:
    driver(run_dir, "GroupError", "rank 0 of 2 failed: Connection closed by peer")
    process(run_dir, "rank 0", seen=14, error=LOST, at="all_reduce (w2sr/training/engine.py:120)")
    process(run_dir, "rank 1", seen=10, at="backward (w2sr/training/engine.py:99)", host="n2")
    process(run_dir, "rank 7", seen=9, group="train/0")  # of a group that was started again
    cause = root_cause(run_dir)
    assert cause.cause.startswith("rank 1 on n2 (process ")
    assert "or its node went away" in cause.cause
    assert cause.details == ["at backward (w2sr/training/engine.py:99)"]
    assert "dmesg" in cause.advice


def test_ranks_that_fell_silent_together_are_all_named(run_dir: Path) -> None:
    driver(run_dir, "GroupError", "rank 0 of 3 failed: ActorDiedError")
    process(run_dir, "rank 0", seen=14, error=LOST)
    process(run_dir, "rank 1", seen=10)
    process(run_dir, "rank 2", seen=11)
    assert root_cause(run_dir).details[0] == "or rank 2: they fell silent within 5 s"


def test_the_rank_that_the_driver_blames_is_believed_among_silent_ones(run_dir: Path) -> None:
    driver(run_dir, "GroupError", "rank 2 of 3 failed: the actor died")
    process(run_dir, "rank 1", seen=10)
    process(run_dir, "rank 2", seen=11)
    cause = root_cause(run_dir)
    assert cause.cause.startswith("rank 2 ")
    assert len(cause.details) == 1


def test_times_are_compared_by_the_file_servers_clock(run_dir: Path) -> None:
    # Rank 0's clock is an hour ahead, rank 1's is right: rank 1 failed a second later, although its own clock says an hour earlier.
    driver(run_dir, "GroupError", "ranks failed")
    first = {"type": "KeyError", "message": "'first'"}
    process(run_dir, "rank 0", seen=10, error=first, ended=NOON + 3610, clock_offset_s=-3600.0)
    process(run_dir, "rank 1", seen=11, error={"type": "KeyError", "message": "'second'"})
    cause = root_cause(run_dir)
    assert "'first'" in cause.cause
    assert cause.when == NOON + 10


def test_a_timeout_half_an_hour_later_does_not_hide_who_was_killed(run_dir: Path) -> None:
    driver(run_dir, "GroupError", "ranks failed", seen=2000)
    process(run_dir, "rank 0", seen=1810, error={"type": "RuntimeError", "message": "something odd at the end of a long wait"})
    process(run_dir, "rank 1", seen=10)
    assert root_cause(run_dir).cause.startswith("rank 1 ")


def test_a_lost_node_is_told_from_a_killed_process(run_dir: Path) -> None:
    driver(run_dir, "GroupError", "ranks failed", host="head")
    process(run_dir, "rank 0", seen=14, error=LOST, host="head")
    process(run_dir, "rank 1", seen=10, host="n2")
    process(run_dir, "rank 2", seen=10.5, host="n2")
    cause = root_cause(run_dir)
    assert "went away with its node n2" in cause.cause
    assert "all 2 processes there fell silent" in cause.cause


def test_only_lost_neighbours_and_no_record_of_the_lost_one_is_said_so(run_dir: Path) -> None:
    driver(run_dir, "GroupError", "rank 0 of 2 failed: Connection closed by peer")
    process(run_dir, "rank 0", seen=14, error=LOST)
    assert root_cause(run_dir).details[0] == "it lost another rank, which left no record"


def test_a_crash_of_the_interpreter_is_named(run_dir: Path) -> None:
    driver(run_dir, "GroupError", "ranks failed")
    process(run_dir, "rank 0", seen=14, error=LOST)
    process(
        run_dir, "rank 1", seen=10, fault="Fatal Python error: Segmentation fault\n\nCurrent thread (most recent call first):\n  File x"
    )
    cause = root_cause(run_dir)
    assert cause.cause.endswith("crashed: Fatal Python error: Segmentation fault")
    assert "Current thread (most recent call first):" in cause.details
    assert "versions" in cause.advice


def test_a_killed_driver_is_the_cause_and_its_signal_is_known_from_the_supervisor(run_dir: Path) -> None:
    driver(run_dir, seen=100, pid=77)
    process(run_dir, "rank 0", seen=101)
    process(run_dir, "rank 1", seen=102)
    job = Job("run-1", "lab", "ray", "x", str(run_dir), (), 1.0, 3)
    job.save()
    write_state(job.folder, JobState(phase="restarting", tries=(Try(77, NOON, NOON + 103, -9),)))
    cause = root_cause(run_dir)
    assert cause.cause == "the driver on n1 (process 77) was killed by signal 9; last seen"
    assert cause.others == ["2 ranks last seen in step (w2sr/training/loop.py:88)"]
    assert "memory" in cause.advice


def test_ranks_that_end_of_the_loss_of_a_killed_driver_are_not_the_cause(run_dir: Path) -> None:
    driver(run_dir, seen=51)
    process(run_dir, "rank 0", seen=54, fault="Fatal Python error: Aborted\n\nThread 0x1:")
    process(run_dir, "rank 1", seen=53, error=LOST)
    assert root_cause(run_dir).cause.startswith("the driver on n1")


def test_a_rank_that_crashed_before_the_driver_was_killed_is_the_cause(run_dir: Path) -> None:
    driver(run_dir, seen=58)
    process(run_dir, "rank 0", seen=54, fault="Fatal Python error: Aborted\n\nThread 0x1:")
    process(run_dir, "rank 1", seen=53)
    assert "rank 0 on n1" in root_cause(run_dir).cause


def test_a_killed_driver_without_a_supervisor_is_told_too(run_dir: Path) -> None:
    driver(run_dir)
    assert "was killed, or its node went away" in root_cause(run_dir).cause


def test_a_mistake_of_the_user_is_shown_as_its_message(run_dir: Path) -> None:
    driver(run_dir, "UserError", "train.num_ranks=4 needs 4 CPUs; this machine has 2 CPUs")
    cause = root_cause(run_dir)
    assert cause.cause == "stopped with a message: train.num_ranks=4 needs 4 CPUs; this machine has 2 CPUs"
    assert cause.others == []


def test_a_failure_of_the_driver_itself_has_its_place(run_dir: Path) -> None:
    process(run_dir, "driver", seen=9, error={"type": "OSError", "message": "[Errno 28] No space left on device"}, at="write (w2sr/x.py:3)")
    cause = root_cause(run_dir)
    assert cause.cause == "the driver raised OSError: [Errno 28] No space left on device"
    assert cause.details == ["at write (w2sr/x.py:3)"]
    assert cause.advice.startswith("free space")


def test_replicas_that_fell_silent_shortly_before_are_mentioned(run_dir: Path) -> None:
    driver(run_dir, "ClusterError", "service weak: 3 replicas in a row failed while they started")
    process(run_dir, "replica of weak", seen=70, at="load (w2sr/teachers/hf_engine.py:40)")
    process(run_dir, "replica of weak", seen=20)
    assert root_cause(run_dir).others == ["1 replica of weak last seen in load (w2sr/teachers/hf_engine.py:40)"]


@pytest.mark.parametrize(
    ("kind", "words"), [("KeyboardInterrupt", "by Ctrl-C"), ("Terminated", "by SIGTERM"), ("StoppedEarly", "at stop_by")]
)
def test_an_end_that_was_asked_for_is_no_failure(run_dir: Path, kind: str, words: str) -> None:
    driver(run_dir, kind)
    cause = root_cause(run_dir)
    assert not cause.failed
    assert words in cause.cause


def test_nothing_failed_is_said_honestly(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    driver(run_dir, ended=NOON + 100)
    assert main(["why", str(run_dir)]) == 0
    assert capsys.readouterr().out.startswith("attempt_1: did not fail")


def test_nothing_recorded_is_said_honestly(run_dir: Path) -> None:
    (run_dir / "logs" / "attempt_1" / "w2sr.log").touch()
    cause = root_cause(run_dir)
    assert "left no record" in cause.cause
    assert cause.file.endswith("w2sr.log")


def test_a_damaged_record_is_passed_over(run_dir: Path) -> None:
    driver(run_dir, "UserError", "no")
    (run_dir / "logs" / "attempt_1" / "processes" / "rank-0-n1-5.json").write_text('{"role": "ra')
    assert root_cause(run_dir).cause == "stopped with a message: no"


def test_an_attempt_that_still_runs_is_not_explained(run_dir: Path) -> None:
    driver(run_dir)
    with open(run_dir / ".lock", "w") as file:
        file.write("77 on n1")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert root_cause(run_dir).cause == "has not ended: process 77 on n1 works on it"


def test_what_the_watchdogs_of_a_training_said_is_told_of_one_that_runs_and_of_one_that_failed(run_dir: Path) -> None:
    driver(run_dir, "GroupError", "rank 1 of 2 failed: …")
    for student, seen in (("all-seed0", 50), ("gold-seed0", -50)):
        said = run_dir / "train" / student / "stalls" / "said.txt"
        said.parent.mkdir(parents=True)
        said.write_text("".join(f"step {number} takes 60 s so far: rank 1 at work in read (feed.py:61)\n" for number in (1, 2, 3, 4)))
        os.utime(said, (NOON + seen, NOON + seen))  # the other one's is of an earlier attempt
    lines = [f"all-seed0: step {number} takes 60 s so far: rank 1 at work in read (feed.py:61)" for number in (2, 3, 4)]
    assert root_cause(run_dir).others == lines
    with open(run_dir / ".lock", "w") as file:
        file.write("77 on n1")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert root_cause(run_dir).details == lines


def test_an_earlier_attempt_can_be_asked_for_and_an_unknown_one_is_refused(run_dir: Path) -> None:
    driver(run_dir, "UserError", "the first")
    driver(run_dir, attempt=2, ended=NOON + 100)
    assert not root_cause(run_dir).failed
    assert root_cause(run_dir, 1).cause.endswith("the first")
    with pytest.raises(UserError, match="has no attempt 3; it has: 1, 2"):
        root_cause(run_dir, 3)


def test_a_folder_where_nothing_ran_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing has run there"):
        root_cause(tmp_path)


def test_a_job_that_was_refused_before_an_attempt_began_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2SR_HOME", str(tmp_path / "home"))
    job = Job("run-1", "lab", "ray", "x", str(tmp_path / "run"), (), 1.0, 3)
    job.save()
    write_state(job.folder, JobState(phase="failed", exit_code=2, reason="model 'x': there is no such folder", heartbeat=NOON))
    cause = root_cause(tmp_path / "run")
    assert cause.failed
    assert cause.render().startswith("job run-1 ended before an attempt began: model 'x': there is no such folder at 2027-")


def failed_job(run_dir: Path, *tries: Try) -> None:
    job = Job("run-1", "lab", "ray", "x", str(run_dir), (), 1.0, 3)
    job.save()
    write_state(job.folder, JobState(phase="failed", exit_code=1, reason="the driver failed", heartbeat=NOON, tries=tries))


@pytest.mark.parametrize("ahead_s", [-90.0, 90.0])
def test_an_attempt_is_known_by_its_driver_s_process_however_the_clocks_differ(run_dir: Path, ahead_s: float) -> None:
    driver(run_dir, "KeyError", "'x'", pid=77)
    os.utime(run_dir / "logs" / "attempt_1", (NOON, NOON))
    failed_job(run_dir, Try(77, NOON + ahead_s, NOON + ahead_s + 100, 1))
    assert "raised KeyError: 'x'" in root_cause(run_dir).cause


def test_a_try_that_made_no_attempt_is_told_from_an_earlier_attempt(run_dir: Path) -> None:
    driver(run_dir, "KeyError", "'x'", pid=77)
    failed_job(run_dir, Try(77, NOON + 86400, NOON + 86401, 1))  # a day later, by the same number
    assert root_cause(run_dir).cause == "job run-1 ended before an attempt began: the driver failed"


def test_an_attempt_by_hand_after_a_job_that_was_refused_is_explained(run_dir: Path) -> None:
    failed_job(run_dir, Try(5, NOON - 2000, NOON - 1999, 2))
    driver(run_dir, "KeyError", "'x'", pid=77)
    assert "raised KeyError: 'x'" in root_cause(run_dir).cause


def test_a_driver_s_exit_code_is_not_that_of_an_earlier_one_of_the_same_number(run_dir: Path) -> None:
    driver(run_dir, pid=77)
    job = Job("run-1", "lab", "ray", "x", str(run_dir), (), 1.0, 3)
    job.save()
    write_state(job.folder, JobState(phase="restarting", tries=(Try(77, NOON, NOON + 103), Try(77, NOON + 86400, NOON + 86500, -9))))
    assert "killed, or its node went away" in root_cause(run_dir).cause


def test_the_answer_is_told_to_programs_too(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    driver(run_dir, "UserError", "no")
    assert main(["why", str(run_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cause"] == "stopped with a message: no"


def test_rendering_shows_cause_place_others_and_what_to_do() -> None:
    cause = Cause("attempt_2", True, "rank 1 raised X", 0.0, ["at f (a.py:1)"], ["3 ranks waited in g (b.py:2)"], "do this", "file.json")
    assert cause.render().splitlines() == [
        "attempt_2: rank 1 raised X",
        "    at f (a.py:1)",
        "meanwhile: 3 ranks waited in g (b.py:2)",
        "to do: do this",
        "more: file.json",
    ]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory", "micro_batch_size"),
        ("OSError: [Errno 122] Disk quota exceeded", "free space"),
        ("CUDA error: uncorrectable ECC error encountered", "w2sr doctor"),
        ("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5)", "network"),
        ("killed by signal 9", "dmesg"),
        ("cannot connect to the Ray cluster at 10.0.0.1:6379", "w2sr cluster status"),
    ],
)
def test_known_failures_have_advice(text: str, word: str) -> None:
    assert word in advice_for(text)


def test_an_unknown_failure_has_none() -> None:
    assert advice_for("KeyError: 'x'") == ""
