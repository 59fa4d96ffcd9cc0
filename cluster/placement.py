"""Who gets which GPU: a pure planner. The same topology and demands always give the same seats.

Invariants: no GPU and no CPU is given twice; a replica, or a rank, is on one node; the least replicas of every demand come before further
replicas of any. Seats are found by best fit, largest first, which leaves large blocks whole: for GPUs in sizes that divide each other
(1, 2, 4, 8) it finds a placement whenever there is one (each larger seat takes the same number of smaller ones wherever it is). When it
finds none for other sizes, or because of CPUs, a search over all placements decides (feasibility.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from cluster.board import LEAST_SHARE, Board
from cluster.errors import ClusterError
from cluster.feasibility import find_placement
from cluster.topology import Topology

# The seats of a demand while they are given out: (node, its GPUs).
Taken = list[tuple[int, tuple[int, ...]]]


@dataclass(frozen=True)
class Demand:
    """`minimum` to `maximum` replicas, each with `gpus` and `cpus` on one node that has all `labels` (`gpu_kind` is one of them).

    `gpus` is whole, or a share of one GPU below 1. A `group` is all or nothing (the ranks of a training) and is packed onto whole nodes
    where possible; `unit` is what one of it is called.
    """

    name: str
    minimum: int
    maximum: int
    gpus: float = 0
    cpus: float = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    group: bool = False
    unit: str = "replica"

    def __post_init__(self) -> None:
        for number, unit in ((self.gpus, "GPUs"), (self.cpus, "CPUs")):
            if number != 0 and not LEAST_SHARE <= number < math.inf:
                raise ClusterError(f"{self.name}: {number:g} {unit} for a {self.unit}; give 0, or a number from {LEAST_SHARE:g} on")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ClusterError(f"{self.name}: {self.gpus:g} GPUs for a {self.unit}; give a whole number, or a share below 1")
        assert 0 <= self.minimum <= self.maximum
        assert not self.group or self.minimum == self.maximum


@dataclass(frozen=True)
class Seat:
    """Replica (or rank) `index` of a demand on `node`, with these GPUs of it; `gpus` is one GPU for a share of it, none for CPU alone."""

    demand: str
    index: int
    node: str
    gpus: tuple[int, ...]


@dataclass(frozen=True)
class Placement:
    """The seats, by demand and index, and one sentence for each demand whose least number did not find room."""

    seats: tuple[Seat, ...]
    missing: tuple[str, ...]

    def of(self, demand: str) -> tuple[Seat, ...]:
        """Return the seats of one demand."""
        return tuple(seat for seat in self.seats if seat.demand == demand)


def place(topology: Topology, demands: Sequence[Demand]) -> Placement:
    """Place demands that run side by side. What runs one after the other is placed by one call each."""
    assert len({demand.name for demand in demands}) == len(demands), "two demands have the same name"
    board = Board(topology)
    needed = [demand for demand in sorted(demands, key=_largest_first) if demand.minimum]
    taken = {demand.name: _place_least(board, demand) for demand in needed}
    searched = True
    if any(len(taken[demand.name]) < demand.minimum for demand in needed):
        found, searched = find_placement(topology, [(demand, demand.minimum) for demand in needed])
        if found is not None:
            board = Board(topology)
            taken = {demand.name: [(node, board.take(node, demand)) for node in found[demand.name]] for demand in needed}
    missing = tuple(
        _missing(board, topology, demand, len(taken[demand.name]), searched)
        for demand in demands
        if demand.minimum and len(taken[demand.name]) < demand.minimum
    )
    _place_more(board, sorted(demands, key=_largest_first), taken)
    seats = [
        Seat(demand.name, index, topology.nodes[node].name, gpus)
        for demand in demands
        for index, (node, gpus) in enumerate(taken.get(demand.name, []))
    ]
    return Placement(tuple(seats), missing)


def _largest_first(demand: Demand) -> tuple[float, float, bool]:
    return -demand.gpus, -demand.cpus, not demand.group


def _place_least(board: Board, demand: Demand) -> Taken:
    if demand.group:
        return _place_group(board, demand)
    seats: Taken = []
    while len(seats) < demand.minimum and (node := board.best(demand)) is not None:
        seats.append((node, board.take(node, demand)))
    return seats


def _place_group(board: Board, demand: Demand) -> Taken:
    """Fill whole free nodes, the roomiest first; what is left over goes where it fits most tightly. Empty when not all of it fits."""
    slots = {node: room for node in range(len(board)) if (room := board.slots(node, demand))}
    left = demand.minimum
    if sum(slots.values()) < left:
        return []
    chosen: list[tuple[int, int]] = []
    for node in sorted((node for node in slots if board.is_empty(node)), key=lambda node: (-slots[node], node)):
        if slots[node] <= left:
            chosen.append((node, slots.pop(node)))
            left -= chosen[-1][1]
    while left:
        enough = [node for node in slots if slots[node] >= left]
        node = min(enough, key=lambda node: (slots[node], node)) if enough else max(slots, key=lambda node: (slots[node], -node))
        chosen.append((node, min(left, slots.pop(node))))
        left -= chosen[-1][1]
    return [(node, board.take(node, demand)) for node, number in sorted(chosen) for _ in range(number)]


def _place_more(board: Board, demands: Sequence[Demand], taken: dict[str, Taken]) -> None:
    """Give one more to each demand in turn, until nobody wants or finds one."""
    wanting = [demand for demand in demands if not demand.group]
    while wanting:
        still = []
        for demand in wanting:
            seats = taken.setdefault(demand.name, [])
            node = board.best(demand) if len(seats) < demand.maximum else None
            if node is not None:
                seats.append((node, board.take(node, demand)))
                still.append(demand)
        wanting = still


def _missing(board: Board, topology: Topology, demand: Demand, placed: int, searched: bool) -> str:
    """Say in GPUs (or CPUs) what a demand lacks."""
    lacking = demand.minimum - placed
    needs = _resources(demand.gpus, demand.cpus)
    head = f"{demand.name}: {placed} of {_count(demand.minimum, demand.unit)} placed; "
    eligible = [node for node in range(len(board)) if board.is_eligible(node, demand)]
    if not eligible:
        wanted = ", ".join(f"{key}={value}" for key, value in sorted(demand.labels.items()))
        return head + (f"no node has {wanted}" if wanted else "there are no nodes")
    if demand.group:
        room = sum(board.slots(node, demand) for node in eligible)
        if demand.gpus:
            whole = sum(board.whole(node) for node in eligible)
            total = _resources(demand.gpus * demand.minimum, demand.cpus * demand.minimum)
            text = f"all of them need {total}; {_count(whole, 'GPU')} are free, with room for {_count(room, demand.unit)}"
        else:
            text = f"each needs {needs}; there is room for {room}"
    else:
        one = lacking == 1
        text = f"{lacking} {'needs' if one else 'need'} {needs} {'' if one else 'each, '}on one node; "
        text += _largest(board, topology, demand, eligible)
    return head + text + ("" if searched else " (not every placement was tried)")


def _largest(board: Board, topology: Topology, demand: Demand, eligible: list[int]) -> str:
    """Say how large the largest free block is, in what the demand lacks."""
    if 0 < demand.gpus < 1:
        node = max(eligible, key=lambda node: (board.largest_share(node), -node))
        free, unit = board.largest_share(node), "GPU"
    else:
        node = max(eligible, key=lambda node: (board.whole(node), board.cpus(node), -node))
        free, unit = board.whole(node), "GPU"
    if free >= demand.gpus:
        enough = [node for node in eligible if board.fits_gpus(node, demand)]
        node = max(enough, key=lambda node: (board.cpus(node), -node))
        where = "" if not demand.gpus else " beside such a block"
        return f"the most free CPUs{where} are {board.cpus(node):g} on node {topology.nodes[node].name}"
    return f"the largest free block is {_count(free, unit)} on node {topology.nodes[node].name}"


def _resources(gpus: float, cpus: float) -> str:
    return " and ".join(_count(number, unit) for number, unit in ((gpus, "GPU"), (cpus, "CPU")) if number) or "nothing"


def _count(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text: "0-3, 6"."""
    runs = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        runs.append(f"{members[0]}-{members[-1]}" if len(members) > 1 else str(members[0]))
    return ", ".join(runs)
