"""The nodes of a live session."""

from cluster.config import ClusterSpec
from cluster.placement import Demand, place
from cluster.session import ray_session, topology_of


def test_a_live_session_says_which_nodes_it_has() -> None:
    spec = ClusterSpec(num_cpus=1, num_gpus=0)
    with ray_session(spec):
        found = topology_of(spec)
    assert found is not None
    assert [(node.cpus, node.gpus) for node in found.nodes] == [(1, 0)]
    assert found.nodes[0].memory_bytes > 0
    assert place(found, [Demand("t", 2, 2, 0, 1)]).missing
