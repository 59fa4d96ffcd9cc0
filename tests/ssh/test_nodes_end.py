"""Nodes that die and heads that die on real hosts; `launcher.node` itself, started there by hand."""

import json
import os
import signal
import time
from collections.abc import Callable

from tests.ssh.hosts import DEADLINE_S, Hosts


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.1)


def processes(hosts: Hosts, host: str, program: str) -> list[int]:
    return [pid for pid in hosts.pids(host) if program in hosts.command_line(pid).partition(" ")[0]]


def test_a_dead_raylet_of_a_worker_is_started_again_and_a_lost_head_is_brought_back_with_its_workers(two_hosts: Hosts) -> None:
    file = two_hosts.write_cluster("lossy")
    two_hosts.w2sr("cluster", "up", file)
    state = json.loads((two_hosts.folder / "home/clusters/lossy/state.json").read_text())
    keepers = [node["pid"] for node in state["nodes"]]

    (raylet,) = processes(two_hosts, "b", "raylet/raylet")
    os.kill(raylet, signal.SIGKILL)
    until(lambda: "1 of 2 nodes up" in two_hosts.w2sr("cluster", "status", "lossy", code=1), "the loss")
    said = two_hosts.w2sr("cluster", "up", "lossy")  # waits for the keeper, which brings it back by itself
    assert "2 nodes" in said
    assert processes(two_hosts, "b", "raylet/raylet") != [raylet]
    state = json.loads((two_hosts.folder / "home/clusters/lossy/state.json").read_text())
    assert [node["pid"] for node in state["nodes"]] == keepers

    (gcs,) = processes(two_hosts, "a", "gcs/gcs_server")
    os.kill(gcs, signal.SIGKILL)
    until(lambda: not processes(two_hosts, "a", "raylet/raylet"), "the end of the head")
    until(lambda: "ended: Ray ended with code" in two_hosts.w2sr("cluster", "status", "lossy", code=1), "the report of it")
    assert not list(two_hosts.folder.glob("w2sr-*/token")) or len(list(two_hosts.folder.glob("w2sr-*/token"))) == 1  # b's at most
    said = two_hosts.w2sr("cluster", "up", "lossy")
    assert "head" in said
    state = json.loads((two_hosts.folder / "home/clusters/lossy/state.json").read_text())
    assert not set(keepers) & {node["pid"] for node in state["nodes"]}
    assert "2 of 2 nodes up" in two_hosts.w2sr("cluster", "status", "lossy")
    two_hosts.w2sr("cluster", "down", "lossy")
    assert two_hosts.leftovers() == []


def test_a_killed_keeper_takes_its_ray_with_it_and_down_clears_up(two_hosts: Hosts) -> None:
    file = two_hosts.write_cluster("headless", hosts=["a"])
    two_hosts.w2sr("cluster", "up", file)
    state = json.loads((two_hosts.folder / "home/clusters/headless/state.json").read_text())
    os.kill(state["nodes"][0]["pid"], signal.SIGKILL)
    until(lambda: not processes(two_hosts, "a", "raylet/raylet"), "the end of the raylet")
    assert "ended: its keeper was killed" in two_hosts.w2sr("cluster", "status", "headless", code=1)
    two_hosts.w2sr("cluster", "down", "headless")
    assert two_hosts.leftovers() == []


def test_two_clusters_share_the_hosts(two_hosts: Hosts) -> None:
    for name in ("one", "two"):
        two_hosts.w2sr("cluster", "up", two_hosts.write_cluster(name, hosts=["a"]))
    listed = two_hosts.w2sr("cluster", "list")
    assert "one (ssh): up" in listed
    assert "two (ssh): up" in listed
    two_hosts.w2sr("cluster", "down", "one")
    assert "1 of 1 nodes up" in two_hosts.w2sr("cluster", "status", "two")
    two_hosts.w2sr("cluster", "down", "two")
    assert two_hosts.leftovers() == []


def test_a_hostfile_and_the_default_route_s_address_will_do(two_hosts: Hosts) -> None:
    (two_hosts.folder / "hostfile").write_text("a slots=2\nb slots=2  # both ours\n")
    file = two_hosts.write_cluster("plain", hosts=None, hostfile="hostfile")
    said = two_hosts.w2sr("cluster", "up", file)
    for host, address in two_hosts.addresses.items():
        assert f"{host} ({address})" in said
    two_hosts.w2sr("cluster", "down", "plain")
