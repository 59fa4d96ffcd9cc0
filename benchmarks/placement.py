"""How long the planner takes: python benchmarks/placement.py

Mixed teachers and a 70 B student on 10 to 10,000 nodes of 8 GPUs, once when everything needed fits and once when something does not. The
last rows are hard cases: CPUs that run out before the GPUs, nodes that all differ, and sizes that do not divide each other.
"""

from __future__ import annotations

import time

from cluster.placement import Demand, place
from cluster.topology import Topology, parse_nodes


def mixture(nodes: int, student_nodes: int) -> list[Demand]:
    """Return demands in proportion to `nodes`; the student takes `student_nodes` whole nodes."""
    return [
        Demand("teacher 32b", nodes // 10, nodes // 3, 8, 16),
        Demand("teacher 14b", nodes // 10, nodes // 2, 4, 8),
        Demand("teacher 7b", nodes // 5, nodes, 2, 8),
        Demand("teacher 1.5b", nodes // 2, 4 * nodes, 1, 8),
        Demand("teacher 0.5b", nodes // 20, nodes // 2, 0.5, 2),
        Demand("student 70b", 8 * student_nodes, 8 * student_nodes, 1, 8, group=True, unit="rank"),
    ]


def measure(name: str, where: Topology, demands: list[Demand]) -> None:
    """Print one row: the best of three runs."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        placement = place(where, demands)
        seconds.append(time.perf_counter() - began)
    print(f"| {name} | {len(where.nodes):,} | {where.gpus:,} | {len(placement.seats):,} | {len(placement.missing)} | {min(seconds):.3f} |")


def main() -> None:
    """Print the table."""
    print("| case | nodes | GPUs | seats | demands that lack something | s |\n|---|---|---|---|---|---|")
    for nodes in (10, 100, 1_000, 10_000):
        where = parse_nodes(f"{nodes}x8x96")
        measure("fits", where, mixture(nodes, nodes // 15))
        measure("student too large", where, mixture(nodes, nodes))
    starved = [Demand("teacher 1.5b", 100, 8_000, 1, 2), Demand("teacher 0.5b", 100, 8_000, 0.5, 3)]
    measure("CPUs run out first", parse_nodes("1000x8x8"), starved)
    measure("CPUs run out first, nodes differ", parse_nodes(",".join(f"1x8x{8 + number}" for number in range(1000))), starved)
    for nodes in (100, 1_000):
        odd = [Demand("five", 100, 100, 5, 40), Demand("three", 100, 100, 3, 60), Demand("two", 90, 90, 2, 7)]
        measure("sizes 5, 3, 2 with binding CPUs", parse_nodes(f"{nodes}x8x96"), odd)
    measure("the same, nodes differ", parse_nodes(",".join(f"1x8x{90 + number % 17}" for number in range(100))), odd)


if __name__ == "__main__":
    main()
