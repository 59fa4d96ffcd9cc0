"""What a run will need, before anything starts: memory of a device, time, disk; and what to change where it does not fit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from w2sr.evaluation.contestants import contestants_of
from w2sr.planning import workload
from w2sr.planning.answering import Engine, answer_speed, on_gpu, replica
from w2sr.planning.assumptions import Assumptions
from w2sr.planning.disk import disk_of
from w2sr.planning.layout import Layout, layout_of
from w2sr.planning.search import Option, cheapest_change, fastest, neighbours
from w2sr.planning.shapes import ModelShape, config_folder, shape_of
from w2sr.planning.speed import training_speed
from w2sr.planning.training_memory import Memory, training_memory
from w2sr.planning.workload import Measured
from w2sr.run import Run
from w2sr.teachers.config import HFEngineConfig, PoolConfig, VLLMEngineConfig


@dataclass(frozen=True)
class Item:
    """One line: `num_devices` GPUs or CPU processes for `seconds`; `tokens` are those of all its units together.

    `rate`: tokens a second of one replica or rank, and its `basis`: measured or assumed. `instead`: what other choices would need.
    `fastest`: the fastest that fits on as many GPUs, with its tokens a second. `remedy`: the cheapest change that makes it fit; None: it
    fits, or nothing does.
    """

    stage: str
    name: str
    model: str
    num_parameters: int
    num_devices: int
    on_gpu: bool
    memory: Memory
    tokens: float
    seconds: float
    rate: float
    basis: str
    remedy: str | None = None
    layout: Layout | None = None
    instead: list[Option] = field(default_factory=list)
    fastest: tuple[Option, float] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """The whole run. `disk`: bytes by what they hold; `elsewhere`: who needs none of our devices."""

    title: str
    items: list[Item]
    disk: dict[str, float]
    elsewhere: list[str]
    assumed: Assumptions

    @property
    def fits(self) -> bool:
        """Whether every stage fits."""
        return all(item.memory.fits for item in self.items)


def make_plan(run: Run, assumed: Assumptions) -> Plan:
    """Return the plan of a run; reads config.json files and what the run folder holds. Raises UserError for a model that is not there."""
    shapes = _Shapes()
    student = _student(run, shapes, assumed)
    items = [*_teachers(run, shapes, assumed), student, *_evaluation(run, shapes, assumed)]
    engines = [(f"teacher {teacher.name}", teacher.engine.kind) for teacher in run.config.teachers]
    elsewhere = [f"{name} ({kind})" for name, kind in engines if kind in ("openai", "recorded")]
    return Plan(run.config.title, items, disk_of(run, shapes.of(run.config.student.model), items), elsewhere, assumed)


class _Shapes:
    """Shapes by the name of the model; each is made once."""

    def __init__(self) -> None:
        self._known: dict[str, ModelShape] = {}

    def of(self, name: str) -> ModelShape:
        if name not in self._known:
            self._known[name] = shape_of(name, config_folder(name))
        return self._known[name]


def _teachers(run: Run, shapes: _Shapes, assumed: Assumptions) -> list[Item]:
    items = []
    for teacher in run.config.teachers:
        if not isinstance(teacher.engine, (HFEngineConfig, VLLMEngineConfig)):
            continue
        assert teacher.model is not None
        assert teacher.sampling is not None
        limit = teacher.sampling.max_new_tokens
        known = workload.measured(run.stage("generate", teacher.name), "traces")
        tokens = workload.num_traces(run.config, teacher) * (known.tokens_each if known else assumed.answer_share * limit)
        shape = shapes.of(teacher.model)
        asked = _Asked(teacher.engine, teacher.pool, limit, tokens)
        items.append(_answers("generate", f"teacher {teacher.name}", shape, asked, known, assumed))
    return items


def _evaluation(run: Run, shapes: _Shapes, assumed: Assumptions) -> list[Item]:
    groups: dict[tuple[str, str], list[tuple[str, Engine]]] = {}
    for each in contestants_of(run):
        if isinstance(each.engine, (HFEngineConfig, VLLMEngineConfig)):
            model = run.config.student.model if each.kind == "student" else each.model
            groups.setdefault((model, each.engine.kind), []).append((each.label, each.engine))
    sets = workload.num_answers(run.config)
    unknown = [name for name, number, _ in sets if not number]
    items = []
    for (model, _), members in groups.items():
        label, engine = members[0]
        known = workload.measured(run.stage("evaluate", sets[0][0], label), "answers")
        share = known.tokens_each / sets[0][2] if known else assumed.answer_share
        tokens = len(members) * sum(number * share * limit for _, number, limit in sets)
        asked = _Asked(engine, run.config.evaluate.pool, max(limit for _, _, limit in sets), tokens)
        name = label if len(members) == 1 else f"{label} and {len(members) - 1} more"
        item = _answers("evaluate", name, shapes.of(model), asked, known, assumed)
        gap = [f"not counted, for the number of problems is not known: {', '.join(unknown)}"] if unknown else []
        items.append(dataclasses.replace(item, notes=[*item.notes, *gap]))
    return items


@dataclass(frozen=True)
class _Asked:
    """Who answers, and how much: at most `limit` new tokens an answer, `tokens` in all."""

    engine: Engine
    pool: PoolConfig
    limit: int
    tokens: float


def _answers(stage: str, name: str, shape: ModelShape, asked: _Asked, known: Measured | None, assumed: Assumptions) -> Item:
    engine, pool = asked.engine, asked.pool
    one = replica(shape, engine, pool, (round(assumed.prompt_tokens), asked.limit), assumed)
    rate = known.tokens_per_s if known and known.tokens_per_s else answer_speed(shape, engine, pool, assumed)
    return Item(
        stage=stage,
        name=name,
        model=shape.name,
        num_parameters=shape.num_parameters,
        num_devices=pool.replicas * (engine.tensor_parallel_size if engine.kind == "vllm" else 1),
        on_gpu=on_gpu(engine, pool),
        memory=one.memory,
        tokens=asked.tokens,
        seconds=asked.tokens / (rate * pool.replicas),
        rate=rate,
        basis="measured" if known and known.tokens_per_s else "assumed",
        remedy=one.remedy,
        notes=[one.note],
    )


def _student(run: Run, shapes: _Shapes, assumed: Assumptions) -> Item:
    config, train = run.config, run.config.train
    shape, students = shapes.of(config.student.model), run.student_names()
    layout = layout_of(train, shape)
    mean_row = assumed.prompt_tokens + _mean_answer(run, assumed)
    each = {arm: workload.training_of(config, arm, run.folder, mean_row) for arm in dict.fromkeys(arm for _, arm, _ in students)}
    steps = max(work.step_tokens for work in each.values())
    known = next((found for name, _, _ in students if (found := workload.measured(run.stage("train", name), "kept"))), None)
    speed = training_speed(shape, layout, assumed, steps, train.cpus_per_rank)
    rate = known.tokens_per_s if known and known.tokens_per_s else speed.tokens_per_s
    tokens = sum(each[arm].tokens for _, arm, _ in students)
    memory = training_memory(shape, layout, assumed.machine(layout))
    change = None if memory.fits else cheapest_change(shape, layout, assumed)
    best = fastest(shape, layout, assumed, steps) if train.use_gpu else None
    bounded = [arm for arm, work in each.items() if not work.known and train.max_steps is None]
    return Item(
        stage="train",
        name=f"{len(students)} student{'s' if len(students) > 1 else ''}",
        model=shape.name,
        num_parameters=shape.num_parameters,
        num_devices=train.num_ranks,
        on_gpu=train.use_gpu,
        memory=memory,
        tokens=tokens,
        seconds=tokens / (rate * train.num_ranks),
        rate=rate,
        basis="measured" if known and known.tokens_per_s else "assumed",
        remedy=change.describe() if change else None,
        layout=layout,
        instead=neighbours(shape, layout, assumed),
        fastest=(best[0], best[1].tokens_per_s) if best else None,
        notes=[f"rows not known yet, every trace counted: {', '.join(bounded)}"] if bounded else [],
    )


def _mean_answer(run: Run, assumed: Assumptions) -> float:
    """Return the tokens of a trace: as measured, or as assumed of the teachers' limits."""
    found = []
    for teacher in run.config.teachers:
        known = workload.measured(run.stage("generate", teacher.name), "traces")
        if known:
            found.append(known.tokens_each)
        elif teacher.sampling is not None:
            found.append(assumed.answer_share * teacher.sampling.max_new_tokens)
    return sum(found) / len(found) if found else assumed.answer_share * run.config.train.max_length
