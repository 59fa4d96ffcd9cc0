"""The doctor on a cluster of three nodes, in a process of its own; prints what test_doctor.py looks at, as JSON.

The nodes are three raylets on this machine. One of them dies at the end, while it is being asked.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cluster.config import ClusterSpec
from cluster.doctor.bandwidth import BandwidthLimits, RankReport, RankTask, run_rank
from cluster.doctor.canary import CanaryTask, look_for_canaries, remove_canaries, write_canary
from cluster.doctor.check_shared import check_folder
from cluster.doctor.examine import Question, examine
from cluster.doctor.findings import Finding, exit_code
from cluster.ray_nodes import NodeAnswer, alive_nodes, on_nodes
from cluster.session import ray_session

MEMORY = {"object_store_memory": 80 * 2**20}
SLOW_RANK, DYING_RANK = 2, 1


def where_and_when(seconds: float) -> tuple[str, float, float]:
    began = time.time()
    time.sleep(seconds)
    return ray.get_runtime_context().get_node_id(), began, time.time()


def refuse(text: str) -> None:
    raise ValueError(text)


def ask_all(function: Callable[[Any], Any], argument: Any, timeout_s: float) -> list[NodeAnswer[Any]]:
    return on_nodes(function, [(node, argument) for node in alive_nodes()], timeout_s=timeout_s)


def unknown(folder: Path) -> Any:
    """Return a function of a module that only this process finds, as where a node lacks our code."""
    file = folder / "only_here.py"
    file.write_text("def function(argument): return argument")
    sys.path.append(str(folder))
    function = importlib.import_module("only_here").function
    file.unlink()
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    return function


def slow_rank(task: RankTask) -> RankReport:
    import torch.distributed as dist

    if task.rank == SLOW_RANK:
        send = dist.send

        def slow_send(*arguments: Any) -> None:
            time.sleep(0.02)
            send(*arguments)

        dist.send = slow_send
        try:
            return run_rank(task)
        finally:
            dist.send = send
    return run_rank(task)


def dying_rank(task: RankTask) -> RankReport:
    if task.rank == DYING_RANK:
        os._exit(1)
    return run_rank(task)


def rows(findings: list[Finding]) -> list[tuple[str, str, str, str, str]]:
    return [(each.area, each.check, each.node, each.status, each.found) for each in findings]


def canaries(shared: Path, other: Path) -> list[tuple[str, str, str, str, str]]:
    """The last node has another folder at the same place: its tasks name `other`."""
    nodes = alive_nodes()
    ids = [node.id for node in nodes]
    tasks = [
        CanaryTask(str(other if node is nodes[-1] else shared), "t", node.id, tuple(each for each in ids if each != node.id), 2.0)
        for node in nodes
    ]
    asked = list(zip(nodes, tasks))
    facts = {each.node.id: each.value for each in on_nodes(write_canary, asked, timeout_s=60) if each.value}
    seen = {each.node.id: each.value for each in on_nodes(look_for_canaries, asked, timeout_s=60) if each.value}
    on_nodes(remove_canaries, asked, timeout_s=60)
    return rows(check_folder(str(shared), facts, seen))


def begun_or_waits(asked: tuple[str, bool]) -> None:
    """The doomed one says that it has begun, by a file, and never ends; the others answer as soon as it has."""
    file, doomed = Path(asked[0]), asked[1]
    if doomed:
        file.touch()
        time.sleep(300)
    deadline = time.monotonic() + 100
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def death(cluster: Cluster, doomed: Any, file: Path) -> dict[str, Any]:
    """A node is killed while it works on its answer, as soon as another has answered."""
    answers: list[str] = []

    def on_done(answer: NodeAnswer[Any]) -> None:
        if not answers:
            cluster.remove_node(doomed, allow_graceful=False)
        answers.append(answer.node.name)

    began = time.monotonic()
    asked = [(node, (str(file), node.id == doomed.node_id)) for node in alive_nodes()]
    found = on_nodes(begun_or_waits, asked, timeout_s=120, on_done=on_done)
    file.unlink()
    errors = {each.node.id == doomed.node_id: each.error for each in found}
    return {"seconds": time.monotonic() - began, "doomed": errors[True], "others": errors[False], "calls": len(answers)}


def main(shared: Path, other: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False, **MEMORY})
    added = [cluster.add_node(num_cpus=1, num_gpus=gpus, **MEMORY) for gpus in (0, 4)]
    found: dict[str, Any] = {}
    with ray_session(ClusterSpec(address=cluster.address)):
        found["ids"] = [node.id for node in alive_nodes()]
        ask_all(where_and_when, 0.0, timeout_s=120)  # workers start one after the other
        found["pinned"] = [(each.value, each.node.id) for each in ask_all(where_and_when, 1.0, timeout_s=120)]
        refused = ask_all(refuse, "not\nhere", timeout_s=60)
        late = ask_all(where_and_when, 60.0, timeout_s=1.0)
        found["errors"] = [[each.error for each in answers] for answers in (refused, late, ask_all(unknown(other), 0, timeout_s=60))]
        found["canaries"] = canaries(shared, other)
        limits = BandwidthLimits(pair_s=0.5, all_reduce_s=0.3, largest_bytes=2**22, timeout_s=60)
        slow = examine(Question(folder=str(shared), limits=limits), lambda _: None, slow_rank)
        found["slow"] = {"findings": rows(slow.findings), "node": slow.ranks[SLOW_RANK], "code": exit_code(slow.findings)}
        json.dumps(slow.as_json())
        dying = examine(Question(limits=BandwidthLimits(timeout_s=20)), lambda _: None, dying_rank)
        found["dying"] = {"findings": rows(dying.findings), "node": dying.ranks[DYING_RANK]}
        found["death"] = death(cluster, added[0], other / "begun")
    print(json.dumps(found))
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
