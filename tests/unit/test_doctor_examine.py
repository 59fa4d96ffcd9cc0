"""The doctor's round, with threads in the place of nodes: who does not answer is named, left alone, and missed by nobody else."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster.doctor import examine as module
from cluster.doctor.bandwidth import PairSpeed, RankReport, RankTask
from cluster.doctor.examine import Examination, Question, examine
from cluster.doctor.facts import Gpus, NodeFacts, WantedPath
from cluster.doctor.findings import exit_code
from cluster.doctor.machine import look_at_node
from cluster.ray_nodes import NodeAnswer, RayNode
from tests.unit.doctor_facts import a_gpu, a_node, some_gpus

NODES = [RayNode(f"id-{name}", name, "127.0.0.1", 0) for name in ("n1", "n2", "n3")]


class Threads:
    """Stands in for cluster.ray_nodes.on_nodes: each task in a thread. `silent` are (function's name, node) that do not answer."""

    def __init__(self, *silent: tuple[str, str]) -> None:
        self.silent = set(silent)
        self.asked: list[tuple[str, list[str]]] = []
        self.num_gpus: float = 0

    def __call__(
        self, function: Callable[[Any], Any], asked: Sequence[tuple[RayNode, Any]], *, timeout_s: float, num_gpus: float = 0
    ) -> list[NodeAnswer[Any]]:
        self.asked.append((function.__name__, [node.name for node, _ in asked]))
        self.num_gpus = num_gpus

        def one(pair: tuple[RayNode, Any]) -> NodeAnswer[Any]:
            node, argument = pair
            began = time.time()
            if (function.__name__, node.name) in self.silent:
                return NodeAnswer(node, None, f"no answer within {timeout_s:g} s", began, time.time())
            return NodeAnswer(node, function(argument), None, began, time.time())

        with ThreadPoolExecutor(max(1, len(asked))) as threads:
            return list(threads.map(one, asked))


def fast_rank(task: RankTask) -> RankReport:
    return RankReport([PairSpeed(*pair, 1e9, 1e-4) for pair in task.pairs if pair[0] == task.rank])


def look(
    monkeypatch: pytest.MonkeyPatch, threads: Threads, question: Question, nodes: Sequence[RayNode] = NODES
) -> tuple[Examination, list[str]]:
    monkeypatch.setattr(module, "alive_nodes", lambda: list(nodes))
    monkeypatch.setattr(module, "on_nodes", threads)
    said: list[str] = []
    return examine(question, said.append, fast_rank), said


def failures(found: Examination) -> list[tuple[str, str, str, str]]:
    return [(each.area, each.check, each.node, each.found) for each in found.findings if each.status == "fail"]


def test_well_nodes_are_asked_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads()
    found, said = look(monkeypatch, threads, Question(folder=str(tmp_path), mesh_deadline_s=20))
    assert failures(found) == []
    assert exit_code(found.findings) == 0
    assert said == [
        "facts: 3 nodes",
        "clocks: 3 nodes",
        "shared folder: 3 nodes",
        "canaries: 3 nodes",
        "cleaning: 3 nodes",
        "ports: 3 nodes",
        "bandwidth: 3 ranks, gloo",
    ]
    assert all(abs(skew.skew_s) <= skew.error_s + 1e-6 for skew in found.skews.values()), "here the clocks are one"
    assert sorted((pair.one, pair.other) for report in found.reports.values() for pair in report.pairs) == [(0, 1), (0, 2), (1, 2)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", ["look_at_node", "read_clock", "write_canary", "look_for_canaries", "meet"])
def test_a_node_that_is_silent_once_is_named_and_not_asked_again(function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads((function, "n2"))
    question = Question(folder=str(tmp_path), timeout_s=7, canary_deadline_s=0.5, mesh_deadline_s=0.5)
    found, _ = look(monkeypatch, threads, question)
    ((area, check, node, text),) = [row for row in failures(found) if row[0] == "nodes"]
    assert (area, check, node) == ("nodes", "answered", "n2")
    assert text.endswith(": no answer within 7 s")
    assert exit_code(found.findings) == 10
    last = max(number for number, (_, names) in enumerate(threads.asked) if "n2" in names)
    assert threads.asked[last][0] == function
    assert [row for row in failures(found) if row[2] in ("n1", "n3") and row[0] == "filesystem"] == []
    assert found.ranks == ["n1", "n3"]


def free_ports(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let every node have so many free ports."""

    def look(wanted: tuple[WantedPath, ...]) -> NodeFacts:
        machine = look_at_node(wanted).machine
        return a_node(free_ports=machine.free_ports[:number], ports_tried=len(machine.free_ports))

    monkeypatch.setattr(module, "look_at_node", look)


def test_a_node_without_a_free_port_is_told_of_and_calls_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    free_ports(monkeypatch, 0)
    found, _ = look(monkeypatch, Threads(), Question())
    assert {(row[1], row[3].split(" of ")[0]) for row in failures(found) if row[0] == "limits"} == {("ports", "0")}
    assert (found.reached, found.reports) == ({}, {})
    assert exit_code(found.findings) == 16


def test_bandwidth_needs_a_second_port_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    free_ports(monkeypatch, 1)
    found, said = look(monkeypatch, Threads(), Question(mesh_deadline_s=20))
    assert said[-1] == "bandwidth: not measured, as n1 has no second free port"
    assert len(found.reached) == 3
    assert found.reports == {}


def test_when_nobody_answers_that_is_all_there_is_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = look(monkeypatch, Threads(*(("look_at_node", node.name) for node in NODES)), Question())
    assert [row[:3] for row in failures(found)] == [("nodes", "answered", "n1"), ("nodes", "answered", "n2"), ("nodes", "answered", "n3")]
    assert len(found.findings) == 3


def test_gpus_get_a_rank_each_and_pairs_are_between_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.doctor.machine.look_at_gpus", lambda: some_gpus(a_gpu(0), a_gpu(1)))
    threads = Threads()
    nodes = [RayNode(node.id, node.name, node.address, 2 if node.name != "n1" else 0) for node in NODES]
    found, said = look(monkeypatch, threads, Question(mesh_deadline_s=20), nodes)
    assert said[-1] == "bandwidth: 4 ranks, NCCL"
    assert found.ranks == ["n2", "n2", "n3", "n3"]
    assert threads.num_gpus == 1
    assert [(pair.one, pair.other) for report in found.reports.values() for pair in report.pairs] == [(0, 2)]


def test_files_are_compared_with_the_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.doctor.machine.look_at_gpus", lambda: Gpus(absent="none"))
    (tmp_path / "data").write_text("x")
    wanted = (WantedPath("prompts", "file", str(tmp_path / "data"), "driver"), WantedPath("student", "model", str(tmp_path / "m")))
    found, _ = look(monkeypatch, Threads(), Question(wanted=wanted, bandwidth=False, mesh_deadline_s=20))
    assert failures(found) == [("files", "student", "driver", f"{tmp_path / 'm'} absent")]
    assert found.reports == {}
