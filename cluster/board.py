"""What is free on each node while a placement is made."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Mapping
from typing import Protocol

from cluster.topology import Node, Topology

# Shares of a GPU or CPU are counted in ten-thousandths, as Ray does: sums of floats would drift.
UNITS = 10_000
LEAST_SHARE = 1 / UNITS
_MANY = 10**15
# Whole free GPUs, free CPUs in units, labels.
_Class = tuple[int, int, tuple[tuple[str, str], ...]]


class Wish(Protocol):
    """What one replica wants of one node."""

    @property
    def gpus(self) -> float: ...
    @property
    def cpus(self) -> float: ...
    @property
    def labels(self) -> Mapping[str, str]: ...


class Board:
    """Free GPUs and CPUs, node by node (numbered as in the topology)."""

    def __init__(self, topology: Topology) -> None:
        self._nodes = topology.nodes
        self._shares = [[UNITS] * node.gpus for node in topology.nodes]
        self._cpus = [to_units(node.cpus) for node in topology.nodes]
        self._whole = [node.gpus for node in topology.nodes]
        self._started: set[int] = set()  # nodes with a GPU of which a share is taken and a share is free
        # Nodes that are alike, and the ways to be alike in ascending order: best fit takes the first that suffices.
        self._alike: dict[_Class, list[int]] = {}
        self._classes: list[_Class] = []
        for node in range(len(self._nodes)):
            self._enter(node)

    def __len__(self) -> int:
        return len(self._nodes)

    def whole(self, node: int) -> int:
        """Return the GPUs of which nothing is taken."""
        return self._whole[node]

    def cpus(self, node: int) -> float:
        """Return the free CPUs."""
        return self._cpus[node] / UNITS if self._cpus[node] < _MANY // 2 else math.inf

    def largest_share(self, node: int) -> float:
        """Return the largest free share of one GPU."""
        return max(self._shares[node], default=0) / UNITS

    def is_empty(self, node: int) -> bool:
        """Return whether nothing of the node is taken."""
        return self._whole[node] == self._nodes[node].gpus and self._cpus[node] == to_units(self._nodes[node].cpus)

    def is_eligible(self, node: int, wish: Wish) -> bool:
        """Return whether the node has the labels."""
        if not wish.labels:
            return True
        has = dict(_labels(self._nodes[node]))
        return all(has.get(key) == value for key, value in wish.labels.items())

    def fits_gpus(self, node: int, wish: Wish) -> bool:
        """Return whether the GPUs suffice."""
        if 0 < wish.gpus < 1:
            return any(free >= to_units(wish.gpus) for free in self._shares[node])
        return self._whole[node] >= wish.gpus

    def fits(self, node: int, wish: Wish) -> bool:
        """Return whether one replica finds room."""
        return self._cpus[node] >= to_units(wish.cpus) and self.fits_gpus(node, wish) and self.is_eligible(node, wish)

    def slots(self, node: int, wish: Wish) -> int:
        """Return how many replicas find room."""
        if not self.is_eligible(node, wish):
            return 0
        room = _MANY
        if wish.cpus:
            room = self._cpus[node] // to_units(wish.cpus)
        if 0 < wish.gpus < 1:
            room = min(room, sum(free // to_units(wish.gpus) for free in self._shares[node]))
        elif wish.gpus:
            room = min(room, self._whole[node] // int(wish.gpus))
        return room

    def best(self, wish: Wish) -> int | None:
        """Return the node with the fewest whole free GPUs, then the fewest free CPUs, that suffices; None: no room anywhere."""
        if 0 < wish.gpus < 1:
            started = self._tightest_started(wish)
            if started is not None:
                return started
        for place in range(bisect_left(self._classes, (math.ceil(wish.gpus),)), len(self._classes)):
            node = self._alike[self._classes[place]][0]
            if self.fits(node, wish):
                return node
        return None

    def take(self, node: int, wish: Wish) -> tuple[int, ...]:
        """Take what one replica wants; return its GPUs, the lowest free ones."""
        assert self.fits(node, wish), "no room on this node"
        self._leave(node)
        self._cpus[node] -= to_units(wish.cpus)
        shares = self._shares[node]
        if 0 < wish.gpus < 1:
            wanted = to_units(wish.gpus)
            gpu = min((number for number, free in enumerate(shares) if free >= wanted), key=lambda number: (shares[number], number))
            shares[gpu] -= wanted
            taken: tuple[int, ...] = (gpu,)
        else:
            taken = tuple([number for number, free in enumerate(shares) if free == UNITS][: int(wish.gpus)])
            for gpu in taken:
                shares[gpu] = 0
        self._whole[node] = shares.count(UNITS)
        self._enter(node)
        if 0 < wish.gpus < 1:
            (self._started.add if any(0 < free < UNITS for free in shares) else self._started.discard)(node)
        return taken

    def _tightest_started(self, wish: Wish) -> int | None:
        """Return the node with the smallest sufficient rest of a GPU that is shared already."""
        wanted, best = to_units(wish.gpus), None
        for node in sorted(self._started):
            rest = min((free for free in self._shares[node] if wanted <= free < UNITS), default=None)
            if rest is not None and (best is None or rest < best[0]) and self.fits(node, wish):
                best = rest, node
        return best[1] if best else None

    def _class_of(self, node: int) -> _Class:
        return self._whole[node], self._cpus[node], _labels(self._nodes[node])

    def _enter(self, node: int) -> None:
        key = self._class_of(node)
        if key not in self._alike:
            self._alike[key] = []
            insort(self._classes, key)
        insort(self._alike[key], node)

    def _leave(self, node: int) -> None:
        key = self._class_of(node)
        members = self._alike[key]
        del members[bisect_left(members, node)]
        if not members:
            del self._alike[key], self._classes[bisect_left(self._classes, key)]


def _labels(node: Node) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"gpu_kind": node.gpu_kind, **node.labels}.items()))


def to_units(number: float) -> int:
    """Return ten-thousandths, rounded; an infinite number becomes a very large one."""
    return _MANY if math.isinf(number) else round(number * UNITS)
