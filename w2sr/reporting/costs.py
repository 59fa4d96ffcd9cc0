"""What a run cost: by stage, and what a student cost with and without its teachers, for each point that it gained.

Three measures, from the manifests and, for what is paid by the token, from the traces: tokens, device-seconds, and money where a price is
configured. A device-second is one GPU (or CPU process) at work for a second; a replica that spans 8 GPUs makes 8 of them in a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from w2sr.artifacts import Manifest
from w2sr.evaluation.bans import banned_contestants
from w2sr.evaluation.contestants import contestants_of
from w2sr.evaluation.intervals import Estimate
from w2sr.reporting.compare import Comparison
from w2sr.reporting.config import EndpointPrice, PricesConfig
from w2sr.reporting.ledger import stage_folders
from w2sr.run import Run
from w2sr.tables import part_files
from w2sr.teachers.config import EngineConfig

Engines = dict[tuple[str, str], tuple[str, EngineConfig]]


@dataclass(frozen=True)
class Usage:
    """What something used. None: nothing of the kind is counted there. `gap` says what is missing from the numbers, if anything is."""

    tokens: float | None = None
    device_seconds: float | None = None
    money: float | None = None
    gap: str = ""

    @classmethod
    def sum(cls, parts: Iterable[Usage]) -> Usage:
        """Add up; what only some count is the sum over those, and what is missing from one is missing from the sum."""
        listed = list(parts)

        def total(values: Iterable[float | None]) -> float | None:
            known = [value for value in values if value is not None]
            return sum(known) if known else None

        gaps = dict.fromkeys(part.gap for part in listed if part.gap)
        return cls(
            total(part.tokens for part in listed),
            total(part.device_seconds for part in listed),
            total(p.money for p in listed),
            "; ".join(gaps),
        )


@dataclass(frozen=True)
class Unit:
    """One finished folder of a stage. `seconds` is wall clock over its attempts; idle time between attempts is not in it."""

    stage: str
    name: str
    seconds: float
    attempts: int
    usage: Usage


@dataclass(frozen=True)
class StageCost:
    """The units of a stage together."""

    stage: str
    units: int
    seconds: float
    attempts: int
    usage: Usage


@dataclass(frozen=True)
class StudentCost:
    """What one student of an arm cost: its training (the mean over seeds) and its teachers' traces, which any arm alone would have needed.

    `gain` is its paired difference of avg@k to the untuned base; `points` the same in points, None where the interval does not lie above 0:
    then nothing can be said of the cost of a point.
    """

    key: str
    name: str
    students: int
    training: Usage
    teachers: list[str]
    traces: Usage
    whole: Usage
    gain: Estimate | None
    points: float | None


@dataclass(frozen=True)
class Costs:
    """All of it. `currency` is None when nothing has a price."""

    currency: str | None
    stages: list[StageCost]
    students: list[StudentCost]


def costs(run: Run, comparison: Comparison) -> Costs:
    """Read what the finished stages cost."""
    prices = run.config.report.prices
    asked = _engines(run)
    units = [_unit(run, name, prices, asked) for name in stage_folders(run)]
    stages = [_stage(stage, [unit for unit in units if unit.stage == stage]) for stage in dict.fromkeys(unit.stage for unit in units)]
    return Costs(prices.currency if prices.given else None, stages, _students(run, comparison, units))


def _stage(stage: str, units: list[Unit]) -> StageCost:
    seconds, attempts = round(sum(unit.seconds for unit in units), 1), sum(unit.attempts for unit in units)
    return StageCost(stage, len(units), seconds, attempts, Usage.sum(unit.usage for unit in units))


def _unit(run: Run, folder: str, prices: PricesConfig, asked: Engines) -> Unit:
    stage, *rest = folder.split("/")
    manifest = Manifest.load(run.folder / folder)
    name, engine = asked.get((stage, rest[-1]), ("", None)) if rest else ("", None)
    price = prices.endpoints.get(name)
    tokens, seconds, money, gap = manifest.usage.get("tokens"), manifest.usage.get("device_seconds"), None, ""
    elsewhere = engine is not None and engine.kind in ("openai", "recorded")
    if elsewhere:
        seconds = None  # the time in which we waited is not the time of a device
        gap = f"{name} ran elsewhere, its device time is not known here"
    elif seconds is not None and engine is not None and engine.kind == "vllm":
        seconds *= engine.tensor_parallel_size
    if price is not None:
        money, unknown = _bill(run.folder / folder, price)
        gap = f"{unknown:,} traces of {name} come without a count of tokens" if unknown else ""
    elif seconds is not None and (hourly := prices.device_hour_of(stage)) is not None:
        money = seconds / 3600 * hourly
    elif prices.given and seconds is not None:
        gap = f"a device-hour of {stage} has no price (report.prices.device_hour)"
    elif prices.given and elsewhere:
        gap += f", and it has no price (report.prices.endpoints.{name})"
    return Unit(stage, "/".join(rest), manifest.seconds, manifest.num_attempts, Usage(tokens, seconds, money, gap))


def _engines(run: Run) -> Engines:
    """Return the name and the engine of whose work the folders of generate and evaluate hold, by stage and folder."""
    found: Engines = {("generate", teacher.name): (teacher.name, teacher.engine) for teacher in run.config.teachers}
    for contestant in [*contestants_of(run), *(contestant for _, contestant in banned_contestants(run))]:
        label = contestant.label
        name = label.removeprefix("teacher-") if contestant.kind == "teacher" else label
        found["evaluate", label] = name, contestant.engine
    return found


def _bill(folder: Path, price: EndpointPrice) -> tuple[float, int]:
    """Return what the traces of a folder cost by the token, and how many of them come without a count."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    total, unknown = 0.0, 0
    for part in part_files(folder):
        columns = pq.read_table(part, columns=["num_prompt_tokens", "num_tokens", "finish_reason"])
        asked, made = (pc.sum(columns[name]).as_py() or 0 for name in ("num_prompt_tokens", "num_tokens"))
        total += (asked * price.input + made * price.output) / 1e6
        silent = pc.and_(pc.equal(columns["num_tokens"], 0), pc.not_equal(columns["finish_reason"], "error"))
        unknown += pc.sum(silent).as_py() or 0
    return total, unknown


