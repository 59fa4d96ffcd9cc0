"""What a run will need, before anything starts: memory of a device, time, disk; and what to change where it does not fit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from w2sr.config import PipelineConfig
from w2sr.evaluation.contestants import Contestant, contestants_of
from w2sr.planning import workload
from w2sr.planning.answering import Engine, answer_speed, num_devices, on_gpu, replica
from w2sr.planning.assumptions import Assumptions
from w2sr.planning.disk import disk_of
from w2sr.planning.layout import Layout, layout_of
from w2sr.planning.measured import Finished, Measured
from w2sr.planning.refused import refuse_what_training_refuses
from w2sr.planning.search import Changes, Option, cheapest_change, described, fastest, neighbours
from w2sr.planning.shapes import ModelShape, config_folder, shape_of
from w2sr.planning.speed import training_speed
from w2sr.planning.training_memory import Memory, training_memory
from w2sr.planning.workload import Training
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
    num_devices: float
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
    """Return the plan of a run; reads config.json files and what the run folder holds.

    Raises UserError for a model that is not there, and for what its training would refuse.
    """
    asker = _Asker(run, assumed, _Shapes(), Finished(run))
    shape = asker.shapes.of(run.config.student.model)
    refuse_what_training_refuses(run.config.train, shape)
    works = _trainings(asker)
    items = [*_teachers(asker), _student(asker, works), *_evaluation(asker)]
    engines = [(f"teacher {teacher.name}", teacher.engine.kind) for teacher in run.config.teachers]
    elsewhere = [f"{name} ({kind})" for name, kind in engines if kind in ("openai", "recorded")]
    texts = sum(item.tokens for item in items if item.stage != "train")
    disk = disk_of(run, shape, layout_of(run.config.train, shape), list(works.values()), texts)
    return Plan(run.config.title, items, disk, elsewhere, assumed)


class _Shapes:
    """Shapes by the name of the model; each is made once."""

    def __init__(self) -> None:
        self._known: dict[str, ModelShape] = {}

    def of(self, name: str) -> ModelShape:
        if name not in self._known:
            self._known[name] = shape_of(name, config_folder(name))
        return self._known[name]


@dataclass(frozen=True)
class _Asker:
    """What every line of a plan is made from."""

    run: Run
    assumed: Assumptions
    shapes: _Shapes
    finished: Finished

    def takes(self, changes: Changes) -> bool:
        """Return whether the configuration takes other values of some keys."""
        values = self.run.config.model_dump(mode="json")
        for key, value in changes.items():
            *parents, last = key.split(".")
            place: Any = values
            for name in parents:
                place = place[int(name)] if isinstance(place, list) else place[name]
            place[last] = value
        try:
            PipelineConfig.model_validate(values)
        except ValidationError:
            return False
        return True


@dataclass(frozen=True)
class _Asked:
    """Who answers, and how much: at most `limit` new tokens an answer, `tokens` in all. `keys`: of the engine and of the pool."""

    engine: Engine
    pool: PoolConfig
    limit: int
    tokens: float
    keys: tuple[str, str]


def _teachers(asker: _Asker) -> list[Item]:
    items = []
    for number, teacher in enumerate(asker.run.config.teachers):
        if not isinstance(teacher.engine, (HFEngineConfig, VLLMEngineConfig)):
            continue
        assert teacher.model is not None
        assert teacher.sampling is not None
        limit, known = teacher.sampling.max_new_tokens, asker.finished.traces(teacher)
        each = known.tokens_each if known else asker.assumed.answer_share * limit
        tokens = workload.num_traces(asker.run.config, teacher) * each
        keys = f"teachers.{number}.engine", f"teachers.{number}.pool"
        asked = _Asked(teacher.engine, teacher.pool, limit, tokens, keys)
        items.append(_answers(asker, ("generate", f"teacher {teacher.name}"), asker.shapes.of(teacher.model), asked, known))
    return items


def _evaluation(asker: _Asker) -> list[Item]:
    config = asker.run.config
    groups: dict[tuple[str, str], list[Contestant]] = {}
    for each in contestants_of(asker.run):
        if isinstance(each.engine, (HFEngineConfig, VLLMEngineConfig)):
            model = config.student.model if each.kind == "student" else each.model
            groups.setdefault((model, each.engine.model_dump_json()), []).append(each)
    sets = workload.num_answers(config)
    unknown = [name for name, number, _ in sets if not number]
    own = {each.name: number for number, each in enumerate(config.evaluate.models) if each.engine is not None}
    items = []
    for (model, _), members in groups.items():
        first = members[0]
        assert isinstance(first.engine, (HFEngineConfig, VLLMEngineConfig))
        known = asker.finished.answers(sets[0][0], first)
        share = known.tokens_each / sets[0][2] if known else asker.assumed.answer_share
        times = {name: len(members) + workload.num_banned(asker.run, members, name) for name, _, _ in sets}
        tokens = sum(times[name] * number * share * limit for name, number, limit in sets)
        engine = f"evaluate.models.{own[first.label]}.engine" if first.label in own else "evaluate.engine"
        limit = max(limit for _, _, limit in sets)
        asked = _Asked(first.engine, config.evaluate.pool, limit, tokens, (engine, "evaluate.pool"))
        name = first.label if len(members) == 1 else f"{first.label} and {len(members) - 1} more"
        item = _answers(asker, ("evaluate", name), asker.shapes.of(model), asked, known)
        gap = [f"not counted, for the number of problems is not known: {', '.join(unknown)}"] if unknown else []
        items.append(dataclasses.replace(item, notes=[*item.notes, *gap]))
    return items


def _answers(asker: _Asker, what: tuple[str, str], shape: ModelShape, asked: _Asked, known: Measured | None) -> Item:
    engine, pool = asked.engine, asked.pool
    one = replica(shape, engine, pool, (max(1, round(asker.assumed.prompt_tokens)), asked.limit), asker.assumed)
    rate = known.tokens_per_s if known and known.tokens_per_s else answer_speed(shape, engine, pool, asker.assumed)
    sections = {"engine": asked.keys[0], "pool": asked.keys[1]}
    remedies = [{f"{sections[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in each.items()} for each in one.remedies]
    remedy = next((each for each in remedies if asker.takes(each)), None)
    return Item(
        stage=what[0],
        name=what[1],
        model=shape.name,
        num_parameters=shape.num_parameters,
        num_devices=num_devices(pool),
        on_gpu=on_gpu(pool),
        memory=one.memory,
        tokens=asked.tokens,
        seconds=asked.tokens / (rate * pool.replicas),
        rate=rate,
        basis="measured" if known and known.tokens_per_s else "assumed",
        remedy=described(remedy) if remedy is not None else None,
        notes=[one.note],
    )


def _trainings(asker: _Asker) -> dict[str, Training]:
    """Return the training of each student, by its name."""
    run = asker.run
    mean_row = asker.assumed.prompt_tokens + _mean_answer(asker)
    each = {arm: workload.training_of(run.config, arm, run.folder, mean_row) for arm in run.config.student_arms}
    return {name: each[arm] for name, arm, _ in run.student_names()}


def _student(asker: _Asker, works: dict[str, Training]) -> Item:
    train, assumed = asker.run.config.train, asker.assumed
    shape = asker.shapes.of(asker.run.config.student.model)
    layout = layout_of(train, shape)
    steps = max(work.step_tokens for work in works.values())
    known = asker.finished.training_rate(shape, layout)
    rate = known or training_speed(shape, layout, assumed, steps, train.cpus_per_rank).tokens_per_s
    tokens = sum(work.tokens for work in works.values())
    memory = training_memory(shape, layout, assumed.machine(layout))
    change = None if memory.fits else cheapest_change(shape, train, assumed)
    best = fastest(shape, train, assumed, steps) if train.use_gpu else None
    unknown = [arm for name, arm, _ in asker.run.student_names() if not works[name].known and train.max_steps is None]
    return Item(
        stage="train",
        name=f"{len(works)} student{'s' if len(works) > 1 else ''}",
        model=shape.name,
        num_parameters=shape.num_parameters,
        num_devices=train.num_ranks,
        on_gpu=train.use_gpu,
        memory=memory,
        tokens=tokens,
        seconds=tokens / (rate * train.num_ranks),
        rate=rate,
        basis="measured" if known else "assumed",
        remedy=change.describe() if change else None,
        layout=layout,
        instead=neighbours(shape, train, assumed),
        fastest=(best[0], best[1].tokens_per_s) if best else None,
        notes=[f"rows not known yet, every trace counted: {', '.join(dict.fromkeys(unknown))}"] if unknown else [],
    )


def _mean_answer(asker: _Asker) -> float:
    """Return the tokens of a trace: as measured, or as assumed of the teachers' limits."""
    found = []
    for teacher in asker.run.config.teachers:
        known = asker.finished.traces(teacher)
        if known:
            found.append(known.tokens_each)
        elif teacher.sampling is not None:
            found.append(asker.assumed.answer_share * teacher.sampling.max_new_tokens)
    return sum(found) / len(found) if found else asker.assumed.answer_share * asker.run.config.train.max_length
