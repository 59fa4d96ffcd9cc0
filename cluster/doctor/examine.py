"""The doctor's round: asks all nodes at the same time, one question after another, and hands what they say to the checks.

A node that does not answer one question is not asked the next; that it did not is a finding. Needs a Ray session.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cluster.doctor.bandwidth import BandwidthLimits, RankReport, RankTask, run_rank, tournament
from cluster.doctor.canary import CanaryTask, FolderFacts, Sighting, look_for_canaries, remove_canaries, write_canary
from cluster.doctor.check_machines import Skew, check_clocks, check_gpus, check_limits, check_paths, check_versions
from cluster.doctor.check_shared import check_adapters, check_folder, check_host_names, check_reach, check_speed
from cluster.doctor.facts import NodeFacts, WantedPath
from cluster.doctor.findings import Finding
from cluster.doctor.machine import look_at_node, look_at_path, read_clock
from cluster.doctor.mesh import Peer, Reached, meet, mesh_tasks
from cluster.ray_nodes import NodeAnswer, RayNode, alive_nodes, on_nodes

Argument = TypeVar("Argument")
Result = TypeVar("Result")

CLOCK_READINGS = 5


@dataclass(frozen=True)
class Question:
    """What is to be looked at. `folder` None: no shared folder. Each question to the nodes takes at most `timeout_s`.

    The measurement of bandwidth takes at most twice `limits.timeout_s` (3 minutes), as its ranks have to start.
    """

    wanted: tuple[WantedPath, ...] = ()
    folder: str | None = None
    bandwidth: bool = True
    limits: BandwidthLimits = field(default_factory=BandwidthLimits)
    timeout_s: float = 60.0
    canary_deadline_s: float = 10.0
    mesh_deadline_s: float = 10.0


@dataclass
class Examination:
    """Everything that was found, by node's name (ranks by number); `ranks` are the nodes of the ranks."""

    nodes: dict[str, NodeFacts] = field(default_factory=dict)
    skews: dict[str, Skew] = field(default_factory=dict)
    folder: dict[str, FolderFacts] = field(default_factory=dict)
    sightings: dict[str, Sighting] = field(default_factory=dict)
    reached: dict[str, tuple[Reached, ...]] = field(default_factory=dict)
    ranks: list[str] = field(default_factory=list)
    reports: dict[int, RankReport] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return dataclasses.asdict(self)


class _Round:
    """The nodes that still answer, and those that did not with their reason."""

    def __init__(self, nodes: Sequence[RayNode], timeout_s: float, say: Callable[[str], None]) -> None:
        self.nodes = list(nodes)
        self.lost: dict[str, str] = {}
        self._timeout_s = timeout_s
        self._say = say
        self._asked = ""

    def ask(self, what: str, function: Callable[[Argument], Result], arguments: Sequence[Argument]) -> dict[str, NodeAnswer[Result]]:
        """Ask every node that is left with its own argument; return the answers that came, by node's name."""
        if what != self._asked:
            self._say(f"{what}: {len(self.nodes)} node{'' if len(self.nodes) == 1 else 's'}")
        self._asked = what
        answers = on_nodes(function, list(zip(self.nodes, arguments, strict=True)), timeout_s=self._timeout_s)
        self.lost |= {answer.node.name: f"{what}: {answer.error}" for answer in answers if answer.error is not None}
        self.nodes = [node for node in self.nodes if node.name not in self.lost]
        return {answer.node.name: answer for answer in answers if answer.error is None}

    def values(self, what: str, function: Callable[[Argument], Result], arguments: Sequence[Argument]) -> dict[str, Result]:
        """The same without the times."""
        return {name: answer.value for name, answer in self.ask(what, function, arguments).items() if answer.value is not None}


def examine(
    question: Question,
    say: Callable[[str], None],
    rank_function: Callable[[RankTask], RankReport] = run_rank,
) -> Examination:
    """Look at all nodes of the session's cluster. `say` is told what is being asked; `rank_function` is what measures bandwidth."""
    found = Examination()
    nodes = alive_nodes()
    told = {node.name: node.gpus for node in nodes}
    round_ = _Round(nodes, question.timeout_s, say)
    found.nodes = round_.values("facts", look_at_node, [question.wanted] * len(nodes))
    found.skews = _read_clocks(round_)
    if question.folder is not None:
        _fly_canaries(round_, question.folder, question, found)
    round_.nodes = [node for node in round_.nodes if found.nodes[node.name].machine.free_ports]  # of the others check_limits tells
    peers = [Peer(node.name, node.address, found.nodes[node.name].machine.free_ports[0]) for node in round_.nodes]
    if len(peers) > 1:
        found.reached = round_.values("ports", meet, mesh_tasks(peers, question.mesh_deadline_s))
    if question.bandwidth:
        _measure(round_, question.limits, found, rank_function, say)
    found.findings = [*_answered(nodes, round_.lost), *_check(question, found, told)]
    return found


