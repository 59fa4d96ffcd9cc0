"""What a configuration asks of the machines, stage by stage, and whether they have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from cluster.placement import Demand, Placement, Seat, place, ranges
from cluster.topology import Topology
from w2sr.config import PipelineConfig
from w2sr.errors import UserError
from w2sr.teachers.config import PoolConfig

STAGES = ("generate", "train", "evaluate")
EVALUATION = "models under evaluation"
BESIDE = "evaluate"
STREAMED = "generate + train"
_OR_OVERLAP = ", set overlap to false"


@dataclass(frozen=True)
class Phase:
    """What runs at the same time. Phases follow each other and have all machines to themselves."""

    name: str
    demands: tuple[Demand, ...]


def phases_of(config: PipelineConfig, stages: Sequence[str] = STAGES, num_ranks: int | None = None) -> list[Phase]:
    """Return what the named stages ask for; stages without machines of their own are left out.

    Teachers work side by side. Endpoints and recorded traces need none of our machines. One student is trained at a time, and models under
    evaluation share one pool. With `overlap`, evaluation runs beside the stages before it too, and a student beside its teachers where the
    configuration allows it (`streams`). `num_ranks`: None is train.num_ranks.
    """
    train = config.train
    ranks = num_ranks if num_ranks is not None else train.num_ranks
    found = {
        "generate": [
            _replicas(f"teacher {teacher.name}", teacher.pool)
            for teacher in config.teachers
            if teacher.engine.kind not in ("openai", "recorded")
        ],
        "train": [Demand("student", ranks, ranks, float(train.use_gpu), train.cpus_per_rank, group=True, unit="rank")],
        "evaluate": [_replicas(EVALUATION, config.evaluate.pool)],
    }
    wanted = {stage: found[stage] for stage in STAGES if stage in stages}
    if streams(config, stages):
        wanted = {STREAMED: [*found["generate"], *found["train"]], **wanted}
        del wanted["generate"]
    phases = [Phase(name, tuple(demands)) for name, demands in wanted.items() if demands]
    if not (config.overlap and "evaluate" in stages):
        return phases
    *earlier, last = phases
    return [Phase(f"{phase.name} + {BESIDE}", (*phase.demands, *last.demands)) for phase in earlier] + [last]


def streams(config: PipelineConfig, stages: Sequence[str]) -> bool:
    """Whether a student is to be trained while its traces are written: `overlap`, with both stages, and nothing in the way of it."""
    return config.overlap and {"generate", "train"} <= set(stages) and why_not_streamed(config) is None


def why_not_streamed(config: PipelineConfig) -> str | None:
    """Return why students cannot begin before all traces are there, and what would change it; None when they can."""
    if config.curate.waves == 1:
        return "with curate.waves of 2 or more they could begin when the first wave of traces is there"
    if config.train.max_steps is None:
        return "how many steps there will be is known only then; set train.max_steps"
    if config.curate.human is not None:
        return "curate.human has texts about any of the traces"
    rescued = [teacher.name for teacher in config.teachers if teacher.until_correct]
    if rescued:
        return f"how many traces teacher {rescued[0]} will write (until_correct) is known only then"
    return None


def most_ranks(config: PipelineConfig, topology: Topology, phase: str) -> int:
    """Return with how many ranks at most the phase of this name finds room when nothing is evaluated beside it; at least the least."""
    sizes = config.train.group_sizes
    for size in reversed(sizes):
        demands = [each.demands for each in phases_of(config, ["generate", "train"], size) if each.name == phase]
        if not any(place(topology, each).missing for each in demands):
            return size
    return sizes[0]


def check_placement(config: PipelineConfig, topology: Topology, stages: Sequence[str] = STAGES) -> None:
    """Raise UserError unless every named stage finds room for what it needs at least (min_replicas of every pool, min_ranks)."""
    least = config.train.group_sizes[0]
    missing = [f"{phase.name}: {text}" for phase in phases_of(config, stages, least) for text in place(topology, phase.demands).missing]
    if missing:
        raise UserError(
            f"{'; '.join(missing)}. There is: {describe(topology)}. Ask for less (pool.min_replicas, pool.cpus_per_replica, "
            "tensor_parallel_size with pool.gpus_per_replica, train.num_ranks, train.cpus_per_rank)"
            f"{_OR_OVERLAP * config.overlap} or bring "
            "more nodes; `w2sr placement CONFIG` shows who would get what"
        )


def describe(topology: Topology) -> str:
    """Return "n1 to n4: 8 GPUs, 96 CPUs each"; equal neighbours are named together."""
    parts = []
    for what, run in groupby(topology.nodes, key=lambda node: node.describe()):
        names = [node.name for node in run]
        parts.append(f"{names[0]}: {what}" if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names):,} nodes): {what} each")
    return "; ".join(parts) or "no node"


def render(topology: Topology, phases: Sequence[Phase]) -> tuple[str, bool]:
    """Return the table that `w2sr placement` prints, and whether everything that is needed has its place."""
    lines, complete = [describe(topology)], True
    for phase in phases:
        placement = place(topology, phase.demands)
        complete = complete and not placement.missing
        lines += ["", *_phase_lines(phase, placement, topology)]
    return "\n".join(lines), complete


def _phase_lines(phase: Phase, placement: Placement, topology: Topology) -> list[str]:
    used = {(seat.node, gpu) for seat in placement.seats for gpu in seat.gpus}
    lines = [phase.name + (f": {len(used):,} of {topology.gpus:,} GPUs" if topology.gpus else "")]
    for demand in phase.demands:
        seats = placement.of(demand.name)
        asked = f"{demand.minimum:,}" if demand.minimum == demand.maximum else f"{demand.minimum:,} to {demand.maximum:,}"
        each = ", ".join(
            f"{number:g} {unit}{'' if number == 1 else 's'}" for number, unit in ((demand.gpus, "GPU"), (demand.cpus, "CPU")) if number
        )
        lines.append(f"  {demand.name}: {len(seats):,} {demand.unit}{'' if len(seats) == 1 else 's'} ({asked} asked), {each} each")
        lines += [f"    {line}" for line in _seat_lines(seats, demand.unit, topology)]
    return lines + [f"  MISSING {text}" for text in placement.missing]


def _seat_lines(seats: Sequence[Seat], unit: str, topology: Topology) -> list[str]:
    """Return one line for each run of neighbouring nodes that hold the same number on the same GPUs."""
    order = {node.name: number for number, node in enumerate(topology.nodes)}
    by_node: dict[str, list[Seat]] = {}
    for seat in seats:
        by_node.setdefault(seat.node, []).append(seat)
    rows = [
        (order[node], node, len(held), tuple(tuple(seat.gpus) for seat in held))
        for node, held in sorted(by_node.items(), key=lambda item: order[item[0]])
    ]
    lines = []
    for _, run in groupby(enumerate(rows), key=lambda pair: (pair[1][0] - pair[0], pair[1][2:])):
        members = [row for _, row in run]
        _, first, count, gpus = members[0]
        nodes = first if len(members) == 1 else f"{first} to {members[-1][1]} ({len(members):,} nodes, each)"
        on = f", GPUs {' | '.join(ranges(each) for each in gpus)}" if any(gpus) else ""
        lines.append(f"{nodes}: {count:,} {unit}{'' if count == 1 else 's'}{on}")
    return lines


def _replicas(name: str, pool: PoolConfig) -> Demand:
    return Demand(name, pool.min_replicas, pool.replicas, pool.gpus_per_replica, pool.cpus_per_replica)
