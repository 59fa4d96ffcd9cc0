"""Trainings on several Ray nodes, in a process of its own: nodes are killed in mid-training, others join.

`first`: may not shrink; its node dies, and another one joins once it is waited for. `second`: may; its node dies and nobody comes, then one
comes and the training is started again. Prints the lines that were said, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cluster.train_group import GroupSpec, run_group
from w2sr.training.spec import TrainSpec

MEMORY = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
KILLED_IN, STARTED_AGAIN_IN = 12, 17  # steps, of 20; a checkpoint every 5


def train_held(specs: list[str]) -> None:
    """What a rank runs: on the node that will die it stands still in step 12, once, while the other rank waits for it in a collective."""
    from w2sr.training import loop

    output, world_size = Path(TrainSpec.from_json(specs[0], "test").output), os.environ["WORLD_SIZE"]
    on_head = ray.get_runtime_context().get_node_id() == output.with_suffix(".head").read_text()
    feed_step = loop.Feed.step

    def hold(feed: Any, step: int) -> Any:
        if step == KILLED_IN and not on_head:
            _meet(output.with_suffix(".held"))
        if step == STARTED_AGAIN_IN and world_size == "1":
            _meet(output.with_suffix(".alone"))
        return feed_step(feed, step)

    loop.Feed.step = hold
    loop.train_each(specs)


def _meet(path: Path) -> None:
    """Say that we are here, and wait until we are killed; do nothing the second time."""
    if not path.exists():
        path.write_text(str(os.getpid()))
        time.sleep(300)


def main(folder: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, **MEMORY})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    head = ray.get_runtime_context().get_node_id()
    said: dict[str, list[str]] = {"first": [], "second": []}
    node = _join(cluster)
    for name, sizes, story in (("first", (2,), replaced), ("second", (1, 2), alone_for_a_while)):
        output = folder / name
        output.with_suffix(".head").write_text(head)
        events = story(cluster, node, output, said[name])
        spec = GroupSpec(sizes, 1, False, 2, folder / "group", wait_s=4)
        run_group(train_held, [(folder / f"{name}.json").read_text()], spec, lambda: next(events), said[name].append)  # noqa: B023
        node = next(events)
    print(json.dumps(said))
    ray.shutdown()
    cluster.shutdown()


def _join(cluster: Cluster) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)


def replaced(cluster: Cluster, node: Any, output: Path, said: list[str]) -> Iterator[Any]:
    """The node dies in step 12; another one joins when the training waits for it."""
    yield from _until(output.with_suffix(".held").exists)
    cluster.remove_node(node, allow_graceful=False)
    yield from _until(lambda: any(line.startswith("waiting for 2 CPUs") for line in said))
    node = _join(cluster)
    while True:
        yield node


def alone_for_a_while(cluster: Cluster, node: Any, output: Path, _: list[str]) -> Iterator[Any]:
    """The node dies in step 12 and nobody comes; in step 17 there is one, and the rank that trained alone dies."""
    yield from _until(output.with_suffix(".held").exists)
    cluster.remove_node(node, allow_graceful=False)
    yield from _until(output.with_suffix(".alone").exists)
    node = _join(cluster)
    yield from _until(lambda: ray.cluster_resources()["CPU"] == 2)
    os.kill(int(output.with_suffix(".alone").read_text()), 9)
    while True:
        yield node


def _until(holds: Callable[[], bool]) -> Iterator[None]:
    while not holds():
        yield


if __name__ == "__main__":
    main(Path(sys.argv[1]))
