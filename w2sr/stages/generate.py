"""Teachers write traces."""

from __future__ import annotations

from itertools import groupby

from w2sr.artifacts import StageDir
from w2sr.records import Prompt
from w2sr.run import Run
from w2sr.tables import read_table
from w2sr.teachers.config import TeacherConfig
from w2sr.teachers.engine import GeneratorSpec
from w2sr.teachers.generation import GeneratorPool, generate_parts, open_pool, part_paths
from w2sr.teachers.models import generator_spec


def run(run: Run) -> None:
    """Let every teacher complete the training prompts, into `generate/<teacher>/`. Teachers with the same pool settings share a pool."""
    todo = []
    for number, teacher in enumerate(run.config.teachers):
        spec = generator_spec(teacher.name, teacher.model, teacher.style, teacher.sampling, teacher.pool.batch_size)
        if not _stage_dir(run, teacher, spec).is_done():
            todo.append((number, teacher, spec))
    if not todo:
        return
    prompts = read_table(run.stage("prompts") / "train.parquet", Prompt)
    for pool_config, group in groupby(todo, key=lambda item: item[1].pool):
        members = list(group)
        with open_pool(run, pool_config, f"teachers.{members[0][0]}.pool") as pool:
            for _, teacher, spec in members:
                _generate(run, teacher, spec, prompts, pool)


def _stage_dir(run: Run, teacher: TeacherConfig, spec: GeneratorSpec) -> StageDir:
    config = {"teacher": teacher.identity(), "seed": run.config.seed}
    inputs = {"prompts": run.digest("prompts"), "model": spec.model_digest}
    return StageDir(run.stage("generate", teacher.name), "generate", config, inputs)


def _generate(run: Run, teacher: TeacherConfig, spec: GeneratorSpec, prompts: list[Prompt], pool: GeneratorPool) -> None:
    stage = _stage_dir(run, teacher, spec)
    stage.begin()
    totals = generate_parts(
        pool,
        spec,
        prompts,
        stage.folder,
        samples_per_prompt=teacher.samples_per_prompt,
        run_seed=run.config.seed,
        unit_size=teacher.pool.unit_size,
        title=f"generate {teacher.name}",
    )
    stage.finish(totals.counts(), part_paths(stage.folder, totals.samples, teacher.pool.unit_size), totals.usage())