def _read_clocks(round_: _Round) -> dict[str, Skew]:
    """Read each clock a few times; the quickest answer says most."""
    best: dict[str, Skew] = {}
    for _ in range(CLOCK_READINGS):
        for name, answer in round_.ask("clocks", read_clock, [None] * len(round_.nodes)).items():
            assert answer.value is not None
            middle, error_s = (answer.asked_at + answer.answered_at) / 2, (answer.answered_at - answer.asked_at) / 2
            if name not in best or error_s < best[name].error_s:
                best[name] = Skew(answer.value - middle, error_s)
    return best


def _fly_canaries(round_: _Round, folder: str, question: Question, found: Examination) -> None:
    token = secrets.token_hex(4)

    def tasks() -> list[CanaryTask]:
        ids = [node.id for node in round_.nodes]
        return [CanaryTask(folder, token, each, tuple(other for other in ids if other != each), question.canary_deadline_s) for each in ids]

    try:
        found.folder = round_.values("shared folder", write_canary, tasks())
        names = {node.id: node.name for node in round_.nodes}
        sightings = round_.values("canaries", look_for_canaries, tasks())
        found.sightings = {
            name: dataclasses.replace(sighting, unseen=tuple(names[each] for each in sighting.unseen))
            for name, sighting in sightings.items()
        }
        round_.ask("cleaning", remove_canaries, tasks())  # on every node, as the folder may not be the same
    finally:
        remove_canaries(CanaryTask(folder, token, "", (), 0))


def _measure(
    round_: _Round,
    limits: BandwidthLimits,
    found: Examination,
    rank_function: Callable[[RankTask], RankReport],
    say: Callable[[str], None],
) -> None:
    """One rank a GPU with NCCL when there are GPUs that both Ray and the driver know, otherwise one rank a node with gloo."""
    gpus = {node.id: min(node.gpus, len(found.nodes[node.name].gpus.gpus)) for node in round_.nodes}
    nccl = any(gpus.values())
    ranks = [node for node in round_.nodes for _ in range(gpus[node.id] if nccl else 1)]
    if len(ranks) < 2:
        return
    ports = found.nodes[ranks[0].name].machine.free_ports
    if len(ports) < 2:
        say(f"bandwidth: not measured, as {ranks[0].name} has no second free port")
        return
    say(f"bandwidth: {len(ranks)} ranks, {'NCCL' if nccl else 'gloo'}")
    leaders = [rank for rank, node in enumerate(ranks) if rank == 0 or ranks[rank - 1].id != node.id]
    own: dict[int, list[tuple[int, int]]] = {rank: [] for rank in range(len(ranks))}
    for pair in (pair for each in tournament(leaders, limits.num_rounds) for pair in each):
        for rank in pair:
            own[rank].append(pair)
    tasks = [
        RankTask("nccl" if nccl else "gloo", rank, len(ranks), node.address, ranks[0].address, ports[1], tuple(own[rank]), limits)
        for rank, node in enumerate(ranks)
    ]
    answers = on_nodes(rank_function, list(zip(ranks, tasks, strict=True)), timeout_s=2 * limits.timeout_s, num_gpus=float(nccl))
    found.ranks = [node.name for node in ranks]
    found.reports = {
        rank: answer.value if answer.value is not None else RankReport(problem=answer.error or "") for rank, answer in enumerate(answers)
    }


def _answered(nodes: Iterable[RayNode], lost: dict[str, str]) -> list[Finding]:
    names = [node.name for node in nodes]
    if not lost:
        return [Finding("nodes", "answered", "", "ok", f"{len(names)} of {len(names)}")]
    advice = "is it up, and is our code on it (`python -c 'import cluster'`)? Its Ray log: /tmp/ray/session_latest/logs/raylet.err"
    return [Finding("nodes", "answered", name, "fail", reason, advice) for name, reason in lost.items()]


def _check(question: Question, found: Examination, told: dict[str, int]) -> list[Finding]:
    if not found.nodes:
        return []
    driver = [look_at_path(each) for each in question.wanted]
    on_driver = frozenset(each.setting for each in question.wanted if each.needed_on == "driver")
    return [
        *check_gpus(found.nodes, told),
        *check_versions(found.nodes),
        *check_host_names(found.nodes),
        *check_adapters(found.nodes),
        *(check_reach(found.reached) if found.reached else []),
        *(check_speed(found.reports, found.ranks) if found.reports else []),
        *(check_folder(question.folder, found.folder, found.sightings) if question.folder is not None else []),
        *check_clocks(found.skews),
        *check_limits(found.nodes),
        *check_paths(found.nodes, driver, on_driver),
    ]
