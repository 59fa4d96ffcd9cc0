"""A run on several nodes, in a process of its own: the only node with (pretended) GPUs joins late, dies, and another one joins.

Prints what test_pool.py looks at, as JSON.
"""

from __future__ import annotations

import json
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cluster.pool import Pool
from cluster.work import Outcome, Service
from tests.pool_fakes import FakeWorker, ListSource

MEMORY = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, **MEMORY})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    service = Service("a", FakeWorker, max_replicas=2, cpus=0.5, gpus=2, capacity=2, max_deaths=1)
    payloads = [("environment", "CUDA_VISIBLE_DEVICES"), *[("sleep", 0.05)] * 150]
    outcomes: list[Outcome] = []
    waited: list[str] = []
    node: Any = None
    with Pool() as pool:

        def watch() -> bool:
            # Asked several times a second, in the driver's own thread.
            nonlocal node
            status = pool.status()[0]
            if node is None and status.unplaced:
                waited.append(status.waits_for)
                node = cluster.add_node(num_cpus=1, num_gpus=4, object_store_memory=80 * 2**20)
            if node and len(outcomes) > 30:
                cluster.remove_node(node, allow_graceful=False)
                cluster.add_node(num_cpus=1, num_gpus=4, object_store_memory=80 * 2**20)
                node = False
            return False

        for outcome in pool.run([service], ListSource(a=payloads), stop=watch):
            outcomes.append(outcome)
        deaths = pool.status()[0].deaths
    gpus = next(outcome.result["CUDA_VISIBLE_DEVICES"] for outcome in outcomes if outcome.task.key == 0)
    failed = [str(outcome.failure) for outcome in outcomes if outcome.failure]
    keys = sorted(outcome.task.key for outcome in outcomes)
    print(json.dumps({"waited": waited[0], "keys": keys, "failed": failed, "deaths": deaths, "gpus": gpus}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
