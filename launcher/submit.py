"""Submits jobs: everything that can be known is checked first, then the job's folder is written, then the backend is asked."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from launcher.attempt import busy
from launcher.cli import STAGES
from launcher.cluster_file import SlurmCluster
from launcher.home import Job, OpenCluster, forget_job, new_job_id, open_cluster
from launcher.job_state import CONFIG
from launcher.jobs import jobs_of, say, standing
from launcher.logs import follow_job
from launcher.slurm_nodes import STOP_WAIT_S
from launcher.substrate import ArrayBackend, backend, backend_of
from launcher.supervisor import GRACE_S
from w2sr.config import ClusterConfig, PipelineConfig, dump_config, load_config
from w2sr.errors import UserError
from w2sr.pipeline import preflight
from w2sr.schema import nearest
from w2sr.tables import write_text


def submit(arguments: argparse.Namespace) -> int:
    """Carry out `w2sr submit`."""
    cluster = open_cluster(arguments.cluster)
    stages = _stages(arguments.stage)
    variants = list(itertools.product(*(_array(text) for text in arguments.array)))
    if len(variants) > 1 and arguments.follow:
        raise UserError("--follow follows one job; leave it out with --array and use `w2sr logs JOB -f`")
    configs = [_checked(arguments, list(variant), stages, cluster) for variant in variants]
    if arguments.dry_run:
        return _show(cluster, configs, stages)
    jobs = _hand_in(cluster, [(config, stages, os.getcwd()) for config in configs])
    return _report(jobs, arguments.follow)


def resume(job: Job, cluster_name: str | None, follow: bool) -> int:
    """Submit the same configuration again; what is done is skipped. Raises UserError while the job runs or is queued."""
    stands = standing(job)
    if not stands.over:
        raise UserError(
            f"job {job.id} has not ended ({stands.phase}); follow it with `w2sr logs {job.id} -f`, or first `w2sr cancel {job.id}`"
        )
    cluster = open_cluster(cluster_name or job.cluster)
    _refuse_busy(Path(job.run_dir))
    jobs = _hand_in(cluster, [(load_config(job.folder / CONFIG), job.stages, job.cwd)])
    return _report(jobs, follow)


def _stages(asked: list[str]) -> tuple[str, ...]:
    unknown = next((stage for stage in asked if stage not in STAGES), None)
    if unknown is not None:
        raise UserError(f"--stage {unknown}: {nearest(unknown, list(STAGES))}allowed: {', '.join(STAGES)}")
    return tuple(stage for stage in STAGES if stage in asked)


def _array(text: str) -> list[str]:
    key, equals, values = text.partition("=")
    if not equals or not key or not all(values.split(",")):
        raise UserError(f"--array {text!r} is not of the form key=a,b,c, for example seed=0,1,2")
    double = next((value for value in values.split(",") if values.split(",").count(value) > 1), None)
    if double is not None:
        raise UserError(f"--array {text!r} names {double!r} more than once, and each value has one run folder; give each value once")
    return [f"{key}={value}" for value in values.split(",")]


def _checked(arguments: argparse.Namespace, variant: list[str], stages: tuple[str, ...], cluster: OpenCluster) -> PipelineConfig:
    """Return the configuration of one job, absolute and fit to be submitted. Raises UserError when it is not."""
    config = load_config(arguments.config, [*arguments.overrides, *variant])
    # Each job of an array has a run folder of its own, below the one the configuration names.
    run_dir = Path(config.run_dir, *([",".join(variant)] if variant else [])).absolute()
    # Where Ray is, the supervisor knows: the cluster decides, not the configuration.
    config = config.model_copy(update={"run_dir": str(run_dir), "cluster": ClusterConfig()})
    if not arguments.no_preflight:
        try:
            preflight(config.model_copy(update={"cluster": _machines(cluster)}), list(stages or STAGES))
        except UserError as error:
            hint = "" if cluster.file.kind == "local" else " (looked for on this machine; --no-preflight if only the nodes have it)"
            raise UserError(f"{error}{hint}") from error
    _refuse_busy(run_dir)
    return config


def _machines(cluster: OpenCluster) -> ClusterConfig:
    """Return what can be known here of the machines: all of them if it is this one, nothing if the nodes are others."""
    if cluster.file.kind == "local":
        return ClusterConfig(num_cpus=cluster.file.num_cpus, num_gpus=cluster.file.num_gpus)
    return ClusterConfig(address=cluster.name)


def _refuse_busy(run_dir: Path) -> None:
    for job in jobs_of(run_dir):
        stands = standing(job)
        if not stands.over:
            raise UserError(
                f"job {job.id} ({stands.phase}) has {run_dir}; follow it with `w2sr logs {job.id} -f`, end it with "
                f"`w2sr cancel {job.id}`, or choose another run_dir"
            )
    holder = busy(run_dir)
    if holder:
        raise UserError(f"a w2sr command (process {holder}) is working in {run_dir}; wait for it, stop it, or choose another run_dir")


def _new_job(cluster: OpenCluster, backend_name: str, config: PipelineConfig, stages: tuple[str, ...], cwd: str) -> Job:
    run_dir = Path(config.run_dir)
    return Job(
        id=new_job_id(run_dir),
        cluster=cluster.name,
        backend=backend_name,
        backend_id="",
        run_dir=str(run_dir),
        stages=stages,
        submitted_at=time.time(),
        max_restarts=cluster.file.max_restarts,
        cwd=cwd,
    )


def _hand_in(cluster: OpenCluster, wanted: list[tuple[PipelineConfig, tuple[str, ...], str]]) -> list[Job]:
    """Write the jobs' folders and submit them; what the backend refuses leaves no job behind. Raises UserError when the cluster is down.

    Those that it took before a failure or an interrupt stay, and are named.
    """
    name = backend_of(cluster)
    if name == "ray":
        cluster.up()
    _warn_of_grace(cluster, wanted[0][0])
    jobs = [(_new_job(cluster, name, *each), each[0]) for each in wanted]
    submitted: list[Job] = []
    try:
        for job, config in jobs:
            _write(job, config)
        for job, number in zip((job for job, _ in jobs), _submit_all(cluster, [job for job, _ in jobs])):
            submitted.append(dataclasses.replace(job, backend_id=number))
            submitted[-1].save()
    finally:
        if submitted and len(submitted) < len(jobs):
            say(f"{len(submitted)} of {len(jobs)} jobs were handed in and go on: {', '.join(job.id for job in submitted)}; see `w2sr jobs`")
        for job, _ in jobs[len(submitted) :]:
            forget_job(job)
            shutil.rmtree(job.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty: others have been there
                job.folder.parent.rmdir()
                Path(job.run_dir).rmdir()
    return submitted


def _warn_of_grace(cluster: OpenCluster, config: PipelineConfig) -> None:
    """Say so when the driver may take longer to commit its work than Slurm leaves it at the end of the time."""
    if not isinstance(cluster.file, SlurmCluster):
        return
    driver_s = config.generate.drain_timeout_s + GRACE_S
    if driver_s > cluster.file.grace_s:
        say(
            f"grace_s={cluster.file.grace_s} is short: at the end of the time the driver may take generate.drain_timeout_s="
            f"{config.generate.drain_timeout_s:g} and {GRACE_S:g} s more, then Ray {STOP_WAIT_S:g} s; what is not committed then is done "
            f"again. Give grace_s: {math.ceil(driver_s + STOP_WAIT_S)} in the CLUSTER.yaml, or a smaller generate.drain_timeout_s"
        )


def _submit_all(cluster: OpenCluster, jobs: list[Job]) -> Iterator[str]:
    """Yield the number of each job as soon as the backend has taken it, so that it is stored before the next is handed in."""
    if jobs[0].backend == "slurm" and len(jobs) > 1:
        yield from cast(ArrayBackend, backend("slurm")).submit_array(cluster, jobs, say)
    else:
        for job in jobs:
            yield backend(job.backend).submit(cluster, job, say)


def _write(job: Job, config: PipelineConfig) -> None:
    try:
        job.save()
        write_text(job.folder / CONFIG, dump_config(config))
    except OSError as error:
        raise UserError(f"run_dir={job.run_dir}: cannot write there ({error.strerror}); give a folder you may write to") from error


def _report(jobs: list[Job], follow: bool) -> int:
    for job in jobs:
        print(f"job {job.id} on cluster {job.cluster}, in {job.run_dir}")
    last = jobs[-1].id
    say(f"follow it:   w2sr logs {last} -f\nsee it:      w2sr jobs\nend it:      w2sr cancel {last}   (w2sr resume {last} goes on)")
    return follow_job(jobs[0]) if follow else 0


def _show(cluster: OpenCluster, configs: list[PipelineConfig], stages: tuple[str, ...]) -> int:
    name = backend_of(cluster)
    for config in configs:
        job = _new_job(cluster, name, config, stages, os.getcwd())
        print(f"run_dir   {config.run_dir}")
        print(f"stages    {', '.join(stages or STAGES)}")
        print(f"cluster   {cluster.name} ({cluster.file.kind}), at most {job.max_restarts} restarts")
        print(backend(job.backend).preview(cluster, job))
    return 0
