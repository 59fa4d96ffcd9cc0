"""Which machines there are: nodes with processors and GPUs. Plain data; `cluster.session.topology_of(spec)` gives a session's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError

_GROUP = re.compile(r"(\d+)x(\d+)(?:x(\d+))?")
_KEYS = {"name", "count", "cpus", "gpus", "gpu_kind", "memory_gb", "labels"}
_MOST_NODES = 100_000
# Of anything in one node.
_MOST = 1_000_000


@dataclass(frozen=True)
class Node:
    """One machine. `cpus` may be infinite (not known); `memory_bytes` 0 is not known; `labels` are whatever the site calls them."""

    name: str
    cpus: float
    gpus: int
    gpu_kind: str = ""
    memory_bytes: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Return "8 GPUs (H100), 96 CPUs, 1,000 GB"; what is not known is left out."""
        parts = [
            f"{self.gpus} GPU{'' if self.gpus == 1 else 's'}" + (f" ({self.gpu_kind})" if self.gpu_kind else ""),
            "" if math.isinf(self.cpus) else f"{self.cpus:g} CPU{'' if self.cpus == 1 else 's'}",
            f"{self.memory_bytes / 1e9:,.0f} GB" if self.memory_bytes else "",
            *(f"{key}={value}" for key, value in sorted(self.labels.items())),
        ]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Topology:
    """The nodes of a cluster, in an order that placement follows. Names differ."""

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        names = [node.name for node in self.nodes]
        assert len(set(names)) == len(names), "two nodes have the same name"

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return sum(node.gpus for node in self.nodes)


def parse_nodes(text: str) -> Topology:
    """Return the nodes of "4x8" (4 nodes of 8 GPUs), "4x8x96" (and 96 CPUs each), or several such groups with commas between.

    Without a number of CPUs they are taken to be enough. Raises ClusterError for anything else.
    """
    nodes: list[Node] = []
    for part in text.split(","):
        found = _GROUP.fullmatch(part.strip())
        if found is None or not 0 < int(found[1]) <= _MOST_NODES - len(nodes):
            raise ClusterError(
                f"nodes {text!r}: {part.strip()!r} is not NODESxGPUS or NODESxGPUSxCPUS, for example 4x8x96 (4 nodes with 8 GPUs and 96 "
                f"CPUs each), of at most {_MOST_NODES:,} nodes"
            )
        cpus = float(found[3]) if found[3] else math.inf
        first = len(nodes) + 1
        nodes.extend(Node(f"n{number}", cpus, int(found[2])) for number in range(first, first + int(found[1])))
    return Topology(tuple(nodes))


def load_topology(path: Path) -> Topology:
    """Read a YAML file: `nodes:` is a list of {name, cpus, gpus, gpu_kind, memory_gb, labels, count}, `gpus` and `cpus` being needed.

    With `count` the name is a stem: "a" with count 2 makes a1 and a2. Raises ClusterError for a file that cannot be read or says other
    things.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClusterError(f"cannot read topology {path}: {' '.join(str(error).split())}; give a YAML file with a list `nodes`") from error
    entries = values.get("nodes") if isinstance(values, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ClusterError(f"{path} has no list `nodes`; write for example `nodes: [{{name: a, gpus: 8, cpus: 96, count: 4}}]`")
    nodes = [node for number, entry in enumerate(entries) for node in _nodes_of(entry, f"{path}: nodes.{number}")]
    names = [node.name for node in nodes]
    double = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if double is not None:
        raise ClusterError(f"{path}: more than one node is called {double!r}; give every node a name of its own")
    return Topology(tuple(nodes))


def _nodes_of(entry: Any, where: str) -> list[Node]:
    if not isinstance(entry, dict):
        raise ClusterError(f"{where} is {entry!r}, not a mapping; allowed keys: {', '.join(sorted(_KEYS))}")
    unknown = sorted(set(map(str, entry)) - _KEYS)
    if unknown:
        raise ClusterError(f"{where}: unknown key {unknown[0]!r}; allowed: {', '.join(sorted(_KEYS))}")
    name = str(entry.get("name", "n"))
    count = _number(entry, "count", where, 1)
    gpus, cpus, memory = (_number(entry, key, where, default) for key, default in (("gpus", None), ("cpus", None), ("memory_gb", 0)))
    if gpus != int(gpus) or count != int(count) or not 0 < count <= _MOST_NODES:
        raise ClusterError(f"{where}: gpus={gpus:g}, count={count:g}; give whole GPUs, and a count of 1 to {_MOST_NODES:,}")
    labels = entry.get("labels") or {}
    if not isinstance(labels, dict):
        raise ClusterError(f"{where}: labels is {labels!r}; give a mapping of names to values")
    texts = {str(key): str(value) for key, value in labels.items()}
    names = [f"{name}{number}" for number in range(1, int(count) + 1)] if count > 1 or "name" not in entry else [name]
    return [Node(each, cpus, int(gpus), str(entry.get("gpu_kind", "")), int(memory * 1e9), texts) for each in names]


def _number(entry: dict[str, Any], key: str, where: str, default: float | None) -> float:
    value = entry.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MOST:
        raise ClusterError(f"{where}: {key} is {value!r}; give a number from 0 to {_MOST:,}")
    return float(value)
