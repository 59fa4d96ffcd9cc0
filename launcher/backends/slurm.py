"""Jobs as batch jobs of Slurm, each with an allocation and a Ray of its own; an array of jobs is one array of Slurm."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from pathlib import Path

from launcher import slurm
from launcher.cluster_file import SlurmCluster
from launcher.home import Job, OpenCluster, home
from launcher.slurm_script import Places, array_script, job_script
from launcher.substrate import Say
from w2sr.errors import UserError
from w2sr.tables import write_text

ROOT = Path(__file__).resolve().parents[2]


def submit(cluster: OpenCluster, job: Job, say: Say) -> str:
    """See Backend. Raises UserError with sbatch's words when Slurm refuses. After an interrupt nothing is left in the queue."""
    _prepare(cluster, job)
    with contextlib.ExitStack() as undo:
        number = slurm.submit(preview(cluster, job))
        undo.callback(slurm.cancel, number)
        say(_told(number))
        undo.pop_all()
    return number


def submit_array(cluster: OpenCluster, jobs: list[Job], say: Say) -> list[str]:
    """See ArrayBackend. Raises UserError as `submit` does."""
    links = home() / "arrays" / secrets.token_hex(4)
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, links, ignore_errors=True)
        links.mkdir(mode=0o700, parents=True)
        for index, job in enumerate(jobs):
            _prepare(cluster, job)
            (links / str(index)).symlink_to(job.folder.absolute())
        number = slurm.submit(array_script(_file(cluster), f"w2sr-{cluster.name}", links, len(jobs), Places(home(), ROOT)))
        undo.callback(slurm.cancel, number)
        say(_told(number))
        undo.pop_all()
    return [f"{number}_{index}" for index in range(len(jobs))]


def preview(cluster: OpenCluster, job: Job) -> str:
    """See Backend."""
    return job_script(_file(cluster), f"w2sr-{job.id}", job.folder.absolute(), Places(home(), ROOT))


def state(cluster: OpenCluster, job: Job) -> str:
    """See Backend."""
    del cluster
    try:
        return slurm.queue_state(job.backend_id)[0]
    except UserError:
        return "unknown"


def stop(cluster: OpenCluster, job: Job) -> None:
    """See Backend."""
    del cluster
    slurm.cancel(job.backend_id)


def _prepare(cluster: OpenCluster, job: Job) -> None:
    """Write the cluster file that holds for this job, also when it is queued again after the cluster's was changed."""
    write_text(job.folder / "cluster.json", cluster.file.model_dump_json(indent=1))


def _told(number: str) -> str:
    try:
        return slurm.warning(number) or f"Slurm job {number}: {slurm.queue_state(number)[1].lower()}"
    except UserError as error:
        return f"Slurm job {number} is submitted, but how it stands is not known: {error}"


def _file(cluster: OpenCluster) -> SlurmCluster:
    assert isinstance(cluster.file, SlurmCluster)
    return cluster.file
