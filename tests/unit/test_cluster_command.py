"""`w2sr cluster up|status|down` with nodes that are not there: what is asked of them is faked. With real ones: tests/ssh."""

from pathlib import Path

import pytest

from launcher.cli import main
from launcher.home import ClusterState, Job, NodeState, OpenCluster, open_cluster
from launcher.job_state import JobState, write_state
from launcher.node_calls import Answer
from launcher.node_spec import NodeReady, NodeReport
from launcher.substrate import NodeStatus
from launcher.substrates import local, ray, slurm, ssh
from w2sr.errors import UserError

NODES = tuple(NodeState(host, f"10.0.0.{number}", number, "/tmp/w2sr-1") for number, host in enumerate("abc", 1))
STATE = ClusterState("10.0.0.1:10247", "127.0.0.1:10248", NODES, 1.0)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2SR_HOME", str(tmp_path / "home"))


def opened(tmp_path: Path, text: str) -> OpenCluster:
    (tmp_path / "lab.yaml").write_text(text)
    return open_cluster(str(tmp_path / "lab.yaml"))


def refuse(*_: object) -> None:
    raise UserError("it does not come up")


def test_an_up_that_fails_over_ssh_ends_only_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head lives and is only too busy to answer, a worker is up, another one is lost."""
    cluster = opened(tmp_path, "kind: ssh\nhosts: [a, b, c]").save(STATE)
    ready = NodeReady("b", "10.0.0.2", "10.0.0.1:10247", "", 2, "/tmp/w2sr-1", {}, "", {})
    reports = {
        "a": NodeReport(False, True, "Ray does not answer", {}, "", None),
        "b": NodeReport(True, True, "up", {}, "", ready),
        "c": NodeReport(False, False, "lost: the machine was restarted", {}, "", None),
    }
    stopped: list[str] = []
    monkeypatch.setattr(ssh, "_check", lambda *_: reports)
    monkeypatch.setattr(ssh, "_start", refuse)
    monkeypatch.setattr(ssh, "_stop", lambda _cluster, _file, hosts: stopped.extend(hosts))
    monkeypatch.setattr(ssh.shutil, "which", lambda name: name)
    with pytest.raises(UserError, match="it does not come up"):
        ssh.up(cluster, print)
    assert stopped == ["c"]


@pytest.mark.parametrize("kept", [True, False])
def test_an_up_that_fails_here_ends_only_what_it_started(kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = opened(tmp_path, "kind: local").save(STATE)
    asked: list[str] = []

    def ask(_file: object, action: str, _timeout_s: float) -> Answer:
        asked.append(action)
        return Answer("this machine", 0, NodeReport(False, kept, "Ray does not answer", {}, "", None).json(), "")

    monkeypatch.setattr(local, "_ask", ask)
    monkeypatch.setattr(local, "_call", refuse)
    with pytest.raises(UserError, match="it does not come up"):
        local.up(cluster, print)
    assert asked == (["status"] if kept else ["status", "stop"])


def test_a_python_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened(tmp_path, "kind: local\npython: /nonexistent/python")
    assert main(["cluster", "up", "lab"]) == 2
    said = capsys.readouterr().err
    assert "cluster 'lab': cannot run python: /nonexistent/python (No such file or directory); give the Python of w2sr's" in said


def test_a_command_sees_what_another_one_did_while_it_waited_for_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its first look and its lock another command brings the cluster up."""
    cluster = opened(tmp_path, "kind: local")
    from cluster import file_locks

    monkeypatch.setattr(file_locks, "take_lock", lambda *_: cluster.save(STATE))
    monkeypatch.setattr(local, "up", lambda *_: pytest.fail("it is up already"))
    monkeypatch.setattr(local, "status", lambda _: [NodeStatus("a", True, "up")])
    assert main(["cluster", "up", "lab"]) == 0


def test_down_names_the_jobs_on_held_nodes_of_slurm_and_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path, "kind: slurm").save(STATE)
    for name in ("slurm", "ray"):
        job = Job(f"on-{name}", "lab", name, "7", str(tmp_path / name), (), 0.0, 3)
        job.save()
        write_state(job.folder, JobState(phase="running"))
    monkeypatch.setattr("launcher.jobs.backend_state", lambda _: "running")
    monkeypatch.setattr(slurm, "down", lambda *_: None)
    assert main(["cluster", "down", "lab"]) == 0
    said = capsys.readouterr().err
    assert "job on-ray ends with it" in said
    assert "on-slurm" not in said


def test_nobody_is_told_that_up_brings_back_a_foreign_cluster_s_nodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path, "kind: ray\naddress: h:6379").save(STATE)
    monkeypatch.setattr(ray, "status", lambda _: [NodeStatus("a", False, "gone")])
    assert main(["cluster", "status", "lab"]) == 1
    assert "brings lost nodes back" not in capsys.readouterr().out
