"""A node without Ray: its folder, its lock, whom it ends, what it tells Ray. With Ray: tests/ssh."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ClusterError
from launcher import node, node_folder, ray_start
from launcher.node_calls import Call, check_same, run_all, spec_to_find
from launcher.node_folder import NodeFolder
from launcher.node_spec import NodeReady, NodeReport, NodeSpec
from launcher.ports import Ports
from w2sr.errors import UserError


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeFolder]:
    monkeypatch.setattr(node_folder, "LOCK_WAIT_S", 0.2)
    monkeypatch.setattr(node_folder, "TERMINATE_WAIT_S", 0.5)
    with tempfile.TemporaryDirectory(prefix="w2n-", dir="/tmp") as parent:  # short, as a node's folder must be
        yield NodeFolder(f"{parent}/n")


def spec(**values: object) -> NodeSpec:
    return NodeSpec(**{"cluster": "lab", "folder": "/tmp/w2sr-1", "port_key": "k", "token": "t" * 64} | values)  # type: ignore[arg-type]


def marked(folder: NodeFolder, code: str = "import time; print(flush=True); time.sleep(600)") -> subprocess.Popen[bytes]:
    """Start a process that carries the folder's mark and has begun."""
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"W2SR_NODE": str(folder.path)}, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_what_travels_as_json_arrives() -> None:
    ready = NodeReady("a", "10.0.0.1", "10.0.0.1:1", "127.0.0.1:2", 7, "/tmp/w2sr-1", {"ray": "2"}, "c0de", {"ray": 1.5})
    assert NodeReady.parse(ready.json()) == ready
    sent = spec(labels={"rack": "r1"}, env={"A": "b"}, num_gpus=8)
    assert NodeSpec.parse(sent.json()) == sent
    for report in (
        NodeReport(True, True, "up", {"ray": "2"}, "c0de", ready),
        NodeReport(False, False, "nothing runs here", {}, "c0de", None),
    ):
        assert NodeReport.parse(report.json()) == report


def test_a_folder_too_long_for_ray_s_sockets_is_refused() -> None:
    with pytest.raises(ClusterError, match="has 39 characters, and Ray's sockets below it allow 38; give a shorter temp_dir"):
        spec(folder="/" + "x" * 38)


def test_the_folder_is_private(folder: NodeFolder) -> None:
    folder.make()
    folder.make()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.path.chmod(0o755)
    with pytest.raises(ClusterError, match=r"exists and is not a private folder of yours \(mode 0700\)"):
        folder.make()


def test_a_link_in_the_folder_s_place_is_refused(folder: NodeFolder, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ClusterError, match="is not a private folder of yours"):
        folder.make()


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(ClusterError, match=r"cannot make /no/where \(No such file or directory\); give a temp_dir that exists"):
        NodeFolder("/no/where").make()


def test_a_folder_has_one_keeper(folder: NodeFolder) -> None:
    assert not folder.is_kept()
    with folder.locked():
        assert folder.is_kept()
        with pytest.raises(ClusterError, match="has a keeper already"), folder.locked():
            pass
    assert not folder.is_kept()
    with folder.locked():
        folder.clear()
        with folder.locked():  # the file that was locked is gone: a new keeper may come
            pass


def test_the_token_is_written_for_its_owner_alone_and_kept_out_of_everything_else(folder: NodeFolder) -> None:
    folder.make()
    given = spec(folder=str(folder.path))
    assert folder.write(given, 10240) == folder.token
    assert folder.token.stat().st_mode & 0o777 == 0o600
    assert all("tttt" not in path.read_text() for path in folder.path.iterdir() if path != folder.token)
    keeper = folder.keeper()
    assert keeper is not None
    assert (keeper.pid, keeper.first_port, keeper.same_boot) == (os.getpid(), 10240, True)
    assert folder.keeps(given)
    assert not folder.keeps(dataclasses.replace(given, head="10.0.0.1:1"))
    assert not folder.keeps(dataclasses.replace(given, token="u" * 64))


def test_a_token_that_the_node_sees_is_used_where_it_is(folder: NodeFolder, tmp_path: Path) -> None:
    folder.make()
    given = spec(folder=str(folder.path), token=None, token_path=str(tmp_path / "token"))
    assert folder.write(given, 10240) == tmp_path / "token"
    assert not folder.token.exists()
    assert folder.keeps(given)


def test_processes_with_the_mark_are_ended_and_no_others(folder: NodeFolder) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    ours = [marked(folder), marked(folder, stubborn)]
    others = [marked(NodeFolder(f"{folder.path}2")), marked(NodeFolder(str(folder.path.parent)))]
    try:
        folder.end_processes()
        assert [process.wait() for process in ours] == [-signal.SIGTERM, -signal.SIGKILL]
        assert [process.poll() for process in others] == [None, None]
    finally:
        for process in ours + others:
            process.kill()
            process.communicate()


