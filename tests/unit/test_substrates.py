"""What `w2sr cluster` and the kinds of clusters say when something is missing; with real hosts and a real Ray: tests/ssh."""

import dataclasses
import fcntl
import http.server
import io
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import node
from launcher.cli import main
from launcher.home import ClusterState, NodeState, OpenCluster, open_cluster
from launcher.node_calls import Answer
from launcher.node_folder import NodeFolder
from launcher.node_spec import NodeSpec
from launcher.ray_start import RayEnded
from launcher.substrates import local, ray, ssh
from launcher.tunnel import dashboard_url
from w2sr.errors import UserError

NOWHERE = "no-such-host.invalid"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2SR_HOME", str(tmp_path / "home"))


def opened(tmp_path: Path, text: str) -> OpenCluster:
    path = tmp_path / "lab.yaml"
    path.write_text(text)
    return open_cluster(str(path))


def test_a_cluster_that_is_down_is_listed_and_taken_down_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened(tmp_path, "kind: ray\naddress: h:6379")
    assert main(["cluster", "list"]) == 0
    assert main(["cluster", "status", "lab"]) == 1
    assert main(["cluster", "down", "lab"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines() == ["lab (ray): down", "lab (ray) is down", "lab was not up; nothing of it runs"]


def test_one_command_at_a_time_brings_a_cluster_up_or_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = opened(tmp_path, "kind: ray\naddress: h:6379")
    with open(cluster.folder / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["cluster", "down", "lab"]) == 2
    assert "another command brings 'lab' up or down at the moment; wait for it, or end it" in capsys.readouterr().err


def test_ssh_and_rsync_must_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = opened(tmp_path, "kind: ssh\nhosts: [a]\ntree: copy")
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "rsync" else f"/usr/bin/{name}")
    with pytest.raises(UserError, match="tree: copy needs rsync on this machine and on the hosts"):
        ssh.up(cluster, print)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="this machine has no ssh; install OpenSSH's client"):
        ssh.up(cluster, print)


def test_ray_that_does_not_end_here_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = opened(tmp_path, "kind: local")
    monkeypatch.setattr(local, "_ask", lambda *_: Answer("this machine", 2, "", "w2sr node: a process outlives SIGKILL\n"))
    with pytest.raises(UserError, match="Ray on this machine did not end: a process outlives SIGKILL"):
        local.down(cluster, lambda _: None)
    assert local.status(cluster)[0].detail == "a process outlives SIGKILL"


class NotRay(http.server.BaseHTTPRequestHandler):
    """Answers everything with a page of its own: not found, or `page`."""

    page: bytes | None = None

    def do_GET(self) -> None:
        if self.page is None:
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.page)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def other_server() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotRay) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_server_that_is_no_ray_dashboard_is_told_from_one(tmp_path: Path, other_server: int) -> None:
    cluster = opened(tmp_path, f"kind: ray\naddress: h:6379\ndashboard: 127.0.0.1:{other_server}")
    with pytest.raises(UserError, match="answered HTTP 404 to a question for its nodes; is it a Ray dashboard"):
        ray.up(cluster, lambda _: None)
    assert not ray.status(cluster)[0].alive


@pytest.mark.parametrize("page", [b"<html>", b"\xff", b"[]", b'{"data": []}'])
def test_a_page_that_is_no_list_of_nodes_is_told(tmp_path: Path, other_server: int, monkeypatch: pytest.MonkeyPatch, page: bytes) -> None:
    monkeypatch.setattr(NotRay, "page", page)
    cluster = opened(tmp_path, f"kind: ray\naddress: h:6379\ndashboard: 127.0.0.1:{other_server}")
    with pytest.raises(UserError, match="answers, but not as a Ray dashboard does; check `dashboard`"):
        ray.up(cluster, lambda _: None)
    assert not ray.status(cluster)[0].alive


@pytest.mark.parametrize("dashboard", ["127.0.0.1:http", "http://127.0.0.1:8265/", f"{64 * 'a'}.example:8265"])
def test_a_dashboard_that_cannot_be_one_is_told(tmp_path: Path, dashboard: str) -> None:
    cluster = opened(tmp_path, "kind: ray\naddress: h:6379")
    odd = dataclasses.replace(cluster, file=cluster.file.model_copy(update={"dashboard": dashboard}))
    with pytest.raises(UserError, match=r"no Ray dashboard answers at .*; check `dashboard`, which is host:port"):
        ray.up(odd, lambda _: None)


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs ssh")
def test_no_tunnel_leads_to_a_head_that_cannot_be_reached(tmp_path: Path) -> None:
    nodes = (NodeState(NOWHERE, "203.0.113.1", 1, "/tmp/none"),)  # an address of nobody (TEST-NET-3)
    cluster = opened(tmp_path, f"kind: ssh\nhosts: [{NOWHERE}]").save(ClusterState("203.0.113.1:1", "127.0.0.1:2", nodes, 0.0))
    with (
        pytest.raises(UserError, match=f"no tunnel to the dashboard on {NOWHERE}: ssh: .*; see `w2sr cluster status lab`"),
        dashboard_url(cluster),
    ):
        pass


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
def test_a_copy_that_fails_names_the_host(tmp_path: Path) -> None:
    cluster = opened(tmp_path, f"kind: ssh\nhosts: [{NOWHERE}]\ntree: copy")
    with pytest.raises(UserError, match=f"host {NOWHERE}: the copy failed: ssh: "):
        ssh.up(cluster, print)


def test_a_keeper_whose_ray_stays_silent_is_reported(tmp_path: Path) -> None:
    """Its lock is held, it says that it is ready, and nothing answers on its ports."""
    folder = NodeFolder(str(tmp_path / "n"))
    spec = NodeSpec(cluster="lab", folder="/tmp/short", port_key="k", token="t", ready_timeout_s=0.2)
    with folder.locked():
        folder.write(spec, 10240)
        folder.ready.write_text("{}")
        with pytest.raises(RayEnded, match=r"Ray does not answer on .*:\n\(it said nothing\)"):
            node._wait_healthy(spec, folder)


def test_start_ends_when_who_asked_for_it_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = NodeFolder(str(tmp_path / "n"))
    with folder.locked(), open("/dev/null") as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        with pytest.raises(RayEnded, match="nobody waits for this node any more; it ends"):
            node._wait_ready(folder, None, None, attached=True)


def test_start_reports_a_keeper_that_ended_without_a_word(tmp_path: Path) -> None:
    folder = NodeFolder(str(tmp_path / "n"))
    folder.make()
    with pytest.raises(RayEnded, match=r"the keeper of .* ended"):
        node._wait_ready(folder, None, io.StringIO(), attached=False)
