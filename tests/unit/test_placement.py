"""The planner: what it promises always holds, and when it says that something does not fit, nothing could have."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ClusterError
from cluster.feasibility import MOST_SEATS
from cluster.placement import Demand, Placement, place, ranges
from cluster.topology import Node, Topology, load_topology, parse_nodes


def topology(*nodes: tuple[int, float]) -> Topology:
    return Topology(tuple(Node(f"n{number}", cpus, gpus) for number, (gpus, cpus) in enumerate(nodes, 1)))


def check(where: Topology, demands: list[Demand], placement: Placement) -> None:
    """Assert what always holds, by counting."""
    nodes = {node.name: node for node in where.nodes}
    shares: Counter[tuple[str, int]] = Counter()
    cpus: Counter[str] = Counter()
    for demand in demands:
        seats = placement.of(demand.name)
        assert [seat.index for seat in seats] == list(range(len(seats)))
        assert len(seats) <= demand.maximum
        assert not demand.group or len(seats) in (0, demand.minimum)
        short = any(text.startswith(f"{demand.name}: ") for text in placement.missing)
        assert short == (len(seats) < demand.minimum)
        for seat in seats:
            assert len(set(seat.gpus)) == len(seat.gpus) == math.ceil(demand.gpus)
            assert all(0 <= gpu < nodes[seat.node].gpus for gpu in seat.gpus)
            shares.update(dict.fromkeys(((seat.node, gpu) for gpu in seat.gpus), round(min(1, demand.gpus) * 10_000)))
            cpus[seat.node] += round(demand.cpus * 10_000)
            has = {"gpu_kind": nodes[seat.node].gpu_kind, **nodes[seat.node].labels}
            assert demand.labels.items() <= has.items()
    assert all(share <= 10_000 for share in shares.values())
    assert all(used <= nodes[name].cpus * 10_000 for name, used in cpus.items())


def brute_force_fits(where: Topology, demands: list[Demand]) -> bool:
    """Try every node for every replica that is needed."""
    items = [demand for demand in demands for _ in range(demand.minimum)]
    for choice in itertools.product(range(len(where.nodes)), repeat=len(items)):
        gpus, cpus = [0.0] * len(where.nodes), [0.0] * len(where.nodes)
        for node, demand in zip(choice, items):
            gpus[node] += demand.gpus
            cpus[node] += demand.cpus
        if all(gpus[number] <= node.gpus and cpus[number] <= node.cpus for number, node in enumerate(where.nodes)) and all(
            demand.labels.get("gpu_kind", where.nodes[node].gpu_kind) == where.nodes[node].gpu_kind for node, demand in zip(choice, items)
        ):
            return True
    return False


def demands_of(rows: Sequence[tuple[int, int, float, float, bool, bool]]) -> list[Demand]:
    return [
        Demand(
            f"d{number}",
            minimum,
            minimum if group else minimum + extra,
            gpus,
            cpus,
            {"gpu_kind": "A"} if picky else {},
            group=group,
            unit="rank" if group else "replica",
        )
        for number, (minimum, extra, gpus, cpus, group, picky) in enumerate(rows)
    ]


NODES = st.lists(
    st.builds(lambda gpus, cpus, kind: (gpus, cpus, kind), st.integers(0, 8), st.integers(0, 6), st.sampled_from("AB")), max_size=3
)
ROWS = st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 5), st.integers(0, 3), st.booleans(), st.booleans())


@settings(max_examples=400, deadline=None)
@given(NODES, st.lists(ROWS, max_size=3))
def test_what_is_said_not_to_fit_fits_nowhere(nodes: list[tuple[int, int, str]], rows: list[tuple[int, int, int, int, bool, bool]]) -> None:
    where = Topology(tuple(Node(f"n{number}", cpus, gpus, kind) for number, (gpus, cpus, kind) in enumerate(nodes)))
    demands = demands_of(rows)
    placement = place(where, demands)
    check(where, demands, placement)
    assert (not placement.missing) == brute_force_fits(where, demands)
    assert not any("not every placement" in text for text in placement.missing)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 1.5, 16, math.inf])), max_size=12),
    st.lists(
        st.tuples(
            st.integers(0, 9),
            st.integers(0, 20),
            st.sampled_from([0, 0.25, 0.3, 0.5, 1, 2, 3, 4, 8]),
            st.sampled_from([0, 0.5, 1, 3]),
            st.booleans(),
        ),
        max_size=6,
    ),
)
def test_nothing_is_booked_twice_and_the_same_asks_give_the_same_seats(
    nodes: list[tuple[int, float]], rows: list[tuple[int, int, float, float, bool]]
) -> None:
    where, demands = topology(*nodes), demands_of([(*row, False) for row in rows])
    placement = place(where, demands)
    check(where, demands, placement)
    assert place(where, demands) == placement


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=6), st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, 2, 4, 8])), max_size=4)
)
def test_least_numbers_do_not_depend_on_what_others_would_take_besides(nodes: list[int], rows: list[tuple[int, int]]) -> None:
    where = topology(*((gpus, math.inf) for gpus in nodes))
    modest = [Demand(f"d{number}", minimum, minimum, gpus) for number, (minimum, gpus) in enumerate(rows)]
    greedy = [Demand(demand.name, demand.minimum, demand.minimum + 99, demand.gpus) for demand in modest]
    assert place(where, modest).missing == place(where, greedy).missing
    # And nobody goes without while there is room.
    free = {node.name: node.gpus for node in where.nodes}
    seats = place(where, greedy).seats
    for seat in seats:
        free[seat.node] -= len(seat.gpus)
    assert all(max(free.values()) < demand.gpus for demand in greedy if len([s for s in seats if s.demand == demand.name]) < demand.maximum)


def test_what_does_not_fit_is_said_in_gpus() -> None:
    where = topology((8, 96), (8, 96), (8, 96), (4, 96))
    placement = place(where, [Demand("teacher qwen-32b", 4, 4, 8, 8)])
    assert placement.missing == (
        "teacher qwen-32b: 3 of 4 replicas placed; 1 needs 8 GPUs and 8 CPUs on one node; the largest free block is 4 GPUs on node n4",
    )


@pytest.mark.parametrize(
    ("demand", "expected"),
    [
        (Demand("t", 3, 3, 4), "t: 2 of 3 replicas placed; 1 needs 4 GPUs on one node; the largest free block is 0 GPUs on node n1"),
        (
            Demand("t", 2, 2, 1, 20),
            "t: 0 of 2 replicas placed; 2 need 1 GPU and 20 CPUs each, on one node; the most free CPUs beside such a block are 16",
        ),
        (Demand("t", 1, 1, 0, 20), "t: 0 of 1 replica placed; 1 needs 20 CPUs on one node; the most free CPUs are 16 on node n1"),
        (Demand("t", 1, 1, 1, 0, {"gpu_kind": "H100"}), "t: 0 of 1 replica placed; no node has gpu_kind=H100"),
        (
            Demand("s", 9, 9, 1, 1, group=True, unit="rank"),
            "s: 0 of 9 ranks placed; all of them need 9 GPUs and 9 CPUs; 8 GPUs are free, with room for 8 ranks",
        ),
        (Demand("s", 99, 99, 0, 1, group=True, unit="rank"), "s: 0 of 99 ranks placed; each needs 1 CPU; there is room for 32"),
        (
            Demand("t", 17, 17, 0.5),
            "t: 16 of 17 replicas placed; 1 needs 0.5 GPUs on one node; the largest free block is 0 GPUs on node n1",
        ),
    ],
)
def test_every_lack_names_its_cause(demand: Demand, expected: str) -> None:
    assert place(topology((4, 16), (4, 16)), [demand]).missing[0].startswith(expected)


def test_without_nodes_nothing_fits() -> None:
    assert place(Topology(()), [Demand("t", 1, 1, 1)]).missing == ("t: 0 of 1 replica placed; there are no nodes",)


def test_a_training_takes_whole_nodes_and_leaves_the_started_one_to_small_replicas() -> None:
    placement = place(
        topology((8, 99), (8, 99), (8, 99)), [Demand("small", 2, 2, 1), Demand("student", 16, 16, 1, group=True, unit="rank")]
    )
    assert Counter(seat.node for seat in placement.of("student")) == {"n1": 8, "n2": 8}
    assert {seat.node for seat in placement.of("small")} == {"n3"}
    assert [seat.index for seat in placement.of("student") if seat.node == "n1"] == list(range(8))


def test_small_replicas_leave_large_blocks_whole() -> None:
    placement = place(topology((8, 99), (8, 99), (2, 99)), [Demand("small", 1, 4, 1), Demand("large", 1, 2, 8)])
    assert len(placement.of("large")) == 2
    assert {seat.node for seat in placement.of("small")} == {"n3"}


def test_best_fit_alone_is_not_trusted_for_sizes_that_do_not_divide_each_other() -> None:
    # Best fit puts 3 beside 5 wrongly: 4+4 and 3+3+2 is the only way for nodes of 8.
    demands = [Demand("four", 2, 2, 4), Demand("three", 2, 2, 3), Demand("two", 1, 1, 2)]
    assert not place(topology((8, 99), (8, 99)), demands).missing
    # CPUs spoil best fit too: the replica with many CPUs and the GPUs of the other have to cross.
    crossed = [Demand("a", 1, 1, 2, 1), Demand("b", 1, 1, 1, 8)]
    assert not place(topology((2, 8), (2, 1)), crossed).missing


def test_a_search_that_gives_up_says_so() -> None:
    many = [Demand("three", MOST_SEATS, MOST_SEATS, 3, 1), Demand("two", 100, 100, 2, 3)]
    where = topology(*[(8, 3)] * 174)
    assert any("not every placement was tried" in text for text in place(where, many).missing)


def test_a_thousand_nodes_are_planned_in_two_seconds() -> None:
    where = parse_nodes("1000x8x96")
    demands = [
        Demand("teacher 32b", 100, 300, 8, 16),
        Demand("teacher 14b", 100, 400, 4, 8),
        Demand("teacher 7b", 200, 900, 2, 8),
        Demand("teacher 1.5b", 500, 4000, 1, 8),
        Demand("teacher 0.5b", 50, 500, 0.5, 2),
        Demand("student 70b", 512, 512, 1, 8, group=True, unit="rank"),
    ]
    began = time.perf_counter()
    placement = place(where, demands)
    assert time.perf_counter() - began < 2
    check(where, demands, placement)
    assert not placement.missing
    assert len({seat.node for seat in placement.of("student 70b")}) == 64


TEACHERS = st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(0, 1500), st.integers(0, 500)), min_size=2, max_size=6)


@settings(max_examples=25, deadline=None)
@given(TEACHERS, st.integers(1, 1024), st.booleans())
def test_a_thousand_nodes_hold_whatever_mixture_has_room_and_lacks_are_said_in_gpus(
    rows: list[tuple[int, int, int]], nodes_of_student: int, greedy: bool
) -> None:
    where = parse_nodes("1000x8")
    demands = [
        *(Demand(f"teacher {n}", least, least + more * greedy, gpus) for n, (gpus, least, more) in enumerate(rows)),
        Demand("student 70b", 8 * nodes_of_student, 8 * nodes_of_student, 1, group=True, unit="rank"),
    ]
    began = time.process_time()  # by the clock: the test above
    placement = place(where, demands)
    assert time.process_time() - began < 2
    check(where, demands, placement)  # nothing booked twice, each replica with all its GPUs on one node
    # Sizes that divide 8 fill nodes of 8 without a rest: the sum alone decides.
    assert (not placement.missing) == (sum(demand.minimum * demand.gpus for demand in demands) <= where.gpus)
    free = Counter({node.name: node.gpus for node in where.nodes})
    for seat in placement.seats:
        free[seat.node] -= len(seat.gpus)
    for text in placement.missing:
        demand = next(each for each in demands if text.startswith(f"{each.name}: "))
        placed = len(placement.of(demand.name))
        assert text.startswith(f"{demand.name}: {placed} of {demand.minimum} {demand.unit}{'' if demand.minimum == 1 else 's'} placed; ")
        if demand.group:
            assert f"all of them need {demand.minimum} GPUs; " in text
            assert sum(free.values()) < demand.minimum
        else:
            lacking, needs = demand.minimum - placed, f"{demand.gpus:g} GPU{'' if demand.gpus == 1 else 's'}"
            assert f"; {lacking} {'needs' if lacking == 1 else 'need'} {needs} " in text
            assert max(free.values()) < demand.gpus
            largest, node = re.findall(r"the largest free block is (\d+) GPUs? on node (\w+)", text)[0]
            assert greedy or free[node] == int(largest) == max(free.values())


def test_a_fraction_above_one_gpu_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"t: 1.5 GPUs for a replica; give a whole number, or a share below 1"):
        Demand("t", 1, 1, 1.5)


def test_nodes_are_read_from_short_text() -> None:
    found = parse_nodes("2x8x96, 1x4")
    assert [(node.name, node.gpus, node.cpus) for node in found.nodes] == [("n1", 8, 96), ("n2", 8, 96), ("n3", 4, math.inf)]
    assert found.gpus == 20


@pytest.mark.parametrize("text", ["", "8", "4x", "4y8", "0x8", "200000x1", "-1x8", "4x8x"])
def test_other_short_text_is_refused(text: str) -> None:
    with pytest.raises(ClusterError, match="NODESxGPUS"):
        parse_nodes(text)


def test_a_topology_file_describes_nodes(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "nodes:\n"
        "- {name: a, count: 2, gpus: 8, cpus: 96, gpu_kind: H100, memory_gb: 1000, labels: {rack: 7}}\n"
        "- {name: b, gpus: 0, cpus: 16}\n"
    )
    found = load_topology(path)
    assert [node.name for node in found.nodes] == ["a1", "a2", "b"]
    assert found.nodes[0].describe() == "8 GPUs (H100), 96 CPUs, 1,000 GB, rack=7"
    assert found.nodes[2].describe() == "0 GPUs, 16 CPUs"
    assert place(found, [Demand("t", 2, 2, 8, 1, {"rack": "7"})]).missing == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: [", "cannot read topology"),
        ("[]", "has no list `nodes`"),
        ("nodes: []", "has no list `nodes`"),
        ("nodes: [7]", "nodes.0 is 7, not a mapping"),
        ("nodes: [{gpus: 8, cpu: 9}]", "nodes.0: unknown key 'cpu'; allowed: count, cpus"),
        ("nodes: [{gpus: 8}]", "nodes.0: cpus is None; give a number"),
        ("nodes: [{gpus: many, cpus: 1}]", "nodes.0: gpus is 'many'"),
        ("nodes: [{gpus: 1.5, cpus: 1}]", "nodes.0: gpus=1.5, count=1; give whole GPUs"),
        ("nodes: [{gpus: .inf, cpus: 1}]", "nodes.0: gpus is inf; give a number from 0 to"),
        ("nodes: [{gpus: 1, cpus: .nan}]", "nodes.0: cpus is nan"),
        ("nodes: [{gpus: 1, cpus: 1, memory_gb: .inf}]", "nodes.0: memory_gb is inf"),
        ("nodes: [{gpus: 1, cpus: 1, count: 2.7}]", "nodes.0: gpus=1, count=2.7; give whole GPUs, and a count of 1 to"),
        ("nodes: [{gpus: 1, cpus: 1, count: 0}]", "give whole GPUs, and a count of 1 to"),
        ("nodes: [{gpus: 1, cpus: 1, labels: [a]}]", "labels is \\['a'\\]; give a mapping"),
        ("nodes: [{name: a, gpus: 1, cpus: 1}, {name: a, gpus: 1, cpus: 1}]", "more than one node is called 'a'"),
    ],
)
def test_a_topology_file_that_says_other_things_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ClusterError, match=message):
        load_topology(path)


@pytest.mark.parametrize("asked", [{"gpus": 0.00001}, {"cpus": 0.00001}, {"cpus": math.nan}, {"gpus": -1}, {"gpus": math.inf}])
def test_what_no_node_can_give_is_refused_with_the_demand_named(asked: dict[str, float]) -> None:
    with pytest.raises(ClusterError, match=r"t: \S+ [CG]PUs for a replica; give 0, or a number from 0\.0001 on"):
        Demand("t", 1, 1, **asked)  # type: ignore[arg-type]


def test_a_missing_topology_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"cannot read topology .*none.yaml"):
        load_topology(tmp_path / "none.yaml")


def test_ranges_are_short() -> None:
    assert ranges([0, 1, 2, 5]) == "0-2, 5"
    assert ranges([]) == ""