def test_processes_that_outlive_sigkill_are_reported(folder: NodeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_folder, "KILL_WAIT_S", 0.1)
    monkeypatch.setattr(NodeFolder, "_send", lambda *_: None)
    process = marked(folder)
    try:
        with pytest.raises(ClusterError, match=f"processes {process.pid} of .* outlive SIGKILL: a device or a file system hangs"):
            folder.end_processes()
    finally:
        process.kill()
        process.communicate()


def test_stop_clears_the_remains_of_a_killed_keeper_and_ends_no_stranger(folder: NodeFolder) -> None:
    found = spec_to_find("lab", str(folder.path))
    assert not node.stop(found)
    folder.make()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as stranger:
        folder.write(spec(folder=str(folder.path)), 10240)
        values = json.loads((folder.path / "keeper.json").read_text())
        (folder.path / "keeper.json").write_text(json.dumps(values | {"pid": stranger.pid}))  # the number has gone to somebody else
        orphan = marked(folder)
        assert node.status(found).detail == "ended: its keeper was killed"
        assert node.stop(found)
        orphan.communicate()
        assert stranger.poll() is None
        stranger.kill()
    assert not folder.path.exists()
    assert node.status(found).detail == "nothing runs here"


def test_a_machine_that_was_restarted_is_recognised(folder: NodeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.make()
    folder.write(spec(folder=str(folder.path)), 10240)
    (folder.path / "boot").write_text("another boot")
    monkeypatch.setattr(node_folder, "BOOT_ID", folder.path / "boot")
    assert node.status(spec_to_find("lab", str(folder.path))).detail == "lost: the machine was restarted"


def test_a_keeper_that_does_not_end_by_sigterm_is_killed(folder: NodeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "STOP_WAIT_S", 0.5)
    code = (
        "import signal, sys, time; from launcher.node_folder import NodeFolder; from launcher.node_spec import NodeSpec\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); folder = NodeFolder(sys.argv[1])\n"
        "with folder.locked():\n"
        "    folder.write(NodeSpec('lab', sys.argv[1], 'k', token='t'), 10240); print(flush=True); time.sleep(600)"
    )
    keeper = subprocess.Popen([sys.executable, "-c", code, str(folder.path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert keeper.stdout is not None
    keeper.stdout.readline()
    assert node.stop(spec_to_find("lab", str(folder.path)))
    assert keeper.wait() == -signal.SIGKILL
    keeper.communicate()


def test_a_keeper_that_cannot_be_ended_is_reported(folder: NodeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "STOP_WAIT_S", 0.1)
    monkeypatch.setattr(node, "_send_to_keeper", lambda *_: True)
    with folder.locked():
        folder.write(spec(folder=str(folder.path)), 10240)
        with pytest.raises(ClusterError, match="does not end, not even by SIGKILL"):
            node.stop(spec_to_find("lab", str(folder.path)))


def test_ray_is_told_every_port_and_no_secret() -> None:
    head = ray_start.command(spec(labels={"rack": "r1"}), NodeFolder("/tmp/w2sr-1"), Ports(10240), "10.0.0.1")
    assert {"--head", "--no-monitor", "--dashboard-host=127.0.0.1", "--port=10247", "--node-ip-address=10.0.0.1"} <= set(head)
    assert {"--min-worker-port=10264", "--max-worker-port=11263", "--labels=rack=r1", "--disable-usage-stats"} <= set(head)
    worker = ray_start.command(spec(head="10.0.0.1:10247", num_gpus=8), NodeFolder("/tmp/w2sr-1"), Ports(10240), "10.0.0.2")
    assert {"--address=10.0.0.1:10247", "--num-gpus=8", "--node-manager-port=10241"} <= set(worker)
    assert not any(part.startswith(("--head", "--port", "--dashboard-port", "--dashboard-host")) for part in worker)
    assert "tttt" not in " ".join(head + worker)


def test_ray_s_environment_names_the_token_s_file_and_lets_nobody_else_s_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    (tmp_path / "secrets").write_text("# ours\nexport OPENAI_API_KEY='sk-1'\n\nRAY_AUTH_MODE=disabled\n")
    (tmp_path / "secrets").chmod(0o600)
    given = spec(env={"NCCL_DEBUG": "WARN"}, env_file=str(tmp_path / "secrets"))
    found = ray_start.environment(given, NodeFolder("/tmp/w2sr-1"), Path("/tmp/w2sr-1/token"), "10.0.0.1")
    assert found["RAY_AUTH_TOKEN_PATH"] == "/tmp/w2sr-1/token"
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["OPENAI_API_KEY"] == "sk-1"
    assert found["NCCL_DEBUG"] == "WARN"
    assert found["RAY_worker_niceness"] == "0"
    assert "RAY_AUTH_TOKEN" not in found
    assert "RAY_ADDRESS" not in found
    assert not any("tttt" in value for value in found.values())


def test_gloo_is_told_the_interface_of_the_node_s_address_unless_the_cluster_file_names_one() -> None:
    folder, token = NodeFolder("/tmp/w2sr-1"), Path("/tmp/w2sr-1/token")
    assert ray_start.environment(spec(), folder, token, "127.0.0.1")["GLOO_SOCKET_IFNAME"] == "lo"
    assert ray_start.environment(spec(env={"GLOO_SOCKET_IFNAME": "ib0"}), folder, token, "127.0.0.1")["GLOO_SOCKET_IFNAME"] == "ib0"


def test_an_env_file_must_be_there_private_and_of_lines_with_values(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    with pytest.raises(ClusterError, match=r"cannot read env_file .* No such file or directory"):
        ray_start.read_env_file(path)
    path.write_text("API KEY: sk-verysecret\n")
    path.chmod(0o640)
    with pytest.raises(ClusterError, match=r"can be read by others \(mode 640\); chmod 600 it"):
        ray_start.read_env_file(path)
    path.chmod(0o600)
    with pytest.raises(ClusterError, match=r"line 1 of env_file .* is not KEY=value") as caught:
        ray_start.read_env_file(path)
    assert "verysecret" not in str(caught.value)
    path.write_bytes(b"KEY=sk-verysecret\xe9\n")
    with pytest.raises(ClusterError, match=r"env_file .* is not text in UTF-8") as caught:
        ray_start.read_env_file(path)
    assert "verysecret" not in str(caught.value)


def test_quotes_around_a_value_are_taken_off_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_text("A=\"x y\"\nB='x'\nC=it's'\nD=\"\nE='x\"\nexport F=\"'x'\"\n")
    path.chmod(0o600)
    assert ray_start.read_env_file(path) == {"A": "x y", "B": "x", "C": "it's'", "D": '"', "E": "'x\"", "F": "'x'"}


def test_the_address_is_the_given_one_the_interface_s_or_that_of_the_route_to_the_head() -> None:
    assert ray_start.own_address(spec(address="10.1.2.3")) == "10.1.2.3"
    assert ray_start.own_address(spec(interface="lo")) == "127.0.0.1"
    assert ray_start.own_address(spec(head="127.0.0.1:10247")) == "127.0.0.1"
    assert socket.inet_aton(ray_start.own_address(spec()))
    with pytest.raises(ClusterError, match=r"network.interface 'ib7' has no IPv4 address on .*; it has .*lo"):
        ray_start.own_address(spec(interface="ib7"))


def test_last_words_are_those_of_ray_start_and_the_errors_in_its_logs(folder: NodeFolder) -> None:
    folder.make()
    assert ray_start.last_words(folder) == "(it said nothing)"
    folder.ray_log.write_text("\n".join(f"line {number}" for number in range(100)))
    logs = folder.temp_dir / "session_latest/logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text("[now I 1 1] all is well\n[now E 1 1] no space in /dev/shm\n")
    said = ray_start.last_words(folder)
    assert "line 99" in said
    assert "line 80\n" not in said
    assert "raylet.out: [now E 1 1] no space in /dev/shm" in said
    assert "all is well" not in said


def report(**versions: str) -> NodeReport:
    return NodeReport(False, False, "", {"python": "3.11.2", "ray": "2.60.0"} | versions, "c0de" * 16, None)


def test_a_host_with_other_versions_or_code_is_refused_with_the_difference() -> None:
    check_same("b", report(), report())
    with pytest.raises(
        UserError, match=r"host b has ray 2.59.0 instead of 2.60.0, .*install the same versions there, or set environment_copy"
    ):
        check_same("b", report(ray="2.59.0"), report())
    with pytest.raises(UserError, match=r"host b has other code in .* \(digest bad0bad0bad0 instead of c0dec0dec0de\)"):
        check_same("b", dataclasses.replace(report(), code="bad0" * 16), report())


def test_a_call_that_ends_before_it_is_told_anything_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = popen(*arguments, **options)
        process.wait()
        return process

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    [answer] = run_all([Call("gone", [sys.executable, "-c", "import sys; sys.exit('no route to host')"], "hello")], 20)
    assert (answer.code, answer.why) == (1, "no route to host")


def test_calls_end_when_their_time_is_over_and_the_others_count() -> None:
    said: list[str] = []
    calls = [
        Call("quick", [sys.executable, "-c", "print(input())"], "hello"),
        Call("slow", [sys.executable, "-c", "import sys, time; print('thinking', file=sys.stderr, flush=True); time.sleep(600)"]),
        Call("wrong", [sys.executable, "-c", "import sys; sys.exit('w2sr node: no')"]),
    ]
    deadline = time.monotonic() + 60
    while calls[1].phase != "thinking":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    quick, slow, wrong = run_all(calls, 1.0, lambda running, _: said.extend(call.host for call in running))
    assert (quick.code, quick.out) == (0, "hello\n")
    assert (slow.code, slow.why) == (None, "thinking")
    assert (wrong.code, wrong.why) == (1, "no")
