"""Is there any placement at all? A search over everything that differs, for when best fit finds none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from cluster.board import UNITS, Board, Wish, to_units
from cluster.topology import Topology

# A node as the search sees it: which demands may use it, its free GPUs, its free CPUs in units. Equal nodes are one.
Kind = tuple[tuple[bool, ...], int, int]

MOST_SEATS = 300
MOST_WORK = 100_000


class Wanted(Wish, Protocol):
    """A wish with a name."""

    @property
    def name(self) -> str: ...


def find_placement(topology: Topology, demands: Sequence[tuple[Wanted, int]]) -> tuple[dict[str, list[int]] | None, bool]:
    """Return the nodes of each demand's replicas, or None when none were found; and whether that is certain.

    `demands` are (demand, number of replicas), the largest first. Nodes with the same things free are interchangeable, and so are replicas
    of one demand. The search gives up (None, False) on more than 300 replicas, on shares of a GPU, and when there is too much to try.
    """
    kinds = _kinds(topology, demands)
    if any(sum(_room(kind, number, wanted) for kind in kinds) < count for number, (wanted, count) in enumerate(demands)):
        return None, True
    if sum(wanted.gpus * count for wanted, count in demands) > topology.gpus:
        return None, True
    items = [number for number, (_, count) in enumerate(demands) for _ in range(count)]
    if len(items) > MOST_SEATS or any(0 < wanted.gpus < 1 for wanted, _ in demands):
        return None, False
    search = _Search([wanted for wanted, _ in demands], items)
    path = search.run(Counter(kinds))
    if path is None:
        return None, search.work <= MOST_WORK
    found: dict[str, list[int]] = {wanted.name: [] for wanted, _ in demands}
    for number, kind in zip(items, path, strict=True):
        node = kinds.index(kind)
        kinds[node] = _after(kind, search.wanted[number])
        found[search.wanted[number].name].append(node)
    return {name: sorted(nodes) for name, nodes in found.items()}, True


class _Search:
    """Depth first over the items, largest first; what failed once with the same rest is not tried again."""

    def __init__(self, wanted: Sequence[Wanted], items: Sequence[int]) -> None:
        self.wanted = wanted
        self.work = 0
        self._items = items
        self._failed: set[tuple[int, frozenset[tuple[Kind, int]]]] = set()

    def run(self, nodes: Counter[Kind], depth: int = 0) -> list[Kind] | None:
        """Return the kind of node that each item from `depth` on takes, or None."""
        if depth == len(self._items):
            return []
        self.work += len(nodes)
        key = depth, frozenset(nodes.items())
        if self.work > MOST_WORK or key in self._failed:
            return None
        number = self._items[depth]
        wanted = self.wanted[number]
        for kind in sorted(kind for kind in nodes if _room(kind, number, wanted)):
            rest = self.run(_moved(nodes, kind, _after(kind, wanted)), depth + 1)
            if rest is not None:
                return [kind, *rest]
        self._failed.add(key)
        return None


def _kinds(topology: Topology, demands: Sequence[tuple[Wanted, int]]) -> list[Kind]:
    board = Board(topology)
    return [
        (tuple(board.is_eligible(number, wanted) for wanted, _ in demands), node.gpus, to_units(node.cpus))
        for number, node in enumerate(topology.nodes)
    ]


def _room(kind: Kind, number: int, wanted: Wanted) -> int:
    allowed, gpus, cpus = kind
    if not allowed[number]:
        return 0
    room = UNITS
    if 0 < wanted.gpus < 1:
        room = gpus * (UNITS // to_units(wanted.gpus))
    elif wanted.gpus:
        room = gpus // int(wanted.gpus)
    return min(room, cpus // to_units(wanted.cpus)) if wanted.cpus else room


def _after(kind: Kind, wanted: Wanted) -> Kind:
    return kind[0], kind[1] - int(wanted.gpus), kind[2] - to_units(wanted.cpus)


def _moved(nodes: Counter[Kind], before: Kind, after: Kind) -> Counter[Kind]:
    moved = Counter(nodes)
    moved[before] -= 1
    if not moved[before]:
        del moved[before]
    moved[after] += 1
    return moved
