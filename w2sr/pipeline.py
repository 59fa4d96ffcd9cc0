"""The pipeline: which stages there are, in which order, and what must hold before the first one starts."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from cluster.session import ray_session, topology_of
from w2sr.analysis.analyse import check as check_analyses
from w2sr.artifacts import MANIFEST
from w2sr.benchmarks.problems import check_source
from w2sr.config import PipelineConfig
from w2sr.evaluation.bans import check_lists
from w2sr.placement import check_placement
from w2sr.run import Run
from w2sr.teachers.models import generator_spec, model_folder, teacher_spec
from w2sr.teachers.openai_engine import check_openai

# Stages that work long on devices: evaluation may run beside them.
BESIDE = ("generate", "verify", "curate", "train")
STAGES = ("prompts", "generate", "verify", "curate", "train", "evaluate", "analyse", "report")

log = logging.getLogger(__name__)


def run_stages(config: PipelineConfig, stages: list[str]) -> None:
    """Run the named stages in order. Each skips what is done and goes on with what is half done."""
    overlapped = [stage for stage in stages if stage in BESIDE] if config.overlap and "evaluate" in stages else []
    with open_run(config) as run, ExitStack() as evaluating, ExitStack() as training:
        for stage in stages:
            run_of_stage = run
            if overlapped and stage == overlapped[0]:
                evaluating.enter_context(importlib.import_module("w2sr.overlap").overlap(run, stages))
            if config.overlap and stage == "generate" and "train" in stages:
                run_of_stage = training.enter_context(importlib.import_module("w2sr.streaming").streaming(run, stages))
            if stage == "train":
                training.close()
            if stage == "evaluate":
                evaluating.close()
            began = time.monotonic()
            log.info("== %s", stage)
            # The stage's module is imported when its turn comes: `w2sr report` must not wait for DeepSpeed.
            importlib.import_module(f"w2sr.stages.{stage}").run(run_of_stage)
            log.info("   %s: %.1f s", stage, time.monotonic() - began)


@contextmanager
def open_run(config: PipelineConfig) -> Iterator[Run]:
    """Yield the run; a Ray session is opened when a stage first asks for one and closed at the end."""
    with ExitStack() as stack:
        opened: list[bool] = []

        @contextmanager
        def ray() -> Iterator[None]:
            if not opened:
                stack.enter_context(ray_session(config.cluster.spec()))
                opened.append(True)
            yield

        yield Run(config=config, folder=Path(config.run_dir), ray=ray)


def preflight(config: PipelineConfig, stages: list[str]) -> None:
    """Refuse what cannot work before any time is spent: missing benchmarks and models, more processors than there are."""
    for benchmark in config.evaluate.benchmarks if "prompts" in stages else []:
        if not (Path(config.run_dir) / "benchmarks" / benchmark.name / MANIFEST).exists():
            check_source(benchmark)
    for teacher in config.teachers:
        spec = teacher_spec(teacher)
        if teacher.engine.kind == "openai" and {"generate", "evaluate"} & set(stages):
            check_openai(spec, teacher.engine)
    model_folder(config.student.model)
    check_lists(config)
    if "analyse" in stages:
        check_analyses(Run(config=config, folder=Path(config.run_dir), ray=nullcontext))
    for model in config.evaluate.models if "evaluate" in stages else []:
        engine = model.engine or config.evaluate.engine
        if engine.kind == "openai":
            style, sampling = model.style or config.student.style, model.sampling or config.evaluate.sampling
            check_openai(generator_spec(model.name, model.model, engine, style, sampling), engine)
        else:
            model_folder(model.model)
    topology = topology_of(config.cluster.spec())
    if topology is not None:  # a cluster at an address is known when it is reached, and may grow
        check_placement(config, topology, stages)