def _students(run: Run, comparison: Comparison, units: list[Unit]) -> list[StudentCost]:
    trained = {unit.name: unit.usage for unit in units if unit.stage == "train"}
    written = {unit.name: unit.usage for unit in units if unit.stage == "generate"}
    found = []
    for row in comparison.rows:
        usages = [trained[label] for label in row.labels if label in trained] if row.kind == "student" else []
        if not usages:
            continue
        teachers = teachers_of_arm(run, row.arm or "")
        traces = Usage.sum(written[name] for name in teachers if name in written)
        training, gain = _mean(usages), row.versus.get("base")
        points = 100 * gain.value if gain is not None and gain.low > 0 else None
        whole = Usage.sum([training, traces])
        found.append(StudentCost(row.key, row.name, len(usages), training, teachers, traces, whole, gain, points))
    return found


def _mean(usages: list[Usage]) -> Usage:
    total, number = Usage.sum(usages), len(usages)
    tokens, seconds, paid = (None if value is None else value / number for value in (total.tokens, total.device_seconds, total.money))
    return Usage(tokens, seconds, paid, total.gap)


def teachers_of_arm(run: Run, arm_name: str) -> list[str]:
    """Return the teachers without whose traces an arm, or a mixture of arms, could not be made."""
    mixture = next((mixture for mixture in run.config.train.mixtures if mixture.name == arm_name), None)
    if mixture is not None:
        of_parts = {name for part in mixture.parts for name in teachers_of_arm(run, part)}
        return [teacher.name for teacher in run.config.teachers if teacher.name in of_parts]
    names = [teacher.name for teacher in run.config.teachers]
    arm = next((arm for arm in run.config.curate.arms if arm_name in arm.arm_names), None)
    if arm is None or arm.family == "gold" or (arm.mix and not set(arm.mix) - {"gold", "human"}):
        return []
    return [name for name in names if arm.teachers is None or name in arm.teachers]
