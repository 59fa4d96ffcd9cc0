"""The nodes of a live session."""

from cluster.config import ClusterSpec
from cluster.placement import Demand, place
from cluster.session import topology_of


def test_a_live_session_says_which_nodes_it_has(ray_cluster: ClusterSpec) -> None:
    found = topology_of(ray_cluster)
    assert found is not None
    assert [(node.cpus, node.gpus) for node in found.nodes] == [(2, 0)]
    assert found.nodes[0].memory_bytes > 0
    assert place(found, [Demand("t", 3, 3, 0, 1)]).missing
